//! Writes that began with an older version, and what becomes of them.

use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::error::shown;
use crate::options::unix_millis;
use crate::value::from_json;
use crate::{
    wire, Always, Client, Code, Current, Error, Outcome, Past, SetOptions, Version, Which,
};

/// What to do if another write came since the base version.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Strategy {
    /// The present value stands, and the reply says what it is.
    #[default]
    Reject,
    /// The value with the later time stands (last write wins); the other one is in the history under it.
    Lww,
    /// The present value stands (first write wins), and nothing is written.
    Fww,
    /// A three-way merge of JSON: changes of different parts are both kept.
    Merge,
    /// The Redis Function of this name decides; it must have the flag `no-writes`.
    Function(String),
}

impl Strategy {
    pub(crate) fn wire(&self) -> wire::Strategy<'_> {
        match self {
            Strategy::Reject => wire::Strategy::Reject,
            Strategy::Lww => wire::Strategy::Lww,
            Strategy::Fww => wire::Strategy::Fww,
            Strategy::Merge => wire::Strategy::Merge,
            Strategy::Function(name) => wire::Strategy::Function(name.as_bytes()),
        }
    }
}

/// How a merge goes: by which strategy, as of when, by whom.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    strategy: Option<Strategy>,
    at: Option<SystemTime>,
    attempts: u32,
    write: SetOptions<Always>,
}

/// How often a resolver is asked, unless it is said.
const ATTEMPTS: u32 = 10;

impl Default for MergeOptions {
    fn default() -> MergeOptions {
        MergeOptions {
            strategy: None,
            at: None,
            attempts: ATTEMPTS,
            write: SetOptions::new(),
        }
    }
}

impl MergeOptions {
    /// By this strategy, now.
    pub fn new(strategy: Strategy) -> MergeOptions {
        MergeOptions {
            strategy: Some(strategy),
            ..MergeOptions::default()
        }
    }

    /// By the [strategy of the key's partition](crate::PartitionOptions::on_conflict); [`Strategy::Reject`] where it
    /// has none.
    pub fn as_partitioned() -> MergeOptions {
        MergeOptions::default()
    }

    /// When the value was made, which [`Strategy::Lww`] compares. It may not lie further ahead of the server's
    /// clock than `maos.clock-max-drift-ms`.
    pub fn at(mut self, made: SystemTime) -> MergeOptions {
        self.at = Some(made);
        self
    }

    /// How often a [resolver](Client::merge_or) is asked before [`Error::Contended`]; at least 1, and 10 unless
    /// it is said.
    pub fn attempts(mut self, attempts: u32) -> MergeOptions {
        self.attempts = attempts.max(1);
        self
    }

    /// The options of the write: agent, metadata, time to live, token. The expiry of the key stays as it is unless
    /// said otherwise.
    pub fn write(mut self, options: SetOptions<Always>) -> MergeOptions {
        self.write = options;
        self
    }

    /// The agent that writes.
    pub fn by(mut self, agent: impl Into<String>) -> MergeOptions {
        self.write = self.write.by(agent);
        self
    }

    /// The partition that the key is charged to from now on.
    pub fn partition(mut self, name: impl AsRef<[u8]>) -> MergeOptions {
        self.write = self.write.partition(name);
        self
    }
}

/// What came of a merge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Merged {
    /// It was decided: the version now, and how.
    Applied(Version, How),
    /// It was not, and nothing was written.
    Conflict(Conflict),
}

/// How a merge was decided.
#[doc(inline)]
pub use maos_core::wire::update::How;

/// What a merge met that it could not decide.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Conflict {
    /// What is there now, and who wrote it.
    pub current: Current,
    /// The smallest parts that both changed differently, as JSON pointers; none where nothing was compared.
    pub paths: Vec<String>,
}

impl Client {
    /// Writes what was made of version `base` ([`Version::NONE`]: of nothing). If nobody wrote since, it is
    /// written as it is; else the strategy decides. The base must still be in the history of the key for
    /// [`Strategy::Merge`] and [`Strategy::Function`].
    ///
    /// ```no_run
    /// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
    /// use maos_client::{MergeOptions, Merged, Strategy};
    ///
    /// let plan = client.get_json::<serde_json::Value>("shop:plan:7").await?.expect("a plan");
    /// let mut mine = plan.value;
    /// mine["steps"]["test"] = "done".into();
    /// let options = MergeOptions::new(Strategy::Merge).by("tester");
    /// match client.merge("shop:plan:7", plan.version, &mine, options).await? {
    ///     Merged::Applied(version, how) => println!("{how:?} at {version}"),
    ///     Merged::Conflict(conflict) => println!("{:?} changed {:?} too", conflict.current.agent, conflict.paths),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `BASEGONE` if the base is not kept any more, `NOTJSON` where JSON is needed, `NOTFOUND` if there is no such
    /// function, [`Error::Encode`] if the value cannot be written as JSON; and as [`Client::call`]. A conflict is no
    /// error.
    pub async fn merge(
        &self,
        key: impl AsRef<[u8]>,
        base: Version,
        value: impl Serialize,
        options: MergeOptions,
    ) -> Result<Merged, Error> {
        let value = serde_json::to_vec(&value).map_err(Error::Encode)?;
        self.merge_bytes(key.as_ref(), base, &value, options).await
    }

