//! Of single streams, and of a pump in a thread.

use super::*;
use std::io::Write;

struct Fixture {
    dir: tempfile::TempDir,
    stream: Stream,
    write: Option<File>,
}

fn fixture(file_bytes: u64, splice: bool) -> Fixture {
    let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
    let (pipe, write) = nix::unistd::pipe().expect("pipe");
    let stream = open(&dir, pipe, Add { new: true, ..add(file_bytes) }, Position::default());
    let mut fixture = Fixture { stream, dir, write: Some(write.into()) };
    fixture.stream.files.use_splice(splice);
    fixture
}

fn add(file_bytes: u64) -> Add {
    let rotation = Rotation { file_bytes, files: 2, bytes_per_second: 1 << 30 };
    Add { logs: 1, rotation, closing: false, new: false, streams: [None, None] }
}

fn open(dir: &tempfile::TempDir, pipe: OwnedFd, add: Add, position: Position) -> Stream {
    let dir = File::open(dir.path()).expect("directory").into();
    Stream::open(add, Which::Stdout, position, pipe, Rc::new(dir))
}

fn null() -> OwnedFd {
    File::options().write(true).open("/dev/null").expect("/dev/null").into()
}

fn reopen(dir: &tempfile::TempDir, pipe: OwnedFd, file_bytes: u64) -> Stream {
    open(dir, pipe, add(file_bytes), Position::default())
}

impl Fixture {
    fn write(&mut self, text: &[u8]) {
        self.write_at(text, Instant::now());
    }

    fn write_at(&mut self, text: &[u8], now: Instant) {
        self.write.as_mut().expect("open").write_all(text).expect("room in the pipe");
        assert_eq!(self.stream.turn(None, &null(), now), Progress::Waiting);
    }

    fn end(&mut self) {
        self.write = None;
        assert_eq!(self.stream.turn(None, &null(), Instant::now()), Progress::Ended);
    }

    fn files(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.dir.path()).expect("directory").map(|entry| {
            let entry = entry.expect("entry");
            let text = std::fs::read_to_string(entry.path()).expect("text");
            (entry.file_name().into_string().expect("text"), text)
        });
        let mut files = entries.collect::<Vec<_>>();
        files.sort();
        files
    }
}

fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn rotation_keeps_two_files_named_by_their_offset() {
    for splice in [true, false] {
        let mut fixture = fixture(4, splice);
        assert_eq!(fixture.files(), files(&[]), "none before the first byte");
        fixture.write(b"abcdef");
        assert_eq!(fixture.files(), files(&[("stdout.0", "abcd"), ("stdout.4", "ef")]));
        fixture.write(b"ghi");
        assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "i")]));
        fixture.write(b"jkl");
        // The end of a stream begins no file, although the last one is full.
        fixture.end();
        assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "ijkl")]));
    }
}

#[test]
fn the_next_pump_goes_on_where_this_one_ended() {
    let mut fixture = fixture(4, true);
    fixture.write(b"abcdef");
    let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
    fixture.stream = reopen(&fixture.dir, pipe, 4);
    fixture.write(b"gh");
    fixture.write(b"i");
    assert_eq!(fixture.files(), files(&[("stdout.4", "efgh"), ("stdout.8", "i")]));
}

#[test]
fn a_stream_without_a_byte_leaves_no_file() {
    let mut silent = fixture(4, true);
    silent.end();
    assert_eq!(silent.files(), []);
    // Nor if it was another pump's before.
    let mut handed = fixture(4, true);
    let pipe = handed.stream.pipe.try_clone().expect("duplicate");
    handed.stream = reopen(&handed.dir, pipe, 4);
    assert_eq!(handed.files(), []);
    handed.end();
    assert_eq!(handed.files(), []);
}

#[test]
fn a_new_stream_does_not_write_over_what_should_not_be_there() {
    let mut fixture = fixture(8, true);
    std::fs::write(fixture.dir.path().join("stdout.0"), "old").expect("written");
    fixture.write(b"new");
    assert_eq!(fixture.files(), files(&[("stdout.0", "oldnew")]));
}

#[test]
fn what_is_beyond_the_budget_is_thrown_away_and_counted() {
    for splice in [true, false] {
        let mut fixture = fixture(100, splice);
        let begun = fixture.stream.budget.since;
        fixture.stream.budget.per_second = 6;
        fixture.write_at(b"abcdefgh", begun);
        fixture.write_at(b"ij", begun + WINDOW / 2);
        assert_eq!(fixture.files(), files(&[("stdout.0", "abcdef")]));
        assert_eq!((fixture.stream.dropped, fixture.stream.files.offset()), (4, 10));
        assert!(fixture.stream.loss_is_due(begun));
        assert_eq!(fixture.stream.told(false, begun).position.dropped, 4);
        fixture.write_at(b"klm", begun + WINDOW);
        // The next second goes on at the true offset.
        assert_eq!(fixture.files(), files(&[("stdout.0", "abcdef"), ("stdout.10", "klm")]));
        assert!(!fixture.stream.loss_is_due(begun + 2 * WINDOW));
        fixture.write_at(b"nopqrst", begun + WINDOW);
        // A loss at the end is told by an empty file.
        fixture.end();
        let all = [("stdout.0", "abcdef"), ("stdout.10", "klmnop"), ("stdout.20", "")];
        assert_eq!((fixture.files(), fixture.stream.dropped), (files(&all), 8));
    }
}

