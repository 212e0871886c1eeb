//! Which group a container has, and groups that are used again.
//!
//! Making and removing a group costs several times what its container's other cgroup work does, so an emptied one
//! waits for the next container of the same framework. It never serves another framework: what the kernel keeps of a
//! group (statistics, some charged memory) is then never of a stranger. A group that was changed in any way besides
//! the ordinary limits, was killed through, or still holds memory, is removed instead.
//!
//! Which container has which group, what the group's counters said before it came, and which range of user ids it has,
//! is a symbolic link in a directory on a tmpfs: one system call to write, and whole or not there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proffer_types::{FrameworkId, LaunchId};

use super::files::Open;
use super::group::{Group, Limits};
use super::{name, parse};
use crate::{Error, Users};

/// Most groups that wait, of all frameworks together: as many containers may end and begin at once without a group
/// being made.
const IDLE_MAX: usize = 128;
/// Most ranges of user ids that a framework is given again: as many as its supervisor keeps something for.
const LEFT_MAX: usize = 256;
/// Most groups whose files stay open, of those that wait and of those that containers have.
const OPEN_MAX: usize = 192;

/// A container's group, and what else it has to itself on this node.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) slot: u64,
    pub(super) framework: FrameworkId,
    /// It has served another container before.
    pub(super) again: bool,
    /// Its counters before the container came.
    pub(super) oom_kills_before: u64,
    pub(super) cpu_usec_before: u64,
    /// The first of its range of user ids.
    pub(super) ids: Option<u32>,
    /// Nothing but limits was done to it, so that it may serve again.
    pub(super) plain: bool,
    /// What is set, if that is known.
    pub(super) limits: Option<Limits>,
    /// v2: what tells the peak of its memory since the container came, if it has served another before.
    pub(super) peak: Option<Arc<File>>,
}

/// A group that waits for a container.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    pub(super) slot: u64,
    pub(super) limits: Option<Limits>,
    pub(super) oom_kills: u64,
    pub(super) cpu_usec: u64,
    pub(super) peak: Option<Arc<File>>,
}

/// All groups of containers of an agent.
#[derive(Debug)]
pub(super) struct Slots {
    dir: PathBuf,
    held: BTreeMap<LaunchId, Holding>,
    idle: BTreeMap<FrameworkId, Vec<Idle>>,
    /// The groups whose files stay open, those used last at the end.
    open: VecDeque<(u64, Arc<Group>)>,
    open_max: usize,
    next: u64,
    /// The ranges of user ids that containers have, by their first, and how many have each: those of a group share one.
    ids: BTreeMap<u32, usize>,
    /// Those that a framework's containers have left, the last one at the end: its supervisor may have kept what the
    /// kernel makes of them for the next.
    left: BTreeMap<FrameworkId, Vec<u32>>,
    /// The one after the range that was given last.
    next_ids: u32,
}

