//! The decisions of the state commands.
//!
//! A decision reads and may refuse; it changes nothing. What it decides is a [`Change`], which is
//! applied without asking again. The server and the model in memory both run what is here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::change::{Change, Expiry, Kind, Write};
use crate::config::{Limits, AUTHOR_MAX, REPLY_MAX};
use crate::partition::{Directory, Place};
use crate::record::{Record, Version};
use crate::refusal::Quoted;
use crate::wire::lock::WaiterReply;
use crate::wire::state::*;
use crate::wire::update::Strategy;
use crate::wire::Request;
use crate::{json, lock, Code, Refusal, Stamp, Who};

/// What a decision may know besides the records.
#[derive(Debug)]
pub struct Env<'e> {
    /// The wall clock, in microseconds of unix time.
    pub now_us: u64,
    /// The stamp that the node's clock would give.
    pub stamp: Stamp,
    /// The largest stamp there is beyond the clock.
    pub beyond: Stamp,
    /// The writer.
    pub who: &'e Arc<Who>,
    /// The settings.
    pub limits: &'e Limits,
    /// The partitions.
    pub shares: &'e Directory,
    /// What was answered to the [question](Decision::Ask) of an earlier try: the version it was about, and
    /// what the function returned.
    pub answer: Option<(Stamp, &'e [u8])>,
}

impl Env<'_> {
    /// The wall clock, in milliseconds of unix time.
    pub fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    /// The limits of a key: the server's, or those of the partition that a write of it is charged to.
    #[inline(always)]
    pub(crate) fn limits(
        &self,
        key: &[u8],
        record: Option<&Record>,
        options: &WriteOptions<'_>,
    ) -> &Limits {
        match self.shares.is_idle() {
            true => self.limits,
            false => self.shares.limits(key, record, options.partition),
        }
    }
}

/// What a reader may know besides the records.
pub trait View {
    /// Milliseconds until the n-th key expires, -1 if it does not.
    fn ttl_ms(&self, n: usize) -> i64;
    /// The wall clock, in milliseconds of unix time.
    fn now_ms(&self) -> u64;
    /// Who waits for the lock of the n-th key, first come first.
    fn waiters(&self, n: usize) -> Vec<WaiterReply>;
    /// The name of a partition.
    fn partition(&self, place: Place) -> Option<Vec<u8>>;
}

/// What came of a write request.
#[derive(Debug)]
pub enum Decision<'a, R> {
    /// This is to be applied.
    Change(Change<'a>),
    /// Nothing changes; this is the answer.
    Answer(R),
    /// These are to be applied, one after the other, and this is the answer then: a commit whose keys do not
    /// all change alike, or one that gives a key two versions. Stamps do not fall, and no two changes with the
    /// same stamp are about the same key.
    Commit(SmallVec<[Change<'a>; 2]>, R),
    /// Somebody else is to be asked first.
    Ask(Box<Question<'a>>),
}

/// A merge that a Redis Function decides.
#[derive(PartialEq, Debug)]
pub struct Question<'a> {
    /// The function.
    pub function: Cow<'a, [u8]>,
    /// The key.
    pub key: &'a [u8],
    /// The present version.
    pub version: Stamp,
    /// What the writer began with, what is there now, what the writer made of it; JSON.
    pub values: [Vec<u8>; 3],
}

/// A command that writes.
pub trait WriteCommand<'a>: Request<'a> {
    /// Its reply; may borrow from the records.
    type Reply<'r>: crate::wire::Reply;

    /// The agent that the write declares.
    fn by(&self) -> Option<&'a [u8]>;

    /// Whether its success says something about the key besides what it wrote: it compares, it grants, it
    /// shows a token. Such a request is refused where the node may have been replaced without knowing it yet.
    fn is_conditional(&self) -> bool;

    /// Decides, given the records of its keys in their order.
    ///
    /// # Errors
    /// A refusal; nothing has changed.
    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, Self::Reply<'r>>, Refusal>;

    /// The partition that it names.
    fn partition(&self) -> Option<&'a [u8]> {
        None
    }

    /// How it deals with a write that came before, where that is for its writer to say.
    fn strategy<'e>(&self, _: Option<&Record>, _: &Env<'e>) -> Option<Strategy<'e>>
    where
        'a: 'e,
    {
        None
    }

    /// The reply once a [change](Decision::Change) is applied.
    fn committed(&self, change: &Change<'_>) -> Self::Reply<'static>;
}

/// A command that reads.
pub trait ReadCommand<'a>: Request<'a> {
    /// Its reply; may borrow from the records.
    type Reply<'r>: crate::wire::Reply;

    /// Answers, given the records of its keys in their order.
    ///
    /// # Errors
    /// A refusal.
    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        view: &dyn View,
    ) -> Result<Self::Reply<'r>, Refusal>;
}

