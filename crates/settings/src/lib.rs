//! A daemon's settings: flags over `PROFFER_…` variables over a TOML file over defaults.
//!
//! Every setting is one text with one parser, wherever it comes from, so that everything that is wrong, in flags and
//! file alike, can be told at once. This crate refuses to guess: an unknown key is a problem.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// What flags and variables said, by the flag's name without dashes in front.
pub type Flags<'a> = BTreeMap<&'static str, Option<&'a str>>;

/// Takes settings out of flags and file, and gathers what is wrong with them.
pub struct Reader<'a> {
    flags: Flags<'a>,
    file: toml::Table,
    path: PathBuf,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// A reader over the file that `config` names, which must be there, or over the one at `default` if it is there.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(flags: Flags<'a>, config: Option<&Path>, default: &Path) -> Result<Self, Problems> {
        let path = config.unwrap_or(default);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && config.is_none() => String::new(),
            Err(error) => return Err(Problems(vec![format!("config {}: {error}", path.display())])),
        };
        Ok(Self::over(flags, &text, path))
    }

    /// A reader over the text of a file. Its keys are the flags' names, with `-` or with `_`.
    pub fn over(flags: Flags<'a>, text: &str, path: &Path) -> Self {
        let mut problems = Vec::new();
        let table = text.parse::<toml::Table>().unwrap_or_else(|error| {
            problems.push(format!("config {}: {}", path.display(), error.to_string().trim_end()));
            toml::Table::new()
        });
        let file = table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)).collect();
        Self { flags, file, path: path.to_owned(), problems }
    }

    /// One setting, if flags, variables or file say something. What the file says is checked too when a flag is
    /// stronger.
    pub fn get<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let in_file = self.file.remove(key).and_then(|value| {
            let at = format!("config {}: {key}", self.path.display());
            let text = text_of(&value).ok_or_else(|| format!("{value} has the wrong type"));
            text.and_then(|text| parse(&text)).map_err(|why| self.problems.push(format!("{at}: {why}"))).ok()
        });
        match self.flags.get(key).copied().flatten() {
            Some(text) => parse(text).map_err(|why| self.problems.push(format!("{key}: {why}"))).ok(),
            None => in_file,
        }
    }

    /// Notes something that is wrong with the settings as a whole.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Gives `settings` out if nothing is wrong. Whatever nobody took out of the file is unknown.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn finish<T>(mut self, settings: T) -> Result<T, Problems> {
        let known: Vec<&str> = self.flags.keys().copied().collect();
        for key in self.file.keys() {
            self.problems.push(format!(
                "config {}: `{key}` is not a setting; there are {}",
                self.path.display(),
                known.join(", ")
            ));
        }
        if self.problems.is_empty() { Ok(settings) } else { Err(Problems(self.problems)) }
    }
}

/// A setting's value as a flag would have it; a list becomes its items with commas between.
fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            items.map(|items| items.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// Reads yes or no.
///
/// # Errors
/// Anything else.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

/// Reads a whole number between two others.
///
/// # Errors
/// Anything else.
pub fn parse_number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("`{text}` is not a whole number from {least} to {most}"))
}

/// Reads `HOST:PORT`.
///
/// # Errors
/// Anything else; port 0.
pub fn parse_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>())) {
        Some((false, Ok(1..))) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not HOST:PORT")),
    }
}

/// Reads an absolute path of a directory that is not the root.
///
/// # Errors
/// Anything else.
pub fn parse_dir(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && path != Path::new("/") {
        Ok(path)
    } else {
        Err(format!("`{text}` is not an absolute path of a directory below /"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader<'a>(flags: &[(&'static str, Option<&'a str>)], file: &str) -> Reader<'a> {
        Reader::over(flags.iter().copied().collect(), file, Path::new("x.toml"))
    }

    #[test]
    fn a_flag_is_stronger_than_the_file_which_is_checked_all_the_same() {
        let mut good = reader(&[("id", Some("2")), ("data-dir", None)], "id = 1\ndata_dir = \"/d\"\n");
        assert_eq!(good.get("id", |text| parse_number(text, 1, 9)), Some(2));
        assert_eq!(good.get("data-dir", parse_dir), Some("/d".into()));
        assert_eq!(good.finish(()), Ok(()));
        let mut bad = reader(&[("id", Some("2"))], "id = 10\n");
        assert_eq!(bad.get("id", |text| parse_number(text, 1, 9)), Some(2));
        assert!(bad.finish(()).is_err());
    }

    #[test]
    fn every_problem_is_told() {
        let mut reader = reader(&[("id", Some("x")), ("listen", None)], "listen = 1.5\ncolour = \"red\"\n");
        reader.get("id", |text| parse_number(text, 1, 9));
        reader.get("listen", parse_address);
        reader.problem("and this");
        let problems = reader.finish(()).expect_err("problems").to_string();
        for part in
            ["id: `x`", "x.toml: listen: 1.5 has the wrong type", "`colour` is not a setting", "and this"]
        {
            assert!(problems.contains(part), "{part} in {problems}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let missing = Path::new("/nonexistent/proffer.toml");
        assert!(Reader::open(Flags::new(), None, missing).is_ok());
        assert!(Reader::open(Flags::new(), Some(missing), Path::new("/")).is_err());
    }
}
