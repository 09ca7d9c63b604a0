//! Backups: table entries, requests, replies.

use std::marker::PhantomData;

use super::cursor::Cursor;
use super::partition::HelpReply;
use super::reply::{
    clamp, count, field, required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value,
};
use super::spec::*;
use super::{push_bytes, push_word, Request};
use crate::config::{BACKUP_NAME_MAX, BACKUP_PREFIXES_MAX, BACKUP_PREFIX_MAX};
use crate::refusal::Quoted;
use crate::{Code, Refusal, Stamp};

/// There is nowhere to write backups to, or to read them from.
pub const NO_BACKUPS: Refusal = Refusal::fixed(
    Code::Err,
    "backups are off on this node: set maos.backup-dir, and maos.backup-key-file, in redis.conf",
);

/// What all of these are, but for their own words.
const COMMON: CommandSpec = CommandSpec {
    name: "",
    summary: "",
    complexity: "O(1)",
    since: "0.1.0",
    arity: 3,
    flags: "readonly admin",
    acl: "read admin dangerous",
    keys: Keys::None,
    args: &[ID],
    options: &[],
    reply: "",
    refusals: &[],
    examples: "",
    internal: false,
};

const ID: Arg = Arg::new("id", ArgKind::Backup);

const PREFIX: Arg = Arg::option(
    Tok::Prefix,
    "key-prefix",
    ArgKind::Name(BACKUP_PREFIX_MAX),
    "only keys that begin with this, or with another such prefix",
)
.many();

/// The id of a backup, or of a job: as random as a UUID, in 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackupId(pub [u8; 16]);

impl BackupId {
    /// From its digits.
    pub fn parse(text: &[u8]) -> Option<BackupId> {
        if text.len() != 32 || !text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let number = u128::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
        Some(BackupId(number.to_be_bytes()))
    }
}

impl std::fmt::Display for BackupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Whether this is how a backup may be called: it becomes a part of a file's name.
pub fn is_backup_name(name: &[u8]) -> bool {
    let plain = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=BACKUP_NAME_MAX).contains(&name.len()) && name.iter().all(plain)
}

/// How the file of a backup is called: `NAME-ID.maosbackup`.
pub const BACKUP_ENDING: &str = ".maosbackup";

/// The id in the name of the file of a backup; `None`: it is not called as one.
pub fn id_in_file_name(name: &str) -> Option<BackupId> {
    id_in_name(name.strip_suffix(BACKUP_ENDING)?)
}

/// The id in `NAME-ID`.
pub fn id_in_name(text: &str) -> Option<BackupId> {
    let (name, id) = text.rsplit_once('-')?;
    BackupId::parse(id.as_bytes()).filter(|_| is_backup_name(name.as_bytes()))
}

fn id(c: &mut Cursor<'_, '_>) -> Result<BackupId, Refusal> {
    let text = c.bytes()?;
    BackupId::parse(text).ok_or_else(|| {
        c.bad(format!(
            "an id has 32 hexadecimal digits, as MAOS.BACKUP CREATE and LIST give it; not {}",
            Quoted(text)
        ))
    })
}

fn prefix<'a>(c: &mut Cursor<'_, 'a>, prefixes: &mut Vec<&'a [u8]>) -> Result<(), Refusal> {
    let prefix = c.name("a prefix of PREFIX", BACKUP_PREFIX_MAX)?;
    if prefixes.len() >= BACKUP_PREFIXES_MAX {
        let text = format!("at most {BACKUP_PREFIXES_MAX} prefixes are taken");
        return Err(Refusal::new(Code::Limit, text));
    }
    prefixes.push(prefix);
    Ok(())
}

/// MAOS.BACKUP CREATE
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupCreate<'a> {
    /// How it is to be called.
    pub name: &'a [u8],
    /// What its keys begin with; none: all keys.
    pub prefixes: Vec<&'a [u8]>,
    /// `SINCE`: the backup that it goes on from.
    pub since: Option<BackupId>,
    /// `NATIVE`: keys of the server's own types too.
    pub native: bool,
}

