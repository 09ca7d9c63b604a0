//! Merges and transactions through the client.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use maos_client::{
    Code, Error, How, IncrementOptions, ManyOptions, MergeOptions, Merged, Operation,
    OperationReply, SetOptions, Strategy, Transaction, UpdateOptions, Version,
};
use serde_json::{json, Value};

use crate::client;
use crate::harness::Server;

/// What the examples say is true.
#[path = "../../examples/fleet.rs"]
#[allow(dead_code)] // its `main`
mod fleet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_hold() {
    let server = Server::start();
    let client = client(&server).await;
    // Again on what the first time has left.
    for _ in 0..2 {
        fleet::two_agents_edit_one_plan(&client).await.unwrap();
        fleet::fifty_workers_share_a_budget(&client).await.unwrap();
        fleet::a_task_changes_hands(&client).await.unwrap();
    }
}

#[tokio::test]
async fn every_strategy_can_be_asked_for() {
    let server = Server::start();
    let client = client(&server).await;
    let key = "app:m:1";
    let base = client
        .set_json(key, &json!({"n": 1}), SetOptions::new())
        .await
        .unwrap();
    let theirs = SetOptions::new().by("them");
    let current = client
        .set_json(key, &json!({"n": 2}), theirs)
        .await
        .unwrap();
    let mine = json!({"n": 3});
    let merge = async |strategy: Strategy| {
        client
            .merge(key, base, &mine, MergeOptions::new(strategy))
            .await
    };
    for (strategy, paths) in [(Strategy::Reject, vec![]), (Strategy::Merge, vec!["/n"])] {
        let Merged::Conflict(conflict) = merge(strategy).await.unwrap() else {
            panic!("both changed it");
        };
        assert_eq!(conflict.paths, paths);
        assert_eq!(conflict.current.version, current);
        assert_eq!(conflict.current.agent.as_deref(), Some("them"));
    }
    let kept = merge(Strategy::Fww).await.unwrap();
    assert_eq!(kept, Merged::Applied(current, How::Kept));
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let late = MergeOptions::new(Strategy::Lww).at(long_ago).by("late");
    let Merged::Applied(kept, How::Kept) = client.merge(key, base, &mine, late).await.unwrap()
    else {
        panic!("it is an hour old");
    };
    assert!(kept > current);
    let Merged::Applied(_, how) = merge(Strategy::Lww).await.unwrap() else {
        panic!("it is the later one");
    };
    assert_eq!(how, How::Replaced);
    let refused = merge(Strategy::Function("nobody".into()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(Code::NotFound));
    let gone = client.merge(key, Version(7), &mine, MergeOptions::new(Strategy::Merge));
    assert_eq!(gone.await.unwrap_err().code(), Some(Code::BaseGone));
}

#[tokio::test]
async fn a_resolver_decides_over_what_is_there_and_gives_up_in_the_end() {
    let server = Server::start();
    let client = client(&server).await;
    let key = "app:hours:1";
    let base = client.set(key, "5", SetOptions::new()).await.unwrap();
    let current = client.set(key, "7", SetOptions::new()).await.unwrap();
    let options = || MergeOptions::new(Strategy::Merge).by("me");
    let merged = client
        .merge_or(key, base, 9, options(), |base, theirs: u32, mine| {
            assert_eq!((base, theirs, *mine), (Some(&5), 7, 9));
            Some(theirs + mine)
        })
        .await
        .unwrap();
    assert!(matches!(merged, Merged::Applied(version, How::Merged) if version > current));
    assert_eq!(
        client.get_json::<u32>(key).await.unwrap().unwrap().value,
        16
    );
    // It may leave it.
    let left = client
        .merge_or(key, base, 9, options(), |_, _: u32, _| None)
        .await
        .unwrap();
    assert!(matches!(left, Merged::Conflict(c) if c.current.value.as_deref() == Some(b"16")));
    // Somebody comes between every time.
    let asked = AtomicU32::new(0);
    let tried = options().attempts(3);
    let resolve = |_: Option<&u32>, theirs: u32, _: &u32| {
        asked.fetch_add(1, Relaxed);
        server
            .conn()
            .run(&format!("MAOS.SET {key} {}", theirs + 1))
            .int();
        Some(theirs)
    };
    let contended = client
        .merge_or(key, base, 9, tried, resolve)
        .await
        .unwrap_err();
    assert!(
        matches!(contended, Error::Contended { attempts: 3, .. }),
        "{contended}"
    );
    assert_eq!(asked.load(Relaxed), 3);
    assert_eq!(
        client.get_json::<u32>(key).await.unwrap().unwrap().value,
        19
    );
    // Of nothing: there is no base. And what is gone is not asked about.
    let merged = client.merge_or(key, Version::NONE, 1, options(), |base, theirs: u32, _| {
        assert_eq!((base, theirs), (None, 19));
        Some(20)
    });
    assert!(matches!(merged.await.unwrap(), Merged::Applied(..)));
    client.del(key, SetOptions::new()).await.unwrap();
    let gone = client.merge_or(key, base, 1, options(), |_, _: u32, _| panic!("of what?"));
    assert!(matches!(gone.await.unwrap(), Merged::Conflict(c) if c.current.value.is_none()));
}

#[tokio::test]
async fn an_update_that_merges_is_made_once_where_parts_differ() {
    let server = Server::start();
    let client = client(&server).await;
    let key = "app:doc:1";
    let doc = json!({"mine": 0, "theirs": 0});
    client.set_json(key, &doc, SetOptions::new()).await.unwrap();
    let mut made = 0;
    let updated = client
        .update_with(key, UpdateOptions::new().merging(), |doc: Option<Value>| {
            made += 1;
            let patch = json!({"theirs": made}).to_string();
            server.conn().cmd(&["MAOS.PATCH", key, &patch]).int();
            let mut doc = doc.unwrap();
            doc["mine"] = 7.into();
            doc
        })
        .await
        .unwrap();
    assert_eq!((made, updated.attempts), (1, 1));
    assert_eq!(updated.written, Some(json!({"mine": 7, "theirs": 1})));
    let now = client.get_json::<Value>(key).await.unwrap().unwrap();
    assert_eq!(
        (now.version, Some(now.value)),
        (updated.version, updated.written)
    );
    // Where both change the same part it is made again, of what is there then.
    let mut made = 0;
    let updated = client
        .update_with(key, UpdateOptions::new().merging(), |doc: Option<Value>| {
            made += 1;
            let mut doc = doc.unwrap();
            if made == 1 {
                server
                    .conn()
                    .cmd(&["MAOS.PATCH", key, r#"{"mine":100}"#])
                    .int();
            }
            doc["mine"] = (doc["mine"].as_u64().unwrap() + 1).into();
            doc
        })
        .await
        .unwrap();
    assert_eq!((made, updated.attempts), (2, 2));
    assert_eq!(updated.written.unwrap()["mine"], 101);
}

#[tokio::test]
async fn a_transaction_says_what_came_of_it() {
    let server = Server::start();
    let client = client(&server).await;
    let [a, b, c] = ["{t}a", "{t}b", "{t}c"];
    let seen = client
        .set_json(a, &json!({"n": 1}), SetOptions::new())
        .await
        .unwrap();
    let lock = client
        .lock(b, "me", Duration::from_secs(60), Default::default())
        .await
        .unwrap();
    let token = lock.expect("nobody holds it").token;
    let brief = SetOptions::new().ttl(Duration::from_secs(60));
    let all = Transaction::new(Operation::patch(a, &json!({"m": 2})).unwrap())
        .and(Operation::set_with(b, "b", &brief))
        .and(Operation::set_json(c, &json!([1])).unwrap())
        .and(Operation::increment_with(
            a,
            "0.5",
            IncrementOptions::new().path("/n").max(9),
        ))
        .and(Operation::get(a))
        .and(Operation::del(c))
        .and(Operation::del(c))
        .if_version(a, seen)
        .if_exists(a)
        .if_absent(c)
        .if_value(a, r#"{"n":1}"#)
        .if_token(b, token)
        .or_else(Operation::get(a))
        .by("me");
    let done = client.transact(&all).await.unwrap();
    assert!(done.held && done.version > seen);
    let version = OperationReply::Version(done.version);
    assert_eq!(
        done.replies[..3],
        [version.clone(), version.clone(), version.clone()]
    );
    assert_eq!(done.number(3), Some("1.5"));
    assert_eq!(
        done.value::<Value>(4).unwrap(),
        Some(json!({"n": 1.5, "m": 2}))
    );
    assert_eq!(
        done.replies[5..],
        [version, OperationReply::Version(Version::NONE)]
    );
    assert_eq!(
        (done.number(0), done.value::<Value>(0).unwrap()),
        (None, None)
    );
    let found = client.get(b).await.unwrap().unwrap();
    assert_eq!(
        (found.version, found.agent.as_deref()),
        (done.version, Some("me"))
    );
    assert!(found.expires_in.is_some());
    // Again it does not hold.
    let lost = client.transact(&all).await.unwrap();
    assert_eq!((lost.held, lost.version), (false, Version::NONE));
    assert_eq!(
        lost.value::<Value>(0).unwrap(),
        Some(json!({"n": 1.5, "m": 2}))
    );
    // One that writes either way.
    let either = Transaction::new(Operation::del(c))
        .if_exists(c)
        .or_else(Operation::set(c, "new"));
    let done = client.transact(&either).await.unwrap();
    assert!(!done.held && done.version > found.version);
    // A refusal leaves all as it was, and names what was refused.
    let refused = Transaction::new(Operation::set(c, "other")).and(Operation::set(b, "other"));
    let refused = client.transact(&refused).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Locked));
    assert!(refused.to_string().contains("THEN 2 (SET"), "{refused}");
    assert_eq!(client.get(c).await.unwrap().unwrap().value, b"new");
    // With the lock's token it passes; a request id makes it safe to say it twice.
    let once = || {
        let options = ManyOptions::new().token(token).request_id("once");
        Transaction::new(Operation::increment(c.replace('c', "d"), 1))
            .and(Operation::set(b, "mine"))
            .options(options)
    };
    let first = client.transact(&once()).await.unwrap();
    assert_eq!(client.transact(&once()).await.unwrap(), first);
    assert_eq!(first.number(0), Some("1"));
}
