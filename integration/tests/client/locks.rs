//! Guards: renewed while they live, given back when they go, and nobody is deceived about a loss.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use maos_client::{Client, Code, Config, LockOptions, LockStatus, SetOptions};
use tokio::time::{sleep, timeout};

use crate::client;
use crate::harness::Server;
use crate::proxy::Proxy;

const MINUTE: Duration = Duration::from_secs(60);

fn waiting() -> LockOptions {
    LockOptions::new().wait(MINUTE)
}

#[tokio::test]
async fn a_guard_outlasts_its_lease_and_gives_the_lock_back() {
    let server = Server::start();
    let client = client(&server).await;
    let lease = Duration::from_secs(10);
    let guard = client.lock_guard("k", lease, LockOptions::new()).await;
    let guard = guard.unwrap().expect("nobody holds it");
    let ends = client.locks("k").await.unwrap().holders[0]
        .grant
        .expires_at_ms;
    let renewed = async {
        while client.locks("k").await.unwrap().holders[0]
            .grant
            .expires_at_ms
            == ends
        {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(MINUTE, renewed).await.expect("it is renewed");
    assert_eq!(guard.status(), LockStatus::Held);
    guard.set("v", SetOptions::new()).await.unwrap();
    let stray = client.set("k", "x", SetOptions::new()).await;
    assert_eq!(stray.unwrap_err().code(), Some(Code::Locked));
    let other = client.lock_guard("k", lease, LockOptions::new());
    assert!(other.await.unwrap().is_none());
    // Dropped, it lets the next one in.
    let waits = tokio::spawn({
        let client = client.clone();
        async move { client.lock_guard("k", lease, waiting()).await }
    });
    sleep(Duration::from_millis(50)).await;
    let first = guard.token();
    drop(guard);
    let next = waits.await.unwrap().unwrap().expect("it was waited for");
    assert!(next.token() > first);
    // While one call waited the others went on.
    next.release().await.unwrap();
    client.set("k", "free", SetOptions::new()).await.unwrap();
}

#[tokio::test]
async fn a_guard_that_lost_its_lock_says_so_and_cannot_write() {
    let server = Server::start();
    let client = client(&server).await;
    let lease = Duration::from_millis(600);
    let guard = client.lock_guard("k", lease, LockOptions::new()).await;
    let guard = guard.unwrap().expect("nobody holds it");
    server.conn().run("DEL k");
    timeout(MINUTE, guard.lost()).await.expect("it notices");
    assert_eq!(guard.status(), LockStatus::Lost);
    let late = guard.set("x", SetOptions::new()).await;
    assert_eq!(late.unwrap_err().code(), Some(Code::Fenced));
    let done = client.with_lock("k", lease, LockOptions::new(), async |guard| {
        server.conn().run("DEL k");
        sleep(MINUTE).await;
        guard.token()
    });
    let done = timeout(MINUTE, done).await.expect("it is dropped");
    assert_eq!(done.unwrap_err().code(), Some(Code::Fenced));
}

#[tokio::test]
async fn a_guard_without_a_store_is_in_doubt_and_then_lost() {
    let mut doubted = false;
    // A machine that stands still for the rest of the lease leaves no time for doubt.
    for _ in 0..5 {
        doubted = is_in_doubt_before_it_is_lost().await;
        if doubted {
            break;
        }
    }
    assert!(doubted);
}

async fn is_in_doubt_before_it_is_lost() -> bool {
    let mut server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let config = Config::new(&proxy.url()).unwrap();
    let client = Client::connect(config.deadline(Duration::from_millis(200)))
        .await
        .unwrap();
    let lease = Duration::from_secs(6);
    let guard = client.lock_guard("k", lease, LockOptions::new()).await;
    let mut guard = guard.unwrap().expect("nobody holds it");
    server.kill();
    let doubted = guard.changed().await == LockStatus::InDoubt;
    if doubted {
        assert_eq!(guard.changed().await, LockStatus::Lost);
    }
    assert_eq!(guard.status(), LockStatus::Lost);
    doubted
}

#[tokio::test]
async fn critical_sections_do_not_overlap() {
    let server = Server::start();
    let client = client(&server).await;
    let inside = AtomicUsize::new(0);
    let work = (0..10).map(|_| async {
        for _ in 0..5 {
            let done = client.with_lock("n", MINUTE, waiting(), async |guard| {
                assert_eq!(inside.fetch_add(1, SeqCst), 0);
                let n = client.get("n").await.unwrap();
                let n: u32 = n.map_or(0, |n| n.text().unwrap().parse().unwrap());
                let next = (n + 1).to_string();
                guard.set(next, SetOptions::new()).await.unwrap();
                inside.fetch_sub(1, SeqCst);
            });
            assert!(done.await.unwrap().is_some());
        }
    });
    futures_util::future::join_all(work).await;
    let n = client.get("n").await.unwrap().unwrap();
    assert_eq!(n.text(), Some("50"));
}

#[tokio::test]
async fn many_locks_are_taken_in_one_order() {
    let server = Server::start();
    let client = client(&server).await;
    let work = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]].map(|keys| {
        let client = client.clone();
        async move {
            for _ in 0..10 {
                let guards = client.lock_many(keys, MINUTE, MINUTE).await.unwrap();
                let guards = guards.expect("in time");
                assert_eq!(guards.len(), 3);
                for guard in guards {
                    guard.release().await.unwrap();
                }
            }
        }
    });
    timeout(MINUTE, futures_util::future::join_all(work))
        .await
        .expect("nobody waits for ever");
    // All or none.
    let held = client.lock_guard("b", MINUTE, LockOptions::new()).await;
    let _held = held.unwrap().expect("nobody holds it");
    let none = client.lock_many(["a", "b"], MINUTE, Duration::from_millis(50));
    assert!(none.await.unwrap().is_none());
    let free = async {
        while client.locks("a").await.unwrap().mode.is_some() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(MINUTE, free).await.expect("it was given back");
}

#[tokio::test]
async fn a_call_that_is_dropped_waits_no_longer() {
    let server = Server::start();
    let client = client(&server).await;
    let held = client.lock("k", "a", MINUTE, LockOptions::new()).await;
    let held = held.unwrap().expect("nobody holds it");
    let waits = client.lock("k", "b", MINUTE, waiting());
    assert!(timeout(Duration::from_millis(200), waits).await.is_err());
    client.unlock("k", held.token).await.unwrap();
    let free = async {
        loop {
            let next = client.lock("k", "c", MINUTE, LockOptions::new()).await;
            match next.unwrap() {
                Some(next) => break next,
                None => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let next = timeout(MINUTE, free)
        .await
        .expect("nobody stands before it");
    assert!(next.token > held.token);
}
