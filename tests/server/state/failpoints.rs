//! A panic at every place in which code of ours runs for the server: the server stays up, the client is
//! told where there is a way to tell it, and nothing has changed. The points come from the module's own
//! list, and one without an entry here fails the test.
//!
//! Needs a build with failpoints. What happens when a change is torn (`apply`) is in `faults`.

use std::collections::BTreeSet;

use super::backups::{age_parts, backup, carry, ended, next_backup, parts, plain, restored, PLAIN};
use super::limits::fragment;
use super::persistence::wait_rewritten;
use super::{fill, has_failpoints, metric, picture};
use crate::harness::*;

/// A master with a replica, and what they hold.
struct Bed {
    master: Server,
    replica: Server,
    keys: Vec<&'static str>,
    held: Vec<String>,
    arms: i64,
}

/// Every read and every write, on keys that [`fill`] makes.
const READS: &[&str] = &[
    "MAOS.GET told",
    "MAOS.MGET 2 told plain FULL",
    "MAOS.HISTORY told VALUES",
    "MAOS.DIFF json -1 -2",
];
const WRITES: &[&str] = &[
    "MAOS.SET told x",
    "MAOS.CAS fresh 0 x",
    "MAOS.DEL told",
    "MAOS.MSET 2 told x plain y",
    "MAOS.MCAS 2 fresh 0 x newer 0 y",
    "MAOS.ROLLBACK told VERSION -1",
];

impl Bed {
    /// Nothing if the build has no failpoints. The node's own pass rests until it is wanted.
    fn new(lines: &[(&str, &str)]) -> Option<Bed> {
        let quiet = ("maos.background-effort-us", "0");
        let master = Server::with(&[lines, &[quiet]].concat());
        if !has_failpoints(&mut master.conn()) {
            println!("skipped: this build has no failpoints");
            return None;
        }
        let mut keys = fill(&mut master.conn());
        for n in 0..3 {
            let json = format!("{{\"n\":{n}}}");
            cmd!(master.conn(), "MAOS.SET", "json", json).int();
        }
        keys.push("json");
        let held = picture(&mut master.conn(), &keys);
        let replica = replica_of(&master);
        Some(Bed {
            master,
            replica,
            keys,
            held,
            arms: 0,
        })
    }

    /// The next hit of this point on the master panics. A minute later than the one before, or the commands
    /// would be switched off.
    fn arm(&mut self, point: &str) {
        self.arms += 1;
        let conn = &mut self.master.conn();
        conn.run(&format!("MAOS.FAIL clock {}", self.arms * 61_000))
            .int();
        arm(conn, point);
    }

    /// One panic at this point while `act` runs, and all is as it was.
    #[track_caller]
    fn hurt(&mut self, point: &str, act: impl FnOnce(&mut Conn)) {
        let before = metric(&mut self.master.conn(), "panics");
        self.arm(point);
        act(&mut self.master.conn());
        let conn = &mut self.master.conn();
        assert_eq!(left(conn), 0, "{point} was not reached");
        assert_eq!(metric(conn, "panics"), before + 1, "{point}");
        self.unchanged(point);
    }

    #[track_caller]
    fn unchanged(&self, point: &str) {
        let conn = &mut self.master.conn();
        assert_eq!(conn.run("PING"), Reply::Simple("PONG".into()));
        assert_eq!(picture(conn, &self.keys), self.held, "{point}");
        assert_eq!(conn.run("EXISTS fresh newer").int(), 0, "{point}");
        self.same(point);
    }

    #[track_caller]
    fn same(&self, point: &str) {
        wait_synced(&self.master, &self.replica);
        let there = digest_all(&mut self.replica.conn());
        assert_eq!(there, digest_all(&mut self.master.conn()), "{point}");
    }
}

/// The next hit of this point panics.
#[track_caller]
fn arm(conn: &mut Conn, point: &str) {
    cmd!(conn, "MAOS.FAIL", point, "1").int();
}

/// Disarms; 1 if nothing came to the point that was armed.
#[track_caller]
fn left(conn: &mut Conn) -> i64 {
    conn.run("MAOS.FAIL apply 0").int()
}

/// The points that the module has.
fn points(conn: &mut Conn) -> BTreeSet<String> {
    let list = conn.run("MAOS.FAIL list 0");
    let names = list.array().iter().map(|p| p.text().to_owned());
    names.collect()
}

#[track_caller]
fn is_a_fault(reply: &Reply, what: &str) {
    let text = "met a fault of its own and changed nothing";
    assert!(reply.err().contains(text), "{what}: {reply}");
}

/// What is tested here, by topic: each test names its points, and together they are all there are.
const STAGES: &[&str] = &[
    "enter", "parse", "open", "user", "read", "decide", "decided",
];
const REPLY: &[&str] = &["reply"];
const KEYS: &[&str] = &["keys"];
const TORN: &[&str] = &["apply"];
const OBEYED: &[&str] = &["obey apply", "obey load", "obey restored"];
const WRITTEN: &[&str] = &["save", "rewrite"];
const RESTORED: &[&str] = &[
    "load",
    "restore decide",
    "restore obey",
    "restore event",
    "restore done",
    "restore forget",
];
const VALUES: &[&str] = &["digest", "copy", "mem usage", "free effort", "free"];
const GONE: &[&str] = &["unlink", "event"];
const MOVED: &[&str] = &["defrag"];
const PASS: &[&str] = &["tick", "policy", "listeners", "look", "trim"];
const WAITED: &[&str] = &["wake"];
const ASKED: &[&str] = &["config get", "config set", "info"];
const PAUSED: &[&str] = &["pause", "message"];
const WATCHED: &[&str] = &["watch", "tell", "notified", "obey reign", "obey leaves"];
const LISTED: &[&str] = &["range"];
const BACKED: &[&str] = &[
    "backup",
    "offload",
    "backup tick",
    "backup look",
    "backup filter",
    "backup write",
    "backup finish",
    "restoring",
    "bring",
    "obey brought",
];
const SCHEDULED: &[&str] = &["schedule"];
const ROLLED: &[&str] = &["rollback", "rolling", "roll", "rolling look"];

const SHARED: &[&str] = &[
    "define",
    "survey",
    "admit",
    "victims",
    "sweep",
    "newcomers",
    "partitions",
    "walk",
    "bus",
    "obey define",
    "share save",
    "share load",
    "share rewrite",
    "share unlink",
];

