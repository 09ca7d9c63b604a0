//! Partitions: named shares of the memory pool, with quotas.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use tokio::time::{sleep, Instant};

use crate::error::shown;
use crate::lock::millis;
use crate::{time_of, wire, Applied, Client, Code, Error, Refusal, Strategy, Version};

/// How a partition is meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum PartitionType {
    /// Open to all.
    #[default]
    SharedPool,
    /// Of one agent: a write [by](crate::SetOptions::by) another one is refused (`NOPERM`).
    AgentDedicated,
    /// Leaves at its time, and its keys with it.
    Temporary,
    /// Dropped with force only, even if it is empty.
    Persistent,
}

impl PartitionType {
    const ALL: [(PartitionType, wire::Class); 4] = [
        (PartitionType::SharedPool, wire::Class::SharedPool),
        (PartitionType::AgentDedicated, wire::Class::AgentDedicated),
        (PartitionType::Temporary, wire::Class::Temporary),
        (PartitionType::Persistent, wire::Class::Persistent),
    ];

    fn of(class: wire::Class) -> PartitionType {
        let found = PartitionType::ALL.iter().find(|(_, c)| *c == class);
        found.map_or(PartitionType::SharedPool, |(ours, _)| *ours)
    }

    fn wire(self) -> wire::Class {
        let found = PartitionType::ALL.iter().find(|(ours, _)| *ours == self);
        found.map_or(wire::Class::SharedPool, |(_, class)| *class)
    }

    /// The word for it: `shared_pool`, `agent_dedicated`, `temporary` or `persistent`.
    pub fn word(self) -> &'static str {
        match self {
            PartitionType::SharedPool => "shared_pool",
            PartitionType::AgentDedicated => "agent_dedicated",
            PartitionType::Temporary => "temporary",
            PartitionType::Persistent => "persistent",
        }
    }
}

/// What becomes of a write for which there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum OnFull {
    /// It is refused (`QUOTA`).
    #[default]
    Reject,
    /// Keys of the partition are removed, those first that were written longest ago.
    Evict,
}

impl OnFull {
    /// The word for it: `reject` or `evict`.
    pub fn word(self) -> &'static str {
        match self {
            OnFull::Reject => "reject",
            OnFull::Evict => "evict",
        }
    }
}

/// What may be said of a partition besides its quota. What is not said is as the store has it: the defaults in a new
/// partition, in an older one what it was.
///
/// ```
/// use std::time::Duration;
/// use maos_client::{OnFull, PartitionOptions};
///
/// let scratch = PartitionOptions::new()
///     .temporary(Duration::from_secs(3600))
///     .prefix("scratch:")
///     .on_full(OnFull::Evict);
/// ```
#[derive(Clone, Default, Debug)]
pub struct PartitionOptions {
    partition_type: Option<PartitionType>,
    agent: Option<String>,
    prefixes: Option<Vec<Vec<u8>>>,
    ttl: Option<Duration>,
    on_full: Option<OnFull>,
    on_conflict: Option<Strategy>,
    history: Option<u64>,
    max_age: Option<Duration>,
    max_value: Option<u64>,
}

impl PartitionOptions {
    /// Nothing said.
    pub fn new() -> PartitionOptions {
        PartitionOptions::default()
    }

    fn said(&mut self) -> &mut PartitionOptions {
        self
    }

    fn terms(&self, quota: Option<u64>) -> wire::Terms<'_> {
        let prefixes = self.prefixes.as_ref();
        wire::Terms {
            bytes: quota,
            class: self.partition_type.map(PartitionType::wire),
            agent: self.agent.as_deref().map(str::as_bytes),
            prefixes: prefixes.map(|all| all.iter().map(|p| &p[..]).collect()),
            ttl_ms: self.ttl.map(rounded_up),
            on_full: self.on_full.map(|on_full| match on_full {
                OnFull::Reject => wire::OnFull::Reject,
                OnFull::Evict => wire::OnFull::Evict,
            }),
            on_conflict: self.on_conflict.as_ref().map(Strategy::wire),
            history: self.history,
            max_age_ms: self.max_age.map(rounded_up),
            max_value: self.max_value,
        }
    }
}

