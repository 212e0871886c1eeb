//! The frameworks of a bench: one process, told line by line what to do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cluster::Cluster;
use super::go_on;

/// Frameworks that do what they are told. Dropping it ends them.
pub(super) struct Load {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pub(super) frameworks: u32,
}

impl Load {
    /// Connects so many frameworks, whose tasks hold `resources` each.
    pub(super) fn start(cluster: &Cluster, frameworks: u32, resources: &str) -> Result<Self> {
        let mut command = Command::new(&cluster.programs.load);
        command.args([&cluster.addresses, &frameworks.to_string(), resources]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("start the frameworks")?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("it was made with a pipe")?);
        let mut load = Self { child, orders, answers, frameworks };
        load.answer().with_context(|| format!("connect frameworks; logs: {}", cluster.dir().display()))?;
        Ok(load)
    }

    /// Does one thing to its end.
    pub(super) fn order(&mut self, order: &str) -> Result<Value> {
        self.begin(order)?;
        self.end(order)
    }

    /// Begins a thing.
    pub(super) fn begin(&mut self, order: &str) -> Result<()> {
        go_on()?;
        let orders = self.orders.as_mut().context("the frameworks were ended")?;
        writeln!(orders, "{order}").with_context(|| format!("say `{order}`"))
    }

    /// Waits for the end of what was begun.
    pub(super) fn end(&mut self, order: &str) -> Result<Value> {
        let answer = self.answer().with_context(|| format!("`{order}`"))?;
        ensure!(answer["failed"].as_u64().unwrap_or(0) == 0, "`{order}`: tasks failed: {answer}");
        Ok(answer)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("read what the frameworks say")?;
        if line.is_empty() {
            bail!("the frameworks ended: {}", self.child.wait().context("wait for them")?);
        }
        serde_json::from_str(&line).with_context(|| format!("the frameworks say {line}"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tears the frameworks down.
    pub(super) fn stop(mut self) -> Result<()> {
        drop(self.orders.take());
        let status = self.child.wait().context("wait for the frameworks")?;
        ensure!(status.success(), "the frameworks ended with {status}");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Waited for already, or ended by us now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