// ---------------------------------------------------------------------------------------------
// What the decisions share
// ---------------------------------------------------------------------------------------------

/// The live version of a key's record.
#[inline]
pub(crate) fn live(record: Option<&Record>) -> Option<Version<'_>> {
    record.and_then(Record::live)
}

pub(crate) fn lost<'r>(record: Option<&'r Record>) -> Lost<'r> {
    match live(record) {
        None => Lost {
            version: Stamp::NONE,
            value: None,
            author: None,
            agent: None,
        },
        Some(v) => Lost {
            version: v.stamp(),
            value: v.value(),
            author: Some(Cow::Borrowed(&v.who().author)),
            agent: v.who().agent.as_deref().map(Cow::Borrowed),
        },
    }
}

/// The version that a conditional write compares with.
#[inline]
pub(crate) fn version_of(record: Option<&Record>) -> Stamp {
    live(record).map_or(Stamp::NONE, Version::stamp)
}

#[inline]
pub(crate) fn check_value(value: &[u8], limits: &Limits) -> Result<(), Refusal> {
    match value.len() <= limits.value_max {
        true => Ok(()),
        false => Err(too_long(value.len(), limits.value_max)),
    }
}

#[cold]
fn too_long(len: usize, max: usize) -> Refusal {
    let text = format!("the value has {len} bytes, at most {max} are taken (maos.value-max-bytes)");
    Refusal::new(Code::TooBig, text)
}

/// Checks what is kept with the value. Called once it is known that a write will happen.
#[inline]
pub(crate) fn check_origin(options: &WriteOptions<'_>, who: &Who) -> Result<(), Refusal> {
    let author = who.author.len();
    if author > AUTHOR_MAX {
        let text = format!(
            "the name of the ACL user has {author} bytes, at most {AUTHOR_MAX} are kept with a version"
        );
        return Err(Refusal::new(Code::TooBig, text));
    }
    options.meta.map_or(Ok(()), json::check_meta)
}

/// The stamp of a commit over these records: above what the node's clock has seen. Where a version it
/// replaces came from too far ahead, it lies above that one, and above all that was ever made there.
#[inline]
pub(crate) fn stamp_over(records: &[Option<&Record>], env: &Env<'_>) -> Result<Stamp, Refusal> {
    let newest = records.iter().flatten().map(|r| r.newest()).max();
    let stamp = match newest {
        Some(newest) if newest >= env.stamp => Stamp(newest.max(env.beyond).0 + 1),
        _ => env.stamp,
    };
    if stamp > Stamp::MAX {
        return Err(Refusal::fixed(
            Code::Limit,
            "the current version is the largest there is (2^53 - 1); DEL the key and write it anew",
        ));
    }
    Ok(stamp)
}

/// Where a plain write leaves the expiry.
#[inline]
pub(crate) fn expiry(
    expire: Expire,
    unsaid: Expiry,
    record: Option<&Record>,
    limits: &Limits,
    env: &Env<'_>,
) -> Result<Expiry, Refusal> {
    let at = match expire {
        Expire::Unsaid => match (after_tombstone(unsaid, record), limits.key_ttl_ms) {
            // A value that begins a life, or begins it anew, gets the partition's time to live.
            (Expiry::Clear, ms) if ms > 0 => env.now_ms().checked_add(ms),
            (Expiry::Keep, ms) if ms > 0 && live(record).is_none() => env.now_ms().checked_add(ms),
            (unsaid, _) => return Ok(unsaid),
        },
        Expire::Keep => return Ok(after_tombstone(Expiry::Keep, record)),
        Expire::In(ms) => (env.now_us / 1000).checked_add(ms),
        Expire::At(ms) => Some(ms),
    };
    // The server keeps it as a signed number of milliseconds, and so does the AOF.
    at.filter(|ms| *ms <= i64::MAX as u64 / 2)
        .map(Expiry::At)
        .ok_or(Refusal::fixed(
            Code::Err,
            "invalid expire time: it lies beyond what the server can keep",
        ))
}

