//! The machine's disk: the host's shell, tools and libraries, the programs and what they are given.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Program;
use crate::process::{self, Read};
use crate::workspace;

/// Debian packages whose files the machine has, those that the host has too: what tests and their tasks call.
const USERLAND: [&str; 19] = [
    "base-files",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "sed",
    "util-linux",
    "util-linux-extra",
    "mount",
    "mawk",
    "procps",
    "hostname",
    "iproute2",
    "libc-bin",
    "passwd",
    "perl-base",
    "python3-minimal",
    "keyutils",
    "login",
];
/// Directories that are links into `/usr`, as on every Debian of today.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
const EMPTY: [&str; 14] = [
    "dev", "proc", "sys", "run", "tmp", "root", "home", "mnt", "opt", "srv", "var/tmp", "var/lib", "var/log",
    "etc",
];
/// What packages bring that no program reads.
const UNREAD: [&str; 7] = ["doc", "man", "locale", "info", "lintian", "bash-completion", "common-licenses"];
/// One test program in the machine.
const PROGRAM_LIMIT: Duration = Duration::from_secs(15 * 60);
const TOOL_LIMIT: Duration = Duration::from_secs(120);
/// The file is sparse.
const SIZE: &str = "4G";

/// A disk image; removed on drop.
pub(super) struct Image {
    pub(super) path: PathBuf,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory, removed on drop.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes the image of a machine that runs `programs` and ends. `products` are there for them.
///
/// # Errors
/// If a file cannot be copied or the image not be made.
pub(super) fn make(programs: &[Program<'_>], products: &[PathBuf]) -> Result<Image> {
    let staging = Staging(workspace::scratch(&format!("vm/root-{}", std::process::id()))?);
    let root = Root { dir: &staging.0 };
    root.skeleton()?;
    let mut elves = root.userland()?;
    for program in programs.iter().map(|program| &program.built.program).chain(products) {
        root.program(program)?;
        elves.push(program.clone());
    }
    root.libraries(&elves)?;
    root.packages(programs)?;
    root.init(programs)?;
    root.image()
}

/// The machine's root directory, before it is an image.
struct Root<'a> {
    dir: &'a Path,
}

impl Root<'_> {
    fn at(&self, path: &Path) -> PathBuf {
        self.dir.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn skeleton(&self) -> Result<()> {
        for name in MERGED {
            self.make_dir(&Path::new("usr").join(name))?;
            symlink(Path::new("usr").join(name), self.dir.join(name)).context("link into usr")?;
        }
        EMPTY.iter().try_for_each(|name| self.make_dir(Path::new(name)))?;
        for name in ["tmp", "var/tmp"] {
            fs::set_permissions(self.dir.join(name), fs::Permissions::from_mode(0o1777)).context(name)?;
        }
        fs::set_permissions(self.dir.join("root"), fs::Permissions::from_mode(0o700)).context("root")?;
        // Who is who is the same as here; secrets are not.
        for file in ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols"] {
            if Path::new(file).is_file() {
                self.copy(Path::new(file))?;
            }
        }
        let files = [
            ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
            ("etc/hostname", "proffer-vm\n", 0o644),
            ("etc/resolv.conf", "nameserver 127.0.0.1\n", 0o644),
            ("etc/shadow", "root:*:20000:0:99999:7:::\n", 0o600),
        ];
        for (name, text, mode) in files {
            let path = self.dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {name}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(name)?;
        }
        Ok(())
    }

    /// Copies the packages' files; gives those that are programs or libraries.
    fn userland(&self) -> Result<Vec<PathBuf>> {
        let mut packages: Vec<String> = USERLAND.iter().map(|name| (*name).to_owned()).collect();
        packages.extend(pythons());
        let mut elves = Vec::new();
        for package in packages {
            // A package that is not here is not there either.
            let Ok(files) = tool("dpkg", &["-L", &package]) else { continue };
            for file in files.lines().map(Path::new).filter(|file| wanted(file)) {
                let Ok(metadata) = file.symlink_metadata() else { continue };
                if metadata.is_symlink() || metadata.is_file() {
                    self.copy(file)?;
                }
                if metadata.is_file() && is_elf(file) {
                    elves.push(file.to_owned());
                }
            }
        }
        // Whatever `sh` is here.
        for name in ["sh", "awk"] {
            let path = Path::new("/usr/bin").join(name);
            if let (Ok(target), false) = (path.canonicalize(), self.at(&path).exists()) {
                let _ = fs::remove_file(self.at(&path));
                self.copy(&target)?;
                elves.push(target.clone());
                symlink(target, self.at(&path)).context(name)?;
            }
        }
        Ok(elves)
    }

    /// A program of ours, at the path where it is here, without what only debuggers read.
    fn program(&self, program: &Path) -> Result<()> {
        self.make_parent(program)?;
        let mut command = Command::new("strip");
        command.args(["--strip-debug", "-o"]).arg(self.at(program)).arg(program);
        finish("strip", command).map(drop)
    }

