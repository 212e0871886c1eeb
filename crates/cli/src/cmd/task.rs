//! `proffer task`

use std::time::Duration;

use proffer_client::rows::TaskFilter;
use proffer_client::{LogReader, LogRequest, LogStream};
use proffer_types::{FrameworkId, TaskId};

use super::run::output::{Printer, Sink};
use super::{Cluster, hands};
use crate::args::{Stream, TaskVerb};
use crate::fail::Failure;
use crate::ids;
use crate::render::{Out, Task};

/// How long `logs` tries again while nothing can be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// And how long with `--follow`: an agent's restart.
const PATIENCE_FOLLOWING: Duration = Duration::from_secs(60);

pub(crate) async fn task(cluster: &Cluster, verb: TaskVerb, out: &Out) -> Result<u8, Failure> {
    match verb {
        TaskVerb::List { framework, agent, state } => {
            let mut filter = TaskFilter { states: state.into_iter().collect(), ..TaskFilter::default() };
            if let Some(given) = framework {
                filter.framework = Some(ids::framework(cluster, &given).await?);
            }
            if let Some(given) = agent {
                filter.agent = Some(ids::agent(cluster, &given).await?);
            }
            let rows = cluster.admin.tasks(&filter).await?;
            out.list(&rows.into_iter().map(|row| Task::new(row, cluster.cell())).collect::<Vec<_>>())?;
        }
        TaskVerb::Show { task } => {
            let (framework, task) = ids::task(cluster, &task).await?;
            let row = cluster.admin.task(framework, &task).await?;
            out.show(&Task::new(row, cluster.cell()))?;
        }
        TaskVerb::Logs { task, follow, stream } => {
            let (framework, task) = ids::task(cluster, &task).await?;
            return logs(cluster, framework, &task, follow, stream).await;
        }
        TaskVerb::Exec(args) => return hands::exec::exec(cluster, args).await,
        TaskVerb::Attach { task, no_stdin } => {
            return hands::attach::attach(cluster, &task, no_stdin, out).await;
        }
        TaskVerb::Files { task, path, all } => {
            return hands::files::files(cluster, &task, &path, all, out).await;
        }
        TaskVerb::Cp { from, to } => return hands::copy::copy(cluster, from, to, out).await,
        TaskVerb::Kill { task, grace } => {
            for given in &task {
                let (framework, task) = ids::task(cluster, given).await?;
                cluster.admin.kill_task(framework, &task, grace).await?;
                if !out.is_quiet() {
                    eprintln!("task {}/{task} is being ended", framework.text(cluster.cell()));
                }
            }
        }
    }
    Ok(0)
}

async fn logs(
    cluster: &Cluster,
    framework: FrameworkId,
    task: &TaskId,
    follow: bool,
    only: Option<Stream>,
) -> Result<u8, Failure> {
    let (printer, done) = Printer::start();
    let read = async |stream: LogStream, wanted: bool| {
        if !wanted {
            return Ok(());
        }
        let patience = if follow { PATIENCE_FOLLOWING } else { PATIENCE };
        let request = LogRequest { framework, task: task.clone(), stream, offset: 0, follow, patience };
        let mut sink = Sink::new(printer.clone(), stream, false);
        sink.copy(LogReader::new(cluster.admin.clone(), request)).await
    };
    let both = async {
        tokio::join!(
            read(LogStream::Stdout, only != Some(Stream::Stderr)),
            read(LogStream::Stderr, only != Some(Stream::Stdout)),
        )
    };
    let (stdout, stderr) = tokio::select! {
        both = both => both,
        // Nobody reads any more: then neither do we, even of a stream that has nothing to say.
        () = printer.closed() => (Ok(()), Ok(())),
    };
    drop(printer);
    done.wait().await?;
    stdout.and(stderr).map(|()| 0)
}
