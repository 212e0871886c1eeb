//! The master's settings: flags over `PROFFER_…` variables over the configuration file over defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use proffer_settings::{Problems, Reader, parse_address, parse_bool, parse_dir, parse_number};
use proffer_telemetry::Format;
use proffer_types::limits;

/// Read if `--config` does not name another file and this one is there.
const CONFIG_FILE: &str = "/etc/proffer/master.toml";

/// A proffer master: replicates the cluster's state and offers its resources to frameworks.
///
/// Every flag is also a key of the configuration file (`data-dir = "…"`), and a variable (`PROFFER_DATA_DIR`).
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "proffer-master", version)]
pub struct Flags {
    /// This master's id, a whole number above 0, the same for its whole life [default: 1]
    #[arg(long, env = "PROFFER_ID", value_name = "N")]
    id: Option<String>,
    /// Where to listen: one port for clients, agents and the other masters [default: 127.0.0.1:5050]
    #[arg(long, env = "PROFFER_LISTEN", value_name = "IP:PORT")]
    listen: Option<String>,
    /// Where others reach this master [default: what it listens on]
    #[arg(long, env = "PROFFER_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where the replicated log and its snapshots are kept [default: /var/lib/proffer/master]
    #[arg(long, env = "PROFFER_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,
    /// All masters, this one among them or not; none for a single master. The cluster begins once all of them have met
    #[arg(long, env = "PROFFER_PEERS", value_name = "ID=HOST:PORT,…")]
    peers: Option<String>,
    /// Accept plaintext and anonymous callers on an address that is not loopback: everyone who can reach the port can
    /// then run anything on every node
    #[arg(long, env = "PROFFER_INSECURE", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    insecure: Option<String>,
    /// Time between pings to agents and heartbeats to frameworks, in milliseconds; after five unanswered pings an agent
    /// is unreachable [default: 15000]
    #[arg(long, env = "PROFFER_HEARTBEAT_MS", value_name = "MS")]
    heartbeat_ms: Option<String>,
    /// How long an offer may stay unanswered, in milliseconds [default: 30000]
    #[arg(long, env = "PROFFER_OFFER_TIMEOUT_MS", value_name = "MS")]
    offer_timeout_ms: Option<String>,
    /// What to log: error, warn, info, debug, trace, or target=level pairs [default: info]
    #[arg(long, env = "PROFFER_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log as JSON, one object per line
    #[arg(long, env = "PROFFER_LOG_JSON", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    log_json: Option<String>,
    /// A TOML file with these settings [default: /etc/proffer/master.toml if there is one]
    #[arg(long, env = "PROFFER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This master's id.
    pub id: u64,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where others reach this master.
    pub advertise: String,
    /// Where the log and its snapshots are kept.
    pub data_dir: PathBuf,
    /// The masters as configured.
    pub peers: Vec<(u64, String)>,
    /// Whether anonymous callers are accepted from elsewhere.
    pub insecure: bool,
    /// Time between pings and heartbeats (milliseconds).
    pub heartbeat_ms: u64,
    /// How long an offer may stay unanswered (milliseconds).
    pub offer_timeout_ms: u64,
    /// What to log.
    pub log: String,
    /// How.
    pub log_format: Format,
}

