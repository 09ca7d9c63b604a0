//! The client: one `call` that talks, one typed method for each command.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::wire;
use futures_util::future::BoxFuture;
use maos_core::wire::{self as language, Keys, Reply, Request};
use redis::cluster_routing::Slot;
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::time::{sleep, timeout_at, Instant};

use crate::error::shown;
use crate::link::{Fault, Link, Via};
use crate::options::sealed::Sealed;
use crate::topology::{self, Address, Node, Topology, SERVER};
use crate::turns::Turns;
use crate::value::from_json;
use crate::{
    Always, Applied, Config, Current, Error, HistoryOptions, ManyOptions, ManyOutcome, Mode,
    Outcome, Past, Revision, SetOptions, StateValue, Version, Which,
};

/// A request with its reply: what [`Client::call`] takes.
pub trait Command<'a>: Request<'a> {
    /// What the store answers.
    type Reply: Reply + Send + 'static;

    /// The request id under which a repetition is recognised; `None` for a read, or without one.
    fn request_id(&self) -> Option<&[u8]>;

    /// Whether it is sent again where nobody knows if it was carried out: a read, and a write that is recognised.
    fn is_repeatable(&self) -> bool {
        !Self::SPEC.is_write() || self.request_id().is_some()
    }
}

macro_rules! commands {
    ($(read $read:ident => $read_reply:ident),* ; $(write $write:ident => $write_reply:ident),*) => {
        $(impl<'a> Command<'a> for wire::$read<'a> {
            type Reply = wire::$read_reply<'static>;
            fn request_id(&self) -> Option<&[u8]> {
                None
            }
        })*
        $(impl<'a> Command<'a> for wire::$write<'a> {
            type Reply = wire::$write_reply<'static>;
            fn request_id(&self) -> Option<&[u8]> {
                self.options.reqid
            }
        })*
    };
}

commands! {
    read Get => GetReply, read MGet => MGetReply, read History => HistoryReply,
    read Diff => DiffReply;
    write Set => WriteReply, write Cas => WriteReply, write Del => WriteReply,
    write Rollback => WriteReply, write Patch => WriteReply, write IncrBy => IncrReply,
    write MSet => WriteReply, write MCas => MCasReply, write Merge => MergeReply,
    write Txn => TxnReply
}

// Repeated, a lock would be taken twice, a release that was carried out would be told as a loss, and a partition that
// was made as one that somebody else had made before.
macro_rules! commands_without_id {
    ($($name:ident => $reply:ty),*) => {
        $(impl<'a> Command<'a> for wire::$name<'a> {
            type Reply = $reply;
            fn request_id(&self) -> Option<&[u8]> {
                None
            }
        })*
    };
}

commands_without_id! {
    Lock => wire::LockReply, MLock => wire::MLockReply, Unlock => wire::UnlockReply,
    Renew => wire::RenewReply, Locks => wire::LocksReply<'static>,
    PartitionCreate => wire::DefinedReply, PartitionAlter => wire::DefinedReply,
    PartitionDrop => wire::DroppedReply, PartitionInfo => wire::PartitionReply<'static>,
    PartitionList => wire::PartitionsReply<'static>, PartitionPool => wire::PoolReply,
    PartitionHelp => wire::HelpReply, Watch => wire::WatchReply<'static>,
    Range => wire::RangeReply<'static>, BackupStatus => wire::StatusReply<'static>,
    BackupList => wire::BackupsReply<'static>, BackupVerify => wire::VerifiedReply<'static>,
    BackupHelp => wire::HelpReply
}

// These change no key, and are no reads for all that: repeated, a backup would be made twice, and one that was removed
// would be told as one that there never was.
macro_rules! commands_sent_once {
    ($($name:ident => $reply:ty),*) => {
        $(impl<'a> Command<'a> for wire::$name<'a> {
            type Reply = $reply;
            fn request_id(&self) -> Option<&[u8]> {
                None
            }
            fn is_repeatable(&self) -> bool {
                false
            }
        })*
    };
}

commands_sent_once! {
    BackupCreate => wire::BegunReply, BackupRestore => wire::BegunReply,
    BackupCancel => wire::DoneReply, BackupDelete => wire::DoneReply,
    RollbackTo => wire::BegunReply
}

