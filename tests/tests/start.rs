//! What is wrong at start is told with the path, the key or the id and what to do, and the files stay as they were.

use std::fs;
use std::path::{Path, PathBuf};

use proffer_tests::cluster::{Cluster, Daemon, Framework, Options, audit, info, program, ran};

use super::{LIMIT, beside_others};

/// Starts a daemon that must refuse to, and returns what it says.
async fn refuses(daemon: &mut Daemon, code: i32) -> String {
    let from = daemon.log_text().len();
    daemon.start();
    let status = daemon.ended().await;
    let said = daemon.log_text().split_off(from);
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

/// A cluster of one master that has some records on disk and does not run.
async fn stopped(masters: usize) -> Cluster {
    let mut cluster = Cluster::start(Options { masters, agents: 0, ..Options::default() }).await;
    // Something to write about.
    drop(Framework::connect(&cluster.addresses(), info("x")).await);
    for master in &mut cluster.masters {
        assert!(master.stop().await.success());
    }
    cluster
}

fn segment(data: &Path) -> PathBuf {
    let files = fs::read_dir(data.join("log")).expect("the log").flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "log")).expect("a segment")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_told_and_left_alone() {
    let _machine = beside_others().await;
    let mut cluster = stopped(1).await;
    let master = &mut cluster.masters[0];
    let path = segment(&master.dir);
    // In the payload of the first record: 64 bytes of header, 32 of the record's own.
    change(&path, |bytes| bytes[100] ^= 0x10);
    let before = audit::digest(&master.dir);
    let said = refuses(master, 1).await;
    assert!(said.contains(path.to_str().expect("text")), "{said}");
    assert!(said.contains("is damaged at byte") && said.contains("Restore this data directory"), "{said}");
    assert_eq!(audit::digest(&master.dir), before, "untouched");
    // Whole again, it starts.
    change(&path, |bytes| bytes[100] ^= 0x10);
    master.start();
    cluster.leader().await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_data_directory_of_a_newer_version_is_told_and_left_alone() {
    let _machine = beside_others().await;
    let mut cluster = stopped(1).await;
    let master = &mut cluster.masters[0];
    let path = segment(&master.dir);
    change(&path, |bytes| {
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..12]);
        crc.update(&bytes[16..64]);
        bytes[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    });
    let before = audit::digest(&master.dir);
    let said = refuses(master, 1).await;
    assert!(said.contains(path.to_str().expect("text")), "{said}");
    assert!(said.contains("version 2") && said.contains("Start the version that wrote it"), "{said}");
    assert_eq!(audit::digest(&master.dir), before, "untouched");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_data_directory_of_another_master_is_told_and_left_alone() {
    let _machine = beside_others().await;
    let mut three = stopped(3).await;
    let second = three.masters[1].dir.clone();
    let first = three.masters[0].dir.clone();
    fs::rename(&first, first.with_extension("away")).expect("moved");
    fs::rename(&second, &first).expect("moved");
    let before = audit::digest(&first);
    let said = refuses(&mut three.masters[0], 1).await;
    assert!(said.contains(first.to_str().expect("text")), "{said}");
    assert!(said.contains("belongs to master 2, but this is master 1") && said.contains("--id 2"), "{said}");
    assert_eq!(audit::digest(&first), before, "untouched");
    assert_eq!(three.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_data_directory_of_another_cluster_is_told_and_left_alone() {
    let _machine = beside_others().await;
    let strangers = stopped(3).await;
    let mut cluster = stopped(3).await;
    let own = cluster.masters[2].dir.clone();
    fs::rename(&own, own.with_extension("away")).expect("moved");
    fs::rename(&strangers.masters[2].dir, &own).expect("moved");
    cluster.masters[0].start();
    cluster.masters[1].start();
    cluster.leader().await;
    let before = audit::digest(&own);
    let said = refuses(&mut cluster.masters[2], 1).await;
    assert!(said.contains(own.to_str().expect("text")), "{said}");
    assert!(said.contains("cluster"), "{said}");
    let (view, _) = cluster.admin().status().await.expect("the others go on");
    assert!(said.contains(&view.cluster.to_string()), "names {}: {said}", view.cluster);
    assert_eq!(audit::digest(&own), before, "untouched");
    assert_eq!(cluster.end(), Vec::<String>::new());
    fs::create_dir_all(&strangers.masters[2].dir).expect("a directory");
    assert_eq!(strangers.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_of_another_cluster_says_so_and_stops() {
    let _machine = beside_others().await;
    let mut strangers = Cluster::start(Options::default()).await;
    let mut cluster = Cluster::start(Options::default()).await;
    let theirs = strangers.admin().status().await.expect("a status").0.cluster;
    assert!(strangers.agents[0].stop().await.success() && cluster.agents[0].stop().await.success());
    let own = cluster.agents[0].dir.clone();
    fs::rename(&own, own.with_extension("away")).expect("moved");
    fs::rename(&strangers.agents[0].dir, &own).expect("moved");
    let before = audit::digest(&own);
    let said = refuses(&mut cluster.agents[0], 1).await;
    for part in [&theirs.to_string(), "--masters", "--work-dir"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(audit::digest(&own), before, "untouched");
    assert_eq!(cluster.agent_rows().await.len(), 1, "it was not taken in");
    assert_eq!(cluster.end(), Vec::<String>::new());
    fs::create_dir_all(&strangers.agents[0].dir).expect("a directory");
    assert_eq!(strangers.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_busy_port_is_told_before_any_file_is_touched() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::prepare(&Options::default());
    for daemon in cluster.masters.iter_mut().chain(&mut cluster.agents) {
        let _busy = std::net::TcpListener::bind(&daemon.address).expect("our own address");
        let before = audit::digest(&daemon.dir);
        let said = refuses(daemon, 1).await;
        assert!(said.contains(&daemon.address) && said.contains("--listen"), "{said}");
        assert_eq!(audit::digest(&daemon.dir), before, "untouched");
    }
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_unknown_key_in_a_configuration_is_told_with_all_else_that_is_wrong() {
    let _machine = beside_others().await;
    let cluster = Cluster::prepare(&Options::default());
    let path = cluster.dir().join("settings.toml");
    fs::write(&path, "colour = \"red\"\nlisten = \"nowhere\"\n").expect("a file");
    for name in ["proffer-master", "proffer-agent"] {
        let mut command = tokio::process::Command::new(program(name));
        command.env_clear().arg("--config").arg(&path).kill_on_drop(true);
        let ran = ran(command, LIMIT).await;
        assert_eq!(ran.code, Some(2), "{name}: {ran:?}");
        for part in [path.to_str().expect("text"), "colour", "listen", "nowhere"] {
            assert!(ran.stderr.contains(part), "{name}: {part} in {}", ran.stderr);
        }
    }
    assert_eq!(cluster.end(), Vec::<String>::new());
}