/// In milliseconds. Zero has a meaning of its own, so what is shorter than one is one.
fn rounded_up(time: Duration) -> u64 {
    millis(time).max(u64::from(!time.is_zero()))
}

macro_rules! term_methods {
    () => {
        /// How it is meant; [`PartitionType::SharedPool`] unless it is said.
        pub fn partition_type(mut self, how: PartitionType) -> Self {
            self.said().partition_type = Some(how);
            self
        }

        /// Of one agent, 1 to 256 bytes: a write by another one is refused (`NOPERM`). One that names no agent is
        /// not.
        pub fn dedicated_to(mut self, agent: impl Into<String>) -> Self {
            self.said().partition_type = Some(PartitionType::AgentDedicated);
            self.said().agent = Some(agent.into());
            self
        }

        /// Leaves after this time, and its keys with it. At least a millisecond; counted from now on.
        pub fn temporary(mut self, lasts: Duration) -> Self {
            self.said().partition_type = Some(PartitionType::Temporary);
            self.said().ttl = Some(lasts);
            self
        }

        /// After what time a key expires that is written without a word about its expiry; zero: never. Of a
        /// [temporary](Self::temporary) partition: how long the partition lasts.
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.said().ttl = Some(ttl);
            self
        }

        /// Keys that begin with this belong to it, unless a longer prefix of another partition fits or a write
        /// [names](crate::SetOptions::partition) one. 1 to 256 bytes; may be said of 64. In a partition that is there,
        /// the prefixes said take the place of all that it had.
        pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
            let prefixes = self.said().prefixes.get_or_insert_default();
            prefixes.push(prefix.as_ref().to_vec());
            self
        }

        /// No prefix any more: only keys whose writes name it belong to it.
        pub fn no_prefix(mut self) -> Self {
            self.said().prefixes = Some(vec![]);
            self
        }

        /// What becomes of a write for which there is no room; [`OnFull::Reject`] unless it is said.
        pub fn on_full(mut self, what: OnFull) -> Self {
            self.said().on_full = Some(what);
            self
        }

        /// How a [merge](crate::Client::merge) of its keys goes that
        /// [leaves it to the partition](crate::MergeOptions::as_partitioned).
        pub fn on_conflict(mut self, strategy: Strategy) -> Self {
            self.said().on_conflict = Some(strategy);
            self
        }

        /// How many versions are kept of each key; 0: as the server's `maos.history-max-versions` says.
        pub fn history(mut self, versions: u64) -> Self {
            self.said().history = Some(versions);
            self
        }

        /// How long a replaced version is kept, in whole milliseconds; zero: as the server's
        /// `maos.history-max-age` says.
        pub fn max_age(mut self, age: Duration) -> Self {
            self.said().max_age = Some(age);
            self
        }

        /// The longest value in bytes, never longer than the server's `maos.value-max-bytes`; 0: as that says.
        pub fn max_value(mut self, bytes: u64) -> Self {
            self.said().max_value = Some(bytes);
            self
        }
    };
}

impl PartitionOptions {
    term_methods!();
}

/// A partition by its name, and what is to be said of it: what [`Client::partition`] gives.
///
/// ```no_run
/// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
/// use maos_client::{Code, OnFull, SetOptions};
///
/// // A megabyte for the crew; what was written longest ago makes room.
/// let crew = client.partition("partition:crew");
/// crew.quota(1 << 20).prefix("crew:").history(10).on_full(OnFull::Evict).create().await?;
/// client.set("crew:task:1", "open", SetOptions::new()).await?;
///
/// // A key elsewhere that is charged to it as well.
/// client.set("notes:1", "…", SetOptions::new().partition("partition:crew")).await?;
///
/// let info = client.partition("partition:crew").info().await?;
/// println!("{} of {} bytes, {:.0} %", info.used, info.quota, 100.0 * info.fullness());
///
/// // A write for which there is no room changes nothing and says so.
/// client.partition("partition:crew").on_full(OnFull::Reject).alter().await?;
/// match client.set("crew:task:2", vec![b'x'; 2 << 20], SetOptions::new()).await {
///     Err(error) if error.code() == Some(Code::Quota) => println!("{error}"),
///     other => println!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens before create, alter, drop_it or info"]
pub struct Partition<'c> {
    client: &'c Client,
    name: Vec<u8>,
    quota: Option<u64>,
    options: PartitionOptions,
}

