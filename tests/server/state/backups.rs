//! Backups: one instant whatever happens meanwhile, private, verified, and never turning time back.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use maos_core::generate::Rng;

use super::oracle::{now_us, number};
use super::persistence::wait_rewritten;
use super::{fill, metric, picture, replica_of};
use crate::harness::*;

/// Two keys, of which the first one seals.
pub const KEYS: &str = "new 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n\
                    old ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100\n";

/// Backups in the server's own directory, unsealed.
pub const PLAIN: [(&str, &str); 2] = [("maos.backup-dir", "."), ("maos.backup-plain", "yes")];

/// A server whose backups lie in its own directory, unsealed.
pub fn plain(lines: &[(&str, &str)]) -> Server {
    Server::with(&[lines, &PLAIN].concat())
}

/// A server with keys.
fn sealed(keys: &str) -> Server {
    sealed_with(keys, &[])
}

/// A server with keys, and more in its settings.
pub fn sealed_with(keys: &str, more: &[(&str, &str)]) -> Server {
    let lines = [
        ("maos.backup-dir", "."),
        ("maos.backup-key-file", "backup.keys"),
    ];
    let server = Server::with(&[&lines, more].concat());
    write_keys(&server, keys, 0o600);
    server
}

pub fn write_keys(server: &Server, keys: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let path = server.dir().join("backup.keys");
    fs::write(&path, keys).expect("the key file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
}

/// Waits until a job has ended, and gives its status.
#[track_caller]
pub fn ended(conn: &mut Conn, id: &str) -> Reply {
    let mut status = Reply::Nil;
    eventually(PATIENCE, "the job ends", || {
        status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
        status.field("state").text() != "running"
    });
    status
}

/// A backup of everything, done.
#[track_caller]
pub fn backup(conn: &mut Conn, name: &str) -> String {
    let id = cmd!(conn, "MAOS.BACKUP", "CREATE", name).text().to_owned();
    let status = ended(conn, &id);
    assert_eq!(status.field("state").text(), "done", "{status}");
    id
}

/// Restores, and gives what came of it.
#[track_caller]
pub fn restored(conn: &mut Conn, id: &str, words: &str) -> Reply {
    let job = conn.run(&format!("MAOS.BACKUP RESTORE {id} {words}"));
    let status = ended(conn, job.text());
    assert_eq!(status.field("state").text(), "done", "{status}");
    status
}

fn counts(status: &Reply) -> Vec<(String, i64)> {
    let names = ["keys", "kept", "same", "expired", "refused"];
    let one = |name: &&str| ((*name).to_owned(), status.field(name).int());
    names.iter().map(one).filter(|(_, n)| *n != 0).collect()
}

fn of(list: &[(&str, i64)]) -> Vec<(String, i64)> {
    list.iter()
        .map(|(name, n)| ((*name).to_owned(), *n))
        .collect()
}

/// The file of a backup.
pub fn file_of(server: &Server, id: &str) -> PathBuf {
    let mut files = fs::read_dir(server.dir()).expect("its directory");
    let is_it = |path: &PathBuf| path.to_string_lossy().contains(id);
    let found = files.find_map(|f| Some(f.ok()?.path()).filter(is_it));
    found.expect("the file of the backup")
}

/// What is being written, or was left over.
pub fn parts(server: &Server) -> Vec<PathBuf> {
    let files = fs::read_dir(server.dir()).expect("its directory");
    let names = files.filter_map(|f| Some(f.ok()?.path()));
    names
        .filter(|p| p.to_string_lossy().ends_with(".part"))
        .collect()
}

/// Makes what was left over so old that the next backup sweeps it up, unless somebody holds it.
pub fn age_parts(server: &Server) {
    for part in parts(server) {
        let file = fs::File::options().write(true).open(&part).expect("it");
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(long_ago).expect("an older time");
    }
}

/// Another backup, as soon as nothing of the one before is left to do.
#[track_caller]
pub fn next_backup(conn: &mut Conn, name: &str) -> Reply {
    let mut begun = Reply::Nil;
    eventually(PATIENCE, "another one may begin", || {
        begun = cmd!(conn, "MAOS.BACKUP", "CREATE", name);
        let busy = begun.is_err() && begun.code() == "BUSY";
        !busy
    });
    let status = ended(conn, begun.text());
    assert_eq!(status.field("state").text(), "done", "{status}");
    status
}

/// Puts a backup of one server where another one finds it.
pub fn carry(from: &Server, to: &Server, id: &str) {
    let file = file_of(from, id);
    let name = file.file_name().expect("a name");
    fs::copy(&file, to.dir().join(name)).expect("a copy");
}

#[test]
fn what_is_restored_is_what_was_there() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    let mut keys = fill(conn);
    conn.run("MAOS.PARTITION CREATE share BYTES 100000 PREFIX charged: HISTORY 5 ONFULL evict")
        .int();
    for n in 0..9 {
        cmd!(conn, "MAOS.SET", "charged:1", n.to_string()).int();
    }
    conn.run("MAOS.SET chosen v PARTITION share FENCE elsewhere 7")
        .int();
    keys.extend(["charged:1", "chosen"]);
    let (held, id) = (picture(conn, &keys), backup(conn, "all"));
    let listed = conn.run("MAOS.BACKUP LIST");
    assert_eq!(listed.array()[0].field("id").text(), id);
    assert_eq!(listed.array()[0].field("name").text(), "all");
    let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &id);
    assert_eq!(verified.field("keys").int(), keys.len() as i64);
    assert_eq!(verified.field("partitions").int(), 1);
    // Elsewhere, where nothing has been seen, everything is as it was: versions, histories, authors, metadata, expiries.
    let other = plain(&[]);
    carry(&server, &other, &id);
    let there = &mut other.conn();
    let replica = replica_of(&other);
    let status = restored(there, &id, "");
    assert_eq!(
        counts(&status),
        of(&[("keys", keys.len() as i64)]),
        "{status}"
    );
    assert_eq!(picture(there, &keys), held);
    let share = there.run("MAOS.PARTITION INFO share");
    let figures = |info: &Reply| ["quota", "used", "keys", "history"].map(|f| info.field(f).int());
    assert_eq!(
        figures(&share),
        figures(&conn.run("MAOS.PARTITION INFO share"))
    );
    assert_eq!(
        there.run("MAOS.GET chosen FULL").field("partition").text(),
        "share"
    );
    // Two backups of the same state come to the same.
    let again = backup(there, "again");
    let digest = |conn: &mut Conn, id: &str| {
        let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", id);
        verified.field("digest").text().to_owned()
    };
    let (a, b) = (digest(conn, &id), digest(there, &id));
    assert_eq!(a, b);
    let _ = digest(there, &again);
    // On the replica too, and after the file was read again.
    wait_synced(&other, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(there));
    there.run("DEBUG RELOAD").ok();
    assert_eq!(picture(there, &keys), held);
    // Once more: it is all there already.
    let status = restored(there, &id, "REPLACE");
    assert_eq!(
        counts(&status),
        of(&[("same", keys.len() as i64)]),
        "{status}"
    );
    assert_eq!(picture(there, &keys), held);
}

