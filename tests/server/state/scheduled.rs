//! Backups that a node makes by itself: when, which of them are full, which ones stay, and what is said when they fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::backups::{backup, carry, file_of, plain, restored, sealed_with, write_keys, KEYS};
use super::{metric, replica_of};
use crate::harness::*;

const EVERY_SECOND: (&str, &str) = ("maos.backup-interval", "1");

/// Waits until a number of INFO has come so far.
#[track_caller]
fn wait_for(conn: &mut Conn, name: &str, least: i64) {
    let what = format!("{name} comes to {least}");
    eventually(PATIENCE * 2, &what, || metric(conn, name) >= least);
}

/// Ends the schedule, and waits until what went on is done.
#[track_caller]
fn end(conn: &mut Conn) {
    conn.run("CONFIG SET maos.backup-interval 0").ok();
    wait_until_off(conn);
}

#[track_caller]
fn wait_until_off(conn: &mut Conn) {
    eventually(PATIENCE, "nothing is scheduled", || {
        metric(conn, "backup_next_in_s") == -1
    });
}

fn last_error(conn: &mut Conn) -> String {
    conn.info("maos")["maos_backup_last_error"].clone()
}

/// A backup, as it is listed.
#[derive(Clone, Debug)]
struct Listed {
    id: String,
    name: String,
    parent: Option<String>,
    instant: i64,
    made_on: String,
}

/// All of them, the oldest first.
fn listed(conn: &mut Conn) -> Vec<Listed> {
    let list = conn.run("MAOS.BACKUP LIST");
    let text = |one: &Reply, name: &str| one.field(name).text().to_owned();
    let mut all: Vec<Listed> = list
        .array()
        .iter()
        .map(|one| Listed {
            id: text(one, "id"),
            name: text(one, "name"),
            parent: (!one.field("parent").is_nil()).then(|| text(one, "parent")),
            instant: one.field("instant").int(),
            made_on: text(one, "made-on"),
        })
        .collect();
    all.reverse();
    all
}

/// Those that the schedule made.
fn scheduled(conn: &mut Conn) -> Vec<Listed> {
    let mut all = listed(conn);
    all.retain(|one| one.name == "scheduled");
    all
}

/// Every one of them is whole, and has all that it goes on from.
#[track_caller]
fn all_are_good(conn: &mut Conn) {
    for one in listed(conn) {
        let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &one.id);
        assert!(!verified.is_err(), "{one:?}: {verified}");
    }
}

/// Changes a byte in the midst of a backup, behind what it begins with.
fn damage(path: &PathBuf) {
    let mut bytes = fs::read(path).expect("the file");
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("the file");
}

#[test]
fn they_are_full_and_incremental_as_set_and_each_can_be_restored() {
    let lines = [
        EVERY_SECOND,
        ("maos.backup-full-every", "3"),
        ("maos.history-max-versions", "100000"),
    ];
    let server = plain(&lines);
    let conn = &mut server.conn();
    for n in 0..50 {
        cmd!(conn, "MAOS.SET", format!("k{n}"), "x".repeat(100)).int();
    }
    let mut versions = vec![];
    eventually(PATIENCE * 2, "seven are good", || {
        versions.push(conn.run("MAOS.SET counts x").int());
        metric(conn, "backup_verified") >= 7
    });
    end(conn);
    let all = scheduled(conn);
    assert_eq!(all.len() as i64, metric(conn, "backup_scheduled_made"));
    assert_eq!(metric(conn, "backup_verified"), all.len() as i64);
    for name in ["backup_scheduled_failed", "backup_verify_failed"] {
        assert_eq!(metric(conn, name), 0, "{name}");
    }
    assert_eq!(last_error(conn), "");
    for (n, one) in all.iter().enumerate() {
        let before = n.checked_sub(1).map(|n| all[n].id.clone());
        let parent = before.filter(|_| n % 3 != 0);
        assert_eq!(one.parent, parent, "{n}: {all:?}");
        let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &one.id);
        assert_eq!(verified.field("links").int(), n as i64 % 3 + 1);
    }
    for (n, one) in all.iter().enumerate() {
        let other = plain(&[]);
        all[n / 3 * 3..=n]
            .iter()
            .for_each(|link| carry(&server, &other, &link.id));
        let there = &mut other.conn();
        restored(there, &one.id, "");
        let newest = versions.iter().rfind(|version| **version <= one.instant);
        let held = there.run("MAOS.GET counts FULL");
        match newest {
            Some(version) => assert_eq!(held.field("version").int(), *version, "{n}"),
            None => assert!(held.is_nil(), "{n}: {held}"),
        }
        assert!(there.run("DBSIZE").int() <= 51);
    }
}