    /// The libraries of programs, and those libraries' libraries.
    fn libraries(&self, elves: &[PathBuf]) -> Result<()> {
        let mut libraries = BTreeSet::new();
        for some in elves.chunks(50) {
            let mut command = Command::new("ldd");
            command.args(some);
            // It fails on those that are static.
            let (_, text) = process::text(command, TOOL_LIMIT, Read::Out)?;
            let words = text.lines().filter(|line| line.starts_with('\t')).flat_map(str::split_whitespace);
            libraries.extend(words.filter(|word| word.starts_with('/')).map(PathBuf::from));
        }
        for library in libraries {
            let (target, place) = (library.canonicalize(), self.at(&library));
            if let (Ok(target), false) = (target, place.exists()) {
                self.make_parent(&library)?;
                fs::copy(&target, &place).with_context(|| format!("copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    /// What tests read of their own package, at the path where it is here.
    fn packages(&self, programs: &[Program<'_>]) -> Result<()> {
        let dirs: BTreeSet<&Path> = programs.iter().map(|program| program.built.dir.as_path()).collect();
        for file in workspace::tracked()? {
            let file = workspace::root().join(file);
            if dirs.iter().any(|dir| file.starts_with(dir)) {
                self.copy(&file)?;
            }
        }
        Ok(())
    }

    fn init(&self, programs: &[Program<'_>]) -> Result<()> {
        let mut script = include_str!("init.sh").to_owned();
        for (index, Program { built, args }) in programs.iter().enumerate() {
            let words = [index.to_string(), PROGRAM_LIMIT.as_secs().to_string()]
                .into_iter()
                .chain([quoted(&built.dir.to_string_lossy()), quoted(&built.program.to_string_lossy())])
                .chain(["--show-output".to_owned()])
                .chain(args.iter().map(|word| quoted(word)));
            script.push_str(&format!("one {}\n", words.collect::<Vec<_>>().join(" ")));
        }
        script.push_str("finish\n");
        let path = self.dir.join("init");
        fs::write(&path, script).context("write init")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("init")
    }

    fn image(&self) -> Result<Image> {
        let image = Image { path: workspace::scratch(&format!("vm/disk-{}.img", std::process::id()))? };
        let mut command = Command::new(sbin("mke2fs"));
        command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E"]);
        command.arg("lazy_itable_init=1,nodiscard,root_owner=0:0").arg("-d").arg(self.dir);
        command.arg(&image.path).arg(SIZE);
        finish("mke2fs", command)?;
        Ok(image)
    }

    /// Copies a file or a link to the same path; what is there already stays.
    fn copy(&self, file: &Path) -> Result<()> {
        let place = self.at(file);
        if place.symlink_metadata().is_ok() {
            return Ok(());
        }
        self.make_parent(file)?;
        let copied = match fs::read_link(file) {
            Ok(target) => symlink(target, &place),
            Err(_) => fs::copy(file, &place).map(drop),
        };
        copied.with_context(|| format!("copy {}", file.display()))
    }

    fn make_parent(&self, file: &Path) -> Result<()> {
        self.make_dir(file.parent().unwrap_or_else(|| Path::new("/")))
    }

    fn make_dir(&self, dir: &Path) -> Result<()> {
        let place = self.at(dir);
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))
    }
}

/// The packages of the host's own Python, of which the version is part of the name.
fn pythons() -> Vec<String> {
    let Ok(target) = Path::new("/usr/bin/python3").canonicalize() else { return Vec::new() };
    let Some(name) = target.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Vec::new();
    };
    vec![format!("{name}-minimal"), format!("lib{name}-minimal"), format!("lib{name}-stdlib")]
}

fn wanted(file: &Path) -> bool {
    let unread = |rest: &Path| UNREAD.iter().any(|name| rest.starts_with(name));
    !file.strip_prefix("/usr/share").is_ok_and(unread)
        && !file.starts_with("/etc")
        && !file.starts_with("/var")
}

fn is_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(file).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// Where people who are not root do not look.
fn sbin(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    if path.is_file() { path } else { name.into() }
}

/// As one word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn tool(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    finish(program, command)
}

fn finish(what: &str, command: Command) -> Result<String> {
    let (ended, text) = process::text(command, TOOL_LIMIT, Read::Both)?;
    if !ended.ok() {
        bail!("{what}: {}: {}", ended.how(), text.trim());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        let output = tool("sh", &["-c", &format!("printf '%s|' {} {}", quoted("a 'b' $c"), quoted(""))]);
        assert_eq!(output.expect("sh"), "a 'b' $c||\n");
    }

    #[test]
    fn documents_and_settings_stay_here() {
        assert!(wanted(Path::new("/bin/ls")) && wanted(Path::new("/usr/share/perl/x.pm")));
        assert!(!wanted(Path::new("/usr/share/doc/dash/copyright")) && !wanted(Path::new("/etc/pam.d/su")));
    }
}
