//! The role tree, each node's children in the order in which they are served.
//!
//! Leaves are clients: a framework in a role. A role's own frameworks hang below a leaf-holder of their own (named
//! `.`), which competes with the role's sub-roles. Among siblings the one with the lower weighted dominant share goes
//! first, then the one with fewer grants counted, then the one whose name (for frameworks: id) sorts lower. A node's
//! amounts are those of everything below it. Nodes without an active client below them are in no order.
//!
//! Keys are repaired on the way from a changed leaf to the root. A change of the totals changes every key: then, as
//! when a role's name arrives and the siblings' ranks move, order is rebuilt at the next [`Sorter::settle`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use proffer_types::{FrameworkId, Resources, Role};
use smallvec::SmallVec;

use crate::amounts::{Amounts, Fraction};

const ROOT: u32 = 0;
/// The weight of a role that none was set for, and of frameworks.
const WEIGHT_MILLI: u32 = 1000;

/// Position among siblings: weighted share, grants counted, rank.
pub(crate) type Key = (u128, u64, u64);

/// What a node is called among its siblings. Roles sort before frameworks, but never are siblings of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// One component of a role path, or `.` for the holder of a role's own frameworks.
    Component(Arc<str>),
    Framework(FrameworkId),
}

#[derive(Clone, Debug)]
struct Node {
    parent: u32,
    name: Name,
    /// The path so far, for roles.
    role: Option<Role>,
    /// The number of the client, for leaves.
    client: Option<u32>,
    weight_milli: u32,
    amounts: Amounts,
    /// Grants ever counted to what is below.
    count: u64,
    /// Ties that remain: position of the name among the siblings' names, or the framework's id.
    rank: u64,
    /// Active clients at or below.
    active: u32,
    children: BTreeMap<Name, u32>,
    /// The key under which the parent's `order` has this node. With one active sibling only, it may be out of date.
    key: Key,
    /// The children with something active, in the order of service.
    order: BTreeSet<(Key, u32)>,
    /// `order` and the children's keys are to be rebuilt.
    stale: bool,
}

/// What a walk says of the node it comes to.
pub(crate) enum Step<'a> {
    /// A role; everything below it follows unless skipped.
    Role(&'a Role),
    /// A client, by its number.
    Client(u32),
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Go on (for a role: with what is below it).
    On,
    /// Leave out what is below this role.
    Skip,
    /// End the walk.
    Stop,
}

/// The tree.
#[derive(Clone, Debug)]
pub(crate) struct Sorter {
    nodes: Vec<Option<Node>>,
    vacant: Vec<u32>,
    /// The leaf of each client; `u32::MAX` where there is no such client.
    leaves: Vec<u32>,
    weights: BTreeMap<Role, u32>,
    total: Amounts,
    /// Every key is out of date.
    all_stale: bool,
    /// Nodes whose order is.
    stale: Vec<u32>,
}

impl Default for Sorter {
    fn default() -> Self {
        let root = Node::new(ROOT, Name::Component("".into()), None, None, WEIGHT_MILLI);
        Self {
            nodes: vec![Some(root)],
            vacant: Vec::new(),
            leaves: Vec::new(),
            weights: BTreeMap::new(),
            total: Amounts::default(),
            all_stale: false,
            stale: Vec::new(),
        }
    }
}

impl Sorter {
    /// Adds an inactive client. Numbers are the caller's, dense, not in use.
    pub(crate) fn add_client(&mut self, client: u32, role: &Role, framework: FrameworkId) {
        let mut at = ROOT;
        let mut length = 0;
        for component in role.components() {
            length += component.len();
            let path = Role::new(&role.as_str()[..length]).expect("a prefix of a role path is one");
            length += 1;
            at = self.child(at, Name::Component(component.into()), Some(path));
        }
        at = self.child(at, Name::Component(".".into()), None);
        let leaf = self.insert(at, Name::Framework(framework), None, Some(client));
        if self.leaves.len() <= client as usize {
            self.leaves.resize(client as usize + 1, u32::MAX);
        }
        self.leaves[client as usize] = leaf;
    }

