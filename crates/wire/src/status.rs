//! The one place where a refusal becomes a gRPC status, and a status a refusal again.
//!
//! A status of ours carries an ErrorInfo with the domain [`DOMAIN`] and a reason that programs can rely on. A status
//! without it was made by a library or a proxy on the way: whether the call took effect is not known then.

use std::collections::HashMap;
use std::time::Duration;

use proffer_types::Denied;
use proffer_types::command::Rejection;
use proffer_types::event::{Refused, StreamEnd};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::malformed::{InvalidField, Malformed};
use crate::told::refusal_code;

/// The domain of our ErrorInfo.
pub const DOMAIN: &str = "proffer";
/// The trailer that names the leader, readable without our stubs.
pub const LEADER_TRAILER: &str = "proffer-leader";
/// How long to wait with a call more than a session may have open (milliseconds).
const TOO_MANY_OPEN_RETRY_MS: u64 = 100;
/// Longest message, in bytes: headers are limited.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// The status for a message that was not accepted.
pub fn malformed(error: &Malformed) -> Status {
    match error {
        Malformed::Invalid { fields, more } => invalid(fields, *more),
        Malformed::Unsupported { path, what } => {
            status(Code::Unimplemented, "UNSUPPORTED", error.to_string(), &[("path", path), ("what", what)])
        }
    }
}

/// The status for a call that is refused or has no answer.
pub fn refused(refused: &Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::NotLeader { leader } => not_leader(leader.as_deref()),
        Refused::OutcomeUnknown => status(Code::Unavailable, "OUTCOME_UNKNOWN", text, &[]),
        Refused::Busy { retry_ms } => busy("BUSY", text, *retry_ms),
        Refused::InvalidOffer { offer, why } => {
            let id = format!("{}-{}-{}", offer.epoch.generation, offer.epoch.term, offer.n);
            status(Code::FailedPrecondition, "INVALID_OFFER", text, &[("offer", &id), ("why", why)])
        }
        Refused::Invalid { field, reason } => {
            invalid(&[InvalidField { path: field.clone(), reason: reason.clone() }], 0)
        }
        Refused::Rejected(rejection) => rejected(*rejection),
        Refused::Atomic { task, refusal, .. } => {
            let metadata = [("task", task.to_string()), ("refused", refusal_code(*refusal).to_owned())];
            let metadata = metadata.each_ref().map(|(key, value)| (*key, value.as_str()));
            status(Code::FailedPrecondition, "ATOMIC", text, &metadata)
        }
        Refused::Denied(denied) => self::denied(denied),
        Refused::TaskNotRunning { .. } => status(Code::FailedPrecondition, "TASK_NOT_RUNNING", text, &[]),
        Refused::AgentUnreachable { .. } => status(Code::FailedPrecondition, "AGENT_UNREACHABLE", text, &[]),
        Refused::NotFound { .. } => status(Code::NotFound, "NOT_FOUND", text, &[]),
    }
}

/// The status for a caller who may not.
pub fn denied(denied: &Denied) -> Status {
    status(Code::PermissionDenied, "DENIED", denied.to_string(), &[])
}

