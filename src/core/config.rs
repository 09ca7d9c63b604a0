//! The table of settings, and the limits a decision sees.

/// One setting, `maos.<name>` in `redis.conf` and `CONFIG SET`.
#[derive(Debug)]
pub struct Setting {
    /// Which one.
    pub id: Knob,
    /// The name without the module's prefix.
    pub name: &'static str,
    /// The value without a `redis.conf` line.
    pub default: u64,
    /// The smallest value that is taken.
    pub min: u64,
    /// The largest value that is taken.
    pub max: u64,
    /// What the number counts.
    pub unit: Unit,
    /// What it does, in one or two sentences.
    pub meaning: &'static str,
}

/// What the number of a setting counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// A plain number.
    Count,
    /// Bytes; `8mb` is taken too.
    Bytes,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nothing: 1 is `yes`, 0 is `no`.
    Switch,
}

impl Unit {
    /// The word for a person.
    pub fn word(self) -> &'static str {
        match self {
            Unit::Count => "a number",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Millis => "milliseconds",
            Unit::Micros => "microseconds",
            Unit::Switch => "yes or no",
        }
    }
}

/// The settings, as indexes into [`SETTINGS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Knob {
    /// `maos.clock-max-drift-ms`
    ClockMaxDrift,
    /// `maos.history-max-versions`
    HistoryMaxVersions,
    /// `maos.history-max-age`
    HistoryMaxAge,
    /// `maos.history-max-bytes`
    HistoryMaxBytes,
    /// `maos.history-compress-min-bytes`
    HistoryCompressMin,
    /// `maos.value-max-bytes`
    ValueMax,
    /// `maos.tombstone-ttl`
    TombstoneTtl,
    /// `maos.background-effort-us`
    BackgroundEffort,
    /// `maos.pause-guard-ms`
    PauseGuard,
    /// `maos.merge-function-max-ms`
    MergeFunctionMax,
    /// `maos.pool-bytes`
    PoolBytes,
    /// `maos.changes-max-bytes`
    ChangesMax,
    /// `maos.range-index`
    RangeIndex,
    /// `maos.backup-plain`
    BackupPlain,
    /// `maos.backup-buffer-bytes`
    BackupBuffer,
    /// `maos.backup-interval`
    BackupInterval,
    /// `maos.backup-full-every`
    BackupFullEvery,
    /// `maos.backup-keep`
    BackupKeep,
    /// `maos.backup-keep-seconds`
    BackupKeepSeconds,
    /// `maos.backup-on-replicas`
    BackupOnReplicas,
}