    /// Removes a client to which nothing is counted, and the roles that are empty without it.
    pub(crate) fn remove_client(&mut self, client: u32) {
        self.set_active(client, false);
        let mut at = std::mem::replace(&mut self.leaves[client as usize], u32::MAX);
        while at != ROOT && self.node(at).children.is_empty() {
            let gone = self.nodes[at as usize].take().expect("a child exists");
            self.vacant.push(at);
            at = gone.parent;
            self.node_mut(at).children.remove(&gone.name);
        }
    }

    /// Whether the client takes part in the order; its amounts count in any case.
    pub(crate) fn set_active(&mut self, client: u32, active: bool) {
        let mut at = self.leaves[client as usize];
        if (self.node(at).active > 0) == active {
            return;
        }
        loop {
            let node = self.node_mut(at);
            let before = node.active;
            node.active = if active { before + 1 } else { before - 1 };
            let (appears, goes) = (before == 0, node.active == 0);
            if at == ROOT {
                return;
            }
            let parent = node.parent;
            if appears {
                self.enlist(at, parent);
            } else if goes && !self.out_of_date(parent) {
                let entry = (self.node(at).key, at);
                self.node_mut(parent).order.remove(&entry);
            }
            at = parent;
        }
    }

    /// Counts `resources` to a client and everything above it; a grant raises the tie-breaking counts too.
    pub(crate) fn charge(&mut self, client: u32, resources: &Resources, is_grant: bool) {
        self.on_the_way_up(client, |node| {
            node.amounts.add(resources);
            node.count += u64::from(is_grant);
        });
    }

    /// Takes back what was charged.
    pub(crate) fn discharge(&mut self, client: u32, resources: &Resources) {
        self.on_the_way_up(client, |node| node.amounts.sub(resources));
    }

    pub(crate) fn set_weight(&mut self, role: &Role, weight_milli: u32) {
        self.weights.insert(role.clone(), weight_milli);
        let found = role.components().try_fold(ROOT, |at, component| {
            self.node(at).children.get(&Name::Component(component.into())).copied()
        });
        if let Some(at) = found {
            self.node_mut(at).weight_milli = weight_milli;
            self.rekey(at);
        }
    }

    pub(crate) fn grow_total(&mut self, resources: &Resources) {
        self.total.add(resources);
        self.all_stale = true;
    }

    pub(crate) fn shrink_total(&mut self, resources: &Resources) {
        self.total.sub(resources);
        self.all_stale = true;
    }

    /// Whether [`Self::settle`] would change anything.
    pub(crate) fn is_settled(&self) -> bool {
        !self.all_stale && self.stale.is_empty()
    }

    /// Rebuilds what is out of date; to be called before the order is asked for.
    pub(crate) fn settle(&mut self) {
        if self.all_stale {
            self.stale.clear();
            self.all_stale = false;
            for at in 0..self.nodes.len() as u32 {
                if self.nodes[at as usize].is_some() {
                    self.rebuild(at);
                }
            }
        }
        for at in std::mem::take(&mut self.stale) {
            // A node may have gone, and its number been taken by another, since it was noted.
            if self.nodes[at as usize].as_ref().is_some_and(|n| n.stale) {
                self.rebuild(at);
            }
        }
    }

    /// The client that is served first.
    pub(crate) fn first(&self) -> Option<u32> {
        let mut at = self.node(ROOT);
        while at.client.is_none() {
            at = self.node(at.order.first()?.1);
        }
        at.client
    }

    /// Goes through roles and active clients in the order of service.
    pub(crate) fn walk<'a>(&'a self, visit: &mut impl FnMut(Step<'a>) -> Then) {
        let _ = self.walk_below(ROOT, visit);
    }