impl Slots {
    /// Reads what an earlier life of the agent wrote.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |operation| move |source| Error::Path { operation, path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed("create directory"))?;
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(failed("read directory"))?.flatten() {
            let Some(launch) = entry.file_name().to_str().and_then(parse) else { continue };
            let text = fs::read_link(entry.path()).unwrap_or_default();
            match Holding::read(&text.to_string_lossy()) {
                Some(holding) => drop(held.insert(launch, holding)),
                None => {
                    tracing::error!(launch.id = launch.0, ?text, "what a container holds is not readable")
                }
            }
        }
        let next = held.values().map(|holding: &Holding| holding.slot + 1).max().unwrap_or(1);
        let next_ids =
            held.values().filter_map(|holding| holding.ids).max().map_or(0, |last| last + Users::RANGE);
        let mut ids = BTreeMap::new();
        held.values().filter_map(|holding| holding.ids).for_each(|range| *ids.entry(range).or_default() += 1);
        Ok(Self {
            dir: dir.to_owned(),
            held,
            idle: BTreeMap::new(),
            open: VecDeque::new(),
            open_max: open_max(),
            next,
            ids,
            left: BTreeMap::new(),
            next_ids,
        })
    }

    pub(super) fn get(&self, launch: LaunchId) -> Option<&Holding> {
        self.held.get(&launch)
    }

    pub(super) fn get_mut(&mut self, launch: LaunchId) -> Option<&mut Holding> {
        self.held.get_mut(&launch)
    }

    pub(super) fn launches(&self) -> impl Iterator<Item = LaunchId> + '_ {
        self.held.keys().copied()
    }

    /// Whether a container has the group.
    pub(super) fn is_held(&self, slot: u64) -> bool {
        self.held.values().any(|holding| holding.slot == slot)
    }

    /// Never used before by this life, nor held from an earlier one.
    pub(super) fn new_slot(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A group that waits for a container of the framework, rather one with these limits.
    pub(super) fn take_idle(&mut self, framework: FrameworkId, limits: &Limits) -> Option<Idle> {
        let idle = self.idle.get_mut(&framework)?;
        let same = idle.iter().rposition(|idle| idle.limits.as_ref() == Some(limits));
        let taken = match same {
            Some(at) => Some(idle.remove(at)),
            None => idle.pop(),
        };
        if idle.is_empty() {
            self.idle.remove(&framework);
        }
        taken
    }

    /// Whether one more may wait.
    pub(super) fn has_room(&self) -> bool {
        self.idle.values().map(Vec::len).sum::<usize>() < IDLE_MAX
    }

    pub(super) fn put_idle(&mut self, framework: FrameworkId, idle: Idle) {
        self.idle.entry(framework).or_default().push(idle);
    }

    /// The groups that wait for containers of a framework, or of any; they no longer do.
    pub(super) fn drain_idle(&mut self, framework: Option<FrameworkId>) -> Vec<u64> {
        self.left.retain(|of, _| framework.is_some_and(|framework| *of != framework));
        let drained: Vec<Vec<Idle>> = match framework {
            Some(framework) => self.idle.remove(&framework).into_iter().collect(),
            None => std::mem::take(&mut self.idle).into_values().collect(),
        };
        drained.into_iter().flatten().map(|idle| idle.slot).collect()
    }

    /// The group of a slot, if its files stay open; by this it becomes the one that was used last.
    pub(super) fn opened(&mut self, slot: u64) -> Option<Arc<Group>> {
        let at = self.open.iter().rposition(|(of, _)| *of == slot)?;
        let opened = self.open.remove(at)?;
        let group = opened.1.clone();
        self.open.push_back(opened);
        Some(group)
    }

    /// Has a slot's files stay open, rather than those of the group that was used longest ago.
    pub(super) fn keep_open(&mut self, slot: u64, group: Arc<Group>) {
        while self.open.len() >= self.open_max {
            self.open.pop_front();
        }
        self.open.push_back((slot, group));
    }

    /// A slot's files are closed: its group is about to be removed.
    pub(super) fn close(&mut self, slot: u64) {
        self.open.retain(|(of, _)| *of != slot);
    }

    /// The first of a range of user ids of which no container has any: the range that another of the framework has left
    /// last, or else that which was free longest.
    pub(super) fn free_ids(&self, framework: FrameworkId, users: &Users) -> Option<u32> {
        // What runs may have its ids from a time when ranges began elsewhere.
        let free = |first: &u32| {
            let reach = first.saturating_sub(Users::RANGE - 1)..first.saturating_add(Users::RANGE);
            self.ids.range(reach).next().is_none()
        };
        let now = |first: &u32| users.range_of(*first).is_some();
        let left = self.left.get(&framework).into_iter().flatten();
        let from = users.range_of(self.next_ids).unwrap_or(0);
        let mut all = (from..users.ranges).chain(0..from).map(|range| users.first(range));
        left.rev().copied().filter(now).find(free).or_else(|| all.find(free))
    }

    /// Writes down what a container has, before it has it.
    pub(super) fn hold(&mut self, launch: LaunchId, holding: Holding) -> Result<(), Error> {
        let path = self.dir.join(name(launch));
        std::os::unix::fs::symlink(holding.write(), &path).map_err(|source| Error::Path {
            operation: "write",
            path,
            source,
        })?;
        if let Some(ids) = holding.ids {
            let containers = self.ids.entry(ids).or_default();
            *containers += 1;
            let own = self.left.get_mut(&holding.framework);
            if *containers == 1 && own.and_then(|left| left.pop_if(|last| *last == ids)).is_none() {
                self.left.values_mut().for_each(|left| left.retain(|other| *other != ids));
                self.next_ids = ids.saturating_add(Users::RANGE);
            }
        }
        self.held.insert(launch, holding);
        Ok(())
    }

    /// A container has nothing any more.
    pub(super) fn let_go(&mut self, launch: LaunchId) {
        let path = self.dir.join(name(launch));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "remove a record");
            }
            _ => {}
        }
        let Some(Holding { ids: Some(ids), framework, .. }) = self.held.remove(&launch) else { return };
        if let Entry::Occupied(mut containers) = self.ids.entry(ids) {
            *containers.get_mut() -= 1;
            if *containers.get() == 0 {
                containers.remove();
                let left = self.left.entry(framework).or_default();
                if left.len() >= LEFT_MAX {
                    left.remove(0);
                }
                left.push(ids);
            }
        }
    }

    /// Removes the directory, which must be empty.
    pub(super) fn remove_dir(&self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// How many groups' files may stay open: never more than a quarter of the descriptors that this process may have.
fn open_max() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = descriptors.unwrap_or(u64::MAX) / 4 / Open::FILES_MAX;
    usize::try_from(share).unwrap_or(usize::MAX).clamp(1, OPEN_MAX)
}

