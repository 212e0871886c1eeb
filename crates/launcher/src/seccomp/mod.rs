//! Which system calls a payload may make.
//!
//! A [`Profile`] says it by name; [`Profile::compile`] makes of it a [`Program`] for the kernel, before anything is
//! cloned. The profile of [`Profile::default`] is every Linux container's unless its task names another. Programs
//! add up: the strictest answer of all that are installed counts, so that a second one can only tighten.

mod assemble;
mod json;
mod table;

use std::collections::BTreeMap;

use table::Named;

pub use json::ProfileError;

/// The most instructions that the kernel takes in one program.
pub const INSTRUCTIONS_MAX: usize = 4096;
/// The most programs of one payload: each is run for every call that it does not always allow.
pub const PROGRAMS_MAX: usize = 4;

const KILL_PROCESS: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// What a call is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made, and logged by the kernel.
    Log,
    /// It fails with this error number and is not made.
    Errno(u16),
    /// SIGSYS.
    Trap,
    /// The calling thread ends.
    KillThread,
    /// The whole process ends.
    KillProcess,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Log => libc::SECCOMP_RET_LOG,
            Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Action::Trap => libc::SECCOMP_RET_TRAP,
            Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Action::KillProcess => KILL_PROCESS,
        }
    }
}

/// How an argument is compared with a condition's value, as 64-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal after this mask.
    Masked(u64),
    /// Any bit of the value is set.
    AnyBit,
}

/// One condition on one argument, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) argument: u8,
    pub(crate) comparison: Comparison,
    pub(crate) value: u64,
}

/// What happens to some calls.
#[derive(Clone, Debug)]
struct Rule {
    numbers: Vec<u32>,
    action: Action,
    /// All must hold.
    conditions: Vec<Condition>,
}

/// What happens to each call. Of several rules for one call the first counts whose conditions hold.
///
/// Calls of another architecture (32-bit ones on a 64-bit machine, x32) always kill the process.
#[derive(Clone, Debug)]
pub struct Profile {
    otherwise: Action,
    /// For numbers beyond the table of names.
    unknown: Action,
    rules: Vec<Rule>,
}

/// A compiled profile.
#[derive(Clone, Debug)]
pub struct Program(Vec<libc::sock_filter>);

/// Why bytes are no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Not a whole number of instructions, or none.
    #[error("{0} bytes are not one or more instructions of 8 bytes")]
    Length(usize),
    /// More than the kernel takes.
    #[error("{0} instructions exceed the {INSTRUCTIONS_MAX} of a filter")]
    TooLong(usize),
}

/// The namespaces of clone(2) and unshare(2). With a user namespace of its own any process has all capabilities
/// within, and most holes of the kernel that lead out of containers begin there (CVE-2022-0185).
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// CLONE_NEWTIME, which clone(2) reads as part of the exit signal.
const NEW_TIME: u64 = 0x80;

/// What no task needs and the kernel's history of holes advises against, or what reaches beyond the container whatever
/// the capabilities. Most would be refused without capabilities anyway: a hole in front of that check is what
/// this closes.
const DENIED: &str = "\
    acct add_key bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init fanotify_mark \
    finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register \
    io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages modify_ldt mount \
    mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open \
    pidfd_getfd pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot \
    request_key setdomainname sethostname setns settimeofday swapoff swapon syslog sysfs _sysctl umount2 uselib \
    userfaultfd ustat vhangup vserver";

/// Address families that a task may open sockets of. Any other has no user in a container and a past (AF_ALG, AF_PACKET
/// CVE-2020-14386), or leads past namespaces to the host (AF_VSOCK).
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// What personality(2) may be asked for: to be told, Linux, Linux on 32 bits, each with an old version number. The others
/// weaken address randomisation or map page 0.
const PERSONALITIES: [u64; 5] = [0xffff_ffff, 0, 8, 0x2_0000, 0x2_0008];

