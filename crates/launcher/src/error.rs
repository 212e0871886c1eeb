//! What can go wrong, by step.

use std::fmt;
use std::io;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// A step of making a container, as it is named in errors and status records.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Step {
            $($(#[$doc])* $name = $number,)*
        }

        impl Step {
            /// The step's name for people, such as `mount /proc`.
            pub fn name(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }

            pub(crate) fn from_number(number: u32) -> Option<Step> {
                match number { $($number => Some(Step::$name),)* _ => None }
            }
        }
    };
}

steps! {
    /// The request itself: an empty argv, a NUL byte, a descriptor below 3.
    Request = 1, "request";
    /// Memory for the child's data.
    Arena = 2, "mmap arena";
    /// The status socket.
    StatusSocket = 3, "socketpair";
    /// Cloning the sandbox's mount.
    SandboxTree = 4, "open_tree sandbox";
    /// Making the sandbox's mount nosuid and nodev.
    SandboxAttr = 5, "mount_setattr sandbox";
    /// clone3.
    Clone = 6, "clone3";
    /// Entering a v1 group.
    CgroupMove = 7, "enter cgroup";
    /// Letting init go on.
    Gate = 8, "gate";
    /// PR_SET_DUMPABLE.
    Dumpable = 9, "prctl dumpable";
    /// close_range.
    CloseRange = 10, "close_range";
    /// setsid.
    Setsid = 11, "setsid";
    /// The cgroup namespace.
    UnshareCgroup = 12, "unshare cgroup";
    /// sethostname.
    Hostname = 13, "sethostname";
    /// Entering the template namespace.
    EnterTemplate = 14, "setns template";
    /// The private copy of the template.
    UnshareMount = 15, "unshare mount";
    /// Own proc.
    MountProc = 16, "mount /proc";
    /// A mask under /proc.
    MaskProc = 17, "mask /proc";
    /// Own /tmp.
    MountTmp = 18, "mount /tmp";
    /// Own /dev/shm.
    MountShm = 19, "mount /dev/shm";
    /// Own /dev/pts.
    MountPts = 20, "mount /dev/pts";
    /// The sandbox into its place.
    MountSandbox = 21, "mount sandbox";
    /// The capability bounding set.
    BoundingSet = 22, "drop bounding set";
    /// The ambient capabilities.
    Ambient = 23, "clear ambient capabilities";
    /// setgroups.
    Setgroups = 24, "setgroups";
    /// setresgid.
    Setresgid = 25, "setresgid";
    /// setresuid.
    Setresuid = 26, "setresuid";
    /// capset.
    Capset = 27, "capset";
    /// setrlimit.
    Rlimit = 28, "setrlimit";
    /// no_new_privs.
    NoNewPrivs = 29, "no_new_privs";
    /// PR_SET_PDEATHSIG.
    Pdeathsig = 30, "prctl pdeathsig";
    /// PR_SET_CHILD_SUBREAPER.
    Subreaper = 31, "prctl subreaper";
    /// Cloning the payload.
    ForkPayload = 32, "clone payload";
    /// The payload's stdin, stdout and stderr.
    Stdio = 33, "dup2 stdio";
    /// The payload's working directory.
    Chdir = 34, "chdir";
    /// execve.
    Execve = 35, "execve";
    /// The short-lived child that builds the template.
    TemplateChild = 36, "template child";
    /// The template's own mount namespace.
    TemplateUnshare = 37, "template unshare";
    /// The host's root, cloned.
    TemplateClone = 38, "template open_tree /";
    /// The cloned root made read-only.
    TemplateReadOnly = 39, "template mount_setattr /";
    /// The cloned root made the root.
    TemplatePivot = 40, "template pivot_root";
    /// A place that must exist on the host as a real directory.
    TemplatePlace = 41, "template place";
    /// A mount of the template.
    TemplateMount = 42, "template mount";
    /// A device node or link.
    TemplateDevice = 43, "template device";
    /// A cover.
    TemplateCover = 44, "template cover";
    /// Sending the namespace's descriptor.
    TemplateSend = 45, "template send";
    /// A session keyring of its own.
    Keyring = 46, "join session keyring";
    /// oom_score_adj.
    OomScore = 47, "write oom_score_adj";
    /// Making a user namespace.
    UserNamespace = 48, "make user namespace";
    /// Entering the user namespace.
    EnterUser = 49, "enter user namespace";
    /// Installing a seccomp filter.
    Seccomp = 50, "install seccomp filter";
    /// Opening the payload's terminal.
    Terminal = 51, "open terminal";
    /// Entering the namespaces of a running container.
    Join = 52, "enter container";
    /// Entering what another container shares.
    Share = 53, "share with container";
    /// Running the supervisor from a mount that cannot be written to.
    Reexec = 54, "execute read-only";
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failed step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{step}{}: {}", .object.as_deref().map(|object| format!(" {object}")).unwrap_or_default(),
        io::Error::from_raw_os_error(*.errno))]
pub struct Error {
    /// The step.
    pub step: Step,
    /// Its error number.
    pub errno: i32,
    /// The path it was about, where there is one.
    pub object: Option<String>,
}

impl Error {
    pub(crate) fn new(step: Step, errno: i32) -> Self {
        Error { step, errno, object: None }
    }

    pub(crate) fn at(step: Step, object: impl Into<String>, errno: i32) -> Self {
        Error { step, errno, object: Some(object.into()) }
    }
}
