//! Locks: taken, renewed and given back, one command each.

use std::time::{Duration, SystemTime};

use crate::{time_of, wire, Client, Error, Version};

/// How a lock is asked for.
#[derive(Clone, Default, Debug)]
pub struct LockOptions {
    shared: bool,
    advisory: bool,
    pub(crate) wait: Duration,
    note: Option<String>,
}

impl LockOptions {
    /// Exclusive, and the store holds every write to it.
    pub fn new() -> LockOptions {
        LockOptions::default()
    }

    /// Together with others who take it shared. Writes pass.
    pub fn shared(mut self) -> LockOptions {
        self.shared = true;
        self
    }

    /// Refuses no write: those who look at the lock keep to it.
    pub fn advisory(mut self) -> LockOptions {
        self.advisory = true;
        self
    }

    /// Waits for the lock, in the order of arrival, for at most an hour. A call that waits has a
    /// connection of its own; to drop it is to stand in the queue no longer.
    pub fn wait(mut self, longest: Duration) -> LockOptions {
        self.wait = longest;
        self
    }

    /// What [`Client::locks`] tells about it; 1 to 1024 bytes.
    pub fn note(mut self, text: impl Into<String>) -> LockOptions {
        self.note = Some(text.into());
        self
    }
}

/// A lock that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The token to write with. Those who come later have higher ones.
    pub token: Version,
    /// When the lease ends, in milliseconds of unix time by the store's clock.
    pub expires_at_ms: u64,
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// By one, without whose token nobody writes.
    Exclusive,
    /// By several.
    Shared,
}

/// One who holds a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockHolder {
    /// Its name.
    pub owner: Vec<u8>,
    /// Its token, and when its lease ends.
    pub grant: Grant,
    /// How many times it was taken and not given back.
    pub holds: u32,
    /// What it says about it.
    pub note: Option<Vec<u8>>,
}

/// Who holds the lock of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockState {
    /// How it is held; `None` if nobody holds it.
    pub mode: Option<LockMode>,
    /// True if it refuses no write.
    pub advisory: bool,
    /// Who holds it, in the order of the grants.
    pub holders: Vec<LockHolder>,
    /// Who waits for it, first come first.
    pub waiters: Vec<LockWaiter>,
}

/// One who waits for a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockWaiter {
    /// Its name.
    pub owner: Vec<u8>,
    /// How it wants the lock.
    pub mode: LockMode,
    /// For how long it has waited.
    pub waited: Duration,
}

impl Grant {
    /// When the lease ends, by the store's clock.
    pub fn expires_at(&self) -> SystemTime {
        time_of(Version(self.expires_at_ms.saturating_mul(1000)))
    }
}

pub(crate) fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

impl Client {
    /// Takes the lock of a key for an owner, until the lease ends or [`unlock`](Client::unlock). `None` if
    /// somebody else holds it. An owner that holds it already takes it once more, and gives it back
    /// as often.
    ///
    /// # Errors
    /// As [`call`](Client::call). It is not repeated once it may have reached the store.
    pub async fn lock(
        &self,
        key: impl AsRef<[u8]>,
        owner: impl AsRef<[u8]>,
        lease: Duration,
        options: LockOptions,
    ) -> Result<Option<Grant>, Error> {
        let mut request = wire::Lock {
            key: key.as_ref(),
            owner: owner.as_ref(),
            ttl_ms: millis(lease),
            shared: options.shared,
            advisory: options.advisory,
            wait_ms: 0,
            note: options.note.as_deref().map(str::as_bytes),
        };
        let mut granted = self.call(&request).await?.0;
        if granted.is_none() && !options.wait.is_zero() {
            request.wait_ms = millis(options.wait);
            granted = self.aside(async |lane| lane.call(&request).await).await?.0;
        }
        Ok(granted.map(|(token, expires_at_ms)| Grant {
            token,
            expires_at_ms,
        }))
    }

    /// Takes the locks of several keys, all or none, and waits for them for so long; for each a grant, in the
    /// order of the keys. The keys must share a slot on a cluster.
    ///
    /// # Errors
    /// As [`lock`](Client::lock).
    pub async fn mlock(
        &self,
        keys: &[impl AsRef<[u8]>],
        owner: impl AsRef<[u8]>,
        lease: Duration,
        wait: Duration,
    ) -> Result<Option<Vec<Grant>>, Error> {
        let mut request = wire::MLock {
            keys: keys.iter().map(AsRef::as_ref).collect(),
            owner: owner.as_ref(),
            ttl_ms: millis(lease),
            wait_ms: 0,
            note: None,
        };
        let mut granted = self.call(&request).await?.0;
        if granted.is_none() && !wait.is_zero() {
            request.wait_ms = millis(wait);
            granted = self.aside(async |lane| lane.call(&request).await).await?.0;
        }
        Ok(granted.map(|(tokens, expires_at_ms)| {
            let grant = |token| Grant {
                token,
                expires_at_ms,
            };
            tokens.into_iter().map(grant).collect()
        }))
    }

    /// Has the lease last from now on. Gives its new end.
    ///
    /// # Errors
    /// `FENCED` if the lock has been lost; and as [`call`](Client::call).
    pub async fn renew(
        &self,
        key: impl AsRef<[u8]>,
        token: Version,
        lease: Duration,
    ) -> Result<Grant, Error> {
        let request = wire::Renew {
            key: key.as_ref(),
            token,
            ttl_ms: millis(lease),
        };
        let expires_at_ms = self.call(&request).await?.0;
        Ok(Grant {
            token,
            expires_at_ms,
        })
    }

    /// Gives one hold back; says how many this owner still has.
    ///
    /// # Errors
    /// `FENCED` if the lock has been lost; and as [`call`](Client::call).
    pub async fn unlock(&self, key: impl AsRef<[u8]>, token: Version) -> Result<u32, Error> {
        let key = key.as_ref();
        Ok(self.call(&wire::Unlock { key, token }).await?.0)
    }

    /// Who holds the lock of a key.
    ///
    /// # Errors
    /// As [`call`](Client::call).
    pub async fn locks(&self, key: impl AsRef<[u8]>) -> Result<LockState, Error> {
        let key = key.as_ref();
        let locks = self.call(&wire::Locks { key }).await?;
        let holder = |h: wire::HolderReply<'_>| LockHolder {
            owner: h.owner.into_owned(),
            grant: Grant {
                token: h.token,
                expires_at_ms: h.expires_ms,
            },
            holds: h.holds,
            note: h.note.map(|n| n.into_owned()),
        };
        let mode = |shared| match shared {
            true => LockMode::Shared,
            false => LockMode::Exclusive,
        };
        let waiter = |w: wire::WaiterReply| LockWaiter {
            owner: w.owner,
            mode: mode(w.shared),
            waited: Duration::from_millis(w.waited_ms),
        };
        Ok(LockState {
            mode: locks.shared.map(mode),
            advisory: locks.advisory,
            holders: locks.holders.into_iter().map(holder).collect(),
            waiters: locks.waiters.into_iter().map(waiter).collect(),
        })
    }
}