impl<'a> Request<'a> for BackupCreate<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.BACKUP CREATE",
        summary: "Begins a backup: all state of this node as it is at this instant, whatever is written while it is made",
        complexity: "O(N) for N keys, in the background",
        arity: -3,
        args: &[Arg::new("name", ArgKind::Backup)],
        options: &[&[
            PREFIX,
            Arg::option(
                Tok::Since,
                "id",
                ArgKind::Backup,
                "only what has changed since this backup, deletions included: an incremental one, which cannot be restored without that. It has the same prefixes",
            ),
            Arg::option(
                Tok::Native,
                "native",
                ArgKind::Word,
                "strings, lists, sets, hashes and sorted sets as well. They have no versions, so each is as it was when the walk came to it, and not as of the instant; those of more than 100000 elements, streams and the types of other modules are left out",
            ),
        ]],
        reply: "The id of the backup, which MAOS.BACKUP STATUS tells more of. It is a file in maos.backup-dir, encrypted with the active key of maos.backup-key-file, and there under its name once it is whole and on disk; whatever it is cut short by leaves none.",
        refusals: &[Code::Busy, Code::NotFound, Code::BadBackup],
        examples: "
> MAOS.BACKUP CREATE nightly PREFIX app:
< !ERR
",
        ..COMMON
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let name = c.bytes()?;
        if !is_backup_name(name) {
            return Err(c.bad(format!(
                "a backup's name has 1 to {BACKUP_NAME_MAX} of a-z, 0-9, _ and -; not {}",
                Quoted(name)
            )));
        }
        let mut it = BackupCreate {
            name,
            prefixes: vec![],
            since: None,
            native: false,
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Prefix => prefix(c, &mut it.prefixes)?,
                Tok::Since => it.since = Some(id(c)?),
                _ => it.native = true,
            }
        }
        Ok(it)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.name.to_vec()];
        for prefix in &self.prefixes {
            push_bytes(&mut out, Tok::Prefix, Some(prefix));
        }
        if let Some(id) = self.since {
            push_bytes(&mut out, Tok::Since, Some(id.to_string().as_bytes()));
        }
        if self.native {
            push_word(&mut out, Tok::Native);
        }
        out
    }
}

/// The reply of a CREATE, a RESTORE or a MAOS.ROLLBACKTO: what to ask STATUS about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BegunReply(pub BackupId);

impl Reply for BegunReply {
    fn emit(&self, to: &mut impl Sink) {
        to.bulk(self.0.to_string().as_bytes());
    }

    fn decode(value: Value) -> Decoded<Self> {
        let id = BackupId::parse(&required(value)?);
        id.map(BegunReply).ok_or(BadShape("an id was expected"))
    }
}

macro_rules! of_one {
    ($(#[$doc:meta])* $name:ident { $($spec:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name<'a> {
            /// Which one.
            pub id: BackupId,
            life: PhantomData<&'a ()>,
        }

        impl $name<'_> {
            /// Of this one.
            pub fn new(id: BackupId) -> Self {
                $name { id, life: PhantomData }
            }
        }

        impl<'a> Request<'a> for $name<'a> {
            const SPEC: &'static CommandSpec = &CommandSpec { $($spec)* ..COMMON };

            fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
                let c = &mut Cursor::new(Self::RULES, args);
                let id = id(c)?;
                c.option()?;
                Ok($name::new(id))
            }

            fn encode(&self) -> Vec<Vec<u8>> {
                vec![self.id.to_string().into_bytes()]
            }
        }
    };
}

