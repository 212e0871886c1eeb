//! The running master: Raft, the driver and the served port, each on threads of its own.

use std::path::Path;

use anyhow::Context;
use proffer_types::limits;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, Flags};
use crate::driver::{Driver, MasterSettings};
use crate::listen::listen;
use crate::serve::Server;

/// Runs a master until SIGTERM or SIGINT.
///
/// # Errors
/// A port that is taken; a data directory that is another's, damaged, in use or of a newer version; anything that
/// makes going on impossible later.
pub fn run(flags: Flags, config: &Config) -> anyhow::Result<()> {
    let level = proffer_telemetry::init(config.log_format, &config.log)?;
    if !config.listen.ip().is_loopback() {
        warn!(
            listen = %config.listen,
            "insecure: connections carry no credentials, so everyone who can reach this port can run anything on \
             every node"
        );
    }
    // The port first: a second master on the same machine must not get as far as the data directory.
    let listener = std::net::TcpListener::bind(config.listen).with_context(|| {
        format!(
            "cannot listen on {}: is another master running there? Choose another port with --listen",
            config.listen
        )
    })?;
    listener.set_nonblocking(true)?;
    let settings = MasterSettings {
        id: config.id,
        advertise: config.advertise.clone(),
        masters: config.masters(),
        broker: proffer_broker::Settings {
            heartbeat_ms: config.heartbeat_ms,
            offer_timeout_ms: config.offer_timeout_ms,
            // Whoever hears the master less often finds out later that it is another.
            reconnect_grace_ms: limits::RECONNECT_GRACE_MS
                .max(config.heartbeat_ms * u64::from(limits::PINGS_MISSED_MAX)),
            ..proffer_broker::Settings::default()
        },
    };
    let (handle, driver) = Driver::new(settings);
    let mut options = proffer_raft::Options::new(config.id, config.peers.clone(), &config.data_dir);
    options.advertise = config.advertise.clone();
    prepare(&config.data_dir)?;
    let raft = proffer_raft::Raft::open(options, handle.raft_events())?;
    info!(master.id = config.id, listen = %config.listen, data_dir = %config.data_dir.display(), "serving");

    let (stop, stopped) = watch::channel(false);
    let mind = {
        let (raft, stop) = (raft.clone(), stop.clone());
        std::thread::Builder::new().name("mind".into()).spawn(move || {
            let result = driver.run(raft);
            let _ = stop.send(true);
            result
        })?
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let incoming = raft.clone();
    runtime.block_on(async {
        let server = Server::new(handle.clone(), config.heartbeat_ms).await;
        let listener = TcpListener::from_std(listener)?;
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload(&flags, &level);
            }
        });
        let mut faulted = stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                _ = faulted.changed() => {}
            }
            let _ = stop.send(true);
        });
        listen(listener, server, move |stream| incoming.incoming(stream), stopped).await;
        anyhow::Ok(())
    })?;
    handle.stop();
    let result = mind.join().map_err(|_| anyhow::anyhow!("the mind's thread panicked"))?;
    raft.shutdown();
    info!("stopped");
    result
}

/// Takes up what may change while the master runs: how much is logged.
fn reload(flags: &Flags, level: &proffer_telemetry::Level) {
    match Config::load(flags) {
        Ok(config) => match level.set(&config.log) {
            Ok(()) => info!(log = config.log, "settings read again"),
            Err(error) => warn!(%error, "settings read again, and not used"),
        },
        Err(problems) => warn!(%problems, "settings read again, and not used"),
    }
}

fn prepare(data_dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(data_dir).with_context(|| {
        format!("cannot make the data directory {} (choose one with --data-dir)", data_dir.display())
    })
}
