//! Partitions through the client: what is said of them, what they refuse, who is charged.

use std::collections::BTreeSet;
use std::time::Duration;

use maos_client::{
    Applied, Client, Code, Config, Error, How, IncrementOptions, ManyOptions, MergeOptions, Merged,
    OnFull, Operation, PartitionInfo, PartitionOptions, PartitionType, Past, SetOptions, Strategy,
    Transaction, UpdateOptions, Version,
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::client;
use crate::harness::{Cluster, Server, PATIENCE};
use crate::proxy::Proxy;

/// What the example says is true.
#[path = "../../examples/quota.rs"]
#[allow(dead_code)] // its `main`
mod quota;

const KB: u64 = 1 << 10;

/// Asks until the answer is the one wanted, and gives it.
async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(PATIENCE, found).await {
        Ok(found) => found,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_holds() {
    let server = Server::start();
    let client = client(&server).await;
    // Again on what the first time has left.
    for _ in 0..2 {
        quota::one_agent_fills_its_memory_and_the_other_goes_on(&client)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn all_that_is_said_of_a_partition_is_kept_and_shown() {
    let server = Server::start();
    let client = client(&server).await;
    let name = "partition:all";
    let made = client
        .partition(name)
        .quota(100 * KB)
        .dedicated_to("a1")
        .prefix("a:")
        .prefix(b"b\xff")
        .ttl(Duration::from_secs(60))
        .on_full(OnFull::Evict)
        .on_conflict(Strategy::Function("choose".into()))
        .history(7)
        .max_age(Duration::from_millis(1500))
        .max_value(9 * KB)
        .create()
        .await
        .unwrap();
    let info = client.partition(name).info().await.unwrap();
    assert_eq!(info.name, name.as_bytes());
    assert_eq!(info.text(), name);
    assert_eq!(info.version, made);
    assert_eq!(info.partition_type, PartitionType::AgentDedicated);
    assert_eq!(info.agent.as_deref(), Some("a1"));
    assert_eq!((info.quota, info.used, info.keys), (100 * KB, 0, 0));
    assert_eq!((info.free(), info.fullness()), (100 * KB, 0.0));
    assert_eq!(info.prefixes, [b"a:".to_vec(), b"b\xff".to_vec()]);
    assert_eq!(info.key_ttl, Some(Duration::from_secs(60)));
    assert_eq!(info.expires_in, None);
    assert_eq!(info.on_full, OnFull::Evict);
    assert_eq!(info.on_conflict, Some(Strategy::Function("choose".into())));
    assert_eq!(info.history, Some(7));
    assert_eq!(info.max_age, Some(Duration::from_millis(1500)));
    assert_eq!(info.max_value, Some(9 * KB));
    assert_eq!(info.audit, None);

    // What is not named stays.
    let altered = client.partition(name).history(0).alter().await.unwrap();
    assert!(altered > made);
    let mut wanted = info.clone();
    (wanted.version, wanted.history) = (altered, None);
    assert_eq!(client.partition(name).info().await.unwrap(), wanted);
    let altered = client
        .partition(name)
        .no_prefix()
        .partition_type(PartitionType::Persistent)
        .ttl(Duration::ZERO)
        .max_age(Duration::ZERO)
        .max_value(0)
        .on_conflict(Strategy::Lww)
        .on_full(OnFull::Reject)
        .quota(1)
        .alter()
        .await
        .unwrap();
    let info = client.partition(name).info().await.unwrap();
    assert_eq!(info.version, altered);
    assert_eq!(info.partition_type, PartitionType::Persistent);
    assert_eq!((info.agent, info.prefixes), (None, vec![]));
    assert_eq!(
        (info.key_ttl, info.max_age, info.max_value),
        (None, None, None)
    );
    assert_eq!(
        (info.on_conflict, info.on_full),
        (Some(Strategy::Lww), OnFull::Reject)
    );
    assert_eq!(info.quota, 1);
}

#[tokio::test]
async fn a_write_without_room_is_refused_once_and_changes_nothing() {
    let server = Server::start();
    let client = client(&server).await;
    let crew = client.partition("partition:crew");
    crew.clone()
        .quota(2 * KB)
        .prefix("crew:")
        .create()
        .await
        .unwrap();
    let kept = client.set("crew:1", [b'x'; 500], SetOptions::new()).await;
    let before = crew.info().await.unwrap();
    assert!(before.used > 500 && before.used <= 2 * KB && before.keys == 1);
    assert_eq!((before.used_here, before.keys_here), (before.used, 1));
    assert_eq!(before.high_water, before.used);
    assert_eq!(before.free(), 2 * KB - before.used);
    assert!(before.fullness() > 0.24 && before.fullness() < 0.5);
    for key in ["crew:1", "crew:2"] {
        let refused = client.set(key, [b'y'; 2000], SetOptions::new()).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Some(Code::Quota), "{refused}");
        let told = refused.to_string();
        let figures = [before.used, before.quota].map(|n| n.to_string());
        assert!(figures.iter().all(|n| told.contains(n)), "{told}");
    }
    let after = crew.info().await.unwrap();
    // Repeated, each would have been refused more than once.
    assert_eq!(after.refused, 2);
    assert_eq!((after.used, after.keys), (before.used, before.keys));
    let found = client.get("crew:1").await.unwrap().unwrap();
    assert_eq!(found.version, kept.unwrap());
    assert_eq!(client.get("crew:2").await.unwrap(), None);
}

#[tokio::test]
async fn where_it_is_said_the_oldest_keys_make_room() {
    let server = Server::start();
    let client = client(&server).await;
    let partition = client.partition("partition:cache");
    let cache = partition.clone().quota(4 * KB).prefix("cache:").history(1);
    cache.on_full(OnFull::Evict).create().await.unwrap();
    for n in 0..20 {
        let key = format!("cache:{n}");
        client
            .set(key, [b'x'; 500], SetOptions::new())
            .await
            .unwrap();
    }
    let info = partition.info().await.unwrap();
    assert!(info.used <= info.quota && info.keys >= 5, "{info:?}");
    assert_eq!(info.evicted, 20 - info.keys);
    assert_eq!(info.refused, 0);
    assert_eq!(client.get("cache:0").await.unwrap(), None);
    assert!(client.get("cache:19").await.unwrap().is_some());
}

#[tokio::test]
async fn every_write_can_name_its_partition() {
    let server = Server::start();
    let client = client(&server).await;
    let name = "partition:named";
    client
        .partition(name)
        .quota(100 * KB)
        .create()
        .await
        .unwrap();
    let named = || SetOptions::new().partition(name);
    let many = || ManyOptions::new().partition(name);

    client.set("n:set", "1", named()).await.unwrap();
    let absent = named().if_absent();
    let _ = client.set("n:if", "1", absent).await.unwrap();
    let _ = client
        .cas("n:cas", Version::NONE, "1", named())
        .await
        .unwrap();
    client
        .patch("n:patch", json!({"a": 1}), named())
        .await
        .unwrap();
    let plain = SetOptions::new;
    client.set("n:json", r#"{"a":1}"#, plain()).await.unwrap();
    let add = json!([{"op": "add", "path": "/b", "value": 1}]);
    let _ = client.json_patch("n:json", &add, named()).await.unwrap();
    let add = IncrementOptions::new().partition(name);
    client.increment("n:incr", 1, add).await.unwrap();
    let merge = MergeOptions::new(Strategy::Merge).partition(name);
    let merged = client.merge("n:merge", Version::NONE, 1, merge).await;
    assert!(matches!(merged.unwrap(), Merged::Applied(..)));
    let first = client.set("n:back", "1", plain()).await.unwrap();
    client.set("n:back", "2", plain()).await.unwrap();
    client.rollback("n:back", first, named()).await.unwrap();
    client.set("n:del", "1", plain()).await.unwrap();
    client.del("n:del", named()).await.unwrap();
    client
        .rollback("n:del", Past::back(1), plain())
        .await
        .unwrap();
    let update = UpdateOptions::new().partition(name);
    let count = |n: Option<u32>| n.unwrap_or(0) + 1;
    client.update_with("n:update", update, count).await.unwrap();
    client
        .mset(&[("n:m1", "1"), ("n:m2", "2")], many())
        .await
        .unwrap();
    let items = [("n:m3", Version::NONE, "3")];
    let _ = client.mcas(&items, many()).await.unwrap();
    let both = Transaction::new(Operation::set("n:t1", "1"))
        .and(Operation::increment("n:t2", 1))
        .partition(name);
    client.transact(&both).await.unwrap();

    let keys = [
        "n:set", "n:if", "n:cas", "n:patch", "n:json", "n:incr", "n:merge", "n:back", "n:del",
        "n:update", "n:m1", "n:m2", "n:m3", "n:t1", "n:t2",
    ];
    for (key, found) in keys.iter().zip(client.mget(&keys).await.unwrap()) {
        let found = found.unwrap_or_else(|| panic!("{key} was written"));
        assert_eq!(found.partition.as_deref(), Some(name.as_bytes()), "{key}");
    }
    let info = client.partition(name).info().await.unwrap();
    assert_eq!(info.keys, keys.len() as u64);

    // It stays until another one is named, and one that is not there is refused.
    client.set("n:set", "2", plain()).await.unwrap();
    let found = client.get("n:set").await.unwrap().unwrap();
    assert_eq!(found.partition.as_deref(), Some(name.as_bytes()));
    client.set("n:none", "1", plain()).await.unwrap();
    let found = client.get("n:none").await.unwrap().unwrap();
    assert_eq!(found.map(drop).partition, None);
    let nowhere = plain().partition("partition:none");
    let refused = client.set("n:none", "2", nowhere).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NotFound));
}

#[tokio::test]
async fn an_agent_is_given_its_partition_once() {
    let server = Server::start();
    let client = client(&server).await;
    let ask = |agent, bytes, prefix: &str| {
        let options = PartitionOptions::new().prefix(prefix);
        client.allocate_memory_partition(agent, bytes, options)
    };
    let own = ask("a1", 10 * KB, "a1:").await.unwrap();
    assert_eq!(own.name, b"partition:a1");
    assert_eq!(own.partition_type, PartitionType::AgentDedicated);
    assert_eq!((own.agent.as_deref(), own.quota), (Some("a1"), 10 * KB));
    assert_eq!(own.prefixes, [b"a1:"]);
    // Asked again it is the same one, as it is.
    assert_eq!(ask("a1", 99 * KB, "other:").await.unwrap(), own);
    client
        .set("a1:x", "v", SetOptions::new().by("a1"))
        .await
        .unwrap();
    let stray = client.set("a1:x", "v", SetOptions::new().by("a2")).await;
    assert_eq!(stray.unwrap_err().code(), Some(Code::NoPerm));

    // The name is that of another one's partition; or the prefix is.
    client
        .partition("partition:a3")
        .quota(KB)
        .create()
        .await
        .unwrap();
    let other = client.partition("partition:a4").quota(KB);
    other.dedicated_to("a1").create().await.unwrap();
    for (agent, why) in [("a3", "a shared_pool partition"), ("a4", "dedicated to a1")] {
        let refused = ask(agent, KB, "new:").await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::Exists));
        let told = refused.to_string();
        assert!(told.contains(why) && told.contains(agent), "{told}");
    }
    let refused = ask("a5", KB, "a1:").await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Exists));
    assert!(refused.to_string().contains("partition:a1"), "{refused}");
    let refused = ask("a5", u64::MAX >> 11, "a5:").await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::PoolFull));
    // Type and agent of the options do not count.
    let lasting = PartitionOptions::new()
        .dedicated_to("a1")
        .partition_type(PartitionType::Persistent);
    let own = client.allocate_memory_partition("a6", KB, lasting).await;
    assert_eq!(own.unwrap().agent.as_deref(), Some("a6"));

    let mine = client.partitions(Some("a1")).await.unwrap();
    let names: Vec<_> = mine.iter().map(PartitionInfo::text).collect();
    assert_eq!(names, ["partition:a1", "partition:a4"]);
}

