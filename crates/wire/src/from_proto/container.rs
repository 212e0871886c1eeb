//! What a task asks of its container, and what watches it there. Requests and the log share these messages: reading
//! one refuses only what has no meaning, so that what was once written is readable for ever. What a request may ask
//! for is checked apart, by [`permitted`].

use std::collections::BTreeMap;

use proffer_types::container::{
    Burst, Check, Container, HealthCheck, Io, IoLimit, Probe, ProbePort, Rlimit, RlimitValue, Seccomp,
    UserNamespace,
};
use proffer_types::limits::{
    CHECK_DELAY_MS, CHECK_FAILURES, CHECK_GRACE_MS, CHECK_INTERVAL_MS, CHECK_PERIOD_MIN_MS, CHECK_TIMEOUT_MS,
    DURATION_MAX_MS, SECCOMP_BYTES_MAX,
};
use proffer_types::{Ranges, TaskSpec, names};

use crate::common::v1 as pb;
use crate::malformed::{Path, Problems};

/// Reads a container; the default one if there is none.
pub(crate) fn container(
    given: Option<pb::Container>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Container> {
    let Some(given) = given else { return Some(Container::default()) };
    let users = match UserNamespace::from_number(given.users) {
        Some(users) => users,
        None => return problems.invalid(at.field("users"), format_args!("{} is not known", given.users)),
    };
    let mut rlimits = BTreeMap::new();
    for (i, rlimit) in given.rlimits.into_iter().enumerate() {
        let (kind, value) = self::rlimit(&rlimit, &at.item("rlimits", i), problems)?;
        if rlimits.insert(kind, value).is_some() {
            return problems.invalid(at.item("rlimits", i), format_args!("{kind} is there twice"));
        }
    }
    let bounds = given.cpuset.into_iter().flat_map(|set| set.ranges).map(|range| (range.first, range.last));
    let cpuset = match Ranges::new("cpuset", bounds) {
        Ok(cpuset) => cpuset,
        Err(error) => return problems.invalid(at.field("cpuset"), error),
    };
    let seccomp = given.seccomp.unwrap_or_default();
    Some(Container {
        working_directory: given.working_directory,
        hostname: given.hostname,
        terminal: given.terminal,
        seccomp: Seccomp { profile: seccomp.profile, also: seccomp.also },
        users,
        rlimits,
        cpuset,
        io: io(given.io.unwrap_or_default(), &at.field("io"), problems)?,
        hugetlb: given.hugetlb,
    })
}

fn rlimit(given: &pb::Rlimit, at: &Path<'_>, problems: &mut Problems) -> Option<(Rlimit, RlimitValue)> {
    let Some(kind) = Rlimit::ALL.iter().copied().find(|kind| kind.name() == given.kind) else {
        return problems.invalid(at.field("kind"), format_args!("{:?} is not a resource limit", given.kind));
    };
    Some((kind, RlimitValue { soft: given.soft.unwrap_or(u64::MAX), hard: given.hard }))
}

fn io(given: pb::Io, at: &Path<'_>, problems: &mut Problems) -> Option<Io> {
    let mut limits = BTreeMap::new();
    for (i, limit) in given.limits.into_iter().enumerate() {
        let of = IoLimit {
            read_bytes: limit.read_bytes,
            write_bytes: limit.write_bytes,
            read_ops: limit.read_ops,
            write_ops: limit.write_ops,
        };
        if limits.insert(limit.device, of).is_some() {
            return problems.invalid(at.item("limits", i), "the device is there twice");
        }
    }
    Some(Io { weight: given.weight, limits })
}

/// Reads what may be used above what is held.
pub(crate) fn burst(given: Option<pb::Burst>) -> Burst {
    given.map_or_else(Burst::default, |given| Burst { cpus_milli: given.cpus, memory_bytes: given.mem })
}

/// Reads a check.
pub(crate) fn check(given: pb::Check, at: &Path<'_>, problems: &mut Problems) -> Option<Check> {
    use pb::check::Probe as Wire;
    let probe = match given.probe {
        None => return problems.invalid(*at, "must say what is tried: command, http, tcp or grpc"),
        Some(Wire::Command(command)) => Probe::Command(command.argv),
        Some(Wire::Http(http)) => {
            let path = if http.path.is_empty() { "/".to_owned() } else { http.path };
            Probe::Http { port: probe_port(http.port, at.field("http").field("port"), problems)?, path }
        }
        Some(Wire::Tcp(tcp)) => {
            Probe::Tcp { port: probe_port(tcp.port, at.field("tcp").field("port"), problems)? }
        }
        Some(Wire::Grpc(grpc)) => Probe::Grpc {
            port: probe_port(grpc.port, at.field("grpc").field("port"), problems)?,
            service: grpc.service,
        },
    };
    Some(Check {
        probe,
        delay_ms: given.delay_ms.unwrap_or(CHECK_DELAY_MS),
        interval_ms: given.interval_ms.unwrap_or(CHECK_INTERVAL_MS),
        timeout_ms: given.timeout_ms.unwrap_or(CHECK_TIMEOUT_MS),
    })
}

fn probe_port(given: Option<pb::ProbePort>, at: Path<'_>, problems: &mut Problems) -> Option<ProbePort> {
    use pb::probe_port::Port;
    match given.and_then(|given| given.port) {
        None => problems.invalid(at, "must say where: number or index"),
        Some(Port::Index(index)) => Some(ProbePort::Index(index)),
        Some(Port::Number(number)) => match u16::try_from(number) {
            Ok(number) if number > 0 => Some(ProbePort::Number(number)),
            _ => problems.invalid(at.field("number"), "must be 1 to 65535"),
        },
    }
}

/// Reads a health check.
pub(crate) fn health_check(
    given: pb::HealthCheck,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<HealthCheck> {
    let Some(of) = given.check else { return problems.invalid(at.field("check"), "must be given") };
    Some(HealthCheck {
        check: check(of, &at.field("check"), problems)?,
        grace_ms: given.grace_ms.unwrap_or(CHECK_GRACE_MS),
        failures: given.failures.unwrap_or(CHECK_FAILURES),
    })
}

/// Says what of a spec's container and checks a request may not ask for.
pub(crate) fn permitted(spec: &TaskSpec, at: &Path<'_>, problems: &mut Problems) -> Option<()> {
    let container = permitted_container(&spec.container, &at.field("container"), problems);
    let burst = permitted_burst(spec, &at.field("burst"), problems);
    let mut checks = Some(());
    if let Some(health) = &spec.health {
        let at = at.field("health_check");
        let check = permitted_check(&health.check, spec, &at.field("check"), problems);
        let grace = duration(health.grace_ms, 0, at.field("grace_ms"), problems);
        checks = check.and(grace);
        if health.failures == 0 {
            checks = problems.invalid(at.field("failures"), "must be at least 1");
        }
    }
    if let Some(readiness) = &spec.readiness {
        let check = permitted_check(readiness, spec, &at.field("readiness_check"), problems);
        checks = checks.and(check);
    }
    let completion = duration(spec.max_completion_ms, 0, at.field("max_completion_ms"), problems);
    container.and(burst).and(checks).and(completion)
}

fn permitted_container(given: &Container, at: &Path<'_>, problems: &mut Problems) -> Option<()> {
    let mut good = Some(());
    if given.working_directory.contains('\0') {
        good = problems.invalid(at.field("working_directory"), "contains a NUL byte");
    }
    if given.working_directory.len() > 4095 {
        good = problems.invalid(at.field("working_directory"), "is longer than 4095 bytes");
    }
    // What sethostname(2) takes, and nothing that a prompt or a log would misread.
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if given.hostname.len() > 64 || !given.hostname.chars().all(letter) {
        good = problems.invalid(at.field("hostname"), "must be at most 64 letters, digits, `-` and `.`");
    }
    let seccomp = at.field("seccomp");
    if !given.seccomp.profile.is_empty()
        && let Err(error) = names::check_name(&given.seccomp.profile)
    {
        good = problems.invalid(seccomp.field("profile"), error);
    }
    if given.seccomp.also.len() > SECCOMP_BYTES_MAX {
        good =
            problems.invalid(seccomp.field("also"), format_args!("is longer than {SECCOMP_BYTES_MAX} bytes"));
    }
    for (i, (kind, value)) in given.rlimits.iter().enumerate() {
        if value.hard.is_some_and(|hard| hard < value.soft) {
            good = problems.invalid(at.item("rlimits", i), format_args!("{kind}: soft is above hard"));
        }
    }
    if given.io.weight > 10_000 {
        good = problems.invalid(at.field("io").field("weight"), "must be 0 to 10000");
    }
    for (i, device) in given.io.limits.keys().enumerate() {
        let number = |text: &str| text.parse::<u32>().is_ok() && text.bytes().all(|b| b.is_ascii_digit());
        if !device.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor)) {
            let at = at.field("io");
            good = problems.invalid(at.item("limits", i), format_args!("{device:?} is not MAJOR:MINOR"));
        }
    }
    for (i, size) in given.hugetlb.keys().enumerate() {
        if !size.is_power_of_two() {
            good = problems.invalid(at.item("hugetlb", i), format_args!("{size} is not the size of a page"));
        }
    }
    good
}

