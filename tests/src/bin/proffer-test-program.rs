//! What tests run as tasks and executors where a shell will not do: `proffer-test-program MODE [ARG]`.
//!
//! As an executor, by the protocol alone: `silent` never subscribes, `exits` ends with 7 when it is handed a task, the
//! lies (`stranger`, `backwards`, `forgets`) say what cannot be, `floods` says far more than is taken, and `stuck` ends
//! for nobody. As a task: `health PORT FILE` serves gRPC health, SERVING while FILE is there.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use proffer_types::TaskState;
use proffer_wire::executor::v1 as pb;
use proffer_wire::executor::v1::event::Event;
use proffer_wire::executor::v1::executor_service_client::ExecutorServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;

type Client = ExecutorServiceClient<Channel>;
type Problem = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args[..] {
        ["silent"] => std::future::pending().await,
        ["health", port, file] => health(port, file.into()).await,
        [mode] => executor(mode).await,
        _ => Err("usage: proffer-test-program MODE [ARG…]".into()),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn connect() -> Result<Client, Problem> {
    let socket = std::env::var("PROFFER_EXECUTOR_SOCKET")?;
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Ok(Client::new(Endpoint::from_static("http://agent").connect_with_connector(connector).await?))
}

fn status(launch_id: u64, seq: u32, state: TaskState) -> pb::Status {
    pb::Status { launch_id, seq, state: state.number().into(), ..pb::Status::default() }
}

async fn executor(mode: &str) -> Result<ExitCode, Problem> {
    let mut client = connect().await?;
    let mut events = client.subscribe(pb::SubscribeRequest::default()).await?.into_inner();
    while let Some(message) = events.message().await? {
        for event in message.events.into_iter().filter_map(|event| event.event) {
            match event {
                Event::Launch(launch) => {
                    for task in launch.tasks {
                        if let Some(code) = on_task(&mut client, mode, task.launch_id).await? {
                            return Ok(code);
                        }
                    }
                }
                Event::Shutdown(_) if mode != "stuck" => return Ok(ExitCode::SUCCESS),
                _ => {}
            }
        }
    }
    // Told off: whoever does not end by itself is ended.
    std::future::pending().await
}

async fn on_task(client: &mut Client, mode: &str, launch: u64) -> Result<Option<ExitCode>, Problem> {
    let update = |statuses| pb::UpdateRequest { statuses };
    client.update(update(vec![status(launch, 1, TaskState::Running)])).await?;
    match mode {
        "exits" => return Ok(Some(ExitCode::from(7))),
        "stranger" => {
            drop(client.update(update(vec![status(launch + 1_000_000, 1, TaskState::Running)])).await)
        }
        "backwards" => {
            let both = vec![status(launch, 2, TaskState::Finished), status(launch, 3, TaskState::Running)];
            drop(client.update(update(both)).await);
        }
        "forgets" => drop(client.subscribe(pb::SubscribeRequest::default()).await),
        "floods" => flood(client, launch).await?,
        "stuck" => {}
        _ => return Err(format!("no mode `{mode}`").into()),
    }
    Ok(None)
}

/// Says what was never asked for, for as long as it is let, and tells once how often it was refused.
async fn flood(client: &mut Client, launch: u64) -> Result<(), Problem> {
    let (mut seq, mut refused) = (1, 0u64);
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < until {
        let statuses = (1..=500)
            .map(|n| pb::Status { data: vec![7; 256].into(), ..status(launch, seq + n, TaskState::Running) });
        match client.update(pb::UpdateRequest { statuses: statuses.collect() }).await {
            Ok(_) => seq += 500,
            Err(status) if status.code() == tonic::Code::ResourceExhausted => refused += 1,
            Err(status) => return Err(status.into()),
        }
        match client.send_message(pb::SendMessageRequest { data: vec![7; 60 << 10].into() }).await {
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::ResourceExhausted => refused += 1,
            Err(status) => return Err(status.into()),
        }
    }
    loop {
        let said = pb::Status {
            message: format!("refused {refused} times"),
            ..status(launch, seq + 1, TaskState::Finished)
        };
        match client.update(pb::UpdateRequest { statuses: vec![said] }).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

async fn health(port: &str, file: PathBuf) -> Result<ExitCode, Problem> {
    let (reporter, service) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        loop {
            let well = if file.exists() { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", well).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let address = format!("127.0.0.1:{port}").parse()?;
    tonic::transport::Server::builder().add_service(service).serve(address).await?;
    Ok(ExitCode::SUCCESS)
}