#[test]
fn every_point_of_the_module_is_tested() {
    let Some(bed) = Bed::new(&[]) else { return };
    let tested = [
        STAGES, REPLY, KEYS, TORN, OBEYED, WRITTEN, RESTORED, VALUES, GONE, MOVED, PASS, WAITED,
        ASKED, PAUSED, SHARED, WATCHED, LISTED, BACKED, SCHEDULED, ROLLED,
    ];
    let tested: BTreeSet<String> = tested.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(points(&mut bed.master.conn()), tested);
    let unknown = cmd!(bed.master.conn(), "MAOS.FAIL", "no such point", "1");
    assert!(unknown.is_err(), "{unknown}");
}

/// Every stage of every command, plain, in a transaction and in a script.
#[test]
fn a_panic_at_any_stage_of_any_command_changes_nothing() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    for point in STAGES {
        let lines: Vec<&str> = match *point {
            "read" => READS.to_vec(),
            "user" | "decide" | "decided" => WRITES.to_vec(),
            _ => [READS, WRITES].concat(),
        };
        for line in &lines {
            bed.hurt(point, |conn| is_a_fault(&conn.run(line), line));
        }
        let line = lines[lines.len() - 1];
        bed.hurt(point, |conn| {
            conn.run("MULTI").ok();
            conn.run(line);
            is_a_fault(&conn.run("EXEC").array()[0], line);
        });
        bed.hurt(point, |conn| {
            let words = split_line(line).expect("a line");
            let body = "return redis.pcall(unpack(ARGV))";
            let head = [
                b"EVAL".to_vec(),
                body.into(),
                b"1".to_vec(),
                b"told".to_vec(),
            ];
            is_a_fault(&conn.cmd(&[&head[..], &words].concat()), line);
        });
    }
    let conn = &mut bed.master.conn();
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(picture(conn, &bed.keys), bed.held);
}

/// Where the reply fails the change is made already, and the error says so.
#[test]
fn a_write_whose_reply_panics_says_that_it_was_made() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    for line in READS {
        bed.hurt("reply", |conn| is_a_fault(&conn.run(line), line));
    }
    let conn = &mut bed.master.conn();
    let before = conn.run("MAOS.GET told FULL").field("version").int();
    for line in WRITES.iter().filter(|line| !line.contains("DEL")) {
        conn.run("DEL fresh newer");
        bed.arm("reply");
        let reply = conn.run(line);
        let made = "met a fault of its own and made its change, which stays,";
        assert!(reply.err().contains(made), "{line}: {reply}");
        assert_eq!(left(conn), 0);
        bed.same(line);
    }
    assert!(conn.run("MAOS.GET told FULL").field("version").int() > before);
    // A lost race changes nothing, and its error does not say that it did.
    bed.arm("reply");
    is_a_fault(&conn.run("MAOS.CAS told 1 x"), "a lost race");
}

/// A server asks for the keys of a command, and then lets a user run it who may name these keys. If they
/// could not be told, the command does not run.
#[test]
fn a_panic_while_keys_are_told_opens_no_key() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    bed.arm("keys");
    let conn = &mut bed.master.conn();
    conn.run("COMMAND GETKEYS MAOS.MSET 2 told x plain y");
    if left(conn) > 0 {
        println!("skipped: this server does not ask for keys");
        return;
    }
    conn.run("ACL SETUSER limited on nopass ~mine:* +@all").ok();
    let limited = &mut bed.master.conn();
    limited.run("AUTH limited any").ok();
    for line in [
        "MAOS.MGET 2 told plain",
        "MAOS.MSET 2 told x plain y",
        "MAOS.MCAS 2 fresh 0 x newer 0 y",
    ] {
        bed.arm("keys");
        let reply = limited.run(line);
        assert!(reply.is_err(), "{line}: {reply}");
        bed.unchanged(line);
        assert_eq!(limited.run(line).code(), "NOPERM");
    }
    let reply = limited.run("MAOS.MSET 2 mine:a x mine:b y");
    assert!(reply.int() > 0, "and it runs again: {reply}");
}

/// What a replica cannot apply is missing there from then on. It says so, and a full copy mends it.
#[test]
fn what_was_not_obeyed_is_counted_and_a_full_copy_mends_it() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    let conn = &mut bed.master.conn();
    let old = conn.run("DUMP told").bytes().to_vec();
    for point in ["obey apply", "obey restored"] {
        let there = &mut bed.replica.conn();
        arm(there, point);
        match point {
            "obey apply" => drop(conn.run("MAOS.SET told x").int()),
            _ => cmd!(conn, "RESTORE", "told", "0", old, "REPLACE").ok(),
        }
        eventually(PATIENCE, "the replica met it", || {
            metric(there, "panics") == 1
        });
        assert_eq!(left(there), 0);
        assert!(metric(there, "damaged") > 0, "{point}");
        assert_eq!(there.run("PING"), Reply::Simple("PONG".into()));
        assert_ne!(digest(there, "told"), digest(conn, "told"), "{point}");
        assert!(bed.replica.log().contains("was not applied"), "{point}");
        bed.replica.restart(Stop::NoSave);
        bed.same(point);
    }
}

#[test]
fn what_was_not_loaded_from_an_aof_is_counted() {
    let lines = [("appendonly", "yes"), ("aof-use-rdb-preamble", "no")];
    let Some(bed) = Bed::new(&lines) else { return };
    let conn = &mut bed.master.conn();
    conn.run("BGREWRITEAOF");
    wait_rewritten(conn);
    for point in ["obey load", "obey apply"] {
        conn.run("MAOS.SET late v").int();
        let held = digest_all(conn);
        arm(conn, point);
        conn.run("DEBUG LOADAOF");
        assert_eq!(left(conn), 0);
        assert_eq!(conn.run("PING"), Reply::Simple("PONG".into()));
        assert!(metric(conn, "damaged") > 0);
        // The file is whole.
        conn.run("DEBUG LOADAOF").ok();
        assert_eq!(digest_all(conn), held);
        assert_eq!(picture(conn, &bed.keys), bed.held);
    }
}

fn file(server: &Server) -> Vec<u8> {
    std::fs::read(server.dir().join("dump.rdb")).expect("a file was saved")
}

