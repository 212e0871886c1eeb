//! When a check is due, and what its results mean.

use std::time::{Duration, Instant};

use proffer_wire::supervisor::v1::{Check, CheckKind, CheckResult, check};

use crate::probe::Probe;

/// The longest name of a gRPC service that is asked about, and path that is asked for.
const SERVICE_MAX: usize = 120;
const PATH_MAX: usize = 2048;

/// One check of one launch.
pub(crate) struct Watch {
    launch_id: u64,
    kind: CheckKind,
    pub(crate) probe: Probe,
    delay: Duration,
    interval: Duration,
    pub(crate) timeout: Duration,
    grace: Duration,
    failures: u32,
    /// When failures begin to count; absent before the start, and a clock cannot tell all of them.
    counts_from: Option<Instant>,
    /// When the next try is due; none is while one is under way.
    pub(crate) next: Option<Instant>,
    /// The try that is under way: its number, and when its time is over.
    pub(crate) running: Option<(u64, Instant)>,
    succeeded: bool,
    failed: u32,
    stopped: bool,
    /// What was told last.
    pub(crate) last: Option<CheckResult>,
}

/// What a result means.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// To be told.
    pub(crate) tell: Option<CheckResult>,
    /// The launch is to be ended.
    pub(crate) kill: bool,
}

