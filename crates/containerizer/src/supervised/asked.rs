//! What a task asks of its container beyond cgroups and users, checked and as the supervisor takes it.

use std::path::Path;

use proffer_types::container::{Rlimit, RlimitValue, UserNamespace};
use proffer_wire::supervisor::v1::{Limit, LimitKind};
use prost::bytes::Bytes;

use super::SANDBOX_INSIDE;
use super::confine::not_contained;
use crate::{ContainerSpec, Error, Isolation, Options};

/// Parts of the message to the supervisor.
pub(super) struct Asked {
    pub(super) limits: Vec<Limit>,
    pub(super) seccomp: Vec<Bytes>,
    pub(super) working_directory: String,
}

/// Checks it; what cannot be had is refused, by its field. `sandbox` is where a plain process finds its own.
pub(super) fn check(spec: &ContainerSpec, options: &Options, sandbox: &Path) -> Result<Asked, Error> {
    let container = &spec.container;
    let limits = container.rlimits.iter().map(|(kind, value)| limit(*kind, *value));
    let limits = limits.collect::<Result<_, _>>()?;
    if options.isolation == Isolation::Process {
        let asks = [
            (container.seccomp != Default::default(), "container.seccomp"),
            (container.users == UserNamespace::Private, "container.users"),
            (!container.hostname.is_empty(), "container.hostname"),
            (spec.burst != Default::default(), "burst"),
        ];
        if let Some((_, field)) = asks.into_iter().find(|(asks, _)| *asks) {
            return Err(not_contained(field));
        }
    }
    let wanted = Path::new(&container.working_directory);
    let working_directory = match options.isolation {
        _ if wanted.as_os_str().is_empty() || wanted.is_absolute() => wanted.to_owned(),
        Isolation::Linux => Path::new(SANDBOX_INSIDE).join(wanted),
        Isolation::Process => sandbox.join(wanted),
    };
    Ok(Asked {
        limits,
        seccomp: options.seccomp.programs(&container.seccomp)?,
        working_directory: working_directory.to_string_lossy().into_owned(),
    })
}

fn limit(kind: Rlimit, value: RlimitValue) -> Result<Limit, Error> {
    let (number, wire) = match kind {
        Rlimit::Core => (libc::RLIMIT_CORE, LimitKind::Core),
        Rlimit::Cpu => (libc::RLIMIT_CPU, LimitKind::Cpu),
        Rlimit::Data => (libc::RLIMIT_DATA, LimitKind::Data),
        Rlimit::Fsize => (libc::RLIMIT_FSIZE, LimitKind::Fsize),
        Rlimit::Memlock => (libc::RLIMIT_MEMLOCK, LimitKind::Memlock),
        Rlimit::Nofile => (libc::RLIMIT_NOFILE, LimitKind::Nofile),
        Rlimit::Nproc => (libc::RLIMIT_NPROC, LimitKind::Nproc),
        Rlimit::Stack => (libc::RLIMIT_STACK, LimitKind::Stack),
    };
    let refused = |why: String| Error::Refused { field: format!("container.rlimits[{}]", kind.name()), why };
    // The supervisor has the agent's own, and may be unable to raise them.
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `own` is written by the call.
    if unsafe { libc::getrlimit64(number, &mut own) } == -1 {
        return Err(refused(std::io::Error::last_os_error().to_string()));
    }
    let highest = value.soft.max(value.hard.unwrap_or(value.soft));
    if highest > own.rlim_max {
        return Err(refused(format!("{highest} is above this agent's own hard limit of {}", own.rlim_max)));
    }
    if value.hard.is_some_and(|hard| hard < value.soft) {
        return Err(refused(format!("the soft limit {} is above the hard one", value.soft)));
    }
    Ok(Limit { kind: wire.into(), soft: value.soft, hard: value.hard })
}
