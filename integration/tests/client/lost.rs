//! Lost connections: what is repeated, what is not, and what is applied how often.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use maos_client::{
    Applied, Client, Config, Error, HistoryOptions, ManyOptions, ManyOutcome, Outcome, SetOptions,
    Version,
};

use crate::harness::{Conn, Server, Stop};
use crate::proxy::Proxy;
use crate::{client, config};

async fn through(proxy: &Proxy) -> Client {
    Client::connect(Config::new(&proxy.url()).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_applied_once_and_gives_its_own_version() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let client = through(&proxy).await;
    let key = "app:once:1";

    proxy.swallow_next_reply();
    let set = client.set(key, "1", SetOptions::new()).await.unwrap();
    proxy.swallow_next_reply();
    let cas = client.cas(key, set, "2", SetOptions::new()).await.unwrap();
    // Without its request id the repeated CAS would lose to itself.
    let cas = cas.applied().expect("the version it had made before");
    proxy.swallow_next_reply();
    let back = client.rollback(key, set, SetOptions::new()).await.unwrap();
    proxy.swallow_next_reply();
    let del = client.del(key, SetOptions::new()).await.unwrap();
    proxy.swallow_next_reply();
    let pairs = [(key, "3"), ("app:once:2", "3")];
    let mset = client.mset(&pairs, ManyOptions::new()).await.unwrap();
    proxy.swallow_next_reply();
    let items = [(key, mset, "4"), ("app:once:2", mset, "4")];
    let mcas = client.mcas(&items, ManyOptions::new()).await.unwrap();
    let ManyOutcome::Applied(mcas) = mcas else {
        panic!("{mcas:?}");
    };

    assert_eq!(proxy.cuts(), 6);
    let history = client.history(key, HistoryOptions::new()).await.unwrap();
    let made: Vec<_> = history.iter().map(|r| r.version).collect();
    assert_eq!(made, [set, cas, back, del, mset, mcas]);
}

#[tokio::test]
async fn a_write_without_a_request_id_is_not_repeated_once_it_was_sent() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let client = through(&proxy).await;
    proxy.swallow_next_reply();
    let options = SetOptions::new().without_request_id();
    match client.set("app:k:1", "1", options.clone()).await {
        Err(
            error @ Error::Transport {
                applied: Applied::Unknown,
                attempts: 1,
                ..
            },
        ) => {
            assert!(
                error.to_string().contains("may have been carried out"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    // The connection is made again for the next call, and reads are repeated in any case.
    proxy.swallow_next_reply();
    let found = client.get("app:k:1").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.versions_kept), (&b"1"[..], 1));
    client.set("app:k:1", "2", options).await.unwrap();
}

#[tokio::test]
async fn a_write_that_never_left_is_repeated_even_without_a_request_id() {
    let mut server = Server::with(&[("appendonly", "yes")]);
    let client = client(&server).await;
    client.set("app:k:1", "1", SetOptions::new()).await.unwrap();
    server.stop(Stop::NoSave);
    // Somebody's read finds the connection gone; from then on the client knows that there is none.
    let reader = client.clone();
    let read = tokio::spawn(async move { reader.get("app:k:1").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let options = SetOptions::new().without_request_id();
    let write = tokio::spawn(async move { client.set("app:k:1", "2", options).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.start_again();
    write.await.unwrap().unwrap();
    read.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_at_the_deadline() {
    let server = Server::start();
    let settings = config(&server)
        .response_timeout(Duration::from_millis(100))
        .deadline(Duration::from_millis(400));
    let client = Client::connect(settings).await.unwrap();
    server.pause();
    match client.set("app:k:1", "1", SetOptions::new()).await {
        Err(Error::Transport {
            applied: Applied::Unknown,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    server.resume();
    client.get("app:k:1").await.unwrap();

    let nobody = Config::new("redis://127.0.0.1:1/").unwrap();
    match Client::connect(nobody).await {
        Err(Error::Transport {
            applied: Applied::No,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

/// Each task writes keys of its own through one shared client, whose connection is cut every few
/// thousand bytes, in the middle of requests and before replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_writes_over_a_wire_that_is_cut_are_each_applied_once() {
    const TASKS: u32 = 24;
    const WRITES: u32 = 400;
    let server = Server::with(&[
        ("maos.history-max-versions", "100000"),
        ("maos.history-max-bytes", "1gb"),
    ]);
    let proxy = Proxy::start(server.port()).await;
    // Many attempts: the point is what is applied, not how soon somebody gives up.
    let settings = Config::new(&proxy.url()).unwrap();
    let settings = settings.attempts(1000).deadline(Duration::from_secs(120));
    proxy.cut_after(4_000);
    let client = Client::lazy(settings).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            let key = format!("app:cut:{n}");
            let mut versions = vec![];
            let mut last = Version::NONE;
            for i in 0..WRITES {
                last = if i % 2 == 0 {
                    client
                        .set(&key, i.to_string(), SetOptions::new())
                        .await
                        .unwrap()
                } else {
                    let cas = client.cas(&key, last, i.to_string(), SetOptions::new());
                    match cas.await.unwrap() {
                        Outcome::Applied(version) => version,
                        lost => panic!("nobody else writes {key}: {lost:?}"),
                    }
                };
                versions.push(last);
            }
            (key, versions)
        });
    }
    let mut done = vec![];
    while let Some(task) = tasks.join_next().await {
        done.push(task.unwrap());
    }
    proxy.cut_after(0);
    assert!(proxy.cuts() > 100, "only {} cuts", proxy.cuts());
    let direct = crate::client(&server).await;
    for (key, versions) in done {
        let history = direct.history(&key, HistoryOptions::new()).await.unwrap();
        let kept: Vec<_> = history.iter().map(|r| r.version).collect();
        assert_eq!(
            kept, versions,
            "{key}: as many versions as writes, and the same"
        );
        let ids: BTreeSet<_> = history.iter().map(|r| r.request_id.clone()).collect();
        assert_eq!(ids.len(), versions.len(), "{key}: no request twice");
    }
    eprintln!("{} connections, {} cuts", proxy.connections(), proxy.cuts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_outlives_its_server_being_killed_and_started_again() {
    let mut server = Server::with(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let client = client(&server).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            let mut versions = vec![];
            while !stop.load(Ordering::Relaxed) {
                let next = client.set("app:k:1", "v", SetOptions::new()).await.unwrap();
                versions.push(next);
            }
            versions
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.restart(Stop::Kill);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, Ordering::Relaxed);
    let versions = writer.await.unwrap();
    assert!(versions.len() > 3);
    assert!(
        versions.windows(2).all(|pair| pair[0] < pair[1]),
        "versions rise over restarts"
    );
    let now = client.get("app:k:1").await.unwrap().unwrap();
    assert_eq!(Some(&now.version), versions.last());
}

/// A store that may have been replaced in its sleep refuses until it knows better: the client asks again.
#[tokio::test]
async fn a_store_in_doubt_is_asked_again() {
    let server = Server::with(&[("maos.pause-guard-ms", "300")]);
    let mut conn = server.conn();
    if conn.run("COMMAND INFO MAOS.FAIL").array()[0].is_nil() {
        println!("skipped: this build has no failpoints");
        return;
    }
    let client = Client::connect(config(&server)).await.unwrap();
    let busy = |conn: &mut Conn| conn.info("maos").contains_key("maos_refusals_busy");
    // A machine that is busy may ask when all is over.
    for n in 1..50 {
        // A clock that is put on looks like a sleep.
        conn.run(&format!("MAOS.FAIL clock {}", n * 60_000)).int();
        let key = format!("k{n}");
        let done = client
            .cas(&key, Version::NONE, "v", SetOptions::new())
            .await;
        assert!(done.unwrap().applied().is_some());
        if busy(&mut conn) {
            return;
        }
    }
    panic!("it was never refused");
}
