//! Values changed where they are: patches, and numbers that are added to.

use std::fmt::Display;

use serde::Serialize;

use crate::error::shown;
use crate::options::sealed::Sealed;
use crate::{wire, Always, Client, Error, IfVersion, Mode, Outcome, SetOptions, Version};

/// Where a number is, and what it may become.
#[derive(Clone, Default, Debug)]
pub struct IncrementOptions {
    path: Option<String>,
    min: Option<String>,
    max: Option<String>,
    write: SetOptions<Always>,
}

impl IncrementOptions {
    /// The whole value is the number, without bounds.
    pub fn new() -> IncrementOptions {
        IncrementOptions::default()
    }

    /// The number at this place of a JSON value, a JSON pointer (RFC 6901): `/budget/tokens`.
    pub fn path(mut self, pointer: impl Into<String>) -> IncrementOptions {
        self.path = Some(pointer.into());
        self
    }

    /// Refuses a sum below this.
    pub fn min(mut self, least: impl Display) -> IncrementOptions {
        self.min = Some(least.to_string());
        self
    }

    /// Refuses a sum above this.
    pub fn max(mut self, most: impl Display) -> IncrementOptions {
        self.max = Some(most.to_string());
        self
    }

    /// Path, least and most.
    pub(crate) fn bounds(&self) -> [Option<&str>; 3] {
        [&self.path, &self.min, &self.max].map(Option::as_deref)
    }

    /// The options of the write: agent, metadata, time to live, token.
    pub fn write(mut self, options: SetOptions<Always>) -> IncrementOptions {
        self.write = options;
        self
    }

    /// The partition that the key is charged to from now on.
    pub fn partition(mut self, name: impl AsRef<[u8]>) -> IncrementOptions {
        self.write = self.write.partition(name);
        self
    }
}

/// A number that was added to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Incremented {
    /// The version that this made.
    pub version: Version,
    /// The number now, as it is written: no digit is lost.
    pub number: String,
}

impl Incremented {
    /// The number, if it is an integer of 64 bits.
    pub fn integer(&self) -> Option<i64> {
        self.number.parse().ok()
    }
}

impl Client {
    /// Changes parts of a JSON value by a merge patch (RFC 7396): members take the place of those of the same
    /// name, `null` removes one. An absent key starts from `{}`.
    ///
    /// # Errors
    /// [`Error::Encode`] if the patch cannot be written as JSON, `NOTJSON` if the value is none, `LIMIT` and
    /// `TOOBIG` if it would become too large; and as [`Client::call`].
    pub async fn patch<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        patch: impl Serialize,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        M::read(self.patched(key.as_ref(), patch, false, options).await?)
    }

    /// Changes parts of a JSON value by a list of operations (RFC 6902), all or none. A `test` that fails is a
    /// lost race.
    ///
    /// # Errors
    /// `NOTFOUND` where an operation finds nothing at its place, `ERR` for what is no such list; and as
    /// [`patch`](Client::patch).
    pub async fn json_patch<M: Mode>(
        &self,
        key: impl AsRef<[u8]>,
        operations: impl Serialize,
        options: SetOptions<M>,
    ) -> Result<Outcome, Error> {
        IfVersion::read(
            self.patched(key.as_ref(), operations, true, options)
                .await?,
        )
    }

    async fn patched<M: Mode>(
        &self,
        key: &[u8],
        patch: impl Serialize,
        json_patch: bool,
        options: SetOptions<M>,
    ) -> Result<wire::WriteReply<'static>, Error> {
        let patch = serde_json::to_vec(&patch).map_err(Error::Encode)?;
        let (origin, expire, mode) = options.settle(self.agent());
        let request = wire::Patch {
            key,
            patch: &patch,
            json_patch,
            options: wire::WriteOptions {
                expire,
                if_version: mode.condition(),
                ..origin.wire()
            },
        };
        self.call(&request).await
    }

    /// Adds to a number: exactly, in one step, and never beyond the bounds given. What is not there starts
    /// from 0. The delta is an integer or a decimal, as a number or as text.
    ///
    /// ```no_run
    /// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
    /// use maos_client::IncrementOptions;
    ///
    /// let budget = IncrementOptions::new().path("/tokens").min(0);
    /// let left = client.increment("shop:budget:1", -500, budget).await?;
    /// println!("{} tokens are left", left.number);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `LIMIT` beyond the bounds or 64 bits, `NOTJSON` where there is something else; and as
    /// [`Client::call`].
    pub async fn increment(
        &self,
        key: impl AsRef<[u8]>,
        delta: impl Display,
        options: IncrementOptions,
    ) -> Result<Incremented, Error> {
        let (origin, expire, _) = options.write.settle(self.agent());
        let request = wire::IncrBy {
            key: key.as_ref(),
            delta: &delta.to_string(),
            path: options.path.as_deref(),
            min: options.min.as_deref(),
            max: options.max.as_deref(),
            options: wire::WriteOptions {
                expire,
                ..origin.wire()
            },
        };
        match self.call(&request).await? {
            wire::IncrReply::Applied(version, number) => Ok(Incremented {
                version,
                number: shown(&number),
            }),
            wire::IncrReply::Lost(_) => Err(Error::Protocol("a number was expected".to_owned())),
        }
    }
}
