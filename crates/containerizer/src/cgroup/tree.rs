//! One agent's groups.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proffer_types::{FrameworkId, LaunchId};

use super::group::{Common, Group, LEFT_MAX, Room, is_gone};
use super::slots::{Holding, Idle, Slots};
use super::{Counters, Entry, Extras, Layout, Limits};
use super::{cpu, cpuset, devices, hugetlb, make, memory, parse, read_number, write};
use crate::{Error, Usage, Users};

/// The directory all our groups are under.
const TOP: &str = "proffer";
const SUPERVISORS: &str = "supervisors";
const CONTAINERS: &str = "containers";
const SLOT: &str = "slot-";
/// What our cpus weigh against those of the machine's own groups. More would make daemons wait too long for their
/// turn when tasks are busy.
const TOP_SHARE: u64 = 8;
/// How long a group that nobody has is waited for at the start.
const STRANGER_MAX: Duration = Duration::from_secs(5);

/// One agent's groups.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    layout: Arc<Layout>,
    instance: String,
    rules: Arc<Rules>,
    slots: Arc<Mutex<Slots>>,
}

/// What holds for all containers.
#[derive(Debug, Default)]
struct Rules {
    /// v2.
    devices: Option<devices::Program>,
    /// v1: the groups that all containers are in.
    common: Vec<Common>,
    huge_page_sizes: Vec<u64>,
    /// Whether the peak of a group's memory can begin anew; if not, no group is used again.
    peak_resets: bool,
    /// What this machine does not let us do.
    lacks: Vec<String>,
}

impl Tree {
    /// Makes the groups that are there for as long as the agent is, and takes up what an earlier life left. `held` is
    /// where it is written down which container has which group; the supervisors together get `supervisors_bytes` of
    /// memory, or as much as there is if that is 0.
    pub(crate) fn create(
        layout: Layout,
        instance: &str,
        held: &Path,
        supervisors_bytes: u64,
    ) -> Result<Self, Error> {
        let mut tree = Self::existing(layout, instance, held)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        for root in tree.layout.roots() {
            tree.create_in(&root)?;
        }
        // A group's share is compared with its siblings' only, and each process of the root group is one: a busy
        // machine would leave the tasks a fraction of what they were promised. Their limits, not the share, keep
        // them from taking the machine.
        let cpu = tree.layout.cpu_root();
        for group in [cpu.join(TOP), cpu.join(TOP).join(instance)] {
            cpu::set_share(&group, cpus * 1000 * TOP_SHARE, tree.layout.is_v2())?;
        }
        let mut rules = tree.make_rules()?;
        let most = Some(supervisors_bytes).filter(|bytes| *bytes > 0);
        // v1 refuses it while they use more.
        if let Err(error) = tree.supervisors().limit_memory(most) {
            rules.lacks.push(format!("the supervisors' memory is not limited: {}", chain(&error)));
        }
        if let Some(Err(error)) = tree.layout.units().map(|units| tree.create_in(units)) {
            rules.lacks.push(format!("supervisors are not taken out of the agent's unit: {}", chain(&error)));
        }
        tree.rules = Arc::new(rules);
        tree.remove_strangers()?;
        tree.keep_memory();
        Ok(tree)
    }

    /// The tree of an agent that may or may not have made it.
    pub(crate) fn existing(layout: Layout, instance: &str, held: &Path) -> Result<Self, Error> {
        let slots = Arc::new(Mutex::new(Slots::open(held)?));
        Ok(Self { layout: Arc::new(layout), instance: instance.to_owned(), rules: Arc::default(), slots })
    }

    fn create_in(&self, root: &Path) -> Result<(), Error> {
        let v2 = self.layout.is_v2();
        let own = self.make_own(root, |dir| if v2 { self.delegate(dir) } else { Ok(()) })?;
        make(&own.join(SUPERVISORS))
    }