fn wait_saved(conn: &mut Conn, status: &str) {
    eventually(PATIENCE, "the child is done", || {
        conn.info("persistence")["rdb_bgsave_in_progress"] == "0"
    });
    let info = conn.info("persistence");
    assert_eq!(info["rdb_last_bgsave_status"], status);
}

/// A record that is not written down must not be missing from a file that looks whole.
#[test]
fn a_save_that_panics_fails_and_the_file_before_it_stays() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    let conn = &mut bed.master.conn();
    // The copy for the replica was made by a child.
    wait_saved(conn, "ok");
    conn.run("SAVE").ok();
    let whole = file(&bed.master);
    for how in ["SAVE", "DEBUG RELOAD", "SHUTDOWN SAVE"] {
        bed.hurt("save", |conn| {
            let reply = conn.run(how);
            assert!(reply.is_err(), "{how}: {reply}");
        });
        assert_eq!(file(&bed.master), whole, "{how}");
    }
    // A child panics with its own copy of the point: the one here stays armed.
    bed.arm("save");
    conn.run("BGSAVE");
    wait_saved(conn, "err");
    assert_eq!(left(conn), 1);
    assert_eq!(file(&bed.master), whole, "BGSAVE");
    conn.run("BGSAVE");
    wait_saved(conn, "ok");
    bed.unchanged("BGSAVE");
    // A replica is not given half a copy.
    let given_up = |server: &Server| server.log().matches("is given up").count();
    let before = given_up(&bed.master);
    bed.arm("save");
    let source = format!("127.0.0.1 {}", bed.master.port());
    let setup = bed.master.setup().clone().set("replicaof", &source);
    let late = setup.start();
    eventually(PATIENCE, "a copy is given up", || {
        given_up(&bed.master) > before
    });
    assert_eq!(late.conn().run("DBSIZE").int(), 0);
    assert_eq!(left(conn), 1);
    wait_synced(&bed.master, &late);
    assert_eq!(digest_all(&mut late.conn()), digest_all(conn));
    // What DUMP gives is refused.
    bed.hurt("save", |conn| {
        let dump = conn.run("DUMP told").bytes().to_vec();
        for command in ["RESTORE", "RESTORE-ASKING"] {
            let reply = cmd!(conn, command, "fresh", "0", dump);
            assert!(reply.is_err(), "{command}: {reply}");
        }
    });
}

#[test]
fn a_rewrite_that_panics_fails_and_the_file_before_it_stays() {
    for (preamble, point) in [("no", "rewrite"), ("yes", "save")] {
        let lines = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("aof-use-rdb-preamble", preamble),
        ];
        let Some(mut bed) = Bed::new(&lines) else {
            return;
        };
        let conn = &mut bed.master.conn();
        wait_rewritten(conn);
        bed.arm(point);
        conn.run("BGREWRITEAOF");
        eventually(PATIENCE, "the rewrite fails", || {
            conn.info("persistence")["aof_last_bgrewrite_status"] == "err"
        });
        assert_eq!(left(conn), 1);
        bed.unchanged(point);
        // The server tries again later: it is not to meet this test's end.
        bed.master.restart(Stop::Kill);
        assert_eq!(picture(&mut bed.master.conn(), &bed.keys), bed.held);
    }
}

#[test]
fn a_restore_that_panics_is_refused_or_goes_everywhere() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    let conn = &mut bed.master.conn();
    let dump = conn.run("DUMP told").bytes().to_vec();
    for point in ["load", "restore decide", "restore obey"] {
        bed.hurt(point, |conn| {
            let reply = cmd!(conn, "RESTORE", "fresh", "0", dump);
            assert!(reply.is_err(), "{point}: {reply}");
        });
    }
    // What was decided about it is sent, be it at the second try.
    let mut reached = vec![];
    for point in ["restore event", "restore done", "restore forget"] {
        bed.arm(point);
        cmd!(conn, "RESTORE", "back", "0", dump, "REPLACE").ok();
        if left(conn) == 0 {
            reached.push(point);
        }
        bed.same(point);
        assert_eq!(metric(&mut bed.replica.conn(), "damaged"), 0);
    }
    // A server has one way or the other.
    let known = [
        vec!["restore event"],
        vec!["restore done", "restore forget"],
    ];
    assert!(known.contains(&reached), "{reached:?}");
}

#[test]
fn a_panic_over_a_value_harms_no_other() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    bed.hurt("digest", |conn| drop(conn.run("DEBUG DIGEST-VALUE told")));
    bed.hurt("copy", |conn| {
        let reply = conn.run("COPY told fresh");
        assert!(reply.is_err(), "{reply}");
    });
    bed.hurt("mem usage", |conn| {
        assert!(conn.run("MEMORY USAGE told").int() >= 0);
    });
    bed.hurt("free effort", |conn| {
        conn.run("MAOS.SET scratch v").int();
        assert_eq!(conn.run("UNLINK scratch").int(), 1);
    });
    // It is not freed, and the key is gone.
    bed.hurt("free", |conn| {
        conn.run("MAOS.SET scratch v").int();
        assert_eq!(conn.run("DEL scratch").int(), 1);
        assert_eq!(conn.run("EXISTS scratch").int(), 0);
    });
}

/// If the node misses that a version is gone, the promise that it comes never again still holds.
#[test]
fn what_goes_unseen_still_comes_never_again() {
    for (point, purge) in [("unlink", "DEL k"), ("event", "FLUSHALL")] {
        let (from, to) = (Server::start(), Server::start());
        let (there, conn) = (&mut from.conn(), &mut to.conn());
        if !has_failpoints(conn) {
            println!("skipped: this build has no failpoints");
            return;
        }
        let old = there.run("MAOS.SET k v").int();
        let dump = there.run("DUMP k").bytes().to_vec();
        let version = |conn: &mut Conn| conn.run("MAOS.GET k WITHVERSION").array()[1].int();
        cmd!(conn, "RESTORE", "k", "0", dump).ok();
        assert_eq!(version(conn), old, "it was never here before");
        // A flush has several events: none of them is seen.
        cmd!(conn, "MAOS.FAIL", point, "9").int();
        conn.run(purge);
        assert!(left(conn) < 9, "{point}");
        cmd!(conn, "RESTORE", "k", "0", dump).ok();
        assert!(version(conn) > old, "{point}");
    }
}