#[test]
fn files_cut_short_are_kept_for_their_bytes() {
    let mut fixture = fixture(6, true);
    let begun = fixture.stream.budget.since;
    fixture.stream.budget.per_second = 3;
    for second in 0..4 {
        fixture.write_at(b"abc-", begun + second * WINDOW);
    }
    // Two full files hold six bytes beside the newest.
    assert_eq!(fixture.files(), files(&[("stdout.12", "abc"), ("stdout.4", "abc"), ("stdout.8", "abc")]));
}

#[test]
fn a_stream_that_cannot_be_written_is_drained_all_the_same() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    for splice in [true, false] {
        let mut fixture = fixture(100, splice);
        let begun = fixture.stream.budget.since;
        fixture.write_at(b"ab", begun);
        fixture.stream.files.write_to(full.try_clone().expect("duplicate"));
        fixture.write_at(b"cdef", begun);
        fixture.write_at(b"gh", begun);
        assert_eq!((fixture.stream.dropped, fixture.stream.files.offset()), (6, 8));
        // It is tried again, with a file of its own.
        fixture.write_at(b"ij", begun + WINDOW);
        fixture.end();
        assert_eq!(fixture.files(), files(&[("stdout.0", "ab"), ("stdout.8", "ij")]));
    }
}

#[test]
fn what_cannot_be_looked_at_is_not_written_over() {
    let mut fixture = fixture(100, true);
    fixture.write(b"ab");
    let begun = Instant::now();
    let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
    // No directory, at first.
    let file = File::open(fixture.dir.path().join("stdout.0")).expect("a file");
    fixture.stream = Stream::open(add(100), Which::Stdout, Position::default(), pipe, Rc::new(file.into()));
    fixture.write_at(b"cd", begun);
    assert_eq!((fixture.stream.dropped, fixture.files()), (2, files(&[("stdout.0", "ab")])));
    fixture.stream.files.look_at(File::open(fixture.dir.path()).expect("directory").into());
    fixture.write_at(b"ef", begun + 2 * WINDOW);
    assert_eq!(fixture.files(), files(&[("stdout.0", "abef")]));
}

#[test]
fn losses_of_a_pump_that_died_stay_counted() {
    let mut fixture = fixture(100, true);
    fixture.write(b"ab");
    let pipe = fixture.stream.pipe.try_clone().expect("duplicate");
    fixture.stream = open(&fixture.dir, pipe, add(100), Position { offset: 9, dropped: 7 });
    fixture.write(b"cd");
    assert_eq!(fixture.files(), files(&[("stdout.0", "ab"), ("stdout.9", "cd")]));
    fixture.end();
    assert_eq!(fixture.stream.told(true, Instant::now()).position.dropped, 7);
}

#[test]
fn a_stream_that_is_closed_leaves_nothing_in_its_pipe() {
    let mut fixture = fixture(2 << 20, true);
    let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES_MAX as i32);
    let write = fixture.write.as_mut().expect("open");
    nix::fcntl::fcntl(&*write, size).expect("a larger pipe");
    write.write_all(&vec![b'x'; PIPE_BYTES_MAX as usize]).expect("room in the pipe");
    // Its writer holds it open.
    fixture.stream.closing = true;
    assert_eq!(fixture.stream.turn(None, &null(), Instant::now()), Progress::Ended);
    assert_eq!(fixture.stream.files.offset(), PIPE_BYTES_MAX);
}

#[test]
fn a_terminal_is_read_to_its_end() {
    let mut fixture = fixture(100, true);
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    fixture.stream = reopen(&fixture.dir, pty.master, 100);
    fixture.write = Some(pty.slave.into());
    fixture.write(b"hello\n");
    fixture.stream.closing = true;
    fixture.end();
    assert_eq!(fixture.files(), files(&[("stdout.0", "hello\r\n")]));
}

