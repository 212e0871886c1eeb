use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Tree {
    dir: tempfile::TempDir,
    outside: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let make = |prefix| tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let tree = Self { dir: make("proffer-sandbox-"), outside: make("proffer-outside-") };
        fs::write(tree.outside.path().join("secret"), "SECRET").unwrap();
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::open(Some(self.dir.path())).unwrap()
    }

    /// Everything that a reader is told.
    fn read(&self, path: &str) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        self.sandbox().read(Path::new(path), &mut |item| {
            items.push(item);
            true
        })?;
        Ok(items)
    }

    fn write(&self, path: &str, name: &str, items: Vec<Item>) -> Result<FilesEnd, Error> {
        let mut writing = Writing::begin(self.sandbox(), Path::new(path), Path::new(name))?;
        for item in items {
            writing.take(FileItem { item: Some(item) })?;
        }
        Ok(writing.sum().unwrap_or_default())
    }
}

fn paths(items: &[Item]) -> Vec<String> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let mut paths: Vec<String> = items
        .iter()
        .filter_map(|item| match item {
            Item::Head(head) => Some(text(&head.path)),
            Item::Skipped(skipped) => Some(format!("-{}", text(&skipped.path))),
            _ => None,
        })
        .collect();
    paths.sort();
    paths
}

fn bytes(items: &[Item]) -> Vec<u8> {
    items
        .iter()
        .filter_map(|item| if let Item::Data(data) = item { Some(data.to_vec()) } else { None })
        .flatten()
        .collect()
}

fn file(path: &str) -> Item {
    head_of(path, FileKind::Regular, 0o4755)
}

fn directory(path: &str) -> Item {
    head_of(path, FileKind::Directory, 0o2750)
}

fn head_of(path: &str, kind: FileKind, mode: u32) -> Item {
    let path = Bytes::copy_from_slice(path.as_bytes());
    Item::Head(FileHead { path, kind: kind.into(), mode, size: 0, modified_ms: 1_234_567 })
}

fn data(text: &str) -> Item {
    Item::Data(Bytes::copy_from_slice(text.as_bytes()))
}

fn end() -> Item {
    Item::End(FilesEnd::default())
}

#[test]
fn trees_are_read_whole() {
    let tree = Tree::new();
    fs::create_dir_all(tree.at("d/e/f")).unwrap();
    fs::write(tree.at("d/one"), vec![b'1'; 3 * CHUNK_BYTES + 1]).unwrap();
    fs::write(tree.at("d/e/two"), "2").unwrap();
    fs::write(tree.at("d/e/f/three"), "3").unwrap();
    for n in 0..300 {
        fs::create_dir(tree.at(&format!("d/many{n}"))).unwrap();
    }
    let items = tree.read("d").unwrap();
    let found = paths(&items);
    assert_eq!(
        found.iter().filter(|p| p.starts_with("many")).count(),
        300,
        "each once, though others lie between"
    );
    assert_eq!(
        found.iter().filter(|p| !p.starts_with("many")).collect::<Vec<_>>(),
        ["", "e", "e/f", "e/f/three", "e/two", "one"]
    );
    let Some(Item::End(sum)) = items.last() else { panic!("no end") };
    assert_eq!((sum.files, sum.bytes, sum.skipped), (306, 3 * CHUNK_BYTES as u64 + 3, 0));
    // A directory comes before what is in it.
    let place = |path: &str| {
        items.iter().position(|i| matches!(i, Item::Head(h) if h.path == path.as_bytes())).unwrap()
    };
    assert!(place("e") < place("e/f") && place("e/f") < place("e/f/three"));
    let items = tree.read("d/e/two").unwrap();
    assert_eq!((paths(&items), bytes(&items)), (vec![String::new()], b"2".to_vec()));
}

#[test]
fn lists_are_paged() {
    let tree = Tree::new();
    for n in 0..500 {
        fs::write(tree.at(&format!("f{n}")), "x").unwrap();
    }
    let (mut names, mut token, mut pages) = (Vec::new(), Vec::new(), 0);
    loop {
        let (entries, next, directory) = tree.sandbox().list(Path::new(""), 64, &token).unwrap();
        assert!(directory && entries.len() <= 64);
        names.extend(entries.iter().map(|e| String::from_utf8(e.name.to_vec()).unwrap()));
        pages += 1;
        if next.is_empty() {
            break;
        }
        token = next;
    }
    names.sort();
    names.dedup();
    assert_eq!((names.len(), pages), (500, 8));
    let (entries, _, directory) = tree.sandbox().list(Path::new("f7"), 9, &[]).unwrap();
    assert_eq!((entries.len(), directory, entries[0].size), (1, false, 1));
    assert!(matches!(tree.sandbox().list(Path::new("no"), 9, &[]), Err(Error::NotFound(_))));
    assert!(matches!(tree.sandbox().list(Path::new(""), 9, b"xx"), Err(Error::OutOfPlace(_))));
    assert!(matches!(Sandbox::open(Some(&tree.at("no"))), Err(Error::NoSandbox)));
}

