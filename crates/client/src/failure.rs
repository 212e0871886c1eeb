//! What a gRPC status means for the core.

use std::error::Error as _;

use proffer_wire::InvalidField;
use proffer_wire::status::Problem;
use tonic::{Code, Status};

use crate::channel::chain;
use crate::core::{Failure, Refused, RefusedKind};

/// When to come back to a busy master that does not say when (milliseconds).
const RETRY_DEFAULT_MS: u64 = 500;

/// Why a framework may be completed; the protocol does not tell which it was.
pub(crate) const COMPLETED: &str = "it was torn down, or was away for longer than its failover timeout";

/// Sorts a status.
pub(crate) fn failure(status: &Status) -> Failure {
    let decided = |kind, reason: &str, message: String| {
        Failure::Refused(Refused { kind, reason: reason.into(), message })
    };
    match Problem::from_status(status) {
        Problem::NotLeader { leader } => {
            Failure::NotLeader { leader: leader.filter(|leader| !leader.is_empty()) }
        }
        Problem::OutcomeUnknown { .. } => Failure::OutcomeUnknown,
        Problem::Busy { retry_ms: 0, .. } => Failure::Busy { retry_after_ms: RETRY_DEFAULT_MS },
        Problem::Busy { retry_ms, .. } => Failure::Busy { retry_after_ms: retry_ms },
        Problem::SessionFenced => Failure::Fenced,
        Problem::FrameworkCompleted => Failure::Completed(COMPLETED.into()),
        Problem::InvalidOffer { message } => decided(RefusedKind::Precondition, "INVALID_OFFER", message),
        Problem::Invalid { fields, message } => {
            decided(RefusedKind::Invalid, "INVALID_FIELD", with_fields(message, fields))
        }
        Problem::Unsupported { message } => decided(RefusedKind::Unimplemented, "UNSUPPORTED", message),
        Problem::NotFound { reason, message } => decided(RefusedKind::NotFound, &reason, message),
        Problem::Denied { message } => decided(RefusedKind::Denied, "DENIED", message),
        Problem::Resync { .. } => Failure::Resync,
        problem @ Problem::Replaced => Failure::Transport(problem.to_string()),
        Problem::Refused { reason, message } => match kind(status.code()) {
            Some(kind) => decided(kind, &reason, message),
            None => Failure::Transport(message),
        },
        // A library's word for what is wrong with the call itself can be trusted: it was never executed. Its other
        // codes say that something failed on the way, and then nobody knows.
        Problem::Transport { .. } => match kind(status.code()) {
            Some(kind) => decided(kind, "", status.message().into()),
            None => Failure::Transport(transport_text(status)),
        },
    }
}

/// The sort of refusal that a code means; `None` if it decides nothing.
fn kind(code: Code) -> Option<RefusedKind> {
    match code {
        Code::InvalidArgument => Some(RefusedKind::Invalid),
        Code::NotFound => Some(RefusedKind::NotFound),
        Code::AlreadyExists => Some(RefusedKind::AlreadyExists),
        Code::FailedPrecondition | Code::Aborted => Some(RefusedKind::Precondition),
        Code::PermissionDenied | Code::Unauthenticated => Some(RefusedKind::Denied),
        Code::Unimplemented => Some(RefusedKind::Unimplemented),
        Code::OutOfRange | Code::ResourceExhausted => Some(RefusedKind::OutOfRange),
        Code::Ok
        | Code::Unknown
        | Code::Unavailable
        | Code::Cancelled
        | Code::Internal
        | Code::DeadlineExceeded
        | Code::DataLoss => None,
    }
}

fn with_fields(mut message: String, fields: Vec<InvalidField>) -> String {
    for field in fields {
        let text = field.to_string();
        if !message.contains(&text) {
            message = format!("{message}; {text}");
        }
    }
    message
}

fn transport_text(status: &Status) -> String {
    match status.source() {
        Some(source) => chain(source),
        None => status.message().into(),
    }
}