impl Partition<'_> {
    fn said(&mut self) -> &mut PartitionOptions {
        &mut self.options
    }

    /// How many bytes its keys may hold: versions, history, metadata, locks and names. At least 1; taken from the pool
    /// at once. [`create`](Partition::create) needs it.
    pub fn quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// All of this, in the place of whatever was said before except for the quota.
    pub fn options(mut self, options: PartitionOptions) -> Self {
        self.options = options;
        self
    }

    term_methods!();

    /// The key that holds it.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Makes it, and gives the version of its definition. In a cluster all nodes know it within a second.
    ///
    /// # Errors
    /// `ERR` without a quota, `EXISTS` if there is such a partition, or another one with such a prefix, `POOLFULL` if
    /// the pool has not so many bytes left, `LIMIT` beyond the number of partitions or prefixes, `WRONGTYPE` if the
    /// key holds something else; and as [`Client::call`]. It is not repeated once it may have reached the store.
    pub async fn create(&self) -> Result<Version, Error> {
        if self.quota.is_none() {
            return Err(Error::Refused(Refusal::fixed(
                Code::Err,
                "say with quota how many bytes the partition may hold",
            )));
        }
        let (name, terms) = (&self.name[..], self.options.terms(self.quota));
        let request = wire::PartitionCreate { name, terms };
        Ok(self.client.call(&request).await?.0)
    }

    /// Changes what was said, leaves the rest as it is, and gives the version of the new definition.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such partition, `QUOTA` if it holds more than the new quota, `ERR` if nothing was said;
    /// and as [`create`](Partition::create).
    pub async fn alter(&self) -> Result<Version, Error> {
        let (name, terms) = (&self.name[..], self.options.terms(self.quota));
        let request = wire::PartitionAlter { name, terms };
        Ok(self.client.call(&request).await?.0)
    }

    /// Drops it if it has no keys, and gives its bytes back to the pool.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such partition, `EXISTS` if it has keys or is
    /// [persistent](PartitionType::Persistent); and as [`Client::call`]. It is not repeated once it may have reached
    /// the store.
    pub async fn drop_it(&self) -> Result<(), Error> {
        self.dropped(false).await.map(drop)
    }

    /// Drops it whatever it is, and says how many keys it had. Those stay, and belong to whatever partition has a prefix
    /// for them, or to none; but those of a [temporary](PartitionType::Temporary) one go with it.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such partition; and as [`drop_it`](Partition::drop_it).
    pub async fn drop_forced(&self) -> Result<u64, Error> {
        self.dropped(true).await
    }

    async fn dropped(&self, force: bool) -> Result<u64, Error> {
        let name = &self.name[..];
        let request = wire::PartitionDrop { name, force };
        Ok(self.client.call(&request).await?.0)
    }

    /// What it is and what it holds.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such partition; and as [`Client::call`].
    pub async fn info(&self) -> Result<PartitionInfo, Error> {
        self.look(false).await
    }

    async fn look(&self, audit: bool) -> Result<PartitionInfo, Error> {
        let name = &self.name[..];
        let request = wire::PartitionInfo { name, audit };
        PartitionInfo::of(self.client.call(&request).await?)
    }

    /// Has the keys of the partition's node counted anew, and waits until that is done, for so long at most; `None` if
    /// it has not ended by then. Should the sum have been wrong, it has been set right, and
    /// [`drift`](PartitionAudit::drift) says by how much.
    ///
    /// # Errors
    /// As [`info`](Partition::info).
    pub async fn audit(&self, longest: Duration) -> Result<Option<PartitionInfo>, Error> {
        let deadline = Instant::now() + longest;
        let mut info = self.look(true).await?;
        // One that has ended before the question does not answer it.
        let before = info.audit.and_then(|audit| audit.ended);
        let (mut asked, mut pause) = (Instant::now(), AUDIT_PAUSES.0);
        loop {
            let audit = info.audit.unwrap_or_default();
            if !audit.running && audit.ended.is_some() && audit.ended != before {
                return Ok(Some(info));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            sleep(pause.min(left)).await;
            pause = (2 * pause).min(AUDIT_PAUSES.1);
            // A node that was started again has forgotten the question.
            let again = !audit.running && asked.elapsed() > ASK_AGAIN;
            if again {
                asked = Instant::now();
            }
            info = self.look(again).await?;
        }
    }
}

