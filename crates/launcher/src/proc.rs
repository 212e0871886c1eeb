//! Facts about processes, read from /proc.

use std::io;

/// Field 22 of /proc/PID/stat: the start time in clock ticks since boot, which with the pid names a process
/// for as long as the machine is up.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything, parentheses too: the fields go on after the last one, with field 3.
    let field = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(19));
    field.and_then(|field| field.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no field 22"))
    })
}

/// How many threads this process has.
///
/// A threaded process must not clone containers: the child would own locks that nobody releases.
pub fn thread_count() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // A directory has a link per subdirectory and two of its own.
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_ticks_are_stable_and_threads_are_counted() {
        let own = std::process::id() as i32;
        let first = start_ticks(own).expect("own stat");
        assert_eq!(first, start_ticks(own).expect("own stat"));
        let before = thread_count().expect("own task directory");
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        assert!(thread_count().expect("own task directory") > before.min(1));
        drop(send);
        let _ = thread.join();
    }
}
