//! What those who listen are told: one word for what a change did to a key.

use std::ffi::CStr;

#[cfg(feature = "engine")]
use crate::change::{Change, Kind};
#[cfg(feature = "engine")]
use crate::record::Record;

macro_rules! events {
    ($($name:ident $word:literal $meaning:literal)*) => {
        /// What happened to a key.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Event { $(#[doc = $meaning] $name),* }

        impl Event {
            /// Every event there is.
            pub const ALL: &'static [Event] = &[$(Event::$name),*];

            /// Its word: the `type` of what a watcher reads.
            pub const fn word(self) -> &'static str {
                match self { $(Event::$name => $word),* }
            }

            /// What it means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Event::$name => $meaning),* }
            }

            /// The name of its keyspace notification.
            pub const fn notification(self) -> &'static CStr {
                match self {
                    $(Event::$name => {
                        match CStr::from_bytes_with_nul(concat!("maos.", $word, "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => unreachable!(),
                        }
                    })*
                }
            }
        }
    };
}

events! {
    Created "created" "it has a value, and had none"
    Updated "updated" "it has another value"
    Deleted "deleted" "it has no value any more, by MAOS.DEL or by a command of the server's own"
    RolledBack "rolledback" "it has an old value again"
    Resolved "resolved" "a merge met another write, and both are settled"
    Conflicted "conflicted" "a merge met another write, and was not applied: nothing changed"
    Locked "locked" "somebody holds it who did not"
    Unlocked "unlocked" "somebody holds it no longer"
    Expired "expired" "its time was over"
    Evicted "evicted" "it made room for others"
    Restored "restored" "it came whole: by RESTORE, COPY, RENAME or MOVE, or with its slot"
    Left "left" "its slot is on its way to another node, or there, and the key has gone from here"
    Flushed "flushed" "all keys of the database went, or came from elsewhere, in one step; there is no key"
}

impl Event {
    /// This event as one bit of a set.
    pub const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// The event of a word, in any case.
    pub fn from_word(word: &[u8]) -> Option<Event> {
        let is = |event: &&Event| event.word().as_bytes().eq_ignore_ascii_case(word);
        Event::ALL.iter().find(is).copied()
    }
}

#[cfg(feature = "engine")]
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