/// Pauses between looks at an audit: the first, and the longest.
const AUDIT_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// An audit that has not begun by then is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What a partition is and what it holds.
///
/// Where a limit is `None`, the server's settings decide.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// The key that holds it.
    pub name: Vec<u8>,
    /// How it is meant.
    pub partition_type: PartitionType,
    /// The agent it is for.
    pub agent: Option<String>,
    /// How many bytes it may hold.
    pub quota: u64,
    /// How many it holds, on all nodes.
    pub used: u64,
    /// How many keys it has, on all nodes.
    pub keys: u64,
    /// How many bytes it holds on the node that answered.
    pub used_here: u64,
    /// How many keys it has on the node that answered.
    pub keys_here: u64,
    /// The most bytes that it held on this node.
    pub high_water: u64,
    /// How many writes this node has refused for want of room since it was started.
    pub refused: u64,
    /// How many keys this node has removed to make room since it was started.
    pub evicted: u64,
    /// What its keys begin with.
    pub prefixes: Vec<Vec<u8>>,
    /// What becomes of a write for which there is no room.
    pub on_full: OnFull,
    /// How a merge goes that names no strategy.
    pub on_conflict: Option<Strategy>,
    /// How many versions of each key are kept.
    pub history: Option<u64>,
    /// How long a replaced version is kept.
    pub max_age: Option<Duration>,
    /// The longest value in bytes.
    pub max_value: Option<u64>,
    /// After what time a key expires that is written without a word about it; `None`: it does not.
    pub key_ttl: Option<Duration>,
    /// How long the partition lasts from now on; `None`: it does not expire.
    pub expires_in: Option<Duration>,
    /// The version of its definition.
    pub version: Version,
    /// What came of the last audit of this node; `None` before the first one.
    pub audit: Option<PartitionAudit>,
}

/// What came of counting a partition's keys anew.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct PartitionAudit {
    /// True while the next one goes on.
    pub running: bool,
    /// The bytes that were counted.
    pub bytes: u64,
    /// The keys that were counted.
    pub keys: u64,
    /// How many bytes the sum had too many. It has been set right.
    pub drift: i64,
    /// When the last one ended, by the server's clock; `None` if none has.
    pub ended: Option<SystemTime>,
}

impl PartitionInfo {
    fn of(reply: wire::PartitionReply<'_>) -> Result<PartitionInfo, Error> {
        let millis = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        let audit = |audit: wire::AuditReply| PartitionAudit {
            running: audit.running,
            bytes: audit.bytes,
            keys: audit.keys,
            drift: audit.drift,
            ended: (audit.ended_ms > 0)
                .then(|| time_of(Version(audit.ended_ms.saturating_mul(1000)))),
        };
        let prefixes = reply.prefixes.into_iter();
        Ok(PartitionInfo {
            name: reply.name.into_owned(),
            partition_type: PartitionType::of(reply.class),
            agent: reply.agent.map(|a| shown(&a)),
            quota: reply.quota,
            used: reply.used,
            keys: reply.keys,
            used_here: reply.used_here,
            keys_here: reply.keys_here,
            high_water: reply.high_water,
            refused: reply.refused,
            evicted: reply.evicted,
            prefixes: prefixes.map(Cow::into_owned).collect(),
            on_full: match reply.on_full {
                wire::OnFull::Reject => OnFull::Reject,
                wire::OnFull::Evict => OnFull::Evict,
            },
            on_conflict: reply.on_conflict.map(|s| strategy(&s)).transpose()?,
            history: (reply.history > 0).then_some(reply.history),
            max_age: millis(reply.max_age_ms),
            max_value: (reply.max_value > 0).then_some(reply.max_value),
            key_ttl: millis(reply.key_ttl_ms),
            expires_in: u64::try_from(reply.ttl_ms).ok().map(Duration::from_millis),
            version: reply.version,
            audit: reply.audit.map(audit),
        })
    }