of_one! {
    /// MAOS.BACKUP STATUS
    BackupStatus {
        name: "MAOS.BACKUP STATUS",
        summary: "Tells how far a backup, a restore or a roll-back has come, and what came of it",
        complexity: "O(1); of a backup that no job is remembered of, O(N) for N files",
        reply: "A map of id, name, kind (create, restore, rollback), state (running, done, failed, cancelled), keys and bytes (written, or restored), instant (the version up to which it holds everything), seconds, error (null unless it failed), left-out (keys of other types that a backup with NATIVE does not hold), and for a restore kept (keys that were left as they are), same (that held the same already), expired, elsewhere (of slots that another node has), refused, reason (of the first refusal), total (keys there are to restore). Of a roll-back (MAOS.ROLLBACKTO) name is the prefix, keys are those that got a new version, bytes are those of the values they got, instant is that of AT, and there are deleted (those of the keys that had no value then and were deleted), same (that hold what they held then), newer (that were made after the roll-back was begun, and stay), elsewhere, refused, reason, beyond (whose history no longer reaches back to then: they stay as they are), beyond-keys (the first of their names that the user may read, at most 16). Of each kind the last 64 jobs are remembered, whether or not there is a maos.backup-dir; of an older backup the file is looked at. A roll-back also its own user may ask about.",
        refusals: &[Code::NotFound, Code::BadBackup],
        examples: "
> MAOS.BACKUP STATUS 00000000000000000000000000000000
< !ERR
",
    }
}

of_one! {
    /// MAOS.BACKUP VERIFY
    BackupVerify {
        name: "MAOS.BACKUP VERIFY",
        summary: "Reads a backup to its last byte and tells what is in it",
        complexity: "O(N) for N bytes, in a thread",
        reply: "A map of id, name, instant, made-on (the node), key (the id of the key that opens it; null: it is not encrypted), parent, prefixes, keys, partitions, bytes (before compression), newest (version), links (how many backups it is made of, all of which are read), digest (the same for two backups of the same state). Waits until that is known; inside a transaction or a script it is refused.",
        refusals: &[Code::NotFound, Code::BadBackup, Code::Busy],
        examples: "
> MAOS.BACKUP VERIFY 00000000000000000000000000000000
< !ERR
",
    }
}

of_one! {
    /// MAOS.BACKUP CANCEL
    BackupCancel {
        name: "MAOS.BACKUP CANCEL",
        summary: "Ends a backup, a restore or a roll-back that is running",
        reply: "1. A backup leaves no file. What a restore or a roll-back has brought back stays; to begin it again brings back the rest. A roll-back also its own user may end.",
        refusals: &[Code::NotFound],
        examples: "
> MAOS.BACKUP CANCEL 00000000000000000000000000000000
< !ERR
",
    }
}

of_one! {
    /// MAOS.BACKUP DELETE
    BackupDelete {
        name: "MAOS.BACKUP DELETE",
        summary: "Removes the file of a backup",
        complexity: "O(N) for N files",
        reply: "1.",
        refusals: &[Code::NotFound, Code::Busy],
        examples: "
> MAOS.BACKUP DELETE 00000000000000000000000000000000
< !ERR
",
    }
}

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// It makes a backup.
    Create,
    /// It brings back what a backup holds.
    Restore,
    /// It brings keys back to what they held at an instant.
    Rollback,
}

/// How a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// It goes on.
    Running,
    /// It has come to its end.
    Done,
    /// It has come to an end that `error` tells of.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

const KINDS: [(JobKind, &str); 3] = [
    (JobKind::Create, "create"),
    (JobKind::Restore, "restore"),
    (JobKind::Rollback, "rollback"),
];

const STATES: [(JobState, &str); 4] = [
    (JobState::Running, "running"),
    (JobState::Done, "done"),
    (JobState::Failed, "failed"),
    (JobState::Cancelled, "cancelled"),
];

