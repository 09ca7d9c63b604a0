//! The checker for long histories.

use std::collections::{BTreeSet, HashMap};

use super::{Did, Op, NEVER};

/// What is wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// Two writes were given the same version.
    Reused,
    /// A version or value was seen that nobody wrote, or with another value than it was written with.
    NeverWritten,
    /// A conditional write took place over another version than the one it named.
    LostUpdate,
    /// A race was lost against nobody.
    LostToNobody,
    /// A value was deleted that was not there.
    DeletedNothing,
    /// A write that was sent after another had returned has the smaller version.
    OutOfOrder,
    /// A version was seen before it can have been current, or after another one must have been.
    Stale,
}

/// What a history holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Writes that took place.
    pub writes: usize,
    /// Of these: conditional ones.
    pub conditional: usize,
    /// Of these: deletions.
    pub deletions: usize,
    /// Lost races.
    pub lost: usize,
    /// Reads, lost races among them.
    pub reads: usize,
    /// Writes whose reply never came.
    pub unknown: usize,
    /// Of these: seen by somebody, so they took place.
    pub unknown_seen: usize,
}

/// A write in the order of versions.
#[derive(Clone, Copy)]
struct Write {
    version: i64,
    value: Option<u64>,
    over: Option<i64>,
    call: u64,
    ret: u64,
}

/// Checks a history of one key that had no value at its start.
///
/// # Errors
/// What is wrong first, and where.
pub fn check(ops: &[Op]) -> Result<Figures, (Wrong, String)> {
    let mut figures = Figures::default();
    let mut writes = vec![];
    let mut by_value = HashMap::new();
    let mut maybes = HashMap::new();
    let (mut maybe_gone, mut maybe_set) = (vec![], vec![]);
    for op in ops {
        match op.did {
            Did::Wrote {
                version,
                value,
                over,
            } => {
                figures.conditional += usize::from(over.is_some());
                figures.deletions += usize::from(value.is_none());
                if let Some(value) = value {
                    by_value.insert(value, version);
                }
                writes.push(Write {
                    version,
                    value,
                    over,
                    call: op.call,
                    ret: op.ret,
                });
            }
            Did::Maybe { value: None, .. } => {
                figures.unknown += 1;
                maybe_gone.push(op.call);
            }
            Did::Maybe {
                value: Some(value),
                over,
            } => {
                figures.unknown += 1;
                maybes.insert(value, (op.call, over));
            }
            Did::Saw { not, .. } => {
                figures.reads += 1;
                figures.lost += usize::from(not.is_some());
            }
        }
    }
    // A write without a reply that somebody saw took place, under the version that was seen.
    for op in ops {
        let Did::Saw {
            what: Some((version, value)),
            ..
        } = op.did
        else {
            continue;
        };
        if let Some((call, over)) = maybes.remove(&value) {
            figures.unknown_seen += 1;
            by_value.insert(value, version);
            writes.push(Write {
                version,
                value: Some(value),
                over,
                call,
                ret: NEVER,
            });
        }
        if by_value.get(&value) != Some(&version) {
            return Err((Wrong::NeverWritten, format!("{op:?}")));
        }
    }
    maybe_set.extend(maybes.values().map(|(call, _)| *call));
    maybe_set.sort_unstable();
    maybe_gone.sort_unstable();
    writes.sort_unstable_by_key(|w| w.version);
    figures.writes = writes.len();
    if let Some(pair) = writes.windows(2).find(|w| w[0].version == w[1].version) {
        return Err((Wrong::Reused, format!("version {}", pair[0].version)));
    }
    let order = Order::new(&writes, ops)?;
    order.follow(&maybe_gone, &maybe_set)?;
    Ok(figures)
}

/// Checks what holds even where acknowledged writes may be lost, as in a failover: no version has two
/// contents, no content two versions, and versions rise with time.
///
/// # Errors
/// What is wrong first, and where.
pub fn check_versions(ops: &[Op]) -> Result<(), (Wrong, String)> {
    let (mut contents, mut versions) = (HashMap::new(), HashMap::new());
    let mut writes = vec![];
    let mut given = BTreeSet::new();
    for op in ops {
        let (version, value) = match op.did {
            Did::Wrote { version, value, .. } => {
                if !given.insert(version) {
                    return Err((Wrong::Reused, format!("{op:?}")));
                }
                writes.push((version, op.call, op.ret));
                (version, value)
            }
            Did::Saw {
                what: Some((version, value)),
                ..
            } => (version, Some(value)),
            _ => continue,
        };
        let same_content = *contents.entry(version).or_insert(value) == value;
        let same_version =
            value.is_none_or(|value| *versions.entry(value).or_insert(version) == version);
        if !same_content || !same_version {
            return Err((Wrong::NeverWritten, format!("{op:?}")));
        }
    }
    writes.sort_unstable();
    let mut sent = 0;
    for (version, call, ret) in writes {
        if ret < sent {
            return Err((Wrong::OutOfOrder, format!("version {version}")));
        }
        sent = sent.max(call);
    }
    Ok(())
}

/// How many of these were sent by then.
fn sent_by(calls: &[u64], time: u64) -> usize {
    calls.partition_point(|call| *call <= time)
}

