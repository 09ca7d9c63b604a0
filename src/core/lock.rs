//! Locks: who holds a key, until when, and which writes that lets pass.
//!
//! A lock is held by one owner, or shared by several. Each of them has a token, which is the stamp of
//! its grant, and a lease. A holder is *present* while its lease lasts by the clock of the master; one
//! that is late counts for nothing, and leaves the record when the lock is next acted upon, or when the
//! background pass comes by.
//!
//! ```text
//! LOCK k a        a holds it: token 5
//! LOCK k b        not granted
//! SET k v         LOCKED; with TOKEN 5 it is written
//! (the lease of a ends)
//! LOCK k b        b holds it: token 9
//! SET k v TOKEN 5 FENCED
//! ```

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::change::{Change, Expiry, Kind, Write};
use crate::config::{FENCES_MAX, HOLDERS_MAX};
use crate::record::Record;
use crate::refusal::Quoted;
use crate::state::{refuse_twice, stamp_over, Decision, Env, ReadCommand, View, WriteCommand};
use crate::wire::lock::*;
use crate::wire::state::WriteOptions;
use crate::{Code, Refusal, Stamp};

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Mode {
    /// By several at once. It refuses no write.
    pub shared: bool,
    /// It refuses no write: those who look at it keep to it.
    pub advisory: bool,
}

/// Who holds a lock, or did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its name.
    pub owner: Box<[u8]>,
    /// The stamp of the grant.
    pub token: Stamp,
    /// The end of the lease, in milliseconds of unix time; this millisecond is no longer part of it.
    pub expires_ms: u64,
    /// How many times it was taken and not yet released; at least 1.
    pub holds: u32,
    /// What the owner says about it.
    pub note: Option<Box<[u8]>>,
}

impl Holder {
    /// True while the lease lasts.
    pub fn is_present(&self, now_ms: u64) -> bool {
        self.expires_ms > now_ms
    }
}

/// What guards a record besides its versions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Guard {
    /// How the lock is held; says nothing where there is no holder.
    pub mode: Mode,
    /// Who holds it, in the order of the grants; none: it is not locked.
    pub holders: SmallVec<[Holder; 1]>,
    /// The highest token seen for each name of `FENCE`.
    pub fences: Vec<(Box<[u8]>, u64)>,
}

/// What becomes of the lock of a key.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Turn {
    /// The tokens of those who hold it no longer.
    pub gone: SmallVec<[Stamp; 1]>,
    /// Who holds it now, or holds it otherwise than before, and how the lock is held from now on.
    pub held: Option<(Mode, Holder)>,
}

impl Guard {
    /// True if it guards nothing.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.fences.is_empty()
    }

    /// Those whose lease lasts.
    pub fn present(&self, now_ms: u64) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |h| h.is_present(now_ms))
    }

    /// Applies a turn. Cannot fail: what is left keeps every bound, whatever was there before.
    pub fn turn(&mut self, turn: &Turn) {
        self.holders.retain(|h| !turn.gone.contains(&h.token));
        let Some((mode, held)) = &turn.held else {
            return;
        };
        self.mode = *mode;
        self.holders
            .retain(|h| h.token == held.token || (mode.shared && h.owner != held.owner));
        if let Some(holder) = self.holders.iter_mut().find(|h| h.token == held.token) {
            *holder = held.clone();
            return;
        }
        if self.holders.len() >= HOLDERS_MAX {
            self.holders.remove(0);
        }
        self.holders.push(held.clone());
    }

    /// Keeps the higher one of two tokens for this name. Cannot fail, as above.
    pub fn raise(&mut self, name: &[u8], token: u64) {
        if let Some((_, highest)) = self.fences.iter_mut().find(|(n, _)| **n == *name) {
            *highest = token.max(*highest);
            return;
        }
        if self.fences.len() >= FENCES_MAX {
            self.fences.remove(0);
        }
        self.fences.push((name.into(), token));
    }

    /// The bytes it holds on to, about.
    pub fn bytes(&self) -> usize {
        let holder = |h: &Holder| {
            size_of::<Holder>() + h.owner.len() + h.note.as_ref().map_or(0, |n| n.len())
        };
        let fence = |(name, _): &(Box<[u8]>, u64)| size_of::<(Box<[u8]>, u64)>() + name.len();
        size_of::<Guard>()
            + self.holders.iter().map(holder).sum::<usize>()
            + self.fences.iter().map(fence).sum::<usize>()
    }
}

// ---------------------------------------------------------------------------------------------
// What a write must show
// ---------------------------------------------------------------------------------------------

