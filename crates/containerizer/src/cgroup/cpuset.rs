//! The processors a group may run on.

use std::path::Path;

use proffer_types::Ranges;

use super::{read, write};
use crate::Error;

/// v1: gives a group that was just made the processors and memory nodes of the one above, without which nothing can
/// enter it.
pub(super) fn inherit(dir: &Path) -> Result<(), Error> {
    let Some(above) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = read(dir.join(file))?;
        if own.trim().is_empty() {
            write(&dir.join(file), read(above.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Sets them; they must be among those of the agent's own group `above`.
pub(super) fn set(dir: &Path, above: &Path, cpus: &Ranges, v2: bool) -> Result<(), Error> {
    let refused = |why: String| Error::Refused { field: "container.cpuset".into(), why };
    let effective = read(above.join(if v2 { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" }))?;
    let allowed = parse(&effective)
        .ok_or_else(|| refused(format!("the kernel's list of processors is {:?}", effective.trim())))?;
    if !allowed.contains(cpus) {
        return Err(refused(format!("processors {cpus}, and this agent has {allowed}")));
    }
    let list: Vec<String> =
        cpus.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    write(&dir.join("cpuset.cpus"), &list.join(","))
}

/// `0-3,8` as the kernel writes it.
fn parse(text: &str) -> Option<Ranges> {
    let ranges = text.trim().split(',').filter(|part| !part.is_empty()).map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    Ranges::new("cpus", ranges.collect::<Option<Vec<_>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let ranges = |list: &[(u64, u64)]| Ranges::new("cpus", list.iter().copied()).ok();
        assert_eq!(parse("0-3,8\n"), ranges(&[(0, 3), (8, 8)]));
        assert_eq!(parse("\n"), ranges(&[]));
        assert_eq!(parse("a-b"), None);
    }
}