#[test]
fn a_panic_while_a_record_is_moved_leaves_it_where_it_is() {
    let server = Server::start();
    let conn = &mut server.conn();
    if !has_failpoints(conn) || !fragment(conn, 5000) {
        println!(
            "skipped: this build has no failpoints, or this server's allocator cannot defragment"
        );
        return;
    }
    let before = digest_all(conn);
    arm(conn, "defrag");
    conn.run("CONFIG SET activedefrag yes").ok();
    eventually(PATIENCE, "a record is to be moved", || {
        metric(conn, "panics") == 1
    });
    assert_eq!(digest_all(conn), before);
}

/// Who waits for the log to go on is told how far it has come, and misses nothing.
#[test]
fn a_panic_over_a_watch_leaves_nobody_waiting_and_nothing_untold() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    bed.hurt("watch", |conn| {
        let line = "MAOS.WATCH told";
        is_a_fault(&conn.run(line), line);
    });
    let mut conn = bed.master.conn();
    let mut waits = bed.master.conn();
    waits.send(&split_line("MAOS.WATCH seen BLOCK 600000").expect("a line"));
    eventually(PATIENCE, "it waits", || metric(&mut conn, "watchers") == 1);
    bed.arm("tell");
    let version = conn.run("MAOS.SET seen 1").int();
    let reply = waits.recv();
    assert_eq!(reply.array()[1].array().len(), 0, "{reply}");
    assert_eq!(left(&mut conn), 0);
    let cursor = reply.array()[0].text();
    let reply = conn.run(&format!("MAOS.WATCH seen SINCE {cursor}"));
    let event = &reply.array()[1].array()[0];
    assert_eq!(event.field("version").int(), version);
    bed.same("tell");
}

/// A replica that has not heard why a key goes takes its log for no whole one.
#[test]
fn a_panic_over_a_key_that_leaves_parts_the_log_of_the_replica() {
    let cluster = Cluster::start(3, 1);
    let from = cluster.node_for("{o}k");
    let there = &mut cluster.replica_now(from).conn();
    if !has_failpoints(there) {
        return println!("skipped: this build has no failpoints");
    }
    from.conn().run("MAOS.SET {o}k 1").int();
    let cursor = from.conn().run("MAOS.WATCH none");
    wait_synced(from, cluster.replica_now(from));
    let line = format!("MAOS.WATCH * SINCE {}", cursor.array()[0].text());
    assert!(!there.run(&line).is_err());
    arm(there, "obey leaves");
    cluster.move_slot(slot_of(b"{o}"), cluster.another(from));
    // Until it hears where that is it has none.
    eventually(PATIENCE, "it is told", || there.run(&line).is_err());
    let mut keys = (0..).map(|n| format!("other{n}"));
    let stays = keys.find(|key| cluster.node_for(key).port() == from.port());
    cmd!(from.conn(), "MAOS.SET", stays.expect("a key of it"), "1").int();
    eventually(PATIENCE, "a log begins", || {
        there.run(&line).code() != "BUSY"
    });
    assert_eq!((there.run(&line).code(), left(there)), ("DIVERGED", 0));
}

/// A listing lacks nothing, whatever was not seen.
#[test]
fn a_panic_over_a_listing_hides_no_key() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    bed.hurt("range", |conn| {
        let line = "MAOS.RANGE told";
        is_a_fault(&conn.run(line), line);
    });
    let listed = |conn: &mut Conn| {
        let mut reply = conn.run("MAOS.RANGE l:");
        eventually(PATIENCE, "the index is whole", || {
            let busy = reply.is_err() && reply.code() == "BUSY";
            if busy {
                reply = conn.run("MAOS.RANGE l:");
            }
            !busy
        });
        reply.array()[1].to_string()
    };
    let mut conn = bed.master.conn();
    for (point, line, left_over) in [
        ("unlink", "DEL l:1", "[]"),
        ("notified", "RENAME l:1 l:2", "[\"l:2\"]"),
        ("event", "SWAPDB 0 1", "[\"l:0\"]"),
    ] {
        for other in ["SELECT 1", "MAOS.SET l:0 v", "SELECT 0", "MAOS.SET l:1 v"] {
            conn.run(other);
        }
        bed.arm(point);
        conn.run(line);
        if point != "notified" {
            assert_eq!(left(&mut conn), 0, "{point}");
        }
        left(&mut conn);
        assert_eq!(listed(&mut conn), left_over, "{point}");
        conn.run("DEL l:0 l:1 l:2");
    }
}

/// What was not seen is not hidden: the log begins anew, and no cursor from before is good.
#[test]
fn what_is_missed_by_a_panic_parts_the_log() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    for point in ["unlink", "notified", "event"] {
        let mut conn = bed.master.conn();
        conn.run("MAOS.SET leaves 1").int();
        let reply = conn.run("MAOS.WATCH leaves");
        let cursor = reply.array()[0].text();
        let line = format!("MAOS.WATCH leaves SINCE {cursor}");
        assert!(!conn.run(&line).is_err());
        bed.arm(point);
        // By the server's clock, not by ours, which has been moved.
        match point {
            "event" => conn.run("FLUSHALL").ok(),
            _ => assert_eq!(conn.run("PEXPIRE leaves 20").int(), 1),
        }
        eventually(PATIENCE, "it is gone", || {
            conn.run("EXISTS leaves").int() == 0
        });
        assert_eq!(left(&mut conn), 0, "{point}");
        eventually(PATIENCE, point, || conn.run(&line).is_err());
        assert_eq!(conn.run(&line).code(), "DIVERGED", "{point}");
        bed.same(point);
    }
    // Nor a change that did not come to a replica.
    let (mut conn, mut there) = (bed.master.conn(), bed.replica.conn());
    conn.run("MAOS.SET leaves 1").int();
    let reply = conn.run("MAOS.WATCH leaves");
    wait_synced(&bed.master, &bed.replica);
    let line = format!("MAOS.WATCH leaves SINCE {}", reply.array()[0].text());
    assert!(!there.run(&line).is_err());
    arm(&mut there, "obey apply");
    conn.run("MAOS.SET leaves 2").int();
    eventually(PATIENCE, "it is told", || there.run(&line).is_err());
    conn.run("MAOS.SET leaves 3").int();
    wait_synced(&bed.master, &bed.replica);
    assert!(there.run(&line).is_err());
    assert_eq!(left(&mut there), 0);
    // Where its master's log is it hears again when the next replica comes.
    let panics = metric(&mut there, "panics");
    arm(&mut there, "obey reign");
    let _late = replica_of(&bed.master);
    eventually(PATIENCE, "it is not heard", || {
        metric(&mut there, "panics") == panics + 1
    });
    let reply = conn.run("MAOS.WATCH leaves");
    let _later = replica_of(&bed.master);
    let line = format!("MAOS.WATCH leaves SINCE {}", reply.array()[0].text());
    eventually(PATIENCE, "it is heard", || !there.run(&line).is_err());
}