#[test]
fn what_was_restored_is_in_the_append_only_file() {
    let server = plain(&[("appendonly", "yes")]);
    let conn = &mut server.conn();
    let keys = fill(conn);
    let id = backup(conn, "b");
    conn.run("FLUSHALL").ok();
    restored(conn, &id, "");
    let held = picture(conn, &keys);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(picture(conn, &keys), held);
    conn.run("BGREWRITEAOF");
    wait_rewritten(conn);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(picture(conn, &keys), held);
}

/// What may happen to keys by whatever command, sent together with the request that begins the backup: so all of it comes
/// after the instant, and before the backup has anything.
#[test]
fn whatever_happens_after_the_instant_is_not_in_it() {
    let ours = [
        "MAOS.SET k00 x",
        "MAOS.MSET 2 k01 x new x",
        "MAOS.DEL k02",
        "MAOS.CAS k03 0 x",
        "MAOS.ROLLBACK k29 VERSION -1",
        "MAOS.TXN 2 k04 k05 THEN SET k04 x THEN DEL k05",
        "MAOS.SET k06 x EX 5",
        "MAOS.LOCK k07 me 100000",
        "MAOS.PARTITION CREATE p BYTES 10000 PREFIX k",
        "MAOS.SET k08 y",
        "MAOS.SET expires y KEEPTTL",
    ];
    let theirs = [
        "DEL k00 k01",
        "UNLINK k02",
        "RENAME k04 renamed",
        "RENAME k05 k06",
        "COPY k07 k08 REPLACE",
        "COPY k09 new",
        "SET k10 plain",
        "MOVE k11 3",
        "EVAL 'redis.call(\"DEL\", KEYS[1]); return 1' 1 k12",
    ];
    let expiries = [
        "PEXPIRE k02 1",
        "PERSIST expires",
        "PEXPIRE persists 5000",
        "PEXPIREAT k03 1",
        "DEL expires",
        "EVAL 'redis.call(\"PEXPIRE\", KEYS[1], 7); return 1' 1 k01",
    ];
    let cases: [(&[&str], bool); 7] = [
        (&ours, false),
        (&ours, true),
        (&theirs, false),
        (&theirs, true),
        (&expiries, false),
        (&["FLUSHALL"], true),
        (&["FLUSHDB ASYNC", "MAOS.SET k00 new"], false),
    ];
    for (happens, together) in cases {
        let server = plain(&[]);
        let conn = &mut server.conn();
        for n in 0..30 {
            cmd!(conn, "MAOS.SET", format!("k{n:02}"), format!("v{n}")).int();
        }
        conn.run("MAOS.SET expires v PX 100000000").int();
        conn.run("MAOS.SET persists v PX 200000000").int();
        conn.run("MAOS.DEL k29").int();
        let keys: Vec<String> = (0..30).map(|n| format!("k{n:02}")).collect();
        let mut names: Vec<&str> = keys.iter().map(String::as_str).collect();
        names.extend(["expires", "persists"]);
        let held = picture(conn, &names);
        let mut lines = vec!["MAOS.BACKUP CREATE midst"];
        lines.extend(happens);
        let done = match together {
            false => conn.pipeline(&lines),
            true => {
                conn.run("MULTI").ok();
                lines.iter().for_each(|line| drop(conn.run(line)));
                conn.run("EXEC").array().to_vec()
            }
        };
        let refused = done.iter().find(|r| r.is_err());
        assert_eq!(refused, None, "{happens:?}");
        let id = done[0].text().to_owned();
        let status = ended(conn, &id);
        let state = status.field("state").text();
        assert_eq!(state, "done", "{happens:?}: {status}");
        let other = plain(&[]);
        carry(&server, &other, &id);
        let there = &mut other.conn();
        restored(there, &id, "");
        let found = picture(there, &names);
        let differs = found.iter().zip(&held).find(|(a, b)| a != b);
        assert_eq!(differs, None, "{happens:?} {together}");
        let all = there.run("DBSIZE").int();
        assert_eq!(all, names.len() as i64, "{happens:?}");
        assert_eq!(there.run("MAOS.PARTITION LIST").array().len(), 0);
    }
}

/// A key that goes to make room for another one after the instant is in it as it was, with the time at which it would expire.
#[test]
fn what_makes_room_meanwhile_is_in_it() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 8000 PREFIX e: ONFULL evict")
        .int();
    let names = ["e:0", "e:1", "e:2"];
    for name in names {
        let long = "x".repeat(1500);
        cmd!(conn, "MAOS.SET", name, long, "PX", "100000000").int();
    }
    let held = picture(conn, &names);
    let write = format!("MAOS.SET e:new {}", "y".repeat(4500));
    let done = conn.pipeline(&["MAOS.BACKUP CREATE b", &write]);
    assert!(!done[1].is_err(), "{}", done[1]);
    assert!(conn.run("EXISTS e:0 e:1 e:2").int() < 3);
    let id = done[0].text().to_owned();
    assert_eq!(ended(conn, &id).field("state").text(), "done");
    let other = plain(&[]);
    carry(&server, &other, &id);
    let there = &mut other.conn();
    restored(there, &id, "");
    assert_eq!(picture(there, &names), held);
}

/// What comes to its time while the backup is made is in it with that time, or not at all: never as if it lasted.
#[test]
fn what_expires_meanwhile_does_not_come_back_to_stay() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET stays v").int();
    conn.run("MAOS.SET brief v PX 40").int();
    let done = conn.pipeline(&["MAOS.BACKUP CREATE b", "DEBUG SLEEP 0.1", "EXISTS brief"]);
    assert_eq!(done[2].int(), 0);
    let id = done[0].text().to_owned();
    assert_eq!(ended(conn, &id).field("state").text(), "done");
    conn.run("FLUSHALL").ok();
    restored(conn, &id, "");
    assert_eq!(conn.run("EXISTS stays brief").int(), 1);
}