fn word<T: Copy + PartialEq>(of: &[(T, &'static str)], it: T) -> &'static str {
    let found = of.iter().find(|(known, _)| *known == it);
    found.map_or("", |(_, word)| word)
}

fn known<T: Copy>(of: &[(T, &'static str)], value: Value) -> Decoded<T> {
    let text = required(value)?;
    let found = of.iter().find(|(_, word)| word.as_bytes() == &*text);
    found.map(|(it, _)| *it).ok_or(BadShape("an unknown word"))
}

impl JobState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        word(&STATES, self)
    }
}

/// The reply of a STATUS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusReply<'a> {
    /// Which job.
    pub id: BackupId,
    /// The name of the backup; of a roll-back the prefix.
    pub name: Bytes<'a>,
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub state: JobState,
    /// Keys written, restored or rolled back.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The version up to which the backup holds everything; of a roll-back the instant to which it goes.
    pub instant: Stamp,
    /// How long it took, or has taken so far, in milliseconds.
    pub millis: u64,
    /// Why it failed.
    pub error: Option<Bytes<'a>>,
    /// Keys of other types that it does not hold, though it was to.
    pub left_out: u64,
    /// What becomes of the keys of a restore.
    pub restore: Option<RestoreCounts<'a>>,
    /// What becomes of the keys of a roll-back.
    pub rollback: Option<RollbackCounts<'a>>,
}

/// What becomes of the keys of a restore.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RestoreCounts<'a> {
    /// Keys that were there and stayed as they were.
    pub kept: u64,
    /// Keys that held the same already.
    pub same: u64,
    /// Keys that had expired meanwhile.
    pub expired: u64,
    /// Keys of slots that another node has.
    pub elsewhere: u64,
    /// Keys that could not be restored.
    pub refused: u64,
    /// Why the first of them could not.
    pub reason: Option<Bytes<'a>>,
    /// Keys that there are to restore.
    pub total: u64,
}

/// What becomes of the keys of a roll-back.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RollbackCounts<'a> {
    /// Those of the keys rolled back that had no value then, and so were deleted.
    pub deleted: u64,
    /// Keys that hold what they held then.
    pub same: u64,
    /// Keys that were made after the roll-back was begun, and stay.
    pub newer: u64,
    /// Keys of slots that another node has, or is given.
    pub elsewhere: u64,
    /// Keys that could not be rolled back.
    pub refused: u64,
    /// Why the first of them could not.
    pub reason: Option<Bytes<'a>>,
    /// Keys whose history no longer reaches back to then; they stay as they are.
    pub beyond: u64,
    /// The first of their names.
    pub beyond_keys: Vec<Bytes<'a>>,
}

impl RollbackCounts<'_> {
    fn emit_fields(&self, to: &mut impl Sink) {
        field(to, "deleted").int(clamp(self.deleted));
        field(to, "same").int(clamp(self.same));
        field(to, "newer").int(clamp(self.newer));
        field(to, "elsewhere").int(clamp(self.elsewhere));
        field(to, "refused").int(clamp(self.refused));
        field(to, "reason").maybe(self.reason.as_deref());
        field(to, "beyond").int(clamp(self.beyond));
        field(to, "beyond-keys").array(self.beyond_keys.len());
        self.beyond_keys.iter().for_each(|key| to.bulk(key));
    }

    fn take(f: &mut super::reply::Fields) -> Decoded<Self> {
        let keys = f.take("beyond-keys").items()?.into_iter().map(required);
        Ok(RollbackCounts {
            deleted: count(f.take("deleted"))?,
            same: count(f.take("same"))?,
            newer: count(f.take("newer"))?,
            elsewhere: count(f.take("elsewhere"))?,
            refused: count(f.take("refused"))?,
            reason: f.take("reason").bytes()?,
            beyond: count(f.take("beyond"))?,
            beyond_keys: keys.collect::<Decoded<_>>()?,
        })
    }
}