/// Whether a write to these keys may pass, as far as locks and fences go. Each token must be that of a present
/// holder of one of the keys: one that is not has been lost, whoever holds the keys now.
///
/// # Errors
/// `LOCKED` without a token where one is needed, `FENCED` with one that is not that of a present holder,
/// `LIMIT` for one more fence than a record keeps.
#[inline]
pub(crate) fn permit(
    records: &[Option<&Record>],
    options: &WriteOptions<'_>,
    env: &Env<'_>,
) -> Result<(), Refusal> {
    if !options.tokens.is_empty() {
        check_tokens(records, options, env)?;
    }
    for record in records {
        let guard = record.and_then(Record::guard);
        if guard.is_some() || options.fence.is_some() {
            guarded(guard, options, env)?;
        }
    }
    Ok(())
}

/// Whether this key may be written, its tokens having been [checked](check_tokens).
///
/// # Errors
/// As for [`permit`].
pub(crate) fn permit_write(
    record: Option<&Record>,
    options: &WriteOptions<'_>,
    env: &Env<'_>,
) -> Result<(), Refusal> {
    guarded(record.and_then(Record::guard), options, env)
}

/// Whether this is the token of a present holder.
pub(crate) fn holds(record: Option<&Record>, token: Stamp, now_ms: u64) -> bool {
    holder(record, token, now_ms).is_ok()
}

#[cold]
fn guarded(
    guard: Option<&Guard>,
    options: &WriteOptions<'_>,
    env: &Env<'_>,
) -> Result<(), Refusal> {
    let now_ms = env.now_ms();
    if let Some(guard) = guard.filter(|g| !g.mode.shared && !g.mode.advisory) {
        if let Some(holder) = guard.present(now_ms).next() {
            if options.tokens.is_empty() {
                return Err(locked(holder, now_ms));
            }
            if !options.tokens.contains(&holder.token) {
                return Err(fenced(&options.tokens, Some(holder)));
            }
        }
    }
    let Some((name, token)) = options.fence else {
        return Ok(());
    };
    let fences = guard.map_or(&[][..], |g| &g.fences);
    match fences.iter().find(|(n, _)| **n == *name) {
        Some((_, highest)) if *highest > token => Err(Refusal::new(
            Code::Fenced,
            format!(
                "the key has seen token {highest} of {}, and {token} is lower: its holder has been replaced",
                Quoted(name)
            ),
        )),
        None if fences.len() >= FENCES_MAX => Err(Refusal::new(
            Code::Limit,
            format!("the key keeps tokens of {FENCES_MAX} names, and {} would be one more", Quoted(name)),
        )),
        _ => Ok(()),
    }
}

/// Whether each token shown is that of a present holder of one of the keys.
///
/// # Errors
/// `FENCED` for the first that is not.
#[cold]
pub(crate) fn check_tokens(
    records: &[Option<&Record>],
    options: &WriteOptions<'_>,
    env: &Env<'_>,
) -> Result<(), Refusal> {
    let now_ms = env.now_ms();
    let guards = || records.iter().filter_map(|r| r.and_then(Record::guard));
    for token in &options.tokens {
        let mut present = guards().flat_map(|g| g.present(now_ms));
        if !present.any(|h| h.token == *token) {
            let holder = guards().flat_map(|g| g.present(now_ms)).next();
            return Err(fenced(std::slice::from_ref(token), holder));
        }
    }
    Ok(())
}

#[cold]
fn locked(holder: &Holder, now_ms: u64) -> Refusal {
    let text = format!(
        "the key is locked by {} for {} ms more; write with its TOKEN, or take the lock first",
        Quoted(&holder.owner),
        holder.expires_ms - now_ms
    );
    Refusal::new(Code::Locked, text)
}

#[cold]
fn fenced(tokens: &[Stamp], holder: Option<&Holder>) -> Refusal {
    let tokens: Vec<_> = tokens.iter().map(Stamp::to_string).collect();
    let who = match holder {
        None => "nobody holds the lock now".into(),
        Some(h) => format!("{} holds it now, with another one", Quoted(&h.owner)),
    };
    let text = format!(
        "the lock of token {} has been lost: {who}; stop, and take the lock again",
        tokens.join(", ")
    );
    Refusal::new(Code::Fenced, text)
}

// ---------------------------------------------------------------------------------------------
// Turns
// ---------------------------------------------------------------------------------------------

