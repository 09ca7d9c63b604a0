//! Encoding 1: the record in RDB files, DUMP payloads and rewritten AOFs, and the fact that
//! travels to replicas and the AOF.
//!
//! Integers are bincode varints (little-endian); `bytes` is a length and that many bytes.
//!
//! ```text
//! record  = 1, sections, writers, [created, floor], versions, [lock], [fences], [share]
//! sections= one byte; bit 0: created and floor follow; bit 1: a lock does; bit 2: fences do; bit 3: a share
//!           does; all other bits 0. Where bit 0 is not set there is one version and nothing else
//! writers = count, then for each: author bytes, 0 | 1 and agent bytes
//! versions= count, then for each, oldest first: index of its writer, blob bytes (see `record`); none where
//!           there is a lock and nothing else
//! lock    = mode, count of holders, these
//! mode    = one byte; bit 0 shared, 1 advisory
//! holder  = owner bytes, token, end of the lease in ms, holds, 0 | 1 and note bytes
//! fences  = count, then for each: name bytes, token
//! share   = how, name bytes of a partition
//! how     = one byte; bit 0 named by a write, 1 leaves with the partition
//!
//! define  = 1, class, what when full, parts, stamp, quota, history, max age in ms, max value, ttl of keys in ms,
//!           [agent bytes], [strategy, name bytes of a function], count of prefixes, bytes of each
//! class   = one byte: 0 shared pool, 1 dedicated to an agent, 2 temporary, 3 persistent
//! full    = one byte: 0 reject, 1 evict
//! parts   = one byte; bit 0 agent, 1 strategy
//!
//! fact    = 1, kind, parts, stamp, author bytes, [agent bytes], [meta bytes], [reqid bytes],
//!           [expires at], [drops for each key], [fence: name bytes, token], [time in ms], [home for each key]
//! kind    = one byte; bit 7: homes follow
//! home    = one byte; 0 stays, 1 no partition, 4 and how: name bytes follow
//! parts   = one byte; bit 0 agent, 1 meta, 2 reqid, 3 expiry cleared, 4 expires at, 5 drops, 6 fence, 7 time
//! turn    = count of tokens that hold no longer, these, 0 | 1 and mode, holder
//! ```
//!
//! The keys and values of a fact are not in it: they travel beside it as arguments of their own. Where the
//! kind is that of a lock, a turn travels in the place of the value.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Damaged, Reader, Writer};
use crate::change::{Change, Expiry, Kind, Write};
use crate::config::{
    AGENT_MAX, AUTHOR_MAX, FENCES_MAX, FUNCTION_MAX, HARD_VALUE_MAX, HARD_VERSIONS_MAX,
    HOLDERS_MAX, META_MAX, NOTE_MAX, OWNER_MAX, PARTITION_NAME_MAX, PREFIXES_MAX, PREFIX_MAX,
    REQID_MAX,
};
use crate::lock::{Guard, Holder, Mode, Turn};
use crate::partition::{Conflict, Definition, Home, Place};
use crate::record::{Record, Version};
use crate::version::stamp_of;
use crate::wire::partition::{Class, OnFull};
use crate::wire::update::Strategy;
use crate::{json, Interner, Stamp, Who};

/// The number of this encoding, in the first byte of all it writes and in the RDB type.
pub const ENCODING: u8 = 1;

const HAS_PAST: u8 = 1;
const HAS_LOCK: u8 = 2;
const HAS_FENCES: u8 = 4;
const HAS_SHARE: u8 = 8;

const CHOSEN: u8 = 1;
const DIES: u8 = 2;
const NAMED: u8 = 4;

/// Bounds on a record that is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The longest value.
    pub value_max: usize,
    /// The largest stamp.
    pub newest: Stamp,
    /// How many bytes compressed values may unpack to, together.
    pub unpacked_max: usize,
}

impl Bounds {
    /// What no setting forbids: for what this node or its master wrote.
    pub const HARD: Bounds = Bounds {
        value_max: HARD_VALUE_MAX as usize,
        newest: Stamp::MAX,
        unpacked_max: usize::MAX,
    };
}

/// The partition that a record names: as it is written down, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Named by a write, not by a prefix.
    pub chosen: bool,
    /// Leaves with the partition.
    pub dies: bool,
}

