//! How proffer's programs speak to whoever runs them: one line per event on stderr, as text or as JSON.
//!
//! This crate refuses to decide what is worth saying; it only sets up where it goes and how much of it. Standard
//! output is left to the programs.

use std::fmt;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as layer, reload};

/// What is said unless the operator asks for more or less.
pub const DEFAULT_FILTER: &str = "info";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// A text that is no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log format: it is `text` or `json`")]
pub struct UnknownFormat(String);

impl std::str::FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter.
    #[error("`{filter}` is not a log filter such as `info` or `info,proffer_raft=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The program has set up a log already.
    #[error("set up the log")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The log is gone.
    #[error("change the log filter")]
    Gone(#[source] reload::Error),
}

/// How much is said; can be changed while the program runs. Clones change the same log.
#[derive(Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Says from now on what `filter` selects: a level (`error` `warn` `info` `debug` `trace`), or `target=level`
    /// pairs, separated by commas.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        self.0.reload(parse(filter)?).map_err(Error::Gone)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Level")
    }
}

/// Checks a filter without using it.
pub fn check(filter: &str) -> Result<(), Error> {
    parse(filter).map(drop)
}

/// Sets up the log of this program. To be called once, early, with the operator's filter (the daemons' `--log` or
/// `PROFFER_LOG`; see [`Level::set`]).
pub fn init(format: Format, filter: &str) -> Result<Level, Error> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = layer::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        Format::Text => {
            use std::io::IsTerminal;
            lines.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).boxed()
        }
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(Error::Twice)?;
    Ok(Level(handle))
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_changes_while_it_runs() {
        let level = init(Format::Text, "warn").unwrap();
        assert!(!tracing::enabled!(tracing::Level::INFO));
        level.set("warn,proffer_telemetry=debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(level.set("proffer=loud").is_err());
        assert!(tracing::enabled!(tracing::Level::DEBUG), "a wrong filter changes nothing");
        assert!(matches!(init(Format::Json, "info"), Err(Error::Twice(_))));
    }

    #[test]
    fn formats_have_names() {
        for format in [Format::Text, Format::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<Format>().is_err());
    }
}