/// The turn that grants a lock with this token, if it may be had now.
///
/// # Errors
/// `LIMIT` where it has as many holders as it may.
fn grant(
    record: Option<&Record>,
    wish: &Lock<'_>,
    token: Stamp,
    now_ms: u64,
) -> Result<Option<Turn>, Refusal> {
    let none = Guard::default();
    let guard = record.and_then(Record::guard).unwrap_or(&none);
    let gone = late(record, now_ms);
    let expires_ms = now_ms + wish.ttl_ms;
    let own = guard.present(now_ms).find(|h| *h.owner == *wish.owner);
    let others = guard.present(now_ms).any(|h| *h.owner != *wish.owner);
    let mode = Mode {
        shared: wish.shared,
        advisory: wish.advisory,
    };
    let turn = |mode, holder| {
        let held = Some((mode, holder));
        Ok(Some(Turn { gone, held }))
    };
    let Some(own) = own else {
        if others && !(wish.shared && guard.mode.shared) {
            return Ok(None);
        }
        let holders = guard.present(now_ms).count();
        if holders >= HOLDERS_MAX {
            let text = format!("the lock is shared by {holders} already, and no more may");
            return Err(Refusal::new(Code::Limit, text));
        }
        let holder = Holder {
            owner: wish.owner.into(),
            token,
            expires_ms,
            holds: 1,
            note: wish.note.map(Into::into),
        };
        return turn(mode, holder);
    };
    // The owner takes it once more. What it holds alone it goes on holding alone.
    if others && !wish.shared {
        return Ok(None);
    }
    let mode = Mode {
        shared: guard.mode.shared && wish.shared,
        advisory: guard.mode.advisory && wish.advisory,
    };
    let Some(holds) = own.holds.checked_add(1) else {
        return Err(Refusal::fixed(
            Code::Limit,
            "the owner has taken this lock more often than can be counted",
        ));
    };
    let holder = Holder {
        holds,
        expires_ms: expires_ms.max(own.expires_ms),
        note: wish.note.map(Into::into).or(own.note.clone()),
        ..own.clone()
    };
    turn(mode, holder)
}

/// The present holder with this token, and how it holds.
///
/// # Errors
/// `FENCED` if there is none.
fn holder(record: Option<&Record>, token: Stamp, now_ms: u64) -> Result<(Mode, &Holder), Refusal> {
    let guard = record.and_then(Record::guard);
    let mut present = guard.iter().flat_map(|g| g.present(now_ms));
    match (guard, present.find(|h| h.token == token)) {
        (Some(guard), Some(holder)) => Ok((guard.mode, holder)),
        _ => {
            let other = guard.and_then(|g| g.present(now_ms).next());
            Err(fenced(&[token], other))
        }
    }
}

/// The change that gives the locks of these keys their turns.
fn change<'a>(
    turns: impl Iterator<Item = (&'a [u8], Turn)>,
    stamp: Stamp,
    env: &Env<'_>,
) -> Change<'a> {
    let write = |(key, turn)| Write {
        key,
        value: Cow::Borrowed(&b""[..]),
        drops: 0,
        turn: Some(Box::new(turn)),
        home: None,
    };
    Change {
        kind: Kind::Lock,
        stamp,
        who: env.who.clone(),
        meta: None,
        reqid: None,
        time_ms: None,
        expiry: Expiry::Keep,
        fence: None,
        writes: turns.map(write).collect(),
    }
}

/// The holders that a change leaves, of those it is about.
fn held<'c>(change: &'c Change<'_>) -> impl Iterator<Item = &'c Holder> {
    let turns = change.writes.iter().filter_map(|w| w.turn.as_ref());
    turns.filter_map(|t| t.held.as_ref()).map(|(_, h)| h)
}

/// The tokens of those whose lease is over.
fn late(record: Option<&Record>, now_ms: u64) -> SmallVec<[Stamp; 1]> {
    let guard = record.and_then(Record::guard).into_iter();
    let late = guard.flat_map(|g| g.holders.iter().filter(|h| !h.is_present(now_ms)));
    late.map(|h| h.token).collect()
}

/// The change that takes a lock from those whose lease is over; none if there is nobody. It waits for no
/// request: nobody may ever ask again.
pub fn lapse<'a>(key: &'a [u8], record: &Record, env: &Env<'_>) -> Option<Change<'a>> {
    let gone = late(Some(record), env.now_ms());
    if gone.is_empty() {
        return None;
    }
    let turn = Turn { gone, held: None };
    let stamp = stamp_over(&[Some(record)], env).ok()?;
    Some(change(std::iter::once((key, turn)), stamp, env))
}