    /// Makes the agent's own group in one hierarchy, and has `prepare` called for those on the way to it and itself.
    fn make_own(&self, root: &Path, prepare: impl Fn(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        let top = root.join(TOP);
        let own = top.join(&self.instance);
        prepare(root)?;
        let mut tries = 0;
        loop {
            let made = make(&top).and_then(|()| prepare(&top)).and_then(|()| make(&own));
            match made {
                // Another agent that ends may just have found the top empty.
                Err(Error::Path { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) && tries < 100 =>
                {
                    tries += 1
                }
                made => break made?,
            }
        }
        prepare(&own).map(|()| own)
    }

    /// v2: lets the groups below have the controllers we use.
    fn delegate(&self, dir: &Path) -> Result<(), Error> {
        let Layout::V2 { controllers, .. } = &*self.layout else { return Ok(()) };
        let all: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
        let path = dir.join("cgroup.subtree_control");
        write(&path, &all.join(" ")).map_err(|error| match error {
            Error::Path { source, .. } => Error::Path { operation: "enable controllers in", path, source },
            error => error,
        })
    }

    fn make_rules(&self) -> Result<Rules, Error> {
        let mut rules = Rules { huge_page_sizes: hugetlb::sizes(), peak_resets: true, ..Rules::default() };
        let Layout::V1 { unified, .. } = &*self.layout else {
            rules.peak_resets = self.supervisors().reset_peak(None).is_ok();
            match devices::Program::load() {
                Ok(program) => rules.devices = Some(program),
                Err(error) => {
                    rules.lacks.push(format!("access to devices is not limited: {}", chain(&error)))
                }
            }
            rules.name_missing(&self.layout);
            return Ok(rules);
        };
        for root in self.layout.further_roots() {
            let of_unified = Some(&root) == unified.as_ref();
            let of_cpuset = Some(root.as_path()) == self.layout.root_of("cpuset");
            self.make_own(&root, |dir| match dir {
                _ if of_unified => write(&dir.join("cgroup.subtree_control"), "+hugetlb"),
                dir if of_cpuset && dir != root => cpuset::inherit(dir),
                _ => Ok(()),
            })?;
        }
        let own_of = |controller: &str| {
            self.layout.root_of(controller).map(|root| root.join(TOP).join(&self.instance))
        };
        match own_of("devices") {
            Some(own) => {
                let all = own.join(CONTAINERS);
                match make(&all).and_then(|()| devices::set_v1(&all)) {
                    Ok(()) => rules.common.push(Common::open(all)?),
                    Err(error) => {
                        rules.lacks.push(format!("access to devices is not limited: {}", chain(&error)));
                    }
                }
            }
            None => rules.lacks.push("access to devices is not limited: no hierarchy for it".to_owned()),
        }
        // Those that ask for no huge pages share a group that has none; where there are none at all, they need no
        // group. A pool that is made later counts from the agent's next start.
        if let Some(own) = own_of("hugetlb").filter(|_| hugetlb::any()) {
            let all = own.join(CONTAINERS);
            make(&all)?;
            let none = Default::default();
            hugetlb::set(&all, &rules.huge_page_sizes, &none, self.layout.speaks_v2("hugetlb"))?;
            rules.common.push(Common::open(all)?);
        }
        rules.name_missing(&self.layout);
        Ok(rules)
    }

    /// Whether emptied groups are used again.
    #[cfg(test)]
    pub(super) fn can_recycle(&self) -> bool {
        self.rules.peak_resets
    }

    /// What this machine cannot keep of what containers are promised, for people.
    pub(crate) fn lacks(&self) -> &[String] {
        &self.rules.lacks
    }

    /// Groups that no container has: they were waiting for one, or were just made, when the agent died.
    fn remove_strangers(&self) -> Result<(), Error> {
        let deadline = Instant::now() + STRANGER_MAX;
        for slot in self.slots_made() {
            if self.slots().is_held(slot) {
                continue;
            }
            let group = self.slot(slot);
            while !group.remove()? {
                group.kill()?;
                if Instant::now() > deadline {
                    tracing::error!(slot, "a cgroup that belongs to no container cannot be emptied");
                    break;
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Gives a container its group, limited, and opens what it enters it by; what it has already it keeps.
    pub(crate) fn take(
        &self,
        (launch, framework): (LaunchId, FrameworkId),
        limits: &Limits,
        extras: &Extras<'_>,
        ids: Option<u32>,
    ) -> Result<Entry, Error> {
        let mut slots = self.slots();
        if let Some(holding) = slots.get(launch) {
            let plain = holding.plain;
            drop(slots);
            return self.group(launch).entry(&self.rules.common, plain);
        }
        let plain = extras.is_empty() && limits.kept_bytes() == 0;
        let idle = if plain { slots.take_idle(framework, limits) } else { None };
        let holding = Holding {
            slot: idle.as_ref().map_or_else(|| slots.new_slot(), |idle| idle.slot),
            framework,
            again: idle.is_some(),
            oom_kills_before: idle.as_ref().map_or(0, |idle| idle.oom_kills),
            cpu_usec_before: idle.as_ref().map_or(0, |idle| idle.cpu_usec),
            ids,
            plain: plain && self.rules.peak_resets,
            limits: Some(*limits),
            peak: None,
        };
        slots.hold(launch, holding)?;
        drop(slots);
        let furnished = self.furnish(launch, &self.group(launch), idle, limits, extras);
        if furnished.is_err() {
            // Nobody knows what is set in it.
            self.spoil(launch);
        }
        furnished
    }

    fn furnish(
        &self,
        launch: LaunchId,
        group: &Group,
        idle: Option<Idle>,
        limits: &Limits,
        extras: &Extras<'_>,
    ) -> Result<Entry, Error> {
        match idle {
            Some(idle) => {
                group.limit(limits, idle.limits.as_ref(), false)?;
                let peak = group.reset_peak(idle.peak)?;
                if let (Some(peak), Some(holding)) = (peak, self.slots().get_mut(launch)) {
                    holding.peak = Some(peak);
                }
            }
            None => {
                group.create()?;
                if let Some(program) = &self.rules.devices {
                    program.attach(&group.directory())?;
                }
                group.limit(limits, None, true)?;
                group.set_extras(extras, &self.rules.huge_page_sizes)?;
            }
        }
        if limits.kept_bytes() > 0 {
            self.keep_memory();
        }
        group.entry(&self.rules.common, extras.is_empty())
    }

    /// Opens what another process enters a container's group by.
    pub(crate) fn entry(&self, launch: LaunchId) -> Result<Entry, Error> {
        let plain = self.slots().get(launch).is_some_and(|holding| holding.plain);
        self.group(launch).entry(&self.rules.common, plain)
    }

    /// Sets other limits of processor time and memory; memory that is in use, and is not cache, stays allowed. Where more
    /// is in use it is to be called again: cache is taken back in parts, so that nobody waits long for it.
    pub(crate) fn resize(&self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64) -> Result<Room, Error> {
        let group = self.group(launch);
        if !group.exists() {
            return Ok(Room::Made);
        }
        let before = self.slots().get(launch).and_then(|holding| holding.limits);
        let (most, room) = group.make_room(memory_bytes)?;
        let limits = Limits {
            cpus_milli,
            cpus_milli_max: Some(cpus_milli),
            memory_bytes,
            memory_bytes_max: Some(most),
            pids_max: before.map_or(u64::MAX, |before| before.pids_max),
        };
        // How many processes there may be stays as it is.
        let before = before.unwrap_or(Limits {
            cpus_milli: 0,
            cpus_milli_max: None,
            memory_bytes_max: None,
            ..limits
        });
        let limited = group.limit(&limits, Some(&before), false);
        if let Some(holding) = self.slots().get_mut(launch) {
            holding.plain &= limited.is_ok();
            holding.limits = Some(limits);
        }
        limited.map(|()| room)
    }

    /// The first of the range of user ids that a container or one of its `kin` has, or else of one that is free.
    pub(crate) fn ids(
        &self,
        (launch, framework): (LaunchId, FrameworkId),
        kin: &[LaunchId],
        users: &Users,
    ) -> Option<u32> {
        let slots = self.slots();
        let had = |launch: &LaunchId| slots.get(*launch).and_then(|holding| holding.ids);
        [launch].iter().chain(kin).find_map(had).or_else(|| slots.free_ids(framework, users))
    }

    /// Takes a container's group back; `false` while the kernel holds it busy.
    pub(crate) fn release(&self, launch: LaunchId) -> Result<bool, Error> {
        let Some(holding) = self.slots().get(launch).cloned() else {
            // Of an agent that named groups by launches; or there never was one.
            return self.named(launch).remove();
        };
        let group = self.group(launch);
        let kept = holding.limits.as_ref().is_none_or(|limits| limits.kept_bytes() > 0);
        if holding.plain
            && self.slots().has_room()
            && let Some(idle) = rest(&group, &holding)
        {
            let mut slots = self.slots();
            slots.let_go(launch);
            slots.put_idle(holding.framework, idle);
            return Ok(true);
        }
        self.slots().close(holding.slot);
        if !group.remove()? {
            return Ok(false);
        }
        self.slots().let_go(launch);
        if kept {
            self.keep_memory();
        }
        Ok(true)
    }

    /// Its group is not used again: more was done to it than a container does.
    pub(crate) fn spoil(&self, launch: LaunchId) {
        if let Some(holding) = self.slots().get_mut(launch) {
            holding.plain = false;
        }
    }

    /// Removes the groups that wait for containers of a framework that has no supervisor any more.
    pub(crate) fn remove_idle(&self, framework: FrameworkId) {
        let idle = self.slots().drain_idle(Some(framework));
        self.remove_slots(idle);
    }

    fn remove_slots(&self, slots: Vec<u64>) {
        for slot in slots {
            self.slots().close(slot);
            match self.slot(slot).remove() {
                Ok(true) => {}
                Ok(false) => tracing::warn!(slot, "an empty cgroup is busy"),
                Err(error) => tracing::warn!(slot, error = chain(&error), "remove a cgroup"),
            }
        }
    }

    /// What the kernel counted since the container came; nothing if it has no group.
    pub(crate) fn counters(&self, launch: LaunchId) -> Result<Counters, Error> {
        let holding = self.slots().get(launch).cloned();
        let mut counters = match self.group(launch).counters() {
            Err(Error::Path { source, .. }) if is_gone(&source) => return Ok(Counters::default()),
            counters => counters?,
        };
        if let Some(holding) = holding {
            counters.oom_kills = counters.oom_kills.saturating_sub(holding.oom_kills_before);
            counters.memory_peak_bytes = self.peak(&holding, counters.memory_peak_bytes);
        }
        Ok(counters)
    }

    /// What it uses now.
    pub(crate) fn usage(&self, launch: LaunchId) -> Result<Usage, Error> {
        let holding = self.slots().get(launch).cloned();
        // Whoever looks at many containers shall not have their files stay open instead of those in use.
        let group = holding.as_ref().map_or_else(|| self.named(launch), |holding| self.slot(holding.slot));
        let mut usage = group.usage()?;
        if let Some(holding) = holding {
            usage.cpu_usec = usage.cpu_usec.saturating_sub(holding.cpu_usec_before);
            usage.memory_peak_bytes = self.peak(&holding, usage.memory_peak_bytes);
        }
        Ok(usage)
    }

    /// On v2 the group's own file tells the peak of all the containers that it had, and what told this one's is gone
    /// with the agent that opened it.
    fn peak(&self, holding: &Holding, of_group: Option<u64>) -> Option<u64> {
        if !holding.again || !self.layout.is_v2() {
            return of_group;
        }
        holding.peak.as_ref().and_then(|peak| memory::peak_of(peak))
    }

    /// v2: a group's memory is left alone only as far as that of those above it is. They are given the sum, so that what
    /// the containers use beyond is had before what the machine's daemons use.
    fn keep_memory(&self) {
        if !self.layout.is_v2() {
            return;
        }
        let top = self.layout.cpu_root().join(TOP);
        for dir in [top.join(&self.instance), top] {
            let below = fs::read_dir(&dir).into_iter().flatten().flatten();
            let kept = below.filter_map(|entry| read_number(entry.path().join("memory.low")).ok());
            let sum = kept.fold(0, u64::saturating_add);
            if let Err(error) = memory::set_kept(&dir, sum, true) {
                tracing::warn!(error = chain(&error), "keep memory for containers");
            }
        }
    }

    /// The group of one container, made or not. The files of one that may be used again stay open.
    pub(crate) fn group(&self, launch: LaunchId) -> Arc<Group> {
        let mut slots = self.slots();
        let Some((slot, plain)) = slots.get(launch).map(|holding| (holding.slot, holding.plain)) else {
            return Arc::new(self.named(launch));
        };
        match slots.opened(slot) {
            Some(group) => group,
            None if plain => {
                let group = Arc::new(self.slot(slot).staying_open());
                slots.keep_open(slot, group.clone());
                group
            }
            None => Arc::new(self.slot(slot)),
        }
    }

    fn named(&self, launch: LaunchId) -> Group {
        self.at(&super::name(launch))
    }

    fn slot(&self, slot: u64) -> Group {
        self.at(&format!("{SLOT}{slot:016x}"))
    }

    /// The supervisors' group.
    pub(crate) fn supervisors(&self) -> Group {
        self.at(SUPERVISORS)
    }

    fn dir_in(&self, root: &Path) -> PathBuf {
        root.join(TOP).join(&self.instance)
    }

    fn at(&self, name: &str) -> Group {
        Group::new(self.layout.clone(), &Path::new(TOP).join(&self.instance).join(name))
    }

    /// Files by which a process enters the supervisors' group: it writes `0` to each. That of systemd's hierarchy is
    /// among them, if it could be made: systemd would take a supervisor for a part of the agent's unit.
    pub(crate) fn supervisor_entries(&self) -> Result<Vec<File>, Error> {
        let units = self.layout.units().filter(|units| self.dir_in(units).join(SUPERVISORS).is_dir());
        let roots = self.layout.roots().into_iter().chain(units.map(Path::to_owned));
        let own = roots.map(|root| root.join(TOP).join(&self.instance).join(SUPERVISORS));
        own.map(|dir| {
            let path = dir.join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(&path);
            file.map_err(|source| Error::Path { operation: "open for writing", path, source })
        })
        .collect()
    }

    /// The containers that have a group, in ascending order.
    pub(crate) fn launches(&self) -> Vec<LaunchId> {
        let mut launches: Vec<LaunchId> = self.slots().launches().collect();
        launches.extend(self.names().iter().filter_map(|name| parse(name)));
        launches.sort_unstable();
        launches.dedup();
        launches
    }

    fn slots_made(&self) -> Vec<u64> {
        let names = self.names();
        let slots = names.iter().filter_map(|name| name.strip_prefix(SLOT).and_then(parse));
        slots.map(|slot| slot.0).collect()
    }

    /// What is below the agent's own groups, in any hierarchy.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for root in self.layout.roots().into_iter().chain(self.layout.further_roots()) {
            let Ok(entries) = fs::read_dir(root.join(TOP).join(&self.instance)) else { continue };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Removes the agent's own groups, which must be empty, and ours at the top if no other agent has any.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.slots().drain_idle(None);
        let idle = self.slots_made().into_iter().filter(|slot| !self.slots().is_held(*slot)).collect();
        self.remove_slots(idle);
        let units = self.layout.units().map(Path::to_owned);
        for root in self.layout.roots().into_iter().chain(self.layout.further_roots()).chain(units) {
            let top = root.join(TOP);
            let own = top.join(&self.instance);
            for dir in [own.join(SUPERVISORS), own.join(CONTAINERS), own] {
                match fs::remove_dir(&dir) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(Error::Path { operation: "remove cgroup", path: dir, source }),
                }
            }
            // Another agent's group keeps it.
            let _ = fs::remove_dir(&top);
        }
        self.slots().remove_dir();
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().expect("no panic while it is held")
    }
}

/// An emptied group, if so little is left in it that it can be used again.
fn rest(group: &Group, holding: &Holding) -> Option<Idle> {
    let (memory_bytes, oom_kills, cpu_usec) = group.rest().ok()??;
    let Holding { slot, limits, .. } = *holding;
    let peak = holding.peak.clone();
    (memory_bytes <= LEFT_MAX).then_some(Idle { slot, limits, oom_kills, cpu_usec, peak })
}

impl Rules {
    fn name_missing(&mut self, layout: &Layout) {
        for (controller, field) in [("cpuset", "cpuset"), ("io", "io"), ("hugetlb", "hugetlb")] {
            if layout.root_of(controller).is_none() {
                let what = format!("no cgroup controller {controller}: container.{field} is refused");
                self.lacks.push(what);
            }
        }
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