#[tokio::test]
async fn a_partition_whose_reply_was_lost_is_not_taken_for_another_ones() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let config = Config::new(&proxy.url()).unwrap();
    let client = Client::connect(config).await.unwrap();
    let partition = client.partition("partition:lost").quota(KB);
    proxy.swallow_next_reply();
    match partition.create().await {
        Err(Error::Transport {
            applied: Applied::Unknown,
            attempts: 1,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    // Reads are repeated.
    proxy.swallow_next_reply();
    assert_eq!(partition.info().await.unwrap().quota, KB);
    proxy.swallow_next_reply();
    let options = PartitionOptions::new();
    let own = client.allocate_memory_partition("a1", KB, options).await;
    assert_eq!(own.unwrap().agent.as_deref(), Some("a1"));
    assert_eq!(proxy.cuts(), 3);
}

#[tokio::test]
async fn an_audit_is_waited_for_and_no_older_one_is_taken_for_it() {
    let server = Server::start();
    let client = client(&server).await;
    let partition = client.partition("partition:books");
    partition
        .clone()
        .quota(100 * KB)
        .prefix("b:")
        .create()
        .await
        .unwrap();
    for n in 0..50 {
        let key = format!("b:{n}");
        client.set(key, "v", SetOptions::new()).await.unwrap();
    }
    // No time, no audit: this question is answered to the next one who asks.
    assert_eq!(partition.audit(Duration::ZERO).await.unwrap(), None);
    let mut ended = BTreeSet::new();
    for _ in 0..3 {
        let before = partition.info().await.unwrap().audit;
        let info = partition.audit(PATIENCE).await.unwrap();
        let audit = info.clone().and_then(|i| i.audit).expect("in time");
        assert_ne!(audit.ended, before.and_then(|b| b.ended));
        assert!(!audit.running);
        let info = info.unwrap();
        assert_eq!((audit.bytes, audit.keys, audit.drift), (info.used, 50, 0));
        ended.insert(audit.ended);
    }
    assert_eq!(ended.len(), 3);
    let none = client.partition("partition:none");
    let refused = none.audit(PATIENCE).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NotFound));
}

