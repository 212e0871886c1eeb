//! The verbs.

pub(crate) mod agent;
pub(crate) mod complete;
pub(crate) mod dev;
pub(crate) mod events;
pub(crate) mod executor;
pub(crate) mod framework;
pub(crate) mod hands;
pub(crate) mod run;
pub(crate) mod task;
pub(crate) mod top;

use proffer_client::AdminClient;
use proffer_types::CellTag;

use crate::fail::Failure;
use crate::render::{Master, Offer, Out, Status};

/// The cluster that verbs speak to.
pub(crate) struct Cluster {
    pub(crate) masters: Vec<String>,
    pub(crate) admin: AdminClient,
}

impl Cluster {
    pub(crate) fn new(masters: &[String]) -> Self {
        Self { masters: masters.to_vec(), admin: AdminClient::new(masters) }
    }

    /// The tag in this cluster's ids, known after the first answer.
    pub(crate) fn cell(&self) -> CellTag {
        self.admin.cell()
    }
}

/// `proffer status`
pub(crate) async fn status(cluster: &Cluster, out: &Out) -> Result<(), Failure> {
    let (view, summary) = cluster.admin.status().await?;
    out.status(&Status::new(view.cluster, summary))
}

/// `proffer offer list`
pub(crate) async fn offers(cluster: &Cluster, out: &Out) -> Result<(), Failure> {
    let rows = cluster.admin.offers().await?;
    out.list(&rows.into_iter().map(|row| Offer::new(row, cluster.cell())).collect::<Vec<_>>())
}

/// `proffer master list`
pub(crate) async fn masters(cluster: &Cluster, out: &Out) -> Result<(), Failure> {
    let rows = cluster.admin.masters().await?;
    out.list(&rows.into_iter().map(Master::from).collect::<Vec<_>>())
}
