//! What may be said beside a request, and which version of the past is meant.

use std::time::{Duration, SystemTime};

use crate::wire;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;

use crate::{Current, Error, Outcome, Version};

/// Who writes, why, and under which request id: what every write may say.
#[derive(Clone, Default, Debug)]
pub(crate) struct Origin {
    by: Option<String>,
    meta: Option<String>,
    request: RequestId,
    tokens: Vec<Version>,
    fence: Option<(String, u64)>,
    partition: Option<Vec<u8>>,
}

#[derive(Clone, Default, Debug)]
enum RequestId {
    #[default]
    Fresh,
    Given(String),
    Off,
}

/// An [`Origin`] with its request id settled: it stays the same when the request is repeated.
pub(crate) struct Settled {
    by: Option<String>,
    meta: Option<String>,
    request: Option<String>,
    tokens: Vec<Version>,
    fence: Option<(String, u64)>,
    partition: Option<Vec<u8>>,
}

impl Origin {
    pub(crate) fn settle(self, default_agent: Option<&str>) -> Settled {
        Settled {
            by: self.by.or_else(|| default_agent.map(str::to_owned)),
            meta: self.meta,
            request: match self.request {
                RequestId::Fresh => Some(fresh_request_id()),
                RequestId::Given(id) => Some(id),
                RequestId::Off => None,
            },
            tokens: self.tokens,
            fence: self.fence,
            partition: self.partition,
        }
    }
}

impl Settled {
    pub(crate) fn wire(&self) -> wire::WriteOptions<'_> {
        wire::WriteOptions {
            by: self.by.as_deref().map(str::as_bytes),
            meta: self.meta.as_deref().map(str::as_bytes),
            reqid: self.request.as_deref().map(str::as_bytes),
            tokens: self.tokens.iter().copied().collect(),
            fence: self
                .fence
                .as_ref()
                .map(|(name, token)| (name.as_bytes(), *token)),
            partition: self.partition.as_deref(),
            ..wire::WriteOptions::default()
        }
    }
}

/// A random (version 4) UUID in 22 characters.
fn fresh_request_id() -> String {
    URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes())
}

macro_rules! origin_methods {
    () => {
        /// The agent that writes, kept with the version; 1 to 256 bytes.
        pub fn by(mut self, agent: impl Into<String>) -> Self {
            self.origin.by = Some(agent.into());
            self
        }

        /// Metadata kept with the version: a JSON object of at most 64 KiB.
        pub fn meta(self, object: impl Into<serde_json::Value>) -> Self {
            self.meta_text(object.into().to_string())
        }

        /// Metadata kept with the version: the text of a JSON object, kept as it is.
        pub fn meta_text(mut self, object: impl Into<String>) -> Self {
            self.origin.meta = Some(object.into());
            self
        }

        /// The id of this request, in the place of a fresh random one; 1 to 64 bytes. Writing again
        /// under an id that one of the key's last 16 versions carries changes nothing and gives
        /// that version.
        pub fn request_id(mut self, id: impl Into<String>) -> Self {
            self.origin.request = RequestId::Given(id.into());
            self
        }

        /// The token of the lock under which is written: without it a locked key refuses the write, and
        /// the store refuses one that has been lost. For a write of several keys one for each lock.
        pub fn token(mut self, token: Version) -> Self {
            self.origin.tokens.push(token);
            self
        }

        /// A token of a lock that lives elsewhere, and that lock's name: the key keeps the highest it has
        /// seen for each name and refuses a write with a lower one.
        pub fn fence(mut self, name: impl Into<String>, token: u64) -> Self {
            self.origin.fence = Some((name.into(), token));
            self
        }

        /// The partition that the key is charged to from now on, whatever the prefixes say. A partition that the store
        /// does not know is refused (`NOTFOUND`).
        pub fn partition(mut self, name: impl AsRef<[u8]>) -> Self {
            self.origin.partition = Some(name.as_ref().to_vec());
            self
        }

        /// Sends no request id. Such a write is not repeated once it may have reached the server.
        pub fn without_request_id(mut self) -> Self {
            self.origin.request = RequestId::Off;
            self
        }
    };
}