/// A store of state. Cheap to clone: all clones share the connection, and any number of tasks may
/// use them at the same time.
///
/// # When a connection is lost
///
/// The client makes a new one and repeats the call, up to [`Config::attempts`] times within
/// [`Config::deadline`], with growing pauses. Reads are repeated always. Every write carries a
/// random request id, the same in each repetition: the store recognises it among the last 16
/// versions of the key and answers with the version that the first request made, so the write is
/// applied once, and a `cas` whose reply was lost still gives `Applied` with its own version.
/// A write [without one](SetOptions::without_request_id) is repeated only as long as it surely has
/// not reached the server; after that the error says that it may have been applied.
///
/// Should 16 other writes to the same key come between a write and its repetition, the repetition is
/// not recognised: an unconditional write is then applied again, a conditional one loses.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    link: Link,
    deadline: Duration,
    attempts: u32,
    agent: Option<String>,
    config: Config,
    /// Clients with a connection each, for requests that wait; those that are idle.
    lanes: Mutex<Vec<Client>>,
    turns: Turns,
}

/// The store lets nobody wait longer.
const LONGEST_WAIT: Duration = Duration::from_millis(maos_core::config::WAIT_MAX_MS.unsigned_abs());

/// So many connections are kept for requests that wait.
const IDLE_LANES: usize = 8;

impl Client {
    /// Connects. Fails at once if no address answers.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Transport`], or the server's refusal of user and password.
    pub async fn connect(config: Config) -> Result<Client, Error> {
        let client = Client::lazy(config)?;
        match client.inner.link.connect().await {
            Ok(()) => Ok(client),
            Err(fault) => Err(give_up(fault, Applied::No, 1)),
        }
    }

    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn lazy(config: Config) -> Result<Client, Error> {
        Ok(Client {
            inner: Arc::new(Inner {
                link: Link::new(&config)?,
                deadline: config.deadline,
                attempts: config.attempts,
                agent: config.agent.clone(),
                config,
                lanes: Mutex::default(),
                turns: Turns::default(),
            }),
        })
    }

    /// A client with a connection of its own.
    pub(crate) fn lane(&self) -> Result<Client, Error> {
        let idle = self.inner.lanes.lock().ok().and_then(|mut l| l.pop());
        match idle {
            Some(lane) => Ok(lane),
            None => {
                let mut config = self.inner.config.clone();
                config.deadline += LONGEST_WAIT;
                config.response_timeout += LONGEST_WAIT;
                Client::lazy(config)
            }
        }
    }

    pub(crate) fn is_of_a_cluster(&self) -> bool {
        self.inner.config.cluster
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.inner.deadline
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.inner.turns
    }

    /// Keeps a client that waits for nothing.
    pub(crate) fn give_lane_back(&self, lane: Client) {
        if let Ok(mut lanes) = self.inner.lanes.lock() {
            if lanes.len() < IDLE_LANES {
                lanes.push(lane);
            }
        }
    }

