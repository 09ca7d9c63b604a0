//! Updates that many make at once: nothing is lost, and who loses takes its turn.

use std::collections::BTreeSet;
use std::time::Duration;

use maos_client::{Client, Error, Next, SetOptions, UpdateOptions, Version};

use crate::harness::{Conn, Server};
use crate::{client, config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_updating_tasks_lose_nothing() {
    let server = Server::start();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        // Every task has a connection of its own, as agents on many machines have.
        let client = client(&server).await;
        tasks.spawn(async move {
            let options = UpdateOptions::new().by(format!("task-{n}"));
            let add = |list: Option<Vec<u32>>| {
                let mut list = list.unwrap_or_default();
                list.push(n);
                list
            };
            client.update_with("app:list:1", options, add).await
        });
    }
    let mut versions = BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        let done = done.unwrap().unwrap();
        assert!(done.written.is_some() && done.attempts >= 1);
        versions.insert(done.version);
    }
    let list = client(&server)
        .await
        .get_json::<Vec<u32>>("app:list:1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(versions.len(), 50);
    assert_eq!(versions.last(), Some(&list.version));
    assert_eq!(
        list.value.into_iter().collect::<BTreeSet<_>>(),
        (0..50).collect()
    );
}

#[tokio::test]
async fn an_update_may_leave_things_as_they_are_keeps_the_expiry_and_gives_up_in_the_end() {
    let server = Server::start();
    let client = client(&server).await;
    let options = SetOptions::new().ttl(Duration::from_secs(100));
    let first = client.set("app:u:1", "1", options).await.unwrap();
    let kept = client
        .update("app:u:1", |_: Option<u32>| Next::Keep)
        .await
        .unwrap();
    assert_eq!((kept.written, kept.version), (None, first));
    client
        .update("app:u:1", |n: Option<u32>| n.unwrap() + 1)
        .await
        .unwrap();
    let found = client.get("app:u:1").await.unwrap().unwrap();
    assert!(found.expires_in.is_some() && found.value == b"2");

    // Somebody else is always faster.
    let mut rival = server.conn();
    let mut attempts = 0;
    let lost = client
        .update_with(
            "app:u:1",
            UpdateOptions::new().attempts(3),
            |n: Option<u32>| {
                attempts += 1;
                rival.run("MAOS.SET app:u:1 7").int();
                n.unwrap() + 1
            },
        )
        .await;
    match lost {
        Err(Error::Contended {
            key, attempts: 3, ..
        }) => assert_eq!(key, "app:u:1"),
        other => panic!("{other:?}"),
    }
    assert_eq!(attempts, 3);
    assert_eq!(client.get("app:u:1").await.unwrap().unwrap().value, b"7");
}

/// Who loses again and again takes its turn in the queue of the key's lock, which holds nobody up and is given back.
#[tokio::test]
async fn an_update_that_loses_takes_its_turn() {
    let server = Server::start();
    let client = client(&server).await;
    let mut rival = server.conn();
    let turns = |conn: &mut Conn| {
        let locks = conn.run("MAOS.LOCKS app:u:2");
        let holders = locks.field("holders").array();
        let mut notes = holders.iter().map(|h| h.field("note").text().to_owned());
        notes.next()
    };
    let mut seen = vec![];
    let add = |n: Option<u32>| {
        seen.push(turns(&mut rival));
        // Those who write without a lock are not held up, and win this once more.
        if seen.len() < 5 {
            rival.run("MAOS.SET app:u:2 7").int();
        }
        n.unwrap_or(0) + 1
    };
    let done = client.update("app:u:2", add).await.unwrap();
    assert_eq!((done.written, done.attempts), (Some(8), 5));
    let turn = Some("the turn of an update".to_owned());
    assert_eq!(seen, [None, None, None, turn.clone(), turn]);
    assert_eq!(turns(&mut server.conn()), None);
    // The next one sees the queue of others at once, and stands in it.
    let note = "MAOS.LOCK app:u:2 other 600000 ADVISORY NOTE 'the turn of an update'";
    let held = server.conn().run(note).array()[0].int();
    let other = Client::connect(config(&server)).await.unwrap();
    let waits = tokio::spawn(async move {
        let add = |n: Option<u32>| n.unwrap_or(0) + 1;
        other.update("app:u:2", add).await
    });
    let mut conn = server.conn();
    until(|| {
        let locks = conn.run("MAOS.LOCKS app:u:2");
        !locks.field("waiters").array().is_empty()
    })
    .await;
    conn.run(&format!("MAOS.UNLOCK app:u:2 {held}")).int();
    assert_eq!(waits.await.unwrap().unwrap().attempts, 1);
    // One that ends in its turn, whatever the reason, gives it back.
    let mut attempts = 0;
    let ends = tokio::spawn(async move {
        let fail = |_: Option<u32>| -> u32 {
            attempts += 1;
            assert!(attempts < 4, "on purpose");
            rival.run("MAOS.SET app:u:2 7").int();
            0
        };
        client.update("app:u:2", fail).await
    });
    let before = calls(&mut conn, "cmdstat_maos.unlock");
    assert!(ends.await.unwrap_err().is_panic());
    until(|| calls(&mut conn, "cmdstat_maos.unlock") != before).await;
    assert_eq!(turns(&mut conn), None);
}