    /// Which of two active clients is served first.
    pub(crate) fn compare(&self, a: u32, b: u32) -> Ordering {
        let (a, b) = (self.path(a), self.path(b));
        let fork = a.iter().rev().zip(b.iter().rev()).find(|(a, b)| a != b);
        fork.map_or(Ordering::Equal, |(a, b)| self.node(*a).key.cmp(&self.node(*b).key))
    }

    /// A client's dominant share, before weights.
    pub(crate) fn share(&self, client: u32) -> Fraction {
        self.node(self.leaves[client as usize]).amounts.dominant(&self.total)
    }

    fn node(&self, at: u32) -> &Node {
        self.nodes[at as usize].as_ref().expect("numbers in the tree are of live nodes")
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        self.nodes[at as usize].as_mut().expect("numbers in the tree are of live nodes")
    }

    fn out_of_date(&self, at: u32) -> bool {
        self.all_stale || self.node(at).stale
    }

    /// Leaf first, without the root.
    fn path(&self, client: u32) -> SmallVec<[u32; 8]> {
        let mut path = SmallVec::new();
        let mut at = self.leaves[client as usize];
        while at != ROOT {
            path.push(at);
            at = self.node(at).parent;
        }
        path
    }

    fn child(&mut self, parent: u32, name: Name, role: Option<Role>) -> u32 {
        match self.node(parent).children.get(&name) {
            Some(at) => *at,
            None => {
                let at = self.insert(parent, name, role, None);
                // The new name moves the ranks of its siblings.
                self.mark_stale(parent);
                at
            }
        }
    }

    fn insert(&mut self, parent: u32, name: Name, role: Option<Role>, client: Option<u32>) -> u32 {
        let weight_milli = role.as_ref().and_then(|r| self.weights.get(r)).copied().unwrap_or(WEIGHT_MILLI);
        let node = Some(Node::new(parent, name.clone(), role, client, weight_milli));
        let at = match self.vacant.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.node_mut(parent).children.insert(name, at);
        at
    }

    fn mark_stale(&mut self, at: u32) {
        if !std::mem::replace(&mut self.node_mut(at).stale, true) {
            self.stale.push(at);
        }
    }

    /// Puts a node that has just become active into its parent's order.
    fn enlist(&mut self, at: u32, parent: u32) {
        if self.out_of_date(parent) {
            return;
        }
        // An only child's key is not kept up to date.
        if self.node(parent).order.len() == 1 {
            self.mark_stale(parent);
            return;
        }
        let key = self.key_of(at);
        self.node_mut(at).key = key;
        self.node_mut(parent).order.insert((key, at));
    }

    fn on_the_way_up(&mut self, client: u32, mut change: impl FnMut(&mut Node)) {
        let mut at = self.leaves[client as usize];
        loop {
            change(self.node_mut(at));
            if at == ROOT {
                return;
            }
            self.rekey(at);
            at = self.node(at).parent;
        }
    }

    fn rekey(&mut self, at: u32) {
        let node = self.node(at);
        let parent = node.parent;
        if node.active == 0 || self.out_of_date(parent) || self.node(parent).order.len() == 1 {
            return;
        }
        let (old, new) = (node.key, self.key_of(at));
        if old != new {
            self.node_mut(at).key = new;
            let order = &mut self.node_mut(parent).order;
            order.remove(&(old, at));
            order.insert((new, at));
        }
    }

    fn key_of(&self, at: u32) -> Key {
        let node = self.node(at);
        (node.amounts.dominant(&self.total).weighted(node.weight_milli), node.count, node.rank)
    }

    fn rebuild(&mut self, at: u32) {
        let children: Vec<u32> = self.node(at).children.values().copied().collect();
        let mut order = Vec::with_capacity(children.len());
        for (position, child) in children.into_iter().enumerate() {
            let node = self.node_mut(child);
            node.rank = match node.name {
                Name::Framework(id) => id.0,
                Name::Component(_) => position as u64,
            };
            if node.active > 0 {
                let key = self.key_of(child);
                self.node_mut(child).key = key;
                order.push((key, child));
            }
        }
        let node = self.node_mut(at);
        node.stale = false;
        node.order = order.into_iter().collect();
    }