    /// Sends one request of the command language and reads its reply.
    ///
    /// The methods below are this with the common case made short.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store says no, [`Error::Transport`] where no answer came,
    /// [`Error::Server`] for any other error of the server, such as `CROSSSLOT`.
    pub fn call<'c, 'a, C: Command<'a>>(
        &'c self,
        request: &C,
    ) -> BoxFuture<'c, Result<C::Reply, Error>> {
        self.call_by(request, None)
    }

    /// The same, by this way.
    pub(crate) fn call_at<'c, 'a, C: Command<'a>>(
        &'c self,
        request: &C,
        via: Via,
    ) -> BoxFuture<'c, Result<C::Reply, Error>> {
        self.call_by(request, Some(via))
    }

    fn call_by<'c, 'a, C: Command<'a>>(
        &'c self,
        request: &C,
        via: Option<Via>,
    ) -> BoxFuture<'c, Result<C::Reply, Error>> {
        let spec = C::SPEC;
        let args = request.encode();
        let repeatable = request.is_repeatable();
        // Boxed, so that the future is `Send` whatever the request borrows from.
        Box::pin(async move {
            let via = match via {
                Some(via) => via,
                None => self.via(spec.keys, &args)?,
            };
            let (command, own) = spec.names();
            let mut cmd = redis::cmd(command);
            if let Some(own) = own {
                cmd.arg(own);
            }
            for arg in &args {
                cmd.arg(&arg[..]);
            }
            drop(args);
            let value = self.send(&cmd, via, repeatable).await?;
            C::Reply::decode(plain(value)?)
                .map_err(|bad| Error::Protocol(format!("{}: {}", spec.name, bad.0)))
        })
    }

    /// The way to a command's keys.
    fn via(&self, keys: Keys, args: &[Vec<u8>]) -> Result<Via, Error> {
        if !self.inner.link.is_cluster() {
            return Ok(Via::any());
        }
        let (first, step) = match keys {
            Keys::None => return Ok(Via::any()),
            Keys::One(_) => (0, args.len()),
            Keys::Counted { step, .. } => (1, step),
            Keys::Pairs(from, _) => (from - 1, 2),
        };
        let count = match keys {
            Keys::Counted { .. } => {
                let n = args.first().and_then(|n| std::str::from_utf8(n).ok());
                n.and_then(|n| n.parse().ok()).unwrap_or(0)
            }
            _ => usize::MAX,
        };
        let mut keys = args.iter().skip(first).step_by(step.max(1)).take(count);
        let Some(first) = keys.next() else {
            return Ok(Via::any());
        };
        let slot = Slot::for_key(first);
        match keys.find(|key| Slot::for_key(key) != slot) {
            None => Ok(Via::Slot(slot)),
            Some(other) => Err(Error::Server {
                word: "CROSSSLOT".to_owned(),
                text: format!(
                    "{} and {} lie in different slots of the cluster, so no one node can write or read them together; keys with the same hash tag ({{...}}) share a slot",
                    shown(first),
                    shown(other)
                ),
            }),
        }
    }

    /// Sends until there is an answer, no use in going on, or no time left.
    pub(crate) async fn send(
        &self,
        cmd: &redis::Cmd,
        mut via: Via,
        repeatable: bool,
    ) -> Result<redis::Value, Error> {
        let home = via.clone();
        let deadline = Instant::now() + self.inner.deadline;
        let mut fate = Applied::No;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let departed = AtomicBool::new(false);
            let sent = timeout_at(deadline, self.inner.link.send(cmd, &via, &departed));
            let Ok(answer) = sent.await else {
                if departed.load(Ordering::Relaxed) {
                    fate = Applied::Unknown;
                }
                return Err(late(fate, attempt));
            };
            let fault = match answer {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            if matches!(fault, Fault::Unknown(_)) {
                fate = Applied::Unknown;
            }
            let again = match &fault {
                Fault::Final(_) => false,
                Fault::Unknown(_) => repeatable,
                Fault::NotSent(_) | Fault::Later(_) | Fault::Elsewhere(_) => true,
            };
            let pause = pause(attempt, &fault);
            let in_time = Instant::now() + pause < deadline;
            if !again || !in_time || attempt >= self.inner.attempts {
                return Err(give_up(fault, fate, attempt));
            }
            tracing::debug!(attempt, ?fault, "trying again");
            // A way pointed out by a node holds for one try; the map of the cluster is being
            // brought up to date meanwhile.
            via = match fault {
                Fault::Elsewhere(other) => other,
                _ => home.clone(),
            };
            sleep(pause).await;
        }
    }

    // -----------------------------------------------------------------------------------------
    // Reads
    // -----------------------------------------------------------------------------------------

    /// Reads a key: `None` if it has no live value.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<StateValue<Vec<u8>>>, Error> {
        self.read(key.as_ref(), None).await
    }

    /// Reads a key as it was: `None` if it had no live value.
    ///
    /// # Errors
    /// `NOVERSION` if that version was never written, or is no longer kept; and as
    /// [`call`](Client::call).
    pub async fn get_past(
        &self,
        key: impl AsRef<[u8]>,
        past: impl Into<Past>,
    ) -> Result<Option<StateValue<Vec<u8>>>, Error> {
        self.read(key.as_ref(), Some(past.into().wire())).await
    }

    /// Reads a key as JSON: `None` if it has no live value.
    ///
    /// # Errors
    /// [`Error::Decode`] if it does not have the shape of `T`; and as [`call`](Client::call).
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<StateValue<T>>, Error> {
        let key = key.as_ref();
        let Some(found) = self.get(key).await? else {
            return Ok(None);
        };
        let value = from_json(&shown(key), found.version, &found.value)?;
        Ok(Some(found.map(|_| value)))
    }

    async fn read(
        &self,
        key: &[u8],
        select: Option<wire::Select>,
    ) -> Result<Option<StateValue<Vec<u8>>>, Error> {
        let form = wire::Form::Full;
        full(self.call(&wire::Get { key, select, form }).await?)
    }

    /// Reads several keys at one instant: one entry for each, in their order.
    ///
    /// # Errors
    /// In a cluster `CROSSSLOT` unless all keys share a slot; and as [`call`](Client::call).
    pub async fn mget<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<StateValue<Vec<u8>>>>, Error> {
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let request = wire::MGet {
            keys: keys.iter().map(AsRef::as_ref).collect(),
            form: wire::Form::Full,
        };
        let reply = self.call(&request).await?;
        reply.0.into_iter().map(full).collect()
    }

    /// Lists the versions of a key that are kept; empty if there is no such key.
    ///
    /// # Errors
    /// `LIMIT` if the values asked for are too much for one answer; and as [`call`](Client::call).
    pub async fn history(
        &self,
        key: impl AsRef<[u8]>,
        options: HistoryOptions,
    ) -> Result<Vec<Revision>, Error> {
        let reply = self
            .call(&wire::History {
                key: key.as_ref(),
                from: options.from.map(Which::number),
                to: options.to.map(Which::number),
                count: options.count,
                desc: options.newest_first,
                values: options.values,
            })
            .await?;
        Ok(reply.0.into_iter().map(Revision::of).collect())
    }

    /// What changed between two versions of a JSON value: a JSON Patch (RFC 6902).
    ///
    /// # Errors
    /// `NOVERSION`, `NOTJSON`; and as [`call`](Client::call).
    pub async fn diff(
        &self,
        key: impl AsRef<[u8]>,
        from: impl Into<Which>,
        to: impl Into<Which>,
    ) -> Result<String, Error> {
        let request = wire::Diff {
            key: key.as_ref(),
            from: from.into().number(),
            to: to.into().number(),
        };
        let patch = self.call(&request).await?.0.into_owned();
        String::from_utf8(patch).map_err(|_| Error::Protocol("a patch is UTF-8".to_owned()))
    }

    // -----------------------------------------------------------------------------------------
    // Writes
    // -----------------------------------------------------------------------------------------

    /// Writes a new version of a key. Gives its [`Version`], or an [`Outcome`] if the options make
    /// it conditional.
    ///
    /// # Errors
    /// `TOOBIG`, `NOTJSON` for metadata that is no JSON object; and as [`call`](Client::call).
    pub async fn set<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let (origin, expire, mode) = options.settle(self.agent());
        let request = wire::Set {
            key: key.as_ref(),
            value: value.as_ref(),
            options: wire::WriteOptions {
                expire,
                if_version: mode.condition(),
                ..origin.wire()
            },
        };
        M::read(self.call(&request).await?)
    }

    /// Writes a value as JSON; otherwise as [`set`](Client::set).
    ///
    /// # Errors
    /// [`Error::Encode`] if it cannot be written as JSON; and as [`set`](Client::set).
    pub async fn set_json<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        value: &impl Serialize,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let text = serde_json::to_vec(value).map_err(Error::Encode)?;
        self.set(key, text, options).await
    }

    /// Writes a new version of a key if the current one is `version` ([`Version::NONE`]: if there
    /// is no live value). Of all who name the same version, exactly one is applied.
    ///
    /// # Errors
    /// As [`set`](Client::set). A lost race is no error.
    pub async fn cas(
        &self,
        key: impl AsRef<[u8]>,
        version: Version,
        value: impl AsRef<[u8]>,
        options: SetOptions<Always>,
    ) -> Result<Outcome, Error> {
        let (origin, expire, _) = options.settle(self.agent());
        let request = wire::Cas {
            key: key.as_ref(),
            version,
            value: value.as_ref(),
            options: wire::WriteOptions {
                expire,
                ..origin.wire()
            },
        };
        match self.call(&request).await? {
            wire::WriteReply::Applied(version) => Ok(Outcome::Applied(version)),
            wire::WriteReply::Lost(lost) => Ok(Outcome::Lost(Current::of(lost))),
            wire::WriteReply::Version(_) => {
                Err(Error::Protocol("an outcome was expected".to_owned()))
            }
        }
    }

    /// Deletes the value of a key and keeps its history. Gives the version of the deletion, which is
    /// [`Version::NONE`] if there was nothing to delete. The time to live is the history's.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn del<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let (origin, expire, mode) = options.settle(self.agent());
        let request = wire::Del {
            key: key.as_ref(),
            options: wire::WriteOptions {
                expire,
                if_version: mode.condition(),
                ..origin.wire()
            },
        };
        M::read(self.call(&request).await?)
    }

    /// Writes a new version that holds the value of an old one.
    ///
    /// # Errors
    /// `NOVERSION` if that version was never written, is no longer kept, or is a deletion; and as
    /// [`call`](Client::call).
    pub async fn rollback<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        to: impl Into<Past>,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let (origin, expire, mode) = options.settle(self.agent());
        let request = wire::Rollback {
            key: key.as_ref(),
            select: to.into().wire(),
            options: wire::WriteOptions {
                expire,
                if_version: mode.condition(),
                ..origin.wire()
            },
        };
        M::read(self.call(&request).await?)
    }

    /// Writes several keys, all or nothing, with one version for all.
    ///
    /// # Errors
    /// In a cluster `CROSSSLOT` unless all keys share a slot; and as [`set`](Client::set).
    pub async fn mset<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        pairs: &[(K, V)],
        options: ManyOptions,
    ) -> Result<Version, Error> {
        let origin = options.settle(self.agent());
        let pairs = pairs.iter().map(|(k, v)| (k.as_ref(), v.as_ref()));
        let request = wire::MSet {
            pairs: pairs.collect(),
            options: origin.wire(),
        };
        Always::read(self.call(&request).await?)
    }

    /// Writes several keys if each is at the version given, all or nothing, with one version for all.
    ///
    /// # Errors
    /// As [`mset`](Client::mset). A lost race is no error.
    pub async fn mcas<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: &[(K, Version, V)],
        options: ManyOptions,
    ) -> Result<ManyOutcome, Error> {
        let origin = options.settle(self.agent());
        let items = items.iter().map(|(k, n, v)| (k.as_ref(), *n, v.as_ref()));
        let request = wire::MCas {
            items: items.collect(),
            options: origin.wire(),
        };
        Ok(match self.call(&request).await? {
            wire::MCasReply::Applied(version) => ManyOutcome::Applied(version),
            wire::MCasReply::Lost(keys) => {
                let keys = keys.into_iter();
                ManyOutcome::Lost(keys.map(|(k, v)| (k.into_owned(), v)).collect())
            }
        })
    }

    // -----------------------------------------------------------------------------------------
    // The servers behind it
    // -----------------------------------------------------------------------------------------

    /// The text of `INFO` for some sections, from the server, or from every master of the cluster.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn info(&self, sections: &[&str]) -> Result<Vec<String>, Error> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(sections);
        let answers = match &self.inner.link {
            Link::One(_) => vec![self.send(&cmd, Via::any(), true).await?],
            Link::Many(_) => {
                let masters = self.asked_of_masters(cmd).await?;
                masters.into_iter().map(|(_, answer)| answer).collect()
            }
        };
        answers.into_iter().map(text).collect()
    }

    /// Lists the keys of all values that begin with `prefix`, page by page, on all masters.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Scan {
        let mut pattern = Vec::new();
        for byte in prefix.as_ref() {
            if b"*?[]\\^-".contains(byte) {
                pattern.push(b'\\');
            }
            pattern.push(*byte);
        }
        pattern.push(b'*');
        Scan {
            client: self.clone(),
            pattern,
            left: None,
            cursor: 0,
        }
    }

    /// The masters, each with a client of its own: where a command is about one server, such as those of backups, each of
    /// them is asked. Without a cluster that is the one server there is.
    ///
    /// Masters without a slot are left out: they have no keys.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn masters(&self) -> Result<Vec<Master>, Error> {
        if !self.is_of_a_cluster() {
            let addresses = self.inner.config.addresses();
            return Ok(vec![Master {
                id: SERVER.to_owned(),
                address: addresses.into_iter().next().unwrap_or_default(),
                client: self.clone(),
            }]);
        }
        let mut known = Topology::default();
        known.learn(&self.cluster_nodes().await?);
        let master = |shard: &topology::Shard| {
            let Address { host, port } = &shard.address;
            let config = self.inner.config.clone().at(host, *port);
            Ok(Master {
                id: shard.master.clone(),
                address: config.addresses().into_iter().next().unwrap_or_default(),
                client: Client::lazy(config)?,
            })
        };
        known.shards.iter().map(master).collect()
    }

    /// A way to each master.
    pub(crate) async fn master_ways(&self) -> Result<Vec<Via>, Error> {
        match &self.inner.link {
            Link::One(_) => Ok(vec![Via::any()]),
            Link::Many(_) => {
                let masters = self.asked_of_masters(redis::cmd("PING")).await?;
                Ok(masters.into_iter().map(|(via, _)| via).collect())
            }
        }
    }

    /// A client of one node of the cluster; of the server, where there is one. What is asked for is tried once, and
    /// may take so long beside the time of its answer.
    pub(crate) fn of_node(&self, node: Option<&Address>, wait: Duration) -> Result<Client, Error> {
        let mut config = self.inner.config.clone();
        if let Some(node) = node {
            config = config.at(&node.host, node.port);
        }
        config.attempts = 1;
        config.response_timeout += wait;
        config.deadline = config.response_timeout + config.connect_timeout;
        Client::lazy(config)
    }

    /// What a node says of the cluster.
    pub(crate) async fn cluster_nodes(&self) -> Result<Vec<Node>, Error> {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("NODES");
        // Another one each time: one of them may be down.
        let via = Slot::new(fastrand::u16(0..topology::SLOTS)).map_or_else(Via::any, Via::Slot);
        let said = text(self.send(&cmd, via, true).await?)?;
        Ok(topology::parse(&said))
    }

    async fn asked_of_masters(&self, cmd: redis::Cmd) -> Result<Vec<(Via, redis::Value)>, Error> {
        let Link::Many(cluster) = &self.inner.link else {
            return Ok(vec![]);
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let fault = match cluster.masters(cmd.clone()).await {
                Ok(masters) => return Ok(masters),
                Err(fault) => fault,
            };
            if matches!(fault, Fault::Final(_)) || attempt >= self.inner.attempts.min(5) {
                return Err(give_up(fault, Applied::No, attempt));
            }
            sleep(pause(attempt, &fault)).await;
        }
    }

    pub(crate) fn agent(&self) -> Option<&str> {
        self.inner.agent.as_deref()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("cluster", &self.inner.link.is_cluster())
            .field("deadline", &self.inner.deadline)
            .field("attempts", &self.inner.attempts)
            .field("agent", &self.inner.agent)
            .finish()
    }
}