/// Writers move amounts between keys in one step, so their sum is always the same; they also write, delete, remove,
/// rename, and give expiries to others. Every backup that is made meanwhile holds the sum, and of every key the newest
/// version that the instant allows.
#[test]
fn a_backup_is_one_instant_under_load() {
    let rounds = number("MAOS_TEST_BACKUPS").unwrap_or(5);
    let lines = [
        ("maos.history-max-versions", "100000"),
        ("maos.history-max-bytes", "1gb"),
    ];
    let server = plain(&lines);
    const ACCOUNTS: usize = 200;
    const SUM: i64 = 1_000_000;
    {
        let conn = &mut server.conn();
        for n in 0..ACCOUNTS {
            let amount = if n == 0 { SUM } else { 0 };
            cmd!(conn, "MAOS.SET", format!("account:{n}"), amount.to_string()).int();
        }
        // Enough to take a while.
        let filler: Vec<String> = (0..20_000)
            .map(|n| format!("MAOS.SET fill:{n} {n}"))
            .collect();
        conn.pipeline(&filler);
    }
    let stop = AtomicBool::new(false);
    let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
    println!("MAOS_TEST_SEED={seed}");
    let moves = |n: u64| {
        let (mut rng, mut conn) = (Rng::new(seed + n), server.conn());
        while !stop.load(Relaxed) {
            let (a, b) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
            if a == b {
                continue;
            }
            let amount = 1 + rng.below(50);
            let line = format!(
                "MAOS.TXN 2 account:{a} account:{b} THEN INCRBY account:{a} -{amount} THEN INCRBY account:{b} {amount}"
            );
            let moved = conn.run(&line);
            assert!(!moved.is_err(), "{moved}");
            let key = format!("other:{}", rng.below(300));
            match rng.below(9) {
                0 => drop(cmd!(conn, "MAOS.DEL", key)),
                1 => drop(cmd!(conn, "DEL", key)),
                2 => drop(cmd!(
                    conn,
                    "RENAME",
                    key,
                    format!("other:{}", rng.below(300))
                )),
                3 => drop(cmd!(conn, "PEXPIRE", key, (1 + rng.below(30)).to_string())),
                4 => drop(cmd!(conn, "MAOS.LOCK", key, "me", "5")),
                _ => drop(cmd!(conn, "MAOS.SET", key, amount.to_string())),
            }
        }
    };
    let conn = &mut server.conn();
    let ids = std::thread::scope(|scope| {
        for n in 0..3 {
            scope.spawn(move || moves(n));
        }
        let ids: Vec<String> = (0..rounds)
            .map(|n| backup(conn, &format!("b{n}")))
            .collect();
        stop.store(true, Relaxed);
        ids
    });
    for id in ids {
        let other = plain(&lines);
        carry(&server, &other, &id);
        let there = &mut other.conn();
        restored(there, &id, "");
        let instant = cmd!(conn, "MAOS.BACKUP", "STATUS", &id)
            .field("instant")
            .int();
        let mut sum = 0;
        for n in 0..ACCOUNTS {
            let key = format!("account:{n}");
            let held = cmd!(there, "MAOS.GET", &key, "WITHVERSION");
            let (value, version) = (held.array()[0].text(), held.array()[1].int());
            sum += value.parse::<i64>().expect("a number");
            // The newest that the instant allows, and with the whole history below it.
            let history = cmd!(
                conn,
                "MAOS.HISTORY",
                &key,
                "TO",
                instant.to_string(),
                "COUNT",
                "100000"
            );
            let versions: Vec<i64> = history
                .array()
                .iter()
                .map(|v| v.field("version").int())
                .collect();
            assert_eq!(versions.last(), Some(&version), "{key} as of {instant}");
            let kept = cmd!(there, "MAOS.HISTORY", &key, "COUNT", "100000");
            let kept: Vec<i64> = kept
                .array()
                .iter()
                .map(|v| v.field("version").int())
                .collect();
            assert_eq!(kept, versions, "{key}");
        }
        assert_eq!(sum, SUM, "backup {id}");
        assert_eq!(there.run("MAOS.GET fill:19999").text(), "19999");
        // Nothing in it is newer than the instant.
        let newest = cmd!(there, "MAOS.BACKUP", "VERIFY", &id)
            .field("newest")
            .int();
        assert!(newest <= instant, "{newest} {instant}");
    }
}

#[test]
fn what_is_there_stays_or_is_replaced_as_asked() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    for key in ["same", "changed", "gone", "locked", "typed", "late"] {
        cmd!(conn, "MAOS.SET", key, "old").int();
    }
    conn.run("MAOS.DEL buried").int();
    conn.run("MAOS.SET buried v").int();
    conn.run("MAOS.DEL buried").int();
    conn.run("MAOS.SET brief v PX 3000").int();
    let id = backup(conn, "b");
    let was =
        |conn: &mut Conn, key: &str| cmd!(conn, "MAOS.GET", key, "WITHVERSION").array()[1].int();
    let before = was(conn, "changed");
    conn.run("MAOS.SET changed new").int();
    let since = was(conn, "changed");
    conn.run("DEL gone typed").int();
    conn.run("SET typed text").ok();
    conn.run("MAOS.SET locked new").int();
    conn.run("MAOS.LOCK locked me 100000").array();
    conn.run("MAOS.SET buried new").int();
    conn.run("MAOS.DEL late").int();
    eventually(PATIENCE, "it expires", || {
        conn.run("EXISTS brief").int() == 0
    });
    // What would be, and nothing is.
    let held = digest_all(conn);
    let dry = restored(conn, &id, "DRYRUN REPLACE");
    let expected = of(&[
        ("keys", 3),
        ("kept", 1),
        ("same", 1),
        ("expired", 1),
        ("refused", 2),
    ]);
    assert_eq!(counts(&dry), expected, "{dry}");
    assert_eq!(digest_all(conn), held);
    // Kept, but for what is not there: it was purged, or deleted.
    let kept = restored(conn, &id, "");
    let expected = of(&[("keys", 2), ("kept", 4), ("same", 1), ("expired", 1)]);
    assert_eq!(counts(&kept), expected, "{kept}");
    for (key, value) in [
        ("changed", "new"),
        ("gone", "old"),
        ("late", "old"),
        ("buried", "new"),
    ] {
        assert_eq!(cmd!(conn, "MAOS.GET", key).text(), value, "{key}");
    }
    // Replaced: but no version comes back that had been seen.
    let replaced = restored(conn, &id, "KEEP");
    assert_eq!(
        counts(&replaced),
        of(&[("kept", 4), ("same", 3), ("expired", 1)]),
        "{replaced}"
    );
    let replaced = restored(conn, &id, "REPLACE");
    let expected = of(&[
        ("keys", 1),
        ("kept", 1),
        ("same", 3),
        ("expired", 1),
        ("refused", 2),
    ]);
    assert_eq!(counts(&replaced), expected, "{replaced}");
    assert_eq!(conn.run("MAOS.GET changed").text(), "old");
    let now = was(conn, "changed");
    assert!(now > since && since > before, "{before} {since} {now}");
    for stale in [before, since] {
        let cas = cmd!(conn, "MAOS.CAS", "changed", stale.to_string(), "x");
        assert_eq!(cas.array()[0].int(), 0, "{stale} has been given already");
    }
    let reason = replaced.field("reason").text();
    assert!(
        reason.contains("locked") || reason.contains("type"),
        "{reason}"
    );
    assert_eq!(conn.run("MAOS.GET locked").text(), "new");
    assert_eq!(conn.run("GET typed").text(), "text");
}