/// Every setting there is, in the order of [`Knob`].
pub const SETTINGS: &[Setting] = &[
    Setting {
        id: Knob::ClockMaxDrift,
        name: "clock-max-drift-ms",
        default: 86_400_000,
        min: 1_000,
        max: 31_536_000_000,
        unit: Unit::Millis,
        meaning: "How far ahead of the wall clock a stamp from outside may lie. RESTORE refuses a payload beyond it; one that arrives in an RDB file, an AOF or from a master is kept as it is, counted in INFO, and does not move this node's clock.",
    },
    Setting {
        id: Knob::HistoryMaxVersions,
        name: "history-max-versions",
        default: 100,
        min: 1,
        max: 100_000,
        unit: Unit::Count,
        meaning: "How many versions of a key are kept, the current one among them. 1 keeps no history.",
    },
    Setting {
        id: Knob::HistoryMaxAge,
        name: "history-max-age",
        default: 30 * 86_400,
        min: 1,
        max: 100 * 365 * 86_400,
        unit: Unit::Seconds,
        meaning: "How long a version is kept after another one has replaced it. So every instant of this span can be read back.",
    },
    Setting {
        id: Knob::HistoryMaxBytes,
        name: "history-max-bytes",
        default: 1 << 20,
        min: 0,
        max: 1 << 30,
        unit: Unit::Bytes,
        meaning: "How many bytes the replaced versions of one key may hold, as stored (compressed where they are). The current version does not count.",
    },
    Setting {
        id: Knob::HistoryCompressMin,
        name: "history-compress-min-bytes",
        default: 256,
        min: 0,
        max: 1 << 30,
        unit: Unit::Bytes,
        meaning: "Replaced versions whose value is at least this long are compressed (LZ4) by the background pass, where that makes them smaller. A version is looked at once: a change of this setting holds for those that are replaced later, and after a restart for all. 0 compresses nothing.",
    },
    Setting {
        id: Knob::ValueMax,
        name: "value-max-bytes",
        default: 8 << 20,
        min: 1,
        max: HARD_VALUE_MAX,
        unit: Unit::Bytes,
        meaning: "The longest value that is taken.",
    },
    Setting {
        id: Knob::TombstoneTtl,
        name: "tombstone-ttl",
        default: 86_400,
        min: 0,
        max: 100 * 365 * 86_400,
        unit: Unit::Seconds,
        meaning: "How long the tombstone of MAOS.DEL and the history under it stay, so that a deletion can be rolled back. 0 keeps them until a plain DEL.",
    },
    Setting {
        id: Knob::BackgroundEffort,
        name: "background-effort-us",
        default: 1_000,
        min: 0,
        max: 50_000,
        unit: Unit::Micros,
        meaning: "How much time the background pass (trimming by age, compression) may take out of each 100 milliseconds, a tenth of it at a time. While a backup is made it rests. 0 stops it.",
    },
    Setting {
        id: Knob::PauseGuard,
        name: "pause-guard-ms",
        default: 0,
        min: 0,
        max: 3_600_000,
        unit: Unit::Millis,
        meaning: "Outside a cluster: a server that slept longer than this (a stopped process, a paused machine) may have been replaced by a replica. For as long again it grants no locks, renews none and refuses conditional writes with BUSY, so that whoever replaced it (Sentinel) can say so. 0 is off. In a cluster the node timeout takes this place, and a majority of the masters ends it.",
    },
    Setting {
        id: Knob::MergeFunctionMax,
        name: "merge-function-max-ms",
        default: 1_000,
        min: 1,
        max: 3_600_000,
        unit: Unit::Millis,
        meaning: "How long a Redis Function that MAOS.MERGE calls may take; what it made later than this is refused. The server does nothing else meanwhile. One that does not end is ended by FUNCTION KILL, after busy-reply-threshold.",
    },
    Setting {
        id: Knob::PoolBytes,
        name: "pool-bytes",
        default: 10 << 30,
        min: 0,
        max: (1 << 53) - 1,
        unit: Unit::Bytes,
        meaning: "How many bytes all partitions may be given together, in a cluster those of all nodes. MAOS.PARTITION CREATE and ALTER are refused beyond it. Keys outside of partitions do not count. Set it to the same on every node.",
    },
    Setting {
        id: Knob::ChangesMax,
        name: "changes-max-bytes",
        default: 16 << 20,
        min: 0,
        max: 64 << 30,
        unit: Unit::Bytes,
        meaning: "How many bytes the change log of a node may take, from which MAOS.WATCH is answered: an event takes about 50 bytes and those of its key. When it is full the oldest go, and who comes back for them is told COMPACTED. Memory is taken as events come. 0 keeps no log, and nobody can watch. Set it to the same on masters and replicas.",
    },
    Setting {
        id: Knob::RangeIndex,
        name: "range-index",
        default: 1,
        min: 0,
        max: 1,
        unit: Unit::Switch,
        meaning: "Whether the names of the keys are kept in order, which MAOS.RANGE goes by: it takes memory for each key, most of all for names that have little in common. Switched on later it is made in the background; until it is whole, MAOS.RANGE answers BUSY.",
    },
    Setting {
        id: Knob::BackupPlain,
        name: "backup-plain",
        default: 0,
        min: 0,
        max: 1,
        unit: Unit::Switch,
        meaning: "Whether backups are made where no key is known, which anybody can read who reads the file. Otherwise MAOS.BACKUP CREATE is refused then.",
    },
    Setting {
        id: Knob::BackupBuffer,
        name: "backup-buffer-bytes",
        default: 256 << 20,
        min: 64 << 10,
        max: 64 << 30,
        unit: Unit::Bytes,
        meaning: "How many bytes of a backup may wait to be written. What is written over or removed while a backup is made has to be kept until the backup has it; if the disk is so slow that more than this would wait, the backup fails and the writes go on.",
    },
    Setting {
        id: Knob::BackupInterval,
        name: "backup-interval",
        default: 0,
        min: 0,
        max: 10 * 365 * 86_400,
        unit: Unit::Seconds,
        meaning: "How much time lies between two backups that the node makes by itself. They are called scheduled, hold all keys, and go by what is in maos.backup-dir: a restart goes on where it was. Each is read to its last byte once it is made, and all that it goes on from; INFO maos says what came of it. One that fails is tried again after this time, or a minute if that is shorter. 0 makes none.",
    },
    Setting {
        id: Knob::BackupFullEvery,
        name: "backup-full-every",
        default: 7,
        min: 1,
        max: SCHEDULED_LINKS_MAX,
        unit: Unit::Count,
        meaning: "Of the scheduled backups every so manieth is full, those between hold what has changed since the one before. 1 makes every one full. After one that was damaged, or lacks what it goes on from, the next one is full.",
    },
    Setting {
        id: Knob::BackupKeep,
        name: "backup-keep",
        default: 0,
        min: 0,
        max: 100_000,
        unit: Unit::Count,
        meaning: "How many scheduled backups are kept at least, the newest of them. Older ones are removed when a newer one has been made and found good, unless a backup that stays goes on from them: so somewhat more stay than this, up to maos.backup-full-every. Only those that this node made (in a cluster its id, elsewhere its host and port) are ever removed. 0 counts none: see maos.backup-keep-seconds.",
    },
    Setting {
        id: Knob::BackupKeepSeconds,
        name: "backup-keep-seconds",
        default: 0,
        min: 0,
        max: 100 * 365 * 86_400,
        unit: Unit::Seconds,
        meaning: "How long scheduled backups are kept at least. Those that are older are removed as maos.backup-keep says; where both are set, those that both let go. The newest one always stays. 0 is no bound: where both are 0 all stay for ever.",
    },
    Setting {
        id: Knob::BackupOnReplicas,
        name: "backup-on-replicas",
        default: 0,
        min: 0,
        max: 1,
        unit: Unit::Switch,
        meaning: "Whether a node makes scheduled backups while it is a replica, too. Otherwise it begins when it becomes a master.",
    },
];

