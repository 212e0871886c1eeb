//! The descendants of this process, read from /proc without allocating.

use std::ffi::c_int;
use std::ptr;

/// How many processes of the whole machine one look can hold.
const PROCESSES_MAX: usize = 65_536;
/// Room for directory entries of /proc.
const ENTRIES_BYTES: usize = 32 * 1024;

#[derive(Clone, Copy)]
#[repr(C)]
struct Process {
    pid: i32,
    parent: i32,
    descendant: bool,
}

/// Sends `signal` to every living descendant of this process and returns how many there were. Best effort: a
/// process that forks meanwhile is found by the next call.
pub(crate) fn signal_descendants(signal: c_int) -> usize {
    let bytes = PROCESSES_MAX * size_of::<Process>() + ENTRIES_BYTES;
    // SAFETY: a fresh mapping, of which the first part is used as an array of plain zeroed data.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return 0;
        }
        let processes = std::slice::from_raw_parts_mut(base.cast::<Process>(), PROCESSES_MAX);
        let entries = base.cast::<u8>().add(PROCESSES_MAX * size_of::<Process>());
        let entries = std::slice::from_raw_parts_mut(entries, ENTRIES_BYTES);
        let count = list(processes, entries);
        let signalled = signal_marked(&mut processes[..count], signal);
        libc::munmap(base, bytes);
        signalled
    }
}

fn signal_marked(processes: &mut [Process], signal: c_int) -> usize {
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    let mut grown = true;
    while grown {
        grown = false;
        for index in 0..processes.len() {
            let Process { parent, descendant, .. } = processes[index];
            if descendant {
                continue;
            }
            if parent == own || processes.iter().any(|other| other.descendant && other.pid == parent) {
                processes[index].descendant = true;
                grown = true;
            }
        }
    }
    let mut signalled = 0;
    for process in processes.iter().filter(|process| process.descendant) {
        // SAFETY: integers only. The pid cannot have been reused: only init reaps its descendants' orphans,
        // and a descendant reaped by its own parent is the residue of doing this without a namespace.
        if unsafe { libc::kill(process.pid, signal) } == 0 {
            signalled += 1;
        }
    }
    signalled
}

/// Fills `processes` with the living ones.
fn list(processes: &mut [Process], entries: &mut [u8]) -> usize {
    // SAFETY: a C string.
    let dir = unsafe { libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    if dir < 0 {
        return 0;
    }
    let mut count = 0;
    loop {
        // SAFETY: the buffer is as long as said.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, dir, entries.as_mut_ptr(), entries.len()) };
        if read <= 0 {
            break;
        }
        let mut rest = &entries[..read as usize];
        // struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
        while rest.len() > 19 {
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            if length < 19 || length > rest.len() {
                break;
            }
            if let Some(pid) = number(&rest[19..length])
                && let Some(parent) = parent_of(pid)
                && count < processes.len()
            {
                processes[count] = Process { pid, parent, descendant: false };
                count += 1;
            }
            rest = &rest[length..];
        }
    }
    // SAFETY: opened above.
    unsafe { libc::close(dir) };
    count
}

/// A decimal number that ends with a NUL.
fn number(name: &[u8]) -> Option<i32> {
    let end = name.iter().position(|&byte| byte == 0)?;
    if end == 0 {
        return None;
    }
    name[..end].iter().try_fold(0i32, |value, byte| {
        byte.is_ascii_digit().then(|| value.wrapping_mul(10).wrapping_add(i32::from(byte - b'0')))
    })
}

/// The parent of a process that is not a zombie.
fn parent_of(pid: i32) -> Option<i32> {
    let mut path = [0u8; 32];
    path[..6].copy_from_slice(b"/proc/");
    let mut digits = [0u8; 12];
    let mut length = 0;
    let mut rest = pid;
    while rest > 0 {
        digits[length] = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    for index in 0..length {
        path[6 + index] = digits[length - 1 - index];
    }
    path[6 + length..11 + length].copy_from_slice(b"/stat");
    let mut stat = [0u8; 512];
    // SAFETY: the path is NUL-terminated by the zeroes around it; the buffer is as long as said.
    let read = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let read = libc::read(fd, stat.as_mut_ptr().cast(), stat.len());
        libc::close(fd);
        read
    };
    let stat = stat.get(..usize::try_from(read).ok()?)?;
    // The name may hold anything, parentheses too: the fields go on after the last one.
    let mut fields =
        stat.get(stat.iter().rposition(|&byte| byte == b')')? + 2..)?.split(|&byte| byte == b' ');
    if fields.next()? == b"Z" {
        return None;
    }
    fields.next()?.iter().try_fold(0i32, |value, byte| {
        byte.is_ascii_digit().then(|| value.wrapping_mul(10).wrapping_add(i32::from(byte - b'0')))
    })
}
