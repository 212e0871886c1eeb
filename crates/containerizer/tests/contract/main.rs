//! What every containerizer promises, asked of all of them; and what only the Linux one can.
//!
//! The real ones need the program `proffer-executor` (`cargo build -p proffer-executor`), beside the test binary's
//! directory or named by PROFFER_EXECUTOR.

mod asked;
mod bench;
mod first_release;
mod leftovers;
mod linux;
mod promises;
mod silence;
mod supervision;
