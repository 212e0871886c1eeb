//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Starts the supervisor of one framework's containers: returns 0 once it listens, in a session of its own.
#[derive(Clone, Debug, Parser)]
#[command(name = "proffer-executor", version)]
pub struct Config {
    /// The SOCK_SEQPACKET socket to make and to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// A directory on a tmpfs for this instance alone; made if its parent exists.
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: PathBuf,
    /// The name of this instance: letters, digits, `.`, `_`, `-`.
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub instance: String,
    /// The framework it works for: letters, digits, `.`, `_`, `-`.
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub framework: String,
    /// What launches may ask for: `linux` prepares for both and needs root.
    #[arg(long, value_enum)]
    pub isolation: Isolation,
    /// A directory that Linux containers see empty; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub cover: Vec<PathBuf>,
}

/// What the supervisor prepares for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// Namespaces and a read-only view of the host.
    Linux,
    /// Plain process trees.
    Process,
}

const ID_MAX: usize = 255;

fn parse_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > ID_MAX || !text.chars().all(allowed) {
        return Err(format!("must be 1 to {ID_MAX} letters, digits, '.', '_' or '-'"));
    }
    Ok(text.to_owned())
}
