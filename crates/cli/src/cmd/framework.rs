//! `proffer framework`

use super::Cluster;
use crate::args::FrameworkVerb;
use crate::fail::Failure;
use crate::ids;
use crate::render::{Framework, Out};

pub(crate) async fn framework(cluster: &Cluster, verb: FrameworkVerb, out: &Out) -> Result<(), Failure> {
    match verb {
        FrameworkVerb::List { completed } => {
            let rows = cluster.admin.frameworks(completed).await?;
            out.list(&rows.into_iter().map(|row| Framework::new(row, cluster.cell())).collect::<Vec<_>>())
        }
        FrameworkVerb::Show { framework } => {
            let id = ids::framework(cluster, &framework).await?;
            let row = cluster.admin.framework(id).await?;
            out.show(&Framework::new(row, cluster.cell()))
        }
        FrameworkVerb::Teardown { framework } => {
            let id = ids::framework(cluster, &framework).await?;
            cluster.admin.teardown(id).await?;
            if !out.is_quiet() {
                eprintln!("framework {} is torn down; its tasks are being ended", id.text(cluster.cell()));
            }
            Ok(())
        }
    }
}