fn permitted_burst(spec: &TaskSpec, at: &Path<'_>, problems: &mut Problems) -> Option<()> {
    let below = |limit: Option<u64>, held: u64| limit.is_some_and(|limit| limit > 0 && limit < held);
    let mut good = Some(());
    if below(spec.burst.cpus_milli, spec.resources.cpus_milli()) {
        good = problems.invalid(at.field("cpus"), "is less than the task holds");
    }
    if below(spec.burst.memory_bytes, spec.resources.memory_bytes()) {
        good = problems.invalid(at.field("mem"), "is less than the task holds");
    }
    good
}

fn permitted_check(given: &Check, spec: &TaskSpec, at: &Path<'_>, problems: &mut Problems) -> Option<()> {
    let mut good = duration(given.delay_ms, 0, at.field("delay_ms"), problems);
    for (name, value) in [("interval_ms", given.interval_ms), ("timeout_ms", given.timeout_ms)] {
        let period = duration(value, CHECK_PERIOD_MIN_MS, at.field(name), problems);
        good = good.and(period);
    }
    let (port, text) = match &given.probe {
        Probe::Command(argv) => {
            let at = at.field("command");
            super::tasks::argv(argv.clone(), &at, problems)?;
            return good;
        }
        Probe::Http { port, path } => (*port, path.as_str()),
        Probe::Tcp { port } => (*port, ""),
        Probe::Grpc { port, service } => (*port, service.as_str()),
    };
    // The path goes into a request line.
    if text.chars().any(|c| c.is_control() || c == ' ') || text.len() > 2048 {
        good = problems.invalid(*at, "path or service has a space, a control character or over 2048 bytes");
    }
    if matches!(&given.probe, Probe::Http { path, .. } if !path.starts_with('/')) {
        good = problems.invalid(at.field("http").field("path"), "must begin with `/`");
    }
    if let ProbePort::Index(index) = port {
        let entries = spec.resources.entries();
        let ports: u64 = entries.iter().map(|entry| entry.quantities.ports().count()).sum();
        if u64::from(index) >= ports {
            good = problems.invalid(*at, format_args!("port {index} is asked about, the task holds {ports}"));
        }
    }
    good
}

fn duration(ms: u64, least: u64, at: Path<'_>, problems: &mut Problems) -> Option<()> {
    if (least..=DURATION_MAX_MS).contains(&ms) {
        return Some(());
    }
    problems.invalid(at, format_args!("must be {least} to {DURATION_MAX_MS}"))
}
