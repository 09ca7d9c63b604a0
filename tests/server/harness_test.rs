//! The harness proves itself, on servers without the module.

use std::io;

use crate::harness::*;

fn parse(bytes: &[u8], protocol: Protocol) -> io::Result<Reply> {
    let mut rest = bytes;
    let reply = Reply::read(&mut rest, protocol)?;
    assert!(
        rest.is_empty(),
        "bytes are left over: {}",
        rest.escape_ascii()
    );
    Ok(reply)
}

fn number(n: i64) -> Reply {
    Reply::Int(n)
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.into())
}

#[test]
fn every_type_of_resp2_is_read() {
    let read = |bytes: &[u8]| parse(bytes, Protocol::Resp2).unwrap();
    assert_eq!(read(b"+OK\r\n"), Reply::Simple("OK".into()));
    assert_eq!(read(b"-ERR no\r\n"), Reply::Error("ERR no".into()));
    assert_eq!(read(b":-42\r\n"), number(-42));
    assert_eq!(
        read(b"$4\r\n\r\n\0\xff\r\n"),
        Reply::Bulk(b"\r\n\0\xff".to_vec())
    );
    assert_eq!(read(b"$-1\r\n"), Reply::Nil);
    assert_eq!(read(b"*-1\r\n"), Reply::Nil);
    assert_eq!(read(b"*0\r\n"), Reply::Array(vec![]));
    let nested = Reply::Array(vec![number(1), Reply::Array(vec![bulk("a"), Reply::Nil])]);
    assert_eq!(read(b"*2\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n"), nested);
}

#[test]
fn every_type_of_resp3_is_read() {
    let read = |bytes: &[u8]| parse(bytes, Protocol::Resp3).unwrap();
    assert_eq!(read(b"_\r\n"), Reply::Nil);
    assert_eq!(read(b"#t\r\n"), Reply::Bool(true));
    assert_eq!(read(b",-1.5\r\n"), Reply::Double("-1.5".into()));
    assert_eq!(read(b",inf\r\n"), Reply::Double("inf".into()));
    assert_eq!(
        read(b"(-123456789012345678901\r\n").text(),
        "-123456789012345678901"
    );
    assert_eq!(read(b"!6\r\nERR no\r\n").err(), "ERR no");
    assert_eq!(read(b"=6\r\ntxt:hi\r\n").bytes(), b"hi");
    assert_eq!(read(b"~1\r\n:1\r\n"), Reply::Set(vec![number(1)]));
    assert_eq!(read(b">1\r\n+x\r\n").array()[0].text(), "x");
    let map = read(b"%2\r\n$1\r\na\r\n:1\r\n+b\r\n:2\r\n");
    assert_eq!(map.field("b").int(), 2);
}

#[test]
fn malformed_framing_is_refused() {
    let both: [&[u8]; 16] = [
        b"",
        b"+OK",
        b"+OK\n",
        b"+O\rK\r\n",
        b"\r\n",
        b"?1\r\n",
        b":\r\n",
        b":+1\r\n",
        b":01\r\n",
        b":-0\r\n",
        b":9223372036854775808\r\n",
        b"$-2\r\n",
        b"$3\r\nab\r\n",
        b"$1\r\nab\r\n",
        b"$99999999999\r\n",
        b"*2\r\n:1\r\n",
    ];
    for bytes in both {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let outcome = parse(bytes, protocol);
            assert!(outcome.is_err(), "{}: {outcome:?}", bytes.escape_ascii());
        }
    }
    for bytes in [
        &b"$-1\r\n"[..],
        b"*-1\r\n",
        b"_x\r\n",
        b"#x\r\n",
        b",one\r\n",
        b"(\r\n",
    ] {
        assert!(
            parse(bytes, Protocol::Resp3).is_err(),
            "{}",
            bytes.escape_ascii()
        );
    }
    for bytes in [&b"_\r\n"[..], b"#t\r\n", b"%0\r\n", b"~0\r\n"] {
        assert!(
            parse(bytes, Protocol::Resp2).is_err(),
            "{}",
            bytes.escape_ascii()
        );
    }
    let deep = b"*1\r\n".repeat(100_000);
    assert!(parse(&deep, Protocol::Resp2).is_err());
}

