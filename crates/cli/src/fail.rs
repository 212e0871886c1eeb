//! How a verb fails: what, which, why, and what to do next.

use std::fmt;

use proffer_client::admin::Error as AdminError;
use proffer_client::hands;
use proffer_client::{CallError, ConnectError, Ended, Refused, RefusedKind};

/// The documented exit codes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Failed,
    Usage,
    NotFound,
    Denied,
    Unavailable,
    Conflict,
    /// `run`: proffer could not start the task.
    NotStarted,
    /// `task exec`: the program could not be executed.
    NotExecutable,
    /// `task exec`: there is no such program.
    NoProgram,
}

impl Code {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unavailable => 5,
            Self::Conflict => 6,
            Self::NotStarted => 125,
            Self::NotExecutable => 126,
            Self::NoProgram => 127,
        }
    }
}

/// A failed verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// What failed, with the id, and why.
    pub(crate) what: String,
    /// What to do next; may be empty.
    pub(crate) next: String,
}

impl Failure {
    pub(crate) fn new(code: Code, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), next: String::new() }
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proffer: {}", self.what)?;
        if !self.next.is_empty() {
            write!(f, "\n  {}", self.next)?;
        }
        Ok(())
    }
}

const WHERE_ARE_THE_MASTERS: &str = "is the cluster running? Name its masters with --master or PROFFER_MASTER, or start one with `proffer dev`";

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let what = error.to_string();
        match &error {
            AdminError::Unavailable { .. } => Self::new(Code::Unavailable, what).next(WHERE_ARE_THE_MASTERS),
            AdminError::Refused { refused, .. } => {
                Self::new(code_of(refused), what).next(match refused.reason.as_str() {
                    "TASK_NOT_RUNNING" => "see its state with `proffer task show`",
                    "NO_SUCH_FILE" => "list what is there with `proffer task files`",
                    "AGENT_UNREACHABLE" => "see the agent with `proffer agent list`",
                    hands::CONNECTION_LOST => {
                        "try again; `proffer status` and `proffer agent list` say who is there"
                    }
                    _ => "",
                })
            }
            AdminError::Malformed { .. } => {
                Self::new(Code::Failed, what).next("compare the versions of `proffer` and of the masters")
            }
            AdminError::Random(_) => Self::new(Code::Failed, what),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let what = error.to_string();
        match error {
            ConnectError::NoLeader { .. } => Self::new(Code::Unavailable, what).next(WHERE_ARE_THE_MASTERS),
            ConnectError::NoMasters => Self::new(Code::Usage, what),
            ConnectError::Ended(ended) => ended.into(),
            ConnectError::Random(_) => Self::new(Code::Failed, what),
        }
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        let code = match &ended {
            Ended::Refused(refused) => code_of(refused),
            Ended::Fenced | Ended::Completed(_) | Ended::TornDown => Code::Conflict,
            Ended::Closed => Code::Failed,
        };
        Self::new(code, ended.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refused) => Self::new(code_of(&refused), refused.to_string()),
            CallError::Ended(ended) => ended.into(),
            error @ CallError::Lost => Self::new(Code::Unavailable, error.to_string()),
        }
    }
}

fn code_of(refused: &Refused) -> Code {
    match refused.kind {
        // Nothing is wrong with the call: it may go better later.
        _ if matches!(refused.reason.as_str(), "AGENT_UNREACHABLE" | hands::CONNECTION_LOST) => {
            Code::Unavailable
        }
        RefusedKind::Invalid | RefusedKind::OutOfRange => Code::Usage,
        RefusedKind::NotFound => Code::NotFound,
        RefusedKind::AlreadyExists | RefusedKind::Precondition => Code::Conflict,
        RefusedKind::Denied => Code::Denied,
        RefusedKind::Unimplemented => Code::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn refusals_have_the_documented_codes() {
        let code = |kind| {
            let refused = Refused { kind, reason: String::new(), message: "no".into() };
            Failure::from(AdminError::Refused { what: "x", refused }).code.number()
        };
        assert_eq!(code(RefusedKind::Invalid), 2);
        assert_eq!(code(RefusedKind::NotFound), 3);
        assert_eq!(code(RefusedKind::Denied), 4);
        assert_eq!(code(RefusedKind::AlreadyExists), 6);
        assert_eq!(code(RefusedKind::Precondition), 6);
    }

    #[test]
    fn an_unreachable_cluster_is_code_5_and_names_every_master() {
        let error = AdminError::Unavailable {
            what: "list tasks",
            waited: Duration::from_secs(10),
            masters: vec![("a:1".into(), "connection refused".into()), ("b:2".into(), "no answer".into())],
        };
        let failure = Failure::from(error);
        assert_eq!(failure.code.number(), 5);
        let text = failure.to_string();
        for part in ["list tasks", "a:1: connection refused", "b:2: no answer", "--master", "proffer dev"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
