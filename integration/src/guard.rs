//! A lock as a value: renewed while it lives, given back when it goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use maos_core::{Code, Refusal};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout_at, Instant};

use crate::{
    Always, Applied, Client, Error, Grant, LockOptions, Mode, Outcome, Past, SetOptions, Version,
};

/// What is known of a lock that was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockStatus {
    /// The lease lasts.
    Held,
    /// It could not be renewed as it should: it lasts still, and may soon be lost.
    InDoubt,
    /// It is over. Others may hold the lock; the store refuses what is written with its token.
    Lost,
}

/// A lock that is held.
///
/// The lease is renewed in the background, at a third of its length. Time is counted from before the request that
/// granted or renewed it, so the guard knows of a loss no later than the store. Writes made through it carry its
/// token: one that comes too late is `FENCED`, whatever this side believes.
///
/// When it is dropped the lock is given back, by a task of the runtime; [`release`](LockGuard::release) waits for
/// that.
#[derive(Debug)]
pub struct LockGuard {
    held: Arc<Held>,
    status: watch::Receiver<LockStatus>,
    renewal: JoinHandle<()>,
    released: bool,
}

#[derive(Debug)]
struct Held {
    client: Client,
    key: Vec<u8>,
    token: Version,
    lease: Duration,
}

impl Held {
    /// Renews until the lease is lost.
    async fn renew(self: Arc<Self>, began: Instant, status: watch::Sender<LockStatus>) {
        let mut until = began + self.lease;
        let mut next = began + self.lease / 3;
        loop {
            sleep_until(next.min(until)).await;
            let sent = Instant::now();
            if sent >= until {
                break;
            }
            let renewed = self.client.renew(&self.key, self.token, self.lease);
            match timeout_at(until, renewed).await {
                Ok(Ok(_)) => {
                    until = sent + self.lease;
                    next = sent + self.lease / 3;
                    set(&status, LockStatus::Held);
                }
                Ok(Err(Error::Refused(refusal))) if refusal.code == Code::Fenced => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a lock could not be renewed");
                    set(&status, LockStatus::InDoubt);
                    next = Instant::now() + self.lease / 20;
                }
                Err(_) => break,
            }
        }
        set(&status, LockStatus::Lost);
    }

    /// Gives the lock back, however often it was taken.
    async fn give_back(&self) -> Result<(), Error> {
        while self.client.unlock(&self.key, self.token).await? > 0 {}
        Ok(())
    }
}

fn set(status: &watch::Sender<LockStatus>, to: LockStatus) {
    status.send_if_modified(|now| std::mem::replace(now, to) != to);
}

impl LockGuard {
    fn new(
        client: &Client,
        key: &[u8],
        grant: Grant,
        lease: Duration,
        began: Instant,
    ) -> LockGuard {
        let held = Arc::new(Held {
            client: client.clone(),
            key: key.to_vec(),
            token: grant.token,
            lease,
        });
        let (sender, status) = watch::channel(LockStatus::Held);
        LockGuard {
            renewal: tokio::spawn(held.clone().renew(began, sender)),
            held,
            status,
            released: false,
        }
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.held.key
    }

    /// The token: for resources elsewhere that keep to the highest they have seen.
    pub fn token(&self) -> Version {
        self.held.token
    }

    /// What is known of the lock now.
    pub fn status(&self) -> LockStatus {
        *self.status.borrow()
    }

    /// Waits until more is known than when this was last asked; what it is.
    pub async fn changed(&mut self) -> LockStatus {
        match self.status.changed().await {
            Ok(()) => *self.status.borrow_and_update(),
            // It is lost, and no more will be known.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the lock is lost.
    pub async fn lost(&self) {
        let mut status = self.status.clone();
        // An error says that nobody renews it any more.
        let _ = status.wait_for(|s| *s == LockStatus::Lost).await;
    }

    /// Writes a new version of the key, with the token; as [`Client::set`].
    ///
    /// # Errors
    /// `FENCED` if the lock has been lost; and as [`Client::set`].
    pub async fn set<M: Mode>(
        &self,
        value: impl AsRef<[u8]>,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let options = options.token(self.token());
        self.held.client.set(self.key(), value, options).await
    }

    /// Writes a value as JSON, with the token; as [`Client::set_json`].
    ///
    /// # Errors
    /// As [`set`](LockGuard::set).
    pub async fn set_json<M: Mode>(
        &self,
        value: &impl Serialize,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let options = options.token(self.token());
        self.held.client.set_json(self.key(), value, options).await
    }

    /// Writes over one version of the key, with the token; as [`Client::cas`].
    ///
    /// # Errors
    /// As [`set`](LockGuard::set).
    pub async fn cas(
        &self,
        version: Version,
        value: impl AsRef<[u8]>,
        options: SetOptions<Always>,
    ) -> Result<Outcome, Error> {
        let options = options.token(self.token());
        self.held
            .client
            .cas(self.key(), version, value, options)
            .await
    }

    /// Deletes the value of the key, with the token; as [`Client::del`].
    ///
    /// # Errors
    /// As [`set`](LockGuard::set).
    pub async fn del<M: Mode>(&self, options: SetOptions<M>) -> Result<M::Reply, Error> {
        let options = options.token(self.token());
        self.held.client.del(self.key(), options).await
    }

    /// Brings an old value of the key back, with the token; as [`Client::rollback`].
    ///
    /// # Errors
    /// As [`set`](LockGuard::set).
    pub async fn rollback<M: Mode>(
        &self,
        to: impl Into<Past>,
        options: SetOptions<M>,
    ) -> Result<M::Reply, Error> {
        let options = options.token(self.token());
        self.held.client.rollback(self.key(), to, options).await
    }

    /// Gives the lock back and waits until that is done.
    ///
    /// # Errors
    /// `FENCED` if it had been lost; and as [`Client::call`].
    pub async fn release(mut self) -> Result<(), Error> {
        self.renewal.abort();
        self.released = true;
        self.held.give_back().await
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.released || self.status() == LockStatus::Lost {
            return;
        }
        // Without a runtime nothing can be sent: the lock ends with its lease.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let held = self.held.clone();
            runtime.spawn(async move {
                if let Err(error) = held.give_back().await {
                    tracing::debug!(%error, "a lock was not given back; it ends with its lease");
                }
            });
        }
    }
}

impl Client {
    /// Takes a lock and keeps it for as long as the guard lives. `None` if somebody else holds it, and with
    /// [`wait`](LockOptions::wait) if it was not had in time. The owner is a name of the guard's own.
    ///
    /// # Errors
    /// `DEADLOCK` if waiting would never end, `LIMIT` if too many wait; and as [`call`](Client::call).
    pub async fn lock_guard(
        &self,
        key: impl AsRef<[u8]>,
        lease: Duration,
        options: LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        let owner = self.fresh_owner();
        self.guard_of(key.as_ref(), &owner, lease, options).await
    }