/// Symbolic links, fifos, sockets, devices and other people's files: told, never followed, opened or waited for.
#[test]
fn hostile_files_are_left_out() {
    let tree = Tree::new();
    let secret = tree.outside.path().join("secret");
    fs::create_dir(tree.at("d")).unwrap();
    symlink(&secret, tree.at("d/link")).unwrap();
    symlink(tree.outside.path(), tree.at("d/dirlink")).unwrap();
    symlink("/proc/self/root", tree.at("d/magic")).unwrap();
    symlink(".", tree.at("d/loop")).unwrap();
    nix::unistd::mkfifo(&tree.at("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.at("d/socket")).unwrap();
    fs::write(tree.at("d/plain"), "plain").unwrap();
    let mut special = vec!["-dirlink", "-fifo", "-link", "-loop", "-magic", "-socket"];
    let root = nix::unistd::geteuid().is_root();
    if root {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        // /dev/zero would be read for ever, /dev/kmsg says what it should not.
        mknod(&tree.at("d/zero"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
        special.push("-zero");
    }
    let items = tree.read("d").unwrap();
    special.extend(["", "plain"]);
    special.sort();
    assert_eq!(paths(&items), special);
    assert_eq!(bytes(&items), b"plain");

    for (path, code) in [
        ("d/link", "UNSAFE_PATH"),
        ("d/dirlink/secret", "UNSAFE_PATH"),
        ("d/magic/etc/passwd", "UNSAFE_PATH"),
        ("d/loop/loop/plain", "UNSAFE_PATH"),
        ("d/fifo", "NOT_REGULAR"),
        ("d/socket", "NOT_REGULAR"),
        ("d/plain/x", "NOT_A_DIRECTORY"),
        ("../proffer-outside", "UNSAFE_PATH"),
        ("d/nothing", "NO_SUCH_FILE"),
    ] {
        assert_eq!(tree.read(path).unwrap_err().code(), code, "{path}");
    }
    // They are listed as what they are.
    let (entries, _, _) = tree.sandbox().list(Path::new("d"), 99, &[]).unwrap();
    let kind = |name: &str| entries.iter().find(|e| e.name == name.as_bytes()).unwrap().kind();
    assert_eq!(
        [kind("link"), kind("fifo"), kind("plain")],
        [FileKind::Symlink, FileKind::Other, FileKind::Regular]
    );
}

/// A name that a task was given for somebody else's file shows nothing of it, and writing under it writes elsewhere.
#[test]
fn hard_links_lead_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: needs root");
    }
    let tree = Tree::new();
    // The task's user; the secret is root's. Both lie on one file system.
    std::os::unix::fs::chown(tree.dir.path(), Some(65_534), Some(65_534)).unwrap();
    let secret = tree.outside.path().join("secret");
    fs::hard_link(&secret, tree.at("linked")).unwrap();
    assert_eq!(tree.read("linked").unwrap_err().code(), "UNSAFE_PATH");
    tree.write("linked", "x", vec![file(""), data("mine"), end()]).unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "SECRET");
    assert_eq!(fs::read_to_string(tree.at("linked")).unwrap(), "mine");
    // Its own file may have two names.
    fs::hard_link(tree.at("linked"), tree.at("again")).unwrap();
    assert_eq!(bytes(&tree.read("again").unwrap()), b"mine");
}

#[test]
fn files_are_put_beneath_as_the_task_s_user() {
    let tree = Tree::new();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(tree.dir.path(), Some(65_534), Some(65_534)).unwrap();
    }
    let sent = vec![directory(""), file("a"), data("on"), data("e"), directory("e"), file("e/b"), end()];
    let sum = tree.write("", "top", sent).unwrap();
    assert_eq!((sum.files, sum.bytes), (4, 3));
    assert_eq!(fs::read_to_string(tree.at("top/a")).unwrap(), "one");
    let meta = fs::metadata(tree.at("top/a")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o755, "no setuid bit comes in");
    assert_eq!(meta.mtime(), 1_234);
    let dir = fs::metadata(tree.at("top/e")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o7777, 0o750);
    if root {
        assert_eq!((meta.uid(), meta.gid(), dir.uid()), (65_534, 65_534, 65_534));
    }
    // A directory takes it in, another name is its name, and nothing is left of ours.
    tree.write("top", "c", vec![file(""), data("c"), end()]).unwrap();
    tree.write("top/new", "c", vec![file(""), data("d"), end()]).unwrap();
    assert_eq!(fs::read_to_string(tree.at("top/c")).unwrap(), "c");
    assert_eq!(fs::read_to_string(tree.at("top/new")).unwrap(), "d");
    let mut names: Vec<_> = fs::read_dir(tree.at("top")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "c", "e", "new"]);
}