#[test]
fn lines_are_split_as_redis_cli_splits_them() {
    let split = |line: &str| split_line(line).map(|args| args.join(&b'|'));
    assert_eq!(split(" SET  k v ").unwrap(), b"SET|k|v");
    assert_eq!(split(r#"a "b c" 'd "e' """#).unwrap(), b"a|b c|d \"e|");
    assert_eq!(split(r#""\x00\xfF\n\"\\\q""#).unwrap(), b"\0\xff\n\"\\q");
    assert_eq!(split(r"'it\'s \x00'").unwrap(), br"it's \x00");
    assert_eq!(split(""), Some(vec![]));
    for open in [r#""a"#, "'a", r#""a"b"#, r#""a\""#] {
        assert_eq!(split(open), None, "{open}");
    }
}

#[test]
fn slots_are_those_of_the_server() {
    assert_eq!(slot_of(b"123456789"), 12_739);
    assert_eq!(slot_of(b"{user:1}:a"), slot_of(b"user:1"));
    assert_eq!(slot_of(b"a{}b{c}"), slot_of(b"a{}b{c}"));
    assert_ne!(slot_of(b"a{}b{c}"), slot_of(b"c"));
    assert_eq!(slot_of(b"a{b}{c}"), slot_of(b"b"));
}

#[test]
fn redirections_are_understood() {
    let moved = Reply::Error("MOVED 3999 127.0.0.1:6381".into());
    let expected = Redirect {
        ask: false,
        slot: 3999,
        port: 6381,
    };
    assert_eq!(Redirect::of(&moved), Some(expected));
    assert!(
        Redirect::of(&Reply::Error("ASK 1 ::1:6381".into()))
            .unwrap()
            .ask
    );
    assert_eq!(Redirect::of(&Reply::Error("ERR MOVED 1 a:2".into())), None);
}

#[test]
fn a_server_answers_in_both_protocols() {
    let server = Server::plain();
    let mut conn = server.conn();
    conn.run(r#"SET "a\x00b" "c d""#).ok();
    assert_eq!(cmd!(conn, "GET", b"a\0b").bytes(), b"c d");
    assert!(conn.run("GET none").is_nil());
    assert_eq!(conn.run("NOSUCH").code(), "ERR");
    assert_eq!(
        conn.run("CONFIG GET port").field("port").text(),
        server.port().to_string()
    );
    assert_eq!(conn.pipeline(&["INCR n", "INCR n"]), [number(1), number(2)]);
    assert_eq!(conn.hello3().field("proto").int(), 3);
    assert!(conn.run("GET none").is_nil());
    assert!(matches!(conn.run("CONFIG GET port"), Reply::Map(_)));
    conn.hello2();
    assert!(matches!(conn.run("CONFIG GET port"), Reply::Array(_)));
}

#[test]
fn what_is_kept_over_a_restart_depends_on_how_it_stops() {
    let mut server = Setup::plain().set("appendonly", "no").start();
    let (port, dir) = (server.port(), server.dir().to_owned());
    for (stop, kept) in [(Stop::Save, 1), (Stop::NoSave, 1), (Stop::Kill, 1)] {
        let mut conn = server.conn();
        conn.run("INCR n");
        server.restart(stop);
        assert_eq!(
            server.conn().run("GET n").text(),
            kept.to_string(),
            "{stop:?}"
        );
    }
    assert_eq!((server.port(), server.dir()), (port, dir.as_path()));
    drop(server);
    assert!(!dir.exists() || std::env::var_os("MAOS_KEEP").is_some());
}

#[test]
fn an_append_only_file_survives_a_kill() {
    let mut server = Setup::plain()
        .with(&[("appendonly", "yes"), ("appendfsync", "always")])
        .start();
    server.conn().run("SET k v").ok();
    server.restart(Stop::Kill);
    assert_eq!(server.conn().run("GET k").text(), "v");
}

#[test]
fn a_failed_start_shows_the_log() {
    let outcome = std::panic::catch_unwind(|| Setup::plain().set("no-such-setting", "1").start());
    let panic = outcome.err().expect("the server refuses the setting");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("no-such-setting"), "{message}");
}

#[test]
fn a_replica_has_what_its_master_has() {
    let master = Server::plain();
    let mut conn = master.conn();
    conn.run("MSET a 1 b 2").ok();
    let replica = replica_of(&master);
    conn.run("RPUSH list x y z");
    wait_synced(&master, &replica);
    let mut copy = replica.conn();
    assert_eq!(digest(&mut copy, "list"), digest(&mut conn, "list"));
    assert_eq!(digest_all(&mut copy), digest_all(&mut conn));
    assert_eq!(copy.run("SET a 2").code(), "READONLY");
}

#[test]
fn a_paused_server_answers_again_when_resumed() {
    let server = Server::plain();
    let mut conn = server.conn();
    server.pause();
    conn.send(&["PING"]);
    conn.set_timeout(std::time::Duration::from_millis(50));
    assert!(conn.try_recv().is_err());
    server.resume();
    conn.set_timeout(PATIENCE);
    assert_eq!(conn.recv().text(), "PONG");
}

#[test]
fn a_cluster_serves_redirects_and_moves_slots() {
    let mut setup = ClusterSetup::new(3, 1);
    setup.node = Setup::plain();
    let cluster = setup.start();
    let mut client = cluster.client();
    for key in ["a", "b", "c", "{a}:1", "{a}:2"] {
        client.cmd(key, &["SET", key, key]).ok();
    }
    let (owner, other) = (cluster.node_for("a"), cluster.master(1));
    let away = if owner.port() == other.port() {
        cluster.master(0)
    } else {
        other
    };
    cluster.move_slot(slot_of(b"a"), away);
    assert_eq!(cluster.node_for("a").port(), away.port());
    for key in ["a", "b", "c", "{a}:1", "{a}:2"] {
        assert_eq!(client.cmd(key, &["GET", key]).text(), key);
    }
    assert_eq!(cluster.replicas_of(0).count(), 1);
}
