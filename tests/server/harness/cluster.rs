//! A cluster on this machine, made by the commands that redis-cli would send.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use super::conn::{fields, Conn};
use super::reply::Reply;
use super::server::{Server, Setup};
use super::wait::{eventually, PATIENCE};

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// Redirections that are followed before a client gives up.
const MAX_REDIRECTS: usize = 8;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterSetup {
    /// How many masters share the slots.
    pub masters: usize,
    /// How many replicas each master has.
    pub replicas_each: usize,
    /// After how long a silent node counts as failing.
    pub node_timeout_ms: u32,
    /// What every node is started with.
    pub node: Setup,
}

impl ClusterSetup {
    /// Nodes with the module and a timeout of five seconds: a machine that is busy is not a node that fails.
    pub fn new(masters: usize, replicas_each: usize) -> ClusterSetup {
        ClusterSetup {
            masters,
            replicas_each,
            node_timeout_ms: 5000,
            node: Setup::new(),
        }
    }

    /// Starts the nodes, joins them, and waits until every one of them serves.
    #[track_caller]
    pub fn start(self) -> Cluster {
        assert!(self.masters > 0, "a cluster has at least one master");
        let count = self.masters * (1 + self.replicas_each);
        let nodes = (0..count)
            .map(|_| self.node.clone().cluster(self.node_timeout_ms).start())
            .collect();
        let cluster = Cluster {
            nodes,
            masters: self.masters,
        };
        cluster.join();
        cluster.assign_slots();
        cluster.attach_replicas();
        cluster.wait_ok();
        cluster
    }
}

/// A running cluster. The first nodes began as its masters, the others as their replicas, in turn.
pub struct Cluster {
    /// The nodes; a test may stop, kill and restart each.
    pub nodes: Vec<Server>,
    masters: usize,
}

impl Cluster {
    /// A cluster of nodes with the module.
    #[track_caller]
    pub fn start(masters: usize, replicas_each: usize) -> Cluster {
        ClusterSetup::new(masters, replicas_each).start()
    }

    /// The addresses of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    /// The node that began as master `i`.
    pub fn master(&self, i: usize) -> &Server {
        assert!(i < self.masters, "there are {} masters", self.masters);
        &self.nodes[i]
    }

    /// A node that began as a master and is not this one.
    pub fn another(&self, than: &Server) -> &Server {
        let mut masters = self.nodes[..self.masters].iter();
        let other = masters.find(|m| m.port() != than.port());
        other.expect("a cluster has several masters")
    }

    /// The replica that a master has now, whoever began as what.
    #[track_caller]
    pub fn replica_now(&self, master: &Server) -> &Server {
        let mut conn = master.conn();
        let id = node_id(&mut conn);
        let nodes = conn.run("CLUSTER NODES");
        let is_replica = |line: &&str| line.split(' ').nth(3) == Some(&id);
        let line = nodes.text().lines().find(is_replica);
        let name = line.and_then(|line| line.split(' ').next());
        let name = name.unwrap_or_else(|| panic!("{} has no replica", master.port()));
        let found = self.nodes.iter().find(|n| node_id(&mut n.conn()) == name);
        found.expect("a node of this cluster")
    }

    /// The nodes that began as replicas of master `i`.
    pub fn replicas_of(&self, i: usize) -> impl Iterator<Item = &Server> {
        let rest = self.nodes.iter().skip(self.masters);
        rest.skip(i).step_by(self.masters)
    }

    /// The node that serves a key now, by the word of the first node that answers.
    #[track_caller]
    pub fn node_for(&self, key: impl AsRef<[u8]>) -> &Server {
        let slot = slot_of(key.as_ref());
        let port = self.owner_of(slot);
        self.node_at(port)
    }

    /// The node on a port; panics when it is none of this cluster.
    #[track_caller]
    pub fn node_at(&self, port: u16) -> &Server {
        match self.nodes.iter().find(|node| node.port() == port) {
            Some(node) => node,
            None => panic!("no node of this cluster has port {port}"),
        }
    }

    /// A client that knows the way to every slot.
    pub fn client(&self) -> ClusterClient {
        ClusterClient {
            seeds: self.nodes.iter().map(Server::port).collect(),
            owners: HashMap::new(),
            conns: HashMap::new(),
        }
    }

