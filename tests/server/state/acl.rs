//! Who may do what: key patterns decide, by what a command does with its keys.

use crate::harness::*;

/// (command line on the key `KEY`, needs to read, needs to write)
const LINES: &[(&str, bool, bool)] = &[
    ("MAOS.GET KEY", true, false),
    ("MAOS.GET KEY FULL", true, false),
    ("MAOS.MGET 1 KEY", true, false),
    ("MAOS.HISTORY KEY", true, false),
    ("MAOS.DIFF KEY 1 2", true, false),
    ("MAOS.SET KEY v", true, true),
    ("MAOS.CAS KEY 0 v", true, true),
    ("MAOS.DEL KEY", true, true),
    ("MAOS.ROLLBACK KEY VERSION -1", true, true),
    ("MAOS.MSET 1 KEY v", false, true),
    ("MAOS.MCAS 1 KEY 0 v", true, true),
    ("MAOS.PATCH KEY {}", true, true),
    ("MAOS.INCRBY KEY 1", true, true),
    ("MAOS.MERGE KEY 1 v", true, true),
    ("MAOS.TXN 1 KEY THEN GET KEY", true, true),
    ("MAOS.LOCK KEY a 1000", false, true),
    ("MAOS.MLOCK 1 KEY a 1000", false, true),
    ("MAOS.RENEW KEY 5 1000", false, true),
    ("MAOS.UNLOCK KEY 5", false, true),
    ("MAOS.LOCKS KEY", true, false),
    ("MAOS.PARTITION CREATE KEY BYTES 10", true, true),
    ("MAOS.PARTITION ALTER KEY BYTES 10", true, true),
    ("MAOS.PARTITION DROP KEY FORCE", true, true),
    ("MAOS.PARTITION INFO KEY", true, false),
];

#[test]
fn key_patterns_hold_for_every_command() {
    let server = Server::start();
    let mut admin = server.conn();
    for (user, patterns, reads, writes) in [
        ("reader", "%R~app:*", true, false),
        ("writer", "%W~app:*", false, true),
        ("worker", "~app:*", true, true),
        ("nobody", "", false, false),
    ] {
        let commands = "+maos.get +maos.mget +maos.history +maos.diff +maos.set +maos.cas +maos.del +maos.rollback +maos.mset +maos.mcas +maos.patch +maos.incrby +maos.merge +maos.txn +maos.lock +maos.mlock +maos.renew +maos.unlock +maos.locks +maos.partition";
        admin
            .run(&format!(
                "ACL SETUSER {user} on >secret {patterns} {commands}"
            ))
            .ok();
        let mut conn = server.conn();
        conn.run(&format!("AUTH {user} secret")).ok();
        for (line, read, write) in LINES {
            let may = (!read || reads) && (!write || writes);
            let own = conn.run(&line.replace("KEY", "app:k"));
            let denied = own.is_err() && own.code() == "NOPERM";
            assert_eq!(denied, !may, "{user}: {line}: {own}");
            let other = conn.run(&line.replace("KEY", "other:k"));
            assert_eq!(other.code(), "NOPERM", "{user}: {line}");
        }
        // One foreign key among several is enough.
        assert_eq!(conn.run("MAOS.MGET 2 app:k other:k").code(), "NOPERM");
        assert_eq!(conn.run("MAOS.MSET 2 app:k v other:k v").code(), "NOPERM");
        let txn = "MAOS.TXN 2 app:k other:k THEN GET app:k";
        assert_eq!(conn.run(txn).code(), "NOPERM");
        // However the number is written: what is not counted is not read.
        for n in ["+1", "01", "1.0", " 1", "1 ", "0x1", ""] {
            assert!(cmd!(conn, "MAOS.MGET", n, "other:k").is_err(), "{n:?}");
        }
    }
}

#[test]
fn the_author_is_the_user_the_server_knows() {
    let server = Server::start();
    let mut admin = server.conn();
    admin.run("ACL SETUSER alice on >a ~* +@all").ok();
    let mut conn = server.conn();
    conn.run("MAOS.SET k v BY alice").int();
    conn.run("AUTH alice a").ok();
    conn.run("MAOS.SET k w BY planner").int();
    cmd!(
        conn,
        "EVAL",
        "return redis.call('MAOS.SET', KEYS[1], 'x')",
        "1",
        "k"
    )
    .int();
    conn.run("MULTI").ok();
    conn.run("MAOS.SET k y");
    conn.run("EXEC");
    conn.run("AUTH default ''");
    let history = admin.run("MAOS.HISTORY k");
    let authors: Vec<_> = history
        .array()
        .iter()
        .map(|v| (v.field("author").text(), v.field("agent").is_nil()))
        .collect();
    assert_eq!(
        authors,
        [
            ("default", false),
            ("alice", false),
            ("alice", true),
            ("alice", true)
        ]
    );
}