/// Options of a write of one key: who, why, until when, and over which version.
///
/// ```
/// use std::time::Duration;
/// use maos_client::SetOptions;
///
/// let options = SetOptions::new()
///     .by("planner")
///     .meta(serde_json::json!({"reason": "split the task"}))
///     .ttl(Duration::from_secs(3600));
/// ```
///
/// With [`if_version`](SetOptions::if_version) the write becomes conditional, and its method gives
/// an [`Outcome`] where it otherwise gives a [`Version`].
#[derive(Clone, Default, Debug)]
pub struct SetOptions<M: Mode = Always> {
    origin: Origin,
    expire: wire::Expire,
    mode: M,
}

impl SetOptions {
    /// No option.
    pub fn new() -> SetOptions {
        SetOptions::default()
    }

    /// Writes only over this version; [`Version::NONE`]: only if there is no live value.
    pub fn if_version(self, version: Version) -> SetOptions<IfVersion> {
        SetOptions {
            origin: self.origin,
            expire: self.expire,
            mode: IfVersion(version),
        }
    }

    /// Writes only if there is no live value.
    pub fn if_absent(self) -> SetOptions<IfVersion> {
        self.if_version(Version::NONE)
    }
}

impl<M: Mode> SetOptions<M> {
    origin_methods!();

    /// Lets the key expire after this time, at least a millisecond.
    pub fn ttl(mut self, after: Duration) -> Self {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.expire = wire::Expire::In(ms.max(1));
        self
    }

    /// Lets the key expire at this instant.
    pub fn expires_at(mut self, at: SystemTime) -> Self {
        self.expire = wire::Expire::At(unix_millis(at).max(1));
        self
    }

    /// Keeps the expiry the key has. Without any of the three, `set` and `cas` clear it.
    pub fn keep_ttl(mut self) -> Self {
        self.expire = wire::Expire::Keep;
        self
    }

    pub(crate) fn has_token(&self) -> bool {
        !self.origin.tokens.is_empty()
    }

    pub(crate) fn expire(&self) -> wire::Expire {
        self.expire
    }

    /// The same for one attempt of an update: its own request id, and the expiry stays.
    pub(crate) fn for_update(mut self) -> Self {
        if self.expire == wire::Expire::Unsaid {
            self.expire = wire::Expire::Keep;
        }
        if let RequestId::Given(_) = self.origin.request {
            self.origin.request = RequestId::Fresh;
        }
        self
    }

    pub(crate) fn settle(self, default_agent: Option<&str>) -> (Settled, wire::Expire, M) {
        (self.origin.settle(default_agent), self.expire, self.mode)
    }
}

/// Options of a write of several keys: who and why.
#[derive(Clone, Default, Debug)]
pub struct ManyOptions {
    origin: Origin,
}

impl ManyOptions {
    /// No option.
    pub fn new() -> ManyOptions {
        ManyOptions::default()
    }

    origin_methods!();

    /// Without a fresh one; one that the caller gave stays.
    pub(crate) fn without_fresh_request_id(self) -> Self {
        match self.origin.request {
            RequestId::Given(_) => self,
            _ => self.without_request_id(),
        }
    }

    pub(crate) fn settle(self, default_agent: Option<&str>) -> Settled {
        self.origin.settle(default_agent)
    }
}

/// Whether a write is conditional, and so what it gives back.
pub trait Mode: sealed::Sealed {
    /// [`Version`] for an unconditional write, [`Outcome`] for a conditional one.
    type Reply;
}

/// An unconditional write: gives a [`Version`].
#[derive(Clone, Copy, Default, Debug)]
pub struct Always;

/// A write over one version only: gives an [`Outcome`].
#[derive(Clone, Copy, Debug)]
pub struct IfVersion(pub(crate) Version);

impl Mode for Always {
    type Reply = Version;
}

impl Mode for IfVersion {
    type Reply = Outcome;
}

pub(crate) mod sealed {
    use super::*;

    pub trait Sealed {
        fn condition(&self) -> Option<Version>;
        fn read(reply: wire::WriteReply<'_>) -> Result<<Self as Mode>::Reply, Error>
        where
            Self: Mode;
    }

    impl Sealed for Always {
        fn condition(&self) -> Option<Version> {
            None
        }