    /// Moves one slot with its keys to another node, as a reshard does, and waits until all nodes know.
    #[track_caller]
    pub fn move_slot(&self, slot: u16, to: &Server) {
        let from = self.node_at(self.owner_of(slot));
        let (mut source, mut target) = (from.conn(), to.conn());
        let (source_id, target_id) = (node_id(&mut source), node_id(&mut target));
        let set = |conn: &mut Conn, state: &str, id: &str| {
            conn.run(&format!("CLUSTER SETSLOT {slot} {state} {id}"))
                .ok();
        };
        set(&mut target, "IMPORTING", &source_id);
        set(&mut source, "MIGRATING", &target_id);
        move_keys(&mut source, slot, to.port());
        // The new owner first: there must be no moment in which nobody claims the slot.
        set(&mut target, "NODE", &target_id);
        set(&mut source, "NODE", &target_id);
        self.wait_owner(slot, to.port());
        self.wait_epoch(&mut target);
    }

    /// Waits until all nodes know the epoch that a node has taken for itself. One that does not would take the same
    /// for its next slot; two owners of one epoch then quarrel about the slot, and a third never hears who won.
    fn wait_epoch(&self, owner: &mut Conn) {
        let id = node_id(owner);
        let epoch = cluster_info(owner)["cluster_my_epoch"].clone();
        for node in &self.nodes {
            let mut conn = node.conn();
            let what = format!("node {} knows of epoch {epoch}", node.port());
            eventually(PATIENCE, &what, || {
                let nodes = conn.run("CLUSTER NODES");
                let line = nodes.text().lines().find(|l| l.starts_with(&id));
                line.and_then(|l| l.split(' ').nth(6)) == Some(&epoch)
            });
        }
    }

    fn wait_owner(&self, slot: u16, port: u16) {
        for node in &self.nodes {
            let mut conn = node.conn();
            let what = format!("node {} sees slot {slot} on {port}", node.port());
            eventually(PATIENCE, &what, || owner(&mut conn, slot) == Some(port));
        }
    }

    /// Waits until every running node says that all slots are served and all replicas have caught up.
    #[track_caller]
    pub fn wait_ok(&self) {
        for node in &self.nodes {
            let mut conn = node.conn();
            let start = Instant::now();
            while !self.is_complete(&mut conn) {
                assert!(
                    start.elapsed() < PATIENCE,
                    "node {} does not see the whole cluster:\n{}\n{}\n{}",
                    node.port(),
                    conn.run("CLUSTER INFO").text(),
                    conn.run("CLUSTER NODES").text(),
                    conn.run("INFO replication").text(),
                );
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn is_complete(&self, conn: &mut Conn) -> bool {
        let info = cluster_info(conn);
        let is = |name: &str, value: &str| info.get(name).is_some_and(|found| found == value);
        is("cluster_state", "ok")
            && is("cluster_slots_ok", "16384")
            && is("cluster_known_nodes", &self.nodes.len().to_string())
            && self.knows_roles(conn)
            && link_is_up(conn)
    }

    fn knows_roles(&self, conn: &mut Conn) -> bool {
        let reply = conn.run("CLUSTER NODES");
        let replicas = reply.text().lines().filter(|l| l.contains("slave")).count();
        replicas == self.nodes.len() - self.masters
    }

    fn join(&self) {
        let first = self.nodes[0].port();
        for (i, node) in self.nodes.iter().enumerate() {
            let mut conn = node.conn();
            // Epochs of their own, or the nodes would spend seconds to settle who is who.
            conn.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1))
                .ok();
            if i > 0 {
                conn.run(&format!("CLUSTER MEET 127.0.0.1 {first}")).ok();
            }
        }
        for node in &self.nodes {
            let mut conn = node.conn();
            let what = format!("node {} hears of all the others", node.port());
            eventually(PATIENCE, &what, || {
                let info = cluster_info(&mut conn);
                info.get("cluster_known_nodes") == Some(&self.nodes.len().to_string())
            });
        }
    }

    fn assign_slots(&self) {
        let bound = |i: usize| usize::from(SLOTS) * i / self.masters;
        for (i, node) in self.nodes.iter().take(self.masters).enumerate() {
            let (first, last) = (bound(i), bound(i + 1) - 1);
            node.conn()
                .run(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))
                .ok();
        }
    }

    fn attach_replicas(&self) {
        for (i, node) in self.nodes.iter().skip(self.masters).enumerate() {
            let master = node_id(&mut self.nodes[i % self.masters].conn());
            let mut conn = node.conn();
            let what = format!("node {} becomes a replica of {master}", node.port());
            eventually(PATIENCE, &what, || {
                !conn.run(&format!("CLUSTER REPLICATE {master}")).is_err()
            });
        }
    }