impl<'a> Share<'a> {
    /// That of a record whose partition has this name.
    pub fn of(record: &Record, name: Option<&'a [u8]>) -> Option<Share<'a>> {
        let member = record.member();
        name.filter(|_| member.place().is_some()).map(|name| Share {
            name,
            chosen: member.is_chosen(),
            dies: member.dies(),
        })
    }

    fn how(self) -> u8 {
        u8::from(self.chosen) * CHOSEN + u8::from(self.dies) * DIES
    }

    fn decode(how: u8, r: &mut Reader<'a>) -> Result<Share<'a>, Damaged> {
        let name = r.bytes()?;
        if how & !(CHOSEN | DIES) != 0 || name.is_empty() || name.len() > PARTITION_NAME_MAX {
            return Err(Damaged(
                "a partition with no name, one too long, or of an unknown kind",
            ));
        }
        Ok(Share {
            name,
            chosen: how & CHOSEN != 0,
            dies: how & DIES != 0,
        })
    }
}

/// Appends the encoding of a record, which names this partition.
pub fn encode_record(record: &Record, share: Option<Share<'_>>, out: &mut Vec<u8>) {
    let w = &mut Writer(out);
    w.byte(ENCODING);
    let guard = record.guard();
    let plain = record.len() == 1
        && guard.is_none()
        && share.is_none()
        && record.floor() == Stamp::NONE
        && record.created() == record.current().stamp();
    let bit = |present: bool, bit: u8| if present { bit } else { 0 };
    w.byte(
        bit(!plain, HAS_PAST)
            | bit(guard.is_some_and(|g| !g.holders.is_empty()), HAS_LOCK)
            | bit(guard.is_some_and(|g| !g.fences.is_empty()), HAS_FENCES)
            | bit(share.is_some(), HAS_SHARE),
    );
    if plain {
        // Nearly all records, when there are many.
        let v = record.current();
        w.number(1);
        encode_who(v.who(), w);
        w.number(1);
        w.number(0);
        w.bytes(v.blob());
        return;
    }
    let (writers, places) = writers(record);
    w.number(writers.len() as u64);
    for who in &writers {
        encode_who(who, w);
    }
    w.number(record.created().0);
    w.number(record.floor().0);
    w.number(record.len() as u64);
    for (v, at) in record.iter().zip(places) {
        w.number(at as u64);
        w.bytes(v.blob());
    }
    if let Some(guard) = guard {
        encode_guard(guard, w);
    }
    if let Some(share) = share {
        w.byte(share.how());
        w.bytes(share.name);
    }
}

fn encode_guard(guard: &Guard, w: &mut Writer<'_>) {
    if !guard.holders.is_empty() {
        w.byte(mode_byte(guard.mode));
        w.number(guard.holders.len() as u64);
        for holder in &guard.holders {
            encode_holder(holder, w);
        }
    }
    if !guard.fences.is_empty() {
        w.number(guard.fences.len() as u64);
        for (name, token) in &guard.fences {
            w.bytes(name);
            w.number(*token);
        }
    }
}

/// The encoding of a definition.
pub fn encode_definition(d: &Definition) -> Vec<u8> {
    let mut out = Vec::new();
    let w = &mut Writer(&mut out);
    let parts = u8::from(d.agent.is_some()) | u8::from(d.on_conflict.is_some()) << 1;
    w.0.extend_from_slice(&[ENCODING, d.class.place() as u8, d.on_full as u8, parts]);
    for n in [
        d.stamp.0,
        d.quota,
        d.history,
        d.max_age_ms,
        d.max_value,
        d.key_ttl_ms,
    ] {
        w.number(n);
    }
    if let Some(agent) = &d.agent {
        w.bytes(agent);
    }
    if let Some(conflict) = &d.on_conflict {
        w.byte(conflict.place as u8);
        w.bytes(&conflict.function);
    }
    w.number(d.prefixes.len() as u64);
    d.prefixes.iter().for_each(|prefix| w.bytes(prefix));
    out
}

/// Decodes a definition. Total, as [`decode_record`].
///
/// # Errors
/// [`Damaged`], naming the first thing that is wrong.
pub fn decode_definition(bytes: &[u8]) -> Result<Definition, Damaged> {
    let r = &mut Reader::new(bytes);
    if r.byte()? != ENCODING {
        return Err(Damaged("the encoding of a definition is not 1"));
    }
    let class =
        Class::at(r.byte()?.into()).ok_or(Damaged("a type that only a later version knows"))?;
    let on_full = match r.byte()? {
        0 => OnFull::Reject,
        1 => OnFull::Evict,
        _ => return Err(Damaged("a policy that only a later version knows")),
    };
    let parts = r.byte()?;
    if parts > 3 {
        return Err(Damaged("unknown parts of a definition"));
    }
    let mut d = Definition {
        stamp: Stamp(r.number()?),
        quota: r.number()?,
        class,
        agent: None,
        prefixes: vec![],
        on_full,
        on_conflict: None,
        history: r.number()?,
        max_age_ms: r.number()?,
        max_value: r.number()?,
        key_ttl_ms: r.number()?,
    };
    let most = i64::MAX as u64 / 4;
    if d.stamp == Stamp::NONE || d.stamp > Stamp::MAX || d.quota == 0 || d.quota > Stamp::MAX.0 {
        return Err(Damaged("a definition with an impossible version or quota"));
    }
    if d.history >= HARD_VERSIONS_MAX
        || d.max_value > HARD_VALUE_MAX
        || d.max_age_ms > most / 500
        || d.key_ttl_ms > most
    {
        return Err(Damaged("a definition with an impossible bound"));
    }
    if parts & 1 != 0 {
        let agent = r.bytes()?;
        if agent.is_empty() || agent.len() > AGENT_MAX {
            return Err(Damaged("an agent with no name, or one too long"));
        }
        d.agent = Some(agent.into());
    }
    if (class == Class::AgentDedicated) != d.agent.is_some() {
        return Err(Damaged(
            "a dedicated partition has an agent, and no other has",
        ));
    }
    if parts & 2 != 0 {
        let (place, function) = (usize::from(r.byte()?), r.bytes()?);
        let is_function = place == Strategy::WORDS.len() - 1;
        if place >= Strategy::WORDS.len()
            || function.is_empty() == is_function
            || function.len() > FUNCTION_MAX
        {
            return Err(Damaged("a strategy that only a later version knows"));
        }
        d.on_conflict = Some(Conflict {
            place,
            function: function.into(),
        });
    }
    for _ in 0..r.count(PREFIXES_MAX as u64)? {
        let prefix = r.bytes()?;
        if prefix.is_empty()
            || prefix.len() > PREFIX_MAX
            || d.prefixes.iter().any(|p| **p == *prefix)
        {
            return Err(Damaged("a prefix that is empty, too long, or there twice"));
        }
        d.prefixes.push(prefix.into());
    }
    r.end()?;
    Ok(d)
}

fn mode_byte(mode: Mode) -> u8 {
    u8::from(mode.shared) | u8::from(mode.advisory) << 1
}

fn encode_holder(holder: &Holder, w: &mut Writer<'_>) {
    w.bytes(&holder.owner);
    w.number(holder.token.0);
    w.number(holder.expires_ms);
    w.number(holder.holds.into());
    w.byte(u8::from(holder.note.is_some()));
    if let Some(note) = &holder.note {
        w.bytes(note);
    }
}

/// The encoding of a turn.
pub fn encode_turn(turn: &Turn) -> Vec<u8> {
    let mut out = Vec::new();
    let w = &mut Writer(&mut out);
    w.number(turn.gone.len() as u64);
    turn.gone.iter().for_each(|token| w.number(token.0));
    w.byte(u8::from(turn.held.is_some()));
    if let Some((mode, holder)) = &turn.held {
        w.byte(mode_byte(*mode));
        encode_holder(holder, w);
    }
    out
}

fn decode_mode(r: &mut Reader<'_>) -> Result<Mode, Damaged> {
    let byte = r.byte()?;
    if byte > 3 {
        return Err(Damaged("a lock held in an unknown way"));
    }
    Ok(Mode {
        shared: byte & 1 != 0,
        advisory: byte & 2 != 0,
    })
}

fn decode_holder(r: &mut Reader<'_>, newest: Stamp) -> Result<Holder, Damaged> {
    let owner = r.bytes()?;
    let token = Stamp(r.number()?);
    let (expires_ms, holds) = (r.number()?, u32::try_from(r.number()?));
    let note = match r.byte()? {
        0 => None,
        1 => Some(r.bytes()?),
        _ => return Err(Damaged("a note must be there or not")),
    };
    if owner.is_empty() || owner.len() > OWNER_MAX {
        return Err(Damaged("a lock's owner with no name, or one too long"));
    }
    if note.is_some_and(|n| n.is_empty() || n.len() > NOTE_MAX) {
        return Err(Damaged("a lock's note that is empty or too long"));
    }
    if token == Stamp::NONE || token > newest {
        return Err(Damaged("a lock's token that cannot be"));
    }
    let holds = holds.ok().filter(|n| *n > 0);
    if expires_ms > i64::MAX as u64 / 2 {
        return Err(Damaged("a lease without end"));
    }
    Ok(Holder {
        owner: owner.into(),
        token,
        expires_ms,
        holds: holds.ok_or(Damaged("a lock held no times, or too often"))?,
        note: note.map(Into::into),
    })
}

fn decode_turn(bytes: &[u8]) -> Result<Turn, Damaged> {
    let r = &mut Reader::new(bytes);
    let mut turn = Turn::default();
    for _ in 0..r.count(HOLDERS_MAX as u64)? {
        turn.gone.push(Stamp(r.number()?));
    }
    turn.held = match r.byte()? {
        0 => None,
        1 => Some((decode_mode(r)?, decode_holder(r, Stamp::MAX)?)),
        _ => return Err(Damaged("a holder must be there or not")),
    };
    r.end()?;
    Ok(turn)
}

fn decode_guard(r: &mut Reader<'_>, sections: u8, newest: Stamp) -> Result<Guard, Damaged> {
    let mut guard = Guard::default();
    if sections & HAS_LOCK != 0 {
        guard.mode = decode_mode(r)?;
        let count = r.count(HOLDERS_MAX as u64)?;
        if count == 0 || (count > 1 && !guard.mode.shared) {
            return Err(Damaged("a lock with no holder, or too many"));
        }
        for _ in 0..count {
            let holder = decode_holder(r, newest)?;
            let clash = |h: &Holder| h.token == holder.token || h.owner == holder.owner;
            if guard.holders.iter().any(clash) {
                return Err(Damaged("a lock's holders that are the same"));
            }
            guard.holders.push(holder);
        }
    }
    if sections & HAS_FENCES != 0 {
        let count = r.count(FENCES_MAX as u64)?;
        if count == 0 {
            return Err(Damaged("no fences where there should be some"));
        }
        for _ in 0..count {
            let (name, token) = (r.bytes()?, r.number()?);
            if guard.fences.iter().any(|(n, _)| **n == *name) {
                return Err(Damaged("a fence that is there twice"));
            }
            check_fence(name, token)?;
            guard.fences.push((name.into(), token));
        }
    }
    Ok(guard)
}

fn check_fence(name: &[u8], token: u64) -> Result<(), Damaged> {
    if name.is_empty() || name.len() > OWNER_MAX || token > i64::MAX as u64 {
        return Err(Damaged(
            "a fence with no name, one too long, or a token too large",
        ));
    }
    Ok(())
}

fn encode_who(who: &Who, w: &mut Writer<'_>) {
    w.bytes(&who.author);
    w.byte(u8::from(who.agent.is_some()));
    if let Some(agent) = &who.agent {
        w.bytes(agent);
    }
}

/// The writers of a record, each once, in the order in which they first wrote, and for each version
/// the place of its own.
fn writers(record: &Record) -> (SmallVec<[&Who; 4]>, SmallVec<[usize; 8]>) {
    let mut writers: SmallVec<[&Who; 4]> = SmallVec::new();
    let mut places = SmallVec::with_capacity(record.len());
    // Most records have one writer, or two: those need no table.
    let mut known: Option<HashMap<&Who, usize>> = None;
    for v in record.iter() {
        let who: &Who = v.who();
        let near = writers.iter().take(2).position(|w| *w == who);
        let place = match near {
            Some(near) => near,
            None if writers.len() < 2 => writers.len(),
            None => {
                let known = known.get_or_insert_default();
                *known.entry(who).or_insert(writers.len())
            }
        };
        if place == writers.len() {
            writers.push(who);
        }
        places.push(place);
    }
    (writers, places)
}

/// Decodes a record. Total: any bytes give a record that keeps every bound, or an error.
///
/// # Errors
/// [`Damaged`], naming the first thing that is wrong.
pub fn decode_record<'b>(
    bytes: &'b [u8],
    bounds: Bounds,
    interner: &mut Interner,
) -> Result<(Record, Option<Share<'b>>), Damaged> {
    let r = &mut Reader::new(bytes);
    if r.byte()? != ENCODING {
        return Err(Damaged("the encoding is not 1"));
    }
    let sections = r.byte()?;
    if sections & !(HAS_PAST | HAS_LOCK | HAS_FENCES | HAS_SHARE) != 0 {
        return Err(Damaged("it has parts that only a later version knows"));
    }
    if sections & HAS_PAST == 0 && sections != 0 {
        return Err(Damaged("a lock, a fence or a share without a past"));
    }
    let mut unpack = bounds.unpacked_max;
    if sections & HAS_PAST == 0 {
        // Nearly all records, when there are many.
        if r.number()? != 1 {
            return Err(Damaged("a record without a past has one writer"));
        }
        let who = decode_who(r, interner)?;
        if r.number()? != 1 || r.number()? != 0 {
            return Err(Damaged("a record without a past has one version"));
        }
        let version = decode_version(r.bytes()?, &who, bounds, &mut unpack)?;
        r.end()?;
        return Ok((Record::of(version), None));
    }
    let mut writers = Vec::new();
    for _ in 0..r.count(HARD_VERSIONS_MAX)? {
        writers.push(decode_who(r, interner)?);
    }
    let (created, floor) = (Stamp(r.number()?), Stamp(r.number()?));
    let count = r.count(HARD_VERSIONS_MAX)?;
    let versions = (0..count).map(|_| {
        let who = usize::try_from(r.number()?)
            .ok()
            .and_then(|i| writers.get(i));
        let who = who.ok_or(Damaged("a version by an unknown writer"))?;
        decode_version(r.bytes()?, who, bounds, &mut unpack)
    });
    let record = match count {
        0 if created == Stamp::NONE
            && floor == Stamp::NONE
            && sections & !HAS_SHARE == HAS_PAST | HAS_LOCK =>
        {
            Some(Record::bare(interner.get(b"", None).clone()))
        }
        _ => Record::from_parts(created, floor, versions)?,
    };
    let mut record = record.ok_or(Damaged("versions that contradict each other"))?;
    if sections & (HAS_LOCK | HAS_FENCES) != 0 {
        record.set_guard(decode_guard(r, sections, bounds.newest)?);
    }
    let share = match sections & HAS_SHARE {
        0 => None,
        _ => Some(Share::decode(r.byte()?, r)?),
    };
    r.end()?;
    Ok((record, share))
}

/// The newest of all stamps in an encoded record, as [`Record::newest`] says it: found without making the record. What
/// else may be wrong with the bytes goes unseen.
///
/// # Errors
/// [`Damaged`] if the stamps are not found.
pub fn newest_of(bytes: &[u8]) -> Result<Stamp, Damaged> {
    let r = &mut Reader::new(bytes);
    if r.byte()? != ENCODING {
        return Err(Damaged("the encoding is not 1"));
    }
    let sections = r.byte()?;
    for _ in 0..r.count(HARD_VERSIONS_MAX)? {
        r.bytes()?;
        if r.byte()? != 0 {
            r.bytes()?;
        }
    }
    if sections & HAS_PAST != 0 {
        r.number()?;
        r.number()?;
    }
    let mut newest = Stamp::NONE;
    for _ in 0..r.count(HARD_VERSIONS_MAX)? {
        r.number()?;
        let stamp = stamp_of(r.bytes()?).ok_or(Damaged("a version that makes no sense"))?;
        newest = newest.max(stamp);
    }
    if sections & HAS_LOCK != 0 {
        decode_mode(r)?;
        for _ in 0..r.count(HOLDERS_MAX as u64)? {
            newest = newest.max(decode_holder(r, Stamp::MAX)?.token);
        }
    }
    Ok(newest)
}

fn decode_who(r: &mut Reader<'_>, interner: &mut Interner) -> Result<Arc<Who>, Damaged> {
    let author = r.bytes()?;
    let agent = match r.byte()? {
        0 => None,
        1 => Some(r.bytes()?),
        _ => return Err(Damaged("an agent must be there or not")),
    };
    check_who(author, agent)?;
    Ok(interner.get(author, agent).clone())
}

fn check_who(author: &[u8], agent: Option<&[u8]>) -> Result<(), Damaged> {
    if author.len() > AUTHOR_MAX || agent.is_some_and(|a| a.is_empty() || a.len() > AGENT_MAX) {
        return Err(Damaged("a writer's name is too long, or empty"));
    }
    Ok(())
}

fn check_meta(meta: Option<&[u8]>) -> Result<(), Damaged> {
    match meta {
        Some(meta) if meta.len() > META_MAX || json::check_meta(meta).is_err() => {
            Err(Damaged("metadata that is not a JSON object within bounds"))
        }
        _ => Ok(()),
    }
}

fn decode_version<'v>(
    blob: &'v [u8],
    who: &'v Arc<Who>,
    bounds: Bounds,
    unpack: &mut usize,
) -> Result<Version<'v>, Damaged> {
    let v = Version::from_blob(blob, who, bounds.value_max, unpack)
        .ok_or(Damaged("a version that makes no sense"))?;
    if v.stamp() > bounds.newest {
        return Err(Damaged("a version too far in the future"));
    }
    if v.reqid().is_some_and(|r| r.len() > REQID_MAX) {
        return Err(Damaged("a request id that is too long"));
    }
    check_meta(v.meta())?;
    Ok(v)
}