/// One setting that is text, `maos.<name>` in `redis.conf`. Cannot be changed while the server runs.
#[derive(Debug)]
pub struct Text {
    /// The name without the module's prefix.
    pub name: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// What it may look like.
    pub example: &'static str,
}

/// The settings that are text; without a line in `redis.conf` they are empty.
pub const TEXTS: &[Text] = &[
    Text {
        name: "backup-dir",
        meaning: "The directory of the backups. It must exist, and be the server's own to write to. Empty: MAOS.BACKUP is off.",
        example: "/var/lib/redis/backups",
    },
    Text {
        name: "backup-key-file",
        meaning: "The file with the keys that encrypt backups: a line for each, its id and 64 hexadecimal digits. The first one is used, the others only open what was made before. It must belong to the server's user, and be readable by nobody else (mode 0600). The variable MAOS_BACKUP_ENCRYPTION_KEY of the server's environment takes its place. It is read again for each backup. Neither: see maos.backup-plain.",
        example: "/etc/redis/backup.keys",
    },
];

/// No setting lets a value be longer: 64 MiB. What is loaded is held to this.
pub const HARD_VALUE_MAX: u64 = 64 << 20;
/// The longest metadata of a version, in bytes.
pub const META_MAX: usize = 64 << 10;
/// The longest request id, in bytes.
pub const REQID_MAX: usize = 64;
/// The longest agent name, in bytes.
pub const AGENT_MAX: usize = 256;
/// The longest name of a lock's owner, or of a fence, in bytes.
pub const OWNER_MAX: usize = 256;
/// The longest note of a lock, in bytes.
pub const NOTE_MAX: usize = 1024;
/// The longest lease: 365 days.
pub const LEASE_MAX_MS: i64 = 365 * 86_400_000;
/// The longest wait for a lock: one hour. Who wants to wait longer asks again, and sees that the store lives.
pub const WAIT_MAX_MS: i64 = 3_600_000;
/// How many may share a lock.
pub const HOLDERS_MAX: usize = 256;
/// How many tokens a write of several keys may show.
pub const TOKENS_MAX: usize = 128;
/// For how many names a record keeps the highest token of `FENCE`.
pub const FENCES_MAX: usize = 8;
/// The deepest nesting of JSON.
pub const JSON_DEPTH_MAX: usize = 64;
/// The most keys one command may name.
pub const KEYS_MAX: usize = 10_000;
/// The most operations of one transaction, those of THEN and of ELSE together.
pub const OPERATIONS_MAX: usize = 128;
/// The most keys of one transaction, and the most conditions.
pub const TXN_KEYS_MAX: usize = 1024;
/// The longest name of a Redis Function, in bytes.
pub const FUNCTION_MAX: usize = 256;
/// A retried write is recognised among this many versions of a key, the current one first.
pub const REQID_WINDOW: usize = 16;
/// The most bytes of values and metadata that one reply carries.
pub const REPLY_MAX: usize = 64 << 20;
/// The longest ACL user name that is kept with a version.
pub const AUTHOR_MAX: usize = 64 << 10;
/// The most numbers, strings, arrays and objects that a document may have to be taken apart, or two to be
/// compared.
pub const JSON_ELEMENTS_MAX: usize = 500_000;
/// The longest difference of two documents, in bytes.
pub const DIFF_MAX: usize = 4 << 20;
/// The most bytes of compressed values that a payload from a client may unpack to.
pub const UNPACKED_MAX: usize = 256 << 20;
/// The longest name of a partition, in bytes.
pub const PARTITION_NAME_MAX: usize = 256;
/// The longest prefix of a partition, in bytes.
pub const PREFIX_MAX: usize = 256;
/// The most prefixes of one partition.
pub const PREFIXES_MAX: usize = 64;
/// The longest pattern of a watch, in bytes.
pub const PATTERN_MAX: usize = 1024;
/// The most patterns of one watch.
pub const PATTERNS_MAX: usize = 1024;
/// The longest that a watch waits for something to happen: one hour.
pub const BLOCK_MAX_MS: i64 = 3_600_000;
/// The most events that one reply carries, but for the rest of a commit.
pub const EVENTS_MAX: i64 = 10_000;
/// So many events one reply carries without `COUNT`.
pub const EVENTS_DEFAULT: usize = 1_000;
/// So many events of the log one watch looks through before it answers, whatever it has found.
pub const EVENTS_LOOKED_AT: usize = 100_000;
/// The most keys that one listing carries.
pub const LISTED_MAX: i64 = 10_000;
/// So many keys one listing carries without `COUNT`.
pub const LISTED_DEFAULT: usize = 1_000;
/// So many keys one listing looks at before it answers, whatever it has found.
pub const LISTED_LOOKED_AT: usize = 10_000;
/// The longest name of a backup, in bytes.
pub const BACKUP_NAME_MAX: usize = 64;
/// The most prefixes that a backup, or a restore, may be given.
pub const BACKUP_PREFIXES_MAX: usize = 1024;
/// The longest of them, in bytes.
pub const BACKUP_PREFIX_MAX: usize = 512;
/// The most scheduled backups of one chain: the full one, and those that go on from it.
pub const SCHEDULED_LINKS_MAX: u64 = 500;
/// The most partitions that there may be, in a cluster on all nodes.
pub const PARTITIONS_MAX: usize = 10_000;
/// The most versions a loaded record may hold.
pub const HARD_VERSIONS_MAX: u64 = 100_001;