#[test]
fn what_is_kept_keeps_what_it_goes_on_from() {
    let lines = [
        EVERY_SECOND,
        ("maos.backup-full-every", "3"),
        ("maos.backup-keep", "2"),
    ];
    let server = plain(&lines);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    wait_for(conn, "backup_verified", 1);
    // A backup of somebody goes on from one of them, which then stays for good.
    let first = scheduled(conn)[0].id.clone();
    let mut begun = Reply::Nil;
    eventually(PATIENCE, "another one may be made", || {
        begun = cmd!(conn, "MAOS.BACKUP", "CREATE", "mine", "SINCE", &first);
        !begun.is_err()
    });
    let mine = begun.text().to_owned();
    let mut seen = BTreeSet::new();
    let more = metric(conn, "backup_verified") + 8;
    eventually(PATIENCE * 2, "there are many", || {
        cmd!(conn, "MAOS.INCRBY", "counts", "1");
        seen.extend(scheduled(conn).into_iter().map(|one| one.id));
        metric(conn, "backup_verified") >= more
    });
    end(conn);
    let (all, own) = (listed(conn), scheduled(conn));
    seen.extend(own.iter().map(|one| one.id.clone()));
    assert!(seen.len() > 8, "{seen:?}");
    all_are_good(conn);
    let is_there = |id: &String| all.iter().any(|one| one.id == *id);
    assert!(is_there(&mine) && is_there(&first), "{all:?}");
    // The newest two, what they need, and what is needed by the other one: a chain has three, and two of them may be begun.
    assert!((3..=5).contains(&own.len()), "{own:?}");
    // Each of the others is needed by one that stays.
    for one in own.iter().rev().skip(2) {
        let needed = all.iter().any(|b| b.parent.as_ref() == Some(&one.id));
        assert!(needed, "{one:?} of {all:?}");
    }
    for one in &own {
        let other = plain(&[]);
        all.iter().for_each(|link| carry(&server, &other, &link.id));
        restored(&mut other.conn(), &one.id, "");
        assert_eq!(other.conn().run("MAOS.GET k").text(), "v");
    }
}