#[test]
fn what_is_brought_back_is_an_event_and_may_get_another_name() {
    let server = plain(&[]);
    let replica = replica_of(&server);
    let conn = &mut server.conn();
    conn.run("MAOS.MSET 2 app:a 1 app:b 2 BY planner").int();
    conn.run("MAOS.SET other v").int();
    let id = backup(conn, "b");
    let cursor = conn.run("MAOS.WATCH *").array()[0].text().to_owned();
    let status = restored(conn, &id, "PREFIX app: INTO copy:of:");
    assert_eq!(counts(&status), of(&[("keys", 2)]));
    assert_eq!(status.field("total").int(), 2);
    assert_eq!(
        conn.run("MAOS.GET copy:of:a FULL").field("agent").text(),
        "planner"
    );
    assert_eq!(conn.run("EXISTS copy:of:other app:a").int(), 1);
    wait_synced(&server, &replica);
    for conn in [conn, &mut replica.conn()] {
        let heard = cmd!(conn, "MAOS.WATCH", "*", "SINCE", &cursor);
        let mut heard: Vec<(String, String)> = heard.array()[1]
            .array()
            .iter()
            .map(|e| (e.field("type").text().into(), e.field("key").text().into()))
            .collect();
        heard.sort();
        let event = |key: &str| ("restored".to_owned(), key.to_owned());
        assert_eq!(heard, [event("copy:of:a"), event("copy:of:b")]);
    }
    let conn = &mut server.conn();
    let status = restored(conn, &id, "INTO all:");
    assert_eq!(counts(&status), of(&[("keys", 3)]));
    assert_eq!(conn.run("MAOS.GET all:app:a").text(), "1");
}

#[test]
fn a_full_partition_takes_no_more_than_it_has_room_for() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 100000 PREFIX p:")
        .int();
    for n in 0..50 {
        cmd!(conn, "MAOS.SET", format!("p:{n}"), "x".repeat(100)).int();
    }
    let id = backup(conn, "b");
    let other = plain(&[]);
    carry(&server, &other, &id);
    let there = &mut other.conn();
    there
        .run("MAOS.PARTITION CREATE p BYTES 2000 PREFIX p:")
        .int();
    let status = restored(there, &id, "");
    let refused = status.field("refused").int();
    assert!(refused > 30, "{status}");
    assert_eq!(status.field("keys").int() + refused, 50);
    assert!(
        status.field("reason").text().starts_with("QUOTA"),
        "{status}"
    );
    assert!(there.run("MAOS.PARTITION INFO p").field("used").int() <= 2000);
}

#[test]
fn what_was_altered_cut_or_is_of_another_key_is_refused_before_a_key_is_touched() {
    let server = sealed(KEYS);
    let conn = &mut server.conn();
    let secret = "the secret of the agents";
    for n in 0..200 {
        cmd!(
            conn,
            "MAOS.SET",
            format!("key:{n}"),
            format!("{secret} {n}")
        )
        .int();
    }
    let id = backup(conn, "b");
    let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &id);
    assert_eq!(verified.field("key").text(), "new");
    let path = file_of(&server, &id);
    let whole = fs::read(&path).expect("the file");
    assert!(!whole.windows(10).any(|w| w == &secret.as_bytes()[..10]));
    let mode =
        fs::metadata(&path).map(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()));
    assert_eq!(mode.expect("its mode") & 0o777, 0o600);
    conn.run("FLUSHALL").ok();
    let mut rng = Rng::new(now_us());
    let flips = (0..40).map(|_| {
        let mut bytes = whole.clone();
        let at = rng.below(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        bytes
    });
    let cuts = [0, 7, 100, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec());
    let longer = [&whole[..], b"x"].concat();
    let mut bad: Vec<Vec<u8>> = flips.collect();
    bad.extend(cuts);
    bad.push(longer);
    for bytes in bad {
        fs::write(&path, &bytes).expect("the damaged file");
        let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &id);
        assert_eq!(verified.code(), "BADBACKUP", "{verified}");
        let begun = cmd!(conn, "MAOS.BACKUP", "RESTORE", &id);
        if begun.is_err() {
            assert_eq!(begun.code(), "BADBACKUP");
        } else {
            let status = ended(conn, begun.text());
            assert_eq!(status.field("state").text(), "failed", "{status}");
        }
        assert_eq!(conn.run("DBSIZE").int(), 0);
    }
    fs::write(&path, &whole).expect("the file as it was");
    // Another key of the same id; none of this id; the old one, which only opens.
    let wrong = KEYS.replace("new 0011", "new 1111");
    write_keys(&server, &wrong, 0o600);
    assert_eq!(
        cmd!(conn, "MAOS.BACKUP", "RESTORE", &id).code(),
        "BADBACKUP"
    );
    write_keys(&server, KEYS.lines().last().expect("a line"), 0o600);
    assert_eq!(cmd!(conn, "MAOS.BACKUP", "VERIFY", &id).code(), "BADBACKUP");
    let turned: Vec<&str> = KEYS.lines().rev().collect();
    write_keys(&server, &turned.join("\n"), 0o600);
    let second = backup(conn, "of-the-other-key");
    let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &second);
    assert_eq!(verified.field("key").text(), "old");
    restored(conn, &id, "");
    assert_eq!(conn.run("DBSIZE").int(), 200);
    // Keys that others may read are none.
    write_keys(&server, KEYS, 0o644);
    let refused = conn.run("MAOS.BACKUP CREATE b");
    assert!(refused.err().contains("0600"), "{refused}");
    // No key shows anywhere.
    write_keys(&server, KEYS, 0o600);
    let mut told = server.log();
    for line in [
        "CONFIG GET *",
        "INFO everything",
        "MODULE LIST",
        "SLOWLOG GET 100",
        "MAOS.BACKUP LIST",
    ] {
        told += &conn.run(line).to_string();
    }
    assert!(!told.contains("00112233") && !told.contains("ffeeddcc"));
}