/// The status for a command that the state rejected.
pub fn rejected(rejection: Rejection) -> Status {
    let text = rejection.to_string();
    let (code, reason) = match rejection {
        // The entry is void and nothing happened; the client learns the leader from its next try.
        Rejection::WrongTerm => (Code::Unavailable, "OUTCOME_UNKNOWN"),
        Rejection::UnknownFramework => (Code::NotFound, "UNKNOWN_FRAMEWORK"),
        Rejection::FrameworkCompleted => (Code::FailedPrecondition, "FRAMEWORK_COMPLETED"),
        Rejection::SessionFenced => (Code::FailedPrecondition, "SESSION_FENCED"),
        Rejection::UnknownTask => (Code::NotFound, "UNKNOWN_TASK"),
        Rejection::UnknownAgent => (Code::NotFound, "UNKNOWN_AGENT"),
        Rejection::WrongInstance => (Code::FailedPrecondition, "WRONG_INSTANCE"),
        Rejection::ListingNeeded => (Code::FailedPrecondition, "LISTING_NEEDED"),
        Rejection::Stale => (Code::Aborted, "STALE"),
        Rejection::ContentDiffers => (Code::InvalidArgument, "CONTENT_DIFFERS"),
        Rejection::TooManyOpen => return busy("TOO_MANY_OPEN", text, TOO_MANY_OPEN_RETRY_MS),
        Rejection::TooOld => (Code::FailedPrecondition, "TOO_OLD"),
        Rejection::Immutable => (Code::InvalidArgument, "IMMUTABLE"),
        Rejection::AlreadyFormed => (Code::FailedPrecondition, "ALREADY_FORMED"),
        Rejection::Atomic => (Code::FailedPrecondition, "ATOMIC"),
        Rejection::UnknownExecutor => (Code::NotFound, "UNKNOWN_EXECUTOR"),
    };
    status(code, reason, text, &[])
}

/// The status with which a stream ends. `leader` is told with [`StreamEnd::NotLeader`].
pub fn stream_end(end: StreamEnd, leader: Option<&str>) -> Status {
    match end {
        StreamEnd::NotLeader => not_leader(leader),
        StreamEnd::SessionFenced => rejected(Rejection::SessionFenced),
        StreamEnd::FrameworkCompleted => rejected(Rejection::FrameworkCompleted),
        StreamEnd::Replaced => {
            status(Code::Aborted, "REPLACED", "this session was resumed on another connection".into(), &[])
        }
        StreamEnd::Resync => status(
            Code::Aborted,
            "RESYNC",
            "the reader was too slow, or the state was replaced: subscribe again".into(),
            &[],
        ),
        StreamEnd::Silent => status(Code::Aborted, "SILENT", "nothing was heard for too long".into(), &[]),
    }
}

/// The status for a call to a master that does not lead.
pub fn not_leader(leader: Option<&str>) -> Status {
    let text = Refused::NotLeader { leader: leader.map(str::to_owned) }.to_string();
    let metadata = leader.map(|leader| ("leader", leader));
    let mut status = status(Code::Unavailable, "NOT_LEADER", text, metadata.as_slice());
    if let Some(value) = leader.and_then(|leader| MetadataValue::try_from(leader).ok()) {
        status.metadata_mut().insert(LEADER_TRAILER, value);
    }
    status
}

/// The status for an RPC, an operation or a field that this version does not serve.
pub fn unsupported(what: &str) -> Status {
    status(Code::Unimplemented, "UNSUPPORTED", what.to_owned(), &[("what", what)])
}

/// The status for a message or a body over its limit.
pub fn too_large(text: String) -> Status {
    status(Code::OutOfRange, "TOO_LARGE", text, &[])
}

/// The status for a read that was not answered within its caller's deadline.
pub fn deadline(text: String) -> Status {
    status(Code::DeadlineExceeded, "DEADLINE", text, &[])
}

/// The status for a caller who must come again later.
pub fn busy(reason: &str, text: String, retry_ms: u64) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(Duration::from_millis(retry_ms)));
    Status::with_error_details(Code::ResourceExhausted, cut(text), details)
}

/// A status of ours.
pub fn status(code: Code, reason: &str, text: String, metadata: &[(&str, &str)]) -> Status {
    let metadata = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect::<HashMap<_, _>>();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, cut(text), details)
}