    /// A name that nobody else has: nobody else takes the lock again in its name.
    pub(crate) fn fresh_owner(&self) -> String {
        // An owner's name has 256 bytes at most.
        let agent: String = self.agent().unwrap_or("guard").chars().take(50).collect();
        format!("{agent}:{}", uuid::Uuid::new_v4())
    }

    async fn guard_of(
        &self,
        key: &[u8],
        owner: &str,
        lease: Duration,
        options: LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        loop {
            let began = Instant::now();
            let granted = match self.lock(key, owner, lease, options.clone()).await {
                // Asked again under the same name it is had once more, and given back as often.
                Err(Error::Transport {
                    applied: Applied::Unknown,
                    ..
                }) => self.lock(key, owner, lease, options.clone()).await?,
                other => other?,
            };
            let Some(grant) = granted else {
                return Ok(None);
            };
            // The wait was no part of the lease: what the store says of its end is, and a first renewal
            // shows that the lease is as long as it should be.
            if options.wait.is_zero() {
                return Ok(Some(LockGuard::new(self, key, grant, lease, began)));
            }
            let began = Instant::now();
            match self.renew(key, grant.token, lease).await {
                Ok(_) => return Ok(Some(LockGuard::new(self, key, grant, lease, began))),
                // It took longer to hear of it than the lease lasted.
                Err(Error::Refused(refusal)) if refusal.code == Code::Fenced => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes several locks, in the order of their keys, whatever slots and nodes they are in: with one
    /// deadline, all or none. Those who take locks this way never wait for each other in a circle.
    ///
    /// # Errors
    /// As [`lock_guard`](Client::lock_guard).
    pub async fn lock_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
        lease: Duration,
        wait: Duration,
    ) -> Result<Option<Vec<LockGuard>>, Error> {
        let keys: BTreeSet<Vec<u8>> = keys.into_iter().map(|k| k.as_ref().to_vec()).collect();
        let owner = self.fresh_owner();
        let deadline = Instant::now() + wait;
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            let left = deadline.saturating_duration_since(Instant::now());
            let options = LockOptions::new().wait(left);
            match self.guard_of(&key, &owner, lease, options).await? {
                Some(guard) => guards.push(guard),
                None => return Ok(None),
            }
        }
        Ok(Some(guards))
    }

    /// Does something while a lock is held. `None` if the lock was not had in time. When the lock is lost
    /// meanwhile, what is being done is dropped at its next pause.
    ///
    /// # Errors
    /// As [`lock_guard`](Client::lock_guard); `FENCED` if the lock was lost.
    pub async fn with_lock<T>(
        &self,
        key: impl AsRef<[u8]>,
        lease: Duration,
        options: LockOptions,
        then: impl AsyncFnOnce(&LockGuard) -> T,
    ) -> Result<Option<T>, Error> {
        let Some(guard) = self.lock_guard(key, lease, options).await? else {
            return Ok(None);
        };
        let done = tokio::select! {
            done = then(&guard) => done,
            () = guard.lost() => {
                return Err(Error::Refused(Refusal::fixed(
                    Code::Fenced,
                    "the lock was lost while it was needed; what was being done has been dropped",
                )));
            }
        };
        guard.release().await?;
        Ok(Some(done))
    }

    /// Waits with a connection of its own: one that waits answers nobody else.
    pub(crate) async fn aside<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let lane = self.lane()?;
        let reply = ask(&lane).await?;
        self.give_lane_back(lane);
        Ok(reply)
    }
}
