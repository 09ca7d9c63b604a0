//! Every typed method, in both protocols.

use std::time::{Duration, SystemTime};

use maos_client::{
    time_of, Client, Code, Cursor, Error, Event, HistoryOptions, How, IncrementOptions, LockMode,
    LockOptions, ManyOptions, ManyOutcome, MergeOptions, Merged, Operation, Outcome, Past,
    Protocol, RollbackToOptions, SetOptions, Strategy, Transaction, Version, WatchOptions, Which,
};
use serde_json::json;

use crate::harness::Server;
use crate::{backups, config, partitions};

#[tokio::test]
async fn every_method_works_in_resp2() {
    every_method(Protocol::Resp2).await;
}

#[tokio::test]
async fn every_method_works_in_resp3() {
    every_method(Protocol::Resp3).await;
}

async fn every_method(protocol: Protocol) {
    let server = backups::server();
    let client = Client::connect(config(&server).protocol(protocol))
        .await
        .unwrap();
    reads_and_writes(&client).await;
    conditions(&client).await;
    past(&client).await;
    rolled_back(&client).await;
    several(&client).await;
    locks(&client).await;
    changed_where_they_are(&client).await;
    merged_and_in_one_step(&client).await;
    partitions::made_shown_and_dropped(&client).await;
    backups::made_looked_at_and_brought_back(&client).await;
    called_commands(&server);
}