/// A task may close its terminal, and open it again by its name.
#[test]
fn a_terminal_is_read_until_it_is_closed() {
    for supervised in [true, false] {
        let mut fixture = fixture(100, true);
        let (supervisor, control) = seqpacket::pair().expect("sockets");
        let mut pump = Pump::new(control).expect("a pump");
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let again = nix::unistd::ttyname(&pty.slave).expect("its name");
        let terminal = || File::options().write(true).open(&again).expect("the terminal");
        fixture.stream = reopen(&fixture.dir, pty.master, 100);
        drop(pty.slave);
        let token = token(fixture.stream.logs, Which::Stdout);
        pump.streams.insert(token, std::mem::replace(&mut fixture.stream, spare(&fixture.dir)));
        let hung_up = |pump: &mut Pump| {
            pump.on_stream(token, None).expect("a turn");
            // It says so once more, and then no longer.
            while pump.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).expect("waited") > 0 {}
            assert_eq!(pump.streams[&token].watched, Watched::Edge);
        };
        hung_up(&mut pump);
        for word in ["hello", "again"] {
            let mut terminal = terminal();
            terminal.write_all(word.as_bytes()).expect("room");
            pump.round().expect("a round");
            assert_eq!(pump.streams[&token].watched, Watched::Level);
            drop(terminal);
            hung_up(&mut pump);
        }
        assert!(pump.untold.is_empty());
        match supervised {
            true => pump.close(token).expect("closed"),
            false => {
                drop(supervisor);
                pump.round().expect("a round");
            }
        }
        assert!(pump.streams.is_empty(), "supervised: {supervised}");
        assert_eq!(fixture.files(), files(&[("stdout.0", "helloagain")]));
    }
}

/// One whose writer is gone.
fn spare(dir: &tempfile::TempDir) -> Stream {
    reopen(dir, nix::unistd::pipe().expect("pipe").0, 1)
}

#[test]
fn a_terminal_that_has_nothing_is_not_at_its_end() {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&pty.master, flags).expect("no waiting");
    assert_eq!(discard(&pty.master, &null()).expect("no end"), 0);
    File::from(pty.slave).write_all(b"hello\n").expect("room");
    assert_eq!(discard(&pty.master, &null()).expect("no end"), 7);
    // The other side is closed.
    discard(&pty.master, &null()).expect_err("the end");
}

#[test]
fn a_link_in_the_place_of_a_log_is_not_followed() {
    let mut fixture = fixture(4, true);
    let target = fixture.dir.path().join("target");
    std::fs::write(&target, "").expect("file");
    std::os::unix::fs::symlink(&target, fixture.dir.path().join("stdout.4")).expect("link");
    fixture.write(b"abcdef");
    assert_eq!(std::fs::read_to_string(&target).expect("text"), "");
}

#[test]
fn a_pump_that_cannot_tell_its_supervisor_ends() {
    let told = Told { logs: 1, which: Which::Stdout, ended: true, position: Position::default() };
    let (supervisor, control) = seqpacket::pair().expect("sockets");
    let mut pump = Pump::new(control).expect("a pump");
    pump.untold.push_back(told);
    pump.tell().expect("told");
    assert!(seqpacket::recv(supervisor.as_fd()).expect("told").is_some() && pump.untold.is_empty());
    // Nobody is there to start another: it goes on.
    drop(supervisor);
    pump.untold.push_back(told);
    pump.tell().expect("goes on");
    assert!(pump.untold.is_empty(), "nobody asks for it any more");
    pump.round().expect("goes on");
    assert!(pump.control.is_none(), "at its end");
    pump.tell().expect("goes on");
    // Somebody may be.
    let (_read, write) = nix::unistd::pipe().expect("pipe");
    pump.control = Some(write);
    pump.untold.push_back(told);
    pump.tell().expect_err("not a socket");
}

/// A supervisor ends when all is sent, whether it was read or not.
#[test]
fn what_was_ordered_before_the_supervisor_ended_is_done() {
    let told = Told { logs: 9, which: Which::Stdout, ended: true, position: Position::default() };
    // A word of ours that it had not read resets the connection; one that we say after its end finds nobody.
    for (unread, late) in [(false, false), (true, false), (false, true), (true, true)] {
        let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
        let (supervisor, control) = seqpacket::pair().expect("sockets");
        let mut pump = Pump::new(control).expect("a pump");
        if unread {
            pump.untold.push_back(told);
            pump.tell().expect("told");
        }
        let (pipe, write) = nix::unistd::pipe().expect("pipe");
        File::from(write).write_all(b"hello").expect("room in the pipe");
        let order = Order::Add(Add { new: true, streams: [Some(Position::default()), None], ..add(1 << 20) });
        let at = File::open(dir.path()).expect("directory");
        seqpacket::send(supervisor.as_fd(), &order.encode(), &[at.as_fd(), pipe.as_fd()]).expect("room");
        drop((supervisor, pipe));
        if late {
            pump.untold.push_back(told);
            pump.tell().expect("goes on");
        }
        while pump.control.is_some() || !pump.streams.is_empty() {
            pump.round().expect("a round");
        }
        let text = std::fs::read(dir.path().join("stdout.0")).expect("a file");
        assert_eq!(text, b"hello", "unread: {unread}, late: {late}");
    }
}

