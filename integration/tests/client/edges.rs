//! Merges and transactions where it gets narrow: short histories, crowds, lost replies, lines that say too much.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use maos_client::{
    Applied, Client, Code, Config, Error, HistoryOptions, How, ManyOptions, MergeOptions, Merged,
    Operation, SetOptions, Strategy, Transaction, UpdateOptions,
};
use serde_json::{json, Value};

use crate::client;
use crate::harness::{Conn, Server};
use crate::proxy::Proxy;

fn set(rival: &mut Conn, key: &str, value: &Value) {
    rival.run(&format!("MAOS.SET {key} '{value}'")).int();
}

fn with(doc: Option<Value>, value: u64) -> Value {
    let mut doc = doc.expect("there is one");
    doc["mine"] = value.into();
    doc
}

#[tokio::test]
async fn a_merging_update_whose_base_is_gone_begins_anew_and_gives_up_in_the_end() {
    let server = Server::with(&[("maos.history-max-versions", "1")]);
    let client = client(&server).await;
    let mut rival = server.conn();
    let key = "app:e:1";
    set(&mut rival, key, &json!({"theirs": 0}));
    // In the queue of turns attempts are counted elsewhere.
    let options = || UpdateOptions::new().merging().attempts(3).without_turns();
    let mut calls = 0;
    let done = client.update_with(key, options(), |doc| {
        calls += 1;
        if calls == 1 {
            set(&mut rival, key, &json!({"theirs": 1}));
        }
        with(doc, 7)
    });
    let done = done.await.unwrap();
    let both = json!({"theirs": 1, "mine": 7});
    assert_eq!((done.written, done.attempts), (Some(both), 2));
    let mut calls = 0;
    let lost = client.update_with(key, options(), |doc| {
        calls += 1;
        assert!(calls <= 3, "it was tried more often than it was said");
        set(&mut rival, key, &json!({"theirs": calls + 10}));
        with(doc, 8)
    });
    match lost.await {
        Err(Error::Contended { attempts: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_merging_update_merges_in_its_turn_as_well() {
    let server = Server::start();
    let client = client(&server).await;
    let mut rival = server.conn();
    let key = "app:e:2";
    set(&mut rival, key, &json!({"mine": 0, "theirs": 0}));
    let mut calls = 0;
    let done = client.update_with(key, UpdateOptions::new().merging(), |doc| {
        calls += 1;
        // Four conflicts send it into the queue; there somebody changes another part.
        let theirs = match calls {
            1..=4 => json!({"mine": 10 * calls, "theirs": 0}),
            _ => json!({"mine": 40, "theirs": calls}),
        };
        set(&mut rival, key, &theirs);
        assert!(calls < 20, "it begins anew where it could merge");
        with(doc, 7)
    });
    let done = done.await.unwrap();
    assert_eq!((calls, done.attempts), (5, 5));
    assert_eq!(done.written, Some(json!({"mine": 7, "theirs": 5})));
    let found = client.get_json::<Value>(key).await.unwrap().unwrap();
    assert_eq!(Some(found.value), done.written);
    assert_eq!(found.version, done.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_updates_that_share_clients_lose_nothing() {
    let server = Server::start();
    let clients = [client(&server).await, client(&server).await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let client = clients[n % 2].clone();
        tasks.spawn(async move {
            for i in 0..10 {
                let add = |doc: Option<Value>| {
                    let mut doc = doc.unwrap_or_else(|| json!({}));
                    doc[format!("task-{n}-{i}")] = i.into();
                    // Everybody changes this one, so that some have to begin anew.
                    doc["last"] = format!("{n}-{i}").into();
                    doc
                };
                let options = UpdateOptions::new().merging();
                client.update_with("app:e:3", options, add).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let doc = clients[0].get_json::<Value>("app:e:3").await.unwrap();
    assert_eq!(doc.unwrap().value.as_object().unwrap().len(), 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_take_a_task_one_wins() {
    let server = Server::start();
    let first = client(&server).await;
    let (task, moves) = ("{app}:task", "{app}:moves");
    let seen = first.set(task, r#"{"owner":"x"}"#, SetOptions::new()).await;
    let seen = seen.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let client = client(&server).await;
        tasks.spawn(async move {
            let take = Operation::patch(task, &json!({ "owner": n })).unwrap();
            let take = Transaction::new(take)
                .and(Operation::increment(moves, 1))
                .if_version(task, seen)
                .or_else(Operation::get(task));
            (n, client.transact(&take).await.unwrap())
        });
    }
    let (mut winners, mut told) = (vec![], vec![]);
    while let Some(done) = tasks.join_next().await {
        let (n, done) = done.unwrap();
        match done.held {
            true => winners.push(n),
            false => told.push(done.value::<Value>(0).unwrap()),
        }
    }
    assert_eq!((winners.len(), told.len()), (1, 19));
    let owner = json!({ "owner": winners[0] });
    assert!(told.iter().all(|now| now.as_ref() == Some(&owner)));
    let moves = first.get_json::<u32>(moves).await.unwrap().unwrap();
    assert_eq!(moves.value, 1);
}

async fn through(proxy: &Proxy) -> Client {
    let config = Config::new(&proxy.url()).unwrap();
    Client::connect(config).await.unwrap()
}

#[tokio::test]
async fn merges_and_transactions_whose_reply_was_lost_are_applied_once() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let client = through(&proxy).await;
    let key = "app:once:1";
    let base = client.set(key, r#"{"a":1,"b":1}"#, SetOptions::new()).await;
    let base = base.unwrap();
    let merge = |value: Value| client.merge(key, base, value, MergeOptions::new(Strategy::Merge));
    proxy.swallow_next_reply();
    let first = merge(json!({"a": 2, "b": 1})).await.unwrap();
    proxy.swallow_next_reply();
    let second = merge(json!({"a": 1, "b": 2})).await.unwrap();
    let (Merged::Applied(one, How::FastForward), Merged::Applied(two, How::Merged)) =
        (first, second)
    else {
        panic!("nobody else writes");
    };
    let txn = Transaction::new(Operation::set(key, "1"))
        .and(Operation::increment("app:once:2", 1))
        .if_version(key, two)
        .or_else(Operation::get(key));
    proxy.swallow_next_reply();
    let done = client.transact(&txn).await.unwrap();
    assert!(done.held, "the version that it had made before");
    assert_eq!(done.number(1), Some("1"));
    assert_eq!(proxy.cuts(), 3);
    let history = client.history(key, HistoryOptions::new()).await.unwrap();
    let made: Vec<_> = history.iter().map(|r| r.version).collect();
    assert_eq!(made, [base, one, two, done.version]);
}

#[tokio::test]
async fn a_transaction_that_writes_either_way_is_not_repeated_once_it_was_sent() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let client = through(&proxy).await;
    let txn = Transaction::new(Operation::set("{app}:1", "1"))
        .if_absent("{app}:1")
        .or_else(Operation::increment("{app}:2", 1));
    proxy.swallow_next_reply();
    match client.transact(&txn).await {
        Err(Error::Transport {
            applied: Applied::Unknown,
            attempts: 1,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let once = client.get("{app}:1").await.unwrap().unwrap();
    assert_eq!(once.versions_kept, 1);
    assert_eq!(client.get("{app}:2").await.unwrap(), None);
    // Who asks to be recognised and cannot be is told, and nothing is done.
    let named = txn.options(ManyOptions::new().request_id("mine"));
    let refused = client.transact(&named).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Err), "{refused}");
    assert!(refused.to_string().contains("only reads"), "{refused}");
    assert_eq!(client.get("{app}:2").await.unwrap(), None);
}

/// The exit code, standard output and standard error of the tool.
fn tool(url: &str, args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .env_remove("REDIS_STATE_URLS")
        .args(["--url", url])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let done = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[test]
fn a_line_of_a_transaction_says_one_thing_or_is_refused() {
    let server = Server::start();
    for line in [
        "then set k v if k exists",
        "if k absent then del k",
        "then get k else del k",
        "else get k then del k",
        "then set k v token 5",
        "then set k v by me",
        "if k absent if k absent",
        "then get k then get k",
    ] {
        let lines = format!("then set k v\n{line}\n");
        let (code, out, err) = tool(&server.url(), &["txn"], &lines);
        assert_eq!(code, Some(2), "{line}: {out}{err}");
        assert!(err.contains("line 2: one condition or operation"), "{err}");
    }
    for (line, why) in [
        ("then patch k {", "line 1: not JSON"),
        ("then set k 'a'b", "line 1: a space"),
        ("then set k 'a", "line 1: a quote"),
    ] {
        let (code, _, err) = tool(&server.url(), &["txn"], line);
        assert!(code == Some(2) && err.contains(why), "{line}: {err}");
    }
    assert_eq!(server.conn().run("EXISTS k").int(), 0);
}

#[test]
fn a_transaction_is_quoted_as_in_redis_cli() {
    let server = Server::start();
    let mut conn = server.conn();
    for (written, value) in [
        (r#""two\nlines\x21""#, &b"two\nlines!"[..]),
        (r#"'{"a":"x\ny"}'"#, br#"{"a":"x\ny"}"#),
        (r#""\xff\x00""#, b"\xff\0"),
        ("#1", b"#1"),
        (r"a\b", br"a\b"),
        ("''", b""),
    ] {
        let line = format!("then set k {written}");
        let (code, _, err) = tool(&server.url(), &["txn"], &line);
        assert_eq!(code, Some(0), "{line}: {err}");
        assert_eq!(conn.run("MAOS.GET k").bytes(), value, "{line}");
    }
}

#[test]
fn programs_are_told_all_that_people_are_and_every_digit() {
    let server = Server::start();
    let url = &server.url()[..];
    let mut conn = server.conn();
    let base = conn
        .run(r#"MAOS.SET k '{"a":1,"n":1.50}'"#)
        .int()
        .to_string();
    conn.run(r#"MAOS.PATCH k '{"a":2}'"#).int();
    let args = ["--json", "merge", "k", &base, r#"{"a":3,"n":1.50}"#];
    let (code, out, err) = tool(url, &args, "");
    assert_eq!(code, Some(3), "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["paths"], json!(["/a"]), "{out}");
    let lines = "then get k\nthen incrby n 12345678901234567890.123456789\nthen get none";
    let (code, out, err) = tool(url, &["--json", "txn"], lines);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(r#""value":{"a":2,"n":1.50}"#), "{out}");
    assert!(
        out.contains(r#""number":12345678901234567890.123456789"#),
        "{out}"
    );
    assert!(out.contains(r#"{"value":null}"#), "{out}");
}

#[tokio::test]
async fn a_merge_keeps_the_expiry_and_the_later_time_wins() {
    let server = Server::start();
    let client = client(&server).await;
    let hour = SetOptions::new().ttl(Duration::from_secs(3600));
    let base = client.set("k", "1", hour).await.unwrap();
    client
        .set("k", "2", SetOptions::new().keep_ttl())
        .await
        .unwrap();
    let lww = MergeOptions::new(Strategy::Lww);
    let merged = client.merge("k", base, 3, lww).await.unwrap();
    assert!(matches!(merged, Merged::Applied(_, How::Replaced)));
    let found = client.get("k").await.unwrap().unwrap();
    assert!(found.expires_in.is_some() && found.value == b"3");
}