/// The settings of the backups that a node makes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Schedule {
    /// Microseconds from one to the next; 0: there are none.
    pub every_us: u64,
    /// Every so manieth is full; 0 is as good as 1.
    pub full_every: usize,
    /// So many of the newest stay; 0: they are not counted.
    pub keep: usize,
    /// Microseconds for which each stays; 0: their age does not count.
    pub keep_us: u64,
    /// Replicas make them too.
    pub on_replicas: bool,
}

/// The settings that a decision sees, in the units it works in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Versions kept, the current one among them.
    pub history_versions: usize,
    /// Microseconds a replaced version is kept.
    pub history_age_us: u64,
    /// Bytes of replaced versions.
    pub history_bytes: usize,
    /// Compress values from this length on; 0 for none.
    pub compress_min: usize,
    /// The longest value.
    pub value_max: usize,
    /// Milliseconds a tombstone stays; 0 for ever.
    pub tombstone_ms: u64,
    /// Microseconds a stamp from outside may lie ahead.
    pub drift_us: u64,
    /// Microseconds of background work in 100 milliseconds.
    pub background_us: u64,
    /// Milliseconds that a function may take.
    pub function_ms: u64,
    /// Microseconds that a server outside a cluster may sleep; 0 for any.
    pub pause_us: u64,
    /// Bytes that all partitions may be given.
    pub pool: u64,
    /// Bytes that the change log may take; 0: there is none.
    pub changes: usize,
    /// Whether keys are listed in order.
    pub index: bool,
    /// Milliseconds until a key expires that is written without a word about it; 0: it does not. A
    /// partition's policy.
    pub key_ttl_ms: u64,
    /// Whether backups may go without a key.
    pub backup_plain: bool,
    /// Bytes of a backup that may wait to be written.
    pub backup_buffer: usize,
    /// The backups that the node makes by itself.
    pub schedule: Schedule,
}