const HAS_AGENT: u8 = 1;
const HAS_META: u8 = 2;
const HAS_REQID: u8 = 4;
const CLEARS: u8 = 8;
const EXPIRES: u8 = 16;
const HAS_DROPS: u8 = 32;
const HAS_FENCE: u8 = 64;
const HAS_TIME: u8 = 128;

/// In the byte of the kind.
const HAS_HOMES: u8 = 128;
const STAYS: u8 = 0;
const LEAVES: u8 = 1;

/// Appends the fact of a change: all of it but keys and values.
pub fn encode_fact(change: &Change<'_>, out: &mut Vec<u8>) {
    let drops = change.writes.iter().any(|w| w.drops > 0);
    let bit = |present: bool, bit: u8| if present { bit } else { 0 };
    let parts = bit(change.who.agent.is_some(), HAS_AGENT)
        | bit(change.meta.is_some(), HAS_META)
        | bit(change.reqid.is_some(), HAS_REQID)
        | bit(drops, HAS_DROPS)
        | bit(change.fence.is_some(), HAS_FENCE)
        | bit(change.time_ms.is_some(), HAS_TIME)
        | match change.expiry {
            Expiry::Keep => 0,
            Expiry::Clear => CLEARS,
            Expiry::At(_) => EXPIRES,
        };
    let homes = bit(change.writes.iter().any(|w| w.home.is_some()), HAS_HOMES);
    let w = &mut Writer(out);
    w.0.extend_from_slice(&[ENCODING, change.kind as u8 | homes, parts]);
    w.number(change.stamp.0);
    w.bytes(&change.who.author);
    if parts & (HAS_AGENT | HAS_META | HAS_REQID) != 0 {
        let texts = [
            change.who.agent.as_deref(),
            change.meta.as_deref(),
            change.reqid,
        ];
        texts.into_iter().flatten().for_each(|text| w.bytes(text));
    }
    if let Expiry::At(ms) = change.expiry {
        w.number(ms);
    }
    if drops {
        for write in &change.writes {
            w.number(write.drops as u64);
        }
    }
    if let Some((name, token)) = change.fence {
        w.bytes(name);
        w.number(token);
    }
    if let Some(ms) = change.time_ms {
        w.number(ms);
    }
    if homes != 0 {
        for write in &change.writes {
            encode_home(write.home.as_deref(), w);
        }
    }
}