fn invalid(fields: &[InvalidField], more: usize) -> Status {
    let first = fields.first().map(InvalidField::to_string).unwrap_or_default();
    let others = fields.len().saturating_sub(1) + more;
    let text = if others > 0 { format!("{first} (and {others} more)") } else { first };
    let violation = |path: &str, reason: &str| FieldViolation {
        field: path.into(),
        description: reason.into(),
        // Filled in beside the description: generic clients show one or the other.
        reason: "INVALID".into(),
        localized_message: None,
    };
    let mut violations: Vec<_> = fields.iter().map(|field| violation(&field.path, &field.reason)).collect();
    if more > 0 {
        violations.push(violation("", &format!("and {more} more")));
    }
    // What a client's headers take is 16 KiB after base64; long lists are shortened to stay well below.
    let mut size: usize = 0;
    violations.retain(|v| {
        size += v.field.len() + v.description.len() + 16;
        size < 3_000
    });
    let mut details = ErrorDetails::with_error_info("INVALID_FIELD", DOMAIN, HashMap::new());
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, cut(text), details)
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// What a client's call met with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// This master does not lead.
    #[error("this master is not the leader")]
    NotLeader {
        /// Who does, if it knew.
        leader: Option<String>,
    },
    /// The leader was lost before the outcome was known: repeat with the same seq.
    #[error("{message}")]
    OutcomeUnknown {
        /// For people.
        message: String,
    },
    /// Too much waits.
    #[error("{message}")]
    Busy {
        /// When to try again (milliseconds).
        retry_ms: u64,
        /// For people.
        message: String,
    },
    /// A later session of this framework exists. Final.
    #[error("a later session of this framework exists")]
    SessionFenced,
    /// The framework is completed. Final.
    #[error("the framework is completed")]
    FrameworkCompleted,
    /// An offer that does not exist any more.
    #[error("{message}")]
    InvalidOffer {
        /// For people.
        message: String,
    },
    /// Fields hold what they must not.
    #[error("{message}")]
    Invalid {
        /// Which, as far as they were listed.
        fields: Vec<InvalidField>,
        /// For people.
        message: String,
    },
    /// The master does not know how to do this.
    #[error("{message}")]
    Unsupported {
        /// For people.
        message: String,
    },
    /// Nothing of this name.
    #[error("{message}")]
    NotFound {
        /// UNKNOWN_FRAMEWORK, UNKNOWN_TASK, UNKNOWN_AGENT, UNKNOWN_EXECUTOR or NOT_FOUND.
        reason: String,
        /// For people.
        message: String,
    },
    /// The caller may not.
    #[error("{message}")]
    Denied {
        /// For people.
        message: String,
    },
    /// The stream ended because its reader was too slow or the state was replaced: subscribe again.
    #[error("{message}")]
    Resync {
        /// For people.
        message: String,
    },
    /// The session was resumed on another connection.
    #[error("this session was resumed on another connection")]
    Replaced,
    /// Any other refusal of ours.
    #[error("{message}")]
    Refused {
        /// The word.
        reason: String,
        /// For people.
        message: String,
    },
    /// Not ours: the connection, a library or a proxy failed. Whether the call took effect is not known.
    #[error("{message}")]
    Transport {
        /// For people.
        message: String,
    },
}

impl Problem {
    /// What a status means.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let message = status.message().to_owned();
        let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) else {
            return match leader(status.metadata()) {
                // Trailers survive a proxy that drops what it does not know.
                leader @ Some(_) if status.code() == Code::Unavailable => Self::NotLeader { leader },
                _ => Self::Transport { message: format!("{:?}: {message}", status.code()) },
            };
        };
        let retry = || details.retry_info().and_then(|retry| retry.retry_delay).unwrap_or_default();
        match info.reason.as_str() {
            "NOT_LEADER" => {
                let told = || info.metadata.get("leader").cloned();
                Self::NotLeader { leader: leader(status.metadata()).or_else(told) }
            }
            "OUTCOME_UNKNOWN" => Self::OutcomeUnknown { message },
            "BUSY" | "TOO_MANY_OPEN" => Self::Busy { retry_ms: retry().as_millis() as u64, message },
            "SESSION_FENCED" => Self::SessionFenced,
            "FRAMEWORK_COMPLETED" => Self::FrameworkCompleted,
            "INVALID_OFFER" => Self::InvalidOffer { message },
            "INVALID_FIELD" => {
                let violations =
                    details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
                let field = |v: &FieldViolation| InvalidField {
                    path: v.field.clone(),
                    reason: v.description.clone(),
                };
                Self::Invalid { fields: violations.iter().map(field).collect(), message }
            }
            "UNSUPPORTED" => Self::Unsupported { message },
            "UNKNOWN_FRAMEWORK" | "UNKNOWN_TASK" | "UNKNOWN_AGENT" | "UNKNOWN_EXECUTOR" | "NOT_FOUND" => {
                Self::NotFound { reason: info.reason.clone(), message }
            }
            "DENIED" => Self::Denied { message },
            "RESYNC" => Self::Resync { message },
            "REPLACED" => Self::Replaced,
            reason => Self::Refused { reason: reason.to_owned(), message },
        }
    }

    /// Whether the call may have taken effect although no answer came: repeat it with the same seq.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. } | Self::Transport { .. })
    }
}