impl Limits {
    /// The limits for the values of the settings, in the order of [`SETTINGS`].
    pub fn from_values(value: impl Fn(Knob) -> u64) -> Limits {
        let size = |k| usize::try_from(value(k)).unwrap_or(usize::MAX);
        Limits {
            history_versions: size(Knob::HistoryMaxVersions),
            history_age_us: value(Knob::HistoryMaxAge).saturating_mul(1_000_000),
            history_bytes: size(Knob::HistoryMaxBytes),
            compress_min: size(Knob::HistoryCompressMin),
            value_max: size(Knob::ValueMax),
            tombstone_ms: value(Knob::TombstoneTtl).saturating_mul(1_000),
            drift_us: value(Knob::ClockMaxDrift).saturating_mul(1_000),
            background_us: value(Knob::BackgroundEffort),
            function_ms: value(Knob::MergeFunctionMax),
            pause_us: value(Knob::PauseGuard).saturating_mul(1_000),
            pool: value(Knob::PoolBytes),
            changes: size(Knob::ChangesMax),
            index: value(Knob::RangeIndex) != 0,
            key_ttl_ms: 0,
            backup_plain: value(Knob::BackupPlain) != 0,
            backup_buffer: size(Knob::BackupBuffer),
            schedule: Schedule {
                every_us: value(Knob::BackupInterval).saturating_mul(1_000_000),
                full_every: size(Knob::BackupFullEvery),
                keep: size(Knob::BackupKeep),
                keep_us: value(Knob::BackupKeepSeconds).saturating_mul(1_000_000),
                on_replicas: value(Knob::BackupOnReplicas) != 0,
            },
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::from_values(|k| SETTINGS[k as usize].default)
    }
}

/// The settings as they stand in `redis.conf.example`: a comment and the default for each.
pub fn example() -> String {
    let mut out = String::new();
    for s in SETTINGS {
        for line in wrap(s.meaning, 96) {
            out += &format!("# {line}\n");
        }
        let (range, default) = match s.unit {
            Unit::Switch => (
                String::new(),
                ["no", "yes"][usize::from(s.default == 1)].into(),
            ),
            _ => (
                format!(", from {} to {}", s.min, s.max),
                s.default.to_string(),
            ),
        };
        let word = s.unit.word();
        out += &format!("# In {word}{range}.\nmaos.{} {default}\n\n", s.name);
    }
    for t in TEXTS {
        for line in wrap(t.meaning, 96) {
            out += &format!("# {line}\n");
        }
        out += &format!(
            "# Cannot be changed while the server runs.\n# maos.{} {}\n\n",
            t.name, t.example
        );
    }
    out
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(word.to_string());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stand_in_the_order_of_their_knobs() {
        for (i, s) in SETTINGS.iter().enumerate() {
            assert_eq!(s.id as usize, i, "{}", s.name);
            assert!(s.min <= s.default && s.default <= s.max, "{}", s.name);
            assert!(s.meaning.ends_with('.'), "{}", s.name);
        }
    }
}