impl Watch {
    /// Checks the numbers; the error is a sentence for `Refused`.
    pub(crate) fn parse(launch_id: u64, check: &Check) -> Result<Self, String> {
        let kind = check.kind();
        let what = match kind {
            CheckKind::Health => "the health check",
            CheckKind::Readiness => "the readiness check",
            CheckKind::Unspecified => return Err("a check of a kind not known here".into()),
        };
        if check.interval_ms == 0 || check.timeout_ms == 0 {
            return Err(format!("{what} has no interval or no timeout"));
        }
        if kind == CheckKind::Health && check.failures == 0 {
            return Err(format!("{what} ends the task after no failure at all"));
        }
        let port = |port: u32| match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{what} goes to port {port}")),
        };
        let probe = match &check.probe {
            Some(check::Probe::Command(command)) if !command.argv.is_empty() => {
                Probe::Command(command.argv.clone())
            }
            Some(check::Probe::Tcp(tcp)) => Probe::tcp(port(tcp.port)?),
            Some(check::Probe::Http(http)) => {
                let plain = http.path.bytes().all(|byte| byte > b' ' && byte < 0x7f);
                if !http.path.starts_with('/') || !plain || http.path.len() > PATH_MAX {
                    return Err(format!("{what} asks for {:?}, which is no path", http.path));
                }
                Probe::http(port(http.port)?, &http.path)
            }
            Some(check::Probe::Grpc(grpc)) if grpc.service.len() <= SERVICE_MAX => {
                Probe::grpc(port(grpc.port)?, &grpc.service)
            }
            Some(check::Probe::Grpc(_)) => {
                return Err(format!("{what} names a service of over {SERVICE_MAX} bytes"));
            }
            Some(check::Probe::Command(_)) | None => return Err(format!("{what} tries nothing")),
        };
        Ok(Watch {
            launch_id,
            kind,
            probe,
            delay: Duration::from_millis(check.delay_ms),
            interval: Duration::from_millis(check.interval_ms),
            timeout: Duration::from_millis(check.timeout_ms),
            grace: Duration::from_millis(check.grace_ms),
            failures: check.failures,
            counts_from: None,
            next: None,
            running: None,
            succeeded: false,
            failed: 0,
            stopped: false,
            last: None,
        })
    }

    pub(crate) fn kind(&self) -> CheckKind {
        self.kind
    }

    /// The program runs: the first try is due after the delay.
    pub(crate) fn start(&mut self, now: Instant) {
        self.next = now.checked_add(self.delay);
        self.counts_from = now.checked_add(self.grace);
    }

    /// Nothing more is tried; what is under way has no result.
    pub(crate) fn stop(&mut self) {
        self.next = None;
        self.running = None;
        self.stopped = true;
    }

    /// What it waits for next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.running.map(|(_, until)| until).or(self.next)
    }

    /// A try is under way.
    pub(crate) fn begun(&mut self, number: u64, now: Instant) {
        self.next = None;
        // A timeout that a clock cannot tell is none.
        let far = || now + Duration::from_secs(365 * 24 * 3600);
        self.running = Some((number, now.checked_add(self.timeout).unwrap_or_else(far)));
    }

    /// A try is over: with a sentence, it failed.
    pub(crate) fn over(&mut self, result: Result<(), String>, now: Instant) -> Outcome {
        self.running = None;
        if self.stopped {
            return Outcome::default();
        }
        self.next = now.checked_add(self.interval);
        let was_ok = self.last.as_ref().map(|last| last.ok);
        match result {
            Ok(()) => {
                self.succeeded = true;
                self.failed = 0;
                let tell = (was_ok != Some(true)).then(|| self.result(true, String::new()));
                self.told(tell, false)
            }
            Err(message) => {
                let health = self.kind == CheckKind::Health;
                if health && !self.succeeded && self.counts_from.is_none_or(|from| now < from) {
                    return Outcome::default();
                }
                self.failed = self.failed.saturating_add(1);
                let tell = (health || was_ok != Some(false)).then(|| self.result(false, message));
                self.told(tell, health && self.failed >= self.failures)
            }
        }
    }

    fn result(&self, ok: bool, message: String) -> CheckResult {
        let consecutive_failures = self.failed;
        CheckResult { launch_id: self.launch_id, kind: self.kind.into(), ok, consecutive_failures, message }
    }

    fn told(&mut self, tell: Option<CheckResult>, kill: bool) -> Outcome {
        if tell.is_some() {
            self.last.clone_from(&tell);
        }
        Outcome { tell, kill }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: CheckKind) -> Check {
        Check {
            kind: kind.into(),
            probe: Some(check::Probe::Tcp(check::Tcp { port: 1 })),
            delay_ms: 100,
            interval_ms: 10,
            timeout_ms: 50,
            grace_ms: 200,
            failures: 2,
        }
    }

    fn failed(watch: &mut Watch, at: Instant) -> (Option<(bool, u32)>, bool) {
        said(watch.over(Err("no".into()), at))
    }

    fn said(outcome: Outcome) -> (Option<(bool, u32)>, bool) {
        (outcome.tell.map(|told| (told.ok, told.consecutive_failures)), outcome.kill)
    }

    #[test]
    fn failures_count_after_the_grace_or_the_first_success() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut watch = Watch::parse(7, &check(CheckKind::Health)).expect("good");
        assert_eq!(watch.deadline(), None, "it does not run yet");
        watch.start(zero);
        assert_eq!(watch.deadline(), Some(at(100)));
        watch.begun(1, at(100));
        assert_eq!(watch.deadline(), Some(at(150)));
        assert_eq!(failed(&mut watch, at(110)), (None, false));
        assert_eq!(watch.deadline(), Some(at(120)));
        assert_eq!(failed(&mut watch, at(200)), (Some((false, 1)), false));
        assert_eq!(failed(&mut watch, at(210)), (Some((false, 2)), true));
        watch.stop();
        assert_eq!((failed(&mut watch, at(220)), watch.deadline()), ((None, false), None));

        let mut watch = Watch::parse(7, &check(CheckKind::Health)).expect("good");
        watch.start(zero);
        assert_eq!(said(watch.over(Ok(()), at(100))), (Some((true, 0)), false));
        assert_eq!(said(watch.over(Ok(()), at(105))), (None, false), "nothing new");
        assert_eq!(failed(&mut watch, at(110)), (Some((false, 1)), false), "within the grace");
        assert_eq!(said(watch.over(Ok(()), at(120))), (Some((true, 0)), false), "it has recovered");
        assert_eq!(failed(&mut watch, at(130)), (Some((false, 1)), false));
        assert_eq!(failed(&mut watch, at(140)), (Some((false, 2)), true));
    }

    #[test]
    fn readiness_tells_changes_and_ends_nothing() {
        let zero = Instant::now();
        let mut watch = Watch::parse(7, &check(CheckKind::Readiness)).expect("good");
        watch.start(zero);
        assert_eq!(failed(&mut watch, zero), (Some((false, 1)), false));
        for _ in 0..9 {
            assert_eq!(failed(&mut watch, zero), (None, false));
        }
        assert_eq!(said(watch.over(Ok(()), zero)), (Some((true, 0)), false));
        assert_eq!(said(watch.over(Ok(()), zero)), (None, false));
        assert_eq!(failed(&mut watch, zero), (Some((false, 1)), false));
    }

    #[test]
    fn a_check_that_makes_no_sense_is_refused() {
        let refused = |change: &dyn Fn(&mut Check), part: &str| {
            let mut check = check(CheckKind::Health);
            change(&mut check);
            let Err(reason) = Watch::parse(1, &check) else { panic!("not refused: {part}") };
            assert!(reason.contains(part), "{reason}");
        };
        refused(&|check| check.kind = 0, "kind");
        refused(&|check| check.interval_ms = 0, "interval");
        refused(&|check| check.timeout_ms = 0, "timeout");
        refused(&|check| check.failures = 0, "no failure");
        refused(&|check| check.probe = None, "nothing");
        refused(
            &|check| check.probe = Some(check::Probe::Command(check::Command { argv: vec![] })),
            "nothing",
        );
        refused(&|check| check.probe = Some(check::Probe::Tcp(check::Tcp { port: 0 })), "port 0");
        refused(&|check| check.probe = Some(check::Probe::Tcp(check::Tcp { port: 65536 })), "port 65536");
        for path in ["", "x", "/a b", "/a\r\nHost: b", "/\u{e4}"] {
            let path = path.to_owned();
            refused(
                &move |check| {
                    check.probe = Some(check::Probe::Http(check::Http { port: 1, path: path.clone() }));
                },
                "no path",
            );
        }
        let service = "x".repeat(SERVICE_MAX + 1);
        refused(
            &move |check| {
                check.probe = Some(check::Probe::Grpc(check::Grpc { port: 1, service: service.clone() }));
            },
            "service",
        );
    }
}
