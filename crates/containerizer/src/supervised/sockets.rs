//! Unix sockets of the host that are bound after a supervisor has built the view of its containers.
//!
//! A read-only mount does not keep anyone from connecting, so that view covers every place where a socket is bound when
//! it is built. What is bound later, elsewhere, a container can reach. It is therefore looked for such sockets now and
//! then, and the next launches go to a new supervisor with a new view. Containers that run keep the view they have.

use std::time::Instant;

use super::engine::Engine;
use super::supervisor::Supervisor;
use crate::{Error, InstanceId, Isolation};

impl Engine {
    /// Writes down what a supervisor that is about to start is going to find, or more.
    pub(super) fn note_sockets(&self, instance: InstanceId) -> Result<(), Error> {
        match self.options.isolation {
            Isolation::Linux => self.dirs.write_seen(instance, &proffer_launcher::socket_places()),
            Isolation::Process => Ok(()),
        }
    }

    /// When it is to be looked again.
    pub(super) fn look_due(&self) -> Option<Instant> {
        let linux = self.options.isolation == Isolation::Linux;
        (linux && self.supervisors.values().any(Supervisor::is_up)).then_some(self.look_at)
    }

    pub(super) fn look_for_sockets(&mut self) {
        self.look_at = Instant::now() + self.options.socket_look;
        let places = proffer_launcher::socket_places();
        let current: Vec<InstanceId> = self.shared.current().values().copied().collect();
        for instance in current {
            let Some(supervisor) = self.supervisors.get_mut(&instance).filter(|other| other.is_up()) else {
                continue;
            };
            let seen = supervisor.seen.get_or_insert_with(|| self.dirs.read_seen(instance));
            let Some(new) = places.difference(seen).next() else { continue };
            tracing::info!(%instance, socket = %new.display(), "a socket is new: the next tasks get a new supervisor");
            // It ends when its last launch is forgotten and it has been idle for a while.
            self.shared.current().retain(|_, current| *current != instance);
        }
    }
}
