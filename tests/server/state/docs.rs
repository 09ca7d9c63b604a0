//! What a live server says of the commands is what the table says.

use maos_core::wire::partition::DEFINE;
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::spec::{Arg, ArgKind, CommandSpec, Keys};
use maos_core::wire::state::{APPLY, LOAD, RESTORED};
use maos_core::wire::watch::REIGN;

use crate::harness::*;

fn texts(reply: &Reply) -> Vec<String> {
    reply
        .array()
        .iter()
        .map(|r| r.text().to_lowercase())
        .collect()
}

#[test]
fn command_info_equals_the_table() {
    let server = Server::start();
    let conn = &mut server.conn();
    for s in COMMANDS
        .iter()
        .copied()
        .chain([&APPLY, &LOAD, &RESTORED, &DEFINE, &REIGN])
    {
        let reply = cmd!(conn, "COMMAND", "INFO", s.full_name());
        let info = reply.array()[0].array();
        assert_eq!(info[1].int(), i64::from(s.arity), "{}: arity", s.name);
        let flags = texts(&info[2]);
        for (flag, shown) in [
            ("write", "write"),
            ("readonly", "readonly"),
            ("fast", "fast"),
            ("deny-oom", "denyoom"),
        ] {
            let wanted = s.flags.split(' ').any(|f| f == flag);
            assert_eq!(
                flags.contains(&shown.to_string()),
                wanted,
                "{}: {flag}",
                s.name
            );
        }
        let specs = info[8].array();
        let keyed = s.keys != Keys::None;
        assert_eq!(specs.len(), usize::from(keyed), "{}", s.name);
        let Some(first) = specs.first() else { continue };
        let mut shown = texts(first.field("flags"));
        shown.sort();
        assert_eq!(shown, key_flags(s), "{}", s.name);
        let server_has_categories = conn
            .run("ACL CAT")
            .array()
            .iter()
            .any(|c| c.text() == "maos");
        if server_has_categories {
            let categories = texts(&info[6]);
            for wanted in s.acl.split(' ').chain(["maos"]) {
                assert!(
                    categories.contains(&format!("@{wanted}")),
                    "{}: {categories:?}",
                    s.name
                );
            }
        }
    }
}

fn key_flags(s: &CommandSpec) -> Vec<&'static str> {
    use maos_core::wire::Access::*;
    let mut flags = match s.keys.access() {
        Read => vec!["access", "ro"],
        ReadWrite => vec!["access", "rw", "update"],
        Write => vec!["ow", "update"],
        Delete => vec!["access", "delete", "rw"],
    };
    // Makes Redis 7.0 ask the module for the keys; see `register.rs`.
    if matches!(s.keys, Keys::Counted { step, .. } if step > 1) {
        flags.push("variable_flags");
    }
    flags
}

#[test]
fn command_docs_equal_the_table() {
    let server = Server::start();
    let conn = &mut server.conn();
    for s in COMMANDS {
        let reply = cmd!(conn, "COMMAND", "DOCS", s.full_name());
        let docs = reply.fields()[0].1;
        assert_eq!(docs.field("summary").text(), s.summary);
        assert_eq!(docs.field("since").text(), s.since);
        assert_eq!(docs.field("complexity").text(), s.complexity);
        let args: Vec<_> = s.all_args().filter(|a| !a.reserved).collect();
        if !args.is_empty() {
            check_args(s.name, docs.field("arguments"), &args);
        }
    }
}

fn check_args(name: &str, shown: &Reply, args: &[&Arg]) {
    let shown = shown.array();
    assert_eq!(shown.len(), args.len(), "{name}");
    for (shown, arg) in shown.iter().zip(args) {
        assert_eq!(shown.field("name").text(), arg.name, "{name}");
        if let Some(tok) = arg.token {
            assert_eq!(shown.field("token").text(), tok.word(), "{name}");
        }
        let has = |field: &str| shown.fields().iter().any(|(k, _)| *k == field);
        let flags = if has("flags") {
            texts(shown.field("flags"))
        } else {
            vec![]
        };
        assert_eq!(
            flags.contains(&"optional".into()),
            arg.optional,
            "{name} {}",
            arg.name
        );
        assert_eq!(
            flags.contains(&"multiple".into()),
            arg.multiple,
            "{name} {}",
            arg.name
        );
        if let ArgKind::OneOf(of) | ArgKind::Block(of) = arg.kind {
            check_args(
                name,
                shown.field("arguments"),
                &of.iter().collect::<Vec<_>>(),
            );
        }
    }
}

#[test]
fn the_server_finds_the_keys() {
    let server = Server::start();
    let conn = &mut server.conn();
    let mut keys = |line: &str| texts(&conn.run(&format!("COMMAND GETKEYS {line}")));
    for s in COMMANDS.iter().filter(|s| matches!(s.keys, Keys::One(_))) {
        let words = 2 + usize::from(s.names().1.is_some());
        let rest = vec!["x"; s.arity.unsigned_abs() as usize - words].join(" ");
        assert_eq!(keys(&format!("{} k {rest}", s.name)), ["k"], "{}", s.name);
    }
    assert_eq!(keys("MAOS.MSET 2 a 1 b 2 BY c"), ["a", "b"]);
    assert_eq!(keys("MAOS.MCAS 2 a 0 1 b 0 2 BY c"), ["a", "b"]);
    assert_eq!(keys("MAOS.MGET 3 a b c FULL"), ["a", "b", "c"]);
    assert_eq!(keys("MAOS.APPLY fact a 1 b 2"), ["a", "b"]);
}

#[test]
fn what_a_server_lacks_is_said_once() {
    let server = Server::start();
    let has = server
        .conn()
        .run("ACL CAT")
        .array()
        .iter()
        .any(|c| c.text() == "maos");
    let said = server
        .log()
        .matches("no ACL categories for modules")
        .count();
    assert_eq!(said, usize::from(!has));
}

#[test]
fn refusals_are_counted_by_the_server_and_by_us() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v META nonsense").err();
    conn.run("MAOS.GET k VERSION 7").err();
    let stats = conn.info("errorstats");
    assert_eq!(stats["errorstat_NOTJSON"], "count=1");
    assert_eq!(stats["errorstat_NOVERSION"], "count=1");
    assert_eq!(super::metric(conn, "refusals_notjson"), 1);
    assert_eq!(super::metric(conn, "refusals_noversion"), 1);
}