/// Who waits for a lock is looked at again, and gets it.
#[test]
fn a_panic_over_a_lock_leaves_nobody_waiting() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    let mut conn = bed.master.conn();
    conn.run("MAOS.LOCK told a 600000").array();
    let mut waits = bed.master.conn();
    waits.send(&split_line("MAOS.LOCK told b 600000 WAIT 600000").expect("a line"));
    eventually(PATIENCE, "it waits", || {
        metric(&mut conn, "lock_waiters") == 1
    });
    bed.arm("wake");
    let held = conn.run("MAOS.LOCKS told").field("highest-token").int();
    assert_eq!(conn.run(&format!("MAOS.UNLOCK told {held}")).int(), 0);
    let token = waits.recv().array()[0].int();
    assert!(token > held);
    assert_eq!(left(&mut conn), 0);
    assert_eq!(metric(&mut conn, "panics"), 1);
    bed.same("wake");
    // Nor where a key goes and that is not seen.
    for (point, end) in [("unlink", "DEL told"), ("event", "FLUSHALL")] {
        conn.run("DEL told");
        conn.run("MAOS.LOCK told a 600000").array();
        waits.send(&split_line("MAOS.LOCK told b 600000 WAIT 600000").expect("a line"));
        eventually(PATIENCE, "it waits", || {
            metric(&mut conn, "lock_waiters") == 1
        });
        // A flush has several events.
        cmd!(conn, "MAOS.FAIL", point, "9").int();
        conn.run(end);
        assert!(waits.recv().array()[0].int() > token, "{point}");
        assert!(left(&mut conn) < 9, "{point}");
    }
}

/// A node that does not know how long it slept refuses, and one that was not asked is asked again.
#[test]
fn a_panic_over_a_pause_keeps_nobody_from_its_end() {
    let Some(mut bed) = Bed::new(&[("maos.pause-guard-ms", "100")]) else {
        return;
    };
    // To arm it is to put the clock on, which looks like a sleep.
    let line = "MAOS.CAS fresh 0 x";
    bed.hurt("pause", |conn| is_a_fault(&conn.run(line), line));
    let cluster = Cluster::start(2, 0);
    let [asks, answers] = [0, 1].map(|i| cluster.master(i));
    arm(&mut answers.conn(), "message");
    asks.conn().run("MAOS.FAIL clock 60000").int();
    eventually(PATIENCE, "it has asked", || {
        metric(&mut answers.conn(), "panics") == 1
    });
    eventually(PATIENCE, "it is certain", || {
        let mut conn = asks.conn();
        metric(&mut conn, "pauses") == 1 && metric(&mut conn, "in_doubt") == 0
    });
    assert_eq!(left(&mut answers.conn()), 0);
}

/// The pass goes on with its next step.
#[test]
fn a_panic_in_the_background_is_over_with_the_step() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    for point in ["tick", "policy", "listeners", "look"] {
        let wait = |conn: &mut Conn, panics: i64| {
            eventually(PATIENCE, point, || metric(conn, "panics") > panics);
        };
        let panics = metric(&mut bed.master.conn(), "panics");
        bed.hurt(point, |conn| {
            match point {
                "policy" => conn.run("CONFIG SET maxmemory-policy noeviction").ok(),
                "look" => conn.run("CONFIG SET maos.background-effort-us 5000").ok(),
                _ => {}
            }
            wait(conn, panics);
        });
    }
    // The step after it does what that one should have done.
    let conn = &mut bed.master.conn();
    conn.run("MAOS.SET scratch v").int();
    let panics = metric(conn, "panics");
    bed.arm("trim");
    conn.run("CONFIG SET maos.history-max-age 1").ok();
    conn.run("MAOS.FAIL clock 86400000").int();
    eventually(PATIENCE, "a trim panics", || {
        metric(conn, "panics") > panics
    });
    eventually(PATIENCE, "what is old goes", || {
        conn.run("MAOS.HISTORY long").array().len() == 1
    });
    bed.same("trim");
}

#[test]
fn a_panic_where_the_server_asks_is_contained() {
    let Some(mut bed) = Bed::new(&[]) else { return };
    let name = "maos.history-max-versions";
    bed.hurt("config get", |conn| assert_eq!(conn.config(name), "100"));
    bed.hurt("config set", |conn| {
        let reply = cmd!(conn, "CONFIG", "SET", name, "7");
        assert!(reply.is_err(), "{reply}");
        assert_eq!(conn.config(name), "100");
    });
    bed.hurt("info", |conn| drop(conn.info("maos")));
    bed.hurt("info", |conn| drop(conn.run("INFO everything")));
}

impl Bed {
    /// With partitions: one that is full and makes room, and one that leaves with its keys.
    fn shared(lines: &[(&str, &str)]) -> Option<Bed> {
        let mut bed = Bed::new(lines)?;
        let conn = &mut bed.master.conn();
        conn.run("MAOS.PARTITION CREATE share BYTES 3000 PREFIX charged: ONFULL evict")
            .int();
        conn.run("MAOS.PARTITION CREATE leaving BYTES 100000 TYPE temporary TTL 999999999999 PREFIX leaving:")
            .int();
        for n in 0..10 {
            cmd!(conn, "MAOS.SET", format!("charged:{n}"), "x".repeat(200)).int();
            conn.run(&format!("MAOS.SET leaving:{n} v")).int();
        }
        bed.keys
            .extend(["charged:0", "charged:9", "leaving:0", "share", "leaving"]);
        bed.held = bed.looks();
        wait_synced(&bed.master, &bed.replica);
        Some(bed)
    }

    fn looks(&self) -> Vec<String> {
        let conn = &mut self.master.conn();
        let of_state = &self.keys[..self.keys.len() - 2];
        let mut held = picture(conn, of_state);
        held.extend(["share", "leaving"].map(|key| digest(conn, key)));
        held
    }