#[test]
fn what_is_not_sealed_is_taken_only_where_the_settings_say_so() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let id = backup(conn, "b");
    let other = sealed(KEYS);
    carry(&server, &other, &id);
    let there = &mut other.conn();
    let refused = cmd!(there, "MAOS.BACKUP", "RESTORE", &id);
    assert!(refused.err().contains("maos.backup-plain"), "{refused}");
    there.run("CONFIG SET maos.backup-plain yes").ok();
    restored(there, &id, "");
    // Without a key and without the setting nothing is made.
    let none = Server::with(&[("maos.backup-dir", ".")]);
    let refused = none.conn().run("MAOS.BACKUP CREATE b");
    assert!(refused.err().contains("maos.backup-key-file"), "{refused}");
    let off = Server::start();
    let refused = off.conn().run("MAOS.BACKUP LIST");
    assert!(refused.err().contains("maos.backup-dir"), "{refused}");
    for line in [
        "CONFIG SET maos.backup-dir /tmp",
        "CONFIG SET maos.backup-key-file x",
    ] {
        assert!(off.conn().run(line).is_err(), "{line}");
    }
    let nowhere = Server::with(&[("maos.backup-dir", "no/such/place")]);
    assert!(nowhere.conn().run("MAOS.BACKUP CREATE b").is_err());
}

#[test]
fn bad_requests_are_refused() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    for name in [
        "../up",
        "a/b",
        "UPPER",
        "",
        ".",
        "a.b",
        "a b",
        &"x".repeat(65),
        "a\0b",
    ] {
        let refused = cmd!(conn, "MAOS.BACKUP", "CREATE", name);
        assert_eq!(refused.code(), "ERR", "{name}: {refused}");
    }
    let nobody = "0".repeat(32);
    for sub in ["STATUS", "VERIFY", "RESTORE", "CANCEL", "DELETE"] {
        let refused = cmd!(conn, "MAOS.BACKUP", sub, &nobody);
        assert_eq!(refused.code(), "NOTFOUND", "{sub}: {refused}");
        let refused = cmd!(conn, "MAOS.BACKUP", sub, "../../etc/passwd");
        assert_eq!(refused.code(), "ERR", "{sub}: {refused}");
    }
    let id = backup(conn, "b");
    let refused = conn.run(&format!(
        "MAOS.BACKUP RESTORE {id} PREFIX a PREFIX b INTO c"
    ));
    assert_eq!(refused.code(), "ERR", "{refused}");
    // Links lead nowhere.
    let path = file_of(&server, &id);
    let elsewhere = server.dir().join("elsewhere");
    fs::rename(&path, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
    assert_eq!(cmd!(conn, "MAOS.BACKUP", "VERIFY", &id).code(), "BADBACKUP");
    assert_eq!(conn.run("MAOS.BACKUP LIST").array().len(), 0);
    fs::remove_file(&path).expect("the link");
    // What has another's name is not taken for it.
    let other = path.to_string_lossy().replace(&id, &"1".repeat(32));
    fs::rename(&elsewhere, &other).expect("moved");
    let refused = cmd!(conn, "MAOS.BACKUP", "RESTORE", "1".repeat(32));
    assert_eq!(refused.code(), "BADBACKUP", "{refused}");
    assert_eq!(conn.run("MAOS.BACKUP LIST").array().len(), 0);
    // Who waits for long does not do so in a transaction.
    conn.run("MULTI").ok();
    conn.run("MAOS.BACKUP LIST");
    assert!(conn.run("EXEC").array()[0].is_err());
}

#[test]
fn only_who_may_save_may_make_and_restore_backups() {
    let server = plain(&[]);
    let admin = &mut server.conn();
    admin.run("MAOS.SET k v").int();
    let id = backup(admin, "b");
    admin.run("ACL SETUSER agent on >a ~* +@all -bgsave").ok();
    admin
        .run("ACL SETUSER keeper on >k ~* -@all +maos.backup +bgsave")
        .ok();
    let lines = [
        "CREATE c".to_owned(),
        "LIST".into(),
        format!("STATUS {id}"),
        format!("VERIFY {id}"),
        format!("RESTORE {id}"),
        format!("CANCEL {id}"),
        format!("DELETE {id}"),
    ];
    let agent = &mut server.conn();
    agent.run("AUTH agent a").ok();
    for line in &lines {
        let refused = agent.run(&format!("MAOS.BACKUP {line}"));
        assert_eq!(refused.code(), "NOPERM", "{line}: {refused}");
    }
    let keeper = &mut server.conn();
    keeper.run("AUTH keeper k").ok();
    assert_eq!(keeper.run("MAOS.BACKUP LIST").array().len(), 1);
    cmd!(keeper, "MAOS.BACKUP", "DELETE", &id).int();
    assert_eq!(keeper.run("MAOS.BACKUP LIST").array().len(), 0);
}

/// At so many moments of each kind a server is killed.
fn kills() -> u64 {
    number("MAOS_TEST_KILLS").unwrap_or(20)
}

/// Killed at any moment it leaves no file that passes for a backup, and what it left is swept up.
#[test]
fn a_kill_leaves_no_half_of_a_backup() {
    let mut server = plain(&[]);
    {
        let conn = &mut server.conn();
        let lines: Vec<String> = (0..30_000).map(|n| format!("MAOS.SET k{n} {n}")).collect();
        conn.pipeline(&lines);
        conn.run("SAVE").ok();
    }
    let mut rng = Rng::new(now_us());
    for _ in 0..kills() {
        let conn = &mut server.conn();
        let id = conn.run("MAOS.BACKUP CREATE b").text().to_owned();
        std::thread::sleep(Duration::from_micros(rng.below(120_000) as u64));
        server.restart(Stop::Kill);
        let conn = &mut server.conn();
        for listed in conn.run("MAOS.BACKUP LIST").array() {
            let id = listed.field("id").text();
            let whole = cmd!(conn, "MAOS.BACKUP", "VERIFY", id);
            assert_eq!(whole.field("keys").int(), 30_000, "{whole}");
        }
        let refused = cmd!(conn, "MAOS.BACKUP", "STATUS", &id);
        assert!(
            refused.is_err() || refused.field("state").text() == "done",
            "{refused}"
        );
    }
    // What is left over is old enough to go.
    age_parts(&server);
    let id = backup(&mut server.conn(), "last");
    assert_eq!(parts(&server), Vec::<PathBuf>::new());
    let verified = cmd!(server.conn(), "MAOS.BACKUP", "VERIFY", &id);
    assert_eq!(verified.field("keys").int(), 30_000);
}

