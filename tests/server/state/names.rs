//! Names and values that wreck nothing: any bytes are stored exactly or refused clearly.

use super::metric;
use crate::harness::*;

fn odd() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "",
        "\0",
        "\r\n",
        "%n%s%p",
        "\u{100}",
        "\u{200}\u{100}",
        "+OK\r\n",
        "$-1\r\n",
        "*",
        "?",
        "[a]",
        "{",
        "}",
        "{}",
        "{a}",
        "a b",
        "'",
        "\"",
        "\\x00",
        "-1",
        "0",
        "9007199254740991",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551616",
        "nan",
        "inf",
        "1e400",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    all.push((0..=255).collect());
    all.push(vec![0xff; 3]);
    all.push(vec![b'k'; 70_000]);
    all
}

#[test]
fn keys_and_values_are_any_bytes() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    for key in odd() {
        for value in odd() {
            let version = cmd!(conn, "MAOS.SET", key, value).int();
            let got = cmd!(conn, "MAOS.GET", key, "WITHVERSION");
            assert_eq!(got.array()[0].bytes(), value);
            assert_eq!(got.array()[1].int(), version);
        }
    }
    let before = digest_all(conn);
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), before);
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(digest_all(conn), before);
    assert_eq!(metric(conn, "panics"), 0);
}

#[test]
fn every_argument_may_be_anything() {
    let server = Server::start();
    let conn = &mut server.conn();
    let forms: [&[&str]; 12] = [
        &["MAOS.SET", "k", "v", "BY", "?"],
        &["MAOS.SET", "k", "v", "META", "?"],
        &["MAOS.SET", "k", "v", "REQID", "?"],
        &["MAOS.SET", "k", "v", "IFVERSION", "?"],
        &["MAOS.SET", "k", "v", "PX", "?"],
        &["MAOS.SET", "k", "v", "?"],
        &["MAOS.CAS", "k", "?", "v"],
        &["MAOS.GET", "k", "VERSION", "?"],
        &["MAOS.GET", "k", "AT", "?"],
        &["MAOS.HISTORY", "k", "FROM", "?", "TO", "?", "COUNT", "?"],
        &["MAOS.MSET", "?", "a", "b"],
        &["MAOS.DIFF", "k", "?", "?"],
    ];
    for form in forms {
        for word in odd() {
            let line: Vec<Vec<u8>> = form
                .iter()
                .map(|part| {
                    if *part == "?" {
                        word.clone()
                    } else {
                        part.as_bytes().to_vec()
                    }
                })
                .collect();
            // The parser of the harness is strict: a reply that breaks the protocol fails here.
            let reply = conn.cmd(&line);
            if reply.is_err() {
                assert!(
                    reply.err().bytes().all(|b| (0x20..0x7f).contains(&b)),
                    "{reply}"
                );
                assert!(reply.err().len() < 400, "{reply}");
            }
        }
    }
    assert_eq!(metric(conn, "panics"), 0);
    assert_eq!(conn.run("PING"), Reply::Simple("PONG".into()));
}

#[test]
fn large_values_up_to_the_limit() {
    let server = Server::start();
    let conn = &mut server.conn();
    let value: Vec<u8> = (0..8u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    cmd!(conn, "MAOS.SET", "k", value).int();
    assert_eq!(conn.run("MAOS.GET k").bytes(), value);
    let mut longer = value.clone();
    longer.push(0);
    let refusal = cmd!(conn, "MAOS.SET", "k", longer);
    assert_eq!(
        refusal.err(),
        "TOOBIG the value has 8388609 bytes, at most 8388608 are taken (maos.value-max-bytes)"
    );
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 1);
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(conn.run("MAOS.GET k").bytes(), value);
    // Larger than the history may be: it is not kept, and that is said.
    cmd!(conn, "MAOS.SET", "k", "small").int();
    assert_eq!(conn.run("MAOS.GET k VERSION -1").code(), "NOVERSION");
}

#[test]
fn metadata_is_a_bounded_object() {
    let server = Server::start();
    let conn = &mut server.conn();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let refusal = cmd!(conn, "MAOS.SET", "k", "v", "META", deep);
    assert_eq!(
        refusal.err(),
        "LIMIT the metadata of META is nested 10000 deep, at most 64 is taken"
    );
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(65_536));
    assert_eq!(
        cmd!(conn, "MAOS.SET", "k", "v", "META", big).code(),
        "TOOBIG"
    );
    for bad in ["", "null", "[]", "{", "{\"a\":}", "{}{}"] {
        assert_eq!(
            cmd!(conn, "MAOS.SET", "k", "v", "META", bad).code(),
            "NOTJSON",
            "{bad}"
        );
    }
    assert_eq!(conn.run("EXISTS k").int(), 0);
    let kept = r#" {"b":1.10, "a":[9007199254740993]} "#;
    cmd!(conn, "MAOS.SET", "k", "v", "META", kept).int();
    assert_eq!(conn.run("MAOS.GET k FULL").field("metadata").text(), kept);
}
