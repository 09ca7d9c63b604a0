//! The backups that a node makes by itself: which one is next, and which of them go. Decided anew each time from what is
//! in the directory, so nothing has to be remembered over a restart.
//!
//! ```text
//!   every third is full, two stay     F1 <- i2 <- i3    F4 <- i5 <- i6    F7
//!   i6 is there                       F1 <- i2 <- i3    F4 <- i5 <- i6           F1 to i3 go; F4 stays, for i5 needs it
//!   F7 is there                                         F4 <- i5 <- i6    F7     i6 stays, and with it what it needs
//! ```
//!
//! - A node's scheduled backups are those that are called [`NAME`], that it made itself, and that hold all keys. No other
//!   is ever removed, and none that another one goes on from which stays, whosever that is.
//! - Which is the newest is told by instants. One that lies ahead of the node's clock, which was put back then, is neither
//!   gone on from, for instants have to rise from link to link, nor counted, nor removed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::Schedule;
use crate::wire::backup::{BackupId, BackupReply};
use crate::Stamp;

/// What scheduled backups are called.
pub const NAME: &str = "scheduled";

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// How many microseconds there are until the next one is due.
    pub wait_us: u64,
    /// What the next one goes on from; `None`: it is full.
    pub since: Option<BackupId>,
    /// Those that are not kept any longer, the newest first: if they are removed in this order, no backup is ever
    /// there without what it goes on from.
    pub surplus: Vec<BackupId>,
}

/// Whether this is a scheduled backup of the node.
fn is_scheduled(backup: &BackupReply<'_>, node: &[u8]) -> bool {
    *backup.name == *NAME.as_bytes() && *backup.made_on == *node && backup.prefixes.is_empty()
}

/// How many links a backup has, itself among them; `None` if one of them is not there.
fn links(of: BackupId, all: &BTreeMap<BackupId, &BackupReply<'_>>) -> Option<usize> {
    let mut at = all.get(&of)?;
    let mut count = 1;
    while let Some(parent) = at.parent {
        // Instants fall from link to link: so this has an end.
        let link = all.get(&parent).filter(|p| p.instant < at.instant)?;
        (at, count) = (link, count + 1);
    }
    Some(count)
}

/// What is to be done now, where these backups are all that there are. `now` is a stamp of the node's clock.
pub fn plan(now: Stamp, schedule: &Schedule, node: &[u8], all: &[BackupReply<'_>]) -> Plan {
    // The file of a backup may be there twice, under two names.
    let by_id: BTreeMap<BackupId, &BackupReply<'_>> = {
        let mut sorted: Vec<_> = all.iter().collect();
        sorted.sort_by_key(|b| (b.instant, b.parent, &b.name, &b.made_on, &b.prefixes));
        sorted.into_iter().map(|b| (b.id, b)).collect()
    };
    let is_own = |b: &&&BackupReply<'_>| is_scheduled(b, node) && b.instant <= now;
    let mut own: Vec<_> = by_id.values().filter(is_own).collect();
    own.sort_by_key(|b| Reverse((b.instant, b.id)));
    let Some(last) = own.first() else {
        return Plan::default();
    };
    let is_short = |links: &usize| *links < schedule.full_every;
    let since = links(last.id, &by_id).filter(is_short).map(|_| last.id);
    let age = |b: &BackupReply<'_>| now.0.saturating_sub(b.instant.0);
    let goes = |rank: usize, b: &BackupReply<'_>| {
        let is_bounded = schedule.keep > 0 || schedule.keep_us > 0;
        let is_beyond = schedule.keep == 0 || rank >= schedule.keep;
        let is_old = schedule.keep_us == 0 || age(b) > schedule.keep_us;
        rank > 0 && is_bounded && is_beyond && is_old
    };
    let may_go = own.iter().enumerate().filter(|(rank, b)| goes(*rank, b));
    let may_go: BTreeSet<BackupId> = may_go.map(|(_, b)| b.id).collect();
    let needed = needed(all, |b| {
        !may_go.contains(&b.id) || !is_scheduled(b, node) || b.instant > now
    });
    let surplus = own.iter().map(|b| b.id);
    Plan {
        wait_us: schedule.every_us.saturating_sub(age(last)),
        since,
        surplus: surplus
            .filter(|id| may_go.contains(id) && !needed.contains(id))
            .collect(),
    }
}

/// The backups that stay, and all that they go on from, however far back.
fn needed(all: &[BackupReply<'_>], stays: impl Fn(&BackupReply<'_>) -> bool) -> BTreeSet<BackupId> {
    let mut parents: BTreeMap<BackupId, Vec<BackupId>> = BTreeMap::new();
    for backup in all {
        parents.entry(backup.id).or_default().extend(backup.parent);
    }
    let mut found = BTreeSet::new();
    let mut next: Vec<BackupId> = all.iter().filter(|b| stays(b)).map(|b| b.id).collect();
    while let Some(id) = next.pop() {
        if found.insert(id) {
            next.extend(parents.get(&id).into_iter().flatten());
        }
    }
    found
}

/// What a text says without the ids in it: the same cause may be met by one backup after the other.
pub fn cause(text: &str) -> String {
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    let (mut out, mut rest) = (String::new(), text);
    while let Some(start) = rest.find(is_digit) {
        let digits = rest[start..].find(|c| !is_digit(c));
        let end = digits.map_or(rest.len(), |len| start + len);
        match end - start {
            32 => out.push_str(&rest[..start]),
            _ => out.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}
