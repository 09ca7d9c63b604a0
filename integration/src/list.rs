//! Listing keys in order, over all masters.

use std::collections::VecDeque;
use std::time::Duration;

use crate::client::Client;
use crate::error::shown;
use crate::link::Via;
use crate::wire::{self, Mark, Range};
use crate::{Error, Version};

/// A key and what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyState {
    /// Its name.
    pub key: Vec<u8>,
    /// Its value; `None`: it was deleted.
    pub value: Option<Vec<u8>>,
    /// The version of that.
    pub version: Version,
    /// The ACL user who wrote or deleted it.
    pub author: String,
    /// The agent who did.
    pub agent: Option<String>,
    /// The metadata of this version: the text of a JSON object.
    pub metadata: Option<String>,
    /// How long the key lives from now on; `None`: it does not expire.
    pub expires_in: Option<Duration>,
}

impl KeyState {
    pub(crate) fn of(full: wire::ListedFull<'_>) -> KeyState {
        KeyState {
            key: full.key.into_owned(),
            value: full.value.map(|value| value.into_owned()),
            version: full.version,
            author: shown(&full.author),
            agent: full.agent.map(|agent| shown(&agent)),
            metadata: full.metadata.map(|metadata| shown(&metadata)),
            expires_in: u64::try_from(full.ttl_ms).ok().map(Duration::from_millis),
        }
    }
}

/// One key of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedKey {
    /// Its name.
    pub key: Vec<u8>,
    /// What it holds, if [that was asked for](Listing::full).
    pub state: Option<KeyState>,
}

impl ListedKey {
    pub(crate) fn of(listed: wire::Listed<'_>) -> ListedKey {
        match listed {
            wire::Listed::Key(key) => ListedKey {
                key: key.into_owned(),
                state: None,
            },
            wire::Listed::Full(full) => ListedKey {
                key: full.key.clone().into_owned(),
                state: Some(KeyState::of(*full)),
            },
        }
    }
}

/// A listing of keys, as [`Client::list`] begins it.
///
/// Keys come in the order of their bytes, each once, from all masters together. A key that is there from beginning to
/// end is listed, unless its slot moves meanwhile.
#[derive(Debug)]
pub struct Listing {
    client: Client,
    request: Range<'static>,
    /// A way to each server; none before it has begun.
    pages: Vec<Page>,
    begun: bool,
    last: Option<Vec<u8>>,
}

/// What a server has said and has still to say.
#[derive(Debug)]
struct Page {
    via: Via,
    keys: VecDeque<ListedKey>,
    after: Option<Vec<u8>>,
    is_last: bool,
}

impl Client {
    /// Lists the keys with a value that begin with `prefix`, in order, from all masters.
    pub fn list(&self, prefix: impl AsRef<[u8]>) -> Listing {
        Listing {
            client: self.clone(),
            request: Range::new(prefix.as_ref().to_vec()),
            pages: vec![],
            begun: false,
            last: None,
        }
    }
}

impl Listing {
    /// With what the keys hold.
    pub fn full(mut self) -> Listing {
        self.request.full = true;
        self
    }

    /// Only keys whose newest version is newer than this, and those that were deleted after it.
    pub fn since(mut self, version: Version) -> Listing {
        self.request.since = Some(Mark {
            at: version,
            reign: Version::NONE,
        });
        self
    }

    /// Only keys that come after this one.
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Listing {
        self.request.after = Some(key.as_ref().to_vec().into());
        self
    }

    /// The next key; `None` at the end.
    ///
    /// # Errors
    /// `NOPERM` if the user may read no key with the prefix; an error if the server keeps no index
    /// (`maos.range-index no`); and as [`Client::call`].
    pub async fn next(&mut self) -> Result<Option<ListedKey>, Error> {
        if !self.begun {
            let first = self.request.after.clone().map(|key| key.into_owned());
            for via in self.client.master_ways().await? {
                self.pages.push(Page {
                    via,
                    keys: VecDeque::new(),
                    after: first.clone(),
                    is_last: false,
                });
            }
            self.begun = true;
        }
        loop {
            for page in &mut self.pages {
                while page.keys.is_empty() && !page.is_last {
                    self.request.after = page.after.take().map(Into::into);
                    let via = page.via.clone();
                    let reply = self.client.call_at(&self.request, via).await?;
                    page.keys = reply.keys.into_iter().map(ListedKey::of).collect();
                    page.after = reply.next.map(|next| next.into_owned());
                    page.is_last = page.after.is_none();
                }
            }
            let first = |page: &&mut Page| page.keys.front().map(|key| key.key.clone());
            let pages = self.pages.iter_mut().filter(|page| !page.keys.is_empty());
            let Some(next) = pages
                .min_by_key(first)
                .and_then(|page| page.keys.pop_front())
            else {
                return Ok(None);
            };
            // One that moved from a server to another was listed by the one already.
            if self.last.as_ref() != Some(&next.key) {
                self.last = Some(next.key.clone());
                return Ok(Some(next));
            }
        }
    }
}
