//! Bringing the keys of a prefix back to an instant: the table entry and the request. The reply is that of any job, and
//! [`StatusReply`](super::backup::StatusReply) tells what came of it.

use super::cursor::Cursor;
use super::spec::*;
use super::{push_bytes, push_number, push_word, Request};
use crate::config::BACKUP_PREFIX_MAX;
use crate::{Code, Refusal};

/// MAOS.ROLLBACKTO
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RollbackTo<'a> {
    /// What the keys begin with; empty: all keys of the database.
    pub prefix: &'a [u8],
    /// The instant, in milliseconds of unix time. All of that millisecond counts.
    pub at_ms: u64,
    /// `DRYRUN`: nothing is changed.
    pub dry_run: bool,
    /// The agent that the new versions name.
    pub by: Option<&'a [u8]>,
}

impl<'a> Request<'a> for RollbackTo<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.ROLLBACKTO",
        summary: "Begins to bring all keys of this node that begin with a prefix back to what they held at an instant, as new versions",
        complexity: "O(N) for N keys that begin with the prefix, in the background; where the node keeps no index of its keys (maos.range-index no), for all keys of the database",
        since: "0.1.0",
        arity: -4,
        flags: "readonly admin",
        acl: "read admin dangerous",
        keys: Keys::None,
        args: &[Arg::new("prefix", ArgKind::Beginning)],
        options: &[&[
            Arg::option(
                Tok::At,
                "unix-time-milliseconds",
                ArgKind::UnixMillis,
                "the instant, which must not lie in the future; all of that millisecond counts",
            )
            .needed(),
            Arg::option(
                Tok::DryRun,
                "dryrun",
                ArgKind::Word,
                "nothing is changed; MAOS.BACKUP STATUS says what would be",
            ),
            Arg::option(
                Tok::By,
                "agent",
                ArgKind::Name(crate::config::AGENT_MAX),
                "the declared agent",
            ),
        ]],
        reply: "The id of the job: MAOS.BACKUP STATUS tells how far it has come, MAOS.BACKUP CANCEL ends it. It goes on in slices of about a millisecond. Each key is decided about by itself when its turn comes, as by a MAOS.ROLLBACK of the user who asks: it gets a new version with the value that was current at the instant, and keeps its expiry; a key that had no value then is deleted as by MAOS.DEL, so that this can be undone too; a key that holds the same already is left alone, and so is one that was made after the roll-back was begun. What was written to a key after that and before its turn is rolled back. A key whose history no longer reaches back to the instant stays as it is and is counted as beyond. What was purged (by DEL, an expiry, an eviction) has no history and does not come back, and a key that was written anew after that counts as one that was not there before. Locks, quotas, limits and the user's rights to MAOS.ROLLBACK and MAOS.DEL hold for each key: one that they forbid is left and counted as refused. DRYRUN judges each key by what quotas leave now, without the room that others would take. It ends as failed if the node becomes a replica, or its data set is replaced or changes places with another.",
        refusals: &[Code::Busy, Code::NoPerm, Code::ReadOnly, Code::TooBig],
        examples: "
> MAOS.ROLLBACKTO app: AT 9007199254740
< !ERR
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let prefix = c.beginning("the prefix", BACKUP_PREFIX_MAX)?;
        let (mut at_ms, mut dry_run, mut by) = (None, false, None);
        while let Some(tok) = c.option()? {
            match tok {
                Tok::At => at_ms = Some(c.unix_millis("AT")?),
                Tok::By => by = Some(c.agent()?),
                _ => dry_run = true,
            }
        }
        let at_ms = at_ms.ok_or_else(|| c.bad("say to which instant: AT unix-ms".into()))?;
        Ok(RollbackTo {
            prefix,
            at_ms,
            dry_run,
            by,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.prefix.to_vec()];
        push_number(&mut out, Tok::At, Some(self.at_ms));
        if self.dry_run {
            push_word(&mut out, Tok::DryRun);
        }
        push_bytes(&mut out, Tok::By, self.by);
        out
    }
}
