//! A daemon's settings: flags, then `PROFFER_*`, then a TOML file whose keys are the flags' names, then defaults.
//!
//! The file's values become the defaults of the flags, so one parser knows every name and type. It refuses to guess:
//! an unknown key is an error, and all problems of a file are listed at once.

use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, Command, Parser};

/// Reads the settings from `argv`, the environment and the file that `--config` or `PROFFER_CONFIG` names.
///
/// # Errors
/// What clap says of a flag; every unknown key and every value of a wrong kind in the file, with its path.
pub fn parse<T: Parser>(argv: impl IntoIterator<Item = OsString>) -> Result<T, clap::Error> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let mut command = T::command();
    if let Some(path) = config_path(&argv) {
        command = with_file(command, Path::new(&path))?;
    }
    let matches = command.try_get_matches_from_mut(argv)?;
    T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Like [`parse`] of this process's own arguments; prints what is wrong and exits with 2.
pub fn parse_or_exit<T: Parser>() -> T {
    parse(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

fn config_path(argv: &[OsString]) -> Option<OsString> {
    let mut args = argv.iter().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().cloned();
        }
        if let Some(path) = arg.to_str().and_then(|a| a.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os("PROFFER_CONFIG")
}

fn with_file(mut command: Command, path: &Path) -> Result<Command, clap::Error> {
    let fail = |command: &mut Command, problems: Vec<String>| {
        let text = format!("{}:\n  {}", path.display(), problems.join("\n  "));
        Err(command.error(clap::error::ErrorKind::ValueValidation, text))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return fail(&mut command, vec![format!("cannot be read: {error}")]),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return fail(&mut command, vec![error.to_string().trim_end().replace('\n', "\n  ")]),
    };
    let mut problems = Vec::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        let Some(arg) = command.get_arguments().find(|a| a.get_long() == Some(&flag) && flag != "config") else {
            problems.push(format!("unknown key `{key}`{}", nearest(&command, &flag)));
            continue;
        };
        match texts(arg, &value) {
            Ok(texts) => {
                let texts: Vec<clap::builder::OsStr> = texts.into_iter().map(Into::into).collect();
                let id = arg.get_id().clone();
                command = command.mut_arg(id, |arg| arg.default_values(texts).required(false));
            }
            Err(expected) => problems.push(format!("`{key}` must be {expected}, not {value}")),
        }
    }
    if problems.is_empty() { Ok(command) } else { fail(&mut command, problems) }
}

fn texts(arg: &Arg, value: &toml::Value) -> Result<Vec<String>, &'static str> {
    let flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Boolean(yes) if flag => Ok(vec![yes.to_string()]),
        _ if flag => Err("true or false"),
        toml::Value::Array(items) if matches!(arg.get_action(), ArgAction::Append) => {
            items.iter().map(scalar).collect::<Option<_>>().ok_or("a list of texts")
        }
        value => scalar(value).map(|text| vec![text]).ok_or("a text or a number"),
    }
}

fn nearest(command: &Command, flag: &str) -> String {
    let known: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
    let like = known.iter().find(|known| known.starts_with(flag) || flag.starts_with(**known));
    like.map(|known| format!(" (did you mean `{known}`?)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Settings {
        #[arg(long)]
        id: u64,
        #[arg(long, default_value = "127.0.0.1:5050")]
        listen: String,
        #[arg(long, value_delimiter = ',')]
        peers: Vec<String>,
        #[arg(long)]
        insecure: bool,
        #[arg(long)]
        config: Option<String>,
    }

    fn with(file: &str, flags: &[&str]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("master.toml");
        std::fs::write(&path, file).expect("a file");
        let argv = ["x", "--config"].into_iter().map(OsString::from).chain([path.into_os_string()]);
        parse(argv.chain(flags.iter().map(OsString::from))).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let file = "id = 3\nlisten = \"127.0.0.1:1\"\npeers = [\"1=a:1\", \"2=b:1\"]\ninsecure = true\n";
        let settings = with(file, &["--listen", "127.0.0.1:2"]).expect("settings");
        assert_eq!((settings.id, settings.listen.as_str(), settings.insecure), (3, "127.0.0.1:2", true));
        assert_eq!(settings.peers, ["1=a:1", "2=b:1"]);
    }

    #[test]
    fn all_problems_of_a_file_are_listed() {
        let text = with("lissten = \"x\"\nid = [1]\npeer = \"a\"\n", &[]).expect_err("three problems");
        for part in ["unknown key `lissten`", "`id` must be", "did you mean `peers`?", "master.toml"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