/// A master of the store, and a client that talks to it alone: what [`Client::masters`] gives.
#[derive(Clone, Debug)]
pub struct Master {
    id: String,
    address: String,
    client: Client,
}

impl Master {
    /// Its id in the cluster; `server` where there is none.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens, as host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What is asked of this client is asked of this server. Keys whose slot another one has are none of its business.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// A listing of keys, as [`Client::scan`] begins it.
///
/// A key that is there from beginning to end is listed at least once; one may come twice.
#[derive(Debug)]
pub struct Scan {
    client: Client,
    pattern: Vec<u8>,
    /// The servers still to be asked, the present one last; `None`: not begun.
    left: Option<Vec<Via>>,
    cursor: u64,
}

impl Scan {
    /// The next page, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn next_page(&mut self) -> Result<Option<Vec<Vec<u8>>>, Error> {
        if self.left.is_none() {
            self.left = Some(self.client.master_ways().await?);
        }
        let Some(via) = self.left.as_ref().and_then(|left| left.last()).cloned() else {
            return Ok(None);
        };
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(self.cursor).arg("MATCH").arg(&self.pattern[..]);
        cmd.arg("COUNT").arg(1000).arg("TYPE").arg("MaosState");
        let page = plain(self.client.send(&cmd, via, true).await?)?;
        let (cursor, keys) =
            page_of(page).map_err(|b| Error::Protocol(format!("SCAN: {}", b.0)))?;
        self.cursor = cursor;
        if cursor == 0 {
            self.left.as_mut().and_then(Vec::pop);
        }
        Ok(Some(keys))
    }
}

