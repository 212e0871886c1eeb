//! The machine at work.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::image::Image;
use super::kernel::Kernel;
use crate::process::{self, Ended, Read};

/// MiB. The host gives what is touched.
const MEMORY: &str = "2048";
/// What is shown of the kernel's log when the machine failed.
const CONSOLE_LINES: usize = 40;
/// How the machine's lines for us begin; `init.sh` writes them.
const MARK: &str = "@@vm ";

/// One test program's run.
pub(super) struct Ran {
    /// Which of the programs.
    pub(super) index: usize,
    pub(super) ended: Ended,
    pub(super) text: String,
}

/// What came out of a machine.
pub(super) struct Outcome {
    /// Until its first program.
    pub(super) boot: Duration,
    pub(super) took: Duration,
    pub(super) ran: Vec<Ran>,
    /// Why it did not come to its own end.
    pub(super) failed: Option<String>,
}

/// Boots a machine and waits for its end, at most `limit`.
///
/// # Errors
/// If qemu cannot be started, or somebody interrupted us.
pub(super) fn machine(kernel: &Kernel, image: &Image, limit: Duration, show: bool) -> Result<Outcome> {
    println!("booting {}", kernel.package);
    let console = image.path.with_extension("console");
    let start = Instant::now();
    let mut heard = Heard::default();
    let mut boot = None;
    let ended = process::lines(command(kernel, image), limit, Read::Both, |line| {
        // The terminal's own end of line.
        let line = line.trim_end_matches('\r');
        boot.get_or_insert_with(|| start.elapsed());
        if show && !line.starts_with(MARK) {
            println!("{line}");
        }
        heard.line(line);
    });
    let log = std::fs::read_to_string(&console).unwrap_or_default();
    let _ = std::fs::remove_file(&console);
    let ended = ended?;
    let failed = (!ended.ok() || !heard.done).then(|| {
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        format!("{}\n{}\nits console:\n{tail}", ended.how(), heard.rest())
    });
    Ok(Outcome { boot: boot.unwrap_or_default(), took: start.elapsed(), ran: heard.ran, failed })
}

fn command(kernel: &Kernel, image: &Image) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2));
    command.args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", MEMORY]);
    command.args(["-smp", &cpus.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&kernel.image);
    // The output of the tests has a line of its own, so that the kernel never writes into it.
    command.args(["-append", "root=/dev/nvme0n1 rw init=/init console=ttyS1 panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on cgroup_no_v1=all psi=1 hugepages=16"]);
    let file = image.path.display().to_string().replace(',', ",,");
    command.args(["-drive", &format!("file={file},format=raw,if=none,id=disk,cache=unsafe")]);
    command.args(["-device", "nvme,drive=disk,serial=proffer"]);
    command.args(["-serial", "stdio"]);
    command.arg("-serial").arg(format!("file:{}", image.path.with_extension("console").display()));
    command
}

/// What the machine has said so far.
#[derive(Default)]
struct Heard {
    ran: Vec<Ran>,
    now: Option<usize>,
    text: String,
    done: bool,
}

impl Heard {
    fn line(&mut self, line: &str) {
        // A test may have ended in the middle of a line.
        let Some((before, mark)) = line.split_once(MARK) else {
            self.text.push_str(line);
            self.text.push('\n');
            return;
        };
        let words: Vec<&str> = mark.split(' ').collect();
        match words[..] {
            ["begin", index] => {
                self.now = index.parse().ok();
                self.text.clear();
            }
            ["end", index, status, millis] if self.now.is_some() && self.now == index.parse().ok() => {
                self.text.push_str(before);
                self.text.push('\n');
                let code: i32 = status.parse().unwrap_or(1);
                // `timeout` says 124, or 137 if it had to kill.
                let status = (code != 124 && code != 137).then(|| ExitStatus::from_raw(code << 8));
                let took = Duration::from_millis(millis.parse().unwrap_or(0));
                let index = self.now.take().unwrap_or_default();
                self.ran.push(Ran {
                    index,
                    ended: Ended { status, took },
                    text: std::mem::take(&mut self.text),
                });
            }
            ["done"] => self.done = true,
            _ => self.text.push_str(line),
        }
    }

    /// What was said since the last program's end.
    fn rest(&self) -> &str {
        self.text.trim_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart() {
        let mut heard = Heard::default();
        for line in ["noise", "@@vm begin 0", "a", "b@@vm end 0 101 1500", "@@vm begin 1", "c"] {
            heard.line(line);
        }
        let [ran] = &heard.ran[..] else { panic!("{} ran", heard.ran.len()) };
        assert_eq!((ran.index, ran.text.as_str(), ran.ended.took.as_millis()), (0, "a\nb\n", 1_500));
        assert_eq!(ran.ended.status.and_then(|status| status.code()), Some(101));
        assert!(!heard.done && heard.rest() == "c");
        heard.line("@@vm end 0 0 1");
        assert_eq!(heard.ran.len(), 1, "an end without its beginning is only text");
        heard.line("@@vm end 1 124 1");
        assert!(heard.ran[1].ended.status.is_none(), "its time was up");
        heard.line("@@vm done");
        assert!(heard.done);
    }
}