#[test]
fn what_nobody_will_see_is_thrown_away_at_a_bounded_speed() {
    let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
    let (control, pumps) = seqpacket::pair().expect("sockets");
    let pump = std::thread::spawn(move || run(pumps));
    let pipes = [(); 2].map(|()| nix::unistd::pipe().expect("pipe"));
    let rotation = Rotation { file_bytes: 1 << 20, files: 2, bytes_per_second: 1 << 10 };
    let streams = [Some(Position::default()); 2];
    let order = Order::Add(Add { logs: 1, rotation, closing: false, new: true, streams });
    let at = File::open(dir.path()).expect("directory");
    let [(out, mut floods), (err, speaks)] = pipes.map(|(pipe, write)| (pipe, File::from(write)));
    seqpacket::send(control.as_fd(), &order.encode(), &[at.as_fd(), out.as_fd(), err.as_fd()]).expect("room");
    let begun = Instant::now();
    let flood = vec![b'x'; 65_000_000];
    floods.write_all(&flood).expect("a pump");
    // Ten periods' worth, of which the first costs none.
    assert!(begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
    (&speaks).write_all(b"hello").expect("a pump");
    drop((floods, speaks, control));
    // It ends, so that both streams were at their ends.
    pump.join().expect("no panic").expect("no error");
    assert_eq!(std::fs::read(dir.path().join("stderr.0")).expect("text"), b"hello");
    assert!(std::fs::exists(dir.path().join("stdout.65000000")).expect("a directory"));
}

#[test]
fn many_streams_together_are_thrown_away_at_a_bounded_speed() {
    let dir = tempfile::Builder::new().prefix("proffer-pump").tempdir().expect("temp dir");
    let (_supervisor, control) = seqpacket::pair().expect("sockets");
    let mut pump = Pump::new(control).expect("a pump");
    let rotation = Rotation { file_bytes: 1 << 20, files: 2, bytes_per_second: 0 };
    let full = (0..120).map(|_| {
        let (pipe, write) = nix::unistd::pipe().expect("pipe");
        let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(TURN_BYTES as i32);
        nix::fcntl::fcntl(&write, size).expect("a larger pipe");
        File::from(write).write_all(&[b'x'; TURN_BYTES as usize]).expect("room in the pipe");
        pipe
    });
    let full = full.collect::<Vec<_>>();
    let begun = Instant::now();
    for (logs, pipe) in (1..).zip(full) {
        let streams = [Some(Position::default()), None];
        let add = Add { logs, rotation, closing: false, new: true, streams };
        let at = File::open(dir.path()).expect("directory");
        pump.on_add(add, vec![at.into(), pipe]).expect("added");
    }
    let thrown: u64 = pump.streams.values().map(|stream| stream.dropped).sum();
    let most = Waste::most_in(begun.elapsed()) + TURN_BYTES;
    assert!(thrown <= most, "{thrown} bytes, at most {most}");
    // Those that rested are read to their ends.
    while !pump.streams.is_empty() {
        pump.round().expect("a round");
    }
    let most = Waste::most_in(begun.elapsed()) + TURN_BYTES;
    assert!(120 * TURN_BYTES <= most, "at most {most}");
}

#[test]
fn a_loss_is_told_although_nothing_more_comes() {
    let mut fixture = fixture(100, true);
    let (supervisor, control) = seqpacket::pair().expect("sockets");
    let mut pump = Pump::new(control).expect("a pump");
    let token = token(fixture.stream.logs, Which::Stdout);
    fixture.stream.budget.per_second = 0;
    pump.streams.insert(token, fixture.stream);
    let write = fixture.write.as_mut().expect("open");
    // The second is lost too early to be told at once, and then the pipe is held open in silence.
    for word in [b"one", b"two"] {
        write.write_all(word).expect("room in the pipe");
        pump.on_stream(token, None).expect("a turn");
    }
    let mut dropped = 0;
    let deadline = Instant::now() + 5 * WINDOW;
    while dropped < 6 {
        assert!(Instant::now() < deadline, "{dropped} bytes were told");
        // Its socket wakes it, if nothing else does.
        assert_ne!(pump.timeout(), EpollTimeout::NONE, "{dropped} bytes were told");
        pump.round().expect("a round");
        while let Ok(Some(datagram)) = seqpacket::recv(supervisor.as_fd()) {
            dropped = Told::decode(&datagram.body).last().expect("told").position.dropped;
        }
    }
    assert_eq!(pump.timeout(), EpollTimeout::NONE, "there is nothing more to tell");
}
