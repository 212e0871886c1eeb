//! `proffer executor`

use super::Cluster;
use crate::args::ExecutorVerb;
use crate::fail::Failure;
use crate::ids;
use crate::render::{Executor, Out};

pub(crate) async fn executor(cluster: &Cluster, verb: ExecutorVerb, out: &Out) -> Result<(), Failure> {
    match verb {
        ExecutorVerb::List { framework, ended } => {
            let framework = match framework {
                Some(given) => Some(ids::framework(cluster, &given).await?),
                None => None,
            };
            let rows = cluster.admin.executors(framework, ended).await?;
            out.list(&rows.into_iter().map(|row| Executor::new(row, cluster.cell())).collect::<Vec<_>>())
        }
        ExecutorVerb::Show { executor } => out.show(&ids::executor(cluster, &executor).await?),
    }
}
