//! Keeps the supervisor's heap out of the containers' inits: their page tables need not be copied, and
//! nothing the supervisor knows is in a process that runs as the task's user. Freeing it in the child is too
//! late for the first, because clone has copied by then.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The heap's start, once known; 1 when it cannot be kept out.
static START: AtomicUsize = AtomicUsize::new(0);
/// Up to where it is marked.
static MARKED: AtomicUsize = AtomicUsize::new(0);

const UNUSABLE: usize = 1;

/// Marks the heap grown since the last call MADV_DONTFORK. From then on no child of this process may touch
/// the heap, so none may be made by plain fork; `posix_spawn` shares memory until its exec and stays usable.
///
/// Does nothing where thread-local storage lies in the heap (a static binary): the child needs it for errno.
pub fn keep_out_of_children() {
    // SAFETY: sbrk(0) only reads the break.
    let end = unsafe { libc::sbrk(0) } as usize;
    let start = match START.load(Ordering::Relaxed) {
        UNUSABLE => return,
        0 => {
            let start = heap_start().filter(|&start| !tls_within(start, end)).unwrap_or(UNUSABLE);
            START.store(start, Ordering::Relaxed);
            if start == UNUSABLE {
                return;
            }
            MARKED.store(start, Ordering::Relaxed);
            start
        }
        start => start,
    };
    let marked = MARKED.load(Ordering::Relaxed).max(start);
    if end <= marked {
        // Memory given back and taken again is a new mapping without the mark.
        MARKED.store(end.max(start), Ordering::Relaxed);
        return;
    }
    // SAFETY: the range is this process's heap; the advice changes nothing for this process.
    let result = unsafe { libc::madvise(marked as *mut libc::c_void, end - marked, libc::MADV_DONTFORK) };
    if result == 0 {
        MARKED.store(end, Ordering::Relaxed);
    }
}

/// Makes the allocator take large blocks from the heap too, instead of mapping each, and keep what it has: a
/// mapping is not marked, nor is memory given back and taken again.
pub fn allocate_from_heap_only() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only the allocator's own settings change.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

fn heap_start() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[heap]"))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok()
}

fn tls_within(start: usize, end: usize) -> bool {
    // SAFETY: only the address is used.
    let errno = unsafe { libc::__errno_location() } as usize;
    (start..end).contains(&errno)
}
