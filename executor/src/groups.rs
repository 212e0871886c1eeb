//! Launches that start together or not at all, and end together.
//!
//! Members are gathered without a trace until all have come; then each is recorded. The first is made, so that the others
//! can share with it; when all stand, complete and held back, all are let go. A failure before that ends them all.

use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::{KillCause, KillSent};

use crate::launch::{Killed, Launch, State, is_well};
use crate::request::Checked;
use crate::supervisor::Supervisor;

/// A group, by its first member.
pub(crate) enum Group {
    /// Members are still to come.
    Gathering {
        /// How many there will be.
        size: u32,
        /// Those that have come.
        members: Vec<Checked>,
    },
    /// It was ended before all had come: so many more will be told so.
    Ended(u32),
    /// All have come.
    Making {
        /// How many there are.
        size: u32,
        /// Those that are not cloned yet.
        rest: Vec<Checked>,
        /// How many stand.
        ready: u32,
    },
    /// All were let go, or none will be.
    Over,
}

impl Group {
    /// Whether a launch is a member that has come and is not cloned yet.
    fn waits(&self, id: u64) -> bool {
        match self {
            Group::Gathering { members, .. } => members,
            Group::Making { rest, .. } => rest,
            Group::Ended(_) | Group::Over => return false,
        }
        .iter()
        .any(|member| member.id == id)
    }
}

