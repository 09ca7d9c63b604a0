//! Reading what happened to keys, from the change log of a node.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use maos_core::config::BLOCK_MAX_MS;
use maos_core::glob::Glob;
use maos_core::wire::watch::{EventReply, Kept, Mark, Watch};

use crate::{Client, Error, Version};

pub use maos_core::event::Event;

/// How far somebody has come in the change log of a node: whoever [goes on](WatchOptions::since) from here misses nothing.
///
/// Good at the node that gave it out and at its replicas, also when one of them takes over. To be kept as
/// text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor(pub(crate) Mark);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Cursor, Error> {
        let mark = Mark::parse(text.as_bytes());
        let bad = || Error::config("cursor", "a cursor is a position and a reign, like 105-99");
        mark.map(Cursor).ok_or_else(bad)
    }
}

/// What to read of the change log; the default is all that happens from now on, without waiting for it.
#[derive(Clone, Default, Debug)]
pub struct WatchOptions {
    since: Option<Cursor>,
    pub(crate) count: Option<u64>,
    wait: Option<Duration>,
    pub(crate) types: Option<u16>,
    pub(crate) values: bool,
    pub(crate) not_by: Option<String>,
}

impl WatchOptions {
    /// All that happens from now on.
    pub fn new() -> WatchOptions {
        WatchOptions::default()
    }

    /// What happened after this.
    pub fn since(mut self, cursor: Cursor) -> WatchOptions {
        self.since = Some(cursor);
        self
    }

    /// At most so many events (1 to 10,000; 1,000 without this), but for the rest of a commit.
    pub fn count(mut self, count: u64) -> WatchOptions {
        self.count = Some(count);
        self
    }

    /// Wait so long for something to happen, at most an hour.
    pub fn wait(mut self, wait: Duration) -> WatchOptions {
        self.wait = Some(wait);
        self
    }

    /// Only events of these types.
    pub fn types(mut self, types: &[Event]) -> WatchOptions {
        self.types = Some(types.iter().fold(0, |set, event| set | event.bit()));
        self
    }

    /// With the value that each event made, as long as it is in the key's history.
    pub fn values(mut self) -> WatchOptions {
        self.values = true;
        self
    }

    /// Without what this agent has written: one's own.
    pub fn not_by(mut self, agent: impl Into<String>) -> WatchOptions {
        self.not_by = Some(agent.into());
        self
    }
}

/// What was read of the change log.
#[derive(Clone, PartialEq, Debug)]
pub struct Changes {
    /// Where to go on.
    pub cursor: Cursor,
    /// What happened, oldest first; all events of a commit are in one answer. None: there were none for these patterns up
    /// to the cursor.
    pub events: Vec<KeyEvent>,
}

/// One event.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct KeyEvent {
    /// What happened.
    pub event: Event,
    /// To which key; `None` for [`Event::Flushed`]: to all of the database.
    pub key: Option<Vec<u8>>,
    /// The version that it made; of what makes none the number of the event.
    pub version: Version,
    /// The version before; `None`: there was none.
    pub previous: Option<Version>,
    /// The ACL user who did it, where that is known.
    pub author: Option<String>,
    /// The agent who did it.
    pub agent: Option<String>,
    /// With [`values`](WatchOptions::values) the value that it made.
    pub value: Option<Vec<u8>>,
    /// It made a value, which is not kept any more.
    pub is_gone: bool,
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl KeyEvent {
    pub(crate) fn of(reply: EventReply<'_>) -> KeyEvent {
        let is_gone = reply.value == Some(Kept::Gone);
        KeyEvent {
            event: reply.event,
            key: reply.key.map(|key| key.into_owned()),
            version: reply.version,
            previous: (reply.previous != Version::NONE).then_some(reply.previous),
            author: reply.author.map(|name| text(&name)),
            agent: reply.agent.map(|name| text(&name)),
            value: match reply.value {
                Some(Kept::Value(value)) => Some(value.into_owned()),
                _ => None,
            },
            is_gone,
        }
    }
}

impl Client {
    /// What happened to the keys that fit one of these patterns (`*`, `?`, `[a-z]`, `\`), in order and without a gap, from the
    /// change log of the server.
    ///
    /// Each node of a cluster has a log of its own, so this is for a client of one server: in a cluster make one for
    /// each master, [without the cluster](crate::Config::cluster).
    ///
    /// # Errors
    /// `COMPACTED` if the log does not reach back to the cursor any more, `DIVERGED` if what was seen then was lost with a
    /// node that failed: both say from where one can go on. [`Error::Config`] in a cluster; and as
    /// [`call`](Client::call).
    pub async fn changes(
        &self,
        patterns: &[impl AsRef<[u8]>],
        options: &WatchOptions,
    ) -> Result<Changes, Error> {
        if self.is_of_a_cluster() {
            let text =
                "each node of a cluster has a change log of its own; make a client for each master";
            return Err(Error::config("cluster", text));
        }
        let globs = patterns.iter().map(|p| Glob::new(p.as_ref()));
        let mut watch = Watch::new(globs.collect::<Result<_, _>>().map_err(Error::Refused)?);
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        watch.since = options.since.map(|cursor| cursor.0);
        watch.count = options.count;
        // To wait for no time at all is not to wait; the store takes that for as long as may be.
        let wait = options.wait.map(millis).filter(|ms| *ms > 0);
        watch.block_ms = wait.map(|ms| ms.min(BLOCK_MAX_MS.unsigned_abs()));
        watch.types = options.types;
        watch.values = options.values;
        watch.not_by = options.not_by.as_deref().map(|a| a.as_bytes().into());
        let reply = match wait {
            None => self.call(&watch).await?,
            // Others would wait behind it.
            Some(_) => {
                let lane = self.lane()?;
                let reply = lane.call(&watch).await;
                self.give_lane_back(lane);
                reply?
            }
        };
        Ok(Changes {
            cursor: Cursor(reply.cursor),
            events: reply.events.into_iter().map(KeyEvent::of).collect(),
        })
    }
}
