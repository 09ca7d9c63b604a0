//! Read, change, compare-and-set, until it fits.

use std::time::Duration;

use futures_util::future::join;
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::time::{sleep, Instant};

use crate::error::shown;
use crate::value::from_json;
use crate::wire;
use crate::{
    Always, Client, Code, Conflict, Current, Error, How, MergeOptions, Merged, Outcome, SetOptions,
    Strategy, Version,
};

/// How an [`update`](Client::update_with) tries: how often, with which pauses, under which name.
#[derive(Clone, Debug)]
pub struct UpdateOptions {
    attempts: u32,
    shortest: Duration,
    longest: Duration,
    turns: bool,
    merging: bool,
    write: SetOptions<Always>,
}

impl Default for UpdateOptions {
    fn default() -> UpdateOptions {
        UpdateOptions {
            attempts: 100,
            shortest: Duration::from_millis(1),
            longest: Duration::from_millis(100),
            turns: true,
            merging: false,
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

    /// Tries again and again after a pause, and takes no [turns](Client::update).
    pub fn without_turns(mut self) -> UpdateOptions {
        self.turns = false;
        self
    }

    /// Merges where somebody came between, and starts again only where both changed the same part
    /// ([`Strategy::Merge`]). For values whose parts may change independently of each other: `change` has then not
    /// seen what the others wrote, and a change that others made as well counts once. So a number that is counted
    /// up does not belong in it; [`increment`](Client::increment) counts.
    ///
    /// What was merged is read back: [`written`](Updated::written) and [`version`](Updated::version) are what the key
    /// holds then.
    pub fn merging(mut self) -> UpdateOptions {
        self.merging = true;
        self
    }

    /// The longest pause after a first lost race, and after many: it doubles in between. Each pause
    /// is a random part of it, so that losers do not meet again. Who takes turns pauses only where no turn is to
    /// be had.
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

    /// The partition that the key is charged to from now on.
    pub fn partition(mut self, name: impl AsRef<[u8]>) -> UpdateOptions {
        self.write = self.write.partition(name);
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

/// What a key held.
pub(crate) struct Seen {
    /// It was so after this moment.
    pub(crate) since: Instant,
    version: Version,
    bytes: Option<Vec<u8>>,
    /// Others take turns at it.
    pub(crate) queue: bool,
}

/// One update on its way.
struct Trial<'a, F> {
    key: &'a [u8],
    options: &'a UpdateOptions,
    change: F,
    attempts: u32,
}

/// What came of one attempt.
enum Attempt<T> {
    /// It is done, and this is what the key holds now.
    Done(Updated<T>, Seen),
    /// Somebody came between.
    Lost(Seen),
}

/// A value on its way to the store.
struct Write<T> {
    next: T,
    text: Vec<u8>,
    over: Version,
    since: Instant,
    options: SetOptions<Always>,
}

impl<F> Trial<'_, F> {
    /// Makes the next value of what was seen; `Err` if that is to be left as it is.
    fn make<T, N>(&mut self, seen: Seen) -> Result<Result<Write<T>, Attempt<T>>, Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
        F: FnMut(Option<T>) -> N,
    {
        self.attempts += 1;
        let version = seen.version;
        let bytes = seen.bytes.as_deref();
        let current = bytes.map(|bytes| from_json(&shown(self.key), version, bytes));
        Ok(match (self.change)(current.transpose()?).into() {
            Next::Keep => {
                let updated = Updated {
                    written: None,
                    version,
                    attempts: self.attempts,
                };
                Err(Attempt::Done(updated, seen))
            }
            Next::Write(next) => Ok(Write {
                text: serde_json::to_vec(&next).map_err(Error::Encode)?,
                next,
                over: version,
                since: Instant::now(),
                options: self.options.write.clone().for_update(),
            }),
        })
    }
}

impl Client {
    /// Changes a JSON value without losing anybody else's change: reads it, lets `change` make the
    /// next one, writes that only if nobody wrote meanwhile, and otherwise starts again from what
    /// the winner wrote (which comes with the answer, so there is no second read).
    ///
    /// Where many change one key at once, to try again and again wins for one and loses for all others. So
    /// who has lost takes its turn: first among the tasks that share this client, then, if others still come
    /// between, in the queue of the key's lock. That lock is advisory: whoever writes without it is not held
    /// up. Writes that show a [token](SetOptions::token) of their own take no turn, but pause.
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
        change: impl FnMut(Option<T>) -> N,
    ) -> Result<Updated<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
    {
        let key = key.as_ref();
        let began = Instant::now();
        let trial = &mut Trial {
            key,
            options: &options,
            change,
            attempts: 0,
        };
        // As long as nobody comes between there are no turns to take.
        let mut seen = None;
        let takes_turns = options.turns && !options.write.has_token();
        let known = takes_turns.then(|| self.turns().contended(key));
        let mut turn = known.flatten();
        if turn.is_none() {
            let found = self.see(key).await?;
            if found.queue && takes_turns {
                seen = Some(found);
            } else {
                match self.attempt(trial, found).await? {
                    Attempt::Done(updated, _) => return Ok(updated),
                    Attempt::Lost(current) => seen = Some(current),
                }
            }
            if takes_turns {
                turn = Some(self.turns().contend(key));
            }
        }
        let mut seat = match &turn {
            Some(turn) => Some(turn.take().await),
            None => None,
        };
        // What was written since this began is as good as read now.
        if let Some(left) = seat.as_mut().and_then(|seat| seat.left_since(began)) {
            seen = Some(left);
        }
        let mut pause = seat.is_none();
        loop {
            if pause {
                sleep(jittered(&options, trial.attempts)).await;
            }
            if let Some(seat) = &mut seat {
                if !seat.has_rivals() && seen.is_none() {
                    seen = Some(self.see(key).await?);
                }
                if seen.as_ref().is_some_and(|seen| seen.queue) {
                    seat.meet_rivals();
                }
            }
            let mut queued = false;
            let attempt = match &mut seat {
                Some(seat) if seat.has_rivals() => {
                    let (attempt, granted) = self.in_the_queue(trial).await?;
                    queued = granted;
                    attempt
                }
                _ => {
                    let current = match seen.take() {
                        Some(seen) => seen,
                        None => self.see(key).await?,
                    };
                    self.attempt(trial, current).await?
                }
            };
            match attempt {
                Attempt::Done(updated, now) => {
                    if let (Some(seat), Some(turn)) = (&mut seat, &turn) {
                        seat.leave(turn.has_others().then_some(now));
                    }
                    return Ok(updated);
                }
                Attempt::Lost(current) => seen = Some(current),
            }
            pause = match &mut seat {
                None => true,
                Some(seat) if seat.has_rivals() => !queued,
                Some(seat) => {
                    seat.lost();
                    false
                }
            };
        }
    }

    /// Reads the key, and whether others take turns at it.
    async fn see(&self, key: &[u8]) -> Result<Seen, Error> {
        let since = Instant::now();
        let (select, form) = (None, wire::Form::Full);
        let get = wire::Get { key, select, form };
        let (version, bytes, lock) = match self.call(&get).await? {
            wire::GetReply::Full(full) => (full.version, Some(full.value.into_owned()), full.lock),
            _ => (Version::NONE, None, None),
        };
        let mut holders = lock.iter().flat_map(|lock| &lock.holders);
        Ok(Seen {
            since,
            version,
            bytes,
            queue: holders.any(|h| h.note.as_deref() == Some(TURN_NOTE)),
        })
    }

    /// Reads the key.
    async fn look(&self, key: &[u8]) -> Result<Seen, Error> {
        let since = Instant::now();
        let (select, form) = (None, wire::Form::WithVersion);
        let get = wire::Get { key, select, form };
        let (version, bytes) = match self.call(&get).await? {
            wire::GetReply::WithVersion(value, version) => (version, Some(value.into_owned())),
            _ => (Version::NONE, None),
        };
        Ok(Seen {
            since,
            version,
            bytes,
            queue: true,
        })
    }

    /// One attempt, in its turn among all clients; without the lock where that is not to be had. Two round
    /// trips: the read travels behind the request that waits, the release behind the write.
    async fn in_the_queue<T, N, F>(
        &self,
        trial: &mut Trial<'_, F>,
    ) -> Result<(Attempt<T>, bool), Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
        F: FnMut(Option<T>) -> N,
    {
        let key = trial.key;
        let owner = self.fresh_owner();
        let request = wire::Lock {
            key,
            owner: owner.as_bytes(),
            ttl_ms: TURN_MS,
            shared: false,
            advisory: true,
            wait_ms: TURN_MS,
            note: Some(TURN_NOTE),
        };
        let lane = self.lane()?;
        let (granted, seen) = join(lane.call(&request), lane.look(key)).await;
        let token = match granted {
            Ok(wire::LockReply(granted)) => granted.map(|(token, _)| token),
            Err(error) => {
                tracing::debug!(%error, "an update takes no turn");
                None
            }
        };
        let mut held = Turn {
            client: self,
            key,
            token,
        };
        let write = match trial.make(seen?)? {
            Ok(write) => write,
            Err(kept) => return Ok((kept, token.is_some())),
        };
        let (text, options) = (&write.text, write.options.clone());
        let merging = trial.options.merging;
        let outcome = match token {
            None => lane.over(key, write.over, text, options, merging).await?,
            Some(token) => {
                let write = lane.over(key, write.over, text, options.token(token), merging);
                let (outcome, _) = join(write, lane.unlock(key, token)).await;
                held.token = None;
                match outcome {
                    // It took longer than the lease.
                    Err(error) if error.code() == Some(Code::Fenced) => {
                        return Ok((Attempt::Lost(lane.look(key).await?), true));
                    }
                    outcome => outcome?,
                }
            }
        };
        let attempt = lane.settle(trial, write, outcome).await?;
        self.give_lane_back(lane);
        Ok((attempt, token.is_some()))
    }

    /// One attempt, over what was seen.
    async fn attempt<T, N, F>(
        &self,
        trial: &mut Trial<'_, F>,
        seen: Seen,
    ) -> Result<Attempt<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        N: Into<Next<T>>,
        F: FnMut(Option<T>) -> N,
    {
        let write = match trial.make(seen)? {
            Ok(write) => write,
            Err(kept) => return Ok(kept),
        };
        let (options, merging) = (write.options.clone(), trial.options.merging);
        let outcome = self
            .over(trial.key, write.over, &write.text, options, merging)
            .await?;
        self.settle(trial, write, outcome).await
    }

    /// Writes over a version; or merges with what came since, in the same round trip.
    async fn over(
        &self,
        key: &[u8],
        version: Version,
        text: &[u8],
        options: SetOptions<Always>,
        merging: bool,
    ) -> Result<Merged, Error> {
        if !merging {
            return Ok(match self.cas(key, version, text, options).await? {
                Outcome::Applied(version) => Merged::Applied(version, How::FastForward),
                Outcome::Lost(current) => Merged::Conflict(Conflict {
                    current,
                    paths: vec![],
                }),
            });
        }
        let merge = MergeOptions::new(Strategy::Merge).write(options);
        match self.merge_bytes(key, version, text, merge).await {
            // So many came between that the base has left the history: a lost race like others.
            Err(error) if error.code() == Some(Code::BaseGone) => {
                let now = self.look(key).await?;
                Ok(Merged::Conflict(Conflict {
                    current: Current {
                        version: now.version,
                        value: now.bytes,
                        author: None,
                        agent: None,
                    },
                    paths: vec![],
                }))
            }
            merged => merged,
        }
    }

    /// What came of a write.
    async fn settle<T, F>(
        &self,
        // If it were shared, `F` would have to be `Sync` for the future to be `Send`.
        trial: &mut Trial<'_, F>,
        write: Write<T>,
        outcome: Merged,
    ) -> Result<Attempt<T>, Error>
    where
        T: DeserializeOwned,
    {
        let (since, attempts) = (write.since, trial.attempts);
        let seen = |version, bytes| Seen {
            since,
            version,
            bytes,
            queue: false,
        };
        let (written, now) = match outcome {
            Merged::Applied(version, How::FastForward) => {
                (write.next, seen(version, Some(write.text)))
            }
            // What both made of it is in the store only. The key is read as it is now, for that version may
            // have left the history already.
            Merged::Applied(..) => {
                let now = self.see(trial.key).await?;
                let written = match now.bytes.as_deref() {
                    Some(bytes) => from_json(&shown(trial.key), now.version, bytes)?,
                    None => write.next,
                };
                (written, now)
            }
            Merged::Conflict(conflict) if attempts >= trial.options.attempts => {
                return Err(Error::Contended {
                    key: shown(trial.key),
                    attempts,
                    version: conflict.current.version,
                });
            }
            Merged::Conflict(Conflict { current, .. }) => {
                return Ok(Attempt::Lost(seen(current.version, current.value)));
            }
        };
        let updated = Updated {
            written: Some(written),
            version: now.version,
            attempts,
        };
        Ok(Attempt::Done(updated, now))
    }
}

/// The longest that an update waits for its turn, and that a turn takes.
const TURN_MS: u64 = 2_000;

/// By this others see that it is a turn, after which the next one comes, and no lock of somebody's own.
const TURN_NOTE: &[u8] = b"the turn of an update";

/// The lock of a turn that was not given back yet.
struct Turn<'a> {
    client: &'a Client,
    key: &'a [u8],
    token: Option<Version>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(token) = self.token else { return };
        // An update that was dropped in its turn, or that left the key as it is.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, key) = (self.client.clone(), self.key.to_vec());
            // What is not given back ends with its lease.
            runtime.spawn(async move { client.unlock(key, token).await.is_ok() });
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