async fn changed_where_they_are(client: &Client) {
    let key = "app:doc:9";
    let first = client.patch(key, json!({"a": {"b": 1}, "c": null}), SetOptions::new());
    let first = first.await.unwrap();
    assert_eq!(
        client.get(key).await.unwrap().unwrap().text(),
        Some(r#"{"a":{"b":1}}"#)
    );
    let lost = client.patch(
        key,
        json!({"a": 2}),
        SetOptions::new().if_version(Version(7)),
    );
    assert_eq!(lost.await.unwrap().applied(), None);
    let operations = json!([
        {"op": "test", "path": "/a/b", "value": 1},
        {"op": "add", "path": "/list", "value": [1.50]},
    ]);
    let done = client.json_patch(key, &operations, SetOptions::new().by("worker"));
    let second = done.await.unwrap().applied().expect("the test holds");
    assert!(second > first);
    let operations = json!([{"op": "test", "path": "/a/b", "value": 2}]);
    match client
        .json_patch(key, &operations, SetOptions::new())
        .await
        .unwrap()
    {
        Outcome::Lost(now) => assert_eq!(now.version, second),
        other => panic!("{other:?}"),
    }
    let absent = json!([{"op": "remove", "path": "/x"}]);
    let absent = client.json_patch(key, &absent, SetOptions::new()).await;
    assert_eq!(absent.unwrap_err().code(), Some(Code::NotFound));
    let at = IncrementOptions::new().path("/a/b").min(0).max(10);
    let sum = client.increment(key, 4, at.clone()).await.unwrap();
    assert_eq!(sum.integer(), Some(5));
    let over = client.increment(key, 6, at.clone()).await.unwrap_err();
    assert_eq!(over.code(), Some(Code::Limit));
    let sum = client.increment(key, "0.10", at).await.unwrap();
    assert_eq!((&*sum.number, sum.integer()), ("5.1", None));
    let text = client.get(key).await.unwrap().unwrap();
    assert_eq!(text.text(), Some(r#"{"a":{"b":5.1},"list":[1.5]}"#));
    let count = client
        .increment("app:count:9", 1, IncrementOptions::new())
        .await;
    assert_eq!(count.unwrap().integer(), Some(1));
}

async fn locks(client: &Client) {
    let minute = Duration::from_secs(60);
    let options = LockOptions::new().note("nightly");
    let held = client.lock("app:l:1", "worker-1", minute, options).await;
    let held = held.unwrap().expect("nobody holds it");
    assert!(held.expires_at() > SystemTime::now());
    let other = client.lock("app:l:1", "worker-2", minute, LockOptions::new());
    assert_eq!(other.await.unwrap(), None);
    let stray = client.set("app:l:1", "x", SetOptions::new()).await;
    assert_eq!(stray.unwrap_err().code(), Some(Code::Locked));
    let options = SetOptions::new().token(held.token).fence("zk", 7);
    client.set("app:l:1", "v", options).await.unwrap();
    let state = client.locks("app:l:1").await.unwrap();
    assert_eq!(state.mode, Some(LockMode::Exclusive));
    assert_eq!(state.waiters, []);
    assert_eq!(state.holders.len(), 1);
    assert_eq!(state.holders[0].owner, b"worker-1");
    assert_eq!(state.holders[0].grant, held);
    assert_eq!(state.holders[0].note.as_deref(), Some(&b"nightly"[..]));
    let renewed = client.renew("app:l:1", held.token, 2 * minute).await;
    assert!(renewed.unwrap().expires_at_ms > held.expires_at_ms);
    assert_eq!(client.unlock("app:l:1", held.token).await.unwrap(), 0);
    let late = client.unlock("app:l:1", held.token).await;
    assert_eq!(late.unwrap_err().code(), Some(Code::Fenced));
    let late = SetOptions::new().token(held.token);
    let late = client.set("app:l:1", "x", late).await;
    assert_eq!(late.unwrap_err().code(), Some(Code::Fenced));
    let late = client
        .set("app:l:1", "x", SetOptions::new().fence("zk", 6))
        .await;
    assert_eq!(late.unwrap_err().code(), Some(Code::Fenced));

    let keys = ["{app}:l:2", "{app}:l:3"];
    let both = client
        .mlock(&keys, "worker-1", minute, Duration::ZERO)
        .await;
    let both = both.unwrap().expect("nobody holds them");
    let options = ManyOptions::new().token(both[0].token);
    let pairs = keys.map(|key| (key, "v"));
    client.mset(&pairs, options).await.unwrap();
    let shared = || LockOptions::new().shared();
    for owner in ["a", "b"] {
        let held = client.lock("app:l:4", owner, minute, shared()).await;
        assert!(held.unwrap().is_some());
    }
    let state = client.locks("app:l:4").await.unwrap();
    assert_eq!(
        (state.mode, state.holders.len()),
        (Some(LockMode::Shared), 2)
    );
    let advisory = LockOptions::new().advisory();
    client.lock("app:l:5", "a", minute, advisory).await.unwrap();
    assert!(client.locks("app:l:5").await.unwrap().advisory);
    client.set("app:l:5", "x", SetOptions::new()).await.unwrap();
}

async fn reads_and_writes(client: &Client) {
    assert_eq!(client.get("app:a:1").await.unwrap(), None);
    let options = SetOptions::new()
        .by("planner")
        .meta(json!({"why": "first"}))
        .ttl(Duration::from_secs(100));
    let first = client.set("app:a:1", b"\xff\0\r\n", options).await.unwrap();
    let found = client.get("app:a:1").await.unwrap().unwrap();
    assert_eq!(found.value, b"\xff\0\r\n");
    assert_eq!((found.version, found.created), (first, first));
    assert_eq!(found.author, "default");
    assert_eq!(found.agent.as_deref(), Some("planner"));
    assert_eq!(found.metadata.as_deref(), Some(r#"{"why":"first"}"#));
    assert!(found
        .expires_in
        .is_some_and(|t| t <= Duration::from_secs(100)));
    assert_eq!((found.versions_kept, found.text()), (1, None));
    let age = SystemTime::now()
        .duration_since(found.written_at())
        .unwrap_or_default();
    assert!(age < Duration::from_secs(60), "{age:?}");

    // The expiry stays if asked to, and goes otherwise.
    client
        .set("app:a:1", "2", SetOptions::new().keep_ttl())
        .await
        .unwrap();
    assert!(client
        .get("app:a:1")
        .await
        .unwrap()
        .unwrap()
        .expires_in
        .is_some());
    client.set("app:a:1", "3", SetOptions::new()).await.unwrap();
    assert_eq!(
        client.get("app:a:1").await.unwrap().unwrap().expires_in,
        None
    );
    let soon = SystemTime::now() + Duration::from_secs(50);
    client
        .set("app:a:1", "4", SetOptions::new().expires_at(soon))
        .await
        .unwrap();
    assert!(client
        .get("app:a:1")
        .await
        .unwrap()
        .unwrap()
        .expires_in
        .is_some());

    // JSON.
    client
        .set_json("app:a:2", &json!({"n": 1}), SetOptions::new())
        .await
        .unwrap();
    let read = client
        .get_json::<serde_json::Value>("app:a:2")
        .await
        .unwrap();
    assert_eq!(read.unwrap().value, json!({"n": 1}));
    match client.get_json::<u32>("app:a:2").await {
        Err(Error::Decode { key, .. }) => assert_eq!(key, "app:a:2"),
        other => panic!("{other:?}"),
    }

    // The same request id writes once.
    let id = SetOptions::new().request_id("once");
    let version = client.set("app:a:3", "a", id.clone()).await.unwrap();
    assert_eq!(client.set("app:a:3", "b", id).await.unwrap(), version);
    assert_eq!(client.get("app:a:3").await.unwrap().unwrap().value, b"a");

    // Refusals.
    let refused = client
        .set("app:a:3", "x", SetOptions::new().meta(5))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(Code::NotJson));
    let refused = client.get_past("app:a:3", Past::back(9)).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoVersion));
}

async fn conditions(client: &Client) {
    let key = "app:c:1";
    let absent = SetOptions::new().if_absent();
    let first = client
        .set(key, "1", absent.clone())
        .await
        .unwrap()
        .applied()
        .unwrap();
    match client.set(key, "2", absent.by("late")).await.unwrap() {
        Outcome::Lost(now) => {
            assert_eq!(now.version, first);
            assert_eq!(now.value.as_deref(), Some(&b"1"[..]));
            assert_eq!(now.author.as_deref(), Some("default"));
            assert_eq!(now.agent, None);
        }
        won => panic!("{won:?}"),
    }
    let cas = client
        .cas(key, first, "2", SetOptions::new().by("fast"))
        .await
        .unwrap();
    let second = cas.applied().unwrap();
    assert!(second > first);
    assert_eq!(
        client
            .cas(key, first, "3", SetOptions::new())
            .await
            .unwrap()
            .applied(),
        None
    );

    let over_first = SetOptions::new().if_version(first);
    assert_eq!(
        client.del(key, over_first.clone()).await.unwrap().applied(),
        None
    );
    assert_eq!(
        client
            .rollback(key, first, over_first)
            .await
            .unwrap()
            .applied(),
        None
    );
    let gone = client.del(key, SetOptions::new()).await.unwrap();
    assert!(gone > second);
    assert_eq!(
        client.del(key, SetOptions::new()).await.unwrap(),
        Version::NONE
    );
    match client
        .cas(key, second, "4", SetOptions::new())
        .await
        .unwrap()
    {
        Outcome::Lost(now) => assert_eq!((now.version, now.value), (Version::NONE, None)),
        won => panic!("{won:?}"),
    }
    let back = client
        .rollback(key, second, SetOptions::new())
        .await
        .unwrap();
    assert!(back > gone);
    assert_eq!(client.get(key).await.unwrap().unwrap().value, b"2");
}

async fn rolled_back(client: &Client) {
    let key = "app:back:1";
    let first = client.set(key, "old", SetOptions::new()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    client.set(key, "new", SetOptions::new()).await.unwrap();
    let then = time_of(first);
    let ahead = SystemTime::now() + Duration::from_secs(60);
    let options = RollbackToOptions::new().by("operator");
    let refused = client.rollback_to("app:back:", ahead, &options).await;
    assert_eq!(refused.unwrap_err().code(), Some(Code::Err));
    // Only one goes on at a time.
    let begin = || client.rollback_to("app:back:", then, &options);
    let dry = RollbackToOptions::new().dry_run();
    let foretold = client.rollback_to("app:back:", then, &dry).await.unwrap();
    let begun = loop {
        match begin().await {
            Err(error) if error.code() == Some(Code::Busy) => {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            other => break other.unwrap(),
        }
    };
    assert_ne!(begun, foretold);
    let held = loop {
        let held = client.get(key).await.unwrap().unwrap();
        if held.text() != Some("new") {
            break held;
        }
    };
    assert_eq!(held.text(), Some("old"));
    assert_eq!(held.agent.as_deref(), Some("operator"));
}

async fn past(client: &Client) {
    let key = "app:p:1";
    let mut versions = vec![];
    for n in 0..3 {
        let text = json!({"n": n}).to_string();
        versions.push(client.set(key, text, SetOptions::new()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let value = |found: Option<maos_client::StateValue<Vec<u8>>>| found.unwrap().value;
    assert_eq!(
        value(client.get_past(key, versions[0]).await.unwrap()),
        br#"{"n":0}"#
    );
    assert_eq!(
        value(client.get_past(key, Past::back(1)).await.unwrap()),
        br#"{"n":1}"#
    );
    let then = time_of(versions[1]);
    assert_eq!(
        value(client.get_past(key, then).await.unwrap()),
        br#"{"n":1}"#
    );

    let all = client.history(key, HistoryOptions::new()).await.unwrap();
    assert_eq!(all.iter().map(|r| r.version).collect::<Vec<_>>(), versions);
    assert!(all
        .iter()
        .all(|r| r.value.is_none() && r.request_id.is_some() && !r.deleted));
    let some = HistoryOptions::new()
        .newest_first()
        .count(1)
        .values()
        .to(Which::Back(1));
    let some = client.history(key, some).await.unwrap();
    assert_eq!(some.len(), 1);
    assert_eq!(
        (some[0].version, some[0].value.as_deref()),
        (versions[1], Some(&br#"{"n":1}"#[..]))
    );
    let from = HistoryOptions::new().from(versions[1]);
    assert_eq!(client.history(key, from).await.unwrap().len(), 2);
    assert_eq!(
        client
            .history("app:p:none", HistoryOptions::new())
            .await
            .unwrap(),
        vec![]
    );

    let patch = client.diff(key, Which::Back(2), versions[2]).await.unwrap();
    assert_eq!(patch, r#"[{"op":"replace","path":"/n","value":2}]"#);
}

async fn several(client: &Client) {
    let options = ManyOptions::new().by("planner");
    let both = client
        .mset(&[("app:m:1", "1"), ("app:m:2", "2")], options)
        .await
        .unwrap();
    let read = client
        .mget(&["app:m:1", "app:m:none", "app:m:2"])
        .await
        .unwrap();
    let values: Vec<_> = read
        .iter()
        .map(|v| v.as_ref().map(|v| (&v.value[..], v.version)))
        .collect();
    assert_eq!(
        values,
        [Some((&b"1"[..], both)), None, Some((&b"2"[..], both))]
    );
    assert_eq!(client.mget::<&str>(&[]).await.unwrap(), vec![]);
    let items = [("app:m:1", both, "3"), ("app:m:2", both, "4")];
    let ManyOutcome::Applied(next) = client.mcas(&items, ManyOptions::new()).await.unwrap() else {
        panic!("nobody else writes");
    };
    let items = [("app:m:1", next, "5"), ("app:m:2", both, "6")];
    let lost = client.mcas(&items, ManyOptions::new()).await.unwrap();
    assert_eq!(lost, ManyOutcome::Lost(vec![(b"app:m:2".to_vec(), next)]));
}

async fn merged_and_in_one_step(client: &Client) {
    let (key, other) = ("{m}:1", "{m}:2");
    let base = client.set(key, r#"{"a":1}"#, SetOptions::new()).await;
    let merge = MergeOptions::new(Strategy::Merge);
    let merged = client
        .merge(key, base.unwrap(), json!({"a": 2}), merge)
        .await;
    let Merged::Applied(version, How::FastForward) = merged.unwrap() else {
        panic!("nobody else writes");
    };
    let both = Transaction::new(Operation::get(key))
        .and(Operation::increment(other, 5))
        .if_version(key, version);
    let done = client.transact(&both).await.unwrap();
    assert!(done.held && done.version > version);
    assert_eq!(done.value(0).unwrap(), Some(json!({"a": 2})));
    assert_eq!(done.number(1), Some("5"));
    let start = client.changes(&["watched:*"], &WatchOptions::new()).await;
    let cursor = start.unwrap().cursor;
    let wait = WatchOptions::new()
        .since(cursor)
        .wait(Duration::from_secs(60))
        .types(&[Event::Created])
        .not_by("me")
        .values();
    // Who waits keeps nobody else from being served.
    let (read, version) = tokio::join!(client.changes(&["watched:*"], &wait), async {
        client
            .set("watched:1", "v", SetOptions::new())
            .await
            .unwrap()
    });
    let read = read.unwrap();
    let [event] = &read.events[..] else {
        panic!("{read:?}");
    };
    assert_eq!((event.version, event.previous), (version, None));
    assert_eq!(event.value.as_deref(), Some(&b"v"[..]));
    assert_eq!(event.author.as_deref(), Some("default"));
    let again: Cursor = read.cursor.to_string().parse().unwrap();
    let rest = client
        .changes(&["watched:*"], &WatchOptions::new().since(again).count(1))
        .await
        .unwrap();
    assert_eq!((rest.cursor, rest.events.len()), (read.cursor, 0));
    let nobody = "5-4".parse::<Cursor>().unwrap();
    let lost = client
        .changes(&["*"], &WatchOptions::new().since(nobody))
        .await;
    assert!(matches!(lost, Err(Error::Refused(r)) if r.code == Code::Diverged));
    let bad = client.changes(&["a["], &WatchOptions::new()).await;
    assert!(matches!(bad, Err(Error::Refused(_))));
    let mut listing = client.list("watched:").full();
    let listed = listing.next().await.unwrap().expect("a key");
    let state = listed.state.expect("what it holds");
    assert_eq!(listed.key, b"watched:1");
    assert_eq!(
        (state.value.as_deref(), state.version),
        (Some(&b"v"[..]), version)
    );
    assert_eq!((state.agent, state.expires_in), (None, None));
    assert_eq!(listing.next().await.unwrap(), None);
}

/// No command of the table goes without a method that has just been exercised.
fn called_commands(server: &Server) {
    let stats = server.conn().info("commandstats");
    let all = maos_core::wire::reference::COMMANDS.iter();
    // Help is for people.
    for spec in all.filter(|spec| spec.names().1 != Some("HELP")) {
        let name = format!("cmdstat_{}", spec.full_name());
        let found = stats.keys().any(|key| key.eq_ignore_ascii_case(&name));
        assert!(found, "no method has called {}", spec.name);
    }
}

#[tokio::test]
async fn users_and_passwords_are_used_and_their_refusal_is_told() {
    let server = Server::start();
    let mut admin = server.conn();
    admin
        .run("ACL SETUSER planner on >secret ~app:* +@all")
        .ok();
    admin.run("ACL SETUSER default >other").ok();
    let planner = config(&server).username("planner").password("secret");
    let client = Client::connect(planner).await.unwrap();
    client.set("app:k:1", "v", SetOptions::new()).await.unwrap();
    assert_eq!(
        client.get("app:k:1").await.unwrap().unwrap().author,
        "planner"
    );
    let refused = client
        .set("else:k:1", "v", SetOptions::new())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoPerm));

    for config in [
        config(&server),
        config(&server).username("planner").password("wrong"),
    ] {
        let refused = Client::connect(config).await.unwrap_err().to_string();
        let told = refused.contains("WRONGPASS") || refused.contains("NOAUTH");
        assert!(told && !refused.contains("wrong\""), "{refused}");
    }
}