    /// How many bytes more it may hold.
    pub fn free(&self) -> u64 {
        self.quota.saturating_sub(self.used)
    }

    /// Which part of the quota is used: 0 is empty, 1 is full. It may lie above 1 where a cluster's nodes have not heard
    /// of each other's writes yet, or keys have come to it that were there before.
    pub fn fullness(&self) -> f64 {
        share(self.used, self.quota)
    }

    /// Its name as text for a person: UTF-8 where it is, `\xNN` where it is not.
    pub fn text(&self) -> String {
        shown(&self.name)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    match (part, whole) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (part, whole) => part as f64 / whole as f64,
    }
}

/// The strategy of a reply.
fn strategy(text: &[u8]) -> Result<Strategy, Error> {
    Ok(match text {
        b"reject" => Strategy::Reject,
        b"lww" => Strategy::Lww,
        b"fww" => Strategy::Fww,
        b"merge" => Strategy::Merge,
        other => match other.strip_prefix(b"function ") {
            Some(name) => Strategy::Function(shown(name)),
            None => {
                let text = format!("an unknown strategy: {}", shown(other));
                return Err(Error::Protocol(text));
            }
        },
    })
}

/// The memory that partitions are shares of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Pool {
    /// How many bytes it has (`maos.pool-bytes`).
    pub bytes: u64,
    /// How many of them the partitions may hold: the sum of their quotas.
    pub reserved: u64,
    /// How many may still be given to partitions.
    pub free: u64,
    /// How many the partitions hold, on all nodes.
    pub used: u64,
    /// How many keys they have, on all nodes.
    pub keys: u64,
    /// How many partitions there are.
    pub partitions: u64,
}

impl Pool {
    /// Which part of the pool has been given to partitions: 0 is nothing, 1 is all.
    pub fn fullness(&self) -> f64 {
        share(self.reserved, self.bytes)
    }
}

impl Client {
    /// The partition of this name, 1 to 256 bytes: to be made, changed, dropped or looked at. Nothing is sent yet.
    pub fn partition(&self, name: impl AsRef<[u8]>) -> Partition<'_> {
        Partition {
            client: self,
            name: name.as_ref().to_vec(),
            quota: None,
            options: PartitionOptions::new(),
        }
    }

    /// All partitions, of the cluster if there is one, in the order of their names; with an agent only those that are
    /// dedicated to it. Those whose key the user may not read are left out.
    ///
    /// In a cluster any master answers, and what it says of [its own](PartitionInfo::used_here) part is said of that one;
    /// what the others did in the last second may be missing.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn partitions(&self, agent: Option<&str>) -> Result<Vec<PartitionInfo>, Error> {
        let agent = agent.map(str::as_bytes);
        let reply = self.call(&wire::PartitionList { agent }).await?;
        reply.0.into_iter().map(PartitionInfo::of).collect()
    }

    /// How much of the pool has been given to partitions, and what they hold of it.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn pool(&self) -> Result<Pool, Error> {
        let reply = self.call(&wire::PartitionPool::default()).await?;
        Ok(Pool {
            bytes: reply.bytes,
            reserved: reply.reserved,
            free: reply.free,
            used: reply.used,
            keys: reply.keys,
            partitions: reply.partitions,
        })
    }

    /// Makes a partition that is dedicated to an agent (1 to 246 bytes), `partition:<agent>`, with so many bytes. If the
    /// agent has it already, that is given as it is, whatever its quota: to ask again changes nothing, and so the call is repeated
    /// when a connection is lost. Type and agent in the options do not count.
    ///
    /// ```no_run
    /// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
    /// use maos_client::{PartitionOptions, SetOptions};
    ///
    /// let options = PartitionOptions::new().prefix("worker-7:").history(5);
    /// let own = client.allocate_memory_partition("worker-7", 10 << 20, options).await?;
    /// println!("{}: {} bytes are left", own.text(), own.free());
    /// client.set("worker-7:notes", "…", SetOptions::new().by("worker-7")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `EXISTS` if there is a partition of this name that is not the agent's, or another one with such a prefix;
    /// `POOLFULL`; and as [`Partition::create`].
    pub async fn allocate_memory_partition(
        &self,
        agent: impl AsRef<str>,
        bytes: u64,
        options: PartitionOptions,
    ) -> Result<PartitionInfo, Error> {
        let agent = agent.as_ref();
        let partition = self
            .partition(format!("partition:{agent}"))
            .quota(bytes)
            .options(options)
            .dedicated_to(agent);
        let mut tries = ALLOCATIONS;
        loop {
            tries -= 1;
            let told = match partition.create().await {
                Ok(_) => None,
                Err(error) if may_be_there(&error) => Some(error),
                Err(error) => return Err(error),
            };
            let missing = match partition.info().await {
                Ok(info) if info.agent.as_deref() == Some(agent) => return Ok(info),
                Ok(info) => return Err(of_another(&info, agent)),
                Err(error) if error.code() == Some(Code::NotFound) => error,
                Err(error) => return Err(error),
            };
            match told {
                // Another partition has the prefix.
                Some(error) if error.code() == Some(Code::Exists) => return Err(error),
                // The request was lost, or somebody has dropped it meanwhile.
                told if tries == 0 => return Err(told.unwrap_or(missing)),
                _ => {}
            }
        }
    }
}

