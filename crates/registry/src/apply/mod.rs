//! The one function that changes the state, and what it is made of.

mod accept;
mod agents;
mod attach;
mod calls;
mod frameworks;
mod plan;
mod tasks;

use proffer_types::command::{Command, Entry, Rejection};

use crate::{Change, Registry};

impl Registry {
    /// Applies the entry at `index`, which the log gives with `term`; returns what became true, in order.
    ///
    /// Indexes must rise from call to call; an index at or below the last one changes nothing. An entry whose
    /// proposer's term is not the log's is rejected. Whatever the entry says, cluster time does not go back.
    ///
    /// A command with a [`proffer_types::command::CallId`] or [`proffer_types::command::AdminId`] ends with exactly
    /// one [`Change::Answered`], after what it caused, also if it was refused; only [`Rejection::WrongTerm`] comes as
    /// [`Change::Rejected`] for every command.
    pub fn apply(&mut self, index: u64, term: u64, entry: &Entry) -> Vec<Change> {
        if index <= self.meta.applied {
            return vec![Change::Rejected { rejection: Rejection::Stale }];
        }
        self.meta.applied = index;
        if entry.term != term {
            return vec![Change::Rejected { rejection: Rejection::WrongTerm }];
        }
        self.meta.time = self.meta.time.max(entry.time);
        let mut step = Step { state: self, index, entry, changes: Vec::new() };
        step.drop_old_admin_answers();
        if let Err(rejection) = step.run() {
            step.changes.push(Change::Rejected { rejection });
        }
        step.changes
    }

    /// Counts a log entry that carries no command (a new leader's own, a change of membership) as applied.
    pub fn pass(&mut self, index: u64) {
        self.meta.applied = self.meta.applied.max(index);
    }
}

/// One entry being applied.
struct Step<'a> {
    state: &'a mut Registry,
    index: u64,
    entry: &'a Entry,
    changes: Vec<Change>,
}

impl Step<'_> {
    /// A command that is rejected has changed nothing.
    fn run(&mut self) -> Result<(), Rejection> {
        match &self.entry.command {
            Command::Form { cluster, masters } => self.form(*cluster, masters)?,
            Command::Tick => {}
            Command::RegisterAgent { instance, info, boot_id } => {
                self.register_agent(*instance, info, *boot_id)?
            }
            Command::AttachAgent(attach) => self.attach_agent(attach)?,
            Command::MarkUnreachable { agent, attachment } => self.mark_unreachable(*agent, *attachment)?,
            Command::RemoveAgent { agent } => self.remove_agent(*agent)?,
            Command::OpenSession { framework, origin, info } => {
                self.open_session(*framework, *origin, info)?
            }
            Command::Reconnect { framework, session } => self.reconnect(*framework, *session)?,
            Command::Disconnect { framework, session } => self.disconnect(*framework, *session)?,
            Command::Complete { framework, session, reason } => {
                self.time_out(*framework, *session, *reason)?
            }
            Command::Statuses { agent, attachment, statuses } => {
                self.statuses(*agent, *attachment, statuses)?
            }
            Command::Accept { call, atomic, parts } => {
                self.call(call, |step| step.accept(call, *atomic, parts))
            }
            Command::Kill { call, task, grace_ms } => {
                self.call(call, |step| step.kill(call.framework, task, *grace_ms))
            }
            Command::Acknowledge { call, acks } => {
                self.call(call, |step| step.acknowledge(call.framework, acks))
            }
            Command::UpdateFramework { call, info } => {
                self.call(call, |step| step.update_framework(call.framework, info))
            }
            Command::ShutdownExecutor { call, agent, executor } => {
                self.call(call, |step| step.shutdown_executor(call.framework, *agent, executor))
            }
            Command::Teardown { call } => self.call(call, |step| step.teardown(call.framework)),
            Command::AdminKill { call, framework, task, grace_ms } => {
                self.admin_call(call, |step| step.admin_kill(*framework, task, *grace_ms));
            }
            Command::AdminTeardown { call, framework } => {
                self.admin_call(call, |step| step.admin_teardown(*framework));
            }
        }
        Ok(())
    }

    fn form(
        &mut self,
        cluster: proffer_types::ClusterId,
        masters: &[(proffer_types::MasterId, String)],
    ) -> Result<(), Rejection> {
        if self.state.meta.cluster.is_some() {
            return Err(Rejection::AlreadyFormed);
        }
        self.state.meta.cluster = Some(cluster);
        self.state.meta.masters = masters.to_vec();
        self.state.meta.masters.sort();
        self.state.meta.masters.dedup_by_key(|(id, _)| *id);
        self.tell(Change::Formed);
        Ok(())
    }

    fn tell(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn now(&self) -> proffer_types::ClusterTime {
        self.state.meta.time
    }

    /// The next id of the one counter from which all ids come. Its top 16 bits are the recovery generation; 48 bits
    /// of count last 890 years at 10,000 a second.
    fn mint(&mut self) -> u64 {
        self.state.meta.last_id += 1;
        self.state.meta.last_id
    }
}
