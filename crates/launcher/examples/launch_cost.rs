//! What a container costs: `cargo run -p proffer-launcher --example launch_cost [LAUNCHES [PROGRAM]]`, as root.
//!
//! One after another, each from clone to the reaped init, of `/bin/true` or another program that does nothing; five interleaved rounds. Processor time (of this
//! process and of all its children) is what other work on the machine disturbs least, so that it is what to compare.

#![allow(clippy::print_stdout, reason = "its figures are for people")]

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use proffer_launcher::seccomp::{Profile, Program};
use proffer_launcher::{
    Event, IdRange, Isolation, Request, Sandbox, Template, UserNamespace, drop_bounding_set, heap, spawn,
};

const ROUNDS: usize = 5;
const LAUNCHES: usize = 200;

struct Kind {
    name: &'static str,
    linux: bool,
    uid: u32,
    mapped: bool,
    filtered: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let launches = std::env::args().nth(1).map_or(Ok(LAUNCHES), |text| text.parse())?;
    let program = std::env::args().nth(2).unwrap_or_else(|| "/bin/true".into());
    let template = Template::build(&[])?;
    drop_bounding_set()?;
    let namespace = UserNamespace::new(IdRange { first: 0x5000_0000, count: 65_536 })?;
    let bare = [Profile::parse(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)?.compile()?];
    let dir = std::env::temp_dir().join(format!("proffer-launch-cost-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let sandbox = File::open(&dir)?;
    heap::allocate_from_heap_only();
    heap::keep_out_of_children();
    let kind = |name, linux, uid, mapped, filtered| Kind { name, linux, uid, mapped, filtered };
    let kinds = [
        kind("plain process", false, 65_534, false, false),
        kind("contained", true, 65_534, false, true),
        kind("contained, every call allowed", true, 65_534, false, false),
        kind("contained, user namespace", true, 65_534, true, true),
        kind("contained, user 0 of the host", true, 0, false, true),
    ];
    let mut cpu = kinds.iter().map(|_| Vec::new()).collect::<Vec<_>>();
    let mut wall = cpu.clone();
    for _ in 0..ROUNDS {
        for (index, kind) in kinds.iter().enumerate() {
            let (before, start) = (cpu_micros()?, Instant::now());
            for _ in 0..launches {
                launch(&program, kind, &template, &namespace, &bare, &sandbox)?;
            }
            cpu[index].push((cpu_micros()? - before) / launches as f64);
            wall[index].push(start.elapsed().as_secs_f64() * 1e6 / launches as f64);
        }
    }
    println!("{:32} {:>22} {:>22}", "us per launch, median (range)", "cpu", "wall");
    for (index, kind) in kinds.iter().enumerate() {
        println!("{:32} {:>22} {:>22}", kind.name, summary(&mut cpu[index]), summary(&mut wall[index]));
    }
    let (before, start) = (cpu_micros()?, Instant::now());
    for _ in 0..launches {
        UserNamespace::new(IdRange { first: 0x5000_0000, count: 65_536 })?;
    }
    let (cpu, wall) = (cpu_micros()? - before, start.elapsed().as_secs_f64() * 1e6);
    let each = |sum: f64| format!("{:.0}", sum / launches as f64);
    println!("{:32} {:>22} {:>22}", "a user namespace", each(cpu), each(wall));
    std::fs::remove_dir(&dir)?;
    Ok(())
}

fn launch(
    program: &str,
    kind: &Kind,
    template: &Template,
    namespace: &UserNamespace,
    bare: &[Program],
    sandbox: &File,
) -> Result<(), Box<dyn Error>> {
    let argv = [program.to_owned()];
    let null = template.null();
    let isolation = if kind.linux { Isolation::Linux(template) } else { Isolation::Process };
    heap::keep_out_of_children();
    let container = spawn(&Request {
        uid: kind.uid,
        gid: kind.uid,
        hostname: "inside",
        sandbox: kind.linux.then_some(Sandbox::Dir(sandbox.as_fd())),
        user_namespace: kind.mapped.then_some(namespace),
        seccomp: if kind.filtered || !kind.linux { &[] } else { bare },
        bounding_set_dropped: true,
        ..Request::new(&argv, isolation, [null, null, null])
    })?;
    poll(&mut [PollFd::new(container.pidfd(), PollFlags::POLLIN)], PollTimeout::from(10_000u16))?;
    let mut said = Vec::new();
    while let Some(event) = container.event().filter(|event| *event != Event::Closed) {
        said.push(event);
    }
    container.reap()?;
    if said != [Event::Started, Event::Exited(0)] {
        return Err(format!("{}: {said:?}", kind.name).into());
    }
    Ok(())
}

fn cpu_micros() -> nix::Result<f64> {
    let mut sum = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
        }
    }
    Ok(sum)
}

fn summary(figures: &mut [f64]) -> String {
    figures.sort_by(f64::total_cmp);
    let (first, middle, last) = (figures[0], figures[figures.len() / 2], figures[figures.len() - 1]);
    format!("{middle:.0} ({first:.0}-{last:.0})")
}