impl Default for Profile {
    /// Denies what is listed in this file with EPERM; namespaces with EPERM; clone3, whose flags a filter cannot see,
    /// with ENOSYS, at which C libraries fall back to clone; socket families but unix, IPv4, IPv6 and the routing
    /// netlink with EAFNOSUPPORT; calls that are newer than this table with ENOSYS; and allows the rest.
    fn default() -> Self {
        let denied = Action::Errno(libc::EPERM as u16);
        let mut profile = Profile {
            otherwise: Action::Allow,
            unknown: Action::Errno(libc::ENOSYS as u16),
            rules: Vec::new(),
        };
        let condition = |argument, comparison, value| Condition { argument, comparison, value };
        profile.rule(DENIED.split(' '), denied, Vec::new());
        profile.rule(["clone3"], Action::Errno(libc::ENOSYS as u16), Vec::new());
        profile.rule(["clone"], denied, vec![condition(0, Comparison::AnyBit, NEW_NAMESPACES)]);
        profile.rule(["unshare"], denied, vec![condition(0, Comparison::AnyBit, NEW_NAMESPACES | NEW_TIME)]);
        for family in FAMILIES {
            let equal = condition(0, Comparison::Equal, family as u64);
            profile.rule(["socket", "socketpair"], Action::Allow, vec![equal]);
        }
        // Protocol 0 is NETLINK_ROUTE, by which C libraries list addresses.
        let netlink = condition(0, Comparison::Equal, libc::AF_NETLINK as u64);
        let route = condition(2, Comparison::Equal, libc::NETLINK_ROUTE as u64);
        profile.rule(["socket"], Action::Allow, vec![netlink, route]);
        let unsupported = Action::Errno(libc::EAFNOSUPPORT as u16);
        profile.rule(["socket", "socketpair"], unsupported, Vec::new());
        for value in PERSONALITIES {
            profile.rule(["personality"], Action::Allow, vec![condition(0, Comparison::Equal, value)]);
        }
        profile.rule(["personality"], denied, Vec::new());
        profile
    }
}

impl Profile {
    /// Reads a profile in JSON. The format is the `linux.seccomp` of the OCI runtime specification and what Docker
    /// reads, without what asks somebody else at run time:
    ///
    /// | field | |
    /// |---|---|
    /// | `defaultAction`, `defaultErrnoRet` | required; EPERM |
    /// | `architectures` or `archMap` | optional; must name this machine's. Others in it are never let in |
    /// | `syscalls[].names`, `name` | one or the other. Names of calls that only other machines have mean nothing |
    /// | `syscalls[].action`, `errnoRet` | required; EPERM |
    /// | `syscalls[].args[]` | `index`, `value`, `valueTwo`, `op`; all must hold |
    /// | `syscalls[].includes`, `excludes` | `arches`, `caps` (a task has none), `minKernel` |
    /// | `syscalls[].comment` | |
    ///
    /// Actions are `SCMP_ACT_` `ALLOW`, `LOG`, `ERRNO`, `TRAP`, `KILL`, `KILL_THREAD`, `KILL_PROCESS`. Comparisons are
    /// `SCMP_CMP_` `NE`, `LT`, `LE`, `EQ`, `GE`, `GT`, `MASKED_EQ` (`value` is the mask, `valueTwo` the result).
    /// Anything else is an error. Of several rules for one call the first counts that applies.
    pub fn parse(json: &str) -> Result<Profile, ProfileError> {
        json::parse(json)
    }

    /// Compiles the profile; an error if it is too long for the kernel.
    pub fn compile(&self) -> Result<Program, ProgramError> {
        let otherwise = self.otherwise.value();
        let mut decisions = BTreeMap::<u32, assemble::Decision>::new();
        let mut settled = std::collections::BTreeSet::new();
        for rule in &self.rules {
            for &number in &rule.numbers {
                if settled.contains(&number) {
                    continue;
                }
                let decision = decisions
                    .entry(number)
                    .or_insert_with(|| assemble::Decision { clauses: Vec::new(), otherwise });
                if rule.conditions.is_empty() {
                    decision.otherwise = rule.action.value();
                    settled.insert(number);
                } else {
                    decision.clauses.push((rule.conditions.clone(), rule.action.value()));
                }
            }
        }
        let program = assemble::assemble(&decisions, otherwise, table::highest() + 1, self.unknown.value());
        Program::check(program.len())?;
        Ok(Program(program))
    }

    fn rule<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        action: Action,
        conditions: Vec<Condition>,
    ) {
        let number = |name| match table::look_up(name) {
            Named::Number(number) => Some(number),
            Named::Foreign | Named::Unknown => None,
        };
        self.rules.push(Rule { numbers: names.into_iter().filter_map(number).collect(), action, conditions });
    }
}

impl Program {
    /// Reads an array of `struct sock_filter` in this machine's byte order. Whether its instructions make sense is for
    /// the kernel to say when it is installed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, ProgramError> {
        let instructions = bytes.chunks_exact(size_of::<libc::sock_filter>());
        if bytes.is_empty() || !instructions.remainder().is_empty() {
            return Err(ProgramError::Length(bytes.len()));
        }
        Program::check(instructions.len())?;
        let read = |bytes: &[u8]| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        };
        Ok(Program(instructions.map(read).collect()))
    }

    /// The program as [`from_bytes`](Self::from_bytes) reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * size_of::<libc::sock_filter>());
        for instruction in &self.0 {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
        bytes
    }

    /// How many instructions it has.
    #[allow(clippy::len_without_is_empty, reason = "no program is empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn instructions(&self) -> &[libc::sock_filter] {
        &self.0
    }

    fn check(instructions: usize) -> Result<(), ProgramError> {
        if instructions > INSTRUCTIONS_MAX { Err(ProgramError::TooLong(instructions)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