/// The expiry of a tombstone is the tombstone's: a value that takes its place does not inherit it.
fn after_tombstone(keep: Expiry, record: Option<&Record>) -> Expiry {
    match record {
        Some(r) if r.live().is_none() && keep == Expiry::Keep => Expiry::Clear,
        _ => keep,
    }
}

/// The change that writes `value` over the record of one key.
#[inline(always)]
pub(crate) fn write_one<'a>(
    kind: Kind,
    key: &'a [u8],
    value: Cow<'a, [u8]>,
    options: &WriteOptions<'a>,
    unsaid: Expiry,
    record: Option<&Record>,
    env: &Env<'_>,
) -> Result<Change<'a>, Refusal> {
    let limits = env.limits(key, record, options);
    check_value(&value, limits)?;
    check_origin(options, env.who)?;
    let mut writes = SmallVec::new();
    writes.push(Write {
        key,
        value,
        drops: drops(record, limits, env),
        turn: None,
        home: None,
    });
    Ok(Change {
        kind,
        stamp: stamp_over(&[record], env)?,
        who: env.who.clone(),
        meta: options.meta.map(Cow::Borrowed),
        reqid: options.reqid,
        time_ms: None,
        expiry: match kind {
            // That of a tombstone is its own.
            Kind::Delete if options.expire == Expire::Unsaid => unsaid,
            _ => expiry(options.expire, unsaid, record, limits, env)?,
        },
        fence: options.fence,
        writes,
    })
}

#[inline(always)]
pub(crate) fn drops(record: Option<&Record>, limits: &Limits, env: &Env<'_>) -> usize {
    record.map_or(0, |r| r.surplus(limits, env.now_us, true))
}

pub(crate) fn written_before(options: &WriteOptions<'_>, record: Option<&Record>) -> Option<Stamp> {
    record?.written_by_request(options.reqid?)
}

/// How a write of one key meets what is there.
pub(crate) enum Met {
    /// It was done before, by this version.
    Before(Stamp),
    /// Another write came first.
    Lost,
    /// It may be done.
    Free,
}

/// What every write of one key looks at first: its request id, its tokens, the version it goes by.
#[inline(always)]
pub(crate) fn meet(
    record: Option<&Record>,
    options: &WriteOptions<'_>,
    condition: Option<Stamp>,
    env: &Env<'_>,
) -> Result<Met, Refusal> {
    if let Some(done) = written_before(options, record) {
        return Ok(Met::Before(done));
    }
    lock::permit(&[record], options, env)?;
    Ok(match condition.is_some_and(|v| v != version_of(record)) {
        true => Met::Lost,
        false => Met::Free,
    })
}

pub(crate) fn written(if_version: Option<Stamp>, stamp: Stamp) -> WriteReply<'static> {
    match if_version {
        Some(_) => WriteReply::Applied(stamp),
        None => WriteReply::Version(stamp),
    }
}

pub(crate) fn refuse_twice<'a>(
    key: impl Fn(usize) -> &'a [u8],
    records: &[Option<&Record>],
) -> Result<(), Refusal> {
    // The same key has the same record: to compare addresses is cheaper than to hash names.
    let mut places: SmallVec<[(usize, usize); 16]> = SmallVec::new();
    let mut absent = HashSet::new();
    let mut twice: Option<usize> = None;
    for (n, record) in records.iter().enumerate() {
        match record {
            Some(r) => places.push((std::ptr::from_ref::<Record>(r).addr(), n)),
            None if absent.insert(key(n)) => {}
            None => twice = twice.or(Some(n)),
        }
    }
    places.sort_unstable();
    // Of several the first to come again: addresses have an order of their own.
    let again = places.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    match again.map(|pair| pair[1].1).chain(twice).min() {
        None => Ok(()),
        Some(n) => {
            let text = format!(
                "the key {} is named twice; a commit gives each key one version",
                Quoted(key(n))
            );
            Err(Refusal::new(Code::Err, text))
        }
    }
}