impl Holding {
    /// `SLOT FRAMEWORK AGAIN OOM_KILLS CPU_USEC IDS`, hexadecimal; no ids are `-`.
    fn write(&self) -> String {
        let ids = self.ids.map_or_else(|| "-".to_owned(), |ids| format!("{ids:x}"));
        let Self { slot, framework, again, oom_kills_before, cpu_usec_before, .. } = self;
        let again = u8::from(*again);
        format!("{slot:x} {:x} {again} {oom_kills_before:x} {cpu_usec_before:x} {ids}", framework.0)
    }

    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [slot, framework, again, oom_kills, cpu_usec, ids] = words[..] else { return None };
        let number = |word| u64::from_str_radix(word, 16).ok();
        let ids = match ids {
            "-" => None,
            ids => Some(u32::from_str_radix(ids, 16).ok()?),
        };
        Some(Self {
            slot: number(slot)?,
            framework: FrameworkId(number(framework)?),
            again: again == "1",
            oom_kills_before: number(oom_kills)?,
            cpu_usec_before: number(cpu_usec)?,
            ids,
            // What else an earlier life did to it was not written down.
            plain: false,
            limits: None,
            peak: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cgroup::Layout;

    fn holding(slot: u64, ids: Option<u32>) -> Holding {
        Holding {
            slot,
            framework: FrameworkId(7),
            again: true,
            oom_kills_before: 2,
            cpu_usec_before: 1 << 40,
            ids,
            plain: true,
            limits: None,
            peak: None,
        }
    }

    #[test]
    fn what_is_held_is_found_again() {
        let dir = std::env::temp_dir().join(format!("proffer-test-slots-{}", std::process::id()));
        let mut slots = Slots::open(&dir).expect("opened");
        let first = slots.new_slot();
        slots.hold(LaunchId(1), holding(first, Some(3))).expect("held");
        slots.hold(LaunchId(2), holding(9, None)).expect("held");
        let mut again = Slots::open(&dir).expect("opened again");
        let found = again.get(LaunchId(1)).expect("held").clone();
        assert_eq!((found.slot, found.ids, found.again), (first, Some(3), true));
        assert_eq!((found.oom_kills_before, found.cpu_usec_before), (2, 1 << 40));
        assert!(!found.plain, "an earlier life may have done anything to it");
        assert!(again.is_held(9) && again.new_slot() > 9);
        again.let_go(LaunchId(1));
        again.let_go(LaunchId(2));
        again.remove_dir();
        assert!(!dir.exists());
    }

    #[test]
    fn only_the_groups_used_last_stay_open() {
        let dir = std::env::temp_dir().join(format!("proffer-test-open-{}", std::process::id()));
        let mut slots = Slots::open(&dir).expect("opened");
        assert!((1..=OPEN_MAX).contains(&slots.open_max));
        slots.open_max = 3;
        let layout = Arc::new(Layout::V2 { root: PathBuf::new(), controllers: BTreeSet::new() });
        let group = || Arc::new(Group::new(layout.clone(), Path::new("none")).staying_open());
        for slot in 1..=3 {
            slots.keep_open(slot, group());
        }
        assert!(slots.opened(1).is_some());
        slots.keep_open(4, group());
        let open = |slots: &mut Slots| (1..=4).map(|slot| slots.opened(slot).is_some()).collect::<Vec<_>>();
        assert_eq!(open(&mut slots), [true, false, true, true], "the second was used longest ago");
        slots.close(3);
        assert_eq!(open(&mut slots), [true, false, false, true]);
        slots.remove_dir();
    }

    #[test]
    fn no_two_have_the_same_ids_and_strangers_leave_each_alone_for_long() {
        const OWN: FrameworkId = FrameworkId(7);
        const OTHER: FrameworkId = FrameworkId(8);
        let dir = std::env::temp_dir().join(format!("proffer-test-ids-{}", std::process::id()));
        let mut slots = Slots::open(&dir).expect("opened");
        let users = Users { ranges: 4, ..Users::default() };
        let at = |range| users.first(range);
        let mut given = Vec::new();
        for launch in 1..=3 {
            let ids = slots.free_ids(OWN, &users).expect("free");
            slots.hold(LaunchId(launch), holding(launch, Some(ids))).expect("held");
            given.push(ids);
        }
        assert_eq!(given, [0, 1, 2].map(at));
        assert_eq!(slots.free_ids(OWN, &Users { ranges: 3, ..users }), None);
        slots.let_go(LaunchId(2));
        slots.let_go(LaunchId(1));
        // The last that one of its own left; a stranger gets what was free longest.
        assert_eq!([OWN, OTHER].map(|of| slots.free_ids(of, &users)), [Some(at(0)), Some(at(3))]);
        slots.hold(LaunchId(4), holding(4, Some(at(0)))).expect("held");
        assert_eq!([OWN, OTHER].map(|of| slots.free_ids(of, &users)), [Some(at(1)), Some(at(3))]);
        // Those of a group share them until the last has ended.
        slots.hold(LaunchId(5), holding(5, Some(at(0)))).expect("held");
        slots.let_go(LaunchId(4));
        for slots in [&slots, &Slots::open(&dir).expect("opened again")] {
            assert_eq!(slots.ids, BTreeMap::from([(at(0), 1), (at(2), 1)]));
        }
        slots.let_go(LaunchId(5));
        assert_eq!(slots.ids, BTreeMap::from([(at(2), 1)]));
        // Where there are no others a stranger gets them all the same, and they are its own then.
        for (launch, ids) in [(6, 3), (7, 0), (8, 1)] {
            assert_eq!(slots.free_ids(OTHER, &users), Some(at(ids)));
            let holding = Holding { framework: OTHER, ..holding(launch, Some(at(ids))) };
            slots.hold(LaunchId(launch), holding).expect("held");
        }
        assert_eq!(slots.free_ids(OWN, &users), None);
        slots.let_go(LaunchId(7));
        slots.let_go(LaunchId(6));
        assert_eq!([OWN, OTHER].map(|of| slots.free_ids(of, &users)), [Some(at(3)), Some(at(3))]);
        // Ranges that begin elsewhere now: nothing is left of before, and none has an id that a container still has.
        let moved = Users { base: users.base + Users::RANGE / 2, ..users };
        assert_eq!(slots.ids, BTreeMap::from([(at(1), 1), (at(2), 1)]));
        assert_eq!([OWN, OTHER].map(|of| slots.free_ids(of, &moved)), [Some(moved.first(3)); 2]);
        assert_eq!(slots.free_ids(OWN, &Users { ranges: 3, ..moved }), None);
        // A framework without a supervisor has left nothing.
        slots.drain_idle(Some(OTHER));
        assert!(slots.left.is_empty() || slots.left.keys().eq([&OWN]));
        for launch in 1..=8 {
            slots.let_go(LaunchId(launch));
        }
        slots.remove_dir();
    }
}
