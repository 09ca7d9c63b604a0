//! Which node of a cluster is whose, as `CLUSTER NODES` says it.
//!
//! A *shard* is a master and its replicas: whoever of them is the master, it is one change log. Nodes may be asked that
//! have not heard yet of what has happened, or are cut off: so of two that claim a slot the one with the higher epoch
//! has it (the rule of the cluster itself), and what was known before is not unlearned.

use std::collections::HashMap;
use std::sync::Arc;

use redis::cluster_routing::Slot;

/// What the one shard of a server without a cluster is called.
pub(crate) const SERVER: &str = "server";

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16_384;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Address {
    pub host: String,
    pub port: u16,
}

/// One node, as a line says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub id: String,
    pub address: Address,
    /// The master that it follows; `None`: it is one itself.
    pub master: Option<String>,
    pub epoch: u64,
    pub slots: Vec<(u16, u16)>,
    /// It is the node that says so.
    pub is_self: bool,
}

impl Node {
    /// It says of itself that it is a master.
    pub(crate) fn is_master_itself(&self) -> bool {
        self.is_self && self.master.is_none()
    }
}

/// The nodes of `CLUSTER NODES`, but for those without an address.
pub(crate) fn parse(text: &str) -> Vec<Node> {
    text.lines().filter_map(node).collect()
}

fn node(line: &str) -> Option<Node> {
    let mut words = line.split_ascii_whitespace();
    let (id, address, flags, master) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let epoch = words.nth(2)?.parse().ok()?;
    words.next()?;
    let flags: Vec<&str> = flags.split(',').collect();
    if flags.contains(&"noaddr") || flags.contains(&"handshake") {
        return None;
    }
    // host:port@cport[,hostname][,aux]: nodes with a hostname may be known by it alone.
    let (address, _) = address.split_once('@')?;
    let (host, port) = address.rsplit_once(':')?;
    let slots = words
        .filter(|word| !word.starts_with('['))
        .filter_map(|word| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
    Some(Node {
        id: id.to_owned(),
        address: Address {
            host: host.to_owned(),
            port: port.parse().ok().filter(|port| *port > 0)?,
        },
        master: (!flags.contains(&"master")).then(|| master.to_owned()),
        epoch,
        slots: slots.collect(),
        is_self: flags.contains(&"myself"),
    })
}

/// A shard, by the order in which they became known.
pub(crate) type ShardId = usize;

/// What is known of one shard.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// The id of the master by which it became known: its name in a checkpoint.
    pub name: Arc<str>,
    /// Its master now.
    pub master: String,
    pub address: Address,
    epoch: u64,
}

/// A slot that has another shard now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moved {
    pub slot: Slot,
    pub from: ShardId,
}

/// All that is known.
#[derive(Default, Debug)]
pub(crate) struct Topology {
    pub shards: Vec<Shard>,
    of_node: HashMap<String, ShardId>,
    owners: HashMap<Slot, (ShardId, u64)>,
}

impl Topology {
    /// The shard that a slot is at.
    pub(crate) fn owner(&self, slot: Slot) -> Option<ShardId> {
        self.owners.get(&slot).map(|(shard, _)| *shard)
    }

    /// The shard that a node is of.
    pub(crate) fn shard_of(&self, node: &str) -> Option<ShardId> {
        self.of_node.get(node).copied()
    }

    /// Learns what a node of the cluster says. Gives the slots that have moved from one shard to another.
    pub(crate) fn learn(&mut self, nodes: &[Node]) -> Vec<Moved> {
        let mut moved = vec![];
        let masters = nodes.iter().filter(|node| node.master.is_none());
        for node in masters.clone() {
            let Some(id) = self.place(node, nodes) else {
                continue;
            };
            let shard = &mut self.shards[id];
            if node.epoch >= shard.epoch {
                shard.epoch = node.epoch;
                shard.master.clone_from(&node.id);
                shard.address.clone_from(&node.address);
            }
            let slots = node.slots.iter().flat_map(|(first, last)| *first..=*last);
            for slot in slots.filter_map(Slot::new) {
                match self.owners.insert(slot, (id, node.epoch)) {
                    Some(before) if before.1 > node.epoch => {
                        self.owners.insert(slot, before);
                    }
                    Some((from, _)) if from != id => moved.push(Moved { slot, from }),
                    _ => {}
                }
            }
        }
        for node in nodes {
            if let Some(id) = node.master.as_ref().and_then(|of| self.shard_of(of)) {
                self.of_node.insert(node.id.clone(), id);
            }
        }
        moved
    }