/// The change that writes each value over the record of its key, with one stamp.
fn write_many<'a>(
    pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    options: &WriteOptions<'a>,
    records: &[Option<&Record>],
    env: &Env<'_>,
) -> Result<Change<'a>, Refusal> {
    check_origin(options, env.who)?;
    let mut writes = SmallVec::with_capacity(records.len());
    let mut key_ttl_ms = 0;
    for ((key, value), record) in pairs.zip(records) {
        let limits = env.limits(key, *record, options);
        check_value(value, limits)?;
        // One commit, one expiry: that of the key that lasts longest, were each alone.
        key_ttl_ms = match writes.is_empty() {
            true => limits.key_ttl_ms,
            false if key_ttl_ms == 0 || limits.key_ttl_ms == 0 => 0,
            false => limits.key_ttl_ms.max(key_ttl_ms),
        };
        writes.push(Write {
            key,
            value: Cow::Borrowed(value),
            drops: drops(*record, limits, env),
            turn: None,
            home: None,
        });
    }
    Ok(Change {
        kind: Kind::Set,
        stamp: stamp_over(records, env)?,
        who: env.who.clone(),
        meta: options.meta.map(Cow::Borrowed),
        reqid: options.reqid,
        time_ms: None,
        expiry: match key_ttl_ms {
            0 => Expiry::Clear,
            ms => Expiry::At(env.now_ms().saturating_add(ms)),
        },
        fence: options.fence,
        writes,
    })
}

// ---------------------------------------------------------------------------------------------
// Choosing a version of the past
// ---------------------------------------------------------------------------------------------

/// The record, if it has a version and not only a lock.
fn with_past(record: Option<&Record>) -> Option<&Record> {
    record.filter(|r| !r.is_bare())
}

/// The place of the version with number `n`, or of the -n-th before the current one.
fn find_version(record: Option<&Record>, n: i64) -> Result<(&Record, usize), Refusal> {
    let no = |text: String| Refusal::new(Code::NoVersion, text);
    let r = with_past(record)
        .ok_or_else(|| no("the key has no history: never written, or purged".into()))?;
    if n < 0 {
        let back = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
        let place = (r.len() - 1).checked_sub(back);
        let place = place.ok_or_else(|| {
            no(format!(
                "{n} goes back too far: {} versions are kept, -{} is the oldest",
                r.len(),
                r.len() - 1
            ))
        });
        return place.map(|p| (r, p));
    }
    let stamp = Stamp(n.unsigned_abs());
    let place = r.find(stamp).ok_or_else(|| {
        if stamp <= r.floor() {
            no(format!(
                "version {stamp} has been trimmed away, or was never written; the oldest kept is {}",
                r.nth(0).map_or(Stamp::NONE, Version::stamp)
            ))
        } else {
            no(format!(
                "version {stamp} of this key was never written; MAOS.HISTORY lists those that are kept"
            ))
        }
    })?;
    Ok((r, place))
}

/// The first stamp after this millisecond: all of it counts.
pub(crate) fn end_of(ms: u64) -> Stamp {
    Stamp(ms.saturating_mul(1000).saturating_add(1000))
}

/// The place of the version that was the newest at the end of this millisecond; `None` if none is kept from then.
pub(crate) fn place_as_of(record: &Record, ms: u64) -> Option<usize> {
    record.partition_point(end_of(ms)).checked_sub(1)
}

fn select(record: Option<&Record>, select: Select) -> Result<Version<'_>, Refusal> {
    let (r, place) = match select {
        Select::Version(n) => find_version(record, n)?,
        Select::At(ms) => {
            let no = |text: String| Refusal::new(Code::NoVersion, text);
            let r = with_past(record)
                .ok_or_else(|| no("the key has no history: never written, or purged".into()))?;
            let place = place_as_of(r, ms).ok_or_else(|| {
                no(format!(
                    "no version of this key is kept from {ms}; the oldest is from {}",
                    r.nth(0).map_or(0, |v| v.stamp().millis())
                ))
            })?;
            (r, place)
        }
    };
    r.nth(place)
        .ok_or(Refusal::fixed(Code::NoVersion, "no such version is kept"))
}

