//! What is wrong with a message that cannot be parsed.

use std::fmt;

/// Most violations that are listed; more than that are counted. It keeps an answer's details under 4 KiB, which is what
/// the headers of clients take.
pub const VIOLATIONS_MAX: usize = 20;
/// Longest reason and path that are kept, in bytes.
const TEXT_BYTES_MAX: usize = 120;

/// One field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct InvalidField {
    /// Where, as in `parts[0].operations[1].launch.spec.resources[2].amount`.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// Why a message was not accepted. Nothing of it took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fields hold what they must not.
    #[error("{}", list(fields, *more))]
    Invalid {
        /// The first [`VIOLATIONS_MAX`] of them.
        fields: Vec<InvalidField>,
        /// How many more there are.
        more: usize,
    },
    /// A field asks for something that this version does not do.
    #[error("{path}: {what}")]
    Unsupported {
        /// Where.
        path: String,
        /// What it is.
        what: String,
    },
}

fn list(fields: &[InvalidField], more: usize) -> String {
    let mut text: Vec<String> = fields.iter().map(InvalidField::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    text.join("; ")
}

/// A field's place in a message, written only when something is wrong there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path<'a> {
    /// The message itself.
    Root,
    /// A field of a message.
    Field(&'a Path<'a>, &'static str),
    /// An item of a list.
    Item(&'a Path<'a>, &'static str, usize),
    /// A value of a map.
    Key(&'a Path<'a>, &'static str, &'a str),
}

impl Path<'_> {
    pub(crate) fn field<'a>(&'a self, name: &'static str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(crate) fn item<'a>(&'a self, name: &'static str, at: usize) -> Path<'a> {
        Path::Item(self, name, at)
    }

    pub(crate) fn key<'a>(&'a self, name: &'static str, key: &'a str) -> Path<'a> {
        Path::Key(self, name, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = |f: &mut fmt::Formatter<'_>, parent: &Path<'_>| match parent {
            Path::Root => Ok(()),
            parent => write!(f, "{parent}."),
        };
        match self {
            Path::Root => f.write_str("message"),
            Path::Field(parent, name) => dot(f, parent).and_then(|()| f.write_str(name)),
            Path::Item(parent, name, at) => dot(f, parent).and_then(|()| write!(f, "{name}[{at}]")),
            Path::Key(parent, name, key) => {
                let key: String = key.chars().take(32).collect();
                dot(f, parent).and_then(|()| write!(f, "{name}[{key:?}]"))
            }
        }
    }
}

/// Collects what is wrong while a message is parsed, so that its sender hears of everything at once.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    fields: Vec<InvalidField>,
    more: usize,
    unsupported: Option<(String, String)>,
}

impl Problems {
    /// Notes a wrong field; `None` is for the caller to return.
    pub(crate) fn invalid<T>(&mut self, path: Path<'_>, reason: impl fmt::Display) -> Option<T> {
        if self.fields.len() == VIOLATIONS_MAX {
            self.more += 1;
        } else {
            self.fields.push(InvalidField { path: cut(path.to_string()), reason: cut(reason.to_string()) });
        }
        None
    }

    /// Notes a field that asks for something unknown; the first of them is told.
    pub(crate) fn unsupported<T>(&mut self, path: Path<'_>, what: impl fmt::Display) -> Option<T> {
        if self.unsupported.is_none() {
            self.unsupported = Some((cut(path.to_string()), cut(what.to_string())));
        }
        None
    }

    /// The value, if nothing was wrong. What is unsupported comes before what is invalid: a client that is newer than
    /// this master cannot be judged by its other fields.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Malformed> {
        if let Some((path, what)) = self.unsupported {
            return Err(Malformed::Unsupported { path, what });
        }
        match value {
            Some(value) if self.fields.is_empty() => Ok(value),
            _ => Err(Malformed::Invalid { fields: self.fields, more: self.more }),
        }
    }
}

/// Runs a parser that notes its problems.
pub(crate) fn parse<T>(parser: impl FnOnce(&mut Problems) -> Option<T>) -> Result<T, Malformed> {
    let mut problems = Problems::default();
    let value = parser(&mut problems);
    problems.finish(value)
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_message() {
        let (root, parts) = (Path::Root, Path::Item(&Path::Root, "parts", 0));
        let spec = parts.field("launch");
        let spec = spec.field("spec");
        assert_eq!(
            spec.item("resources", 2).field("amount").to_string(),
            "parts[0].launch.spec.resources[2].amount"
        );
        assert_eq!(spec.key("env", "A=B").to_string(), "parts[0].launch.spec.env[\"A=B\"]");
        assert_eq!(root.field("call").to_string(), "call");
    }

    #[test]
    fn many_violations_are_counted_not_listed() {
        let result: Result<(), _> = parse(|problems| {
            for at in 0..50 {
                problems.invalid::<()>(Path::Root.item("tasks", at), "is wrong ".repeat(100));
            }
            Some(())
        });
        let Err(Malformed::Invalid { fields, more }) = result else { panic!("accepted") };
        assert_eq!((fields.len(), more), (VIOLATIONS_MAX, 30));
        assert!(fields.iter().all(|f| f.reason.len() <= TEXT_BYTES_MAX + 1), "{fields:?}");
    }
}