    /// The shard of a master: one that is known, or a new one if it has slots.
    fn place(&mut self, node: &Node, nodes: &[Node]) -> Option<ShardId> {
        if let Some(id) = self.shard_of(&node.id) {
            return Some(id);
        }
        let (first, _) = node.slots.first()?;
        // A replica of which nothing was known yet may have taken over: then it has the slots of a master that is one
        // no longer, or has none.
        let before = Slot::new(*first).and_then(|slot| self.owner(slot));
        let is_over = |id: &ShardId| {
            let name = &self.shards[*id].master;
            let now = nodes.iter().find(|n| n.id == *name);
            now.is_none_or(|n| n.master.is_some() || n.slots.is_empty())
        };
        let id = before.filter(is_over).unwrap_or_else(|| {
            self.shards.push(Shard {
                name: node.id.as_str().into(),
                master: node.id.clone(),
                address: node.address.clone(),
                epoch: 0,
            });
            self.shards.len() - 1
        });
        self.of_node.insert(node.id.clone(), id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(topology: &mut Topology, text: &str) -> usize {
        topology.learn(&parse(text)).len()
    }

    fn masters(topology: &Topology) -> Vec<(&str, u16)> {
        let shards = topology.shards.iter();
        shards.map(|s| (&*s.name, s.address.port)).collect()
    }

    const TWO: &str = "\
aa 127.0.0.1:1@10001,host myself,master - 0 0 1 connected 0-99 [100->-bb]
bb 127.0.0.1:2@10002 master - 0 0 2 connected 100-199 300
cc 127.0.0.1:3@10003 slave aa 0 0 1 connected
dd :0@0 master,noaddr - 0 0 3 disconnected 400
ee [::1]:5@10005 master - 0 0 4 connected
";

    #[test]
    fn a_replica_that_takes_over_goes_on_as_its_shard() {
        let mut topology = Topology::default();
        assert_eq!(learn(&mut topology, TWO), 0);
        assert_eq!(masters(&topology), [("aa", 1), ("bb", 2)]);
        assert_eq!(topology.owner(Slot::new(300).unwrap()), Some(1));
        let took_over = "aa 127.0.0.1:1@1 master,fail - 0 0 1 connected\ncc 127.0.0.1:3@3 master - 0 0 9 connected 0-99\n";
        assert_eq!(learn(&mut topology, took_over), 0);
        assert_eq!(masters(&topology), [("aa", 3), ("bb", 2)]);
        // Whoever has not heard of it says nothing new.
        assert_eq!(learn(&mut topology, TWO), 0);
        assert_eq!(masters(&topology), [("aa", 3), ("bb", 2)]);
        // One that came and took over in between.
        let unknown = "ff 127.0.0.1:6@6 master - 0 0 11 connected 0-99\naa 127.0.0.1:1@1 slave ff 0 0 11 connected\ncc 127.0.0.1:3@3 slave ff 0 0 11 connected\n";
        assert_eq!(learn(&mut topology, unknown), 0);
        assert_eq!(masters(&topology), [("aa", 6), ("bb", 2)]);
    }

    #[test]
    fn slots_that_move_are_told_once() {
        let mut topology = Topology::default();
        learn(&mut topology, TWO);
        let moved = "aa 127.0.0.1:1@1 master - 0 0 1 connected 0-98\nbb 127.0.0.1:2@2 master - 0 0 12 connected 99-199 300\nee ::1:5@5 master - 0 0 13 connected 301-302\n";
        let nodes = parse(moved);
        let slot = Slot::new(99).unwrap();
        assert_eq!(topology.learn(&nodes), [Moved { slot, from: 0 }]);
        assert_eq!(topology.owner(slot), Some(1));
        assert_eq!(masters(&topology), [("aa", 1), ("bb", 2), ("ee", 5)]);
        assert_eq!(topology.learn(&nodes), []);
        assert_eq!(learn(&mut topology, TWO), 0);
    }
}