/// How often a partition is made that is not there when it is looked at.
const ALLOCATIONS: u32 = 3;

/// Whether there may be such a partition, now that making it has failed so.
fn may_be_there(error: &Error) -> bool {
    match error {
        Error::Refused(refusal) => refusal.code == Code::Exists,
        Error::Transport { applied, .. } => *applied == Applied::Unknown,
        _ => false,
    }
}

fn of_another(info: &PartitionInfo, agent: &str) -> Error {
    let whose = match &info.agent {
        Some(other) => format!("is dedicated to {other}"),
        None => format!("is a {} partition", info.partition_type.word()),
    };
    let text = format!("{} {whose}, not dedicated to {agent}", info.text());
    Error::Refused(Refusal::new(Code::Exists, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_sent_and_nothing_else() {
        let nothing = PartitionOptions::new();
        assert_eq!(nothing.terms(None), wire::Terms::default());
        let all = PartitionOptions::new()
            .partition_type(PartitionType::Persistent)
            .prefix("a:")
            .prefix("b:")
            .ttl(Duration::from_secs(2))
            .on_full(OnFull::Evict)
            .on_conflict(Strategy::Function("f".into()))
            .history(3)
            .max_age(Duration::from_micros(4))
            .max_value(5);
        let terms = wire::Terms {
            bytes: Some(1),
            class: Some(wire::Class::Persistent),
            agent: None,
            prefixes: Some(vec![b"a:", b"b:"]),
            ttl_ms: Some(2000),
            on_full: Some(wire::OnFull::Evict),
            on_conflict: Some(wire::Strategy::Function(b"f")),
            history: Some(3),
            max_age_ms: Some(1),
            max_value: Some(5),
        };
        assert_eq!(all.terms(Some(1)), terms);
        let zero = PartitionOptions::new().ttl(Duration::ZERO);
        assert_eq!(zero.terms(None).ttl_ms, Some(0));
        let none = PartitionOptions::new().prefix("a:").no_prefix();
        assert_eq!(none.terms(None).prefixes, Some(vec![]));
    }

    #[test]
    fn every_type_has_the_words_of_the_command() {
        for (ours, class) in PartitionType::ALL {
            assert_eq!(ours.word(), class.name());
            assert_eq!((PartitionType::of(class), ours.wire()), (ours, class));
        }
        for (ours, theirs) in [
            (OnFull::Reject, wire::OnFull::Reject),
            (OnFull::Evict, wire::OnFull::Evict),
        ] {
            assert_eq!(ours.word(), theirs.name());
        }
    }

    #[test]
    fn strategies_are_read_back() {
        for (text, wanted) in [
            ("reject", Strategy::Reject),
            ("lww", Strategy::Lww),
            ("fww", Strategy::Fww),
            ("merge", Strategy::Merge),
            ("function f g", Strategy::Function("f g".into())),
        ] {
            assert_eq!(strategy(text.as_bytes()).unwrap(), wanted);
        }
        assert!(strategy(b"chance").is_err());
    }
}