    /// Nothing has changed, and what is charged is what is held.
    #[track_caller]
    fn hurt_shared(&mut self, point: &str, act: impl FnOnce(&mut Conn)) {
        let held = shares(&mut self.master.conn());
        let before = metric(&mut self.master.conn(), "panics");
        self.arm(point);
        act(&mut self.master.conn());
        let conn = &mut self.master.conn();
        assert_eq!(left(conn), 0, "{point} was not reached");
        assert_eq!(metric(conn, "panics"), before + 1, "{point}");
        assert_eq!(self.looks(), self.held, "{point}");
        assert_eq!(shares(conn), held, "{point}");
        self.same(point);
    }

    #[track_caller]
    fn sums_are_right(&self, point: &str) {
        for server in [&self.master, &self.replica] {
            super::partitions::sums_are_right(&mut server.conn(), point);
        }
    }
}

/// What a node says of its partitions that does not pass with time.
fn shares(conn: &mut Conn) -> Vec<String> {
    let list = conn.run("MAOS.PARTITION LIST");
    let fields = [
        "name", "quota", "used", "keys", "evicted", "version", "prefixes",
    ];
    let shown = list.array().iter();
    shown
        .map(|p| fields.map(|f| p.field(f).to_string()).join(" "))
        .collect()
}

#[test]
fn a_panic_over_a_partition_changes_nothing() {
    let Some(mut bed) = Bed::shared(&[]) else {
        return;
    };
    let large = "x".repeat(1500);
    let [full, several, txn] = [
        format!("MAOS.SET charged:new {large}"),
        format!("MAOS.MSET 2 charged:new {large} fresh v"),
        format!("MAOS.TXN 2 charged:new fresh THEN SET fresh v THEN SET charged:new {large}"),
    ];
    for (point, lines) in [
        (
            "define",
            &[
                "MAOS.PARTITION CREATE fresh BYTES 1000",
                "MAOS.PARTITION ALTER share BYTES 9000 NOPREFIX",
                "MAOS.PARTITION DROP leaving FORCE",
            ][..],
        ),
        (
            "survey",
            &[
                "MAOS.PARTITION INFO share AUDIT",
                "MAOS.PARTITION LIST",
                "MAOS.PARTITION POOL",
            ],
        ),
        (
            "admit",
            &[
                "MAOS.SET charged:1 x",
                "MAOS.SET told x PARTITION share",
                "MAOS.DEL charged:1",
                "MAOS.MSET 2 fresh x charged:1 y",
                "MAOS.LOCK charged:1 a 1000",
                "MAOS.TXN 2 fresh charged:1 THEN SET fresh x THEN DEL charged:1",
            ],
        ),
        ("victims", &[&full, &several, &txn]),
    ] {
        for line in lines {
            bed.hurt_shared(point, |conn| is_a_fault(&conn.run(line), line));
            bed.hurt_shared(point, |conn| {
                conn.run("MULTI").ok();
                conn.run(line);
                is_a_fault(&conn.run("EXEC").array()[0], line);
            });
        }
        bed.sums_are_right(point);
    }
    let conn = &mut bed.master.conn();
    conn.run(&full).int();
    conn.run("MAOS.PARTITION DROP leaving FORCE").int();
    bed.same("and it goes on");
    bed.sums_are_right("and it goes on");
}

#[test]
fn a_definition_that_is_not_written_down_fails_the_file() {
    let Some(mut bed) = Bed::shared(&[]) else {
        return;
    };
    let conn = &mut bed.master.conn();
    wait_saved(conn, "ok");
    conn.run("SAVE").ok();
    let whole = file(&bed.master);
    for how in ["SAVE", "DEBUG RELOAD", "SHUTDOWN SAVE"] {
        bed.hurt_shared("share save", |conn| {
            let reply = conn.run(how);
            assert!(reply.is_err(), "{how}: {reply}");
        });
        assert_eq!(file(&bed.master), whole, "{how}");
    }
    bed.arm("share save");
    conn.run("BGSAVE");
    wait_saved(conn, "err");
    assert_eq!(left(conn), 1);
    assert_eq!(file(&bed.master), whole);
    let dump = conn.run("DUMP share").bytes().to_vec();
    conn.run("DEL share").int();
    bed.arm("share load");
    let reply = cmd!(conn, "RESTORE", "share", "0", dump);
    assert!(reply.is_err(), "{reply}");
    assert_eq!(left(conn), 0);
    assert_eq!(conn.run("MAOS.PARTITION INFO share").code(), "NOTFOUND");
    cmd!(conn, "RESTORE", "share", "0", dump).ok();
    bed.same("share load");
    bed.sums_are_right("share load");
}

#[test]
fn a_rewrite_without_a_definition_fails() {
    let lines = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("aof-use-rdb-preamble", "no"),
    ];
    let Some(mut bed) = Bed::shared(&lines) else {
        return;
    };
    let conn = &mut bed.master.conn();
    wait_rewritten(conn);
    bed.arm("share rewrite");
    conn.run("BGREWRITEAOF");
    eventually(PATIENCE, "the rewrite fails", || {
        conn.info("persistence")["aof_last_bgrewrite_status"] == "err"
    });
    assert_eq!(left(conn), 1);
    let before = shares(conn);
    bed.master.restart(Stop::Kill);
    assert_eq!(bed.looks(), bed.held);
    let fields = |lines: Vec<String>| lines.len();
    assert_eq!(fields(shares(&mut bed.master.conn())), fields(before));
    bed.same("after a restart");
    bed.sums_are_right("after a restart");
}

/// A removal that the module misses is found out.
#[test]
fn a_definition_whose_end_goes_unseen_ends_all_the_same() {
    let Some(mut bed) = Bed::shared(&[]) else {
        return;
    };
    let conn = &mut bed.master.conn();
    for (key, prefix, stay) in [("share", "charged:", 10), ("leaving", "leaving:", 0)] {
        bed.arm("share unlink");
        assert_eq!(conn.run(&format!("DEL {key}")).int(), 1);
        assert_eq!(left(conn), 0);
        eventually(PATIENCE, "it is not known any more", || {
            let reply = conn.run(&format!("MAOS.SET fresh v PARTITION {key}"));
            reply.is_err() && reply.code() == "NOTFOUND"
        });
        conn.run("DEL fresh");
        eventually(PATIENCE, "what is to go goes", || {
            conn.run(&format!("KEYS {prefix}*")).array().len() == stay
        });
        bed.same(key);
        bed.sums_are_right(key);
    }
}

