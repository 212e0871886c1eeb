//! Ctrl-C: what is asked for is noted, so that whoever waits can end its own processes first.

// Installing a signal handler has no safe form; blocking the signals instead would be inherited by every child.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// Notes SIGINT, SIGTERM and SIGHUP from now on instead of ending at once.
pub(crate) fn catch() {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is safe in a signal handler.
        let installed = unsafe { sigaction(signal, &action) };
        installed.expect("these signals can be caught");
    }
}

/// Whether somebody asked for an end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