/// The value of a version that must have one.
fn value_of(v: Version<'_>) -> Result<Cow<'_, [u8]>, Refusal> {
    v.value().ok_or_else(|| {
        let text = format!("version {} is a deletion and has no value", v.stamp());
        Refusal::new(Code::NoVersion, text)
    })
}

// ---------------------------------------------------------------------------------------------
// Writes
// ---------------------------------------------------------------------------------------------

/// A write of one key: what makes each of them different.
trait KeyWrite<'a> {
    /// The version it must write over, if it is conditional.
    fn condition(&self) -> Option<Stamp>;

    /// The change it makes, all conditions met; `None` if there is nothing to do.
    fn change(&self, record: Option<&Record>, env: &Env<'_>)
        -> Result<Option<Change<'a>>, Refusal>;
}

macro_rules! key_writes {
    ($($name:ident)*) => {
        $(impl<'a> WriteCommand<'a> for $name<'a> {
            type Reply<'r> = WriteReply<'r>;

            fn by(&self) -> Option<&'a [u8]> {
                self.options.by
            }

fn partition(&self) -> Option<&'a [u8]> {
                self.options.partition
            }

            fn is_conditional(&self) -> bool {
                self.condition().is_some() || self.options.shows_a_token()
            }

            #[inline(always)]
            fn decide<'r>(
                &self,
                records: &[Option<&'r Record>],
                env: &Env<'_>,
            ) -> Result<Decision<'a, WriteReply<'r>>, Refusal> {
                let (record, condition) = (records[0], self.condition());
                match meet(record, &self.options, condition, env)? {
                    Met::Before(done) => return Ok(Decision::Answer(written(condition, done))),
                    Met::Lost => return Ok(Decision::Answer(WriteReply::Lost(lost(record)))),
                    Met::Free => {}
                }
                Ok(match self.change(record, env)? {
                    Some(change) => Decision::Change(change),
                    None => Decision::Answer(written(condition, Stamp::NONE)),
                })
            }

            fn committed(&self, change: &Change<'_>) -> WriteReply<'static> {
                written(self.condition(), change.stamp)
            }
        })*
    };
}
key_writes! { Set Cas Del Rollback }

impl<'a> KeyWrite<'a> for Set<'a> {
    fn condition(&self) -> Option<Stamp> {
        self.options.if_version
    }

    #[inline(always)]
    fn change(
        &self,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Option<Change<'a>>, Refusal> {
        let (value, o) = (Cow::Borrowed(self.value), &self.options);
        write_one(Kind::Set, self.key, value, o, Expiry::Clear, record, env).map(Some)
    }
}

impl<'a> KeyWrite<'a> for Cas<'a> {
    fn condition(&self) -> Option<Stamp> {
        Some(self.version)
    }

    #[inline(always)]
    fn change(
        &self,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Option<Change<'a>>, Refusal> {
        let (value, o) = (Cow::Borrowed(self.value), &self.options);
        write_one(Kind::Set, self.key, value, o, Expiry::Clear, record, env).map(Some)
    }
}

/// When a tombstone over this record leaves.
pub(crate) fn leaves(record: Option<&Record>, env: &Env<'_>) -> Expiry {
    match env.limits.tombstone_ms {
        0 => Expiry::Clear,
        // With the tombstone the lock of its holder would go.
        ms => Expiry::At(
            env.now_ms()
                .saturating_add(ms)
                .max(record.map_or(0, Record::leased_until_ms)),
        ),
    }
}

impl<'a> KeyWrite<'a> for Del<'a> {
    fn condition(&self) -> Option<Stamp> {
        self.options.if_version
    }

    fn change(
        &self,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Option<Change<'a>>, Refusal> {
        if live(record).is_none() {
            return Ok(None);
        }
        let leaves = leaves(record, env);
        let (value, o) = (Cow::Borrowed(&b""[..]), &self.options);
        write_one(Kind::Delete, self.key, value, o, leaves, record, env).map(Some)
    }
}

impl<'a> KeyWrite<'a> for Rollback<'a> {
    fn condition(&self) -> Option<Stamp> {
        self.options.if_version
    }

    fn change(
        &self,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Option<Change<'a>>, Refusal> {
        // Owned: the record is about to change.
        let value = Cow::Owned(value_of(select(record, self.select)?)?.into_owned());
        let o = &self.options;
        write_one(
            Kind::Rollback,
            self.key,
            value,
            o,
            Expiry::Keep,
            record,
            env,
        )
        .map(Some)
    }
}

