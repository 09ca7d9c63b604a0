//! One subscription to the change logs of all shards.
//!
//! A *reader* for each shard reads its log, wherever that is now, and asks again; a *scout* looks at who is who in the
//! cluster; the *collector* puts together what they say. Nobody runs ahead of the consumer by more than a few answers:
//! who is slow asks the store less often, and is the only one who notices.
//!
//! Each log is in order. Between logs order matters for a key whose slot moves: see [`order`](crate::order).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::Stream;
use maos_core::glob::Glob;
use redis::cluster_routing::Slot;
use tokio::sync::{mpsc, watch, Notify};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::order::{Order, Ranges, Turn};
use crate::topology::{Address, Node, ShardId, Topology, SERVER, SLOTS};
use crate::wire::{self, Mark, Range, Watch};
use crate::{
    Client, Code, Cursor, Error, Event, KeyEvent, KeyState, ListedKey, Version, WatchOptions,
};

/// How long a reader waits for something to happen before it hears that the node lives. What is held back because its
/// slot moved may wait as long.
const HEARTBEAT: Duration = Duration::from_millis(1_000);
/// How often the cluster is looked at, and how often at most.
const SCOUTED: Duration = Duration::from_millis(1_000);
const SCOUTED_AT_MOST: Duration = Duration::from_millis(100);
/// Between two tries to reach a node.
const AGAIN: Duration = Duration::from_millis(100);
/// Answers of readers that wait to be put together, and items that wait for the consumer.
const ANSWERS: usize = 2;
const ITEMS: usize = 64;

/// One item of a [`Subscription`].
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum WatchItem {
    /// A key as it is, from the snapshot.
    Present(KeyState),
    /// The snapshot is complete: from here on come events.
    SnapshotEnd,
    /// Something happened.
    Event(KeyEvent),
    /// Something happened that could not be told.
    Gap(Gap),
}

/// What a subscription has missed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Gap {
    /// The shard of which it has: its name in a [`Checkpoint`].
    pub shard: String,
    /// Why.
    pub cause: GapCause,
    /// All that happened there up to this version was told, and is kept; [`Version::NONE`]: that is not known.
    pub since: Version,
    /// The keys that have changed since and those that were deleted with a tombstone come as events right after this,
    /// as they are now. What never comes are the versions in between, and keys that went without a tombstone (expired,
    /// evicted, removed by DEL). If this is false nothing comes: read the keys again.
    pub caught_up: bool,
}

/// Why a subscription has missed something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GapCause {
    /// The log had let it go: the subscriber was away, or slow, for too long.
    Compacted,
    /// A node failed, and what it had not passed on was lost: some of what was told before is so too.
    Diverged,
    /// The shard is not there any more, or its log could not be read to its end.
    Unreachable,
}

/// How far a subscription has come on each shard, and which slots were the shard's then: whoever [resumes](Client::watch_from)
/// there misses nothing, and hears of keys that have moved meanwhile in order. To be kept as text.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Checkpoint(BTreeMap<String, Reached>);

/// How far it has come on one shard.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Reached {
    cursor: Cursor,
    slots: Ranges,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (shard, reached)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{shard}={}", reached.cursor)?;
            for (n, (first, last)) in reached.slots.iter().enumerate() {
                let sign = if n == 0 { '@' } else { '+' };
                write!(f, "{sign}{first}")?;
                if first < last {
                    write!(f, "-{last}")?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Checkpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Checkpoint, Error> {
        let bad = || {
            let text = "it is a list like shard=105-99@0-8191,other=104-98@8192-16383";
            Error::config("checkpoint", text)
        };
        let shard = |text: &str| {
            let (name, rest) = text.split_once('=').ok_or_else(bad)?;
            let (cursor, slots) = rest.split_once('@').unwrap_or((rest, ""));
            let range = |text: &str| {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last && last < SLOTS).then_some((first, last))
            };
            let slots = slots.split('+').filter(|range| !range.is_empty());
            let reached = Reached {
                cursor: cursor.parse()?,
                slots: slots.map(range).collect::<Option<_>>().ok_or_else(bad)?,
            };
            match name.is_empty() {
                true => Err(bad()),
                false => Ok((name.to_owned(), reached)),
            }
        };
        let shards = text.split(',').filter(|shard| !shard.is_empty());
        Ok(Checkpoint(shards.map(shard).collect::<Result<_, _>>()?))
    }
}

