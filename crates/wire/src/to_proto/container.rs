//! What a task asks of its container, and what watches it there. Requests and the log share these messages.

use proffer_types::Ranges;
use proffer_types::container::{Burst, Check, Container, HealthCheck, Io, Probe, ProbePort, UserNamespace};

use crate::common::v1 as pb;

/// A container; `None` for the default one.
pub(crate) fn container(given: &Container) -> Option<pb::Container> {
    if *given == Container::default() {
        return None;
    }
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    let seccomp = pb::Seccomp { profile: given.seccomp.profile.clone(), also: given.seccomp.also.clone() };
    Some(pb::Container {
        working_directory: given.working_directory.clone(),
        hostname: given.hostname.clone(),
        terminal: given.terminal,
        seccomp: (seccomp != pb::Seccomp::default()).then_some(seccomp),
        users: match given.users {
            UserNamespace::Default => pb::UserNamespace::Unspecified,
            UserNamespace::Private => pb::UserNamespace::Private,
            UserNamespace::Host => pb::UserNamespace::Host,
        }
        .into(),
        rlimits: given
            .rlimits
            .iter()
            .map(|(kind, value)| pb::Rlimit {
                kind: kind.name().into(),
                soft: finite(value.soft),
                hard: value.hard,
            })
            .collect(),
        cpuset: (!given.cpuset.is_empty()).then(|| ranges(&given.cpuset)),
        io: (given.io != Io::default()).then(|| io(&given.io)),
        hugetlb: given.hugetlb.clone(),
    })
}

fn ranges(given: &Ranges) -> pb::Ranges {
    pb::Ranges { ranges: given.iter().map(|(first, last)| pb::Range { first, last }).collect() }
}

fn io(given: &Io) -> pb::Io {
    let limits = given.limits.iter().map(|(device, limit)| pb::IoLimit {
        device: device.clone(),
        read_bytes: limit.read_bytes,
        write_bytes: limit.write_bytes,
        read_ops: limit.read_ops,
        write_ops: limit.write_ops,
    });
    pb::Io { weight: given.weight, limits: limits.collect() }
}

/// What may be used above what is held; `None` for nothing.
pub(crate) fn burst(given: Burst) -> Option<pb::Burst> {
    (given != Burst::default()).then_some(pb::Burst { cpus: given.cpus_milli, mem: given.memory_bytes })
}

/// A check with everything filled in.
pub(crate) fn check(given: &Check) -> pb::Check {
    use pb::check::Probe as Wire;
    let probe = match &given.probe {
        Probe::Command(argv) => Wire::Command(pb::CommandProbe { argv: argv.clone() }),
        Probe::Http { port, path } => {
            Wire::Http(pb::HttpProbe { port: probe_port(*port), path: path.clone() })
        }
        Probe::Tcp { port } => Wire::Tcp(pb::TcpProbe { port: probe_port(*port) }),
        Probe::Grpc { port, service } => {
            Wire::Grpc(pb::GrpcProbe { port: probe_port(*port), service: service.clone() })
        }
    };
    pb::Check {
        probe: Some(probe),
        delay_ms: Some(given.delay_ms),
        interval_ms: Some(given.interval_ms),
        timeout_ms: Some(given.timeout_ms),
    }
}

fn probe_port(given: ProbePort) -> Option<pb::ProbePort> {
    use pb::probe_port::Port;
    let port = match given {
        ProbePort::Number(number) => Port::Number(number.into()),
        ProbePort::Index(index) => Port::Index(index),
    };
    Some(pb::ProbePort { port: Some(port) })
}

/// A health check with everything filled in.
pub(crate) fn health_check(given: &HealthCheck) -> pb::HealthCheck {
    pb::HealthCheck {
        check: Some(check(&given.check)),
        grace_ms: Some(given.grace_ms),
        failures: Some(given.failures),
    }
}