impl<'a> WriteCommand<'a> for MSet<'a> {
    type Reply<'r> = WriteReply<'r>;

    fn by(&self) -> Option<&'a [u8]> {
        self.options.by
    }

    fn partition(&self) -> Option<&'a [u8]> {
        self.options.partition
    }

    fn is_conditional(&self) -> bool {
        self.options.shows_a_token()
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, WriteReply<'r>>, Refusal> {
        let done = records
            .iter()
            .find_map(|r| written_before(&self.options, *r));
        if let Some(stamp) = done {
            return Ok(Decision::Answer(WriteReply::Version(stamp)));
        }
        refuse_twice(|n| self.pairs[n].0, records)?;
        lock::permit(records, &self.options, env)?;
        let pairs = self.pairs.iter().copied();
        write_many(pairs, &self.options, records, env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> WriteReply<'static> {
        WriteReply::Version(change.stamp)
    }
}

impl<'a> WriteCommand<'a> for MCas<'a> {
    type Reply<'r> = MCasReply<'a>;

    fn by(&self) -> Option<&'a [u8]> {
        self.options.by
    }

    fn partition(&self) -> Option<&'a [u8]> {
        self.options.partition
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, MCasReply<'a>>, Refusal> {
        let done = records
            .iter()
            .find_map(|r| written_before(&self.options, *r));
        if let Some(stamp) = done {
            return Ok(Decision::Answer(MCasReply::Applied(stamp)));
        }
        refuse_twice(|n| self.items[n].0, records)?;
        lock::permit(records, &self.options, env)?;
        let lost: Vec<_> = self
            .items
            .iter()
            .zip(records)
            .filter(|((_, version, _), record)| *version != version_of(**record))
            .map(|((key, _, _), record)| (Cow::Borrowed(*key), version_of(*record)))
            .collect();
        if !lost.is_empty() {
            return Ok(Decision::Answer(MCasReply::Lost(lost)));
        }
        let pairs = self.items.iter().map(|(key, _, value)| (*key, *value));
        write_many(pairs, &self.options, records, env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> MCasReply<'a> {
        MCasReply::Applied(change.stamp)
    }
}

// ---------------------------------------------------------------------------------------------
// Reads
// ---------------------------------------------------------------------------------------------

/// The first version of the life that a kept version belongs to; where the beginning has been trimmed
/// away, the oldest that is kept.
fn created(record: &Record, v: Version<'_>) -> Stamp {
    if record.created() <= v.stamp() {
        return record.created();
    }
    let before = record.newest_first().skip_while(|o| o.stamp() > v.stamp());
    let life = before.take_while(|o| !o.is_tombstone());
    life.last().map_or(v.stamp(), Version::stamp)
}

#[inline(always)]
fn show<'r>(
    record: &'r Record,
    v: Version<'r>,
    form: Form,
    view: &dyn View,
    n: usize,
) -> GetReply<'r> {
    let Some(value) = v.value() else {
        return GetReply::Absent;
    };
    match form {
        Form::Value => GetReply::Value(value),
        Form::WithVersion => GetReply::WithVersion(value, v.stamp()),
        Form::Full => GetReply::Full(Box::new(full(record, v, value, view, n))),
    }
}

fn full<'r>(
    record: &'r Record,
    v: Version<'r>,
    value: Cow<'r, [u8]>,
    view: &dyn View,
    n: usize,
) -> Full<'r> {
    let lock = lock::shown(Some(record), view, n);
    Full {
        value,
        version: v.stamp(),
        created: created(record, v),
        author: Cow::Borrowed(&v.who().author),
        agent: v.who().agent.as_deref().map(Cow::Borrowed),
        metadata: v.meta().map(Cow::Borrowed),
        ttl_ms: view.ttl_ms(n),
        bytes: record.bytes() as u64,
        versions: record.len() as u64,
        lock: Some(lock).filter(|lock| !lock.holders.is_empty()),
        partition: view.partition(record.member().place()).map(Cow::Owned),
    }
}

