//! Read, change, compare-and-set, until it fits.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::time::sleep;

use crate::error::shown;
use crate::value::from_json;
use crate::{Always, Client, Error, Outcome, SetOptions, Version};

/// How an [`update`](Client::update_with) tries: how often, with which pauses, under which name.
#[derive(Clone, Debug)]
pub struct UpdateOptions {
    attempts: u32,
    shortest: Duration,
    longest: Duration,
    write: SetOptions<Always>,
}

impl Default for UpdateOptions {
    fn default() -> UpdateOptions {
        UpdateOptions {
            attempts: 100,
            shortest: Duration::from_millis(1),
            longest: Duration::from_millis(100),
            write: SetOptions::new(),
        }
    }
}

impl UpdateOptions {
    /// 100 attempts, pauses from 1 to 100 milliseconds.
    pub fn new() -> UpdateOptions {
        UpdateOptions::default()
    }

    /// How often the write is tried before [`Error::Contended`]; at least 1.
    pub fn attempts(mut self, attempts: u32) -> UpdateOptions {
        self.attempts = attempts.max(1);
        self
    }

    /// The longest pause after a first lost race, and after many: it doubles in between. Each pause
    /// is a random part of it, so that losers do not meet again.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> UpdateOptions {
        self.shortest = first;
        self.longest = longest;
        self
    }

    /// The options of the write: agent, metadata, time to live. The expiry of the key stays as it is
    /// unless said otherwise. A request id given here is not used: each attempt has its own.
    pub fn write(mut self, options: SetOptions<Always>) -> UpdateOptions {
        self.write = options;
        self
    }

    /// The agent that writes.
    pub fn by(mut self, agent: impl Into<String>) -> UpdateOptions {
        self.write = self.write.by(agent);
        self
    }
}

/// What an update decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next<T> {
    /// Write this.
    Write(T),
    /// Leave the key as it is.
    Keep,
}

impl<T> From<T> for Next<T> {
    fn from(value: T) -> Next<T> {
        Next::Write(value)
    }
}

/// What came of an update.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Updated<T> {
    /// The value written; `None` if the key was left as it was.
    pub written: Option<T>,
    /// The version of the key now.
    pub version: Version,
    /// How often it was tried; 1 if nobody came between.
    pub attempts: u32,
}

impl Client {
    /// Changes a JSON value without losing anybody else's change: reads it, lets `change` make the
    /// next one, writes that only if nobody wrote meanwhile, and otherwise starts again from what
    /// the winner wrote (which comes with the answer, so there is no second read).
    ///
    /// `change` gets `None` if there is no live value, and gives the next value, or a [`Next`] that
    /// may say to leave it. It may be called many times, so it must do nothing else.
    ///
    /// ```no_run
    /// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
    /// let counted = client
    ///     .update("shop:count:deploys", |n: Option<u64>| n.unwrap_or(0) + 1)
    ///     .await?;
    /// println!("{:?} at {}", counted.written, counted.version);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Contended`] when the race was lost 100 times, [`Error::Decode`] if the value does not
    /// have the shape of `T`; and as [`Client::call`].
    pub async fn update<T, N>(
        &self,
        key: impl AsRef<[u8]>,
        change: impl FnMut(Option<T>) -> N,
    ) -> Result<Updated<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
    {
        self.update_with(key, UpdateOptions::new(), change).await
    }

    /// [`update`](Client::update) with options.
    ///
    /// # Errors
    /// As [`update`](Client::update).
    pub async fn update_with<T, N>(
        &self,
        key: impl AsRef<[u8]>,
        options: UpdateOptions,
        mut change: impl FnMut(Option<T>) -> N,
    ) -> Result<Updated<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
    {
        let key = key.as_ref();
        let (mut version, mut bytes) = match self.get(key).await? {
            Some(found) => (found.version, Some(found.value)),
            None => (Version::NONE, None),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let current = bytes
                .as_deref()
                .map(|bytes| from_json(&shown(key), version, bytes));
            let Next::Write(next) = change(current.transpose()?).into() else {
                return Ok(Updated {
                    written: None,
                    version,
                    attempts,
                });
            };
            let text = serde_json::to_vec(&next).map_err(Error::Encode)?;
            let write = options.write.clone().for_update();
            match self.cas(key, version, text, write).await? {
                Outcome::Applied(version) => {
                    return Ok(Updated {
                        written: Some(next),
                        version,
                        attempts,
                    });
                }
                Outcome::Lost(current) => {
                    version = current.version;
                    bytes = current.value;
                }
            }
            if attempts >= options.attempts {
                return Err(Error::Contended {
                    key: shown(key),
                    attempts,
                    version,
                });
            }
            sleep(jittered(&options, attempts)).await;
        }
    }
}

/// A random pause up to a bound that doubles with each lost race.
fn jittered(options: &UpdateOptions, attempts: u32) -> Duration {
    let doubled = options.shortest.saturating_mul(1 << attempts.min(20));
    let most = doubled.min(options.longest).as_micros();
    Duration::from_micros(fastrand::u64(0..=u64::try_from(most).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_their_bounds() {
        let options = UpdateOptions::new();
        for attempts in 1..1000 {
            assert!(jittered(&options, attempts) <= Duration::from_millis(100));
        }
        assert!(jittered(&options, 1) <= Duration::from_millis(2));
    }
}