impl Reply for StatusReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        let of_keys = match (&self.restore, &self.rollback) {
            (None, None) => 0,
            (Some(_), _) => 7,
            (None, Some(_)) => 8,
        };
        to.map(10 + of_keys);
        field(to, "id").bulk(self.id.to_string().as_bytes());
        field(to, "name").bulk(&self.name);
        field(to, "kind").bulk(word(&KINDS, self.kind).as_bytes());
        field(to, "state").bulk(self.state.name().as_bytes());
        field(to, "keys").int(clamp(self.keys));
        field(to, "bytes").int(clamp(self.bytes));
        field(to, "instant").int(self.instant.as_i64());
        let seconds = format!("{}.{:03}", self.millis / 1000, self.millis % 1000);
        field(to, "seconds").bulk(seconds.as_bytes());
        field(to, "error").maybe(self.error.as_deref());
        field(to, "left-out").int(clamp(self.left_out));
        if let Some(counts) = &self.restore {
            field(to, "kept").int(clamp(counts.kept));
            field(to, "same").int(clamp(counts.same));
            field(to, "expired").int(clamp(counts.expired));
            field(to, "elsewhere").int(clamp(counts.elsewhere));
            field(to, "refused").int(clamp(counts.refused));
            field(to, "reason").maybe(counts.reason.as_deref());
            field(to, "total").int(clamp(counts.total));
        } else if let Some(counts) = &self.rollback {
            counts.emit_fields(to);
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        let seconds = required(f.take("seconds"))?;
        let millis = std::str::from_utf8(&seconds).ok().and_then(|text| {
            let (whole, rest) = text.split_once('.')?;
            let whole: u64 = whole.parse().ok()?;
            whole.checked_mul(1000)?.checked_add(rest.parse().ok()?)
        });
        let kind = known(&KINDS, f.take("kind"))?;
        let restore = match f.take("total") {
            Value::Null => None,
            total => Some(RestoreCounts {
                kept: count(f.take("kept"))?,
                same: count(f.take("same"))?,
                expired: count(f.take("expired"))?,
                elsewhere: count(f.take("elsewhere"))?,
                refused: count(f.take("refused"))?,
                reason: f.take("reason").bytes()?,
                total: count(total)?,
            }),
        };
        let rollback = match kind {
            JobKind::Rollback => Some(RollbackCounts::take(&mut f)?),
            _ => None,
        };
        Ok(StatusReply {
            id: BegunReply::decode(f.take("id"))?.0,
            name: required(f.take("name"))?,
            kind,
            state: known(&STATES, f.take("state"))?,
            keys: count(f.take("keys"))?,
            bytes: count(f.take("bytes"))?,
            instant: stamp(f.take("instant"))?,
            millis: millis.ok_or(BadShape("seconds were expected"))?,
            error: f.take("error").bytes()?,
            left_out: count(f.take("left-out"))?,
            restore,
            rollback,
        })
    }
}

/// MAOS.BACKUP LIST
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BackupList<'a>(PhantomData<&'a ()>);

impl<'a> Request<'a> for BackupList<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.BACKUP LIST",
        summary: "Lists the backups in maos.backup-dir, the newest first",
        complexity: "O(N) for N files",
        arity: 2,
        args: &[],
        reply: "An array of maps of id, name, instant, made-on, key, parent (the backup that it goes on from), prefixes, file, size (in bytes, on disk). What is no backup, or one whose beginning cannot be read, is left out and said in the server's log.",
        examples: "
> MAOS.BACKUP LIST
< !ERR
",
        ..COMMON
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        Cursor::new(Self::RULES, args).option()?;
        Ok(BackupList::default())
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![]
    }
}

/// What the beginning of a backup says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupReply<'a> {
    /// Which one.
    pub id: BackupId,
    /// How it is called.
    pub name: Bytes<'a>,
    /// The version up to which it holds everything.
    pub instant: Stamp,
    /// The node that made it.
    pub made_on: Bytes<'a>,
    /// The id of the key that opens it; `None`: it is not encrypted.
    pub key: Option<Bytes<'a>>,
    /// The backup that it goes on from.
    pub parent: Option<BackupId>,
    /// What its keys begin with; none: all keys.
    pub prefixes: Vec<Bytes<'a>>,
}

impl BackupReply<'_> {
    fn emit_fields(&self, to: &mut impl Sink) {
        field(to, "id").bulk(self.id.to_string().as_bytes());
        field(to, "name").bulk(&self.name);
        field(to, "instant").int(self.instant.as_i64());
        field(to, "made-on").bulk(&self.made_on);
        field(to, "key").maybe(self.key.as_deref());
        let parent = self.parent.map(|id| id.to_string());
        field(to, "parent").maybe(parent.as_deref().map(str::as_bytes));
        field(to, "prefixes").array(self.prefixes.len());
        self.prefixes.iter().for_each(|prefix| to.bulk(prefix));
    }

    fn take(f: &mut super::reply::Fields) -> Decoded<Self> {
        let prefixes = f.take("prefixes").items()?.into_iter().map(required);
        Ok(BackupReply {
            id: BegunReply::decode(f.take("id"))?.0,
            name: required(f.take("name"))?,
            instant: stamp(f.take("instant"))?,
            made_on: required(f.take("made-on"))?,
            key: f.take("key").bytes()?,
            parent: match f.take("parent") {
                Value::Null => None,
                parent => Some(BegunReply::decode(parent)?.0),
            },
            prefixes: prefixes.collect::<Decoded<_>>()?,
        })
    }
}

