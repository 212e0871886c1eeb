//! `proffer agent`

use super::Cluster;
use crate::args::AgentVerb;
use crate::fail::Failure;
use crate::ids;
use crate::render::{Agent, Out};

pub(crate) async fn agent(cluster: &Cluster, verb: AgentVerb, out: &Out) -> Result<(), Failure> {
    match verb {
        AgentVerb::List => {
            let rows = cluster.admin.agents().await?;
            out.list(&rows.into_iter().map(|row| Agent::new(row, cluster.cell())).collect::<Vec<_>>())
        }
        AgentVerb::Show { agent } => {
            let id = ids::agent(cluster, &agent).await?;
            let row = cluster.admin.agent(id).await?;
            out.show(&Agent::new(row, cluster.cell()))
        }
    }
}
