//! `proffer task cp`

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use proffer_client::hands::{FilePiece, FilesEnd};
use proffer_types::{FrameworkId, TaskId};
use tokio::sync::mpsc;

use super::exec::{interrupted, print};
use super::files::shown;
use super::local::{Writer, base_name, walk};
use super::terminal::Signals;
use crate::cmd::Cluster;
use crate::fail::{Code, Failure};
use crate::ids;
use crate::render::{Out, text};

/// What was left out is told one by one up to this.
const SKIPPED_LISTED: usize = 10;
/// Pieces between the disk and the connection.
const PIECES_WAITING: usize = 4;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Beneath a task's sandbox.
    Task { task: String, path: String },
    /// On this machine.
    Local(PathBuf),
}

/// `TASK:PATH`, or else a path; one that has a colon begins with `./` or `/`.
pub(crate) fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some((task, path)) if !task.starts_with(['.', '/']) => {
            if task.is_empty() {
                return Err(format!("`{text}` names no task before the colon"));
            }
            Ok(Place::Task { task: task.to_owned(), path: path.to_owned() })
        }
        _ if text.is_empty() => Err("is empty".into()),
        _ => Ok(Place::Local(text.into())),
    }
}

pub(crate) async fn copy(cluster: &Cluster, from: Place, to: Place, out: &Out) -> Result<u8, Failure> {
    match (from, to) {
        (Place::Task { task, path }, Place::Local(to)) => {
            let mut signals = Signals::new()?;
            tokio::select! {
                done = download(cluster, &task, &path, &to, out) => done,
                // What is half there is removed.
                code = interrupted(&mut signals) => Ok(code),
            }
        }
        (Place::Local(from), Place::Task { task, path }) => upload(cluster, &from, &task, &path, out).await,
        _ => Err(Failure::new(Code::Usage, "one side of a copy is a task, the other is not")
            .next("proffer task cp TASK:PATH LOCAL, or proffer task cp LOCAL TASK:PATH")),
    }
}

async fn download(cluster: &Cluster, given: &str, path: &str, to: &Path, out: &Out) -> Result<u8, Failure> {
    let (framework, task) = ids::task(cluster, given).await?;
    let to_stdout = to == Path::new("-");
    let target = match base_name(path.as_bytes()) {
        // As `cp -r` does with the name of a directory that is there.
        name if !name.is_empty() && to.is_dir() => to.join(std::ffi::OsStr::from_bytes(name)),
        _ => to.to_owned(),
    };
    let mut reader = cluster.admin.read_files(framework, &task, path.as_bytes()).await?;
    let mut progress = Progress::new(out);
    let mut writer = Writer::new(target);
    let mut stdout_begun = false;
    while let Some(piece) = reader.next().await? {
        progress.see(&piece);
        match piece {
            FilePiece::Head(_) if to_stdout && std::mem::replace(&mut stdout_begun, true) => {
                return Err(Failure::new(
                    Code::Usage,
                    format!("`{path}` is a directory: it goes not to stdout"),
                ));
            }
            FilePiece::Head(_) if to_stdout => {}
            FilePiece::Data(data) if to_stdout => print(data, false).await?,
            FilePiece::Head(head) => writer.begin(&head)?,
            FilePiece::Data(data) => writer.data(&data)?,
            FilePiece::Skipped(_) => {}
            FilePiece::End(sum) => {
                writer.finish_file()?;
                return Ok(progress.finish(&sum, out));
            }
        }
    }
    Err(Failure::new(Code::Unavailable, "the connection ended before everything was copied")
        .next("copy again: files that are there are replaced"))
}

async fn upload(cluster: &Cluster, from: &Path, given: &str, path: &str, out: &Out) -> Result<u8, Failure> {
    let (framework, task): (FrameworkId, TaskId) = ids::task(cluster, given).await?;
    let full = std::fs::canonicalize(from).map_err(|error| {
        let name = text::clean(&shown(from.as_os_str().as_bytes()));
        Failure::new(Code::NotFound, format!("read `{name}`: {error}"))
    })?;
    // `.` and `/` have no name of their own.
    let named = base_name(from.as_os_str().as_bytes());
    let name =
        if named.is_empty() || named == b".." { base_name(full.as_os_str().as_bytes()) } else { named };
    let name = if name.is_empty() { b"root" } else { name };
    let writer = cluster.admin.write_files(framework, &task, path.as_bytes(), name).await?;
    let (give, mut pieces) = mpsc::channel(PIECES_WAITING);
    let walking =
        tokio::task::spawn_blocking(move || walk(&full, &mut |piece| give.blocking_send(piece).is_ok()));
    let mut progress = Progress::new(out);
    let mut sum = FilesEnd::default();
    while let Some(piece) = pieces.recv().await {
        progress.see(&piece);
        if let FilePiece::End(end) = &piece {
            sum = *end;
        }
        if !writer.send(piece).await {
            break;
        }
    }
    drop(pieces);
    let walked = walking.await.map_err(|died| Failure::new(Code::Failed, format!("read files: {died}")))?;
    // What cannot be read here is why it was not whole there.
    walked?;
    let (files, bytes) = writer.finish().await?;
    Ok(progress.finish(&FilesEnd { files, bytes, skipped: sum.skipped }, out))
}

/// What the user sees of a copy.
struct Progress {
    bar: Option<ProgressBar>,
    files: u64,
    bytes: u64,
    skipped: Vec<(String, String)>,
}

impl Progress {
    fn new(out: &Out) -> Self {
        let wanted = !out.is_quiet() && std::io::stderr().is_terminal();
        let bar = wanted.then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {bytes} in {msg} files, {bytes_per_sec}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self { bar, files: 0, bytes: 0, skipped: Vec::new() }
    }

    fn see(&mut self, piece: &FilePiece) {
        match piece {
            FilePiece::Head(_) => self.files += 1,
            FilePiece::Data(data) => self.bytes += data.len() as u64,
            FilePiece::Skipped(skipped) if self.skipped.len() < SKIPPED_LISTED => {
                self.skipped.push((shown(&skipped.path), skipped.why.clone()));
            }
            FilePiece::Skipped(_) | FilePiece::End(_) => {}
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            bar.set_message(self.files.to_string());
        }
    }

    /// Says what came of it. What was left out makes it a failure, though what could be copied was.
    fn finish(self, sum: &FilesEnd, out: &Out) -> u8 {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
        if sum.skipped > 0 {
            eprintln!("proffer: {} left out:", sum.skipped);
            for (path, why) in &self.skipped {
                eprintln!("  {}: {}", text::clean(path), text::clean(why));
            }
            let more = sum.skipped.saturating_sub(self.skipped.len() as u64);
            if more > 0 {
                eprintln!("  and {more} more");
            }
        }
        if !out.is_quiet() {
            let files = if sum.files == 1 { "1 file".to_owned() } else { format!("{} files", sum.files) };
            eprintln!("{files}, {} copied", text::size(sum.bytes));
        }
        u8::from(sum.skipped > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_names_a_task() {
        let task = |task: &str, path: &str| Ok(Place::Task { task: task.into(), path: path.into() });
        assert_eq!(place("fw_1/t:a/b"), task("fw_1/t", "a/b"));
        assert_eq!(place("t:"), task("t", ""));
        for local in ["./a:b", "/a:b", "a", "-"] {
            assert_eq!(place(local), Ok(Place::Local(local.into())));
        }
        assert!(place(":a").is_err() && place("").is_err());
    }
}