#[tokio::test]
async fn what_has_keys_or_is_persistent_is_dropped_with_force_only() {
    let server = Server::start();
    let client = client(&server).await;
    let (empty, lasting) = (client.partition("p:1"), client.partition("p:2"));
    empty.clone().quota(KB).prefix("k:").create().await.unwrap();
    let kind = PartitionType::Persistent;
    let made = lasting
        .clone()
        .quota(KB)
        .partition_type(kind)
        .create()
        .await;
    made.unwrap();
    client.set("k:1", "v", SetOptions::new()).await.unwrap();
    for partition in [&empty, &lasting] {
        let refused = partition.drop_it().await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::Exists));
    }
    assert_eq!(empty.drop_forced().await.unwrap(), 1);
    assert_eq!(lasting.drop_forced().await.unwrap(), 0);
    let left = client.get("k:1").await.unwrap().expect("it stays");
    assert_eq!(left.text(), Some("v"));
    for refused in [
        empty.info().await.map(drop),
        empty.drop_it().await,
        empty.drop_forced().await.map(drop),
        empty.clone().quota(KB).alter().await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code(), Some(Code::NotFound));
    }
    let again = lasting.clone().quota(KB);
    again.create().await.unwrap();
    let twice = again.create().await.unwrap_err();
    assert_eq!(twice.code(), Some(Code::Exists));
    again.drop_it().await.unwrap();
    // What makes no sense does not reach the store, or is refused there.
    assert_eq!(empty.create().await.unwrap_err().code(), Some(Code::Err));
    assert_eq!(
        again.clone().quota(0).create().await.unwrap_err().code(),
        Some(Code::Err)
    );
    let untimed = again.temporary(Duration::ZERO).create().await;
    assert_eq!(untimed.unwrap_err().code(), Some(Code::Err));
}

