//! Ids on the command line: whole, or as much of their beginning as is unique.

use std::collections::BTreeMap;

use proffer_client::rows::TaskFilter;
use proffer_types::{AgentId, CellTag, FrameworkId, TaskId};

use crate::cmd::Cluster;
use crate::fail::{Code, Failure};
use crate::render::{Executor, text};

/// Most candidates that an ambiguity lists.
const LISTED_MAX: usize = 20;

/// The framework that `given` names.
pub(crate) async fn framework(cluster: &Cluster, given: &str) -> Result<FrameworkId, Failure> {
    if let Ok((cell, id)) = FrameworkId::parse(given) {
        match cluster.admin.framework(id).await {
            Ok(row) if cell == cluster.cell() => return Ok(row.id),
            Ok(_) => return Err(other_cell("framework", given, cluster.cell())),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let all = cluster.admin.frameworks(true).await?;
    let cell = cluster.cell();
    let names: Vec<String> = all.iter().map(|row| row.id.text(cell)).collect();
    pick("framework", given, &names, "proffer framework list --completed").map(|at| all[at].id)
}

/// The agent that `given` names.
pub(crate) async fn agent(cluster: &Cluster, given: &str) -> Result<AgentId, Failure> {
    if let Ok((cell, id)) = AgentId::parse(given) {
        match cluster.admin.agent(id).await {
            Ok(row) if cell == cluster.cell() => return Ok(row.id),
            Ok(_) => return Err(other_cell("agent", given, cluster.cell())),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let all = cluster.admin.agents().await?;
    let cell = cluster.cell();
    let names: Vec<String> = all.iter().map(|row| row.id.text(cell)).collect();
    pick("agent", given, &names, "proffer agent list").map(|at| all[at].id)
}

/// The task that `given` names: `FRAMEWORK/TASK`, or `TASK` where that is unique.
pub(crate) async fn task(cluster: &Cluster, given: &str) -> Result<(FrameworkId, TaskId), Failure> {
    let (of, name) = match given.split_once('/') {
        Some((framework_given, name)) => (Some(framework(cluster, framework_given).await?), name),
        None => (None, given),
    };
    if let Ok(task_id) = TaskId::new(name) {
        let filter = TaskFilter { framework: of, task_id: Some(task_id), ..TaskFilter::default() };
        let exact = candidates(cluster, &filter).await?;
        if !exact.is_empty() {
            return pick_task(given, name, exact);
        }
    }
    let filter = TaskFilter { framework: of, ..TaskFilter::default() };
    pick_task(given, name, candidates(cluster, &filter).await?)
}

/// The executor that `given` names: by its launch, as `FRAMEWORK/EXECUTOR`, or `EXECUTOR` where that is unique.
pub(crate) async fn executor(cluster: &Cluster, given: &str) -> Result<Executor, Failure> {
    let rows = cluster.admin.executors(None, true).await?;
    let cell = cluster.cell();
    let mut all: Vec<Executor> = rows.into_iter().map(|row| Executor::new(row, cell)).collect();
    let launches: Vec<String> = all.iter().map(|one| one.launch_id.clone()).collect();
    if given.starts_with("lch_") {
        let at = pick("executor", given, &launches, "proffer executor list --ended")?;
        return Ok(all.swap_remove(at));
    }
    let names = |one: &Executor| {
        let whole = format!("{}/{}", one.framework_id, one.executor_id);
        given == one.executor_id || given == whole || (given.contains('/') && whole.starts_with(given))
    };
    let found: Vec<usize> = (0..all.len()).filter(|at| names(&all[*at])).collect();
    match found[..] {
        [] => Err(none("executor", given, "proffer executor list --ended")),
        [at] => Ok(all.swap_remove(at)),
        _ => {
            let found: Vec<String> = found.iter().map(|at| launches[*at].clone()).collect();
            Err(several("executor", given, &found))
        }
    }
}

/// By printed name. A task id that was used again is one candidate.
type Candidates = BTreeMap<String, (FrameworkId, TaskId)>;

async fn candidates(cluster: &Cluster, filter: &TaskFilter) -> Result<Candidates, Failure> {
    let rows = cluster.admin.tasks(filter).await?;
    let cell = cluster.cell();
    let named = |row: proffer_client::rows::TaskRow| {
        (format!("{}/{}", row.framework.text(cell), row.task_id), (row.framework, row.task_id))
    };
    Ok(rows.into_iter().map(named).collect())
}

fn pick_task(given: &str, name: &str, candidates: Candidates) -> Result<(FrameworkId, TaskId), Failure> {
    let found: Candidates =
        candidates.into_iter().filter(|(_, (_, task))| task.as_str().starts_with(name)).collect();
    let exact = found.values().any(|(_, task)| task.as_str() == name);
    let found: Candidates =
        found.into_iter().filter(|(_, (_, task))| !exact || task.as_str() == name).collect();
    let names: Vec<String> = found.keys().cloned().collect();
    match found.len() {
        0 => Err(none("task", given, "proffer task list")),
        1 => Ok(found.into_values().next().expect("there is one")),
        _ => Err(several("task", given, &names)),
    }
}

/// Which of `names` is meant by `given`: the very name, its number, or a beginning of either that only one has.
fn pick(kind: &str, given: &str, names: &[String], list: &str) -> Result<usize, Failure> {
    let number = |name: &str| name.rsplit('_').next().unwrap_or_default().to_owned();
    if let Some(at) = names.iter().position(|name| name == given || number(name) == given) {
        return Ok(at);
    }
    let begins =
        |name: &String| !given.is_empty() && (name.starts_with(given) || number(name).starts_with(given));
    let found: Vec<usize> = (0..names.len()).filter(|at| begins(&names[*at])).collect();
    match found[..] {
        [] => Err(none(kind, given, list)),
        [at] => Ok(at),
        _ => Err(several(kind, given, &found.iter().map(|at| names[*at].clone()).collect::<Vec<_>>())),
    }
}

fn none(kind: &str, given: &str, list: &str) -> Failure {
    let what = format!("{kind} `{}` not found", text::clean(given));
    Failure::new(Code::NotFound, what).next(format!("list what there is with `{list}`"))
}

fn several(kind: &str, given: &str, names: &[String]) -> Failure {
    let mut listed: Vec<String> = names.iter().take(LISTED_MAX).map(|name| text::clean(name)).collect();
    if names.len() > LISTED_MAX {
        listed.push(format!("and {} more", names.len() - LISTED_MAX));
    }
    let what = format!("{kind} `{}` is ambiguous: {} match", text::clean(given), names.len());
    Failure::new(Code::Conflict, what).next(format!("name one of them whole:\n    {}", listed.join("\n    ")))
}

fn other_cell(kind: &str, given: &str, cell: CellTag) -> Failure {
    let what = format!("{kind} `{given}` is of another cluster: ids of this one have the tag {:04x}", cell.0);
    Failure::new(Code::NotFound, what).next("name that cluster's masters with --master")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["fw_7f3a_1", "fw_7f3a_1c", "fw_7f3a_1d", "fw_7f3a_2"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_beginning_is_enough_where_it_is_unique() {
        let pick = |given: &str| pick("framework", given, &names(), "proffer framework list");
        assert_eq!(pick("fw_7f3a_1"), Ok(0), "the very name, though others begin with it");
        assert_eq!(pick("1c"), Ok(1));
        assert_eq!(pick("2"), Ok(3));
        assert_eq!(pick("fw_7f3a_1d"), Ok(2));
        let ambiguous = pick("fw_7f3a_").unwrap_err();
        assert_eq!(ambiguous.code.number(), 6);
        assert!(names().iter().all(|name| ambiguous.next.contains(name)), "{ambiguous}");
        let missing = pick("ff").unwrap_err();
        assert_eq!(missing.code.number(), 3);
        assert!(missing.to_string().contains("proffer framework list"));
        assert_eq!(pick("").unwrap_err().code.number(), 3);
    }

    #[test]
    fn tasks_of_one_name_are_told_apart_by_their_framework() {
        let candidate = |framework: u64, name: &str| {
            let id = FrameworkId(framework);
            (format!("{}/{name}", id.text(CellTag(1))), (id, TaskId::new(name).unwrap()))
        };
        let all: Candidates =
            [candidate(1, "web"), candidate(1, "web.2"), candidate(2, "web"), candidate(2, "db")].into();
        assert_eq!(pick_task("d", "d", all.clone()).unwrap().0, FrameworkId(2));
        assert_eq!(pick_task("web.", "web.", all.clone()).unwrap().1.as_str(), "web.2");
        let error = pick_task("web", "web", all.clone()).unwrap_err();
        assert_eq!(error.code.number(), 6);
        assert!(error.next.contains("fw_0001_1/web") && !error.next.contains("web.2"), "{error}");
        assert_eq!(pick_task("x", "x", all).unwrap_err().code.number(), 3);
    }
}