/// The writes in their order, and the times that follow from it. Period 0 is before the first write, period
/// `n` after the `n`-th.
struct Order<'a> {
    writes: &'a [Write],
    /// A period cannot have begun before this.
    begins: Vec<u64>,
    /// A period must be over after this.
    ends: Vec<u64>,
    /// Reads that found no value.
    absent: Vec<Op>,
}

impl<'a> Order<'a> {
    fn new(writes: &'a [Write], ops: &[Op]) -> Result<Order<'a>, (Wrong, String)> {
        let n = writes.len();
        // The latest call and the earliest return among the reads of each period.
        let mut last_call = vec![0; n + 1];
        let mut first_ret = vec![NEVER; n + 1];
        let mut placed = vec![];
        let mut absent = vec![];
        for op in ops {
            match op.did {
                Did::Saw {
                    what: Some((version, _)),
                    not,
                } => {
                    if not == Some(version) {
                        return Err((Wrong::LostToNobody, format!("{op:?}")));
                    }
                    let p = writes.partition_point(|w| w.version < version) + 1;
                    last_call[p] = last_call[p].max(op.call);
                    first_ret[p] = first_ret[p].min(op.ret);
                    placed.push((p, op));
                }
                Did::Saw { what: None, not } => {
                    if not == Some(0) {
                        return Err((Wrong::LostToNobody, format!("{op:?}")));
                    }
                    absent.push(*op);
                }
                _ => {}
            }
        }
        let mut begins = vec![0; n + 1];
        for p in 1..=n {
            let w = &writes[p - 1];
            let before = begins[p - 1].max(last_call[p - 1]);
            if w.ret < before {
                let what = format!(
                    "version {} had returned by {}, something before it was sent at {before}",
                    w.version, w.ret
                );
                // Either an earlier version was written later, or it was still seen.
                let write = w.ret < begins[p - 1];
                let wrong = if write {
                    Wrong::OutOfOrder
                } else {
                    Wrong::Stale
                };
                return Err((wrong, what));
            }
            begins[p] = before.max(w.call);
        }
        let mut ends = vec![NEVER; n + 1];
        for p in (0..n).rev() {
            ends[p] = ends[p + 1].min(first_ret[p + 1]).min(writes[p].ret);
        }
        for (p, op) in placed {
            if op.ret < begins[p] || op.call > ends[p] {
                return Err((Wrong::Stale, format!("{op:?}")));
            }
        }
        absent.sort_unstable_by_key(|op| op.call);
        Ok(Order {
            writes,
            begins,
            ends,
            absent,
        })
    }

    /// Whether there is a live value in a period.
    fn live(&self, p: usize) -> bool {
        p > 0 && self.writes[p - 1].value.is_some()
    }

    /// Every conditional write follows what it names, and every read of nothing has a time at which there
    /// was nothing.
    fn follow(&self, maybe_gone: &[u64], maybe_set: &[u64]) -> Result<(), (Wrong, String)> {
        // Live periods in which a deletion without a reply must have come, and the other way round.
        let (mut gone, mut set) = (0, 0);
        for (p, w) in self.writes.iter().enumerate() {
            let before = if self.live(p) {
                self.writes[p - 1].version
            } else {
                0
            };
            let needs_gone = w.over == Some(0) && before != 0;
            if w.over.is_some_and(|over| over != before) && !needs_gone {
                let what = format!(
                    "version {} over {:?}, where {before} was",
                    w.version, w.over
                );
                return Err((Wrong::LostUpdate, what));
            }
            if needs_gone {
                gone += 1;
                if gone > sent_by(maybe_gone, w.ret) {
                    let what = format!("version {} over nothing, where {before} was", w.version);
                    return Err((Wrong::LostUpdate, what));
                }
            }
            if w.value.is_none() && before == 0 {
                set += 1;
                if set > sent_by(maybe_set, w.ret) {
                    return Err((Wrong::DeletedNothing, format!("version {}", w.version)));
                }
            }
        }
        // In the order in which they were sent, each in the first period that is possible for it and not
        // before that of a read that had returned.
        let mut returned: BTreeSet<(u64, usize)> = BTreeSet::new();
        let mut not_before = 0;
        let empty: Vec<usize> = (0..=self.writes.len()).filter(|p| !self.live(*p)).collect();
        for op in &self.absent {
            while let Some(&(ret, p)) = returned.first() {
                if ret >= op.call {
                    break;
                }
                not_before = not_before.max(p);
                returned.pop_first();
            }
            let low = self
                .ends
                .partition_point(|end| *end < op.call)
                .max(not_before);
            let high = self.begins.partition_point(|begin| *begin <= op.ret);
            let at = empty.partition_point(|p| *p < low);
            // A deletion without a reply may have come in any period.
            let p = match empty.get(at) {
                _ if low < high && sent_by(maybe_gone, op.ret) > 0 => low,
                Some(p) if *p < high => *p,
                _ => return Err((Wrong::Stale, format!("{op:?}"))),
            };
            returned.insert((op.ret, p));
        }
        Ok(())
    }
}