#[tokio::test]
async fn a_temporary_partition_leaves_and_takes_its_keys_along() {
    let server = Server::start();
    let client = client(&server).await;
    let scratch = client.partition("partition:scratch");
    let hour = Duration::from_secs(3600);
    let made = scratch.clone().quota(KB).prefix("s:").temporary(hour);
    made.create().await.unwrap();
    client.set("s:1", "v", SetOptions::new()).await.unwrap();
    let info = scratch.info().await.unwrap();
    assert_eq!(info.partition_type, PartitionType::Temporary);
    assert!(info.expires_in.is_some_and(|left| left <= hour));
    assert_eq!(info.key_ttl, None);
    let soon = scratch.clone().ttl(Duration::from_millis(1));
    soon.alter().await.unwrap();
    let gone = async || match scratch.info().await {
        Ok(_) => None,
        Err(error) => error.code(),
    };
    let code = eventually("the partition leaves", gone).await;
    assert_eq!(code, Code::NotFound);
    let gone = async || client.get("s:1").await.unwrap().is_none().then_some(());
    eventually("its key leaves", gone).await;
}

#[tokio::test]
async fn the_pool_is_given_out_once() {
    let server = Server::with(&[("maos.pool-bytes", "1mb")]);
    let client = client(&server).await;
    let pool = client.pool().await.unwrap();
    assert_eq!((pool.bytes, pool.free), (KB * KB, KB * KB));
    assert_eq!((pool.reserved, pool.partitions), (0, 0));
    assert_eq!(pool.fullness(), 0.0);
    assert_eq!(client.partitions(None).await.unwrap(), vec![]);
    for name in ["p:b", "p:a"] {
        let share = client.partition(name).quota(256 * KB);
        share.prefix(format!("{name}:")).create().await.unwrap();
    }
    client.set("p:a:1", "v", SetOptions::new()).await.unwrap();
    let pool = client.pool().await.unwrap();
    assert_eq!((pool.reserved, pool.free), (512 * KB, 512 * KB));
    assert_eq!((pool.keys, pool.partitions), (1, 2));
    assert_eq!(pool.fullness(), 0.5);
    let all = client.partitions(None).await.unwrap();
    let names: Vec<_> = all.iter().map(PartitionInfo::text).collect();
    assert_eq!(names, ["p:a", "p:b"]);
    assert_eq!(pool.used, all[0].used);
    let refused = client.partition("p:c").quota(513 * KB).create().await;
    assert_eq!(refused.unwrap_err().code(), Some(Code::PoolFull));
    let refused = client.partition("p:a").quota(769 * KB).alter().await;
    assert_eq!(refused.unwrap_err().code(), Some(Code::PoolFull));
    client
        .partition("p:a")
        .quota(768 * KB)
        .alter()
        .await
        .unwrap();
    assert_eq!(client.pool().await.unwrap().free, 0);
    let refused = client.partition("p:a").quota(1).alter().await;
    assert_eq!(refused.unwrap_err().code(), Some(Code::Quota));
}