#[test]
fn nothing_is_put_elsewhere() {
    let tree = Tree::new();
    symlink(tree.outside.path(), tree.at("out")).unwrap();
    symlink(tree.outside.path().join("secret"), tree.at("link")).unwrap();
    fs::create_dir(tree.at("d")).unwrap();
    let one = || vec![file(""), data("x"), end()];
    let code = |result: Result<FilesEnd, Error>| result.unwrap_err().code();
    assert_eq!(code(tree.write("out/secret", "x", one())), "UNSAFE_PATH");
    assert_eq!(code(tree.write("out/x/y", "x", one())), "UNSAFE_PATH");
    assert_eq!(code(tree.write("none/x", "x", one())), "NO_SUCH_FILE");
    // A link's name is taken over, what it leads to is not touched.
    tree.write("link", "x", one()).unwrap();
    assert!(fs::symlink_metadata(tree.at("link")).unwrap().is_file());
    assert_eq!(fs::read_to_string(tree.outside.path().join("secret")).unwrap(), "SECRET");
    fs::create_dir_all(tree.at("d/x/y")).unwrap();
    assert_eq!(code(tree.write("d", "x", one())), "IS_A_DIRECTORY");
    for bad in ["../x", "/x", "a/../../x", "a\0"] {
        assert_eq!(code(tree.write("d", "n", vec![file(bad), end()])), "INVALID", "{bad:?}");
    }
    assert_eq!(code(tree.write("d", "n", vec![data("x")])), "INVALID");
    assert_eq!(code(tree.write("d", "n", vec![end(), file("")])), "INVALID");
    assert_eq!(code(tree.write("d", "n", vec![head_of("", FileKind::Symlink, 0)])), "INVALID");
    // One that is given up in the middle is not there, under any name.
    let mut writing = Writing::begin(tree.sandbox(), Path::new("d"), Path::new("half")).unwrap();
    writing.take(FileItem { item: Some(file("")) }).unwrap();
    writing.take(FileItem { item: Some(data("half")) }).unwrap();
    assert!(writing.sum().is_none());
    drop(writing);
    assert_eq!(fs::read_dir(tree.at("d")).unwrap().count(), 1);
}

/// A task exchanges a directory and a symbolic link as fast as it can, while its files are read and written.
#[test]
fn races_are_lost() {
    let tree = Tree::new();
    fs::create_dir_all(tree.at("d/in")).unwrap();
    fs::write(tree.at("d/in/secret"), "mine").unwrap();
    symlink(tree.outside.path(), tree.at("trap")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let exchanging = std::thread::spawn({
        let (stop, a, b) = (stop.clone(), tree.at("d/in"), tree.at("trap"));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &a, cwd, &b, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        }
    });
    let (mut read, mut refused) = (0, 0);
    for round in 0..3_000 {
        let found = if round % 2 == 0 { tree.read("d/in/secret") } else { tree.read("d") };
        match found {
            Ok(items) => {
                let text = String::from_utf8(bytes(&items)).unwrap();
                assert!(!text.contains("SECRET"), "{text:?}");
                read += usize::from(text.contains("mine"));
            }
            Err(error) => {
                assert!(matches!(error.code(), "UNSAFE_PATH" | "NO_SUCH_FILE" | "IO_ERROR"), "{error}");
                refused += 1;
            }
        }
        let _ = tree.write("d/in/new", "x", vec![file(""), data("new"), end()]);
    }
    stop.store(true, Ordering::Relaxed);
    exchanging.join().unwrap();
    assert!(read > 0 && refused > 0, "the race was run: {read} read, {refused} refused");
    let outside: Vec<_> =
        fs::read_dir(tree.outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside, ["secret"], "nothing was written outside");
}

#[test]
fn names_cannot_write_to_the_terminal() {
    let error = Error::NotFound(PathBuf::from("a\u{1b}[31m\n\u{202e}"));
    assert_eq!(
        error.to_string(),
        "`a\\u{1b}[31m\\n\\u{202e}`: no such file or directory in the task's sandbox"
    );
    assert!(Error::NotFound(PathBuf::from("x".repeat(4_000))).to_string().len() < 300);
}
