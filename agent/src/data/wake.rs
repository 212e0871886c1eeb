//! Wakes readers of output when there is more of it, so that none of them has to look again and again: by inotify on
//! the directory of the logs, and by the driver when a task has ended.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proffer_types::LaunchId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Readers by launch. Cheap to clone: clones share them.
#[derive(Clone)]
pub(crate) struct Wakers {
    shared: Arc<Shared>,
}

struct Shared {
    /// One for all readers: the kernel gives a user 128 of them.
    inotify: Option<OwnedFd>,
    readers: Mutex<Readers>,
}

#[derive(Default)]
struct Readers {
    by_launch: BTreeMap<LaunchId, Entry>,
    by_watch: BTreeMap<i32, LaunchId>,
}

struct Entry {
    notify: Arc<Notify>,
    watch: Option<i32>,
    readers: usize,
}

/// A reader's own.
pub(crate) struct Wake {
    wakers: Wakers,
    launch: LaunchId,
    notify: Arc<Notify>,
    watching: bool,
}

impl Wakers {
    /// Must be called within a runtime. Without inotify readers are woken by ends only.
    pub(crate) fn new() -> Self {
        let opened = || -> std::io::Result<(OwnedFd, pipe::Receiver)> {
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // It is read as a pipe is.
            let reader = pipe::Receiver::from_owned_fd_unchecked(inotify.try_clone()?)?;
            Ok((inotify, reader))
        };
        let (inotify, reader) = match opened() {
            Ok((inotify, reader)) => (Some(inotify), Some(reader)),
            Err(error) => {
                tracing::warn!(%error, "no inotify: followed output comes up to half a second late");
                (None, None)
            }
        };
        let shared = Arc::new(Shared { inotify, readers: Mutex::default() });
        if let Some(reader) = reader {
            tokio::spawn(listen(reader, Arc::downgrade(&shared)));
        }
        Self { shared }
    }

    /// A reader of a launch's output, which lies in `dir`.
    pub(crate) fn subscribe(&self, launch: LaunchId, dir: Option<&Path>) -> Wake {
        let mut readers = self.shared.readers();
        let entry = readers.by_launch.entry(launch).or_insert_with(|| Entry {
            notify: Arc::new(Notify::new()),
            watch: None,
            readers: 0,
        });
        entry.readers += 1;
        let notify = entry.notify.clone();
        if entry.watch.is_none()
            && let (Some(inotify), Some(dir)) = (&self.shared.inotify, dir)
        {
            let flags = WatchFlags::MODIFY
                | WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::ONLYDIR
                | WatchFlags::DONT_FOLLOW;
            // It may not be there yet: then its reader looks again and again.
            entry.watch = inotify::add_watch(inotify, dir, flags).ok();
            if let Some(watch) = entry.watch {
                readers.by_watch.insert(watch, launch);
            }
        }
        let watching = readers.by_launch.get(&launch).is_some_and(|entry| entry.watch.is_some());
        Wake { wakers: self.clone(), launch, notify, watching }
    }

    /// A task has ended: what is there is all.
    pub(crate) fn ended(&self, launch: LaunchId) {
        if let Some(entry) = self.shared.readers().by_launch.get(&launch) {
            entry.notify.notify_waiters();
        }
    }
}

impl Wake {
    /// Wakes when there may be more than there is now.
    pub(crate) fn notified(&self) -> std::pin::Pin<Box<OwnedNotified>> {
        let mut notified = Box::pin(self.notify.clone().notified_owned());
        notified.as_mut().enable();
        notified
    }

    /// Whether new output wakes, and not only the end.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        let shared = &self.wakers.shared;
        let mut readers = shared.readers();
        let Some(entry) = readers.by_launch.get_mut(&self.launch) else { return };
        entry.readers -= 1;
        if entry.readers > 0 {
            return;
        }
        let watch = entry.watch;
        readers.by_launch.remove(&self.launch);
        if let (Some(watch), Some(inotify)) = (watch, &shared.inotify) {
            readers.by_watch.remove(&watch);
            // Gone with its directory, perhaps.
            let _ = inotify::remove_watch(inotify, watch);
        }
    }
}

impl Shared {
    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(mut inotify: pipe::Receiver, shared: Weak<Shared>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = match inotify.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(%error, "reading inotify: followed output comes late from now on");
                return;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        let readers = shared.readers();
        for (watch, mask) in events(&buffer[..count]) {
            if mask & ReadFlags::QUEUE_OVERFLOW.bits() != 0 {
                readers.by_launch.values().for_each(|entry| entry.notify.notify_waiters());
            }
            let launch = readers.by_watch.get(&watch);
            if let Some(entry) = launch.and_then(|launch| readers.by_launch.get(launch)) {
                entry.notify.notify_waiters();
            }
        }
    }
}

/// Watch and mask of each `struct inotify_event`: both with a cookie and a name's length before the name.
fn events(mut bytes: &[u8]) -> impl Iterator<Item = (i32, u32)> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(16)?;
        let word = |at: usize| <[u8; 4]>::try_from(&head[at..at + 4]).map(u32::from_ne_bytes).ok();
        let name = usize::try_from(word(12)?).ok()?;
        bytes = rest.get(name..).unwrap_or_default();
        Some((word(0)?.cast_signed(), word(4)?))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn output_and_ends_wake_their_readers() {
        let dir = tempfile::Builder::new().prefix("proffer-wake-").tempdir().unwrap();
        let wakers = Wakers::new();
        let wake = wakers.subscribe(LaunchId(1), Some(dir.path()));
        let again = wakers.subscribe(LaunchId(1), Some(dir.path()));
        let other = wakers.subscribe(LaunchId(2), None);
        assert!(wake.is_watching() && again.is_watching() && !other.is_watching());
        let patience = Duration::from_secs(10);
        for step in 0..3 {
            let (one, two) = (wake.notified(), again.notified());
            match step {
                0 => std::fs::write(dir.path().join("stdout.0"), "x").unwrap(),
                1 => wakers.ended(LaunchId(1)),
                _ => std::fs::write(dir.path().join("stdout.0"), "xy").unwrap(),
            }
            tokio::time::timeout(patience, one).await.expect("woken");
            tokio::time::timeout(patience, two).await.expect("woken");
        }
        drop((wake, again, other));
        let readers = wakers.shared.readers();
        assert!(readers.by_launch.is_empty() && readers.by_watch.is_empty());
    }
}