    fn walk_below<'a>(&'a self, at: u32, visit: &mut impl FnMut(Step<'a>) -> Then) -> ControlFlow<()> {
        for (_, child) in &self.node(at).order {
            let node = self.node(*child);
            let then = match (&node.role, node.client) {
                (Some(role), _) => visit(Step::Role(role)),
                (None, Some(client)) => visit(Step::Client(client)),
                (None, None) => Then::On,
            };
            match then {
                Then::On => self.walk_below(*child, visit)?,
                Then::Skip => {}
                Then::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }
}

impl Node {
    fn new(parent: u32, name: Name, role: Option<Role>, client: Option<u32>, weight_milli: u32) -> Self {
        let rank = match name {
            Name::Framework(id) => id.0,
            Name::Component(_) => 0,
        };
        Self {
            parent,
            name,
            role,
            client,
            weight_milli,
            amounts: Amounts::default(),
            count: 0,
            rank,
            active: 0,
            children: BTreeMap::new(),
            key: (0, 0, rank),
            order: BTreeSet::new(),
            stale: false,
        }
    }
}

/// Recomputation for `Allocator::check`.
impl Sorter {
    /// Compares every sum, count of active clients and order with what the leaves say; `amounts` are those of each
    /// client as the agents' books have them, `total` the cluster's.
    pub(crate) fn check(&self, amounts: &BTreeMap<u32, Amounts>, total: &Amounts) -> Result<(), String> {
        if self.total != *total {
            return Err(format!("cluster total {:?} is {:?}", self.total, total));
        }
        self.check_below(ROOT, amounts).map(|_| ())
    }

    fn check_below(&self, at: u32, amounts: &BTreeMap<u32, Amounts>) -> Result<(Vec<u32>, u32), String> {
        let node = self.node(at);
        let mut clients: Vec<u32> = node.client.into_iter().collect();
        let mut active = if node.client.is_some() { node.active } else { 0 };
        let mut order = BTreeSet::new();
        for (name, child) in &node.children {
            let below = self.node(*child);
            if below.parent != at || below.name != *name {
                return Err(format!("{name:?} is not the child {child} of {at}"));
            }
            let (more, busy) = self.check_below(*child, amounts)?;
            clients.extend(more);
            active += busy;
            if busy > 0 {
                let key = if node.order.len() == 1 { below.key } else { self.key_of(*child) };
                order.insert((key, *child));
            }
        }
        let mut sum = Amounts::default();
        for client in &clients {
            if let Some(amounts) = amounts.get(client) {
                sum.merge(amounts);
            }
        }
        if sum != node.amounts {
            return Err(format!("amounts of {:?}: {:?} are {sum:?}", node.name, node.amounts));
        }
        if active != node.active {
            return Err(format!("active below {:?}: {} are {active}", node.name, node.active));
        }
        if !self.out_of_date(at) && order != node.order {
            return Err(format!("order below {:?}: {:?} is {order:?}", node.name, node.order));
        }
        Ok((clients, active))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives task after task to the first client in the order whose task still fits, until none fits.
    fn fill(total: &str, weights: &[(&str, u32)], clients: &[(&str, &str)]) -> Vec<u32> {
        let resources = |text: &str| Resources::parse(text).expect(text);
        let role = |path: &str| Role::new(path).expect(path);
        let mut sorter = Sorter::default();
        sorter.grow_total(&resources(total));
        for (path, weight_milli) in weights {
            sorter.set_weight(&role(path), *weight_milli);
        }
        for (client, (path, _)) in clients.iter().enumerate() {
            sorter.add_client(client as u32, &role(path), FrameworkId(client as u64));
            sorter.set_active(client as u32, true);
        }
        let tasks: Vec<Resources> = clients.iter().map(|(_, task)| resources(task)).collect();
        let mut free = resources(total);
        let mut given = Vec::new();
        loop {
            sorter.settle();
            let mut winner = None;
            sorter.walk(&mut |step| match step {
                Step::Client(client) if free.contains(&tasks[client as usize]) => {
                    winner = Some(client);
                    Then::Stop
                }
                _ => Then::On,
            });
            let Some(client) = winner else { return given };
            free.sub(&tasks[client as usize]).expect("it fits");
            sorter.charge(client, &tasks[client as usize], true);
            given.push(client);
        }
    }

    fn counts(given: &[u32], clients: usize) -> Vec<usize> {
        (0..clients as u32).map(|c| given.iter().filter(|g| **g == c).count()).collect()
    }

    const A: (&str, &str) = ("a", "cpus:1;mem:4GiB");
    const B: (&str, &str) = ("b", "cpus:3;mem:1GiB");

    /// The example of the paper on dominant resource fairness; with our tie-breaks A goes first.
    #[test]
    fn tv_1_drf_paper() {
        assert_eq!(fill("cpus:9;mem:18GiB", &[], &[A, B]), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn tv_1_within_one_role() {
        let (a, b) = (("*", A.1), ("*", B.1));
        assert_eq!(fill("cpus:9;mem:18GiB", &[], &[a, b]), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn tv_2_weights() {
        assert_eq!(fill("cpus:9;mem:18GiB", &[("a", 3000), ("b", 1000)], &[A, B]), [0, 1, 0, 0, 0]);
    }

    #[test]
    fn tv_3_hierarchy() {
        let task = "cpus:1";
        let leaves = [("a/x", task), ("a/y", task), ("b", task)];
        assert_eq!(counts(&fill("cpus:12", &[], &leaves), 3), [3, 3, 6]);
        let with_own = [("a", task), ("a/x", task), ("a/y", task), ("b", task)];
        assert_eq!(counts(&fill("cpus:12", &[], &with_own), 4), [2, 2, 2, 6]);
    }

    /// A role's weight is for the role among its siblings, not for its own frameworks among its sub-roles.
    #[test]
    fn a_role_s_weight_does_not_favour_its_own_frameworks() {
        let clients = [("a", "cpus:1"), ("a/x", "cpus:1"), ("b", "cpus:1")];
        assert_eq!(counts(&fill("cpus:12", &[("a", 2000)], &clients), 3), [4, 4, 4]);
    }

    #[test]
    fn ties_go_by_count_then_name() {
        // Nothing has a share of what is not there, so only counts and names decide.
        let mut sorter = Sorter::default();
        for (client, path) in ["b", "a/x", "a", "+"].into_iter().enumerate() {
            sorter.add_client(client as u32, &Role::new(path).unwrap(), FrameworkId(9));
            sorter.set_active(client as u32, true);
        }
        let order = |sorter: &mut Sorter| {
            sorter.settle();
            let mut order = Vec::new();
            sorter.walk(&mut |step| {
                if let Step::Client(client) = step {
                    order.push(client);
                }
                Then::On
            });
            let mut sorted = order.clone();
            sorted.sort_by(|a, b| sorter.compare(*a, *b));
            assert_eq!(order, sorted, "compare agrees with walk");
            assert_eq!(sorter.first(), order.first().copied());
            order
        };
        assert_eq!(order(&mut sorter), [3, 2, 1, 0]);
        sorter.charge(2, &Resources::new(), true);
        assert_eq!(order(&mut sorter), [3, 0, 1, 2]);
        sorter.set_active(3, false);
        sorter.set_active(1, false);
        assert_eq!(order(&mut sorter), [0, 2]);
        sorter.remove_client(1);
        sorter.remove_client(0);
        assert_eq!(order(&mut sorter), [2]);
        sorter.check(&BTreeMap::new(), &Amounts::default()).unwrap();
    }
}