#[test]
fn by_age_the_older_ones_go() {
    let lines = [
        EVERY_SECOND,
        ("maos.backup-full-every", "1"),
        ("maos.backup-keep-seconds", "2"),
    ];
    let server = plain(&lines);
    let conn = &mut server.conn();
    wait_for(conn, "backup_verified", 1);
    let first = scheduled(conn)[0].id.clone();
    eventually(PATIENCE, "the first one goes", || {
        scheduled(conn).iter().all(|one| one.id != first)
    });
    // Both have to let go.
    conn.run("CONFIG SET maos.backup-keep 100000").ok();
    let next = scheduled(conn)[0].id.clone();
    let more = metric(conn, "backup_verified") + 4;
    wait_for(conn, "backup_verified", more);
    end(conn);
    let own = scheduled(conn);
    assert!(own.len() >= 4, "{own:?}");
    // What was being removed while the setting changed may have gone.
    assert!(own.iter().any(|one| one.id == next) || own.len() < more as usize);
    all_are_good(conn);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let lines = [EVERY_SECOND, ("maos.backup-full-every", "100")];
    let mut server = plain(&lines);
    wait_for(&mut server.conn(), "backup_verified", 2);
    server.restart(Stop::Kill);
    wait_for(&mut server.conn(), "backup_verified", 2);
    let conn = &mut server.conn();
    end(conn);
    let all = scheduled(conn);
    assert!(all.len() >= 4, "{all:?}");
    for (n, one) in all.iter().enumerate() {
        let before = n.checked_sub(1).map(|n| all[n].id.clone());
        assert_eq!(one.parent, before, "{n}: {all:?}");
        assert_eq!(one.made_on, all[0].made_on);
    }
    // The time until the next one is counted from the last one.
    conn.run("CONFIG SET maos.backup-interval 3600").ok();
    conn.run("CONFIG REWRITE").ok();
    for _ in 0..2 {
        let conn = &mut server.conn();
        eventually(PATIENCE, "it is known when", || {
            metric(conn, "backup_next_in_s") > 0
        });
        assert!(metric(conn, "backup_next_in_s") <= 3600);
        assert_eq!(scheduled(conn).len(), all.len());
        server.restart(Stop::NoSave);
    }
    // And a shorter one is begun with at once.
    let conn = &mut server.conn();
    conn.run("CONFIG SET maos.backup-interval 1").ok();
    wait_for(conn, "backup_verified", 1);
}

#[test]
fn replicas_make_none_unless_they_are_told_to() {
    let master = plain(&[EVERY_SECOND]);
    master.conn().run("MAOS.SET k v").int();
    let replica = replica_of(&master);
    let there = &mut replica.conn();
    // It may have begun before it knew that it is one.
    wait_until_off(there);
    let before = scheduled(there).len();
    wait_for(&mut master.conn(), "backup_verified", 3);
    assert_eq!(metric(there, "backup_next_in_s"), -1);
    assert_eq!(scheduled(there).len(), before);
    there.run("CONFIG SET maos.backup-on-replicas yes").ok();
    let more = metric(there, "backup_verified") + 1;
    wait_for(there, "backup_verified", more);
    there.run("CONFIG SET maos.backup-on-replicas no").ok();
    wait_until_off(there);
    // Who becomes a master begins, who becomes a replica ends.
    let more = metric(there, "backup_verified") + 2;
    there.run("REPLICAOF NO ONE").ok();
    wait_for(there, "backup_verified", more);
    let conn = &mut master.conn();
    cmd!(conn, "REPLICAOF", "127.0.0.1", replica.port().to_string()).ok();
    wait_until_off(conn);
    all_are_good(there);
}

#[test]
fn what_keeps_one_from_being_made_is_counted_shown_and_said_once() {
    let server = sealed_with(KEYS, &[EVERY_SECOND]);
    let conn = &mut server.conn();
    wait_for(conn, "backup_verified", 1);
    let failed = metric(conn, "backup_scheduled_failed");
    write_keys(&server, KEYS, 0o644);
    wait_for(conn, "backup_scheduled_failed", failed + 3);
    let error = last_error(conn);
    assert!(
        error.contains("backup-key-file") && error.contains("0644"),
        "{error}"
    );
    let said = |server: &Server, what: &str| {
        let log = server.log();
        log.lines().filter(|line| line.contains(what)).count()
    };
    assert_eq!(
        said(
            &server,
            "not made: maos.backup-key-file cannot be used: it must"
        ),
        1
    );
    let made = metric(conn, "backup_verified");
    write_keys(&server, KEYS, 0o600);
    wait_for(conn, "backup_verified", made + 2);
    assert_eq!(last_error(conn), "");
    all_are_good(conn);
    // Without a key, and without a directory.
    let keyless = Server::with(&[EVERY_SECOND, ("maos.backup-dir", ".")]);
    let nowhere = Server::with(&[EVERY_SECOND]);
    for (server, why) in [
        (&keyless, "no key to encrypt"),
        (&nowhere, "backups are off"),
    ] {
        let conn = &mut server.conn();
        wait_for(conn, "backup_scheduled_failed", 2);
        let error = last_error(conn);
        assert!(error.contains(why), "{error}");
        assert_eq!(said(server, why), 1);
        assert_eq!(metric(conn, "backup_scheduled_made"), 0);
    }
    let conn = &mut keyless.conn();
    conn.run("CONFIG SET maos.backup-plain yes").ok();
    wait_for(conn, "backup_verified", 1);
}

