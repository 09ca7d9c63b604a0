//! Bringing the keys of a prefix back to an instant.

use std::time::SystemTime;

use crate::options::unix_millis;
use crate::{wire, BackupId, Client, Error};

/// How a roll-back of a prefix goes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RollbackToOptions {
    dry_run: bool,
    agent: Option<String>,
}

impl RollbackToOptions {
    /// It is carried out, in the name of the client's own agent.
    pub fn new() -> RollbackToOptions {
        RollbackToOptions::default()
    }

    /// Nothing is changed: the job's status says what would be.
    pub fn dry_run(mut self) -> RollbackToOptions {
        self.dry_run = true;
        self
    }

    /// The agent that the new versions name.
    pub fn by(mut self, agent: impl Into<String>) -> RollbackToOptions {
        self.agent = Some(agent.into());
        self
    }
}

impl Client {
    /// Begins to bring all keys of the server that begin with `prefix` back to what they held at an instant, in
    /// milliseconds of unix time, as new versions, and gives the id of the job. It goes on by itself; what came of each key
    /// `MAOS.BACKUP STATUS` tells. Of a cluster it is the keys of the one server that is asked.
    ///
    /// # Errors
    /// `ERR` for an instant in the future, `NOPERM` if the user may change no key with the prefix, `READONLY` on a replica,
    /// `BUSY` while another roll-back goes on, `TOOBIG` for a prefix of more than 512 bytes; and as [`call`](Client::call).
    pub async fn rollback_to(
        &self,
        prefix: impl AsRef<[u8]>,
        time: SystemTime,
        options: &RollbackToOptions,
    ) -> Result<BackupId, Error> {
        let agent = options.agent.as_deref().or(self.agent());
        let request = wire::RollbackTo {
            prefix: prefix.as_ref(),
            at_ms: unix_millis(time),
            dry_run: options.dry_run,
            by: agent.map(str::as_bytes),
        };
        Ok(self.call(&request).await?.0)
    }
}
