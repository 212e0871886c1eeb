//! The names and numbers of system calls.

/// This machine's: `name number` pairs, from the kernel's headers up to Linux 6.18.
#[cfg(target_arch = "x86_64")]
const NATIVE: &str = include_str!("x86_64.txt");
#[cfg(target_arch = "aarch64")]
const NATIVE: &str = include_str!("aarch64.txt");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("system calls of this architecture are not known: add a table");

/// `AUDIT_ARCH_*` of this machine.
#[cfg(target_arch = "x86_64")]
pub(super) const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// This machine's name in a profile's `architectures` and `arches`.
#[cfg(target_arch = "x86_64")]
pub(super) const NAMES: [&str; 2] = ["SCMP_ARCH_X86_64", "amd64"];
#[cfg(target_arch = "aarch64")]
pub(super) const NAMES: [&str; 2] = ["SCMP_ARCH_AARCH64", "arm64"];

/// Calls that only other machines have: a profile may name them, and they mean nothing here.
const FOREIGN: &str = "_llseek _newselect accept alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bdflush \
    break breakpoint cacheflush chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 \
    clock_nanosleep_time64 clock_settime64 fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftime \
    ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 getuid32 gtty \
    idle io_pgetevents_time64 ipc lchown32 lock lstat64 mmap2 mpx mq_timedreceive_time64 \
    mq_timedsend_time64 multiplexer nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase \
    pciconfig_read pciconfig_write ppoll_time64 prof profil pselect6_time64 readdir recv recvmmsg_time64 \
    riscv_flush_icache riscv_hwprobe rtas rt_sigtimedwait_time64 s390_guarded_storage s390_pci_mmio_read \
    s390_pci_mmio_write s390_runtime_instr s390_sthyi sched_rr_get_interval_time64 semtimedop_time64 send \
    sendfile64 set_tls setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 \
    setreuid32 setuid32 sgetmask sigaction signal sigpending sigprocmask sigreturn sigsuspend socketcall \
    spu_create spu_run ssetmask stat64 statfs64 stime stty subpage_prot swapcontext switch_endian \
    sync_file_range2 sys_debug_setcontext timer_gettime64 timer_settime64 timerfd_gettime64 \
    timerfd_settime64 truncate64 ugetrlimit ulimit umount usr26 usr32 utimensat_time64 vm86 vm86old waitpid";

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A call of this machine.
    Number(u32),
    /// A call of other machines only.
    Foreign,
    /// No call at all.
    Unknown,
}

/// Looks a name up.
pub(super) fn look_up(name: &str) -> Named {
    let others = [include_str!("x86_64.txt"), include_str!("aarch64.txt")];
    if let Some((_, number)) = pairs(NATIVE).find(|(known, _)| *known == name) {
        return Named::Number(number);
    }
    let foreign = others.iter().any(|table| pairs(table).any(|(known, _)| known == name))
        || FOREIGN.split(' ').any(|known| known == name);
    if foreign { Named::Foreign } else { Named::Unknown }
}

/// The highest number in the table.
pub(super) fn highest() -> u32 {
    pairs(NATIVE).map(|(_, number)| number).max().unwrap_or(0)
}

fn pairs(table: &str) -> impl Iterator<Item = (&str, u32)> {
    let mut words = table.split_ascii_whitespace();
    std::iter::from_fn(move || Some((words.next()?, words.next()?.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_c_library() {
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("socket", libc::SYS_socket),
            ("keyctl", libc::SYS_keyctl),
            ("openat2", libc::SYS_openat2),
            ("newfstatat", libc::SYS_newfstatat),
            ("kexec_file_load", libc::SYS_kexec_file_load),
            ("mseal", libc::SYS_mseal),
        ] {
            assert_eq!(look_up(name), Named::Number(number as u32), "{name}");
        }
        assert_eq!(look_up("_llseek"), Named::Foreign);
        assert_eq!(look_up("opne"), Named::Unknown);
        assert_eq!(pairs(NATIVE).count(), NATIVE.split_ascii_whitespace().count() / 2, "every pair is read");
        assert_eq!(highest(), 469);
    }
}