impl<'a> ReadCommand<'a> for Get<'a> {
    type Reply<'r> = GetReply<'r>;

    #[inline]
    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        view: &dyn View,
    ) -> Result<GetReply<'r>, Refusal> {
        let record = records[0];
        let version = match self.select {
            None => live(record),
            Some(s) => Some(select(record, s)?),
        };
        Ok(match record.zip(version) {
            None => GetReply::Absent,
            Some((r, v)) => show(r, v, self.form, view, 0),
        })
    }
}

impl<'a> ReadCommand<'a> for MGet<'a> {
    type Reply<'r> = MGetReply<'r>;

    #[inline]
    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        view: &dyn View,
    ) -> Result<MGetReply<'r>, Refusal> {
        let mut room = Room(REPLY_MAX);
        let mut replies = Vec::with_capacity(records.len());
        for (n, record) in records.iter().enumerate() {
            replies.push(match record.and_then(|r| Some((r, r.live()?))) {
                None => GetReply::Absent,
                Some((r, v)) => {
                    room.take(v.value_len(), "ask for fewer keys at once")?;
                    show(r, v, self.form, view, n)
                }
            });
        }
        Ok(MGetReply(replies))
    }
}

/// What a reply may still hold.
struct Room(usize);

impl Room {
    fn take(&mut self, bytes: usize, advice: &str) -> Result<(), Refusal> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or_else(|| {
            let text = format!("the reply would have more than {REPLY_MAX} bytes; {advice}");
            Refusal::new(Code::Limit, text)
        })?;
        Ok(())
    }
}

/// The first place at or after the version `n`, `-n` counting back from the current one.
fn place_from(r: &Record, n: i64) -> usize {
    if n < 0 {
        let back = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
        return (r.len() - 1).saturating_sub(back);
    }
    r.partition_point(Stamp(n.unsigned_abs()))
}

/// The first place after the version `n`.
fn place_after(r: &Record, n: i64) -> usize {
    if n < 0 {
        let back = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
        return r.len().saturating_sub(back);
    }
    r.partition_point(Stamp(n.unsigned_abs() + 1))
}

impl<'a> ReadCommand<'a> for History<'a> {
    type Reply<'r> = HistoryReply<'r>;

    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        _: &dyn View,
    ) -> Result<HistoryReply<'r>, Refusal> {
        let Some(r) = with_past(records[0]) else {
            return Ok(HistoryReply(vec![]));
        };
        let start = self.from.map_or(0, |n| place_from(r, n));
        let end = self.to.map_or(r.len(), |n| place_after(r, n)).max(start);
        let count = self
            .count
            .map_or(usize::MAX, |c| usize::try_from(c).unwrap_or(usize::MAX))
            .min(end - start);
        let mut room = Room(REPLY_MAX);
        let chosen: Vec<Version<'r>> = match self.desc {
            false => r.iter().skip(start).take(count).collect(),
            true => r.newest_first().skip(r.len() - end).take(count).collect(),
        };
        let mut entries = Vec::with_capacity(count);
        for v in chosen {
            let len = v.value_len();
            let shown = v.meta().map_or(0, <[u8]>::len) + if self.values { len } else { 0 };
            room.take(shown, "ask for fewer versions with COUNT, FROM and TO")?;
            entries.push(Entry {
                version: v.stamp(),
                deleted: v.is_tombstone(),
                author: Cow::Borrowed(&v.who().author),
                agent: v.who().agent.as_deref().map(Cow::Borrowed),
                metadata: v.meta().map(Cow::Borrowed),
                reqid: v.reqid().map(Cow::Borrowed),
                bytes: len as u64,
                value: self.values.then(|| v.value()),
            });
        }
        Ok(HistoryReply(entries))
    }
}

impl<'a> ReadCommand<'a> for Diff<'a> {
    type Reply<'r> = DiffReply<'r>;

    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        _: &dyn View,
    ) -> Result<DiffReply<'r>, Refusal> {
        let version = |n| {
            let (r, place) = find_version(records[0], n)?;
            r.nth(place)
                .ok_or(Refusal::fixed(Code::NoVersion, "no such version is kept"))
        };
        let (from, to) = (version(self.from)?, version(self.to)?);
        let patch = json::diff(&value_of(from)?, &value_of(to)?)?;
        Ok(DiffReply(Cow::Owned(patch)))
    }
}