/// The change in which a holder comes to hold otherwise, or this token no longer; those who are late go.
fn changed<'a>(
    key: &'a [u8],
    records: &[Option<&Record>],
    held: Result<(Mode, Holder), Stamp>,
    env: &Env<'_>,
) -> Result<Change<'a>, Refusal> {
    let mut gone = late(records[0], env.now_ms());
    gone.extend(held.as_ref().err().copied());
    let held = held.ok();
    let turns = std::iter::once((key, Turn { gone, held }));
    Ok(change(turns, stamp_over(records, env)?, env))
}

impl<'a> WriteCommand<'a> for Lock<'a> {
    type Reply<'r> = LockReply;

    fn by(&self) -> Option<&'a [u8]> {
        None
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, LockReply>, Refusal> {
        let stamp = stamp_over(records, env)?;
        Ok(match grant(records[0], self, stamp, env.now_ms())? {
            None => Decision::Answer(LockReply(None)),
            Some(turn) => {
                let turns = std::iter::once((self.key, turn));
                Decision::Change(change(turns, stamp, env))
            }
        })
    }

    fn committed(&self, change: &Change<'_>) -> LockReply {
        LockReply(held(change).next().map(|h| (h.token, h.expires_ms)))
    }
}

impl<'a> WriteCommand<'a> for MLock<'a> {
    type Reply<'r> = MLockReply;

    fn by(&self) -> Option<&'a [u8]> {
        None
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, MLockReply>, Refusal> {
        refuse_twice(|n| self.keys[n], records)?;
        let stamp = stamp_over(records, env)?;
        let mut turns = Vec::with_capacity(records.len());
        for (key, record) in self.keys.iter().zip(records) {
            let wish = Lock {
                key,
                owner: self.owner,
                ttl_ms: self.ttl_ms,
                shared: false,
                advisory: false,
                wait_ms: 0,
                note: self.note,
            };
            match grant(*record, &wish, stamp, env.now_ms())? {
                None => return Ok(Decision::Answer(MLockReply(None))),
                Some(turn) => turns.push(turn),
            }
        }
        let turns = self.keys.iter().copied().zip(turns);
        Ok(Decision::Change(change(turns, stamp, env)))
    }

    fn committed(&self, change: &Change<'_>) -> MLockReply {
        let tokens = held(change).map(|h| h.token).collect();
        // A lease taken before may last longer.
        let first = held(change).map(|h| h.expires_ms).min();
        MLockReply(first.map(|expires_ms| (tokens, expires_ms)))
    }
}

/// A lock that is waited for: the request, kept for as long as it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    keys: Vec<Box<[u8]>>,
    /// One key, or several in one step.
    many: bool,
    owner: Box<[u8]>,
    ttl_ms: u64,
    shared: bool,
    advisory: bool,
    note: Option<Box<[u8]>>,
}

/// What comes of waiting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Granted {
    /// Of MAOS.LOCK.
    One(LockReply),
    /// Of MAOS.MLOCK.
    Many(MLockReply),
}

/// A command whose answer can be waited for.
pub trait LockCommand<'a>: WriteCommand<'a> {
    /// The reply to one that does not get it.
    const NOT_GRANTED: Self::Reply<'static>;

    /// For how long, in milliseconds; 0: not at all.
    fn wait_ms(&self) -> u64;
    /// Who asks.
    fn owner(&self) -> &'a [u8];
    /// The request, to be kept.
    fn want(&self) -> Want;
}

impl<'a> LockCommand<'a> for Lock<'a> {
    const NOT_GRANTED: LockReply = LockReply(None);

    fn wait_ms(&self) -> u64 {
        self.wait_ms
    }

    fn owner(&self) -> &'a [u8] {
        self.owner
    }

    fn want(&self) -> Want {
        Want {
            keys: vec![self.key.into()],
            many: false,
            owner: self.owner.into(),
            ttl_ms: self.ttl_ms,
            shared: self.shared,
            advisory: self.advisory,
            note: self.note.map(Into::into),
        }
    }
}

impl<'a> LockCommand<'a> for MLock<'a> {
    const NOT_GRANTED: MLockReply = MLockReply(None);

    fn wait_ms(&self) -> u64 {
        self.wait_ms
    }

    fn owner(&self) -> &'a [u8] {
        self.owner
    }

    fn want(&self) -> Want {
        Want {
            keys: self.keys.iter().map(|k| (*k).into()).collect(),
            many: true,
            owner: self.owner.into(),
            ttl_ms: self.ttl_ms,
            shared: false,
            advisory: false,
            note: self.note.map(Into::into),
        }
    }
}

