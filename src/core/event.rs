//! What those who listen are told: one word for what a change did to a key.

use std::ffi::CStr;

use crate::change::{Change, Kind};
use crate::record::Record;

/// What happened to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It has a value, and had none.
    Created,
    /// It has another value.
    Updated,
    /// It has no value any more; its history stays.
    Deleted,
    /// It has an old value again.
    RolledBack,
    /// A merge met another write, and both are settled.
    Resolved,
    /// A merge met another write, and was not applied: nothing changed.
    Conflicted,
    /// Somebody holds it who did not.
    Locked,
    /// Somebody holds it no longer.
    Unlocked,
}

impl Event {
    /// The name of its keyspace notification.
    pub const fn notification(self) -> &'static CStr {
        match self {
            Event::Created => c"maos.created",
            Event::Updated => c"maos.updated",
            Event::Deleted => c"maos.deleted",
            Event::RolledBack => c"maos.rolledback",
            Event::Resolved => c"maos.resolved",
            Event::Conflicted => c"maos.conflicted",
            Event::Locked => c"maos.locked",
            Event::Unlocked => c"maos.unlocked",
        }
    }
}

impl Change<'_> {
    /// What the change does to its `n`-th key, which holds this record before; `None` where it changes nothing that
    /// anybody asks for: an old version goes, a lease is renewed, another partition is charged.
    #[inline]
    pub fn event(&self, n: usize, before: Option<&Record>) -> Option<Event> {
        match self.kind {
            Kind::Set if before.is_some_and(|r| r.live().is_some()) => Some(Event::Updated),
            Kind::Set => Some(Event::Created),
            Kind::Delete => Some(Event::Deleted),
            Kind::Rollback => Some(Event::RolledBack),
            Kind::Merge => Some(Event::Resolved),
            Kind::Lock => self.lock_event(n, before),
            Kind::Trim | Kind::Move => None,
        }
    }

    fn lock_event(&self, n: usize, before: Option<&Record>) -> Option<Event> {
        let turn = self.writes[n].turn.as_deref()?;
        let guard = before.and_then(Record::guard);
        let held = |token| guard.is_some_and(|g| g.holders.iter().any(|h| h.token == token));
        match &turn.held {
            Some((_, holder)) if !held(holder.token) => Some(Event::Locked),
            _ if turn.gone.iter().any(|token| held(*token)) => Some(Event::Unlocked),
            _ => None,
        }
    }
}
