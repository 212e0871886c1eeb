//! The cluster at a glance.

use std::collections::BTreeMap;
use std::fmt::Write;

use proffer_client::rows::StatusSummary;
use proffer_types::{ClusterId, Resources};
use serde::Serialize;

use super::rows::{Amounts, Master};
use super::{lines, plain_table, text};

/// The cluster at a glance.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) cluster_id: String,
    leader: String,
    leader_id: u64,
    term: u64,
    masters: Vec<Master>,
    agents: Agents,
    resources: Totals,
    tasks: BTreeMap<String, u64>,
    frameworks: BTreeMap<String, u64>,
    #[serde(skip)]
    amounts: [(&'static str, Resources); 4],
}

#[derive(Clone, Debug, Serialize)]
struct Agents {
    reachable: u32,
    unreachable: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Totals {
    total: Amounts,
    used: Amounts,
    offered: Amounts,
    free: Amounts,
}

impl Status {
    pub(crate) fn new(cluster: ClusterId, summary: StatusSummary) -> Self {
        Self {
            cluster_id: cluster.to_string(),
            leader: summary.leader,
            leader_id: summary.leader_id.0,
            term: summary.term,
            masters: summary.masters.into_iter().map(Master::from).collect(),
            agents: Agents { reachable: summary.agents_reachable, unreachable: summary.agents_unreachable },
            resources: Totals {
                total: (&summary.total).into(),
                used: (&summary.used).into(),
                offered: (&summary.offered).into(),
                free: (&summary.free).into(),
            },
            tasks: summary.tasks,
            frameworks: summary.frameworks,
            amounts: [
                ("total", summary.total),
                ("used", summary.used),
                ("offered", summary.offered),
                ("free", summary.free),
            ],
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let counts = |counts: &BTreeMap<String, u64>| {
            let list =
                counts.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{n} {}", text::clean(name)));
            text::or_dash(list.collect::<Vec<_>>().join(", "))
        };
        let masters: Vec<String> = self
            .masters
            .iter()
            .map(|master| {
                format!("{} {} {}", master.id, text::clean(&master.addr), text::clean(&master.role))
            })
            .collect();
        let Agents { reachable, unreachable } = self.agents;
        let mut out = String::new();
        let mut line =
            |label: &str, value: String| writeln!(out, "{label:10}  {value}").expect("a String takes it");
        line("cluster", self.cluster_id.clone());
        line(
            "leader",
            format!("{} (master {}, term {})", text::clean(&self.leader), self.leader_id, self.term),
        );
        line("masters", text::or_dash(masters.join(", ")));
        line("agents", format!("{reachable} reachable, {unreachable} unreachable"));
        line("frameworks", counts(&self.frameworks));
        line("tasks", counts(&self.tasks));
        let mut table = plain_table(false);
        table.set_header(["RESOURCES", "CPUS", "MEM", "DISK"]);
        for (label, resources) in &self.amounts {
            let disk = resources.scalar(proffer_types::resources::ScalarKind::Disk);
            table.add_row([
                (*label).to_owned(),
                text::cpus(resources),
                text::size(resources.memory_bytes()),
                text::size(disk),
            ]);
        }
        out.push('\n');
        out + &lines(&table)
    }
}
