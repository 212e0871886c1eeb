//! Removing everything an agent made, for an agent that shall never come back.

use std::time::{Duration, Instant};

use super::confine::Confinement;
use super::supervisor::pin;
use super::{confinement, dirs};
use crate::{Error, Options};

/// Ends every container and supervisor of the agent that `options` describe, removes its cgroups and its runtime
/// directory, and leaves the work directory alone. Waits, at most `within`; no containerizer may be open on the same
/// options.
pub fn remove_all(options: &Options, within: Duration) -> Result<(), Error> {
    let dirs = dirs(options)?;
    let confinement = confinement(options, &dirs, false)?;
    let deadline = Instant::now() + within;
    let late = |operation| Error::System { operation, source: std::io::ErrorKind::TimedOut.into() };

    // Supervisors first: they cannot start anything any more.
    let instances = dirs.instances();
    let supervisors: Vec<_> =
        instances.iter().filter_map(|&instance| dirs.living(instance).and_then(pin)).collect();
    for supervisor in &supervisors {
        let _ = rustix::process::pidfd_send_signal(supervisor, rustix::process::Signal::KILL);
    }
    let mut launches = confinement.launches();
    if let Confinement::Nothing(_) = confinement {
        launches = instances.iter().flat_map(|&instance| dirs.recorded(instance)).collect();
    }
    loop {
        let mut left = launches.iter().filter(|&&launch| confinement.processes(launch) > 0).count();
        launches.iter().for_each(|&launch| confinement.kill(launch));
        if let Confinement::Cgroups(tree) = &confinement {
            tree.supervisors().kill()?;
            left += tree.supervisors().processes()?.len();
        }
        left += supervisors.iter().filter(|process| runs(process)).count();
        if left == 0 {
            break;
        }
        if Instant::now() >= deadline {
            return Err(late("wait for the last process of the containers"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    while launches.iter().any(|&launch| !confinement.remove(launch)) {
        if Instant::now() >= deadline {
            return Err(late("wait for the cgroups to be removable"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Confinement::Cgroups(tree) = &confinement {
        // The kernel holds a group busy for a moment after its last process.
        while let Err(error) = tree.remove() {
            if !is_busy(&error) || Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    instances.into_iter().for_each(|instance| dirs.remove_instance(instance));
    dirs.remove_runtime();
    Ok(())
}

fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Path { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy)
}

fn runs(process: &std::os::fd::OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}
