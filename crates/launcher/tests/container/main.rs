//! Containers seen from inside and out. The Linux ones need root and say so when they cannot run.
//!
//! What a task must not be able to do, and where that is looked at:
//! ```text
//! another user, groups, capabilities, new privileges   a_task_sees_only_what_it_may
//! /proc/1, host processes, descriptors above 2         a_task_sees_only_what_it_may
//! /run, /home, /root, /var/tmp, cgroupfs, writing      a_task_sees_only_what_it_may
//! connect() to a host socket, in /run and elsewhere    a_host_socket_cannot_be_reached
//! to undo all that in namespaces of its own            own_namespaces_uncover_nothing
//! core_pattern, sysrq, mounts, init, as user 0         user_0_meets_masks
//! the host's /dev/null, as user 0                      no_inherited_descriptor_leads_to_the_host
//! the host's keys                                      keys_of_the_host_are_out_of_reach
//! a working directory of /proc/self/fd/N               exit_codes_signals_and_exec_failures_are_told_apart
//! to be spared by the out-of-memory killer             a_task_is_not_spared_with_its_supervisor
//! more processes than allowed                          the_payload_starts_in_its_v1_groups
//! to outlive SIGKILL                                   sigterm_reaches_every_process_and_sigkill_ends_the_tree
//! ```

#![allow(unsafe_code, reason = "probes are system calls that nobody wraps")]

mod harness;
mod inside;
mod joined;
mod user_namespace;