fn leader(metadata: &MetadataMap) -> Option<String> {
    metadata.get(LEADER_TRAILER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::malformed::VIOLATIONS_MAX;
    use proffer_types::{Action, Caller};

    #[test]
    fn a_client_reads_what_the_master_meant() {
        let refusals = [
            Refused::NotLeader { leader: Some("10.0.0.1:5050".into()) },
            Refused::NotLeader { leader: None },
            Refused::OutcomeUnknown,
            Refused::Busy { retry_ms: 250 },
            Refused::Invalid { field: "parts[0].offer_ids[1]".into(), reason: "is of another agent".into() },
            Refused::Rejected(Rejection::SessionFenced),
            Refused::Rejected(Rejection::UnknownTask),
            Refused::Denied(Denied {
                caller: Caller::anonymous(),
                action: Action::Maintain,
                object: "x".into(),
            }),
        ];
        let problems: Vec<_> = refusals.iter().map(|r| Problem::from_status(&refused(r))).collect();
        assert_eq!(problems[0], Problem::NotLeader { leader: Some("10.0.0.1:5050".into()) });
        assert_eq!(problems[1], Problem::NotLeader { leader: None });
        assert!(problems[2].outcome_unknown());
        assert!(matches!(problems[3], Problem::Busy { retry_ms: 250, .. }));
        assert!(
            matches!(&problems[4], Problem::Invalid { fields, .. } if fields[0].path == "parts[0].offer_ids[1]")
        );
        assert_eq!(problems[5], Problem::SessionFenced);
        assert!(matches!(&problems[6], Problem::NotFound { reason, .. } if reason == "UNKNOWN_TASK"));
        assert!(matches!(problems[7], Problem::Denied { .. }));
        assert!(problems.iter().filter(|p| p.outcome_unknown()).count() == 1);
    }

    #[test]
    fn a_foreign_status_says_nothing_of_the_outcome() {
        for code in
            [Code::Unknown, Code::Unavailable, Code::Cancelled, Code::Internal, Code::DeadlineExceeded]
        {
            assert!(
                Problem::from_status(&Status::new(code, "transport error")).outcome_unknown(),
                "{code:?}"
            );
        }
    }

    #[test]
    fn every_rejection_has_a_reason_of_ours() {
        for rejection in Rejection::ALL {
            assert!(
                !matches!(Problem::from_status(&rejected(rejection)), Problem::Transport { .. }),
                "{rejection:?}"
            );
        }
    }

    #[test]
    fn details_fit_into_headers() {
        let field = || InvalidField {
            path: "parts[0].operations[0].launch.spec.env[\"x\"]".repeat(2),
            reason: "r".repeat(120),
        };
        let error =
            Malformed::Invalid { fields: (0..VIOLATIONS_MAX).map(|_| field()).collect(), more: 9_980 };
        let status = malformed(&error);
        assert!(status.details().len() < 4_096, "{}", status.details().len());
        assert!(status.message().contains("9999 more"), "{}", status.message());
    }
}
