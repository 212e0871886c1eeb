//! The devices that containers may open: those of every Unix, and terminals. Nobody may make a device node.
//!
//! A container cannot make nodes anyway and every mount that it can write to ignores them; this holds if one of these
//! fails, for descriptors that are handed in, and for root.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{read, write};
use crate::Error;

/// Character devices, by major number and minor number or any.
const ALLOWED: [(u32, Option<u32>); 15] = [
    // null, zero, full, random, urandom
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    // tty, ptmx
    (5, Some(0)),
    (5, Some(2)),
    // What ptmx gives: majors 136 to 143.
    (136, None),
    (137, None),
    (138, None),
    (139, None),
    (140, None),
    (141, None),
    (142, None),
    (143, None),
];

/// v1: sets the rules of a group. One that has them already is not touched: there is a moment without any.
pub(super) fn set_v1(dir: &Path) -> Result<(), Error> {
    let wanted = ALLOWED.iter().map(|(major, minor)| match minor {
        Some(minor) => format!("c {major}:{minor} rw"),
        None => format!("c {major}:* rw"),
    });
    let wanted: BTreeSet<String> = wanted.collect();
    let present: BTreeSet<String> = read(dir.join("devices.list"))?.lines().map(str::to_owned).collect();
    if present == wanted {
        return Ok(());
    }
    write(&dir.join("devices.deny"), "a")?;
    wanted.iter().try_for_each(|rule| write(&dir.join("devices.allow"), rule))
}

/// v2: the rules as a program in the kernel, for any number of groups.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of groups above hold as well.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD; what follows is zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

impl Program {
    /// Loads it.
    pub(super) fn load() -> Result<Self, Error> {
        let program = program();
        let mut name = [0; 16];
        name[..15].copy_from_slice(b"proffer_devices");
        let attr = Load {
            prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr().addr() as u64,
            license: c"".as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: name,
        };
        let fd = bpf(BPF_PROG_LOAD, &attr)
            .map_err(|source| Error::System { operation: "load the devices' program (bpf)", source })?;
        // SAFETY: just opened and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has the group's processes, and those of groups below, obey it: once, until the group is removed.
    pub(super) fn attach(&self, dir: &Path) -> Result<(), Error> {
        let failed =
            |source| Error::Path { operation: "attach the devices' program to", path: dir.into(), source };
        let group = std::fs::File::open(dir).map_err(failed)?;
        let attr = Attach {
            target_fd: group.as_raw_fd() as u32,
            attach_bpf_fd: self.0.as_fd().as_raw_fd() as u32,
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: BPF_F_ALLOW_MULTI,
            replace_bpf_fd: 0,
        };
        bpf(BPF_PROG_ATTACH, &attr).map(drop).map_err(failed)
    }
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `attr`, whose size it is told, and what it points to, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The destination in the low half, the source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: dst | src << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const COPY_32: u8 = 0xbc;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_IF_ANY_BIT: u8 = 0x45;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// `access_type` of `struct bpf_cgroup_dev_ctx`: the kind of device in the low half, in the high one what is wanted.
const CHARACTER: i32 = 2;
const MAKE_NODE: i32 = 1;

/// The program: 1 to allow.
fn program() -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY_32, 3, 2, 0, 0),
        instruction(AND_32, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    // Those that are not the only way to go: their offsets are known when the program is.
    let mut to_deny = vec![program.len(), program.len() + 1];
    program.push(instruction(JUMP_UNLESS_EQUAL, 2, 0, 0, CHARACTER));
    program.push(instruction(JUMP_IF_ANY_BIT, 3, 0, 0, MAKE_NODE));
    let mut to_allow = Vec::new();
    for (major, minor) in ALLOWED {
        if let Some(minor) = minor {
            program.push(instruction(JUMP_UNLESS_EQUAL, 4, 0, 1, major as i32));
            to_allow.push(program.len());
            program.push(instruction(JUMP_IF_EQUAL, 5, 0, 0, minor as i32));
        } else {
            to_allow.push(program.len());
            program.push(instruction(JUMP_IF_EQUAL, 4, 0, 0, major as i32));
        }
    }
    let deny = program.len();
    program.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    let allow = program.len();
    program.extend([instruction(SET, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    for (jumps, target) in [(&mut to_deny, deny), (&mut to_allow, allow)] {
        for at in jumps.iter() {
            program[*at].offset = (target - at - 1) as i16;
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// What the program says of an access: kind, what is wanted, major, minor.
    fn allows(kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let program = program();
        let mut registers = [0u32; 6];
        let mut at = 0;
        loop {
            let Instruction { code, registers: names, offset, immediate } = program[at];
            let (dst, src) = (usize::from(names & 15), usize::from(names >> 4));
            at += 1;
            let value = immediate as u32;
            let jump = match code {
                LOAD_WORD => {
                    registers[dst] = context[offset as usize / 4];
                    false
                }
                COPY_32 => {
                    registers[dst] = registers[src];
                    false
                }
                AND_32 => {
                    registers[dst] &= value;
                    false
                }
                SHIFT_RIGHT_32 => {
                    registers[dst] >>= value;
                    false
                }
                SET => {
                    registers[dst] = value;
                    false
                }
                JUMP_IF_EQUAL => registers[dst] == value,
                JUMP_UNLESS_EQUAL => registers[dst] != value,
                JUMP_IF_ANY_BIT => registers[dst] & value != 0,
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            };
            if jump {
                at += offset as usize;
            }
        }
    }

    #[test]
    fn the_program_allows_what_is_listed_and_nothing_else() {
        const BLOCK: u32 = 1;
        const READ: u32 = 2;
        const WRITE: u32 = 4;
        const CHAR: u32 = 2;
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (143, 99)] {
            assert!(allows(CHAR, READ, major, minor) && allows(CHAR, READ | WRITE, major, minor));
            assert!(!allows(CHAR, 1, major, minor) && !allows(CHAR, 1 | READ, major, minor), "mknod");
            assert!(!allows(BLOCK, READ, major, minor));
        }
        // mem, port, kmsg, console, the first tty, fuse, kvm's neighbour, vda as a character device
        for (major, minor) in [(1, 1), (1, 4), (1, 11), (5, 1), (4, 0), (10, 229), (144, 3), (254, 0), (3, 3)]
        {
            assert!(!allows(CHAR, READ, major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn the_kernel_takes_the_program_and_obeys_it() {
        let top = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let Some(root) = top.into_iter().find(|root| root.join("cgroup.controllers").exists()) else {
            eprintln!("SKIPPED: no cgroup v2 tree here");
            return;
        };
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: loading a program needs root");
            return;
        }
        let dir = root.join(format!("proffer-test-devices-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("made");
        let outcome = Program::load().and_then(|program| program.attach(&dir));
        let script = "echo 0 >$0/cgroup.procs && true </dev/null && echo x >/dev/zero && ! true </dev/kmsg && \
                      ! true </dev/mem && ! mknod $1 c 1 3";
        let node = std::env::temp_dir().join(format!("proffer-test-node-{}", std::process::id()));
        let status = std::process::Command::new("sh").args(["-c", script]).args([&dir, &node]).status();
        let _ = std::fs::remove_file(&node);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::remove_dir(&dir).is_err() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        outcome.expect("loaded and attached");
        assert!(status.expect("run").success());
        assert!(!dir.exists());
    }
}