/// What happens to keys, all over the store: a [`Stream`] of [`WatchItem`]s, as [`Client::watch`] begins it.
///
/// It ends with an error that repeating does not help against (`NOPERM`, no log), and with nothing else. To drop it ends it.
#[derive(Debug)]
pub struct Subscription {
    items: mpsc::Receiver<Told>,
    checkpoint: Checkpoint,
    collector: JoinHandle<()>,
}

/// What the consumer gets, and how far that takes it.
#[derive(Debug)]
struct Told {
    item: Option<Result<WatchItem, Error>>,
    seen: Option<(Arc<str>, Mark)>,
    /// The slots of all shards, where they are others now.
    slots: Option<BTreeMap<Arc<str>, Ranges>>,
}

impl Subscription {
    /// The next item; `None` after an error.
    pub async fn next(&mut self) -> Option<Result<WatchItem, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// How far it has come with the items that were taken. What happened after it comes again when it is
    /// [resumed](Client::watch_from): so it may be kept whenever all items up to here are done with.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl Stream for Subscription {
    type Item = Result<WatchItem, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(told) = std::task::ready!(self.items.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            if let Some((shard, mark)) = told.seen {
                let shards = &mut self.checkpoint.0;
                match shards.get_mut(&*shard) {
                    Some(reached) => reached.cursor = Cursor(mark),
                    None => {
                        let reached = Reached {
                            cursor: Cursor(mark),
                            slots: vec![],
                        };
                        shards.insert(shard.to_string(), reached);
                    }
                }
            }
            if let Some(mut slots) = told.slots {
                for (shard, reached) in &mut self.checkpoint.0 {
                    reached.slots = slots.remove(&**shard).unwrap_or_default();
                }
            }
            if let Some(item) = told.item {
                return Poll::Ready(Some(item));
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

impl Client {
    /// What happens from now on to the keys that fit one of these patterns (`*`, `?`, `[a-z]`, `\`), on all masters: in order for
    /// each key, once, and without a gap that is not told.
    ///
    /// All that happens after this has returned is told. It follows masters through failovers, slots that move and
    /// nodes that come; a node that is down is waited for, and the others go on. In a cluster a key that moves with
    /// its slot is no event. Of the options [`since`](WatchOptions::since) and [`wait`](WatchOptions::wait) mean
    /// nothing here, and [`count`](WatchOptions::count) is how many events are asked for at once.
    ///
    /// ```no_run
    /// # async fn example(client: maos_client::Client) -> Result<(), maos_client::Error> {
    /// use maos_client::{WatchItem, WatchOptions};
    ///
    /// let mut changes = client.watch(&["app:*"], &WatchOptions::new().values()).await?;
    /// while let Some(item) = changes.next().await {
    ///     match item? {
    ///         WatchItem::Event(event) => println!("{:?} {:?}", event.event, event.key),
    ///         WatchItem::Gap(gap) => println!("missed something: {gap:?}"),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A pattern that is none; a master that does not answer within the [deadline](crate::Config::deadline); and as
    /// [`call`](Client::call).
    pub async fn watch(
        &self,
        patterns: &[impl AsRef<[u8]>],
        options: &WatchOptions,
    ) -> Result<Subscription, Error> {
        self.subscribe(patterns, options, None, false).await
    }

    /// The same, going on where another subscription had come to.
    ///
    /// # Errors
    /// As [`watch`](Client::watch).
    pub async fn watch_from(
        &self,
        patterns: &[impl AsRef<[u8]>],
        options: &WatchOptions,
        checkpoint: &Checkpoint,
    ) -> Result<Subscription, Error> {
        self.subscribe(patterns, options, Some(checkpoint), false)
            .await
    }

    /// The keys that begin with `prefix` as they are, then [`WatchItem::SnapshotEnd`], then what happens to them, with nothing
    /// missing in between. Keys of the snapshot come in no order.
    ///
    /// # Errors
    /// As [`watch`](Client::watch).
    pub async fn watch_from_snapshot(
        &self,
        prefix: impl AsRef<[u8]>,
        options: &WatchOptions,
    ) -> Result<Subscription, Error> {
        let mut pattern = Vec::new();
        for byte in prefix.as_ref() {
            if b"*?[]\\".contains(byte) {
                pattern.push(b'\\');
            }
            pattern.push(*byte);
        }
        pattern.push(b'*');
        self.subscribe(&[pattern], options, None, true).await
    }

    async fn subscribe(
        &self,
        patterns: &[impl AsRef<[u8]>],
        options: &WatchOptions,
        checkpoint: Option<&Checkpoint>,
        snapshot: bool,
    ) -> Result<Subscription, Error> {
        let globs = patterns
            .iter()
            .map(|p| Glob::new(p.as_ref()).map(Glob::into_owned));
        let want = Arc::new(Want::new(
            globs.collect::<Result<_, _>>().map_err(Error::Refused)?,
            options,
            snapshot,
        ));
        let (to, answers) = mpsc::channel(ANSWERS);
        let (out, items) = mpsc::channel(ITEMS);
        let mut collector = Collector {
            client: self.clone(),
            want,
            topology: Topology::default(),
            shards: vec![],
            tasks: JoinSet::new(),
            to,
            out,
            phase: watch::Sender::new(Phase::Starts),
            looked: watch::Sender::new(0),
            trouble: Arc::default(),
            order: Order::default(),
            starting: HashSet::new(),
            listing: HashSet::new(),
        };
        let missing = collector.begin(checkpoint).await?;
        let answers = collector.wait_ready(answers).await?;
        let checkpoint = collector.checkpoint();
        let collector = tokio::spawn(collector.run(answers, missing));
        Ok(Subscription {
            items,
            checkpoint,
            collector,
        })
    }
}

/// What is asked for.
#[derive(Debug)]
struct Want {
    globs: Vec<Glob<'static>>,
    /// What the keys begin with, none the beginning of another.
    prefixes: Vec<Vec<u8>>,
    types: Option<u16>,
    values: bool,
    not_by: Option<String>,
    count: Option<u64>,
    snapshot: bool,
}

impl Want {
    fn new(globs: Vec<Glob<'static>>, options: &WatchOptions, snapshot: bool) -> Want {
        let mut prefixes: Vec<Vec<u8>> = globs.iter().map(|g| g.literal().to_vec()).collect();
        prefixes.sort();
        prefixes.dedup_by(|later, before| later.starts_with(before));
        Want {
            globs,
            prefixes,
            types: options.types,
            values: options.values,
            not_by: options.not_by.clone(),
            count: options.count,
            snapshot,
        }
    }

    fn watch(&self, since: Option<Mark>) -> Watch<'static> {
        let mut watch = Watch::new(self.globs.clone());
        watch.since = since;
        watch.count = self.count;
        watch.types = self.types;
        watch.values = self.values;
        watch.not_by = self.not_by.clone().map(|agent| agent.into_bytes().into());
        watch
    }

    fn fits(&self, key: &[u8]) -> bool {
        self.globs.iter().any(|glob| glob.fits(key))
    }

    /// What is told of a key that has changed, nobody knows how often.
    fn changed(&self, state: KeyState) -> Option<KeyEvent> {
        let event = match state.value {
            Some(_) => Event::Updated,
            None => Event::Deleted,
        };
        let makes_values = [
            Event::Created,
            Event::Updated,
            Event::RolledBack,
            Event::Resolved,
        ]
        .iter()
        .fold(0, |set, event| set | event.bit());
        let asked_for = match event {
            Event::Deleted => event.bit(),
            _ => makes_values,
        };
        let wanted = self.types.is_none_or(|set| set & asked_for != 0)
            && (self.not_by.is_none() || self.not_by != state.agent)
            && self.fits(&state.key);
        wanted.then(|| KeyEvent {
            event,
            key: Some(state.key),
            version: state.version,
            previous: None,
            author: Some(state.author),
            agent: state.agent,
            value: state.value.filter(|_| self.values),
            is_gone: false,
        })
    }
}

/// What all readers wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    /// Some do not know yet where they begin.
    Starts,
    /// Some list keys.
    Lists,
    /// The snapshot is told.
    Lives,
}

/// What a reader, or the scout, says.
#[derive(Debug)]
enum Answer {
    /// It knows where it begins.
    Ready(ShardId, Mark),
    Present(Vec<KeyState>),
    Listed(ShardId),
    Events(ShardId, Vec<KeyEvent>, Mark),
    Gap(Gap),
    /// To the question of this number: the log is at least as long as this.
    End(ShardId, u64, Version),
    Nodes(Vec<Node>),
    Failed(Error),
}

/// Nobody is there any more, or it cannot go on.
struct Stop(Option<Error>);

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop(Some(error))
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug)]
enum Start {
    Now,
    /// As far back as the log reaches.
    Floor,
    From(Mark),
}

