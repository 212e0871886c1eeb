//! What tells one program from another: whoever has to know whether a process runs what a file holds.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Program headers and notes that are looked at, in bytes: those of a linked program are a few hundred.
const HEADERS_MAX: u64 = 64 * 1024;
const NOTE_MAX: u64 = 4 * 1024;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// Names the program in a file: its GNU build id in hexadecimal, which a linker makes of all that it links, or, where
/// it has none, a hash of the whole file.
pub fn build_id(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    if let Some(id) = note(&file) {
        return Ok(id.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    // FNV-1a: of programs that differ by chance, not by design.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("file-{hash:016x}")),
            length => {
                for &byte in &buffer[..length] {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
    }
}

/// The build id of a 64-bit little-endian ELF file that has one.
fn note(file: &File) -> Option<Vec<u8>> {
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if head[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    let (at, size, count) = (number(&head, 32, 8)?, number(&head, 54, 2)?, number(&head, 56, 2)?);
    if size < 56 || size * count > HEADERS_MAX {
        return None;
    }
    let mut headers = vec![0; (size * count) as usize];
    file.read_exact_at(&mut headers, at).ok()?;
    headers.chunks_exact(size as usize).find_map(|header| {
        let (kind, at, length) = (number(header, 0, 4)?, number(header, 8, 8)?, number(header, 32, 8)?);
        if kind != u64::from(PT_NOTE) || length > NOTE_MAX {
            return None;
        }
        let mut notes = vec![0; length as usize];
        file.read_exact_at(&mut notes, at).ok()?;
        in_notes(&notes)
    })
}

fn in_notes(mut notes: &[u8]) -> Option<Vec<u8>> {
    while notes.len() > 12 {
        let (name, text, kind) = (number(notes, 0, 4)?, number(notes, 4, 4)?, number(notes, 8, 4)?);
        // Both parts are padded to words.
        let start = 12 + (name as usize).next_multiple_of(4);
        let content = notes.get(start..start.checked_add(text as usize)?)?;
        if kind == u64::from(NT_GNU_BUILD_ID) && notes.get(12..16)? == b"GNU\0" {
            return Some(content.to_vec());
        }
        notes = notes.get(start + (text as usize).next_multiple_of(4)..)?;
    }
    None
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + length)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_by_its_note_and_anything_else_by_its_bytes() {
        let own = build_id(Path::new("/proc/self/exe")).expect("readable");
        assert_eq!(own, build_id(&std::env::current_exe().expect("own path")).expect("readable"));
        assert!(own.len() >= 16, "{own}");
        let dir = std::env::temp_dir().join(format!("proffer-build-id-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let (a, b) = (dir.join("a"), dir.join("b"));
        std::fs::write(&a, "#!/bin/sh\n").expect("file");
        std::fs::write(&b, "\x7fELF\x02\x01 and nothing that makes sense").expect("file");
        let ids = [&a, &b].map(|path| build_id(path).expect("readable"));
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("file-")), "{ids:?}");
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn notes_that_lie_are_passed_over() {
        assert_eq!(in_notes(&[0xff; 40]), None);
        let mut notes = Vec::new();
        notes.extend([4u32, 2, 1].iter().flat_map(|n| n.to_le_bytes()));
        notes.extend(b"GNU\0ab\0\0");
        notes.extend([4u32, 3, 3].iter().flat_map(|n| n.to_le_bytes()));
        notes.extend(b"GNU\0xyz\0");
        assert_eq!(in_notes(&notes), Some(b"xyz".to_vec()));
        assert_eq!(in_notes(&notes[..notes.len() - 4]), None);
    }
}