/// A restore that was killed is begun again, and comes to the same.
#[test]
fn a_restore_that_was_killed_is_begun_again() {
    let mut server = plain(&[("appendonly", "yes")]);
    let count = 20_000;
    let id = {
        let conn = &mut server.conn();
        let lines: Vec<String> = (0..count).map(|n| format!("MAOS.SET k{n} {n}")).collect();
        conn.pipeline(&lines);
        let id = backup(conn, "b");
        conn.run("FLUSHALL").ok();
        id
    };
    let mut rng = Rng::new(now_us());
    for _ in 0..kills() {
        let job = cmd!(server.conn(), "MAOS.BACKUP", "RESTORE", &id)
            .text()
            .to_owned();
        std::thread::sleep(Duration::from_micros(rng.below(200_000) as u64));
        let status = cmd!(server.conn(), "MAOS.BACKUP", "STATUS", &job);
        let goes_on = status.field("state").text() == "running";
        server.restart(Stop::Kill);
        // Whoever comes after it is told, and not left to wonder.
        let info = server.conn().info("maos");
        let told = info.get("maos_backup_restore_interrupted");
        assert!(
            !goes_on || told == Some(&id) || is_there(&server, count),
            "{info:?}"
        );
    }
    let conn = &mut server.conn();
    let status = restored(conn, &id, "REPLACE");
    let brought = status.field("keys").int() + status.field("same").int();
    assert_eq!(brought, count, "{status}");
    for n in [0, 77, count - 1] {
        assert_eq!(conn.run(&format!("MAOS.GET k{n}")).text(), n.to_string());
    }
    assert_eq!(conn.run("DBSIZE").int(), count);
    assert!(!conn
        .info("maos")
        .contains_key("maos_backup_restore_interrupted"));
}

/// It was done between the question and the kill.
fn is_there(server: &Server, count: i64) -> bool {
    server.conn().run("DBSIZE").int() == count
}

/// Where the disk is full there is no backup, and nothing that looks like one.
#[test]
fn a_full_disk_leaves_no_backup() {
    // No file may be longer than 64 KiB; who writes more is told so.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let server = Setup::new()
        .set("maos.backup-dir", ".")
        .set("maos.backup-plain", "yes")
        .under(&["bash", "-c", script, "limited"])
        .start();
    let conn = &mut server.conn();
    let mut rng = Rng::new(7);
    for n in 0..300 {
        let letter = |_| (b'a' + rng.below(26) as u8) as char;
        let value: String = (0..500).map(letter).collect();
        cmd!(conn, "MAOS.SET", format!("k{n}"), value).int();
    }
    let id = conn.run("MAOS.BACKUP CREATE b").text().to_owned();
    let status = ended(conn, &id);
    assert_eq!(status.field("state").text(), "failed", "{status}");
    assert!(
        status.field("error").text().contains("could not be"),
        "{status}"
    );
    assert_eq!(conn.run("MAOS.BACKUP LIST").array().len(), 0);
    let files = fs::read_dir(server.dir()).expect("its directory");
    let left = files.filter_map(|f| f.ok()?.file_name().into_string().ok());
    let left: Vec<String> = left.filter(|n| n.contains(&id)).collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(metric(conn, "backups_failed"), 1);
    // What is short enough still works.
    let mut small = Reply::Nil;
    eventually(
        PATIENCE,
        "what the one before has marked is cleared",
        || {
            small = conn.run("MAOS.BACKUP CREATE small PREFIX k1");
            !small.is_err()
        },
    );
    assert_eq!(ended(conn, small.text()).field("state").text(), "done");
}

#[test]
fn one_at_a_time_and_it_can_be_cancelled() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    let lines: Vec<String> = (0..50_000).map(|n| format!("MAOS.SET k{n} {n}")).collect();
    conn.pipeline(&lines);
    // In a script, while which nothing goes on.
    let script = "local run = function(...) return redis.pcall('MAOS.BACKUP', ...) end \
                  local id = run('CREATE', 'one') \
                  local word = function(r) return type(r) == 'table' and r.err or r end \
                  return {word(run('CREATE', 'two')), word(run('DELETE', id)), run('CANCEL', id), run('STATUS', id), word(run('CANCEL', id))}";
    let did = cmd!(conn, "EVAL", script, "0");
    let did = did.array();
    assert!(did[0].text().starts_with("BUSY"), "{}", did[0]);
    assert!(did[1].text().starts_with("BUSY"), "{}", did[1]);
    assert_eq!(did[2].int(), 1);
    assert_eq!(did[3].field("state").text(), "cancelled");
    assert!(did[4].text().starts_with("NOTFOUND"), "{}", did[4]);
    // The next one has everything, though the walk of the one before was never finished for it.
    let status = next_backup(conn, "three");
    assert_eq!(status.field("keys").int(), 50_000, "{status}");
    assert_eq!(conn.run("MAOS.BACKUP LIST").array().len(), 1);
    let whole = status.field("id").text().to_owned();
    let script = "local run = function(...) return redis.pcall('MAOS.BACKUP', ...) end \
                  local job = run('RESTORE', ARGV[1], 'REPLACE', 'DRYRUN') \
                  local second = run('RESTORE', ARGV[1]) \
                  return {second.err, run('CANCEL', job), run('STATUS', job)}";
    let did = cmd!(conn, "EVAL", script, "0", &whole);
    let did = did.array();
    assert!(did[0].text().starts_with("BUSY"), "{}", did[0]);
    assert_eq!(did[1].int(), 1);
    assert_eq!(did[2].field("state").text(), "cancelled");
    assert_eq!(metric(conn, "backups_made"), 1);
    // What is made while the data set changes as a whole fails, and says so.
    let did = conn.pipeline(&["MAOS.BACKUP CREATE four", "SWAPDB 0 1"]);
    let id = did[0].text().to_owned();
    let status = ended(conn, &id);
    assert_eq!(status.field("state").text(), "failed");
    assert!(
        status.field("error").text().contains("databases"),
        "{status}"
    );
    // Nobody failed where somebody has cancelled.
    assert_eq!(metric(conn, "backups_failed"), 1);
}