    fn owner_of(&self, slot: u16) -> u16 {
        let mut ports = self.nodes.iter().map(Server::port);
        let found = ports.find_map(|port| owner(&mut Conn::try_open(port).ok()?, slot));
        found.unwrap_or_else(|| panic!("no node answers who serves slot {slot}"))
    }
}

/// A client of a cluster: finds the node, remembers it, and follows redirections.
pub struct ClusterClient {
    seeds: Vec<u16>,
    owners: HashMap<u16, u16>,
    conns: HashMap<u16, Conn>,
}

impl ClusterClient {
    /// One command about a key, sent to the node that serves it. Errors other than redirections are replies.
    #[track_caller]
    pub fn cmd(&mut self, key: impl AsRef<[u8]>, args: &[impl AsRef<[u8]>]) -> Reply {
        let slot = slot_of(key.as_ref());
        let mut port = *self.owners.get(&slot).unwrap_or(&self.seeds[0]);
        let mut asking = false;
        for _ in 0..MAX_REDIRECTS {
            let conn = self.conn(port);
            if asking {
                conn.asking();
            }
            let reply = conn.cmd(args);
            let Some(redirect) = Redirect::of(&reply) else {
                return reply;
            };
            port = redirect.port;
            asking = redirect.ask;
            if !asking {
                self.owners.insert(redirect.slot, redirect.port);
            }
        }
        panic!("slot {slot}: sent on {MAX_REDIRECTS} times");
    }

    /// Forgets its connections and what it knows of the slots, as after a failover.
    pub fn forget(&mut self) {
        self.conns.clear();
        self.owners.clear();
    }

    #[track_caller]
    fn conn(&mut self, port: u16) -> &mut Conn {
        self.conns.entry(port).or_insert_with(|| Conn::open(port))
    }
}

/// Where a node sends a client instead of answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `ASK`, for this command only; otherwise `MOVED`, for good.
    pub ask: bool,
    /// The slot it is about.
    pub slot: u16,
    /// The port of the node to ask.
    pub port: u16,
}

impl Redirect {
    /// The redirection that a reply is, if it is one.
    pub fn of(reply: &Reply) -> Option<Redirect> {
        let Reply::Error(line) = reply else {
            return None;
        };
        let mut words = line.split(' ');
        let ask = match words.next()? {
            "ASK" => true,
            "MOVED" => false,
            _ => return None,
        };
        let slot = words.next()?.parse().ok()?;
        let (_, port) = words.next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        Some(Redirect { ask, slot, port })
    }
}

/// The slot of a key: CRC16 of its hash tag if it has one, else of all of it.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// What stands between the first `{` and the first `}` after it, unless that is empty.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = || {
        let open = key.iter().position(|&byte| byte == b'{')?;
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then_some(&rest[..close])
    };
    tag().unwrap_or(key)
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            let carry = if crc & 0x8000 == 0 { 0 } else { 0x1021 };
            (crc << 1) ^ carry
        })
    })
}

fn cluster_info(conn: &mut Conn) -> BTreeMap<String, String> {
    fields(conn.run("CLUSTER INFO").text())
}

fn node_id(conn: &mut Conn) -> String {
    conn.run("CLUSTER MYID").text().to_owned()
}

fn link_is_up(conn: &mut Conn) -> bool {
    let info = conn.info("replication");
    info.get("master_link_status").is_none_or(|s| s == "up")
}

/// The port of the master of a slot, as one node sees it.
fn owner(conn: &mut Conn, slot: u16) -> Option<u16> {
    let reply = conn.try_cmd(&["CLUSTER", "SLOTS"]).ok()?;
    let slot = i64::from(slot);
    let range = reply.array().iter().find(|range| {
        let range = range.array();
        (range[0].int()..=range[1].int()).contains(&slot)
    })?;
    u16::try_from(range.array()[2].array()[1].int()).ok()
}

fn move_keys(source: &mut Conn, slot: u16, to: u16) {
    let ask = format!("CLUSTER GETKEYSINSLOT {slot} 100");
    loop {
        let keys = source.run(&ask);
        if keys.array().is_empty() {
            return;
        }
        let to = to.to_string();
        let mut command: Vec<&[u8]> = vec![b"MIGRATE", b"127.0.0.1", to.as_bytes(), b""];
        command.extend([&b"0"[..], b"10000", b"KEYS"]);
        command.extend(keys.array().iter().map(Reply::bytes));
        let reply = source.cmd(&command);
        assert!(!reply.is_err(), "slot {slot} cannot be moved: {reply}");
    }
}