#[tokio::test]
async fn a_merge_may_be_left_to_the_partition() {
    let server = Server::start();
    let client = client(&server).await;
    let partition = client.partition("partition:m").quota(100 * KB);
    let partition = partition.prefix("m:").on_conflict(Strategy::Merge);
    partition.create().await.unwrap();
    for (key, merges) in [("m:1", true), ("other:1", false)] {
        let base = client.set(key, r#"{"a":1}"#, SetOptions::new());
        let base = base.await.unwrap();
        let theirs = json!({"a": 1, "b": 2});
        let written = client.set_json(key, &theirs, SetOptions::new()).await;
        written.unwrap();
        let mine = json!({"a": 3});
        let merged = client.merge(key, base, &mine, MergeOptions::as_partitioned());
        match merged.await.unwrap() {
            Merged::Applied(_, How::Merged) => assert!(merges, "{key}"),
            Merged::Conflict(_) => assert!(!merges, "{key}"),
            other => panic!("{key}: {other:?}"),
        }
        // What is named goes before what the partition says.
        let named = MergeOptions::new(Strategy::Reject);
        let named = client.merge(key, base, &mine, named).await.unwrap();
        assert!(matches!(named, Merged::Conflict(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_every_node_knows_every_partition() {
    let cluster = Cluster::start(3, 0);
    let urls = cluster.urls();
    let config = Config::with_urls(urls.iter().map(String::as_str)).unwrap();
    let client = Client::connect(config.cluster(true)).await.unwrap();
    let mut homes = BTreeSet::new();
    for n in 0..12 {
        let name = format!("partition:{n:02}");
        homes.insert(cluster.node_for(&name).port());
        let partition = client.partition(&name).quota(KB);
        partition.create().await.unwrap();
        partition.clone().quota(100 * KB).alter().await.unwrap();
        assert_eq!(partition.info().await.unwrap().quota, 100 * KB);
    }
    assert_eq!(homes.len(), 3, "the partitions lie on all nodes");
    for node in &cluster.nodes {
        let errors = node.conn().info("errorstats");
        let sent_on = errors.contains_key("errorstat_MOVED");
        assert!(
            !sent_on,
            "each was asked of the node that has it: {errors:?}"
        );
    }
    let all = async || {
        let all = client.partitions(None).await.unwrap();
        let defined = all.iter().all(|p| p.quota == 100 * KB);
        (all.len() == 12 && defined).then_some(all)
    };
    let all = eventually("a node knows all partitions", all).await;
    assert_eq!(all[3].text(), "partition:03");
    let whole = async || {
        let pool = client.pool().await.unwrap();
        (pool.reserved == 1200 * KB && pool.partitions == 12).then_some(())
    };
    eventually("the pool is that of the cluster", whole).await;

    // Keys of all nodes are charged to one partition, wherever that was made.
    let name = "partition:00";
    let mut nodes = BTreeSet::new();
    for n in 0..12 {
        let key = format!("k:{n}");
        nodes.insert(cluster.node_for(&key).port());
        let options = || SetOptions::new().partition(name);
        let set = async || match client.set(&key, "v", options()).await {
            Ok(version) => Some(version),
            // The node has not heard of it yet.
            Err(error) if error.code() == Some(Code::NotFound) => None,
            Err(error) => panic!("{key}: {error}"),
        };
        eventually("a node hears of the partition", set).await;
    }
    assert_eq!(nodes.len(), 3, "the keys lie on all nodes");
    let counted = async || {
        let info = client.partition(name).info().await.unwrap();
        (info.keys == 12).then_some(info)
    };
    let info = eventually("the node of the partition hears of all keys", counted).await;
    assert!(info.keys_here < 12 && info.used_here < info.used);
    assert_eq!(client.partition(name).drop_forced().await.unwrap(), 12);
    let gone = client.partition(name).info().await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
}

/// One of each, for the test that no command goes without a method.
pub async fn made_shown_and_dropped(client: &Client) {
    let partition = client.partition("partition:methods");
    partition.clone().quota(KB).create().await.unwrap();
    partition.clone().quota(2 * KB).alter().await.unwrap();
    let info = partition.info().await.unwrap();
    assert_eq!(client.partitions(None).await.unwrap(), [info]);
    assert_eq!(client.pool().await.unwrap().reserved, 2 * KB);
    partition.drop_it().await.unwrap();
}