/// The reply of a LIST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupsReply<'a>(pub Vec<BackupFileReply<'a>>);

/// One file of a LIST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupFileReply<'a> {
    /// What its beginning says.
    pub backup: BackupReply<'a>,
    /// The name of the file.
    pub file: Bytes<'a>,
    /// How long it is, in bytes.
    pub size: u64,
}

impl Reply for BackupsReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(self.0.len());
        for one in &self.0 {
            to.map(9);
            one.backup.emit_fields(to);
            field(to, "file").bulk(&one.file);
            field(to, "size").int(clamp(one.size));
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let one = |value: Value| {
            let mut f = value.fields()?;
            Ok(BackupFileReply {
                backup: BackupReply::take(&mut f)?,
                file: required(f.take("file"))?,
                size: count(f.take("size"))?,
            })
        };
        let all = value.items()?.into_iter().map(one);
        Ok(BackupsReply(all.collect::<Decoded<_>>()?))
    }
}

/// The reply of a VERIFY.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedReply<'a> {
    /// What its beginning says.
    pub backup: BackupReply<'a>,
    /// How many keys are in it.
    pub keys: u64,
    /// How many partitions.
    pub partitions: u64,
    /// How long it is before compression, in bytes.
    pub bytes: u64,
    /// The newest version in it.
    pub newest: Stamp,
    /// How many backups it is made of: itself, and those that it goes on from.
    pub links: u64,
    /// What all of it comes to: the same for two backups of the same state, in 32 hexadecimal digits.
    pub digest: BackupId,
}

impl Reply for VerifiedReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.map(13);
        self.backup.emit_fields(to);
        field(to, "keys").int(clamp(self.keys));
        field(to, "partitions").int(clamp(self.partitions));
        field(to, "bytes").int(clamp(self.bytes));
        field(to, "newest").int(self.newest.as_i64());
        field(to, "links").int(clamp(self.links));
        field(to, "digest").bulk(self.digest.to_string().as_bytes());
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        Ok(VerifiedReply {
            backup: BackupReply::take(&mut f)?,
            keys: count(f.take("keys"))?,
            partitions: count(f.take("partitions"))?,
            bytes: count(f.take("bytes"))?,
            newest: stamp(f.take("newest"))?,
            links: count(f.take("links"))?,
            digest: BegunReply::decode(f.take("digest"))?.0,
        })
    }
}

/// MAOS.BACKUP RESTORE
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupRestore<'a> {
    /// Which backup.
    pub id: BackupId,
    /// Only keys that begin with one of these; none: all of them.
    pub prefixes: Vec<&'a [u8]>,
    /// `INTO`: what takes the place of the prefix.
    pub into: Option<&'a [u8]>,
    /// `DRYRUN`: nothing is changed.
    pub dry_run: bool,
    /// `REPLACE`: keys that are there are replaced.
    pub replace: bool,
}

impl<'a> Request<'a> for BackupRestore<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.BACKUP RESTORE",
        summary: "Begins to bring back what a backup holds: values with their histories, authors, metadata, expiries and partitions",
        complexity: "O(N) for N keys, in the background",
        arity: -3,
        options: &[&[
            PREFIX,
            Arg::option(
                Tok::Into,
                "prefix",
                ArgKind::Name(BACKUP_PREFIX_MAX),
                "the keys get this in the place of their PREFIX, of which there is at most one; without one, in front of their names",
            ),
            Arg::option(
                Tok::DryRun,
                "dryrun",
                ArgKind::Word,
                "nothing is changed; MAOS.BACKUP STATUS says what would be",
            ),
            Arg::new("present", ArgKind::OneOf(&[
                Arg::option(Tok::Keep, "keep", ArgKind::Word, "keys that are there stay as they are; the default").needed(),
                Arg::option(Tok::Replace, "replace", ArgKind::Word, "keys that are there are replaced, unless they are locked").needed(),
            ]))
            .maybe(),
        ]],
        reply: "The id of the job, which MAOS.BACKUP STATUS tells more of. The backup is read to its last byte before a key is touched: one that is damaged, cut, altered or of another key fails as BADBACKUP. A version that this node may have given before is not given again: the key gets a new one with the same value on top. In a cluster each node brings back the keys of its own slots.",
        refusals: &[Code::NotFound, Code::BadBackup, Code::Busy],
        examples: "
