//! The master's settings.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// A proffer master: replicates the cluster's state and offers its resources to frameworks.
///
/// Every flag is also a key of the TOML file that `--config` names, and a `PROFFER_` variable.
#[derive(Clone, Debug, Parser)]
#[command(name = "proffer-master", version)]
pub struct Config {
    /// This master's id, a whole number above 0, the same for its whole life.
    #[arg(long, env = "PROFFER_ID", default_value_t = 1)]
    pub id: u64,
    /// Where to listen: one port for gRPC, health and the other masters.
    #[arg(long, env = "PROFFER_LISTEN", default_value = "127.0.0.1:5050")]
    pub listen: SocketAddr,
    /// Where others reach this master, as HOST:PORT; by default what it listens on.
    #[arg(long, env = "PROFFER_ADVERTISE")]
    pub advertise: Option<String>,
    /// Where the replicated log and its snapshots are kept.
    #[arg(long, env = "PROFFER_DATA_DIR", default_value = "/var/lib/proffer/master")]
    pub data_dir: PathBuf,
    /// All masters, this one among them or not, as ID=HOST:PORT,…; none for a single master. The cluster begins once
    /// all of them have met; change the masters of a running cluster by their ids, never by this flag.
    #[arg(long, env = "PROFFER_PEERS", value_delimiter = ',', value_parser = parse_peer)]
    pub peers: Vec<(u64, String)>,
    /// Accept plaintext and anonymous callers on an address that is not loopback: everyone who can reach the port can
    /// then run anything on every node.
    #[arg(long, env = "PROFFER_INSECURE")]
    pub insecure: bool,
    /// Time between pings to agents and heartbeats to frameworks, in milliseconds. After five unanswered pings an
    /// agent is unreachable.
    #[arg(long, env = "PROFFER_HEARTBEAT_MS", default_value_t = proffer_types::limits::HEARTBEAT_MS)]
    pub heartbeat_ms: u64,
    /// How long an offer may stay unanswered, in milliseconds.
    #[arg(long, env = "PROFFER_OFFER_TIMEOUT_MS", default_value_t = proffer_types::limits::OFFER_TIMEOUT_MS)]
    pub offer_timeout_ms: u64,
    /// How much is logged: error, warn, info, debug, trace, or target=level pairs, separated by commas.
    #[arg(long, env = "PROFFER_LOG", default_value = "info")]
    pub log: String,
    /// Log as JSON, one object per line.
    #[arg(long, env = "PROFFER_LOG_JSON")]
    pub log_json: bool,
    /// A TOML file with these settings.
    #[arg(long, env = "PROFFER_CONFIG")]
    pub config: Option<PathBuf>,
}

fn parse_peer(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text.split_once('=').ok_or("expected ID=HOST:PORT")?;
    let id = id.trim().parse().map_err(|_| format!("`{id}` is not a whole number"))?;
    let address = address.trim();
    let port = address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
    match port {
        Some((false, Ok(1..))) => Ok((id, address.to_owned())),
        _ => Err(format!("`{address}` is not HOST:PORT")),
    }
}

impl Config {
    /// Where others reach this master.
    pub fn advertised(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// All masters, this one included, by id.
    pub fn masters(&self) -> Vec<(u64, String)> {
        let mut masters: Vec<_> = self.peers.iter().filter(|(id, _)| *id != self.id).cloned().collect();
        masters.push((self.id, self.advertised()));
        masters.sort();
        masters
    }

    /// Everything that is wrong with the settings as a whole.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.id == 0 {
            problems.push("id: must be above 0".to_owned());
        }
        if !self.listen.ip().is_loopback() && !self.insecure {
            problems.push(format!(
                "listen: {} is not a loopback address, and connections carry no credentials yet: whoever reaches the \
                 port could run anything on every node. Listen on 127.0.0.1, or say --insecure if the network is \
                 yours alone",
                self.listen
            ));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            problems.push(format!("advertise: others cannot reach {}: say HOST:PORT", self.listen));
        }
        let masters = self.masters();
        let mut ids: Vec<u64> = self.peers.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) || ids.contains(&0) {
            problems.push("peers: ids must be above 0 and differ".to_owned());
        }
        if !matches!(masters.len(), 1 | 3 | 5) {
            problems.push(format!(
                "peers: {} masters; a cluster has 1, 3 or 5 (an even number survives no more losses than one less)",
                masters.len()
            ));
        }
        if self.heartbeat_ms < 100 || self.heartbeat_ms > 600_000 {
            problems.push("heartbeat-ms: must be between 100 and 600000".to_owned());
        }
        if self.offer_timeout_ms < 100 {
            problems.push("offer-timeout-ms: must be at least 100".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        Config::try_parse_from(["proffer-master"].iter().chain(flags)).expect("flags")
    }

    #[test]
    fn all_problems_are_listed() {
        let config = config(&[
            "--id",
            "0",
            "--listen",
            "0.0.0.0:5050",
            "--peers",
            "1=a:1,1=b:2",
            "--heartbeat-ms",
            "1",
        ]);
        let problems = config.problems().join("\n");
        for part in ["id: must", "listen:", "advertise:", "ids must be", "heartbeat-ms:"] {
            assert!(problems.contains(part), "{part} in {problems}");
        }
    }

    #[test]
    fn a_master_may_be_among_its_peers() {
        let all = "1=127.0.0.1:1,2=127.0.0.1:2,3=127.0.0.1:3";
        let config = config(&["--id", "2", "--listen", "127.0.0.1:2", "--peers", all]);
        assert_eq!(config.problems(), Vec::<String>::new());
        assert_eq!(config.masters().len(), 3);
    }

    #[test]
    fn a_peer_is_an_id_and_an_address() {
        for wrong in ["1", "x=a:1", "1=a", "1=:1", "1=a:0", "1=a:70000"] {
            assert!(parse_peer(wrong).is_err(), "{wrong}");
        }
    }
}
