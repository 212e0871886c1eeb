//! Containers seen from inside and out. The Linux ones need root and say so when they cannot run.
//!
//! What a task must not be able to do, and where that is looked at:
//! ```text
//! another user, groups, capabilities, new privileges   inside::a_task_sees_only_what_it_may
//! /proc/1, host processes, descriptors above 2         inside::a_task_sees_only_what_it_may
//! /run, /home, /root, /var/tmp, cgroupfs, writing      inside::a_task_sees_only_what_it_may
//! connect() to a host socket, in /run and elsewhere    inside::a_host_socket_cannot_be_reached
//! to undo all that in namespaces of its own            inside::own_namespaces_uncover_nothing
//! core_pattern, sysrq, mounts, init, as user 0         inside::user_0_meets_masks
//! keys, interrupts, memory, firmware, power            inside::what_is_masked_is_empty_for_everyone
//! the host's /dev/null, as user 0                      inside::no_inherited_descriptor_leads_to_the_host
//! the host's keys                                      inside::keys_of_the_host_are_out_of_reach
//! to be spared by the out-of-memory killer             inside::a_task_is_not_spared_with_its_supervisor
//! more processes than allowed                          inside::the_payload_starts_in_its_v1_groups
//! to outlive SIGKILL                                   inside::sigterm_reaches_every_process_and_sigkill_ends_the_tree
//! system calls that it has no use for                  syscalls::the_default_filter_is_as_its_table_says
//! to be somebody on the host                           user_namespace::a_mapped_user_is_nobody_outside_and_owns_its_files
//! to trace and rob who joins it                        escape::who_joins_cannot_be_robbed_on_the_way
//! to overwrite the supervisor's program                escape::the_supervisors_program_cannot_be_written_to
//! /proc, /sys or /dev that are links                   escape::a_view_whose_places_are_links_is_not_built
//! to exchange directories under a launch               escape::a_neighbour_that_exchanges_directories_changes_no_launch
//! a working directory of /proc/self/fd/N               escape::no_descriptor_number_is_a_way_to_a_directory
//! a terminal that is not its own                       joined::a_terminal_is_the_containers_own
//! all terminals of the host                            joined::a_container_cannot_have_all_terminals
//! what the kernel counts by user                       user_namespace::what_one_takes_is_not_taken_from_others
//! the agent's and supervisor's sockets                 escape::the_control_socket_is_out_of_reach_for_everyone
//! anything of /proc, /sys, /dev open for writing       escape::nothing_of_the_host_can_be_opened_for_writing
//! capabilities, cgroupfs, masks swapped, /proc files,
//! holes of the kernel, devices, handles, set-user-id   escape::no_attempt_gets_out
//! ```
//! The escapes are tried as a user, as the host's user 0 and as users of a user namespace, each with the default filter
//! and without any.

#![allow(unsafe_code, reason = "probes are system calls that nobody wraps")]
#![allow(clippy::print_stdout, reason = "probes say what they found on standard output")]

mod escape;
mod harness;
mod inside;
mod joined;
mod probe;
mod syscalls;
mod user_namespace;