> MAOS.BACKUP RESTORE 00000000000000000000000000000000 PREFIX app: INTO copy: DRYRUN
< !ERR
",
        ..COMMON
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut it = BackupRestore {
            id: id(c)?,
            prefixes: vec![],
            into: None,
            dry_run: false,
            replace: false,
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Prefix => prefix(c, &mut it.prefixes)?,
                Tok::Into => it.into = Some(c.name("the prefix of INTO", BACKUP_PREFIX_MAX)?),
                Tok::DryRun => it.dry_run = true,
                Tok::Replace => it.replace = true,
                _ => {}
            }
        }
        if it.into.is_some() && it.prefixes.len() > 1 {
            return Err(c.bad("INTO goes with one PREFIX".into()));
        }
        Ok(it)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.id.to_string().into_bytes()];
        for prefix in &self.prefixes {
            push_bytes(&mut out, Tok::Prefix, Some(prefix));
        }
        push_bytes(&mut out, Tok::Into, self.into);
        let words = [(self.dry_run, Tok::DryRun), (self.replace, Tok::Replace)];
        let said = words.into_iter().filter(|(said, _)| *said);
        said.for_each(|(_, tok)| push_word(&mut out, tok));
        out
    }
}

/// MAOS.BACKUP HELP
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BackupHelp<'a>(PhantomData<&'a ()>);

impl<'a> Request<'a> for BackupHelp<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.BACKUP HELP",
        summary: "Shows how the subcommands are used",
        arity: 2,
        args: &[],
        flags: "readonly",
        acl: "read",
        reply: "An array of lines.",
        examples: "
> MAOS.BACKUP HELP
< *
",
        ..COMMON
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        Cursor::new(Self::RULES, args).option()?;
        Ok(BackupHelp::default())
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![]
    }
}

/// A request of this family, whichever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupRequest<'a> {
    /// `CREATE`
    Create(BackupCreate<'a>),
    /// `STATUS`
    Status(BackupId),
    /// `LIST`
    List,
    /// `VERIFY`
    Verify(BackupId),
    /// `RESTORE`
    Restore(BackupRestore<'a>),
    /// `CANCEL`
    Cancel(BackupId),
    /// `DELETE`
    Delete(BackupId),
    /// `HELP`
    Help(HelpReply),
}

macro_rules! into_request {
    ($($name:ident: $it:ident => $made:expr;)*) => {
        $(impl<'a> From<$name<'a>> for BackupRequest<'a> {
            fn from($it: $name<'a>) -> BackupRequest<'a> {
                $made
            }
        })*
    };
}

into_request! {
    BackupCreate: it => BackupRequest::Create(it);
    BackupStatus: it => BackupRequest::Status(it.id);
    BackupList: _it => BackupRequest::List;
    BackupVerify: it => BackupRequest::Verify(it.id);
    BackupRestore: it => BackupRequest::Restore(it);
    BackupCancel: it => BackupRequest::Cancel(it.id);
    BackupDelete: it => BackupRequest::Delete(it.id);
    BackupHelp: _it => BackupRequest::Help(HelpReply(super::reference::help("MAOS.BACKUP")));
}

/// MAOS.BROUGHT key record expires-at: a record that a restore has brought back, for replicas and the AOF.
pub const BROUGHT: CommandSpec = CommandSpec {
    name: "MAOS.BROUGHT",
    summary:
        "Puts a record that was restored from a backup in its place; for replicas and the AOF only",
    arity: 4,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::One(Access::Write),
    args: &[
        Arg::new("key", ArgKind::Key),
        Arg::new("record", ArgKind::Name(usize::MAX)),
        Arg::new("expires-at", ArgKind::Name(20)),
    ],
    reply: "1.",
    internal: true,
    ..COMMON
};
