//! What reads and writes give back.

use std::time::{Duration, SystemTime};

use crate::wire;
use serde::de::DeserializeOwned;

use crate::error::shown;
use crate::Error;

/// A version: the instant of its write in microseconds of unix time, strictly increasing.
/// `Version::NONE` (0) stands for "no live value".
#[doc(inline)]
pub use maos_core::Stamp as Version;

/// A value of the store and everything known about it.
///
/// `T` is `Vec<u8>` for the bytes as they are, or a type of the caller's that
/// [`json`](StateValue::json) reads out of them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StateValue<T> {
    /// The value.
    pub value: T,
    /// Its version.
    pub version: Version,
    /// The first version since the key last had no live value.
    pub created: Version,
    /// The ACL user who wrote it, as the server knows it.
    pub author: String,
    /// The agent that the writer declared.
    pub agent: Option<String>,
    /// The metadata of this version: the text of a JSON object.
    pub metadata: Option<String>,
    /// How long the key lives from now on; `None`: it does not expire.
    pub expires_in: Option<Duration>,
    /// How many bytes the record holds, history and all.
    pub record_bytes: u64,
    /// How many versions are kept, this one among them.
    pub versions_kept: u64,
    /// The partition that the key is charged to.
    pub partition: Option<Vec<u8>>,
}

impl<T> StateValue<T> {
    /// When this version was written.
    pub fn written_at(&self) -> SystemTime {
        time_of(self.version)
    }

    /// The same with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> StateValue<U> {
        StateValue {
            value: change(self.value),
            version: self.version,
            created: self.created,
            author: self.author,
            agent: self.agent,
            metadata: self.metadata,
            expires_in: self.expires_in,
            record_bytes: self.record_bytes,
            versions_kept: self.versions_kept,
            partition: self.partition,
        }
    }
}

impl StateValue<Vec<u8>> {
    pub(crate) fn of(full: wire::Full<'_>) -> Self {
        StateValue {
            value: full.value.into_owned(),
            version: full.version,
            created: full.created,
            author: shown(&full.author),
            agent: full.agent.map(|a| shown(&a)),
            metadata: full.metadata.map(|m| shown(&m)),
            expires_in: u64::try_from(full.ttl_ms).ok().map(Duration::from_millis),
            record_bytes: full.bytes,
            versions_kept: full.versions,
            partition: full.partition.map(|p| p.into_owned()),
        }
    }

    /// The value as UTF-8 text, if it is.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }

    /// The value read as JSON.
    ///
    /// # Errors
    /// [`Error::Decode`] if it does not have the shape of `T`.
    pub fn json<T: DeserializeOwned>(self) -> Result<StateValue<T>, Error> {
        let value = from_json("the value", self.version, &self.value)?;
        Ok(self.map(|_| value))
    }
}

pub(crate) fn from_json<T: DeserializeOwned>(
    key: &str,
    version: Version,
    bytes: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Decode {
        key: key.to_owned(),
        version,
        source,
    })
}

/// When a version was written.
pub fn time_of(version: Version) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(version.0)
}

/// What came of a conditional write.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a conditional write may have lost"]
pub enum Outcome {
    /// It was applied: its version.
    Applied(Version),
    /// Another write came before it: nothing was changed.
    Lost(Current),
}

impl Outcome {
    /// The version, if it was applied.
    pub fn applied(&self) -> Option<Version> {
        match self {
            Outcome::Applied(version) => Some(*version),
            Outcome::Lost(_) => None,
        }
    }
}

/// What the winner of a race left: enough to try again without another read.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Current {
    /// The current version; [`Version::NONE`] if there is no live value.
    pub version: Version,
    /// The current value.
    pub value: Option<Vec<u8>>,
    /// The ACL user who wrote it.
    pub author: Option<String>,
    /// The agent who wrote it.
    pub agent: Option<String>,
}

impl Current {
    pub(crate) fn of(lost: wire::Lost<'_>) -> Current {
        Current {
            version: lost.version,
            value: lost.value.map(|v| v.into_owned()),
            author: lost.author.map(|a| shown(&a)),
            agent: lost.agent.map(|a| shown(&a)),
        }
    }
}

/// What came of a conditional write of several keys.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a conditional write may have lost"]
pub enum ManyOutcome {
    /// All were written, with this one version.
    Applied(Version),
    /// None was written: every key that another write came before at, with its current version.
    Lost(Vec<(Vec<u8>, Version)>),
}

/// One version in the history of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Revision {
    /// The version.
    pub version: Version,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// The ACL user who wrote it.
    pub author: String,
    /// The agent that the writer declared.
    pub agent: Option<String>,
    /// Its metadata: the text of a JSON object.
    pub metadata: Option<String>,
    /// The id of the request that wrote it.
    pub request_id: Option<String>,
    /// The length of its value in bytes.
    pub bytes: u64,
    /// Its value, if values were asked for and it is not a deletion.
    pub value: Option<Vec<u8>>,
}

impl Revision {
    pub(crate) fn of(entry: wire::Entry<'_>) -> Revision {
        Revision {
            version: entry.version,
            deleted: entry.deleted,
            author: shown(&entry.author),
            agent: entry.agent.map(|a| shown(&a)),
            metadata: entry.metadata.map(|m| shown(&m)),
            request_id: entry.reqid.map(|r| shown(&r)),
            bytes: entry.bytes,
            value: entry.value.flatten().map(|v| v.into_owned()),
        }
    }
}