impl Supervisor {
    /// Takes up a member.
    pub(crate) fn gather(&mut self, serial: u64, checked: Checked) {
        let (id, Some(group)) = (checked.id, checked.group) else { return };
        let new = Group::Gathering { size: group.size, members: Vec::new() };
        match self.groups.entry(group.first).or_insert(new) {
            Group::Gathering { size, members } if *size == group.size => {
                // A repeated one has no answer yet.
                if members.iter().all(|member| member.id != id) {
                    members.push(checked);
                }
                if members.len() == group.size as usize {
                    self.begin_group(serial, group.first);
                }
            }
            Group::Ended(left) => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.groups.remove(&group.first);
                }
                self.not_begun(id, KillSent::None, KillCause::Group);
            }
            Group::Gathering { .. } => self.refuse(serial, id, "its group has another size".into()),
            making @ Group::Making { .. } if making.waits(id) => {}
            Group::Making { .. } | Group::Over => {
                self.refuse(serial, id, "its group has begun without it".into());
            }
        }
    }

    fn begin_group(&mut self, serial: u64, first: u64) {
        let Some(Group::Gathering { size, mut members }) = self.groups.remove(&first) else { return };
        if let Err(error) = self.records.write_launches(members.iter().map(|member| member.id)) {
            for member in &members {
                self.refuse(serial, member.id, format!("its group cannot be recorded: {error}"));
            }
            return;
        }
        let one = members.remove(0);
        self.groups.insert(first, Group::Making { size, rest: members, ready: 0 });
        self.begin(one, None);
    }

    /// A member stands: then the others can be made, or all can be let go.
    pub(crate) fn on_ready_member(&mut self, id: u64) {
        let Some(first) = self.launches.get(&id).and_then(|launch| launch.group) else { return };
        let Some(Group::Making { size, rest, ready }) = self.groups.get_mut(&first) else { return };
        *ready += 1;
        let all = *ready == *size;
        for member in std::mem::take(rest) {
            // One of them may have failed meanwhile, and with it all that are still to be made.
            match self.groups.get(&first) {
                Some(Group::Making { .. }) => {
                    let with = member.linux().then_some(id);
                    self.begin(member, with);
                }
                _ => self.not_begun(member.id, KillSent::None, KillCause::Group),
            }
        }
        if all {
            self.groups.insert(first, Group::Over);
            for launch in self.launches.values_mut().filter(|launch| launch.group == Some(first)) {
                launch.held = false;
                // One that is gone shows by its events.
                let _ = launch.container.as_ref().map(|container| container.release());
            }
        }
    }

    /// A launch has ended: those that share its fate follow.
    pub(crate) fn on_member_end(&mut self, id: u64, end: &End) {
        let Some(first) = self.launches.get(&id).and_then(|launch| launch.group) else { return };
        let (rest, begun) = match self.groups.insert(first, Group::Over) {
            Some(Group::Making { rest, .. }) => (rest, false),
            _ => (Vec::new(), true),
        };
        if !(begun && is_well(end)) {
            let why = match end {
                End::Exited(_) => format!("launch {id} of its group ended otherwise than well"),
                End::LaunchFailed(failed) => {
                    format!("launch {id} of its group could not be started: {}", failed.message)
                }
            };
            let runs = |launch: &Launch| !matches!(launch.state, State::Ended { .. });
            let others = self.launches.values().filter(|other| other.group == Some(first) && runs(other));
            let others = others
                .map(|other| (other.id, other.kept.as_ref().map_or(0, |kept| kept.kill_grace_ms)))
                .collect::<Vec<_>>();
            for (other, grace_ms) in others {
                self.kill(other, grace_ms, KillCause::Group, &why);
            }
        }
        for member in rest {
            self.not_begun(member.id, KillSent::None, KillCause::Group);
        }
        let ended = |launch: &Launch| matches!(launch.state, State::Ended { .. });
        if self.launches.values().filter(|other| other.group == Some(first)).all(|other| ended(other)) {
            self.groups.remove(&first);
        }
    }

    /// Ends a group of which a member is killed that is not cloned yet; `false` if there is no such member.
    pub(crate) fn kill_uncloned(&mut self, id: u64, grace_ms: u64) -> bool {
        let Some(first) = self.groups.iter().find(|(_, group)| group.waits(id)).map(|(&first, _)| first)
        else {
            return false;
        };
        let members = match self.groups.remove(&first) {
            Some(Group::Gathering { size, members }) => {
                let left = size - members.len() as u32;
                if left > 0 {
                    self.groups.insert(first, Group::Ended(left));
                }
                members
            }
            Some(Group::Making { rest, .. }) => {
                // Those that are cloned end it when the last of them has ended.
                self.groups.insert(first, Group::Over);
                let cloned = self.launches.values().filter(|launch| launch.group == Some(first));
                for other in cloned.map(|launch| launch.id).collect::<Vec<_>>() {
                    self.kill(other, 0, KillCause::Group, "another of its group was killed");
                }
                rest
            }
            _ => return false,
        };
        for member in members {
            match member.id == id {
                true if grace_ms == 0 => self.not_begun(id, KillSent::Kill, KillCause::Order),
                true => self.not_begun(id, KillSent::Term, KillCause::Order),
                false => self.not_begun(member.id, KillSent::None, KillCause::Group),
            }
        }
        true
    }

    /// Members that are recorded and will be cloned.
    pub(crate) fn uncloned(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.values().flat_map(|group| match group {
            Group::Making { rest, .. } => rest.iter().map(|member| member.id).collect(),
            _ => Vec::new(),
        })
    }

    /// Lets go of members whose group is not complete: an agent that connects anew sends them anew. With a connection,
    /// they are refused there.
    pub(crate) fn drop_gathering(&mut self, serial: Option<u64>) {
        let gathering =
            |_: &u64, group: &mut Group| matches!(group, Group::Gathering { .. } | Group::Ended(_));
        let dropped = self.groups.extract_if(.., gathering).collect::<Vec<_>>();
        for (_, group) in dropped {
            let (Some(serial), Group::Gathering { members, .. }) = (serial, group) else { continue };
            for member in members {
                self.refuse(serial, member.id, "this supervisor is draining".into());
            }
        }
    }

    fn not_begun(&mut self, id: u64, sent: KillSent, cause: KillCause) {
        let text = match cause {
            KillCause::Group => "another of its group was not started",
            _ => "killed before its group was complete",
        };
        self.not_made(id, None, "group", 0, text.into(), Killed { sent, cause, message: String::new() });
    }
}
