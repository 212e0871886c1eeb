//! What operators do to a task: programs, terminals, files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use proffer_types::limits::{ARGV_BYTES_MAX, USAGE_INTERVAL_MIN_MS};
use proffer_types::{AgentId, FrameworkId, LaunchId};

use super::tasks::env;
use crate::admin::v1 as pb;
use crate::malformed::{Malformed, Path, Problems, parse};
use crate::rows::EventRow;
use crate::told::{ExecCommand, WindowSize};

const ROOT: Path<'static> = Path::Root;

/// Longest path, in bytes: PATH_MAX without the final 0.
const PATH_BYTES_MAX: usize = 4_095;
/// Longest name of a file, in bytes: NAME_MAX.
const NAME_BYTES_MAX: usize = 255;
/// Most components of a path.
const COMPONENTS_MAX: usize = 256;

/// A program to run in a task's container.
pub fn exec_start(start: &pb::ExecStart) -> Result<ExecCommand, Malformed> {
    parse(|problems| {
        let at = ROOT.field("start");
        if start.argv.first().is_none_or(String::is_empty) {
            return problems.invalid(at.field("argv"), "must name a program");
        }
        if start.argv.iter().any(|argument| argument.contains('\0')) {
            return problems.invalid(at.field("argv"), "contains a NUL byte");
        }
        let bytes: usize = start.argv.iter().map(|argument| argument.len() + 1).sum::<usize>()
            + start.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
        if bytes > ARGV_BYTES_MAX {
            let limit =
                format_args!("arguments and environment have {bytes} bytes, the limit is {ARGV_BYTES_MAX}");
            return problems.invalid(at.field("argv"), limit);
        }
        if start.working_directory.contains('\0') {
            return problems.invalid(at.field("working_directory"), "contains a NUL byte");
        }
        Some(ExecCommand {
            argv: start.argv.clone(),
            env: env(start.env.clone(), &at, problems)?,
            working_directory: start.working_directory.clone(),
            terminal: start.terminal.as_ref().map(window_size),
        })
    })
}

/// A terminal's size; what does not fit is the most that does.
pub fn window_size(size: &pb::TerminalSize) -> WindowSize {
    let cut = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    WindowSize { rows: cut(size.rows), cols: cut(size.cols) }
}

/// A path beneath a sandbox, in the field of this name: relative, without `.`, `..` and empty components; empty for
/// the sandbox itself.
pub fn sandbox_path(path: &[u8], field: &'static str) -> Result<PathBuf, Malformed> {
    parse(|problems| {
        let at = ROOT.field(field);
        if path.len() > PATH_BYTES_MAX {
            let text = format_args!("has {} bytes, the limit is {PATH_BYTES_MAX}", path.len());
            return problems.invalid(at, text);
        }
        if path.first() == Some(&b'/') {
            return problems.invalid(at, "is absolute; a path is relative to the task's sandbox");
        }
        let mut clean = PathBuf::new();
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        for (n, part) in parts.enumerate() {
            if n == COMPONENTS_MAX {
                return problems.invalid(at, format_args!("has more than {COMPONENTS_MAX} components"));
            }
            clean.push(component(part, at, problems)?);
        }
        Some(clean)
    })
}

/// One component of a path, in the field of this name.
pub fn file_name(name: &[u8], field: &'static str) -> Result<PathBuf, Malformed> {
    parse(|problems| {
        let at = ROOT.field(field);
        if name.is_empty() || name == b"." || name.contains(&b'/') {
            return problems.invalid(at, "is not the name of a file");
        }
        component(name, at, problems)
    })
}

fn component(part: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<PathBuf> {
    if part == b".." {
        return problems.invalid(at, "contains `..`");
    }
    if part.contains(&0) {
        return problems.invalid(at, "contains a NUL byte");
    }
    if part.len() > NAME_BYTES_MAX {
        return problems.invalid(at, format_args!("a name has more than {NAME_BYTES_MAX} bytes"));
    }
    Some(PathBuf::from(OsStr::from_bytes(part)))
}

/// Something became true.
pub fn event_row(event: pb::Event) -> EventRow {
    let some = |id: u64| (id > 0).then_some(id);
    EventRow {
        index: event.index,
        ordinal: event.ordinal,
        kind: event.kind,
        wall_ms: event.wall_ms,
        framework: some(event.framework_id).map(FrameworkId),
        agent: some(event.agent_id).map(AgentId),
        launch: some(event.launch_id).map(LaunchId),
        task_id: event.task_id,
        executor_id: event.executor_id,
        state: event.state,
        reason: event.reason,
        text: event.text,
    }
}

/// The time between two measurements in milliseconds; `None` if one is enough.
pub fn usage_interval(interval_ms: u64) -> Result<Option<u64>, Malformed> {
    parse(|problems| match interval_ms {
        0 => Some(None),
        ms if ms < USAGE_INTERVAL_MIN_MS => problems.invalid(
            ROOT.field("interval_ms"),
            format_args!("must be 0 or at least {USAGE_INTERVAL_MIN_MS}"),
        ),
        ms => Some(Some(ms)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_beneath() {
        let path = |text: &[u8]| sandbox_path(text, "path").map(|p| p.into_os_string().into_encoded_bytes());
        assert_eq!(path(b""), Ok(vec![]));
        assert_eq!(path(b"./a//b/./c/"), Ok(b"a/b/c".to_vec()));
        assert_eq!(path(b"\xff\x1b[31m"), Ok(b"\xff\x1b[31m".to_vec()));
        for bad in [&b"/etc"[..], b"..", b"a/../b", b"a\0", &[b'a'; 256], &[b'/'; 1], &[b'a'; 5_000]] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(path("a/".repeat(300).as_bytes()).is_err());
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"\0"] {
            assert!(file_name(bad, "name").is_err(), "{bad:?}");
        }
        assert!(file_name(b"...", "name").is_ok());
    }

    #[test]
    fn programs_are_checked() {
        let start = |argv: &[&str]| pb::ExecStart {
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            ..pb::ExecStart::default()
        };
        assert!(exec_start(&start(&["sh", ""])).is_ok());
        for bad in [&[][..], &[""], &["a\0"], &["x"; 40_000]] {
            assert!(exec_start(&start(bad)).is_err());
        }
        let env = [("A=".to_owned(), String::new())].into();
        assert!(exec_start(&pb::ExecStart { env, ..start(&["sh"]) }).is_err());
        assert_eq!(usage_interval(0), Ok(None));
        assert!(usage_interval(499).is_err());
    }
}
