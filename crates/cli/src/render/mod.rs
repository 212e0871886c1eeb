//! What verbs print.

mod record;
mod rows;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Format;
use crate::fail::{Code, Failure};

pub(crate) use record::Status;
pub(crate) use rows::{Agent, Executor, Framework, Master, Offer, Task};

/// Something that verbs list and show.
pub(crate) trait Record: Serialize {
    /// The key of its list in JSON.
    const PLURAL: &'static str;
    /// Columns of its table.
    const COLUMNS: &'static [&'static str];

    /// Its id, for `--quiet`.
    fn id(&self) -> String;
    /// Its row, one cell per column, free of control characters. `now_ms` is the wall clock.
    fn row(&self, now_ms: u64) -> Vec<Cell>;
    /// All there is to say, line by line, free of control characters.
    fn details(&self) -> Vec<(&'static str, String)>;
}

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    format: Format,
    quiet: bool,
    colour: bool,
}

impl Out {
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { format, quiet, colour: std::io::stdout().is_terminal() && !no_colour }
    }

    /// Whether notices are wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The format asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether colours are wanted.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// Prints a text as it is.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        print(text).map(drop)
    }

    /// Prints one object of a stream: a line, in JSON too. `false` if nobody reads any more.
    pub(crate) fn line<T: Serialize>(&self, one: &T, short: impl Fn(&T) -> String) -> Result<bool, Failure> {
        print(&match self.format {
            Format::Table => short(one) + "\n",
            Format::Json | Format::Jsonl => line(one),
        })
    }

    /// Prints one document in JSON, in a line where lines are wanted.
    pub(crate) fn document(&self, one: &impl Serialize) -> Result<(), Failure> {
        print(&match self.format {
            Format::Jsonl => line(one),
            Format::Json | Format::Table => pretty(one),
        })
        .map(drop)
    }

    /// Prints a list.
    pub(crate) fn list<R: Record>(&self, rows: &[R]) -> Result<(), Failure> {
        print(&self.list_text(rows, text::now_ms())).map(drop)
    }

    /// Prints one object.
    pub(crate) fn show<R: Record>(&self, one: &R) -> Result<(), Failure> {
        print(&self.show_text(one, &one.id(), &one.details())).map(drop)
    }

    /// Prints the cluster at a glance.
    pub(crate) fn status(&self, status: &Status) -> Result<(), Failure> {
        print(&match self.format {
            Format::Table => status.text(),
            _ => self.show_text(status, &status.cluster_id, &[]),
        })
        .map(drop)
    }

    fn list_text<R: Record>(&self, rows: &[R], now_ms: u64) -> String {
        match self.format {
            Format::Json => pretty(&BTreeMap::from([(R::PLURAL, rows)])),
            Format::Jsonl => rows.iter().map(|row| line(row)).collect(),
            Format::Table if self.quiet => {
                rows.iter().map(|row| format!("{}\n", text::clean(&row.id()))).collect()
            }
            Format::Table => {
                let mut table = plain_table(self.colour);
                table.set_header(R::COLUMNS.iter().map(Cell::new));
                for row in rows {
                    table.add_row(row.row(now_ms));
                }
                lines(&table)
            }
        }
    }

    fn show_text(&self, one: &impl Serialize, id: &str, details: &[(&str, String)]) -> String {
        match self.format {
            Format::Json => pretty(one),
            Format::Jsonl => line(one),
            Format::Table if self.quiet => format!("{}\n", text::clean(id)),
            Format::Table => {
                let width = details.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
                details.iter().map(|(label, value)| format!("{label:width$}  {value}\n")).collect()
            }
        }
    }
}

/// A table without lines: columns are parted by two spaces, so that `awk` and people read it alike.
pub(crate) fn plain_table(colour: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table
}

/// The table's text without trailing spaces.
pub(crate) fn lines(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end())).collect()
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("rows have text keys and finite numbers only") + "\n"
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("rows have text keys and finite numbers only") + "\n"
}

/// Writes to stdout. A reader that has gone away has seen enough: `false`.
fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Code::Failed, format!("cannot write to stdout: {error}"))),
    }
}

#[cfg(test)]
mod tests;