    pub(crate) async fn merge_bytes(
        &self,
        key: &[u8],
        base: Version,
        value: &[u8],
        options: MergeOptions,
    ) -> Result<Merged, Error> {
        let (origin, expire, _) = options.write.settle(self.agent());
        let request = wire::Merge {
            key,
            base,
            value,
            strategy: options.strategy.as_ref().map(Strategy::wire),
            ts: options.at.map(unix_millis),
            options: wire::WriteOptions {
                expire,
                ..origin.wire()
            },
        };
        Ok(match self.call(&request).await? {
            wire::MergeReply::Applied(version, how) => Merged::Applied(version, how),
            wire::MergeReply::Lost(lost, paths) => Merged::Conflict(Conflict {
                current: Current::of(lost),
                paths,
            }),
        })
    }

    /// [`merge`](Client::merge), and where that conflicts `on_conflict` is asked, here: it gets the value that the
    /// writer began with (`None` if there was none), what is there now, and what the writer made of it, and gives
    /// what is to be written, over what is there now only, or `None` to leave it at the conflict. Should
    /// somebody come between, it is asked again, with what is there then. It may be called several times, so it
    /// must do nothing else.
    ///
    /// A [`Strategy::Function`] decides in the server instead: in one step, but once for all who use it.
    ///
    /// ```no_run
    /// # async fn doc(client: maos_client::Client, base: maos_client::Version) -> Result<(), maos_client::Error> {
    /// use maos_client::{MergeOptions, Strategy};
    ///
    /// // Whose estimate is higher is believed.
    /// let options = MergeOptions::new(Strategy::Merge);
    /// let merged = client.merge_or("shop:hours:7", base, 12, options, |_base, theirs: u32, mine| Some(theirs.max(*mine)));
    /// println!("{:?}", merged.await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Contended`] when others came between every time it was asked, [`Error::Decode`] if a value has not
    /// the shape of `T`, `BASEGONE` if the base is not kept any more; and as [`merge`](Client::merge).
    pub async fn merge_or<T>(
        &self,
        key: impl AsRef<[u8]>,
        base: Version,
        value: T,
        options: MergeOptions,
        mut on_conflict: impl FnMut(Option<&T>, T, &T) -> Option<T>,
    ) -> Result<Merged, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        let key = key.as_ref();
        let mut conflict = match self.merge(key, base, &value, options.clone()).await? {
            Merged::Conflict(conflict) => conflict,
            applied => return Ok(applied),
        };
        let began = match base {
            Version::NONE => None,
            _ => self.began_with(key, base).await?,
        };
        for _ in 0..options.attempts.max(1) {
            // What was deleted has no value to be asked about.
            let Some(theirs) = conflict.current.value.as_deref() else {
                return Ok(Merged::Conflict(conflict));
            };
            let over = conflict.current.version;
            let theirs = from_json(&shown(key), over, theirs)?;
            let Some(next) = on_conflict(began.as_ref(), theirs, &value) else {
                return Ok(Merged::Conflict(conflict));
            };
            let text = serde_json::to_vec(&next).map_err(Error::Encode)?;
            let write = options.write.clone().for_update();
            match self.cas(key, over, text, write).await? {
                Outcome::Applied(version) => return Ok(Merged::Applied(version, How::Merged)),
                Outcome::Lost(current) => conflict.current = current,
            }
        }
        Err(Error::Contended {
            key: shown(key),
            attempts: options.attempts,
            version: conflict.current.version,
        })
    }

    /// The value of a version of the past; `None` for a deletion.
    async fn began_with<T: DeserializeOwned>(
        &self,
        key: &[u8],
        base: Version,
    ) -> Result<Option<T>, Error> {
        let past = Past::Version(Which::Version(base));
        match self.get_past(key, past).await {
            Ok(None) => Ok(None),
            Ok(Some(found)) => from_json(&shown(key), base, &found.value).map(Some),
            Err(Error::Refused(refusal)) if refusal.code == Code::NoVersion => {
                Err(Error::Refused(maos_core::Refusal {
                    code: Code::BaseGone,
                    text: refusal.text,
                }))
            }
            Err(error) => Err(error),
        }
    }
}
