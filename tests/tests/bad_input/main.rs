//! Bad input, one row per case, against the port of a running master: each is refused with the code and the words that
//! are promised, the master serves on, and nothing it knows has changed.

#![allow(clippy::print_stdout, reason = "why a test was skipped is told on standard output")]

mod bench;
mod rows;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proffer_client::rows::TaskFilter;
use proffer_tests::cluster::{Cluster, Options, until_true};
use proffer_wire::agent::v1 as agent;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::common::v1 as common;
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use bench::{Bench, LIMIT, Raw, accept, amount, named, reason, subscribe_request, told};
use rows::{CALLS, EXECUTORS, GROUPS, IDS, LARGE, OFFERS, RESOURCES};

#[tokio::test]
async fn every_bad_request_is_refused_and_changes_nothing() {
    let mut bench = Bench::start().await;
    let mut wrong = Vec::new();
    for (name, ask, (code, reason, says)) in
        [IDS, RESOURCES, OFFERS, GROUPS, EXECUTORS, CALLS, LARGE].concat()
    {
        println!("{name}");
        bench.ready().await;
        let (index, before) = bench.state().await;
        let result = bench.play(ask(&bench)).await;
        let (got, got_reason, message) = match &result {
            Ok(refusals) => (Code::Ok, refusals.join(","), String::new()),
            Err(status) => (status.code(), self::reason(status), told(status)),
        };
        if got != code || (!reason.is_empty() && got_reason != reason) || !message.contains(says) {
            wrong.push(format!(
                "{name}: {code:?} {reason} `{says}` was expected: {got:?} {got_reason} `{message}`"
            ));
        }
        bench.is_serving(name).await;
        let (later, after) = bench.state().await;
        if after != before {
            wrong.push(format!("{name}: changed the state\n{before}\nto\n{after}"));
        }
        // A call that is refused as a whole is not even proposed; the clock alone may have moved the log.
        if code != Code::Ok && later > index + 1 {
            wrong.push(format!("{name}: the log went from {index} to {later}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let held = bench.cluster.admin().tasks(&TaskFilter::default()).await.expect("the tasks");
    assert_eq!(held.len(), 1);
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_offer_that_has_expired_is_refused() {
    let cluster = Cluster::start(Options { offer_timeout_ms: 300, ..Options::default() }).await;
    let endpoint =
        Endpoint::from_shared(format!("http://{}", cluster.masters[0].address)).expect("an address");
    let channel = endpoint.connect().await.expect("a connection");
    let mut raw = Raw::subscribe(&channel, subscribe_request("slow", 1)).await;
    raw.until("an offer", |raw| !raw.offers.is_empty()).await;
    let offer = raw.offers.values().next().and_then(|offer| offer.id).expect("an offer");
    raw.until("it expires", |raw| !raw.offers.contains_key(&offer.n)).await;
    raw.seq = 1;
    let request = accept(&raw, vec![(vec![offer], vec![named("late")])]);
    let status = raw.client.accept(request).await.expect_err("it is too late");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(reason(&status), "INVALID_OFFER", "{status}");
    assert!(cluster.admin().tasks(&TaskFilter::default()).await.expect("the tasks").is_empty());
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// What somebody says who is no agent.
fn strange_messages(bench: &Bench) -> Vec<(&'static str, agent::AgentMessage)> {
    use agent::agent_item::Item;
    let hello = agent::Hello {
        instance: vec![7; 16].into(),
        boot_id: vec![8; 16].into(),
        info: Some(agent::AgentInfo {
            hostname: "nowhere".into(),
            resources: vec![amount("cpus", 1_000)],
            isolation: "process".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let say = |agent_id: u64, item: Item| agent::AgentMessage {
        agent_id,
        epoch: None,
        items: vec![agent::AgentItem { item: Some(item) }],
    };
    let info = |change: fn(&mut agent::AgentInfo)| {
        let mut hello = hello.clone();
        change(hello.info.as_mut().expect("it has one"));
        say(0, Item::Hello(hello))
    };
    let known = bench.own.offers.values().next().map_or(0, |offer| offer.agent_id);
    let status =
        agent::TaskStatus { launch_id: 1, status: Some(common::Status { state: 6, ..Default::default() }) };
    vec![
        ("nothing", agent::AgentMessage::default()),
        ("a pong before any hello", say(known, Item::Pong(agent::Pong { n: 1 }))),
        ("a status before any hello", say(known, Item::Status(status))),
        (
            "an instance of 3 bytes",
            say(0, Item::Hello(agent::Hello { instance: vec![1; 3].into(), ..hello.clone() })),
        ),
        ("no boot id", say(0, Item::Hello(agent::Hello { boot_id: Vec::new().into(), ..hello.clone() }))),
        ("no info", say(0, Item::Hello(agent::Hello { info: None, ..hello.clone() }))),
        ("zero cpus", info(|info| info.resources = vec![amount("cpus", 0)])),
        ("memory that overflows", info(|info| info.resources = vec![amount("mem", 1 << 63)])),
        ("an over-long host name", info(|info| info.hostname = "x".repeat(100_000))),
        ("another installation with a known id", say(known, Item::Hello(hello.clone()))),
        ("an id that was never given", say(1 << 40, Item::Hello(hello.clone()))),
        (
            "another cluster",
            say(0, Item::Hello(agent::Hello { cluster_id: "ab".repeat(16), ..hello.clone() })),
        ),
        (
            "a leadership of the far future",
            say(
                known,
                Item::Hello(agent::Hello {
                    epoch_seen: Some(common::Epoch { generation: 9, term: 9 }),
                    ..hello.clone()
                }),
            ),
        ),
    ]
}

#[tokio::test]
async fn who_only_plays_an_agent_is_refused_and_changes_nothing() {
    use agent::master_item::Item;
    let bench = Bench::start().await;
    let before = bench.state().await.1;
    for (name, message) in strange_messages(&bench) {
        let mut client = AgentServiceClient::new(bench.channel.clone());
        let (to_master, messages) = mpsc::channel(1);
        to_master.send(message).await.expect("room");
        let spoken = async {
            let mut answers =
                client.session(tokio_stream::wrappers::ReceiverStream::new(messages)).await?.into_inner();
            while let Some(message) = answers.message().await? {
                let item = message.items.into_iter().find_map(|item| item.item);
                match item {
                    Some(Item::Welcome(_) | Item::Launch(_)) => return Ok::<_, Status>(Some(item)),
                    Some(_) => return Ok(None),
                    None => {}
                }
            }
            Ok(None)
        };
        let outcome = tokio::time::timeout(LIMIT, spoken).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name}: no answer"));
        assert!(!matches!(outcome, Ok(Some(_))), "{name}: {outcome:?}");
        drop(to_master);
        bench.is_serving(name).await;
        assert_eq!(bench.state().await.1, before, "{name}");
    }
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream
}

/// Sends bytes and reads until the other end has closed.
fn provoke(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // It may have had enough before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("{:?} is neither answered nor closed", &bytes[..bytes.len().min(40)])
        }
        _ => answer,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_harms_nobody() {
    let bench = Bench::start().await;
    let address = bench.cluster.masters[0].address.clone();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut noise = Vec::new();
    let mut x = 1u32;
    for _ in 0..65_536 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((x >> 24) as u8);
    }
    let raft = [&[proffer_master::listen::RAFT_BYTE][..], &noise[..4_000]].concat();
    let frames = [&preface[..], &[0xff; 64]].concat();
    let huge = [&preface[..], &[0xff, 0xff, 0xff, 1, 4, 0x7f, 0xff, 0xff, 0xff]].concat();
    let continuation = {
        // HEADERS without END_HEADERS, then CONTINUATION without end.
        let mut bytes =
            [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]].concat();
        (0..20_000).for_each(|_| bytes.extend([0, 0, 4, 9, 0, 0, 0, 0, 1, 0x40, 1, b'a', 0]));
        bytes
    };
    let cases: [(&str, &[u8]); 12] = [
        ("nothing", b""),
        ("a zero byte", b"\0"),
        ("a line", b"hello\r\n"),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n"),
        ("a header without end", &[&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 100_000]].concat()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("noise", &noise),
        ("noise as of a master", &raft),
        ("noise after the preface", &frames),
        ("a frame of 16 MiB", &huge),
        ("headers without end", &continuation),
        ("half a preface", &preface[..10]),
    ];
    for (name, bytes) in cases {
        let before = bench.state().await.1;
        let (address, bytes) = (address.clone(), bytes.to_owned());
        tokio::task::spawn_blocking(move || provoke(&address, &bytes)).await.expect("it is closed");
        bench.is_serving(name).await;
        assert_eq!(bench.state().await.1, before, "{name}");
    }
    let mut master = bench.cluster;
    assert!(master.masters[0].poll().is_none(), "the master runs");
    assert!(!master.masters[0].log_text().contains("panicked"));
    assert_eq!(master.end(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_by_the_hundred_are_let_go() {
    let bench = Bench::start().await;
    let before = bench.state().await.1;
    let address = bench.cluster.masters[0].address.clone();
    let beginnings: [&[u8]; 4] = [b"", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"];
    let mut connections: Vec<TcpStream> = Vec::new();
    for n in 0..400 {
        let mut stream = connect(&address);
        stream.write_all(beginnings[n % beginnings.len()]).expect("room");
        stream.set_nonblocking(true).expect("a flag");
        connections.push(stream);
    }
    let begun = Instant::now();
    bench.is_serving("400 half-open connections").await;
    assert_eq!(bench.state().await.1, before);
    assert!(begun.elapsed() < Duration::from_secs(5), "others are served meanwhile: {:?}", begun.elapsed());
    until_true("all of them are closed", LIMIT, || {
        connections.retain_mut(|stream| {
            loop {
                match stream.read(&mut [0; 512]) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        connections.is_empty()
    })
    .await;
    bench.is_serving("afterwards").await;
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}
