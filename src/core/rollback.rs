//! What a roll-back of a prefix to an instant makes of each key.
//!
//! By example, of a key whose first versions may have been trimmed away (`v3` is the version with stamp 3, `x4` a
//! tombstone, `floor` the newest that was trimmed):
//!
//! ```text
//! v3 x4 v5            as of 2: no value, so x6   as of 3: v6 with the value of v3   as of 5: the same
//! floor 2, v3 x4 v5   as of 2: beyond            as of 4: no value, so x6
//! floor 4, v5         as of 3: beyond            as of 4: no value, so x6, for a life began with v5
//! ```
//!
//! What is written is decided by MAOS.ROLLBACK and MAOS.DEL, and whatever refuses those refuses it here.

use crate::record::Record;
use crate::state::{end_of, place_as_of};
use crate::wire::state::{Del, Rollback, Select, WriteOptions};
use crate::Stamp;

/// What is to become of one key.
#[derive(Clone, PartialEq, Debug)]
pub enum Turn<'a> {
    /// It holds what it held then: nothing.
    Same,
    /// Its present life began after the roll-back was begun: nothing.
    Newer,
    /// What it held then is not known any more: nothing.
    Beyond,
    /// It gets the value that it had then.
    Back(Rollback<'a>),
    /// It had none then, and is deleted.
    Gone(Del<'a>),
}

/// What is to become of a key that holds this record, by a roll-back to the end of the millisecond `at_ms` of unix time
/// which was begun when `began` was the last stamp there was; `by` is the agent that the new version names.
pub fn turn<'a>(
    key: &'a [u8],
    record: &Record,
    at_ms: u64,
    began: Stamp,
    by: Option<&'a [u8]>,
) -> Turn<'a> {
    let now = record.live();
    // Also one whose versions lie ahead of the clock: it is left alone, for there is no telling when it was made.
    if now.is_some() && record.created() > began {
        return Turn::Newer;
    }
    let place = place_as_of(record, at_ms);
    if place.is_none() && !began_with_the_oldest(record, at_ms) {
        return Turn::Beyond;
    }
    let then = place.and_then(|place| record.nth(place));
    let options = WriteOptions {
        by,
        ..WriteOptions::default()
    };
    match (then.filter(|v| !v.is_tombstone()), now) {
        (None, None) => Turn::Same,
        (None, Some(_)) => Turn::Gone(Del { key, options }),
        (Some(then), Some(now))
            if then.value_len() == now.value_len() && then.value() == now.value() =>
        {
            Turn::Same
        }
        (Some(_), _) => Turn::Back(Rollback {
            key,
            select: Select::At(at_ms),
            options,
        }),
    }
}

/// Whether it is certain that a key, of which no version is kept from that millisecond, had no value then.
fn began_with_the_oldest(record: &Record, at_ms: u64) -> bool {
    let Some(oldest) = record.nth(0) else {
        return true;
    };
    // A deletion is of a value, which has been trimmed away with all that said so.
    if oldest.is_tombstone() {
        return false;
    }
    let floor = record.floor();
    // The version before the first one of a life is a tombstone, and nothing was written between the two.
    let was_deleted = floor < end_of(at_ms) && record.created() == oldest.stamp();
    floor == Stamp::NONE || was_deleted
}