        fn read(reply: wire::WriteReply<'_>) -> Result<Version, Error> {
            match reply {
                wire::WriteReply::Version(version) => Ok(version),
                _ => Err(Error::Protocol("a version was expected".to_owned())),
            }
        }
    }

    impl Sealed for IfVersion {
        fn condition(&self) -> Option<Version> {
            Some(self.0)
        }

        fn read(reply: wire::WriteReply<'_>) -> Result<Outcome, Error> {
            match reply {
                wire::WriteReply::Applied(version) => Ok(Outcome::Applied(version)),
                wire::WriteReply::Lost(lost) => Ok(Outcome::Lost(Current::of(lost))),
                wire::WriteReply::Version(_) => {
                    Err(Error::Protocol("an outcome was expected".to_owned()))
                }
            }
        }
    }
}

/// One version of a key, by its number or by its distance from the current one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// This version.
    Version(Version),
    /// The one so many before the current one; at least 1.
    Back(u32),
}

impl Which {
    pub(crate) fn number(self) -> i64 {
        match self {
            Which::Version(version) => version.as_i64(),
            Which::Back(n) => -i64::from(n),
        }
    }
}

impl From<Version> for Which {
    fn from(version: Version) -> Which {
        Which::Version(version)
    }
}

/// A state of the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Past {
    /// The value of one version.
    Version(Which),
    /// The value that was current at this instant, to the millisecond: all writes of that
    /// millisecond count.
    At(SystemTime),
}

impl Past {
    /// The state so many versions before the current one; at least 1.
    pub fn back(n: u32) -> Past {
        Past::Version(Which::Back(n))
    }

    pub(crate) fn wire(self) -> wire::Select {
        match self {
            Past::Version(which) => wire::Select::Version(which.number()),
            Past::At(time) => wire::Select::At(unix_millis(time)),
        }
    }
}

impl From<Version> for Past {
    fn from(version: Version) -> Past {
        Past::Version(version.into())
    }
}

impl From<Which> for Past {
    fn from(which: Which) -> Past {
        Past::Version(which)
    }
}

impl From<SystemTime> for Past {
    fn from(time: SystemTime) -> Past {
        Past::At(time)
    }
}

/// Which part of a history is listed: all of it, oldest first, without the values, unless said
/// otherwise.
#[derive(Clone, Default, Debug)]
pub struct HistoryOptions {
    pub(crate) from: Option<Which>,
    pub(crate) to: Option<Which>,
    pub(crate) count: Option<u64>,
    pub(crate) newest_first: bool,
    pub(crate) values: bool,
}

impl HistoryOptions {
    /// All of it.
    pub fn new() -> HistoryOptions {
        HistoryOptions::default()
    }

    /// From this version on.
    pub fn from(mut self, which: impl Into<Which>) -> HistoryOptions {
        self.from = Some(which.into());
        self
    }

    /// Up to this version.
    pub fn to(mut self, which: impl Into<Which>) -> HistoryOptions {
        self.to = Some(which.into());
        self
    }

    /// At most so many; at least 1.
    pub fn count(mut self, count: u64) -> HistoryOptions {
        self.count = Some(count);
        self
    }

    /// The newest first.
    pub fn newest_first(mut self) -> HistoryOptions {
        self.newest_first = true;
        self
    }

    /// With the values, of which one answer carries at most 64 MiB.
    pub fn values(mut self) -> HistoryOptions {
        self.values = true;
        self
    }
}

/// Milliseconds of unix time; 0 for what lies before.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_has_its_own_request_id_unless_told_otherwise() {
        let id = |options: SetOptions| options.settle(None).0.request;
        let fresh = id(SetOptions::new()).unwrap();
        assert_eq!(fresh.len(), 22);
        assert_ne!(Some(fresh), id(SetOptions::new()));
        assert_eq!(
            id(SetOptions::new().request_id("mine")).as_deref(),
            Some("mine")
        );
        assert_eq!(id(SetOptions::new().without_request_id()), None);
    }

    #[test]
    fn the_agent_named_by_the_write_goes_before_that_of_the_settings() {
        let by = |options: SetOptions| options.settle(Some("settings")).0.by;
        assert_eq!(by(SetOptions::new()).as_deref(), Some("settings"));
        assert_eq!(by(SetOptions::new().by("write")).as_deref(), Some("write"));
    }
}
