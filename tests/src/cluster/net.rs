//! A network of namespaces on a bridge, one namespace for each daemon.
//!
//! A partition takes ports off the bridge: packets are lost without a word in both directions, as with a dead switch.
//! (The interfaces inside stay up, so nobody gets an error that a real loss would not give.) The test itself is on the
//! bridge, too.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

static NETWORKS: AtomicU8 = AtomicU8::new(0);

/// The bridge and its namespaces; gone when dropped.
#[derive(Debug)]
pub struct Net {
    mark: String,
    subnet: String,
    nodes: u8,
}

impl Net {
    /// Makes a bridge without namespaces.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn new() -> Result<Self, String> {
        let pid = std::process::id();
        let n = NETWORKS.fetch_add(1, Ordering::Relaxed);
        // An interface's name has at most 15 bytes.
        let mark = format!("{:x}{n:x}", pid & 0x3f_ffff);
        let net = Self { mark, subnet: format!("10.213.{}", (pid + u32::from(n)) % 250), nodes: 0 };
        run("ip", &["link", "add", &net.bridge(), "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}.254/24", net.subnet), "dev", &net.bridge()])?;
        run("ip", &["link", "set", &net.bridge(), "up"])?;
        Ok(net)
    }

    /// Makes one more namespace on the bridge; its number and its address.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn add(&mut self) -> Result<(u8, String), String> {
        self.nodes += 1;
        let node = self.nodes;
        let (space, port) = (self.namespace(node), self.port(node));
        let address = format!("{}.{node}", self.subnet);
        run("ip", &["netns", "add", &space])?;
        run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
        run("ip", &["-n", &space, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &space, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
        run("ip", &["link", "set", &port, "master", &self.bridge(), "up"])?;
        Ok((node, address))
    }

    /// The name of a namespace.
    pub fn namespace(&self, node: u8) -> String {
        format!("proffer-{node}-{}", self.mark)
    }

    /// Cuts a namespace off from everybody.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn cut(&self, node: u8) {
        run("ip", &["link", "set", &self.port(node), "nomaster"]).unwrap();
    }

    /// Undoes [`Net::cut`].
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn heal(&self, node: u8) {
        run("ip", &["link", "set", &self.port(node), "master", &self.bridge()]).unwrap();
    }

    fn bridge(&self) -> String {
        format!("pfb{}", self.mark)
    }

    fn port(&self, node: u8) -> String {
        format!("pf{node}x{}", self.mark)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in 1..=self.nodes {
            let _ = run("ip", &["link", "del", &self.port(node)]);
            let _ = run("ip", &["netns", "del", &self.namespace(node)]);
        }
        let _ = run("ip", &["link", "del", &self.bridge()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let what = format!("{program} {}", args.join(" "));
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{what}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