impl Config {
    /// Reads the configuration file, if there is one, and puts the flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn load(flags: &Flags) -> Result<Self, Problems> {
        Self::resolve(Reader::open(flags.list(), flags.config.as_deref(), Path::new(CONFIG_FILE))?)
    }

    fn resolve(mut reader: Reader<'_>) -> Result<Self, Problems> {
        let listen =
            reader.get("listen", |text| text.parse().map_err(|_| format!("`{text}` is not IP:PORT")));
        let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5050)));
        let advertise = reader.get("advertise", parse_address);
        if listen.ip().is_unspecified() && advertise.is_none() {
            reader.problem(format!("advertise: others cannot reach {listen}: say HOST:PORT"));
        }
        let config = Self {
            id: reader.get("id", |text| parse_number(text, 1, u64::MAX)).unwrap_or(1),
            listen,
            advertise: advertise.unwrap_or_else(|| listen.to_string()),
            data_dir: reader.get("data-dir", parse_dir).unwrap_or_else(|| "/var/lib/proffer/master".into()),
            peers: reader.get("peers", parse_peers).unwrap_or_default(),
            insecure: reader.get("insecure", parse_bool).unwrap_or(false),
            heartbeat_ms: reader
                .get("heartbeat-ms", |text| parse_number(text, 100, 600_000))
                .unwrap_or(limits::HEARTBEAT_MS),
            offer_timeout_ms: reader
                .get("offer-timeout-ms", |text| parse_number(text, 100, 86_400_000))
                .unwrap_or(limits::OFFER_TIMEOUT_MS),
            log: reader
                .get("log", |text| {
                    proffer_telemetry::check(text)
                        .map(|()| text.to_owned())
                        .map_err(|error| error.to_string())
                })
                .unwrap_or_else(|| proffer_telemetry::DEFAULT_FILTER.into()),
            log_format: match reader.get("log-json", parse_bool) {
                Some(true) => Format::Json,
                Some(false) | None => Format::Text,
            },
        };
        config.check(&mut reader);
        reader.finish(config)
    }

    /// What each setting cannot know by itself.
    fn check(&self, reader: &mut Reader<'_>) {
        if !self.listen.ip().is_loopback() && !self.insecure {
            reader.problem(format!(
                "listen: {} is not a loopback address, and connections carry no credentials yet: whoever reaches the \
                 port could run anything on every node. Listen on 127.0.0.1, or say --insecure if the network is \
                 yours alone",
                self.listen
            ));
        }
        let masters = self.masters().len();
        if !matches!(masters, 1 | 3 | 5) {
            reader.problem(format!(
                "peers: {masters} masters; a cluster has 1, 3 or 5 (an even number survives no more losses than one \
                 less)"
            ));
        }
    }

    /// All masters, this one included, by id.
    pub fn masters(&self) -> Vec<(u64, String)> {
        let mut masters: Vec<_> = self.peers.iter().filter(|(id, _)| *id != self.id).cloned().collect();
        masters.push((self.id, self.advertise.clone()));
        masters.sort();
        masters
    }
}

impl Flags {
    /// Every key with what flag or variable said.
    fn list(&self) -> proffer_settings::Flags<'_> {
        [
            ("id", &self.id),
            ("listen", &self.listen),
            ("advertise", &self.advertise),
            ("data-dir", &self.data_dir),
            ("peers", &self.peers),
            ("insecure", &self.insecure),
            ("heartbeat-ms", &self.heartbeat_ms),
            ("offer-timeout-ms", &self.offer_timeout_ms),
            ("log", &self.log),
            ("log-json", &self.log_json),
        ]
        .map(|(key, value)| (key, value.as_deref()))
        .into()
    }
}

fn parse_peers(text: &str) -> Result<Vec<(u64, String)>, String> {
    let mut peers: Vec<(u64, String)> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (id, address) = item.split_once('=').ok_or_else(|| format!("`{item}` is not ID=HOST:PORT"))?;
        let id = parse_number(id.trim(), 1, u64::MAX)?;
        if peers.iter().any(|(known, _)| *known == id) {
            return Err(format!("master {id} is there twice"));
        }
        peers.push((id, parse_address(address)?));
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(list: &[&str], file: &str) -> Result<Config, Problems> {
        let flags = Flags::try_parse_from(["proffer-master"].iter().chain(list)).expect("flags");
        Config::resolve(Reader::over(flags.list(), file, Path::new("master.toml")))
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let list = ["--id", "0", "--listen", "0.0.0.0:5050", "--peers", "1=a:1,1=b:2"];
        let file = "heartbeat-ms = 1\npeer = \"x\"\n";
        let problems = resolve(&list, file).expect_err("problems").to_string();
        let parts = [
            "id: `0`",
            "listen: 0.0.0.0",
            "advertise:",
            "master 1 is there twice",
            "heartbeat-ms: `1`",
            "`peer`",
        ];
        for part in parts {
            assert!(problems.contains(part), "{part} in {problems}");
        }
    }

    #[test]
    fn a_master_may_be_among_its_peers() {
        let peers = "1=127.0.0.1:1,2=127.0.0.1:2,3=127.0.0.1:3";
        let config =
            resolve(&["--id", "2", "--listen", "127.0.0.1:2", "--peers", peers], "").expect("settings");
        assert_eq!(config.masters().len(), 3);
        assert!(resolve(&["--peers", "2=127.0.0.1:2"], "").is_err(), "two masters");
    }

    #[test]
    fn a_peer_is_an_id_and_an_address() {
        for wrong in ["1", "x=a:1", "1=a", "1=:1", "1=a:0", "1=a:70000", "0=a:1"] {
            assert!(parse_peers(wrong).is_err(), "{wrong}");
        }
    }
}