/// What the server counted of a command.
fn calls(conn: &mut Conn, name: &str) -> Option<String> {
    let stats = conn.info("commandstats");
    let mut stats = stats.into_iter();
    let calls = stats.find(|(n, _)| n.eq_ignore_ascii_case(name));
    calls.map(|(_, calls)| calls)
}

/// Waits for something that happens, for a minute at most.
async fn until(mut happened: impl FnMut() -> bool) {
    let wait = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let minute = tokio::time::timeout(Duration::from_secs(60), wait);
    minute.await.expect("it happens");
}

#[tokio::test]
async fn an_update_without_turns_or_without_the_right_to_take_them_still_updates() {
    let server = Server::start();
    let mut admin = server.conn();
    admin
        .run("ACL SETUSER poor on >secret ~* +@all -maos.lock")
        .ok();
    let poor = config(&server).username("poor").password("secret");
    let poor = Client::connect(poor).await.unwrap();
    let rich = client(&server).await;
    let held = admin.run("MAOS.LOCK app:u:3 a 600000 SHARED").array()[0].int();
    let token = Version(held.unsigned_abs());
    let locks = calls(&mut admin, "cmdstat_maos.lock").expect("it was called");
    let locks = locks.split(',').next().expect("calls=").to_owned();
    for (client, options) in [
        (&poor, UpdateOptions::new()),
        (&rich, UpdateOptions::new().without_turns()),
        // A turn might wait for the very lock that this one holds.
        (
            &rich,
            UpdateOptions::new().write(SetOptions::new().token(token)),
        ),
    ] {
        let mut attempts = 0;
        let done = client.update_with("app:u:3", options, |n: Option<u32>| {
            attempts += 1;
            if attempts < 6 {
                admin.run("MAOS.SET app:u:3 7").int();
            }
            assert_eq!(
                admin
                    .run("MAOS.LOCKS app:u:3")
                    .field("waiters")
                    .array()
                    .len(),
                0
            );
            n.unwrap_or(0) + 1
        });
        let done = done.await.unwrap();
        assert_eq!((done.written, done.attempts), (Some(8), 6));
        // Nobody but the administrator was let in.
        let now = calls(&mut server.conn(), "cmdstat_maos.lock").expect("it was called");
        assert!(now.starts_with(&format!("{locks},")), "{now}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_share_a_client_take_turns_at_a_key() {
    let server = Server::start();
    let clients = [client(&server).await, client(&server).await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let client = clients[n % 2].clone();
        tasks.spawn(async move {
            let mut attempts = 0;
            for _ in 0..25 {
                let add = |n: Option<u32>| n.unwrap_or(0) + 1;
                attempts += client.update("app:n:1", add).await.unwrap().attempts;
            }
            attempts
        });
    }
    let mut attempts = 0;
    while let Some(done) = tasks.join_next().await {
        attempts += done.unwrap();
    }
    let found = clients[0].get("app:n:1").await.unwrap().unwrap();
    assert_eq!(found.text(), Some("1000"));
    println!("{attempts} attempts for 1000 updates");
}