/// What is asked of a node. Not generic over the request: a future that is has no end of lifetimes.
type Call<'q, R> = dyn for<'c> Fn(&'c Client) -> BoxFuture<'c, Result<R, Error>> + Send + Sync + 'q;

/// Asks a shard, wherever it is now.
struct Asker {
    client: Client,
    node: watch::Receiver<Option<Address>>,
    conn: Option<Client>,
    trouble: Arc<Notify>,
}

impl Asker {
    /// # Errors
    /// What repeating does not help against.
    async fn ask<R: Send>(&mut self, call: &Call<'_, R>) -> Result<R, Stop> {
        loop {
            let conn = match self.conn.clone() {
                Some(conn) => conn,
                None => {
                    let address = self.node.borrow_and_update().clone();
                    let conn = self.client.of_node(address.as_ref(), HEARTBEAT)?;
                    self.conn.insert(conn).clone()
                }
            };
            let answer = tokio::select! {
                answer = call(&conn) => answer,
                moved = self.node.changed() => {
                    self.conn = None;
                    moved.map_err(|_| Stop(None))?;
                    continue;
                }
            };
            match answer {
                Ok(reply) => return Ok(reply),
                Err(error) if !passes(&error) => return Err(Stop(Some(error))),
                Err(error) => {
                    tracing::debug!(%error, "a shard does not answer");
                    // A watch that is left alone would keep those waiting that come after it.
                    self.conn = None;
                    self.trouble.notify_one();
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn watch(&mut self, watch: Watch<'static>) -> Result<wire::WatchReply<'static>, Stop> {
        self.ask(&move |node: &Client| node.call(&watch)).await
    }

    async fn range(&mut self, range: Range<'static>) -> Result<wire::RangeReply<'static>, Stop> {
        self.ask(&move |node: &Client| node.call(&range)).await
    }

    /// Where the log ends, by the word of the master: what a replica has heard of it may be less.
    async fn end(&mut self, want: &Want) -> Result<Mark, Stop> {
        let watch = want.watch(None);
        let of_a_cluster = self.client.is_of_a_cluster();
        self.ask(&move |node: &Client| {
            let (node, watch) = (node.clone(), watch.clone());
            Box::pin(async move {
                // Asked before: one that becomes a replica after this keeps what it has.
                if of_a_cluster
                    && !node
                        .cluster_nodes()
                        .await?
                        .iter()
                        .any(Node::is_master_itself)
                {
                    return Err(Error::Protocol("it is no master any more".to_owned()));
                }
                Ok(node.call(&watch).await?.cursor)
            }) as BoxFuture<'_, _>
        })
        .await
    }
}

/// Whether to ask again may help.
fn passes(error: &Error) -> bool {
    match error {
        Error::Transport { .. } | Error::Protocol(_) => true,
        Error::Refused(refusal) => refusal.code == Code::Busy,
        Error::Server { word, .. } => matches!(
            &**word,
            "LOADING"
                | "TRYAGAIN"
                | "CLUSTERDOWN"
                | "MASTERDOWN"
                | "BUSY"
                | "UNBLOCKED"
                | "READONLY"
        ),
        _ => false,
    }
}

/// Reads the log of one shard.
struct Reader {
    shard: ShardId,
    name: Arc<str>,
    want: Arc<Want>,
    asker: Asker,
    to: mpsc::Sender<Answer>,
    phase: watch::Receiver<Phase>,
    /// How often the cluster has been looked at.
    looked: watch::Receiver<u64>,
    /// What has been listed, with its versions: the log up to `until` tells no more of these.
    listed: HashMap<Vec<u8>, Version>,
    until: Version,
}

impl Reader {
    async fn run(mut self, start: Start) {
        if let Err(Stop(Some(error))) = self.follow(start).await {
            // Whoever is not there any more does not want to know.
            let _ = self.to.send(Answer::Failed(error)).await;
        }
    }

    async fn say(&self, answer: Answer) -> Result<(), Stop> {
        self.to.send(answer).await.map_err(|_| Stop(None))
    }

    async fn wait_for(&mut self, phase: Phase) -> Result<(), Stop> {
        let reached = self.phase.wait_for(|now| *now >= phase).await;
        reached.map(drop).map_err(|_| Stop(None))
    }

    async fn follow(&mut self, start: Start) -> Result<(), Stop> {
        let mut cursor = match start {
            Start::From(mark) => mark,
            Start::Now => self.asker.end(&self.want).await?,
            Start::Floor => self.floor().await?,
        };
        self.say(Answer::Ready(self.shard, cursor)).await?;
        self.wait_for(Phase::Lists).await?;
        if self.want.snapshot && matches!(start, Start::Now) {
            self.snapshot().await?;
            self.say(Answer::Listed(self.shard)).await?;
        }
        self.wait_for(Phase::Lives).await?;
        loop {
            let mut watch = self.want.watch(Some(cursor));
            watch.block_ms = Some(u64::try_from(HEARTBEAT.as_millis()).unwrap_or(1));
            match self.asker.watch(watch).await {
                Ok(reply) => {
                    cursor = reply.cursor;
                    let events = reply.events.into_iter().map(KeyEvent::of);
                    let events = events.filter(|event| !self.is_told(event)).collect();
                    if cursor.at >= self.until {
                        self.listed = HashMap::new();
                    }
                    self.say(Answer::Events(self.shard, events, cursor)).await?;
                }
                Err(Stop(Some(Error::Refused(refusal)))) => {
                    let Some(gap) = wire::Gap::of(&refusal) else {
                        return Err(Error::Refused(refusal).into());
                    };
                    if !self.has_moved().await? {
                        cursor = self.catch_up(cursor, gap).await?;
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    /// The log from where it begins.
    async fn floor(&mut self) -> Result<Mark, Stop> {
        let first = Mark {
            at: maos_core::Stamp(1),
            reign: Version::NONE,
        };
        match self.asker.watch(self.want.watch(Some(first))).await {
            Ok(_) => Ok(first),
            Err(Stop(Some(Error::Refused(refusal)))) => match wire::Gap::of(&refusal) {
                Some(wire::Gap::Compacted(from) | wire::Gap::Diverged { from, .. }) => Ok(from),
                None => Err(Error::Refused(refusal).into()),
            },
            Err(stop) => Err(stop),
        }
    }

    /// Whether the shard is elsewhere than where its log was said to have gaps: a node that has come back as a replica,
    /// and begins its log anew, is not to be taken at its word.
    async fn has_moved(&mut self) -> Result<bool, Stop> {
        if self.asker.node.borrow().is_none() {
            return Ok(false);
        }
        // One look may be under way already.
        let enough = *self.looked.borrow() + 2;
        self.asker.trouble.notify_one();
        let mut looked = self.looked.clone();
        loop {
            tokio::select! {
                seen = looked.wait_for(|looked| *looked >= enough) => {
                    seen.map_err(|_| Stop(None))?;
                    let moved = self.asker.node.has_changed().map_err(|_| Stop(None))?;
                    if moved {
                        self.asker.conn = None;
                    }
                    return Ok(moved);
                }
                () = sleep(SCOUTED_AT_MOST) => self.asker.trouble.notify_one(),
            }
        }
    }

    fn is_told(&self, event: &KeyEvent) -> bool {
        let told = event.key.as_ref().and_then(|key| self.listed.get(key));
        told.is_some_and(|version| event.version <= *version)
    }

    /// One page of a listing, and the key to go on after; `None` if this user may read none, or there is no index.
    async fn page(
        &mut self,
        range: &Range<'static>,
    ) -> Result<Option<(Vec<KeyState>, Option<Vec<u8>>)>, Stop> {
        match self.asker.range(range.clone()).await {
            Ok(reply) => {
                let keys = reply
                    .keys
                    .into_iter()
                    .filter_map(|key| ListedKey::of(key).state);
                Ok(Some((
                    keys.collect(),
                    reply.next.map(|next| next.into_owned()),
                )))
            }
            Err(Stop(Some(Error::Refused(refusal)))) if refusal.code == Code::NoPerm => {
                Ok(Some((vec![], None)))
            }
            Err(stop) => Err(stop),
        }
    }

    async fn snapshot(&mut self) -> Result<(), Stop> {
        let want = self.want.clone();
        for prefix in &want.prefixes {
            let mut range = Range::new(prefix.clone());
            range.full = true;
            while let Some((mut keys, next)) = self.page(&range).await? {
                keys.retain(|state| want.fits(&state.key));
                for state in &keys {
                    self.listed.insert(state.key.clone(), state.version);
                }
                self.say(Answer::Present(keys)).await?;
                match next {
                    Some(next) => range.after = Some(next.into()),
                    None => break,
                }
            }
        }
        self.until = self.asker.end(&want).await?.at;
        Ok(())
    }

    /// Tells of what was missed what can still be known. Gives the cursor from which the log goes on.
    async fn catch_up(&mut self, cursor: Mark, gap: wire::Gap) -> Result<Mark, Stop> {
        let (cause, since, from) = match gap {
            wire::Gap::Compacted(from) => (GapCause::Compacted, cursor.at, from),
            wire::Gap::Diverged { kept, from } => {
                let kept = kept.map_or(Version::NONE, |kept| kept.at);
                (GapCause::Diverged, kept, from)
            }
        };
        let told = |caught_up| {
            Answer::Gap(Gap {
                shard: self.name.to_string(),
                cause,
                since,
                caught_up,
            })
        };
        let mut said = Some((told(true), told(false)));
        let want = self.want.clone();
        for prefix in &want.prefixes {
            let mut range = Range::new(prefix.clone());
            (range.full, range.since) = (
                true,
                Some(Mark {
                    at: since,
                    reign: Version::NONE,
                }),
            );
            loop {
                let page = match self.page(&range).await {
                    Ok(page) => page,
                    // There is no index.
                    Err(Stop(Some(Error::Refused(refusal)))) if refusal.code == Code::Err => None,
                    Err(stop) => return Err(stop),
                };
                let Some((keys, next)) = page else {
                    let not = said.take().map_or_else(
                        || {
                            Answer::Gap(Gap {
                                shard: self.name.to_string(),
                                cause,
                                since,
                                caught_up: false,
                            })
                        },
                        |(_, not)| not,
                    );
                    self.say(not).await?;
                    return Ok(from);
                };
                if let Some((yes, _)) = said.take() {
                    self.say(yes).await?;
                }
                for state in &keys {
                    self.listed.insert(state.key.clone(), state.version);
                }
                let events = keys.into_iter().filter_map(|state| want.changed(state));
                // Whoever resumes in the midst of it begins it again.
                self.say(Answer::Events(self.shard, events.collect(), cursor))
                    .await?;
                match next {
                    Some(next) => range.after = Some(next.into()),
                    None => break,
                }
            }
        }
        self.until = self.asker.end(&want).await?.at;
        Ok(from)
    }
}

/// What is kept of a shard.
struct Followed {
    name: Arc<str>,
    node: watch::Sender<Option<Address>>,
}

/// Puts together what readers say.
struct Collector {
    client: Client,
    want: Arc<Want>,
    topology: Topology,
    shards: Vec<Followed>,
    tasks: JoinSet<()>,
    to: mpsc::Sender<Answer>,
    out: mpsc::Sender<Told>,
    phase: watch::Sender<Phase>,
    looked: watch::Sender<u64>,
    trouble: Arc<Notify>,
    order: Order,
    /// Shards that do not know yet where they begin, and those that list their keys.
    starting: HashSet<ShardId>,
    listing: HashSet<ShardId>,
}

/// The consumer has gone.
struct Gone;

impl Collector {
    /// Finds the shards and begins to read them. Gives those of a checkpoint that are not there any more.
    async fn begin(&mut self, checkpoint: Option<&Checkpoint>) -> Result<Vec<Gap>, Error> {
        let mut missing = vec![];
        let mut starts = HashMap::new();
        if self.client.is_of_a_cluster() {
            let nodes = self.client.cluster_nodes().await?;
            self.topology.learn(&nodes);
        }
        let mut owned = HashMap::new();
        for (name, reached) in checkpoint.iter().flat_map(|c| &c.0) {
            let shard = match self.client.is_of_a_cluster() {
                true => self.topology.shard_of(name),
                false => (name == SERVER).then_some(0),
            };
            match shard {
                Some(shard) => drop(starts.insert(shard, reached.cursor.0)),
                None => missing.push(Gap {
                    shard: name.clone(),
                    cause: GapCause::Unreachable,
                    since: reached.cursor.0.at,
                    caught_up: false,
                }),
            }
            for (first, last) in &reached.slots {
                owned.extend(
                    (*first..=*last)
                        .filter_map(Slot::new)
                        .map(|slot| (slot, shard)),
                );
            }
        }
        let start = |shard: ShardId| match (starts.get(&shard), checkpoint) {
            (Some(mark), _) => Start::From(*mark),
            // It came meanwhile.
            (None, Some(_)) => Start::Floor,
            (None, None) => Start::Now,
        };
        if self.client.is_of_a_cluster() {
            for shard in 0..self.topology.shards.len() {
                self.follow(start(shard));
            }
            self.compare(&owned);
            let scout = scout(self.client.clone(), self.to.clone(), self.trouble.clone());
            self.tasks.spawn(scout);
        } else {
            self.read(SERVER.into(), None, start(0));
        }
        Ok(missing)
    }

    /// Compares the slots' shards that a checkpoint knew with those of now. One that says nothing of slots was made by
    /// hand.
    fn compare(&mut self, owned: &HashMap<Slot, Option<ShardId>>) {
        let slots = (0..SLOTS).filter_map(Slot::new);
        for slot in slots.filter(|_| !owned.is_empty()) {
            let was = owned.get(&slot).copied().flatten();
            if let Some(now) = self.topology.owner(slot).filter(|now| Some(*now) != was) {
                self.order.may_have_moved(slot, was, now);
            }
        }
    }

    /// Begins to read the next shard of the topology.
    fn follow(&mut self, start: Start) {
        let shard = &self.topology.shards[self.shards.len()];
        let (name, address) = (shard.name.clone(), shard.address.clone());
        self.read(name, Some(address), start);
    }

    fn read(&mut self, name: Arc<str>, address: Option<Address>, start: Start) {
        let shard = self.shards.len();
        let node = watch::Sender::new(address);
        let reader = Reader {
            shard,
            name: name.clone(),
            want: self.want.clone(),
            asker: self.asker(&node),
            to: self.to.clone(),
            phase: self.phase.subscribe(),
            looked: self.looked.subscribe(),
            listed: HashMap::new(),
            until: Version::NONE,
        };
        self.tasks.spawn(reader.run(start));
        self.starting.insert(shard);
        if self.want.snapshot && matches!(start, Start::Now) {
            self.listing.insert(shard);
        }
        self.shards.push(Followed { name, node });
        self.order.follow();
    }

    fn asker(&self, node: &watch::Sender<Option<Address>>) -> Asker {
        Asker {
            client: self.client.clone(),
            node: node.subscribe(),
            conn: None,
            trouble: self.trouble.clone(),
        }
    }

    /// Waits until all readers know where they begin.
    async fn wait_ready(
        &mut self,
        mut answers: mpsc::Receiver<Answer>,
    ) -> Result<mpsc::Receiver<Answer>, Error> {
        let deadline = self.client.deadline();
        let all = async {
            while !self.starting.is_empty() {
                match answers.recv().await {
                    Some(Answer::Ready(shard, at)) => self.ready(shard, at),
                    Some(Answer::Nodes(nodes)) => self.learn(&nodes),
                    Some(Answer::Failed(error)) => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        };
        match timeout(deadline, all).await {
            Ok(ready) => ready?,
            Err(_) => {
                let names = self.starting.iter().map(|id| &*self.shards[*id].name);
                let names: Vec<&str> = names.collect();
                return Err(Error::Transport {
                    text: format!("no answer in time from {}", names.join(", ")),
                    applied: crate::Applied::No,
                    attempts: 1,
                    source: None,
                });
            }
        }
        let first = match self.want.snapshot {
            true => Phase::Lists,
            false => Phase::Lives,
        };
        self.phase.send_replace(first);
        Ok(answers)
    }

    fn ready(&mut self, shard: ShardId, at: Mark) {
        self.order.read(shard, at);
        self.starting.remove(&shard);
    }

    fn checkpoint(&self) -> Checkpoint {
        let mut slots = self.slots();
        let reached = |(shard, followed): (ShardId, &Followed)| {
            let reached = Reached {
                cursor: Cursor(self.order.read_to(shard)),
                slots: slots.remove(&followed.name).unwrap_or_default(),
            };
            (followed.name.to_string(), reached)
        };
        Checkpoint(self.shards.iter().enumerate().map(reached).collect())
    }

    /// The slots of each shard, as the order of what was told has them.
    fn slots(&self) -> BTreeMap<Arc<str>, Ranges> {
        if !self.client.is_of_a_cluster() {
            return BTreeMap::new();
        }
        let slots = self.order.slots(|slot| self.topology.owner(slot));
        let named = |(shard, ranges): (ShardId, Ranges)| (self.shards[shard].name.clone(), ranges);
        slots.into_iter().map(named).collect()
    }

    async fn run(mut self, mut answers: mpsc::Receiver<Answer>, missing: Vec<Gap>) {
        for gap in missing {
            if self.tell(WatchItem::Gap(gap)).await.is_err() {
                return;
            }
        }
        while let Some(answer) = answers.recv().await {
            if self.take(answer).await.is_err() {
                return;
            }
        }
    }

    async fn take(&mut self, answer: Answer) -> Result<(), Gone> {
        match answer {
            Answer::Ready(shard, at) => {
                self.ready(shard, at);
                self.seen(shard).await?;
            }
            Answer::Present(keys) => {
                for state in keys {
                    self.tell(WatchItem::Present(state)).await?;
                }
            }
            Answer::Listed(shard) => {
                self.listing.remove(&shard);
                if self.listing.is_empty() {
                    self.tell(WatchItem::SnapshotEnd).await?;
                    self.phase.send_replace(Phase::Lives);
                }
            }
            Answer::Events(shard, events, cursor) => {
                for event in events {
                    self.route(shard, event).await?;
                }
                self.order.read(shard, cursor);
                self.release().await?;
                self.seen(shard).await?;
            }
            Answer::Gap(gap) => self.tell(WatchItem::Gap(gap)).await?,
            Answer::End(shard, number, at) => {
                self.order.ends(shard, number, at);
                self.release().await?;
            }
            Answer::Nodes(nodes) => self.learn(&nodes),
            Answer::Failed(error) => {
                let item = Some(Err(error));
                let _ = self.say(item, None, None).await;
                return Err(Gone);
            }
        }
        self.ask_ends();
        if self.order.has_changed() {
            let slots = Some(self.slots());
            self.say(None, None, slots).await?;
        }
        Ok(())
    }

    /// What a node says of the cluster.
    fn learn(&mut self, nodes: &[Node]) {
        let moved = self.topology.learn(nodes);
        while self.shards.len() < self.topology.shards.len() {
            self.follow(Start::Floor);
        }
        for (shard, followed) in self.topology.shards.iter().zip(&self.shards) {
            let now = Some(&shard.address);
            followed.node.send_if_modified(|address| {
                let moved = address.as_ref() != now;
                if moved {
                    tracing::debug!(shard = &*shard.name, ?now, "a shard is elsewhere now");
                    *address = now.cloned();
                }
                moved
            });
        }
        for moved in moved {
            if let Some(to) = self.topology.owner(moved.slot) {
                self.order.moved(moved.slot, moved.from, to);
            }
        }
        self.looked.send_modify(|looked| *looked += 1);
    }

    /// Has somebody look where the logs end now of which that is asked.
    fn ask_ends(&mut self) {
        for (shard, number) in self.order.take_questions() {
            let (mut asker, want) = (self.asker(&self.shards[shard].node), self.want.clone());
            let to = self.to.clone();
            self.tasks.spawn(async move {
                let said = match asker.end(&want).await {
                    Ok(end) => Answer::End(shard, number, end.at),
                    Err(Stop(Some(error))) => Answer::Failed(error),
                    Err(Stop(None)) => return,
                };
                let _ = to.send(said).await;
            });
        }
        // Those that are done with are not kept.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Tells an event, or lets it wait.
    async fn route(&mut self, shard: ShardId, event: KeyEvent) -> Result<(), Gone> {
        if !self.client.is_of_a_cluster() {
            return self.tell(WatchItem::Event(event)).await;
        }
        let slot = event.key.as_ref().map(Slot::for_key);
        let owner = slot.and_then(|slot| self.topology.owner(slot));
        match self.order.take(shard, event, owner) {
            Turn::Now(event) => self.tell(WatchItem::Event(event)).await,
            Turn::Later => Ok(()),
            // What they have does not come, and memory is not without bound.
            Turn::Full(shards) => {
                for shard in &shards {
                    let gap = Gap {
                        shard: self.shards[*shard].name.to_string(),
                        cause: GapCause::Unreachable,
                        since: self.order.read_to(*shard).at,
                        caught_up: false,
                    };
                    self.tell(WatchItem::Gap(gap)).await?;
                }
                self.order.give_up(&shards);
                self.release().await
            }
        }
    }

    /// Tells what has waited long enough.
    async fn release(&mut self) -> Result<(), Gone> {
        let (events, shards) = self.order.release();
        for event in events {
            self.tell(WatchItem::Event(event)).await?;
        }
        for shard in shards {
            self.seen(shard).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, item: WatchItem) -> Result<(), Gone> {
        self.say(Some(Ok(item)), None, None).await
    }

    /// All that a shard has said up to now was told, but for what is held back.
    async fn seen(&mut self, shard: ShardId) -> Result<(), Gone> {
        let seen = Some((self.shards[shard].name.clone(), self.order.seen(shard)));
        self.say(None, seen, None).await
    }

    async fn say(
        &mut self,
        item: Option<Result<WatchItem, Error>>,
        seen: Option<(Arc<str>, Mark)>,
        slots: Option<BTreeMap<Arc<str>, Ranges>>,
    ) -> Result<(), Gone> {
        let told = Told { item, seen, slots };
        self.out.send(told).await.map_err(|_| Gone)
    }
}

/// Looks at the cluster from time to time, and when somebody has trouble.
async fn scout(client: Client, to: mpsc::Sender<Answer>, trouble: Arc<Notify>) {
    loop {
        tokio::select! {
            () = sleep(SCOUTED) => {}
            () = trouble.notified() => {}
        }
        match client.cluster_nodes().await {
            Ok(nodes) => {
                if to.send(Answer::Nodes(nodes)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "nobody says who is in the cluster"),
        }
        sleep(SCOUTED_AT_MOST).await;
    }
}
