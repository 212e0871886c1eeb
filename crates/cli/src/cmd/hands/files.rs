//! `proffer task files`

use bytes::Bytes;
use comfy_table::{Cell, Color};
use proffer_client::hands::{FileEntry, FileKind};
use serde::Serialize;

use crate::cmd::Cluster;
use crate::fail::Failure;
use crate::ids;
use crate::render::{Out, Record, text};

/// Files that are listed unless all are wanted: more than anybody reads, and no burden to anyone.
const LISTED_MAX: usize = 10_000;

/// A file in a sandbox.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct File {
    /// With what is no text written as `\xNN`.
    name: String,
    kind: &'static str,
    size: u64,
    mode: String,
    uid: u32,
    gid: u32,
    modified_at: String,
    #[serde(skip)]
    modified_ms: u64,
}

impl From<FileEntry> for File {
    fn from(entry: FileEntry) -> Self {
        Self {
            name: shown(&entry.name),
            kind: match entry.kind() {
                FileKind::Regular => "file",
                FileKind::Directory => "directory",
                FileKind::Symlink => "symlink",
                FileKind::Other | FileKind::Unspecified => "other",
            },
            size: entry.size,
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            modified_at: text::time(entry.modified_ms),
            modified_ms: entry.modified_ms,
        }
    }
}

/// A file's name for people and JSON: what is no UTF-8 is written out.
pub(super) fn shown(name: &[u8]) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        shown.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
    }
    shown
}

impl Record for File {
    const PLURAL: &'static str = "files";
    const COLUMNS: &'static [&'static str] = &["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"];

    fn id(&self) -> String {
        self.name.clone()
    }

    fn row(&self, now_ms: u64) -> Vec<Cell> {
        let (letter, suffix) = match self.kind {
            "directory" => ('d', "/"),
            "symlink" => ('l', "@"),
            "file" => ('-', ""),
            _ => ('?', ""),
        };
        let name = Cell::new(text::clean(&self.name) + suffix);
        vec![
            Cell::new(format!("{letter}{}", self.mode)),
            Cell::new(format!("{}:{}", self.uid, self.gid)),
            Cell::new(text::size(self.size)),
            Cell::new(format!("{} ago", text::age(self.modified_ms, now_ms))),
            match letter {
                'd' => name.fg(Color::Blue),
                'l' | '?' => name.fg(Color::Yellow),
                _ => name,
            },
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

pub(crate) async fn files(
    cluster: &Cluster,
    given: &str,
    path: &str,
    all: bool,
    out: &Out,
) -> Result<u8, Failure> {
    let (framework, task) = ids::task(cluster, given).await?;
    let (mut found, mut token) = (Vec::new(), Bytes::new());
    loop {
        let page = cluster.admin.list_files(framework, &task, path.as_bytes(), token).await?;
        found.extend(page.entries.into_iter().map(File::from));
        token = page.next;
        if token.is_empty() {
            break;
        }
        if !all && found.len() >= LISTED_MAX {
            eprintln!("proffer: more than {LISTED_MAX} files: the rest is not listed; --all lists them");
            break;
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    out.list(&found)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_whatever_they_hold() {
        assert_eq!(shown(b"a\xffb\xc3\xb6"), "a\\xffbö");
        let entry = FileEntry { name: Bytes::from_static(b"\x1b[2J\xff"), ..FileEntry::default() };
        let row = File::from(entry).row(0);
        assert_eq!(row[4].content(), "\\u{1b}[2J\\xff");
    }
}