#[test]
fn a_definition_that_was_not_obeyed_is_counted_and_a_full_copy_mends_it() {
    let Some(mut bed) = Bed::shared(&[]) else {
        return;
    };
    let conn = &mut bed.master.conn();
    let there = &mut bed.replica.conn();
    arm(there, "obey define");
    conn.run("MAOS.PARTITION CREATE fresh BYTES 1000").int();
    eventually(PATIENCE, "the replica met it", || {
        metric(there, "panics") == 1
    });
    assert_eq!(left(there), 0);
    assert!(metric(there, "damaged") > 0);
    assert_eq!(there.run("EXISTS fresh").int(), 0);
    assert!(bed.replica.log().contains("was not applied"));
    bed.replica.restart(Stop::NoSave);
    bed.same("obey define");
    bed.sums_are_right("obey define");
}

#[test]
fn a_panic_over_keys_that_leave_leaves_none() {
    let Some(mut bed) = Bed::shared(&[]) else {
        return;
    };
    let conn = &mut bed.master.conn();
    for point in ["partitions", "walk"] {
        let panics = metric(conn, "panics");
        bed.hurt_shared(point, |conn| {
            conn.run("MAOS.PARTITION INFO share AUDIT");
            eventually(PATIENCE, point, || metric(conn, "panics") > panics);
        });
        bed.sums_are_right(point);
    }
    bed.arm("sweep");
    assert_eq!(conn.run("PEXPIREAT leaving 1").int(), 1);
    eventually(PATIENCE, "they are gone", || {
        conn.run("KEYS leaving:*").array().is_empty()
    });
    assert_eq!(left(conn), 0);
    bed.same("sweep");
    bed.sums_are_right("sweep");
    conn.run("MAOS.SET beside v").int();
    let panics = metric(conn, "panics");
    bed.arm("newcomers");
    assert_eq!(conn.run("COPY beside charged:came").int(), 1);
    eventually(PATIENCE, "newcomers", || metric(conn, "panics") > panics);
    assert_eq!(conn.run("MAOS.GET charged:came").text(), "v");
    conn.run("DEL charged:came beside").int();
    bed.same("newcomers");
    bed.sums_are_right("newcomers");
}

/// What a node does not hear is told again.
#[test]
fn a_panic_over_what_other_nodes_say_loses_no_partition() {
    let cluster = Cluster::start(2, 0);
    let (says, hears) = (cluster.master(0), cluster.master(1));
    if !has_failpoints(&mut hears.conn()) {
        return;
    }
    arm(&mut hears.conn(), "bus");
    let made = |server: &Server| {
        let replies = (0..50).map(|n| {
            server
                .conn()
                .run(&format!("MAOS.PARTITION CREATE p{n} BYTES 1000"))
        });
        replies.filter(|r| !r.is_err()).count()
    };
    assert!(made(says) > 0);
    eventually(PATIENCE, "it met it", || {
        metric(&mut hears.conn(), "panics") == 1
    });
    let list = |server: &Server| {
        let list = server.conn().run("MAOS.PARTITION LIST");
        let names = list
            .array()
            .iter()
            .map(|p| p.field("name").text().to_owned());
        names.collect::<Vec<_>>()
    };
    eventually(PATIENCE, "it knows all", || {
        !list(says).is_empty() && list(hears) == list(says)
    });
}

fn names_of_backups(conn: &mut Conn) -> Vec<String> {
    let list = conn.run("MAOS.BACKUP LIST");
    let names = list.array().iter();
    names.map(|b| b.field("name").text().to_owned()).collect()
}

/// What a job has come to that met a panic.
#[track_caller]
fn has_failed(conn: &mut Conn, id: &str, point: &str) {
    let status = ended(conn, id);
    assert_eq!(status.field("state").text(), "failed", "{point}: {status}");
    let why = "a fault of its own";
    let error = status.field("error").text().to_owned();
    assert!(error.contains(why), "{point}: {status}");
}

#[test]
fn a_panic_over_a_request_for_backups_is_told_and_changes_nothing() {
    let Some(mut bed) = Bed::new(&PLAIN) else {
        return;
    };
    let id = backup(&mut bed.master.conn(), "whole");
    let lines = ["CREATE no", "LIST"].map(|line| format!("MAOS.BACKUP {line}"));
    let [status, verify, restore, delete] =
        ["STATUS", "VERIFY", "RESTORE", "DELETE"].map(|word| format!("MAOS.BACKUP {word} {id}"));
    for line in lines.iter().chain([&status, &verify, &restore, &delete]) {
        bed.hurt("backup", |conn| is_a_fault(&conn.run(line), line));
    }
    // Who waits for a thread is not left waiting.
    for line in [&lines[1], &verify] {
        bed.hurt("offload", |conn| {
            let reply = conn.run(line);
            let text = "met a fault of its own";
            assert!(reply.err().contains(text), "{line}: {reply}");
        });
    }
    let conn = &mut bed.master.conn();
    assert_eq!(names_of_backups(conn), ["whole"]);
    assert_eq!(conn.run(&verify).field("keys").int(), bed.keys.len() as i64);
    restored(conn, &id, "");
    bed.unchanged("and it goes on");
}

/// Wherever it breaks: there is none, which is said, and the next one has every key.
#[test]
fn a_panic_over_a_backup_fails_it_and_the_next_has_everything() {
    let Some(mut bed) = Bed::new(&PLAIN) else {
        return;
    };
    let mut failed = 0;
    for point in [
        "backup tick",
        "backup look",
        "backup filter",
        "backup write",
        "backup finish",
    ] {
        bed.hurt(point, |conn| {
            // A command of the server's own, before the walk has begun.
            let begun = conn.pipeline(&["MAOS.BACKUP CREATE half", "TOUCH told"]);
            has_failed(conn, begun[0].text(), point);
            assert_eq!(names_of_backups(conn), ["whole"; 5][..failed], "{point}");
        });
        failed += 1;
        let conn = &mut bed.master.conn();
        assert_eq!(metric(conn, "backups_failed"), failed as i64, "{point}");
        age_parts(&bed.master);
        let status = next_backup(conn, "whole");
        assert_eq!(parts(&bed.master), Vec::<std::path::PathBuf>::new());
        let keys = bed.keys.len() as i64;
        assert_eq!(status.field("keys").int(), keys, "{point}: {status}");
        let other = plain(&[]);
        let id = status.field("id").text();
        carry(&bed.master, &other, id);
        restored(&mut other.conn(), id, "");
        let there = picture(&mut other.conn(), &bed.keys);
        assert_eq!(there, bed.held, "{point}");
    }
}

