//! The same client before a cluster of three masters.

use std::collections::BTreeSet;

use maos_client::{
    Client, Config, Error, HistoryOptions, ManyOptions, ManyOutcome, SetOptions, StateKey, Which,
};

use crate::harness::{slot_of, Cluster};

async fn client(cluster: &Cluster) -> Client {
    let urls = cluster.urls();
    let config = Config::with_urls(urls.iter().map(String::as_str))
        .unwrap()
        .cluster(true);
    Client::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_methods_find_their_node_in_a_cluster() {
    let cluster = Cluster::start(3, 0);
    let client = client(&cluster).await;
    let mut nodes = BTreeSet::new();
    for n in 0..60 {
        let key = StateKey::new("app", "c", &n.to_string());
        nodes.insert(cluster.node_for(&key).port());
        let first = client
            .set(&key, r#"{"n":1}"#, SetOptions::new().by("a"))
            .await
            .unwrap();
        let second = client
            .cas(&key, first, r#"{"n":2}"#, SetOptions::new())
            .await
            .unwrap();
        let second = second.applied().unwrap();
        assert_eq!(
            client
                .cas(&key, first, "x", SetOptions::new())
                .await
                .unwrap()
                .applied(),
            None
        );
        assert_eq!(client.get(&key).await.unwrap().unwrap().version, second);
        let patch = client.diff(&key, Which::Back(1), second).await.unwrap();
        assert!(patch.contains("/n"), "{patch}");
        client.del(&key, SetOptions::new()).await.unwrap();
        client
            .rollback(&key, first, SetOptions::new())
            .await
            .unwrap();
        assert_eq!(
            client
                .history(&key, HistoryOptions::new())
                .await
                .unwrap()
                .len(),
            4
        );
        client
            .update(&key, |v: Option<serde_json::Value>| v.unwrap())
            .await
            .unwrap();
    }
    assert_eq!(nodes.len(), 3, "the keys lie on all nodes");

    // A listing sees all of them, INFO comes from all.
    let mut found = BTreeSet::new();
    let mut scan = client.scan("app:c:");
    while let Some(page) = scan.next_page().await.unwrap() {
        found.extend(page);
    }
    assert_eq!(found.len(), 60);
    assert_eq!(client.info(&["maos"]).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_keys_are_written_together_in_one_slot_and_refused_over_two() {
    let cluster = Cluster::start(3, 0);
    let client = client(&cluster).await;
    let plan = StateKey::new("app", "plan", "1").tagged();
    let (steps, notes) = (plan.partition("steps"), plan.partition("notes"));
    let both = client
        .mset(&[(&steps, "1"), (&notes, "2")], ManyOptions::new())
        .await
        .unwrap();
    let read = client.mget(&[&steps, &notes]).await.unwrap();
    assert!(read
        .iter()
        .all(|v| v.as_ref().is_some_and(|v| v.version == both)));
    let items = [(&steps, both, "3"), (&notes, both, "4")];
    let written = client.mcas(&items, ManyOptions::new()).await.unwrap();
    assert!(matches!(written, ManyOutcome::Applied(v) if v > both));

    let pairs = [("app:a:1", "1"), ("app:b:2", "2")];
    assert_ne!(slot_of("app:a:1".as_bytes()), slot_of("app:b:2".as_bytes()));
    match client.mset(&pairs, ManyOptions::new()).await {
        Err(Error::Server { word, text }) => {
            assert_eq!(word, "CROSSSLOT");
            assert!(
                text.contains("app:a:1") && text.contains("hash tag"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_followed_while_and_after_their_slot_moves() {
    let cluster = Cluster::start(3, 0);
    let client = client(&cluster).await;
    let key = "app:move:1";
    let options = || SetOptions::new().without_request_id();
    client.set(key, "1", options()).await.unwrap();
    let slot = slot_of(key.as_bytes());
    let from = cluster.node_for(key);
    let to = cluster
        .nodes
        .iter()
        .find(|n| n.port() != from.port())
        .unwrap();

    // Moved: the node that had it says where it is now.
    cluster.move_slot(slot, to);
    client.set(key, "2", options()).await.unwrap();
    assert_eq!(client.get(key).await.unwrap().unwrap().versions_kept, 2);

    // Moving: the node that has the slot does not have the key, and says who to ask.
    let (mut source, mut target) = (to.conn(), from.conn());
    let source_id = source.run("CLUSTER MYID").text().to_owned();
    let target_id = target.run("CLUSTER MYID").text().to_owned();
    let tag = "{app:move:1}:new";
    target
        .run(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"))
        .ok();
    source
        .run(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"))
        .ok();
    client.set(tag, "asked", options()).await.unwrap();
    assert_eq!(client.get(tag).await.unwrap().unwrap().value, b"asked");
    target.asking();
    assert_eq!(target.run(&format!("MAOS.GET {tag}")).bytes(), b"asked");
}