#[test]
fn categories_cover_our_commands_where_the_server_has_them() {
    let server = Server::start();
    let mut admin = server.conn();
    if !admin
        .run("ACL CAT")
        .array()
        .iter()
        .any(|c| c.text() == "maos")
    {
        // Known, documented, and said in the log: commands are allowed by name there.
        admin.run("ACL SETUSER named on >s ~* -@all +maos.get").ok();
        let mut conn = server.conn();
        conn.run("AUTH named s").ok();
        assert!(conn.run("MAOS.GET k").is_nil());
        assert_eq!(conn.run("MAOS.SET k v").code(), "NOPERM");
        return;
    }
    for (rules, get, set) in [
        ("+@maos", true, true),
        ("+@read", true, false),
        ("+@write", false, true),
        ("+@all -@maos", false, false),
    ] {
        admin
            .run(&format!("ACL SETUSER c reset on >s ~* -@all {rules}"))
            .ok();
        let mut conn = server.conn();
        conn.run("AUTH c s").ok();
        assert_eq!(!conn.run("MAOS.GET k").is_err(), get, "{rules}");
        assert_eq!(!conn.run("MAOS.SET k v").is_err(), set, "{rules}");
    }
    admin
        .run("ACL SETUSER plain reset on >s ~* +@all -@dangerous")
        .ok();
    let mut conn = server.conn();
    conn.run("AUTH plain s").ok();
    assert_eq!(conn.run("MAOS.APPLY f k v").code(), "NOPERM");
}

/// Who may not read the key of a partition does not see it, nor have it charged.
#[test]
fn a_partition_is_seen_and_charged_by_those_who_may_read_its_key() {
    let server = Server::start();
    let mut admin = server.conn();
    for name in ["app:p", "other:p"] {
        admin
            .run(&format!("MAOS.PARTITION CREATE {name} BYTES 100000"))
            .int();
    }
    let names = |conn: &mut Conn| -> Vec<String> {
        let list = conn.run("MAOS.PARTITION LIST");
        let names = list.array().iter();
        names.map(|p| p.field("name").text().to_owned()).collect()
    };
    assert_eq!(names(&mut admin), ["app:p", "other:p"]);
    for (user, patterns, seen) in [
        ("worker", "~app:*", &["app:p"][..]),
        ("reader", "~k %R~other:*", &["other:p"]),
        ("writer", "~k %W~other:*", &[]),
        ("all", "~*", &["app:p", "other:p"]),
    ] {
        let line = format!("ACL SETUSER {user} on >s {patterns} +@all");
        admin.run(&line).ok();
        let mut conn = server.conn();
        conn.run(&format!("AUTH {user} s")).ok();
        assert_eq!(names(&mut conn), seen, "{user}");
        let key = if user == "worker" { "app:k" } else { "k" };
        for name in ["app:p", "other:p"] {
            let may = seen.contains(&name);
            for line in [
                format!("MAOS.SET {key} 1 PARTITION {name}"),
                format!("MAOS.INCRBY {key} 1 PARTITION {name}"),
            ] {
                // What is charged to it already may stay.
                admin.run(&format!("DEL {key}")).int();
                let reply = conn.run(&line);
                let told = if reply.is_err() { reply.code() } else { "" };
                assert_eq!(told, if may { "" } else { "NOPERM" }, "{user}: {line}");
            }
            admin.run(&format!("DEL {key}")).int();
            let body = "return redis.pcall('MAOS.SET', KEYS[1], 1, 'PARTITION', ARGV[1])";
            let reply = cmd!(conn, "EVAL", body, "1", key, name);
            assert_eq!(!reply.is_err(), may, "{user}: {reply}");
        }
        // What is not there is not to be told from what may not be seen.
        if user == "writer" {
            let reply = conn.run("MAOS.SET k v PARTITION none");
            assert_eq!(reply.code(), "NOPERM", "{reply}");
        }
    }
}

#[test]
fn subcommands_of_partition_are_allowed_one_by_one() {
    let server = Server::start();
    let mut admin = server.conn();
    admin.run("MAOS.PARTITION CREATE p BYTES 1000").int();
    admin
        .run("ACL SETUSER looks on >s ~* -@all +maos.partition|info +maos.partition|list")
        .ok();
    admin
        .run("ACL SETUSER makes on >s ~* -@all +maos.partition -maos.partition|drop")
        .ok();
    for (user, allowed) in [
        ("looks", &["INFO p", "LIST"][..]),
        ("makes", &["INFO p", "LIST", "POOL", "ALTER p BYTES 2000"]),
    ] {
        let mut conn = server.conn();
        conn.run(&format!("AUTH {user} s")).ok();
        for line in ["INFO p", "LIST", "POOL", "ALTER p BYTES 2000", "DROP p"] {
            let reply = conn.run(&format!("MAOS.PARTITION {line}"));
            let denied = reply.is_err() && reply.code() == "NOPERM";
            assert_eq!(denied, !allowed.contains(&line), "{user}: {line}: {reply}");
        }
    }
}