impl Want {
    fn one(&self) -> Lock<'_> {
        Lock {
            key: &self.keys[0],
            owner: &self.owner,
            ttl_ms: self.ttl_ms,
            shared: self.shared,
            advisory: self.advisory,
            wait_ms: 0,
            note: self.note.as_deref(),
        }
    }

    fn several(&self) -> MLock<'_> {
        MLock {
            keys: self.keys.iter().map(|k| &**k).collect(),
            owner: &self.owner,
            ttl_ms: self.ttl_ms,
            wait_ms: 0,
            note: self.note.as_deref(),
        }
    }

    /// The keys.
    pub fn keys(&self) -> &[Box<[u8]>] {
        &self.keys
    }

    /// Who wants it.
    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    /// Wants it together with others.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The change that grants it; `None` if it must still be waited for.
    ///
    /// # Errors
    /// A refusal, which ends the wait.
    pub fn decide(
        &self,
        records: &[Option<&Record>],
        env: &Env<'_>,
    ) -> Result<Option<Change<'_>>, Refusal> {
        fn change<'w, R>(decision: Decision<'w, R>) -> Option<Change<'w>> {
            match decision {
                Decision::Change(change) => Some(change),
                _ => None,
            }
        }
        Ok(match self.many {
            true => change(self.several().decide(records, env)?),
            false => change(self.one().decide(records, env)?),
        })
    }

    /// The reply, once the change is applied.
    pub fn granted(&self, change: &Change<'_>) -> Granted {
        match self.many {
            true => Granted::Many(self.several().committed(change)),
            false => Granted::One(self.one().committed(change)),
        }
    }
}

/// Whether an owner holds the lock of this record: then it stands behind nobody who waits for it.
pub fn is_held_by(record: Option<&Record>, owner: &[u8], now_ms: u64) -> bool {
    let guard = record.and_then(Record::guard);
    guard.is_some_and(|g| g.present(now_ms).any(|h| *h.owner == *owner))
}

impl<'a> WriteCommand<'a> for Unlock<'a> {
    type Reply<'r> = UnlockReply;

    fn by(&self) -> Option<&'a [u8]> {
        None
    }

    fn is_conditional(&self) -> bool {
        // What is given back was held, whoever is in charge now.
        false
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, UnlockReply>, Refusal> {
        let (mode, holder) = holder(records[0], self.token, env.now_ms())?;
        let left = match holder.holds {
            0 | 1 => Err(self.token),
            holds => Ok((
                mode,
                Holder {
                    holds: holds - 1,
                    ..holder.clone()
                },
            )),
        };
        changed(self.key, records, left, env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> UnlockReply {
        UnlockReply(held(change).next().map_or(0, |h| h.holds))
    }
}

impl<'a> WriteCommand<'a> for Renew<'a> {
    type Reply<'r> = RenewReply;

    fn by(&self) -> Option<&'a [u8]> {
        None
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, RenewReply>, Refusal> {
        let now_ms = env.now_ms();
        let (mode, holder) = holder(records[0], self.token, now_ms)?;
        let renewed = Holder {
            expires_ms: now_ms + self.ttl_ms,
            ..holder.clone()
        };
        changed(self.key, records, Ok((mode, renewed)), env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> RenewReply {
        RenewReply(held(change).next().map_or(0, |h| h.expires_ms))
    }
}

/// What is shown of the lock of a record.
pub(crate) fn shown<'r>(record: Option<&'r Record>, view: &dyn View, n: usize) -> LocksReply<'r> {
    let guard = record.and_then(Record::guard);
    let present = guard.into_iter().flat_map(|g| g.present(view.now_ms()));
    let holders: Vec<_> = present
        .map(|h| HolderReply {
            owner: Cow::Borrowed(&h.owner),
            token: h.token,
            expires_ms: h.expires_ms,
            holds: h.holds,
            note: h.note.as_deref().map(Cow::Borrowed),
        })
        .collect();
    let mode = guard.filter(|_| !holders.is_empty()).map(|g| g.mode);
    LocksReply {
        shared: mode.map(|m| m.shared),
        advisory: mode.is_some_and(|m| m.advisory),
        highest: holders.iter().map(|h| h.token).max(),
        holders,
        waiters: view.waiters(n),
    }
}

impl<'a> ReadCommand<'a> for Locks<'a> {
    type Reply<'r> = LocksReply<'r>;

    fn answer<'r>(
        &self,
        records: &[Option<&'r Record>],
        view: &dyn View,
    ) -> Result<LocksReply<'r>, Refusal> {
        Ok(shown(records[0], view, 0))
    }
}