/// A backup that is given up has marked some keys and others not: whatever they do until all are marked, the next one has
/// them.
#[test]
fn what_moves_after_a_backup_was_given_up_is_in_the_next() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    const KEYS: i64 = 30_000;
    let lines: Vec<String> = (0..KEYS).map(|n| format!("MAOS.SET k{n} {n}")).collect();
    conn.pipeline(&lines);
    // In a script, while which the walk does not begin.
    let script = "EVAL 'return redis.call(\"MAOS.BACKUP\", \"CANCEL\", redis.call(\"MAOS.BACKUP\", \"CREATE\", \"b\"))' 0";
    let mut lines = vec![script.to_owned()];
    lines.extend((0..KEYS).map(|n| format!("RENAME k{n} r{n}")));
    let refused = conn.pipeline(&lines).into_iter().find(Reply::is_err);
    assert_eq!(refused, None);
    let status = next_backup(conn, "next");
    assert_eq!(status.field("keys").int(), KEYS, "{status}");
    // In another database, where it is as far as it was in this one.
    conn.run("SELECT 1").ok();
    let lines: Vec<String> = (0..KEYS).map(|n| format!("MAOS.SET k{n} {n}")).collect();
    conn.pipeline(&lines);
    for way in ["there", "and back"] {
        // A machine may be so fast that the backup is over first: then once more.
        for _ in 0..20 {
            let id = conn.run("MAOS.BACKUP CREATE disturbed").text().to_owned();
            eventually(PATIENCE, "it has come some way", || {
                let status = cmd!(conn, "MAOS.BACKUP", "STATUS", &id);
                status.field("keys").int() > KEYS / 3
            });
            conn.run("SWAPDB 0 1").ok();
            if ended(conn, &id).field("state").text() == "failed" {
                break;
            }
        }
        let status = next_backup(conn, "next");
        assert_eq!(status.field("keys").int(), 2 * KEYS, "{way}: {status}");
    }
}

/// Nothing is forked: a replica that comes and a save are served meanwhile, and no later.
#[test]
fn a_replica_is_synced_and_a_save_is_made_while_a_backup_goes_on() {
    let server = plain(&[("maos.backup-buffer-bytes", "1gb")]);
    let conn = &mut server.conn();
    const KEYS: i64 = 60_000;
    let value = "x".repeat(200);
    let lines: Vec<String> = (0..KEYS)
        .map(|n| format!("MAOS.SET k{n} {n}{value}"))
        .collect();
    conn.pipeline(&lines);
    let is_running = |conn: &mut Conn, id: &str| {
        let status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
        status.field("state").text() == "running"
    };
    // A machine may be so fast that the backup is over first: then once more.
    let mut during = (false, false);
    for _ in 0..20 {
        let id = conn.run("MAOS.BACKUP CREATE b").text().to_owned();
        conn.run("BGSAVE");
        eventually(PATIENCE, "it is saved", || {
            conn.info("persistence")["rdb_bgsave_in_progress"] == "0"
        });
        assert_eq!(conn.info("persistence")["rdb_last_bgsave_status"], "ok");
        during.0 |= is_running(conn, &id);
        let status = ended(conn, &id);
        assert_eq!(status.field("keys").int(), KEYS, "{status}");
        let id = conn.run("MAOS.BACKUP CREATE b").text().to_owned();
        let replica = replica_of(&server);
        during.1 |= is_running(conn, &id);
        conn.run("MAOS.SET k0 new").int();
        wait_synced(&server, &replica);
        assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
        let status = ended(conn, &id);
        assert_eq!(status.field("state").text(), "done", "{status}");
        assert_eq!(status.field("keys").int(), KEYS, "{status}");
        if during == (true, true) {
            break;
        }
    }
    println!("saved and synced while it was made: {during:?}");
}

#[test]
fn each_node_of_a_cluster_brings_back_its_own_slots() {
    let mut setup = ClusterSetup::new(3, 0);
    setup.node = setup
        .node
        .set("maos.backup-dir", ".")
        .set("maos.backup-plain", "yes");
    let cluster = setup.start();
    let mut client = cluster.client();
    let mut all = BTreeMap::new();
    for n in 0..300 {
        let key = format!("k{n}");
        let version = client.cmd(&key, &["MAOS.SET", &key, "v"]).int();
        all.insert(key, version);
    }
    let ids: Vec<String> = (0..3)
        .map(|n| backup(&mut cluster.nodes[n].conn(), "b"))
        .collect();
    // All of them on one node of another cluster, each of which takes its own.
    let mut setup = ClusterSetup::new(2, 0);
    setup.node = setup
        .node
        .set("maos.backup-dir", ".")
        .set("maos.backup-plain", "yes");
    let other = setup.start();
    let mut brought = 0;
    for node in &other.nodes {
        for (from, id) in cluster.nodes.iter().zip(&ids) {
            carry(from, node, id);
            let status = restored(&mut node.conn(), id, "");
            brought += status.field("keys").int();
            let seen = status.field("keys").int() + status.field("elsewhere").int();
            assert_eq!(seen, status.field("total").int(), "{status}");
        }
    }
    assert_eq!(brought, 300);
    let mut there = other.client();
    for (key, version) in &all {
        let held = there.cmd(key, &["MAOS.GET", key, "WITHVERSION"]);
        assert_eq!(held.array()[1].int(), *version, "{key}");
    }
    let verified = cmd!(cluster.nodes[0].conn(), "MAOS.BACKUP", "VERIFY", &ids[0]);
    assert_eq!(verified.field("made-on").bytes().len(), 40);
}

