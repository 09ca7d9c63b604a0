//! The words of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use maos_client::{BackupId, Event, OnFull, PartitionType, Past, Strategy, Version, Which};

const AFTER: &str = "\
Exit codes:
  0  done
  1  no value: the key, or the version asked for, is not there
  2  usage: a word of the command line, a setting or a line of input is wrong
  3  lost race: another write came first, nothing was changed; or a condition of `txn`
     did not hold, and what stands after else was done
  4  refused: the store said no, nothing was changed; or a lock was lost; or a backup is
     damaged, does not open with the keys given, or was not made or brought back
  5  connection: no server, or no answer
  6  differs: a drill has found that a backup does not restore what it says
  `run` ends as the command that it ran

Settings come from --url or --config, else from the environment:
  REDIS_STATE_URLS         addresses, comma separated (redis://127.0.0.1:6379/)
  REDIS_CLUSTER_ENABLED    true: they are nodes of a cluster
  REDIS_AUTH_USERNAME      the ACL user
  REDIS_AUTH_PASSWORD      the password
  REDIS_TLS_ENABLED        true: TLS
  REDIS_TLS_CA_FILE        PEM file of the certificates to trust (those of the system)
  REDIS_TLS_CERT_FILE      PEM file of the client's certificate
  REDIS_TLS_KEY_FILE       PEM file of its key
  MAOS_BACKUP_ENCRYPTION_KEY  keys of backups, for commands that read a file of one
  MAOS_BACKUP_DIR, MAOS_SERVER, MAOS_MODULE  for `backup drill`: where backups are that are
                           named by id, the server's program, the module
A settings file has the same in TOML: urls, cluster, [auth] username, password,
[tls] enabled, ca_file, cert_file, key_file.

Examples:
  maosctl set shop:task:1 '{\"status\":\"open\"}' --by planner --ttl 7d
  maosctl get shop:task:1 --full
  maosctl cas shop:task:1 1763843159123456 '{\"status\":\"done\"}' --by builder
  maosctl patch shop:task:1 '{\"status\":\"open\",\"draft\":null}'
  maosctl merge shop:task:1 1763843159123456 - --by builder < mine.json
  maosctl txn handover.txt
  maosctl incr shop:budget -500 --path /tokens --min 0
  maosctl history shop:task:1 --desc --values
  maosctl get shop:task:1 --at '5m ago'
  maosctl diff shop:task:1 -1 1763843160000001
  maosctl rollback shop:task:1 --version -1 --by operator
  maosctl run --lock shop:nightly --wait 10m -- ./rebuild.sh
  maosctl partition create partition:shop --bytes 10mb --prefix shop: --history 20
  maosctl partition top
  maosctl ls shop: --long
  maosctl watch 'shop:*' --values
  maosctl --json watch 'shop:*' --checkpoint shop.place >> shop.changes.ndjson
  maosctl export shop: > shop.ndjson
  maosctl import shop.ndjson
  maosctl backup create nightly --wait
  maosctl backup restore 3f0c…e1 --prefix shop:task: --into old: --dry-run
  maosctl backup verify nightly-3f0c…e1.maosbackup --key-file backup.keys
  maosctl backup drill nightly-3f0c…e1.maosbackup --key-file backup.keys
";

/// Reads and writes versioned state: every write is kept as a version that can be read back,
/// compared, and rolled back to.
#[derive(Parser)]
#[command(name = "maosctl", version, after_long_help = AFTER, after_help = "--help says more: settings, exit codes, examples.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Address of the store; may be given several times. Otherwise REDIS_STATE_URLS
    #[arg(long, global = true, value_name = "URL")]
    pub url: Vec<String>,
    /// The addresses are nodes of a cluster
    #[arg(long, global = true)]
    pub cluster: bool,
    /// A TOML file with the settings, instead of the environment
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["url", "cluster"])]
    pub config: Option<PathBuf>,
    /// Answers for programs: one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Times in UTC instead of the local time zone
    #[arg(long, global = true)]
    pub utc: bool,
    /// Says on standard error what happens to connections
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show a value, now or as it was
    Get {
        /// The key
        key: String,
        #[command(flatten)]
        past: PastArgs,
        /// Version, times, writer and metadata too
        #[arg(long)]
        full: bool,
        /// No line end after the value
        #[arg(long, conflicts_with = "full")]
        raw: bool,
    },
    /// Write a new version of a key
    Set {
        /// The key
        key: String,
        /// The value; - reads it from standard input
        value: String,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        condition: ConditionArgs,
    },
    /// Write a new version only over the version given
    Cas {
        /// The key
        key: String,
        /// The version that must be the current one; 0: there must be no value
        version: u64,
        /// The value; - reads it from standard input
        value: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Write what was made of an older version, merged with what others wrote since
    Merge {
        /// The key
        key: String,
        /// The version that it was made of; 0: of nothing
        base: u64,
        /// The value, JSON; - reads it from standard input
        value: String,
        /// What to do if another write came since: reject, lww, fww, merge, function:NAME, or
        /// partition: as the key's partition has it
        #[arg(long, value_name = "STRATEGY", value_parser = merge_strategy, default_value = "merge")]
        strategy: MergeStrategy,
        /// When it was made, for lww: unix milliseconds, a date and time, or how long ago
        #[arg(long, value_name = "TIME", value_parser = time)]
        made: Option<SystemTime>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Write and read several keys in one step, if conditions hold
    ///
    /// One line for each condition and operation, in the words of MAOS.TXN:
    ///
    ///   if app:{t}:task version 1763843159123456
    ///   then patch app:{t}:task '{"owner":"worker-2"}'
    ///   then incrby app:{t}:moves 1 max 10
    ///   else get app:{t}:task
    ///
    /// Quotes are those of redis-cli. Empty lines and those that begin with # are left out.
    #[command(verbatim_doc_comment)]
    Txn {
        /// The file; - reads it from standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        /// The agent that writes
        #[arg(long)]
        by: Option<String>,
        /// Charge what is written to this partition from now on
        #[arg(long, value_name = "NAME")]
        partition: Option<String>,
    },
    /// Change parts of a JSON value
    Patch {
        /// The key
        key: String,
        /// A merge patch (RFC 7396), like {"status":"done","draft":null}; - reads it from standard input
        patch: String,
        /// It is a list of operations (RFC 6902); a test that fails is a lost race
        #[arg(long)]
        json_patch: bool,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        condition: ConditionArgs,
    },
    /// Add to a number
    Incr {
        /// The key
        key: String,
        /// What is added, an integer or a decimal
        #[arg(default_value = "1", allow_hyphen_values = true)]
        delta: String,
        /// The number at this place of a JSON value, like /budget/tokens
        #[arg(long, value_name = "POINTER")]
        path: Option<String>,
        /// Refuse a sum below this
        #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
        min: Option<String>,
        /// Refuse a sum above this
        #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
        max: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Delete a value; its history stays, and `rollback` brings it back
    Del {
        /// The key
        key: String,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        condition: ConditionArgs,
    },
    /// List the keys with a prefix, in order
    Ls {
        /// What they begin with
        #[arg(default_value = "")]
        prefix: String,
        /// Versions, times, sizes and writers too
        #[arg(long, short)]
        long: bool,
        /// Only what has changed since, and what was deleted: a version, or a time like '5m ago'
        #[arg(long, value_name = "VERSION|TIME", value_parser = crate::watch::since)]
        since: Option<Version>,
        /// At most so many
        #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Show what happens to keys, as it happens; until Ctrl-C
    ///
    /// Nothing is missed that is not told: what could not be followed is a line that begins with `gap`, on standard
    /// error, or with --json an object of type gap among the others.
    Watch {
        /// Keys that fit one of these: * any text, ? any byte, [a-z] one of these, \ takes the next as it is
        #[arg(required = true)]
        pattern: Vec<String>,
        /// Only events of these types, separated by commas
        #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = event)]
        types: Vec<Event>,
        /// Without what this agent has written
        #[arg(long, value_name = "AGENT")]
        not_by: Option<String>,
        /// With the values
        #[arg(long)]
        values: bool,
        /// First show what is there: the pattern is then a prefix, as it is
        #[arg(long)]
        snapshot: bool,
        /// Go on from the place in this file, if there is one, and write down there how far it has come
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// End after so many
        #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// List the versions of a key
    History {
        /// The key
        key: String,
        /// From this version on; -N: the N-th before the current one
        #[arg(long, value_name = "VERSION", allow_negative_numbers = true, value_parser = which)]
        from: Option<Which>,
        /// Up to this version
        #[arg(long, value_name = "VERSION", allow_negative_numbers = true, value_parser = which)]
        to: Option<Which>,
        /// At most so many
        #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// The newest first
        #[arg(long)]
        desc: bool,
        /// With the values
        #[arg(long)]
        values: bool,
    },
    /// Show what changed between two versions of a JSON value (RFC 6902)
    Diff {
        /// The key
        key: String,
        /// The older version; -N: the N-th before the current one
        #[arg(allow_negative_numbers = true, value_parser = which)]
        from: Which,
        /// The newer version
        #[arg(allow_negative_numbers = true, value_parser = which)]
        to: Which,
    },
    /// Write the value of an old version again, as a new version
    Rollback {
        /// The key
        key: String,
        #[command(flatten)]
        past: PastArgs,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        condition: ConditionArgs,
    },
    /// Take the lock of a key
    Lock {
        /// The key
        key: String,
        /// Who takes it
        owner: String,
        /// How long it is held unless it is renewed
        #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
        lease: Duration,
        /// Wait for it for so long
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<Duration>,
        /// Together with others who take it shared
        #[arg(long)]
        shared: bool,
        /// Refuse no write
        #[arg(long)]
        advisory: bool,
        /// What `locks` shows about it
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Give one hold of a lock back
    Unlock {
        /// The key
        key: String,
        /// The token that `lock` gave
        token: u64,
    },
    /// Show who holds the lock of a key, and who waits for it
    Locks {
        /// The key
        key: String,
    },
    /// Run a command while holding a lock; it is killed if the lock is lost
    ///
    /// The command finds the lock's key in MAOS_LOCK_KEY and its token in MAOS_LOCK_TOKEN.
    Run {
        /// The key whose lock is held
        #[arg(long, value_name = "KEY")]
        lock: String,
        /// How long the lock outlives this process; it is renewed meanwhile
        #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
        lease: Duration,
        /// Wait for the lock for so long
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<Duration>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Give parts of the store's memory to agents and teams, each with a quota of its own
    ///
    /// A partition is a named share of the memory pool (maos.pool-bytes). Keys belong to it because
    /// they begin with one of its prefixes, or because a write named it (`set --partition NAME`).
    /// It never holds more than its quota: a write for which there is no room is refused, or keys
    /// written longest ago make room, as the partition says. Sizes are bytes, or have a unit as in
    /// redis.conf: 100kb, 10mb, 1gb (and 100k, 10m, 1g in powers of ten).
    #[command(subcommand)]
    Partition(Partition),
    /// Make backups, look at them, and bring back what they hold
    ///
    /// A backup is a file in the server's maos.backup-dir: all its state as it was at one instant.
    /// In a cluster each master makes one of its own, and each id is looked for on all of them.
    /// `show`, `export`, `rewrap`, and `verify` of a file, need no server: they read the file that is
    /// named, with the keys of --key-file, or else of MAOS_BACKUP_ENCRYPTION_KEY. Both hold what the
    /// server's maos.backup-key-file holds.
    #[command(subcommand)]
    Backup(Backup),
    /// Show what the servers say about themselves
    Info,
    /// Write the lines of an NDJSON file, each a new version of its key
    #[command(after_help = LINES)]
    Import {
        /// The file; - is standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Only check the lines
        #[arg(long)]
        dry_run: bool,
        /// Charge what is written to this partition from now on
        #[arg(long, value_name = "NAME")]
        partition: Option<String>,
    },
    /// Write the current values as NDJSON
    #[command(after_help = LINES)]
    Export {
        /// Only keys that begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// The file; - is standard output
        #[arg(long, short, default_value = "-", value_name = "FILE")]
        output: PathBuf,
    },
}

const LINES: &str = "\
Each line is a JSON object:
  key            the key (or key_b64: base64, for one that is not UTF-8)
  value          a string, which is the value; or an object, array, number, true or
                 false, whose JSON text is the value (or value_b64: base64, for a
                 value that is not UTF-8)
  deleted        in the place of a value: true; an import deletes the key
  agent          optional: who wrote it (or agent_b64)
  metadata       optional: a JSON object
  expires_at_ms  optional: when the key expires, unix time in milliseconds
  version        optional: the version it had; an import does not look at it, nor at
                 author (or author_b64), partition (or partition_b64) and db
A line with define (or define_b64) in the place of a key is a partition, with the fields of
`partition list --json`: an import makes it, and leaves one that is there as it is.
An import stops at the first line that is wrong or refused, names its number, and says how
many other lines were written: all before it, and, if the store refused it, a few after it
that were under way. Lines about the same key are written in their order.";

/// Which state of the past.
#[derive(Args)]
#[group(multiple = false)]
pub struct PastArgs {
    /// This version; -N: the N-th before the current one
    #[arg(long, value_name = "VERSION", allow_negative_numbers = true, value_parser = which)]
    version: Option<Which>,
    /// What was current then: '5m ago', 2026-03-01T12:00:00Z, '2026-03-01 12:00' (local), or unix
    /// milliseconds
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<SystemTime>,
}

impl PastArgs {
    pub fn past(&self) -> Option<Past> {
        self.version.map(Past::Version).or(self.at.map(Past::At))
    }
}

/// What every write may say.
#[derive(Args)]
pub struct WriteArgs {
    /// The agent that writes
    #[arg(long, value_name = "AGENT")]
    pub by: Option<String>,
    /// Metadata kept with the version: a JSON object
    #[arg(long, value_name = "JSON")]
    pub meta: Option<String>,
    /// Expire after this time: 90s, 15m, 7d, 500ms
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "keep_ttl")]
    pub ttl: Option<Duration>,
    /// Keep the expiry the key has
    #[arg(long)]
    pub keep_ttl: bool,
    /// Id of this write: repeating it under the same id changes nothing. Otherwise a random one
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// The token of the lock that is held
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<u64>,
    /// A token of a lock elsewhere; the key refuses one lower than it has seen
    #[arg(long, value_name = "NAME=NUMBER", value_parser = fence)]
    pub fence: Option<(String, u64)>,
    /// Charge the key to this partition from now on, whatever the prefixes say
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
}

/// What is done with partitions.
#[derive(Subcommand)]
pub enum Partition {
    /// Make a partition and take its bytes from the pool
    Create {
        /// Its name, which is a key of its own, like partition:crew
        name: String,
        /// Its quota: how many bytes its keys may hold, with their history and metadata
        #[arg(long, value_name = "SIZE", value_parser = quota)]
        bytes: u64,
        #[command(flatten)]
        terms: Terms,
    },
    /// Change what a partition is; what is not named stays
    Alter {
        /// Its name
        name: String,
        /// Its quota: how many bytes its keys may hold; not less than they hold now
        #[arg(long, value_name = "SIZE", value_parser = quota)]
        bytes: Option<u64>,
        #[command(flatten)]
        terms: Terms,
        /// No prefix any more
        #[arg(long, conflicts_with = "prefix")]
        no_prefix: bool,
    },
    /// Drop a partition and give its bytes back to the pool
    ///
    /// Its keys stay where they are, but those of a temporary partition go with it.
    Drop {
        /// Its name
        name: String,
        /// Also if it has keys, or is persistent
        #[arg(long)]
        force: bool,
    },
    /// List the partitions, by name
    List {
        /// Only those dedicated to this agent
        #[arg(long, value_name = "AGENT")]
        agent: Option<String>,
    },
    /// Show all about one partition
    Info {
        /// Its name
        name: String,
        /// Have its keys counted anew first, and show what came of it
        #[arg(long)]
        audit: bool,
        /// Wait so long for that
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m", requires = "audit")]
        wait: Duration,
    },
    /// Show how much of the memory pool has been given to partitions
    Pool,
    /// Watch the partitions, the fullest first, until ctrl-c
    ///
    /// Each line shows a partition's name, a bar, the bytes it holds, its quota, how full that makes
    /// it, how many keys it has, how fast it grows or shrinks (bytes a second since the last look),
    /// and how many writes were refused and how many keys evicted for want of room since the server
    /// was started.
    Top {
        /// Time between looks
        #[arg(long, short = 'n', value_name = "TIME", value_parser = duration, default_value = "2s")]
        interval: Duration,
        /// Look once and end
        #[arg(long)]
        once: bool,
        /// Only those dedicated to this agent
        #[arg(long, value_name = "AGENT")]
        agent: Option<String>,
    },
}

/// What is done with backups.
#[derive(Subcommand)]
pub enum Backup {
    /// Begin a backup and show its id
    ///
    /// The server goes on by itself. With --wait the id is shown once all of it is on disk.
    Create {
        /// How it is called: 1 to 64 of a-z, 0-9, _ and -; need not be new
        name: String,
        /// Only keys that begin with this; may be given several times
        #[arg(long, value_name = "PREFIX")]
        prefix: Vec<String>,
        /// Only what has changed since this backup, which has the same prefixes; in a cluster it may be
        /// given several times, and each master goes on from the one that it made
        #[arg(long, value_name = "ID", value_parser = backup_id)]
        since: Vec<BackupId>,
        /// Strings, lists, sets, hashes and sorted sets as well, which are not of one instant
        #[arg(long)]
        native: bool,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// List the backups, the newest first
    List,
    /// Show how far a backup or a restore has come, and what came of it
    Status {
        /// The id of the backup, or of the restore
        #[arg(value_parser = backup_id)]
        id: BackupId,
    },
    /// Read a backup to its last byte and show what is in it
    ///
    /// And those that it goes on from: of a file they are looked for beside it.
    Verify {
        /// An id: the server reads it; anything else is a file, which is read here
        #[arg(value_name = "ID|FILE")]
        what: PathBuf,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Bring back what a backup holds, and wait until that is done
    ///
    /// Values come with their histories, authors, metadata, expiries and partitions. A key that is
    /// there stays as it is unless --replace is given. The backup is read to its last byte before a
    /// key is touched. Interrupted, the server goes on; `backup cancel` ends it.
    Restore {
        /// The id of the backup
        #[arg(value_parser = backup_id)]
        id: BackupId,
        /// Only keys that begin with this; may be given several times
        #[arg(long, value_name = "PREFIX")]
        prefix: Vec<String>,
        /// The keys get this in the place of the prefix; without one, in front of their names
        #[arg(long, value_name = "PREFIX")]
        into: Option<String>,
        /// Change nothing, and show what would be
        #[arg(long)]
        dry_run: bool,
        /// Replace keys that are there, unless they are locked
        #[arg(long)]
        replace: bool,
    },
    /// End a backup or a restore that is running
    Cancel {
        /// The id of the backup, or of the restore
        #[arg(value_parser = backup_id)]
        id: BackupId,
    },
    /// Remove the file of a backup
    Delete {
        /// The id of the backup
        #[arg(value_parser = backup_id)]
        id: BackupId,
    },
    /// Show what the beginning of a file says, which needs no key
    ///
    /// And whether the backup that it goes on from is beside it. None of it is proven: whether it is true,
    /// `verify` finds out.
    Show {
        /// The file
        file: PathBuf,
    },
    /// Write the keys in a file as NDJSON, in the lines of `maosctl import`
    ///
    /// Each key as it was at the instant of the backup, or with --history all its versions, the oldest
    /// first; keys that were deleted say so; locks are left out. What did not change since the backup that
    /// it goes on from is found there, beside the file. Nothing is written before all of them have been
    /// found to be whole. The lines are not encrypted.
    #[command(after_help = LINES)]
    Export {
        /// The file
        file: PathBuf,
        /// Where to; - is standard output
        #[arg(long, short, default_value = "-", value_name = "FILE")]
        output: PathBuf,
        /// All versions of each key
        #[arg(long)]
        history: bool,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Restore a backup into a private server, and compare what that holds then with the files
    ///
    /// The server is started for this alone, on a free port of 127.0.0.1, with a password, in a directory
    /// of its own under TMPDIR, and writes nothing to the directory of the backup; it needs the memory that
    /// the backup needs. When the drill is over, however it ends, the server and its directory are gone.
    /// What it holds is read from a backup that it makes of it: all versions of every key with author,
    /// metadata, expiry and deletion, the definitions of partitions, keys of the server's own types. Keys
    /// whose time is over by now are not missed, and locks do not come back. A partition that holds more
    /// than its quota gets more room here, and is named: elsewhere its keys would be refused.
    /// Ends with code 6 if anything differs.
    Drill(DrillArgs),
    /// Give a file to the active key, the first one of those given
    ///
    /// Only the envelope is made anew: what the backup holds is copied as it is, into a new file that
    /// takes the place of the old one when it is on disk. The key that sealed it must be among those given.
    Rewrap {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        keys: KeyArgs,
    },
}

/// What a drill needs.
#[derive(Args)]
pub struct DrillArgs {
    /// The file, with those that it goes on from beside it; or an id, which is looked for in --dir
    #[arg(value_name = "FILE|ID")]
    pub what: PathBuf,
    /// Where the backup with this id is. Otherwise MAOS_BACKUP_DIR, or here
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The server's program. Otherwise MAOS_SERVER, or redis-server
    #[arg(long, value_name = "PROGRAM")]
    pub server: Option<PathBuf>,
    /// The module. Otherwise MAOS_MODULE, or the library beside this program
    #[arg(long, value_name = "FILE")]
    pub module: Option<PathBuf>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// Where the keys of backups are.
#[derive(Args)]
pub struct KeyArgs {
    /// File of the keys, a line with an id and 64 hexadecimal digits for each, the active one first;
    /// nobody else may read it (mode 0600). Otherwise MAOS_BACKUP_ENCRYPTION_KEY
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// What may be said of a partition besides its quota.
#[derive(Args)]
pub struct Terms {
    /// How it is meant: shared_pool (open to all; the default), agent_dedicated (writes by other
    /// agents are refused), temporary (leaves after its --ttl, and its keys with it) or persistent
    /// (dropped with --force only)
    #[arg(long = "type", value_name = "TYPE", value_parser = partition_type)]
    pub partition_type: Option<PartitionType>,
    /// The agent that it is dedicated to
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,
    /// Keys that begin with this belong to it; may be given several times. In `alter` those given
    /// replace all that it had
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Vec<String>,
    /// For a temporary partition, how long it lasts: 90s, 15m, 7d. For any other, after what time
    /// a key expires whose write does not say (0: never)
    #[arg(long, value_name = "TIME", value_parser = duration_or_0)]
    pub ttl: Option<Duration>,
    /// What becomes of a write for which there is no room: reject (the default), or evict: keys
    /// written longest ago are removed
    #[arg(long, value_name = "WHAT", value_parser = on_full)]
    pub onfull: Option<OnFull>,
    /// What a merge does that leaves the choice to the partition (`merge --strategy partition`):
    /// reject (the default), lww, fww, merge or function:NAME
    #[arg(long, value_name = "STRATEGY", value_parser = strategy)]
    pub onconflict: Option<Strategy>,
    /// How many versions of each key are kept (0: as many as the server's settings say)
    #[arg(long, value_name = "VERSIONS")]
    pub history: Option<u64>,
    /// How long a version is kept after another one has replaced it (0: as the settings say)
    #[arg(long, value_name = "TIME", value_parser = duration_or_0)]
    pub maxage: Option<Duration>,
    /// The longest value, never longer than the server's settings allow (0: as long)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub maxvalue: Option<u64>,
}

/// Over which version.
#[derive(Args)]
#[group(multiple = false)]
pub struct ConditionArgs {
    /// Only over this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Only if there is no value
    #[arg(long)]
    if_absent: bool,
}

impl ConditionArgs {
    pub fn version(&self) -> Option<Version> {
        let absent = self.if_absent.then_some(Version::NONE);
        self.if_version.map(Version).or(absent)
    }
}

fn event(text: &str) -> Result<Event, String> {
    Event::from_word(text.as_bytes()).ok_or_else(|| {
        let words: Vec<_> = Event::ALL.iter().map(|event| event.word()).collect();
        format!("it is one of {}", words.join(", "))
    })
}

fn which(text: &str) -> Result<Which, String> {
    if let Some(back) = text.strip_prefix('-') {
        return match back.parse::<u32>() {
            Ok(n) if n > 0 => Ok(Which::Back(n)),
            _ => Err("-1 is the version before the current one, -2 the one before that".into()),
        };
    }
    match text.parse::<u64>() {
        Ok(n) if n > 0 && n <= Version::MAX.0 => Ok(Which::Version(Version(n))),
        _ => Err("a version is a number as `get --full` shows it, or -N".into()),
    }
}

fn backup_id(text: &str) -> Result<BackupId, String> {
    let id = BackupId::parse(text.as_bytes());
    id.ok_or_else(|| "an id has 32 hexadecimal digits, as `backup list` shows it".to_owned())
}

fn fence(text: &str) -> Result<(String, u64), String> {
    let parsed = text
        .rsplit_once('=')
        .and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
    parsed.ok_or_else(|| "a name and a number, such as zk=17".to_owned())
}

fn strategy(text: &str) -> Result<Strategy, String> {
    Ok(match text {
        "reject" => Strategy::Reject,
        "lww" => Strategy::Lww,
        "fww" => Strategy::Fww,
        "merge" => Strategy::Merge,
        _ => match text
            .strip_prefix("function:")
            .filter(|name| !name.is_empty())
        {
            Some(name) => Strategy::Function(name.to_owned()),
            None => return Err("reject, lww, fww, merge or function:NAME".to_owned()),
        },
    })
}

/// What a merge is to do; `None`: as the partition says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeStrategy(pub Option<Strategy>);

fn merge_strategy(text: &str) -> Result<MergeStrategy, String> {
    match text {
        "partition" => Ok(MergeStrategy(None)),
        _ => match strategy(text) {
            Ok(strategy) => Ok(MergeStrategy(Some(strategy))),
            Err(_) => Err("reject, lww, fww, merge, function:NAME or partition".to_owned()),
        },
    }
}

fn partition_type(text: &str) -> Result<PartitionType, String> {
    let all = [
        PartitionType::SharedPool,
        PartitionType::AgentDedicated,
        PartitionType::Temporary,
        PartitionType::Persistent,
    ];
    let found = all
        .into_iter()
        .find(|t| text.eq_ignore_ascii_case(t.word()));
    found.ok_or_else(|| "shared_pool, agent_dedicated, temporary or persistent".to_owned())
}

fn on_full(text: &str) -> Result<OnFull, String> {
    let mut all = [OnFull::Reject, OnFull::Evict].into_iter();
    let found = all.find(|what| text.eq_ignore_ascii_case(what.word()));
    found.ok_or_else(|| "reject or evict".to_owned())
}

/// Bytes, in the units of redis.conf.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..].to_ascii_lowercase()[..] {
        "" | "b" => Some(1),
        "k" => Some(1000),
        "kb" => Some(1 << 10),
        "m" => Some(1_000_000),
        "mb" => Some(1 << 20),
        "g" => Some(1_000_000_000),
        "gb" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok();
    let bytes = bytes.and_then(|n| n.checked_mul(unit?));
    bytes.ok_or_else(|| "a number of bytes such as 500, 100kb, 10mb or 1gb".to_owned())
}

fn quota(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("a partition of no bytes holds nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

fn duration_or_0(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => duration(text),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let parsed = parsed.or_else(|| {
        // Days and weeks have no fixed length in a calendar; here they have.
        let span = text.parse::<jiff::Span>().ok()?;
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        span.to_duration(days).ok()
    });
    parsed
        .and_then(|d| Duration::try_from(d).ok())
        .filter(|d| !d.is_zero())
        .ok_or_else(|| "a time such as 90s, 15m, 12h, 7d or 500ms".to_owned())
}

pub fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(ms) = text.parse::<u64>() {
        return Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    }
    if let Some(before) = text.strip_suffix(" ago") {
        return SystemTime::now()
            .checked_sub(duration(before)?)
            .ok_or_else(|| "so long ago there was no time".to_owned());
    }
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Ok(timestamp.into());
    }
    let local = text.parse::<jiff::civil::DateTime>().ok();
    local
        .and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::system()).ok())
        .map(|zoned| zoned.timestamp().into())
        .ok_or_else(|| {
            "a time such as '5m ago', 2026-03-01T12:00:00Z, '2026-03-01 12:00' or unix milliseconds"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_in_many_forms() {
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(time("1772366400000"), Ok(at(1_772_366_400)));
        assert_eq!(time("2026-03-01T12:00:00Z"), Ok(at(1_772_366_400)));
        assert!(time("2026-03-01 12:00").is_ok());
        assert!(time("5m ago").is_ok_and(|t| t < SystemTime::now()));
        assert!(time("yesterday").is_err());
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert!(duration("0s").is_err());
        assert!(duration("-5s").is_err());
        assert!(duration("5").is_err());
    }

    #[test]
    fn sizes_have_the_units_of_redis_conf() {
        for (text, bytes) in [
            ("0", 0),
            ("500", 500),
            ("500b", 500),
            ("1k", 1000),
            ("1kb", 1024),
            ("10MB", 10 << 20),
            ("2m", 2_000_000),
            ("3g", 3_000_000_000),
            ("1Gb", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "mb",
            "-1",
            "1.5mb",
            "1 mb",
            "1tb",
            "1kbb",
            "99999999999gb",
            "1é",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert!(quota("0mb").is_err());
        assert_eq!(duration_or_0("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn versions_are_numbers_or_steps_back() {
        assert_eq!(which("-2"), Ok(Which::Back(2)));
        assert_eq!(which("7"), Ok(Which::Version(Version(7))));
        for bad in ["0", "-0", "x", "9007199254740992", "--1"] {
            assert!(which(bad).is_err(), "{bad}");
        }
    }
}