#[test]
fn the_files_of_others_are_never_removed() {
    let other = plain(&[]);
    other.conn().run("MAOS.SET k v").int();
    // Called as if a schedule had made them, but on another node.
    let elsewhere: Vec<String> = (0..2)
        .map(|_| backup(&mut other.conn(), "scheduled"))
        .collect();
    let server = plain(&[("maos.backup-full-every", "1"), ("maos.backup-keep", "1")]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    elsewhere.iter().for_each(|id| carry(&other, &server, id));
    let named = backup(conn, "mine");
    // One of some keys is not one that the schedule made either.
    let begun = conn.run("MAOS.BACKUP CREATE scheduled PREFIX k");
    let part = begun.text().to_owned();
    // What is no backup, under the name of one.
    let torn = server
        .dir()
        .join(format!("scheduled-{}.maosbackup", "0".repeat(32)));
    fs::write(&torn, "no backup").expect("a file");
    conn.run("CONFIG SET maos.backup-interval 1").ok();
    wait_for(conn, "backup_verified", 4);
    end(conn);
    let mut there: BTreeSet<String> = listed(conn).into_iter().map(|one| one.id).collect();
    for id in elsewhere.iter().chain([&named, &part]) {
        assert!(there.remove(id), "{id} was removed");
    }
    assert_eq!(there.len(), 1, "one of its own: {there:?}");
    assert!(torn.exists());
}

#[test]
fn after_a_damaged_link_the_next_one_is_full() {
    let server = plain(&[EVERY_SECOND, ("maos.backup-full-every", "100")]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    wait_for(conn, "backup_verified", 2);
    let first = scheduled(conn)[0].clone();
    damage(&file_of(&server, &first.id));
    let fulls = |conn: &mut Conn| {
        let all = scheduled(conn);
        all.iter().filter(|one| one.parent.is_none()).count()
    };
    eventually(PATIENCE, "there is another full one", || fulls(conn) == 2);
    assert!(server.log().contains("the backup is damaged near byte"));
    let wrong = metric(conn, "backup_scheduled_failed") + metric(conn, "backup_verify_failed");
    assert!(wrong > 0);
    // Those that come after it go on from it, and are good.
    let more = metric(conn, "backup_verified") + 3;
    wait_for(conn, "backup_verified", more);
    assert_eq!((fulls(conn), last_error(conn).as_str()), (2, ""));
    // A link that is gone is one that is damaged.
    let next = scheduled(conn)
        .into_iter()
        .rfind(|one| one.parent.is_none());
    fs::remove_file(file_of(&server, &next.expect("a full one").id)).expect("removed");
    eventually(PATIENCE, "there is one more", || fulls(conn) == 2);
    end(conn);
    let last = scheduled(conn).pop().expect("the last one");
    let verified = cmd!(conn, "MAOS.BACKUP", "VERIFY", &last.id);
    assert!(!verified.is_err(), "{verified}");
}

/// Each one is damaged as soon as it is there, so sooner or later it is before it is verified.
#[test]
fn one_that_is_not_good_is_told_and_none_is_removed_for_it() {
    for full_every in ["1", "100"] {
        let lines = [
            ("maos.backup-full-every", full_every),
            ("maos.backup-keep", "1"),
        ];
        let server = plain(&lines);
        let conn = &mut server.conn();
        conn.run("MAOS.SET k v").int();
        conn.run("CONFIG SET maos.backup-interval 1").ok();
        wait_for(conn, "backup_verified", 1);
        end(conn);
        let files = || {
            let all = fs::read_dir(server.dir()).expect("its directory");
            let all = all.filter_map(|file| Some(file.ok()?.path()));
            let is_backup = |path: &PathBuf| path.extension().is_some_and(|e| e == "maosbackup");
            all.filter(is_backup).collect::<BTreeSet<PathBuf>>()
        };
        let numbers = |conn: &mut Conn| {
            ["backup_scheduled_made", "backup_verify_failed"].map(|name| metric(conn, name))
        };
        eventually(PATIENCE * 4, "one is found damaged", || {
            let (before, seen) = (numbers(conn), files());
            conn.run("CONFIG SET maos.backup-interval 1").ok();
            eventually(PATIENCE, "there is one more", || !files().is_subset(&seen));
            files().difference(&seen).for_each(damage);
            end(conn);
            // Not where there was time for another one.
            let after = numbers(conn);
            after == before.map(|n| n + 1)
        });
        let log = server.log();
        assert!(log.contains("was made, and is not good"), "{log}");
        assert!(last_error(conn).contains("is not good"));
        assert!(files().len() >= 2, "the one before it stays: {:?}", files());
        // The next one is full, which is no attempt that failed.
        let failed = metric(conn, "backup_scheduled_failed");
        let verified = metric(conn, "backup_verified");
        conn.run("CONFIG SET maos.backup-interval 1").ok();
        wait_for(conn, "backup_verified", verified + 1);
        assert_eq!(metric(conn, "backup_scheduled_failed"), failed);
        end(conn);
        assert_eq!(last_error(conn), "");
        // What is no good has gone then.
        all_are_good(conn);
    }
}

#[test]
fn whoever_comes_second_is_told_that_one_is_made() {
    let server = plain(&[("maos.backup-full-every", "1"), ("maos.backup-keep", "1")]);
    let conn = &mut server.conn();
    let lines: Vec<String> = (0..50_000).map(|n| format!("MAOS.SET k{n} {n}")).collect();
    conn.pipeline(&lines);
    conn.run("CONFIG SET maos.backup-interval 1").ok();
    let mut begun = Reply::Nil;
    eventually(PATIENCE * 2, "the schedule has met another one", || {
        let reply = conn.run("MAOS.BACKUP CREATE mine");
        if !reply.is_err() {
            begun = reply;
        }
        metric(conn, "backup_scheduled_failed") > 0
    });
    let error = last_error(conn);
    assert!(error.contains("when it is done"), "{error}");
    // Now the other way round; and somebody ends it, which is no failure.
    let mut ended = false;
    eventually(PATIENCE * 2, "somebody has met the schedule", || {
        let mine = cmd!(conn, "MAOS.BACKUP", "STATUS", begun.text());
        if mine.field("state").text() == "running" || metric(conn, "backup_running") == 0 {
            return false;
        }
        let refused = conn.run("MAOS.BACKUP CREATE mine");
        if !refused.is_err() {
            begun = refused;
            return false;
        }
        assert_eq!(refused.code(), "BUSY", "{refused}");
        let words: Vec<String> = refused.err().split(' ').map(str::to_owned).collect();
        let id = words.iter().find(|word| word.len() == 32);
        ended = id.is_some_and(|id| {
            let status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
            assert_eq!(status.field("name").text(), "scheduled", "{status}");
            cmd!(conn, "MAOS.BACKUP", "CANCEL", id) == Reply::Int(1)
        });
        ended
    });
    assert_eq!(metric(conn, "backups_failed"), 0);
    // Both go on.
    let made = metric(conn, "backup_verified");
    wait_for(conn, "backup_verified", made + 2);
    assert_eq!(last_error(conn), "");
    end(conn);
    let status = cmd!(conn, "MAOS.BACKUP", "STATUS", begun.text());
    assert_eq!(status.field("state").text(), "done", "{status}");
    assert_eq!(scheduled(conn).len(), 1);
}