#[cold]
fn encode_home(home: Option<&Home>, w: &mut Writer<'_>) {
    let Some(home) = home else {
        return w.byte(STAYS);
    };
    match &home.name {
        None => w.byte(LEAVES),
        Some(name) => {
            let share = Share {
                name,
                chosen: home.chosen,
                dies: home.dies,
            };
            w.byte(NAMED | share.how());
            w.bytes(name);
        }
    }
}

fn decode_home(r: &mut Reader<'_>) -> Result<Option<Box<Home>>, Damaged> {
    Ok(match r.byte()? {
        STAYS => None,
        LEAVES => Some(Box::new(Home::NONE)),
        how if how & NAMED != 0 => {
            let share = Share::decode(how & !NAMED, r)?;
            Some(Box::new(Home {
                name: Some(share.name.into()),
                place: Place::NONE,
                chosen: share.chosen,
                dies: share.dies,
            }))
        }
        _ => return Err(Damaged("a home that only a later version knows")),
    })
}

/// Decodes a change from its fact and the keys and values beside it. Its homes have names, and no places yet:
/// [`Directory::bind`](crate::partition::Directory::bind) gives them those.
///
/// # Errors
/// [`Damaged`] if the fact is not one, or does not fit the number of keys.
pub fn decode_fact<'a>(
    fact: &'a [u8],
    pairs: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    interner: &mut Interner,
) -> Result<Change<'a>, Damaged> {
    let r = &mut Reader::new(fact);
    if r.byte()? != ENCODING {
        return Err(Damaged("the fact's encoding is not 1"));
    }
    let kind = r.byte()?;
    let homes = kind & HAS_HOMES != 0;
    let kind = match kind & !HAS_HOMES {
        1 => Kind::Set,
        2 => Kind::Delete,
        3 => Kind::Rollback,
        4 => Kind::Trim,
        5 => Kind::Lock,
        6 => Kind::Move,
        7 => Kind::Merge,
        _ => return Err(Damaged("a kind of change that only a later version knows")),
    };
    let parts = r.byte()?;
    if parts & (CLEARS | EXPIRES) == CLEARS | EXPIRES {
        return Err(Damaged("unknown parts of a fact"));
    }
    let stamp = Stamp(r.number()?);
    if stamp > Stamp::MAX || (stamp == Stamp::NONE) != matches!(kind, Kind::Trim | Kind::Move) {
        return Err(Damaged("a fact with an impossible stamp"));
    }
    let author = r.bytes()?;
    let mut part = |bit| -> Result<Option<&'a [u8]>, Damaged> {
        (parts & bit != 0).then(|| r.bytes()).transpose()
    };
    let (agent, meta, reqid) = (part(HAS_AGENT)?, part(HAS_META)?, part(HAS_REQID)?);
    // What is applied is written down, and must load again.
    check_who(author, agent)?;
    check_meta(meta)?;
    if reqid.is_some_and(|r| r.is_empty() || r.len() > REQID_MAX) {
        return Err(Damaged("a request id that is empty or too long"));
    }
    let expiry = match parts & (CLEARS | EXPIRES) {
        0 => Expiry::Keep,
        CLEARS => Expiry::Clear,
        _ => Expiry::At(r.number()?),
    };
    let mut change = Change {
        kind,
        stamp,
        who: interner.get(author, agent).clone(),
        meta: meta.map(Cow::Borrowed),
        reqid,
        time_ms: None,
        expiry,
        fence: None,
        writes: Default::default(),
    };
    for (key, value) in pairs {
        let drops = if parts & HAS_DROPS != 0 {
            r.number()?
        } else {
            0
        };
        let (value, turn) = match kind {
            Kind::Lock => (&b""[..], Some(Box::new(decode_turn(value)?))),
            _ => (value, None),
        };
        change.writes.push(Write {
            key,
            value: Cow::Borrowed(value),
            drops: usize::try_from(drops).unwrap_or(usize::MAX),
            turn,
            home: None,
        });
    }
    if parts & HAS_FENCE != 0 {
        let (name, token) = (r.bytes()?, r.number()?);
        check_fence(name, token)?;
        change.fence = Some((name, token));
    }
    if parts & HAS_TIME != 0 {
        change.time_ms = Some(r.number()?);
    }
    if homes {
        for write in &mut change.writes {
            write.home = decode_home(r)?;
        }
    }
    r.end()?;
    Ok(change)
}
