//! Who asks, and whether they may.

use std::fmt;
use std::sync::Arc;

/// What sort of party a connection belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallerKind {
    /// Nobody proved anything: a plaintext connection from this host.
    #[default]
    Anonymous,
    /// A master itself: timers and clean-up.
    Master,
}

impl CallerKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Anonymous, Self::Master];
}

/// Who asks. Every call and command carries one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// The proven name; empty for anonymous.
    pub principal: Arc<str>,
    /// What sort of party.
    pub kind: CallerKind,
}

impl Caller {
    /// A connection that proved nothing.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A master's own timers.
    pub fn master() -> Self {
        Self { principal: "master".into(), kind: CallerKind::Master }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            CallerKind::Anonymous => f.write_str("anonymous"),
            CallerKind::Master => f.write_str("master"),
        }
    }
}

/// What can be asked for. Every RPC maps to exactly one, by an exhaustive match where it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Subscribe a framework and all its later calls.
    ActAsFramework,
    /// Open an agent's session and its data connections.
    ActAsAgent,
    /// See anything.
    Read,
    /// Read the output of a task.
    ReadLogs,
    /// Run a program in a task's container.
    Exec,
    /// Type on a task's terminal, and see what it says.
    Attach,
    /// List and read the files of a task.
    ReadFiles,
    /// Put files into a task's sandbox.
    WriteFiles,
    /// End somebody's task.
    KillTask,
    /// Remove somebody's framework.
    TeardownFramework,
    /// Timers and clean-up of the master itself.
    Maintain,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 11] = [
        Self::ActAsFramework,
        Self::ActAsAgent,
        Self::Read,
        Self::ReadLogs,
        Self::Exec,
        Self::Attach,
        Self::ReadFiles,
        Self::WriteFiles,
        Self::KillTask,
        Self::TeardownFramework,
        Self::Maintain,
    ];
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{caller} may not {action:?} {object}")]
pub struct Denied {
    /// Who asked.
    pub caller: Caller,
    /// For what.
    pub action: Action,
    /// Of which object.
    pub object: String,
}

/// The whole policy, as one total table: whatever has no row that allows it is denied. Until connections carry
/// credentials, anonymous callers may do what an operator may; a master accepts them on loopback only unless it is
/// told `--insecure`.
pub fn authorise(caller: &Caller, action: Action, object: &str) -> Result<(), Denied> {
    let allowed = match (caller.kind, action) {
        (CallerKind::Anonymous, Action::ActAsFramework) => true,
        (CallerKind::Anonymous, Action::ActAsAgent) => true,
        (CallerKind::Anonymous, Action::Read) => true,
        (CallerKind::Anonymous, Action::ReadLogs) => true,
        (CallerKind::Anonymous, Action::Exec | Action::Attach) => true,
        (CallerKind::Anonymous, Action::ReadFiles | Action::WriteFiles) => true,
        (CallerKind::Anonymous, Action::KillTask) => true,
        (CallerKind::Anonymous, Action::TeardownFramework) => true,
        (CallerKind::Anonymous, Action::Maintain) => false,
        (CallerKind::Master, Action::Maintain) => true,
        (CallerKind::Master, Action::KillTask | Action::TeardownFramework) => true,
        (
            CallerKind::Master,
            Action::ActAsFramework | Action::ActAsAgent | Action::Read | Action::ReadLogs,
        ) => false,
        (CallerKind::Master, Action::Exec | Action::Attach | Action::ReadFiles | Action::WriteFiles) => false,
    };
    if allowed { Ok(()) } else { Err(Denied { caller: caller.clone(), action, object: object.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_from_outside_acts_as_the_master() {
        assert!(authorise(&Caller::anonymous(), Action::Maintain, "cluster").is_err());
        assert!(authorise(&Caller::master(), Action::ReadLogs, "task").is_err());
        for kind in CallerKind::ALL {
            let caller = Caller { kind, ..Caller::default() };
            let allowed = Action::ALL.into_iter().filter(|a| authorise(&caller, *a, "x").is_ok()).count();
            assert!(allowed > 0 && allowed < Action::ALL.len(), "{kind:?}");
        }
    }
}