/// What becomes of keys while a backup is made is in it as it was before, or there is no backup.
#[test]
fn what_is_missed_by_a_panic_fails_the_backup() {
    let Some(bed) = Bed::new(&PLAIN) else {
        return;
    };
    for line in ["SWAPDB 0 1", "FLUSHALL"] {
        let conn = &mut bed.master.conn();
        // In one go: other events, of a child that has ended, say, come between two of them.
        let lines = ["MAOS.FAIL event 1", "MAOS.BACKUP CREATE half", line];
        let mut done = conn.pipeline(&lines);
        eventually(
            PATIENCE,
            "what the one before has marked is cleared",
            || {
                let busy = done[1].is_err() && done[1].code() == "BUSY";
                if busy {
                    done = conn.pipeline(&lines);
                }
                !busy
            },
        );
        has_failed(conn, done[1].text(), line);
        assert_eq!(left(conn), 0, "{line}");
        assert_eq!(names_of_backups(conn), [""; 0], "{line}");
    }
    bed.same("and it goes on");
    let conn = &mut bed.master.conn();
    let keys = fill(conn);
    let status = next_backup(conn, "whole");
    assert_eq!(status.field("keys").int(), keys.len() as i64, "{status}");
}

#[test]
fn a_panic_over_a_restore_ends_it_and_the_next_brings_all() {
    let Some(mut bed) = Bed::new(&PLAIN) else {
        return;
    };
    let id = backup(&mut bed.master.conn(), "whole");
    let line = format!("MAOS.BACKUP RESTORE {id} REPLACE");
    for point in ["restoring", "bring"] {
        bed.hurt(point, |conn| {
            let job = conn.run(&line).text().to_owned();
            has_failed(conn, &job, point);
        });
        restored(&mut bed.master.conn(), &id, "REPLACE");
        bed.unchanged(point);
        // And where there is nothing yet.
        let other = plain(&[]);
        carry(&bed.master, &other, &id);
        let there = &mut other.conn();
        arm(there, point);
        let job = there.run(&line).text().to_owned();
        has_failed(there, &job, point);
        assert_eq!(there.run("DBSIZE").int(), 0, "{point}");
        assert_eq!(left(there), 0, "{point}");
        restored(there, &id, "");
        assert_eq!(picture(there, &bed.keys), bed.held, "{point}");
    }
}

#[test]
fn what_was_restored_and_not_obeyed_is_counted_and_a_full_copy_mends_it() {
    let Some(mut bed) = Bed::new(&PLAIN) else {
        return;
    };
    let conn = &mut bed.master.conn();
    let id = backup(conn, "whole");
    assert_eq!(conn.run("DEL told").int(), 1);
    wait_synced(&bed.master, &bed.replica);
    let there = &mut bed.replica.conn();
    arm(there, "obey brought");
    assert_eq!(restored(conn, &id, "").field("keys").int(), 1);
    eventually(PATIENCE, "the replica met it", || {
        metric(there, "panics") == 1
    });
    assert_eq!(left(there), 0);
    assert!(metric(there, "damaged") > 0);
    assert_eq!(there.run("PING"), Reply::Simple("PONG".into()));
    assert_eq!(there.run("EXISTS told").int(), 0);
    assert!(bed.replica.log().contains("was not applied"));
    bed.replica.restart(Stop::NoSave);
    bed.same("obey brought");
    assert_eq!(bed.replica.conn().run("EXISTS told").int(), 1);
}

/// A fault of what makes backups by itself is one of that alone, and it begins anew.
#[test]
fn scheduled_backups_go_on_after_a_panic() {
    let lines = [
        ("maos.backup-dir", "."),
        ("maos.backup-plain", "yes"),
        ("maos.backup-interval", "1"),
    ];
    let Some(mut bed) = Bed::new(&lines) else {
        return;
    };
    for point in SCHEDULED {
        let before = metric(&mut bed.master.conn(), "panics");
        bed.arm(point);
        let conn = &mut bed.master.conn();
        eventually(PATIENCE, "the tick met it", || {
            metric(conn, "panics") == before + 1
        });
        assert_eq!(left(conn), 0);
        bed.unchanged(point);
        let verified = metric(conn, "backup_verified");
        eventually(PATIENCE, "there are more", || {
            metric(conn, "backup_verified") > verified + 1
        });
    }
}

/// A roll-back that met a fault has failed, and says so; begun again it comes to its end.
#[test]
fn a_panic_while_a_prefix_is_rolled_back_ends_that_and_changes_nothing() {
    // There were no keys then: each of these would be deleted.
    let begin = "MAOS.ROLLBACKTO '' AT 0";
    for point in ROLLED {
        let index = match *point {
            "rolling look" => "no",
            _ => "yes",
        };
        let Some(mut bed) = Bed::new(&[("maos.range-index", index)]) else {
            return;
        };
        bed.hurt(point, |conn| {
            let begun = conn.run(begin);
            if *point == "rollback" {
                return is_a_fault(&begun, begin);
            }
            let mut status = Reply::Nil;
            eventually(PATIENCE, "it ends", || {
                status = cmd!(conn, "MAOS.BACKUP", "STATUS", begun.text());
                status.field("state").text() != "running"
            });
            assert_eq!(status.field("state").text(), "failed", "{status}");
            let error = status.field("error").text();
            assert!(error.contains("a fault of its own"), "{status}");
        });
        let conn = &mut bed.master.conn();
        let begun = conn.run(begin);
        eventually(PATIENCE, "it ends", || {
            let status = cmd!(conn, "MAOS.BACKUP", "STATUS", begun.text());
            status.field("state").text() == "done"
        });
        assert!(conn.run("MAOS.GET told").is_nil());
        bed.same(point);
    }
}