fn page_of(page: language::Value) -> language::Decoded<(u64, Vec<Vec<u8>>)> {
    const BAD: language::reply::BadShape = language::reply::BadShape("a cursor and keys");
    let mut page = page.items()?.into_iter();
    let cursor = page.next().ok_or(BAD)?.bytes()?.ok_or(BAD)?;
    let cursor = std::str::from_utf8(&cursor)
        .ok()
        .and_then(|c| c.parse().ok());
    let keys = page.next().ok_or(BAD)?.items()?.into_iter();
    let keys = keys.map(|key| Ok(key.bytes()?.ok_or(BAD)?.into_owned()));
    Ok((cursor.ok_or(BAD)?, keys.collect::<Result<_, _>>()?))
}

fn full(reply: wire::GetReply<'_>) -> Result<Option<StateValue<Vec<u8>>>, Error> {
    match reply {
        wire::GetReply::Absent => Ok(None),
        wire::GetReply::Full(full) => Ok(Some(StateValue::of(*full))),
        _ => Err(Error::Protocol("a full reply was expected".to_owned())),
    }
}

fn text(value: redis::Value) -> Result<String, Error> {
    match plain(value)? {
        language::Value::Bulk(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Err(Error::Protocol("text was expected".to_owned())),
    }
}

/// The answer in the terms of the command language.
fn plain(value: redis::Value) -> Result<language::Value, Error> {
    use language::Value as Plain;
    use redis::Value as Wire;
    let list = |items: Vec<Wire>| items.into_iter().map(plain).collect::<Result<_, _>>();
    Ok(match value {
        Wire::Nil => Plain::Null,
        Wire::Int(n) => Plain::Int(n),
        Wire::BulkString(bytes) => Plain::Bulk(bytes),
        Wire::SimpleString(text) | Wire::VerbatimString { text, .. } => Plain::Bulk(text.into()),
        Wire::Okay => Plain::Bulk(b"OK".to_vec()),
        Wire::Array(items) | Wire::Set(items) => Plain::Array(list(items)?),
        Wire::Map(pairs) => {
            let pairs = pairs.into_iter().map(|(k, v)| Ok((plain(k)?, plain(v)?)));
            Plain::Map(pairs.collect::<Result<_, Error>>()?)
        }
        Wire::Boolean(b) => Plain::Int(i64::from(b)),
        Wire::Attribute { data, .. } => plain(*data)?,
        _ => return Err(Error::Protocol("a type that no command has".to_owned())),
    })
}

/// How long to wait before trying again: at once for a redirection, else twice as long each time,
/// from a millisecond to half a second, with chance in it so that clients do not march in step.
/// The first pauses are short because a repetition is recognised among 16 versions only.
fn pause(attempt: u32, fault: &Fault) -> Duration {
    if matches!(fault, Fault::Elsewhere(_)) && attempt < 4 {
        return Duration::ZERO;
    }
    let most = (1_000u64 << (attempt - 1).min(9)).min(500_000);
    Duration::from_micros(most / 2 + fastrand::u64(0..=most / 2))
}

fn late(applied: Applied, attempts: u32) -> Error {
    Error::Transport {
        text: "no answer in time".to_owned(),
        applied,
        attempts,
        source: None,
    }
}

fn give_up(fault: Fault, applied: Applied, attempts: u32) -> Error {
    let (text, source) = match fault {
        Fault::Final(error) | Fault::Later(error) => return error,
        Fault::NotSent(error) => (format!("no connection: {error}"), Some(error)),
        Fault::Unknown(error) => (format!("the connection was lost: {error}"), Some(error)),
        Fault::Elsewhere(via) => (
            format!(
                "the nodes of the cluster do not agree who has the key (the last said {via:?})"
            ),
            None,
        ),
    };
    Error::Transport {
        text,
        applied,
        attempts,
        source: source.map(Into::into),
    }
}
