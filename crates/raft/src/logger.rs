//! raft-rs logs through slog; this carries its lines over to tracing.

use std::fmt::{self, Write};

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer};

/// A logger for raft-rs. What it calls info is a diary of every vote; here that is debug.
pub(crate) fn bridge() -> Logger {
    Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        const TARGET: &str = "proffer_raft::raft";
        macro_rules! emit {
            ($level:ident) => {
                if tracing::enabled!(target: TARGET, tracing::Level::$level) {
                    tracing::event!(target: TARGET, tracing::Level::$level, "{}", line(record, values));
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => emit!(ERROR),
            Level::Warning => emit!(WARN),
            Level::Info => emit!(DEBUG),
            Level::Debug | Level::Trace => emit!(TRACE),
        }
        Ok(())
    }
}

fn line(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut out = Line(record.msg().to_string());
    // Writing into a string cannot fail.
    let _ = record.kv().serialize(record, &mut out);
    let _ = values.serialize(record, &mut out);
    out.0
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(Into::into)
    }
}