/// A chain of incremental backups: each link can be restored, and is what a full one of that moment would be; what did
/// not change is in it by name only; a chain that is torn is refused.
#[test]
fn incremental_backups_are_as_good_as_full_ones() {
    let server = plain(&[("maos.history-max-versions", "1000")]);
    let conn = &mut server.conn();
    let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
    println!("MAOS_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    for n in 0..500 {
        cmd!(conn, "MAOS.SET", format!("k{n}"), "x".repeat(200 + n)).int();
    }
    // Both get one version, and a renaming gives it to the other.
    conn.run("MAOS.MSET 2 {t}a 1 {t}b 2").int();
    let mut ids = vec![backup(conn, "full")];
    let mut fulls = vec![ids[0].clone()];
    for link in 0..4 {
        for _ in 0..60 {
            let key = format!("k{}", rng.below(520));
            match rng.below(8) {
                0 => drop(cmd!(conn, "DEL", key)),
                1 => drop(cmd!(conn, "MAOS.DEL", key)),
                2 => drop(cmd!(conn, "RENAME", key, format!("k{}", rng.below(520)))),
                3 => drop(cmd!(
                    conn,
                    "COPY",
                    key,
                    format!("k{}", rng.below(520)),
                    "REPLACE"
                )),
                4 => drop(cmd!(conn, "PEXPIRE", key, "100000000")),
                5 => drop(cmd!(conn, "PERSIST", key)),
                _ => drop(cmd!(conn, "MAOS.SET", key, format!("{link}"))),
            }
        }
        if link == 1 {
            conn.run("RENAME {t}b {t}a").ok();
        }
        let since = ids.last().expect("one").clone();
        let id = cmd!(conn, "MAOS.BACKUP", "CREATE", "link", "SINCE", &since)
            .text()
            .to_owned();
        let status = ended(conn, &id);
        assert_eq!(status.field("state").text(), "done", "{status}");
        ids.push(id);
        fulls.push(backup(conn, "full"));
    }
    let verified = |conn: &mut Conn, id: &str| {
        let v = cmd!(conn, "MAOS.BACKUP", "VERIFY", id);
        ["digest", "keys", "newest"].map(|name| v.field(name).to_string())
    };
    let size = |id: &str| fs::metadata(file_of(&server, id)).expect("its file").len();
    for (n, (id, full)) in ids.iter().zip(&fulls).enumerate() {
        assert_eq!(verified(conn, id), verified(conn, full), "link {n}");
        let links = cmd!(conn, "MAOS.BACKUP", "VERIFY", id).field("links").int();
        assert_eq!(links, n as i64 + 1);
        if n > 0 {
            assert!(size(id) < size(full), "{} {}", size(id), size(full));
        }
    }
    for (n, id) in ids.iter().enumerate() {
        let (one, other) = (plain(&[]), plain(&[]));
        ids[..=n].iter().for_each(|id| carry(&server, &one, id));
        carry(&server, &other, &fulls[n]);
        restored(&mut one.conn(), id, "");
        restored(&mut other.conn(), &fulls[n], "");
        assert_eq!(
            digest_all(&mut one.conn()),
            digest_all(&mut other.conn()),
            "link {n}"
        );
    }
    // What others go on from is not deleted, and without it they are refused.
    let refused = cmd!(conn, "MAOS.BACKUP", "DELETE", &ids[2]);
    assert!(refused.err().contains("1 other"), "{refused}");
    let torn = plain(&[]);
    for id in [&ids[0], &ids[1], &ids[3]] {
        carry(&server, &torn, id);
    }
    let there = &mut torn.conn();
    for line in [
        format!("MAOS.BACKUP RESTORE {}", ids[3]),
        format!("MAOS.BACKUP VERIFY {}", ids[3]),
        format!("MAOS.BACKUP CREATE more SINCE {}", ids[3]),
    ] {
        let refused = there.run(&line);
        assert_eq!(refused.code(), "BADBACKUP", "{line}: {refused}");
        assert!(refused.err().contains(&ids[2]), "{refused}");
    }
    // Another file under the name of the link.
    let name = file_of(&server, &ids[2]);
    let name = name.file_name().expect("a name");
    fs::copy(file_of(&server, &ids[1]), torn.dir().join(name)).expect("a copy");
    let refused = there.run(&format!("MAOS.BACKUP RESTORE {}", ids[3]));
    assert_eq!(refused.code(), "BADBACKUP", "{refused}");
    assert_eq!(there.run("DBSIZE").int(), 0);
    // Of other prefixes, of nothing.
    let refused = cmd!(
        conn,
        "MAOS.BACKUP",
        "CREATE",
        "x",
        "SINCE",
        &ids[0],
        "PREFIX",
        "a"
    );
    assert!(refused.err().contains("prefixes"), "{refused}");
    let refused = cmd!(conn, "MAOS.BACKUP", "CREATE", "x", "SINCE", "0".repeat(32));
    assert_eq!(refused.code(), "NOTFOUND", "{refused}");
}

/// Not even a link of which no key is needed may be damaged.
#[test]
fn a_link_of_which_nothing_is_needed_has_to_be_whole_too() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    let write = |conn: &mut Conn| {
        for n in 0..50 {
            cmd!(conn, "MAOS.SET", format!("k{n}"), now_us().to_string()).int();
        }
    };
    write(conn);
    let full = backup(conn, "full");
    write(conn);
    let id = cmd!(conn, "MAOS.BACKUP", "CREATE", "link", "SINCE", &full)
        .text()
        .to_owned();
    assert_eq!(ended(conn, &id).field("state").text(), "done");
    let path = file_of(&server, &full);
    let mut bytes = fs::read(&path).expect("the file");
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("the damage");
    conn.run("FLUSHALL").ok();
    let job = cmd!(conn, "MAOS.BACKUP", "RESTORE", &id).text().to_owned();
    let status = ended(conn, &job);
    assert_eq!(status.field("state").text(), "failed", "{status}");
    assert!(status.field("error").text().contains(&full), "{status}");
    assert_eq!(conn.run("DBSIZE").int(), 0);
}

#[test]
fn keys_of_the_server_s_own_types_are_in_it_if_asked_for() {
    let server = plain(&[]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET state v").int();
    let long: Vec<String> = (0..3_500).map(|n| format!("e{n}")).collect();
    cmd!(conn, "SET", "string", "a\0b").ok();
    cmd!(conn, "SET", "empty", "").ok();
    conn.cmd(&[&["RPUSH".to_owned(), "list".into()][..], &long].concat())
        .int();
    conn.cmd(&[&["SADD".to_owned(), "set".into()][..], &long].concat())
        .int();
    conn.run("HSET hash f1 v1 f2 v2").int();
    conn.run("ZADD zset 1.5 a -inf b 3 c").int();
    conn.run("SET volatile v PX 100000000").ok();
    conn.run("XADD stream * a b");
    let id = conn.run("MAOS.BACKUP CREATE all NATIVE").text().to_owned();
    let status = ended(conn, &id);
    assert_eq!(status.field("state").text(), "done", "{status}");
    assert_eq!(status.field("left-out").int(), 1, "the stream");
    assert_eq!(status.field("keys").int(), 8);
    let names = [
        "state", "string", "empty", "list", "set", "hash", "zset", "volatile",
    ];
    let held = |conn: &mut Conn| -> Vec<String> {
        let one = |name: &&str| {
            format!(
                "{name} {} {}",
                digest(conn, name),
                conn.run(&format!("PEXPIRETIME {name}"))
            )
        };
        names.iter().map(one).collect()
    };
    let before = held(conn);
    let other = plain(&[]);
    let replica = replica_of(&other);
    carry(&server, &other, &id);
    let there = &mut other.conn();
    there.run("SET string other").ok();
    let kept = restored(there, &id, "");
    assert_eq!(counts(&kept), of(&[("keys", 7), ("kept", 1)]));
    assert_eq!(there.run("GET string").text(), "other");
    restored(there, &id, "REPLACE");
    assert_eq!(held(there), before);
    wait_synced(&other, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(there));
    let verified = cmd!(there, "MAOS.BACKUP", "VERIFY", &id);
    assert_eq!(verified.field("keys").int(), 8);
    // Only what is asked for.
    let without = backup(conn, "state");
    assert_eq!(
        cmd!(conn, "MAOS.BACKUP", "STATUS", &without)
            .field("keys")
            .int(),
        1
    );
    let id = conn
        .run("MAOS.BACKUP CREATE some NATIVE PREFIX s PREFIX z")
        .text()
        .to_owned();
    assert_eq!(
        ended(conn, &id).field("keys").int(),
        4,
        "state, string, set, zset"
    );
}
