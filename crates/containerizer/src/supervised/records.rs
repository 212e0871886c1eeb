//! What supervisors recorded of their launches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use proffer_types::LaunchId;
use proffer_wire::journal::{self, Journal};
use proffer_wire::supervisor::v1::ToAgent;
use proffer_wire::supervisor::v1::journal_entry::Entry;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use prost::Message;

use super::dirs::Dirs;
use crate::InstanceId;

/// What a supervisor left of a launch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// How it ended.
    Ended(Told),
    /// That it was begun.
    Begun,
    /// Nothing: it never was.
    None,
}

/// The journals that were read, so that one of thousands of launches is not read for each of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journals(Arc<Mutex<BTreeMap<InstanceId, Cached>>>);

#[derive(Debug)]
struct Cached {
    state: State,
    journal: Journal,
}

/// What tells a file from a later state of it, or from the next one by its name: inode, length, time of the last change.
type State = (u64, u64, i64, i64);

fn state(file: &File) -> io::Result<State> {
    let meta = file.metadata()?;
    Ok((meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

impl Journals {
    /// What the instance's journal says now; `None` if it has none.
    fn with<T>(
        &self,
        instance: InstanceId,
        path: &Path,
        look: impl FnOnce(&mut Cached, &mut File) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let mut file = match File::options().read(true).append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // Taken before it is read: what is written meanwhile has it read again.
        let state = state(&file)?;
        let mut all = self.lock();
        if all.get(&instance).is_none_or(|cached| cached.state != state) {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            all.insert(instance, Cached { state, journal: Journal::read(&bytes) });
        }
        let Some(cached) = all.get_mut(&instance) else { return Ok(None) };
        look(cached, &mut file).map(Some)
    }

    /// The instance is gone for good.
    pub(super) fn forget(&self, instance: InstanceId) {
        self.lock().remove(&instance);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Cached>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Dirs {
    fn journal(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("journal")
    }

    /// What the instance recorded of a launch.
    pub(crate) fn record(&self, instance: InstanceId, launch: LaunchId) -> Record {
        let recorded = self.journals.with(instance, &self.journal(instance), |cached, _| {
            Ok(cached.journal.launches.get(&launch.0).cloned())
        });
        match recorded {
            Ok(None) => self.record_in_files(instance, launch),
            Ok(Some(None)) => Record::None,
            Ok(Some(Some(recorded))) => recorded.end.map_or(Record::Begun, Record::Ended),
            Err(error) => {
                tracing::error!(launch.id = launch.0, %instance, %error, "a supervisor's journal cannot be read");
                // To say that it was not begun would be to begin it twice.
                Record::Begun
            }
        }
    }

    /// The same, of a supervisor of the first release.
    fn record_in_files(&self, instance: InstanceId, launch: LaunchId) -> Record {
        let dir = self.instance(instance);
        let file = launch.0.to_string();
        if let Ok(bytes) = fs::read(dir.join("exit").join(&file)) {
            match ToAgent::decode(bytes.as_slice()) {
                Ok(ToAgent { message: Some(told) }) => return Record::Ended(told),
                _ => tracing::error!(launch.id = launch.0, %instance, "an exit record is not readable"),
            }
            return Record::Begun;
        }
        if dir.join("launch").join(&file).exists() { Record::Begun } else { Record::None }
    }

    /// The launches of which the instance has a record.
    pub(crate) fn recorded(&self, instance: InstanceId) -> Vec<LaunchId> {
        let ids = self.journals.with(instance, &self.journal(instance), |cached, _| {
            Ok(cached.journal.launches.keys().copied().map(LaunchId).collect())
        });
        if let Ok(Some(launches)) = ids {
            return launches;
        }
        let mut launches = in_files(&self.instance(instance).join("launch"));
        launches.extend(in_files(&self.instance(instance).join("exit")));
        launches.sort_unstable();
        launches.dedup();
        launches
    }

    /// Removes what a dead instance recorded of a launch.
    pub(crate) fn remove_record(&self, instance: InstanceId, launch: LaunchId) {
        let forgotten = self.journals.with(instance, &self.journal(instance), |cached, file| {
            let journal = &mut cached.journal;
            if journal.launches.remove(&launch.0).is_none() {
                return Ok(());
            }
            // What it did not write to its end would hide what is written after it.
            file.set_len(journal.length as u64)?;
            let mut bytes = Vec::new();
            journal::append(&mut bytes, Entry::Forgotten(launch.0));
            file.write_all(&bytes)?;
            journal.length += bytes.len();
            cached.state = state(file)?;
            Ok(())
        });
        match forgotten {
            Ok(Some(())) => {}
            Ok(None) => {
                for part in ["launch", "exit"] {
                    // Not there is as good.
                    let _ = fs::remove_file(self.instance(instance).join(part).join(launch.0.to_string()));
                }
            }
            Err(error) => {
                self.journals.forget(instance);
                tracing::warn!(launch.id = launch.0, %instance, %error, "a supervisor's record cannot be removed");
            }
        }
    }
}

fn in_files(dir: &Path) -> Vec<LaunchId> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(LaunchId)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_wire::supervisor::v1::{Exited, LaunchRecord};

    const INSTANCE: InstanceId = InstanceId(7);

    fn ended(launch_id: u64) -> Told {
        Told::Exited(Exited { launch_id, wait_status: 7 << 8, ..Exited::default() })
    }

    fn write(path: &Path, entries: impl IntoIterator<Item = Entry>) {
        let mut bytes = Vec::new();
        entries.into_iter().for_each(|entry| journal::append(&mut bytes, entry));
        let mut file = File::options().append(true).create(true).open(path).expect("a journal");
        file.write_all(&bytes).expect("written");
    }

    #[test]
    fn a_journal_is_read_anew_when_it_has_changed_and_a_dead_ones_is_written_on() {
        let base = std::env::temp_dir().join(format!("proffer-records-{}", std::process::id()));
        let dirs = Dirs { work: base.clone(), runtime: base.clone(), journals: Journals::default() };
        fs::create_dir_all(dirs.instance(INSTANCE)).expect("directory");
        let path = dirs.journal(INSTANCE);
        let record = |id| dirs.record(INSTANCE, LaunchId(id));
        assert_eq!((record(1), dirs.recorded(INSTANCE)), (Record::None, vec![]));
        let begun = |launch_id| Entry::Launch(LaunchRecord { launch_id, unix_ms: 5 });
        write(&path, [begun(1), begun(2)]);
        assert_eq!((record(1), record(3)), (Record::Begun, Record::None));
        write(&path, [Entry::End(ToAgent { message: Some(ended(1)) }), begun(3)]);
        assert_eq!(
            (record(1), record(2), record(3)),
            (Record::Ended(ended(1)), Record::Begun, Record::Begun)
        );
        // Its last entry was cut short when it died.
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&[99, 1]))
            .expect("written");
        assert_eq!(record(1), Record::Ended(ended(1)));
        dirs.remove_record(INSTANCE, LaunchId(1));
        dirs.remove_record(INSTANCE, LaunchId(9));
        dirs.remove_record(INSTANCE, LaunchId(2));
        let again = Dirs { journals: Journals::default(), ..dirs.clone() };
        for dirs in [&dirs, &again] {
            assert_eq!(dirs.recorded(INSTANCE), [LaunchId(3)]);
            assert_eq!(dirs.record(INSTANCE, LaunchId(1)), Record::None);
        }
        // A shorter one in its place, by chance as long.
        fs::remove_file(&path).expect("removed");
        write(&path, [begun(4)]);
        assert_eq!(dirs.recorded(INSTANCE), [LaunchId(4)]);
        // What is there and cannot be read was not written by nobody.
        fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).expect("in its place");
        assert_eq!(record(4), Record::Begun);
        fs::remove_dir_all(&base).expect("removed");
    }
}
