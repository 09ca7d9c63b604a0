//! One subscription over everything: what it tells is what was written, or it says what it has missed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_client::{
    Checkpoint, Client, Code, Config, Event, Gap, GapCause, HistoryOptions, KeyEvent, ManyOptions,
    SetOptions, Subscription, Version, WatchItem, WatchOptions,
};

use crate::harness::{eventually, slot_of, Cluster, ClusterSetup, Server, Stop, PATIENCE};
use crate::proxy::Proxy;
use crate::{client, config};

/// How long nothing may come that is awaited. The machine may be busy; what hangs takes longer than this.
const LATE: Duration = Duration::from_secs(60);

/// How many events the long tests are to see: `MAOS_TEST_EVENTS`, or fewer.
fn events_wanted() -> u64 {
    let asked = std::env::var("MAOS_TEST_EVENTS").ok();
    asked.map_or(20_000, |n| n.parse().expect("MAOS_TEST_EVENTS is a number"))
}

async fn next(changes: &mut Subscription) -> WatchItem {
    let item = tokio::time::timeout(LATE, changes.next()).await;
    item.expect("something comes").expect("it goes on").unwrap()
}

#[track_caller]
fn event(item: WatchItem) -> KeyEvent {
    match item {
        WatchItem::Event(event) => event,
        other => panic!("{other:?} is no event"),
    }
}

/// The name of a key that an event is about.
fn name(event: &KeyEvent) -> String {
    let key = event.key.as_deref().expect("a key");
    String::from_utf8_lossy(key).into_owned()
}

/// What a subscription has told.
#[derive(Default)]
struct Heard {
    /// The versions of each key, in the order in which they came.
    versions: BTreeMap<String, Vec<Version>>,
    gaps: Vec<Gap>,
    events: u64,
}

impl Heard {
    fn hear(&mut self, item: WatchItem) {
        match item {
            WatchItem::Event(event) => {
                self.events += 1;
                // A key that has moved makes no version.
                if event.event != Event::Restored {
                    let key = name(&event);
                    self.versions.entry(key).or_default().push(event.version);
                }
            }
            WatchItem::Gap(gap) => self.gaps.push(gap),
            other => panic!("{other:?} was not asked for"),
        }
    }

    /// Ordered and unique: the versions of a key rise. Where a failover lost some, a gap says so.
    #[track_caller]
    fn is_ordered(&self) {
        if self.gaps.iter().any(|gap| gap.cause == GapCause::Diverged) {
            return;
        }
        for (key, versions) in &self.versions {
            let bad = versions.windows(2).find(|pair| pair[0] >= pair[1]);
            assert_eq!(bad, None, "{key}");
        }
    }

    /// Reliable: all that is in the histories was told, and nothing else, or a gap says so.
    #[track_caller]
    fn is_all_of(&self, histories: &BTreeMap<String, Vec<Version>>) {
        self.is_ordered();
        if self.gaps.is_empty() {
            for (key, made) in histories {
                let none = vec![];
                let told = self.versions.get(key).unwrap_or(&none);
                let missing: Vec<_> = made.iter().filter(|v| !told.contains(v)).collect();
                let invented: Vec<_> = told.iter().filter(|v| !made.contains(v)).collect();
                assert!(
                    missing.is_empty() && invented.is_empty(),
                    "{key}: of {} versions {missing:?} were not told, {invented:?} are not kept",
                    made.len()
                );
            }
            return;
        }
        // What stands at the end was told all the same.
        for (key, made) in histories {
            let told = self.versions.get(key).and_then(|told| told.last());
            assert_eq!(told, made.last(), "{key} after {:?}", self.gaps);
        }
    }
}

/// Writers of a few keys, until they are told to stop.
struct Writers {
    client: Client,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

const KEYS: u64 = 60;

impl Writers {
    fn start(client: &Client, prefix: &'static str) -> Writers {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let writer = |n: u64| {
            let (client, stop, written) = (client.clone(), stop.clone(), Arc::clone(&written));
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let key = fastrand::u64(0..KEYS);
                    let by = format!("writer-{n}");
                    let value = written.load(Relaxed).to_string();
                    let done = match fastrand::u8(0..8) {
                        // Two keys of one slot, in one step.
                        0 => {
                            let keys = ["a", "b"].map(|k| format!("{prefix}{{{key}}}{k}"));
                            let pairs = [(&keys[0], &value), (&keys[1], &value)];
                            client.mset(&pairs, ManyOptions::new()).await.map(|_| 2)
                        }
                        1 => {
                            let key = format!("{prefix}{{{key}}}");
                            client.del(&key, SetOptions::new().by(by)).await.map(|_| 1)
                        }
                        _ => {
                            let key = format!("{prefix}{{{key}}}");
                            client
                                .set(&key, value, SetOptions::new().by(by))
                                .await
                                .map(|_| 1)
                        }
                    };
                    // While a master fails there is nobody to write to.
                    written.fetch_add(done.unwrap_or(0), Relaxed);
                }
            })
        };
        let tasks = (0..8).map(writer).collect();
        Writers {
            client: client.clone(),
            stop,
            written,
            tasks,
        }
    }

    /// Waits until so many more were written.
    async fn wait_for(&self, more: u64) {
        let enough = self.written.load(Relaxed) + more;
        while self.written.load(Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends them. Gives the versions of all keys, as their histories have them.
    async fn end(self, prefix: &str) -> BTreeMap<String, Vec<Version>> {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let mut all = BTreeMap::new();
        for n in 0..KEYS {
            for part in ["", "a", "b"] {
                let key = format!("{prefix}{{{n}}}{part}");
                let history = self
                    .client
                    .history(&key, HistoryOptions::new().count(100_000));
                let history = history.await.unwrap();
                let versions: Vec<_> = history.iter().map(|r| r.version).collect();
                if !versions.is_empty() {
                    all.insert(key, versions);
                }
            }
        }
        all
    }
}

/// Hears until everything stands as the histories say.
async fn hear_to_the_end(
    changes: &mut Subscription,
    heard: &mut Heard,
    histories: &BTreeMap<String, Vec<Version>>,
) {
    let is_there = |heard: &Heard| {
        let mut keys = histories.iter();
        keys.all(|(key, made)| {
            let told = heard.versions.get(key).and_then(|told| told.last());
            told >= made.last()
        })
    };
    while !is_there(heard) {
        heard.hear(next(changes).await);
    }
    // Nothing comes twice.
    let more = tokio::time::timeout(Duration::from_millis(300), changes.next());
    if let Ok(Some(item)) = more.await {
        heard.hear(item.unwrap());
    }
}

fn long_history() -> [(&'static str, &'static str); 3] {
    [
        ("maos.changes-max-bytes", "256mb"),
        ("maos.history-max-versions", "100000"),
        ("maos.history-max-bytes", "1gb"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_happens_after_it_has_begun_is_told_in_order() {
    let server = Server::start();
    let client = client(&server).await;
    let mut all = client
        .watch(&["app:*", "b?"], &WatchOptions::new().values())
        .await
        .unwrap();
    let options = WatchOptions::new()
        .types(&[Event::Deleted, Event::Created])
        .not_by("me");
    let mut some = client.watch(&["app:*"], &options).await.unwrap();
    let one = client
        .set("app:1", "one", SetOptions::new().by("me"))
        .await
        .unwrap();
    client.set("other", "x", SetOptions::new()).await.unwrap();
    let two = client.set("app:1", "two", SetOptions::new()).await.unwrap();
    let gone = client.del("app:1", SetOptions::new()).await.unwrap();
    let three = client.set("b1", "x", SetOptions::new()).await.unwrap();
    let told = event(next(&mut all).await);
    assert_eq!(
        (told.event, told.version, told.previous),
        (Event::Created, one, None)
    );
    assert_eq!(
        (told.value.as_deref(), told.agent.as_deref()),
        (Some(&b"one"[..]), Some("me"))
    );
    let told = event(next(&mut all).await);
    assert_eq!(
        (told.event, told.version, told.previous),
        (Event::Updated, two, Some(one))
    );
    let told = event(next(&mut all).await);
    assert_eq!((told.event, told.version), (Event::Deleted, gone));
    let told = event(next(&mut all).await);
    assert_eq!((name(&told), told.version), ("b1".into(), three));
    assert_eq!(event(next(&mut some).await).event, Event::Deleted);
    server.conn().run("FLUSHALL").ok();
    assert_eq!(event(next(&mut all).await).event, Event::Flushed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_lose_and_repeat_nothing() {
    let server = Server::with(&long_history());
    let direct = client(&server).await;
    let proxy = Proxy::start(server.port()).await;
    let through = Config::new(&proxy.url()).unwrap();
    let through = Client::connect(through).await.unwrap();
    let mut changes = through.watch(&["w:*"], &WatchOptions::new()).await.unwrap();
    let mut again = through
        .watch(&["w:*"], &WatchOptions::new().count(50))
        .await
        .unwrap();
    proxy.cut_after(200_000);
    server.conn().run("CLIENT KILL TYPE normal SKIPME yes");
    let writers = Writers::start(&direct, "w:");
    let wanted = events_wanted();
    let (mut heard, mut resumed) = (Heard::default(), Heard::default());
    let mut resumptions = 0;
    // One hears on; the other gives up now and then, and goes on from what it has written down.
    let hears = async {
        while heard.events < wanted {
            heard.hear(next(&mut changes).await);
        }
    };
    let resumes = async {
        while resumed.events < wanted {
            for _ in 0..fastrand::u64(1..2_000) {
                resumed.hear(next(&mut again).await);
            }
            // In the midst of an answer it would hear the beginning of it again.
            let before = again.checkpoint().clone();
            while *again.checkpoint() == before {
                resumed.hear(next(&mut again).await);
            }
            let kept = again.checkpoint().to_string();
            let last = kept.parse::<Checkpoint>().unwrap();
            again = through
                .watch_from(&["w:*"], &WatchOptions::new().count(50), &last)
                .await
                .unwrap();
            resumptions += 1;
        }
    };
    tokio::join!(hears, resumes);
    let histories = writers.end("w:").await;
    hear_to_the_end(&mut changes, &mut heard, &histories).await;
    heard.is_all_of(&histories);
    assert_eq!(heard.gaps, []);
    assert!(
        proxy.cuts() > 5 && resumptions > 3,
        "{} {resumptions}",
        proxy.cuts()
    );
    // What was taken of an answer that had not been taken whole comes again: the same, in the same order.
    for versions in resumed.versions.values_mut() {
        let mut seen = BTreeSet::new();
        versions.retain(|version| seen.insert(*version));
    }
    hear_to_the_end(&mut again, &mut resumed, &histories).await;
    for versions in resumed.versions.values_mut() {
        let mut seen = BTreeSet::new();
        versions.retain(|version| seen.insert(*version));
    }
    resumed.is_all_of(&histories);
    assert_eq!(resumed.gaps, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_what_comes_after_it_is_all_there_is() {
    // What a version held is looked up when its key may have been written hundreds of times since.
    let server = Server::with(&long_history());
    let client = client(&server).await;
    for n in 0..3_000 {
        client
            .set(format!("s:old{n}"), "x", SetOptions::new())
            .await
            .unwrap();
    }
    client.set("other", "x", SetOptions::new()).await.unwrap();
    let writers = Writers::start(&client, "s:");
    for _ in 0..5 {
        let mut mirror: HashMap<Vec<u8>, Option<Vec<u8>>> = HashMap::new();
        let mut changes = client
            .watch_from_snapshot("s:", &WatchOptions::new().values().count(7))
            .await
            .unwrap();
        let mut versions: HashMap<Vec<u8>, Version> = HashMap::new();
        loop {
            match next(&mut changes).await {
                WatchItem::Present(state) => {
                    assert!(state.key.starts_with(b"s:"));
                    let first = versions.insert(state.key.clone(), state.version);
                    assert_eq!(first, None, "{:?} is told twice", state.key);
                    mirror.insert(state.key, state.value);
                }
                WatchItem::SnapshotEnd => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(mirror.len() >= 3_000);
        let last = client
            .set("s:last", fastrand::u64(..).to_string(), SetOptions::new())
            .await
            .unwrap();
        loop {
            let event = event(next(&mut changes).await);
            let key = event.key.clone().unwrap();
            let before = versions.insert(key.clone(), event.version);
            assert!(before < Some(event.version), "{event:?} after {before:?}");
            let is_last = event.version == last;
            assert!(!event.is_gone, "{event:?}");
            mirror.insert(key, event.value);
            if is_last {
                break;
            }
        }
        // All that stood before the last write is in the mirror, as it was then.
        for n in 0..KEYS {
            let key = format!("s:{{{n}}}");
            let at = HistoryOptions::new()
                .to(last)
                .count(1)
                .newest_first()
                .values();
            let history = client.history(&key, at).await.unwrap();
            let then = history.into_iter().next().and_then(|r| r.value);
            let mirrored = mirror.get(key.as_bytes()).cloned().flatten();
            assert_eq!(mirrored, then, "{key}");
        }
    }
    writers.end("s:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_is_told_what_was_missed_and_slows_nobody() {
    let mut server = Server::with(&[("maos.changes-max-bytes", "200kb")]);
    let client = client(&server).await;
    let mut slow = client
        .watch(&["w:*"], &WatchOptions::new().count(100))
        .await
        .unwrap();
    let mut quick = client.watch(&["w:*"], &WatchOptions::new()).await.unwrap();
    let mut heard = 0;
    client
        .set("w:expires", "x", SetOptions::new())
        .await
        .unwrap();
    for n in 0..20_000u64 {
        let key = format!("w:{}", n % 500);
        if n % 100 == 0 && n > 1_000 {
            // Of those that were written since.
            let key = format!("w:{}", (n + 7) % 500);
            client.del(&key, SetOptions::new()).await.unwrap();
        } else {
            client
                .set(&key, n.to_string(), SetOptions::new())
                .await
                .unwrap();
        }
        while heard < n {
            event(next(&mut quick).await);
            heard += 1;
        }
    }
    let info = client.info(&["maos"]).await.unwrap().concat();
    let bytes = info
        .lines()
        .find_map(|l| l.strip_prefix("maos_changes_bytes:"))
        .unwrap();
    assert!(bytes.trim().parse::<u64>().unwrap() <= 200 << 10, "{bytes}");
    // First what it had asked for, then what it has missed, then what stands there now, then what comes.
    let last = client.set("w:last", "x", SetOptions::new()).await.unwrap();
    let mut gaps = vec![];
    let mut seen: HashMap<String, Version> = HashMap::new();
    loop {
        match next(&mut slow).await {
            WatchItem::Gap(gap) => gaps.push(gap),
            item => {
                let event = event(item);
                let before = seen.insert(name(&event), event.version);
                assert!(before < Some(event.version), "{event:?} after {before:?}");
                if event.version == last {
                    break;
                }
            }
        }
    }
    assert!(!gaps.is_empty());
    assert!(
        gaps.iter()
            .all(|gap| gap.cause == GapCause::Compacted && gap.caught_up),
        "{gaps:?}"
    );
    for n in 0..500 {
        let key = format!("w:{n}");
        let history = client.history(&key, HistoryOptions::new()).await.unwrap();
        assert_eq!(seen.get(&key), history.last().map(|r| &r.version), "{key}");
    }
    // What the log holds of what was caught up is not told again.
    let last = client.set("w:final", "x", SetOptions::new()).await.unwrap();
    loop {
        let event = event(next(&mut slow).await);
        let before = seen.insert(name(&event), event.version);
        assert!(before < Some(event.version), "{event:?} after {before:?}");
        if event.version == last {
            break;
        }
    }
    // Without an index there is no catching up, and that is said.
    server.conn().run("CONFIG SET maos.range-index no").ok();
    let kept = slow.checkpoint().clone();
    drop(slow);
    for n in 0..10_000u64 {
        client
            .set(format!("w:{}", n % 500), "y", SetOptions::new())
            .await
            .unwrap();
    }
    let mut late = client
        .watch_from(&["w:*"], &WatchOptions::new(), &kept)
        .await
        .unwrap();
    match next(&mut late).await {
        WatchItem::Gap(gap) => assert!(!gap.caught_up && gap.cause == GapCause::Compacted),
        other => panic!("{other:?}"),
    }
    event(next(&mut late).await);
    // What a crash lost is told too.
    server.restart(Stop::NoSave);
    client.set("w:new", "x", SetOptions::new()).await.unwrap();
    let diverged = loop {
        if let WatchItem::Gap(gap) = next(&mut late).await {
            break gap;
        }
    };
    assert_eq!(diverged.cause, GapCause::Diverged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_watched_is_refused() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("ACL SETUSER reader on >secret +@all ~app:*").ok();
    let reader = config(&server).username("reader").password("secret");
    let reader = Client::connect(reader).await.unwrap();
    let options = WatchOptions::new();
    let refused = reader.watch(&["other:*"], &options).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoPerm));
    let refused = reader
        .watch_from_snapshot("other:", &options)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoPerm));
    let refused = reader.watch(&["app:["], &options).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Err), "{refused}");
    let mut changes = reader.watch(&["app:*", "o*"], &options).await.unwrap();
    conn.run("MAOS.SET other:1 v").int();
    conn.run("MAOS.SET app:1 v").int();
    assert_eq!(name(&event(next(&mut changes).await)), "app:1");
    // Rights that are taken away end it.
    conn.run("ACL SETUSER reader resetkeys ~nothing").ok();
    let ended = tokio::time::timeout(LATE, changes.next()).await.unwrap();
    let ended = ended.unwrap().unwrap_err();
    assert_eq!(ended.code(), Some(Code::NoPerm), "{ended}");
    assert!(changes.next().await.is_none());
    conn.run("CONFIG SET maos.changes-max-bytes 0").ok();
    let other = client(&server).await;
    let refused = other.watch(&["*"], &options).await.unwrap_err();
    assert!(
        refused.to_string().contains("maos.changes-max-bytes"),
        "{refused}"
    );
    for bad in [
        "nonsense",
        "=5-3",
        "a=x",
        "a=5-3@x",
        "a=5-3@9-2",
        "a=5-3@0+16384",
    ] {
        assert!(bad.parse::<Checkpoint>().is_err(), "{bad}");
    }
    for text in [
        "",
        "gone=5-3",
        "a=5-3@0-8191+9000,b=7-3@8192-8999+9001-16383",
    ] {
        assert_eq!(text.parse::<Checkpoint>().unwrap().to_string(), text);
    }
    let known: Checkpoint = "gone=5-3".parse().unwrap();
    conn.run("CONFIG SET maos.changes-max-bytes 1mb").ok();
    let mut changes = other.watch_from(&["*"], &options, &known).await.unwrap();
    match next(&mut changes).await {
        WatchItem::Gap(gap) => assert_eq!(gap.cause, GapCause::Unreachable),
        other => panic!("{other:?}"),
    }
}

async fn of_cluster(cluster: &Cluster) -> Client {
    let urls = cluster.urls();
    let config = Config::with_urls(urls.iter().map(String::as_str)).unwrap();
    let config = config
        .cluster(true)
        .deadline(Duration::from_secs(60))
        .attempts(1_000);
    Client::connect(config).await.unwrap()
}

/// What happens to a cluster, a step at a time; whether the step may lose writes.
fn happen(cluster: &mut Cluster, loses: bool) {
    let at = |key: u64, cluster: &Cluster| {
        let key = format!("w:{{{key}}}");
        let port = cluster.node_for(&key).port();
        (slot_of(key.as_bytes()), port)
    };
    let (slot, port) = at(fastrand::u64(0..KEYS), cluster);
    match (loses, fastrand::u8(0..4)) {
        (true, _) => {
            let master = cluster.nodes.iter().position(|n| n.port() == port);
            let master = master.expect("a node of this cluster");
            cluster.nodes[master].kill();
            let heir = || at_port(cluster, slot).is_some_and(|now| now != port);
            eventually(3 * PATIENCE, "a replica takes over", heir);
            cluster.nodes[master].start_again();
        }
        (_, 0..2) => {
            // To a master that is another one.
            let others = cluster.nodes.iter().filter(|n| n.port() != port);
            let others: Vec<u16> = others.map(Server::port).collect();
            let masters = masters(cluster);
            let others: Vec<u16> = others.into_iter().filter(|p| masters.contains(p)).collect();
            let to = others[fastrand::usize(0..others.len())];
            cluster.move_slot(slot, cluster.node_at(to));
        }
        (_, 2) => {
            let heir = cluster.replica_now(cluster.node_at(port)).port();
            let mut conn = cluster.node_at(heir).conn();
            let mut asked: Option<Instant> = None;
            let took_over = || {
                // The server gives up what takes it more than five seconds.
                if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(6)) {
                    let _ = conn.run("CLUSTER FAILOVER");
                    asked = Some(Instant::now());
                }
                at_port(cluster, slot) == Some(heir)
            };
            eventually(3 * PATIENCE, "the replica takes over", took_over);
        }
        _ => {
            let kill = "CLIENT KILL TYPE normal SKIPME yes";
            cluster.nodes.iter().for_each(|n| drop(n.conn().run(kill)));
        }
    }
    cluster.wait_ok();
}

/// The nodes that have slots.
fn masters(cluster: &Cluster) -> BTreeSet<u16> {
    let mut conn = cluster.nodes[0].conn();
    let slots = conn.run("CLUSTER SLOTS");
    let port = |range: &crate::harness::Reply| range.array()[2].array()[1].int();
    let ports = slots.array().iter().map(port);
    ports
        .map(|port| u16::try_from(port).expect("a port"))
        .collect()
}

/// Who has a slot, by the word of a node that lives.
fn at_port(cluster: &Cluster, slot: u16) -> Option<u16> {
    let slot = i64::from(slot);
    cluster.nodes.iter().find_map(|node| {
        let mut conn = crate::harness::Conn::try_open(node.port()).ok()?;
        let info = conn.try_cmd(&["CLUSTER", "SLOTS"]).ok()?;
        if conn.run("INFO replication").text().contains("role:slave") {
            return None;
        }
        let ranges = info.array().iter();
        let mut of_slot =
            ranges.filter(|r| (r.array()[0].int()..=r.array()[1].int()).contains(&slot));
        let port = of_slot.next()?.array()[2].array()[1].int();
        u16::try_from(port)
            .ok()
            .filter(|port| crate::harness::Conn::try_open(*port).is_ok())
    })
}

async fn over_a_cluster(loses: bool, steps: usize, events: u64) {
    let mut setup = ClusterSetup::new(3, 1);
    setup.node = setup.node.with(&long_history());
    let mut cluster = setup.start();
    let client = of_cluster(&cluster).await;
    let mut all = client.watch(&["w:*"], &WatchOptions::new()).await.unwrap();
    let mut slow = client
        .watch(&["w:*"], &WatchOptions::new().count(20))
        .await
        .unwrap();
    let writers = Writers::start(&client, "w:");
    writers.wait_for(events / 4).await;
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    let happens = tokio::task::spawn_blocking(move || {
        for _ in 0..steps {
            happen(&mut cluster, loses);
            std::thread::sleep(Duration::from_millis(300));
        }
        is_over.store(true, Relaxed);
        cluster
    });
    let (mut heard, mut slowly) = (Heard::default(), Heard::default());
    let hears = async {
        while heard.events < events || !over.load(Relaxed) {
            heard.hear(next(&mut all).await);
        }
    };
    let dawdles = async {
        while slowly.events < events / 2 || !over.load(Relaxed) {
            slowly.hear(next(&mut slow).await);
            if fastrand::u64(0..200) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::join!(hears, dawdles);
    let _cluster = happens.await.unwrap();
    let histories = writers.end("w:").await;
    for (changes, heard) in [(&mut all, &mut heard), (&mut slow, &mut slowly)] {
        hear_to_the_end(changes, heard, &histories).await;
        if !loses {
            assert_eq!(heard.gaps, []);
        }
        heard.is_all_of(&histories);
        // Atomic: what one commit has done to two keys is told of both.
        for n in 0..KEYS {
            let of = |part: &str| {
                let key = format!("w:{{{n}}}{part}");
                heard.versions.get(&key).cloned().unwrap_or_default()
            };
            if heard.gaps.is_empty() {
                assert_eq!(of("a"), of("b"), "{n}");
            }
        }
    }
}

/// Filtered, ordered, unique, atomic, reliable, resumable: over slots that move, masters that hand over, connections that
/// are cut. Nothing is lost by that, so there is no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_subscription_follows_a_cluster_that_changes() {
    over_a_cluster(false, 12, events_wanted()).await;
}

/// Whoever goes on after slots have moved hears of them in order, though the shard that had them has the most to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumption_hears_of_slots_that_moved_meanwhile_in_order() {
    let mut setup = ClusterSetup::new(3, 0);
    setup.node = setup.node.with(&long_history());
    let cluster = setup.start();
    let client = of_cluster(&cluster).await;
    let options = WatchOptions::new().count(10);
    let begun = client.watch(&["*"], &options).await.unwrap();
    let checkpoint = begun.checkpoint().to_string();
    drop(begun);
    let (away, back, anew) = ("w:{7}", "w:{8}", "w:{9}");
    let home = |key: &str| cluster.node_for(key).port();
    let mut made: BTreeMap<&str, Vec<Version>> = BTreeMap::new();
    let mut write = async |key, times: u64| {
        for n in 0..times {
            let set = client.set(key, n.to_string(), SetOptions::new());
            made.entry(key).or_default().push(set.await.unwrap());
        }
    };
    let move_to = |key: &str, port: u16| {
        tokio::task::block_in_place(|| {
            cluster.move_slot(slot_of(key.as_bytes()), cluster.node_at(port));
        });
    };
    let others = |key: &str| {
        let ports = cluster.nodes.iter().map(Server::port);
        ports
            .filter(|port| *port != home(key))
            .collect::<Vec<u16>>()
    };
    // What keeps the readers of the logs that they leave.
    for key in [away, anew] {
        let mut tags = (10..).map(|n| format!("{{{n}}}"));
        let tag = tags.find(|tag| home(tag) == home(key)).unwrap();
        for n in 0..1_000_u64 {
            let key = format!("{tag}{n}");
            client.set(&key, "v", SetOptions::new()).await.unwrap();
        }
    }
    write(away, 30).await;
    write(back, 30).await;
    write(anew, 30).await;
    // So it has no version that could come with it.
    let deleted = cluster.node_for(anew).conn().run("DEL w:{9}").int();
    assert_eq!(deleted, 1);
    move_to(anew, others(anew)[0]);
    write(anew, 30).await;
    let (first, second) = (others(away)[0], others(away)[1]);
    move_to(away, first);
    write(away, 30).await;
    move_to(away, second);
    write(away, 30).await;
    let (mine, other) = (home(back), others(back)[0]);
    move_to(back, other);
    write(back, 30).await;
    move_to(back, mine);
    write(back, 30).await;
    let checkpoint: Checkpoint = checkpoint.parse().unwrap();
    let resumed = client.watch_from(&["*"], &options, &checkpoint).await;
    let (mut resumed, mut heard) = (resumed.unwrap(), Heard::default());
    let made = made.into_iter().map(|(key, made)| (key.to_owned(), made));
    let made: BTreeMap<String, Vec<Version>> = made.collect();
    let count = |heard: &Heard| {
        made.keys()
            .filter_map(|key| heard.versions.get(key))
            .map(Vec::len)
            .sum::<usize>()
    };
    while count(&heard) < 241 {
        heard.hear(next(&mut resumed).await);
    }
    hear_to_the_end(&mut resumed, &mut heard, &made).await;
    assert_eq!(heard.gaps, []);
    for (key, made) in &made {
        let mut told = heard.versions[key].clone();
        if key == anew {
            let deleted = told.remove(30);
            assert!(!made.contains(&deleted), "{told:?}");
        }
        assert_eq!(&told, made, "{key}");
    }
    // It knows who has them now.
    let kept = resumed.checkpoint().to_string();
    let mut again = client
        .watch_from(&["w:*"], &options, &kept.parse().unwrap())
        .await
        .unwrap();
    let last = client.set(away, "last", SetOptions::new()).await.unwrap();
    assert_eq!(event(next(&mut again).await).version, last);
}

/// The shard that has a slot by the word of a checkpoint.
fn shard_in(checkpoint: &Checkpoint, slot: u16) -> Option<String> {
    let text = checkpoint.to_string();
    text.split(',').find_map(|shard| {
        let (cursor, ranges) = shard.split_once('@')?;
        let has = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
        };
        let name = cursor.split('=').next()?;
        ranges.split('+').any(has).then(|| name.to_owned())
    })
}

/// A checkpoint says which slots were whose when it was taken, not when the subscription began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_knows_whose_slots_were_whose() {
    let mut setup = ClusterSetup::new(3, 0);
    setup.node = setup.node.with(&long_history());
    let cluster = setup.start();
    let client = of_cluster(&cluster).await;
    let options = WatchOptions::new().count(10);
    let key = "w:{9}";
    let slot = slot_of(key.as_bytes());
    let origin = cluster.node_for(key);
    let other = cluster.another(origin);
    let move_to = |to: &Server| tokio::task::block_in_place(|| cluster.move_slot(slot, to));
    let mut changes = client.watch(&["*"], &options).await.unwrap();
    let at_first = shard_in(changes.checkpoint(), slot);
    assert!(at_first.is_some());
    move_to(other);
    let version = client.set(key, "v", SetOptions::new()).await.unwrap();
    assert_eq!(event(next(&mut changes).await).version, version);
    let start = Instant::now();
    while shard_in(changes.checkpoint(), slot) == at_first {
        assert!(start.elapsed() < LATE, "{}", changes.checkpoint());
        let _ = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
    }
    let kept = changes.checkpoint().clone();
    drop(changes);
    let mut made = vec![];
    let mut tags = (10..).map(|n| format!("{{{n}}}"));
    let tag = tags.find(|tag| cluster.node_for(tag).port() == other.port());
    for n in 0..1_000_u64 {
        let busy = format!("{}{n}", tag.as_ref().unwrap());
        client.set(&busy, "v", SetOptions::new()).await.unwrap();
    }
    for there in [other, origin] {
        for n in 0..30_u64 {
            let set = client.set(key, n.to_string(), SetOptions::new());
            made.push(set.await.unwrap());
        }
        if there.port() == other.port() {
            assert_eq!(other.conn().run("DEL w:{9}").int(), 1);
            move_to(origin);
        }
    }
    let mut again = client.watch_from(&["*"], &options, &kept).await.unwrap();
    let mut told = vec![];
    while told.len() < 61 {
        let event = event(next(&mut again).await);
        if name(&event) == key {
            told.push(event);
        }
    }
    assert_eq!(told.remove(30).event, Event::Deleted);
    let told: Vec<Version> = told.iter().map(|event| event.version).collect();
    assert_eq!(told, made);
}

/// The keys of all masters, then the word that these were all, then what happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_cluster_ends_once_all_masters_have_told_theirs() {
    let cluster = Cluster::start(3, 0);
    let client = of_cluster(&cluster).await;
    let mut all = BTreeSet::new();
    for n in 0..3_000 {
        // Most of them at one master, which takes the longest.
        let tag = if n % 30 == 0 { n } else { 1 };
        let key = format!("s:{{{tag}}}{n}");
        client.set(&key, "v", SetOptions::new()).await.unwrap();
        all.insert(key.into_bytes());
    }
    let snapshot = client.watch_from_snapshot("s:", &WatchOptions::new()).await;
    let mut snapshot = snapshot.unwrap();
    let version = client.set("s:new", "v", SetOptions::new()).await.unwrap();
    let mut present = BTreeSet::new();
    loop {
        match next(&mut snapshot).await {
            WatchItem::Present(key) => assert!(present.insert(key.key)),
            WatchItem::SnapshotEnd => break,
            other => panic!("{other:?} before the end of the snapshot"),
        }
    }
    // It was there already, or it comes.
    if !present.remove(&b"s:new"[..]) {
        assert_eq!(event(next(&mut snapshot).await).version, version);
    }
    assert_eq!(present, all);
    let version = client.set("s:new", "w", SetOptions::new()).await.unwrap();
    assert_eq!(event(next(&mut snapshot).await).version, version);
}

/// A master that gets its first slots while somebody listens is heard from its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_comes_is_heard_from_its_beginning() {
    let cluster = Cluster::start(4, 0);
    let client = of_cluster(&cluster).await;
    // The last of them has no slots.
    let (first, last) = (cluster.master(0), cluster.master(3));
    tokio::task::block_in_place(|| {
        // Whoever has them first, or it would say so again.
        for node in cluster.nodes.iter().rev() {
            node.conn().run("CLUSTER DELSLOTSRANGE 12288 16383").ok();
        }
        let mut conn = first.conn();
        eventually(PATIENCE, "they are another one's", || {
            conn.run("CLUSTER DELSLOTSRANGE 12288 16383");
            !conn.run("CLUSTER ADDSLOTSRANGE 12288 16383").is_err()
        });
        // So that all believe it.
        conn.run("CLUSTER BUMPEPOCH");
        cluster.wait_ok();
        eventually(PATIENCE, "all know it", || {
            let knows = |node: &Server| {
                let slots = node.conn().run("CLUSTER SLOTS");
                let port = |range: &crate::harness::Reply| range.array()[2].array()[1].int();
                slots
                    .array()
                    .iter()
                    .all(|r| port(r) != i64::from(last.port()))
            };
            cluster.nodes.iter().all(knows)
        });
    });
    let mut tags = (0..).map(|n| format!("n:{{{n}}}"));
    let key = tags.find(|key| slot_of(key.as_bytes()) < 4_000).unwrap();
    let mut changes = client.watch(&["n:*"], &WatchOptions::new()).await.unwrap();
    let mut made = vec![];
    for n in 0..60_u64 {
        if n == 30 {
            let slot = slot_of(key.as_bytes());
            tokio::task::block_in_place(|| cluster.move_slot(slot, last));
        }
        let set = client.set(&key, n.to_string(), SetOptions::new());
        made.push(set.await.unwrap());
    }
    let mut told = vec![];
    while told.len() < made.len() {
        told.push(event(next(&mut changes).await).version);
    }
    assert_eq!(told, made);
}

/// The same with masters that are killed: what their replicas had not heard of is lost, and told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_master_took_with_it_is_a_gap() {
    over_a_cluster(true, 3, events_wanted() / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_over_all_masters_in_order() {
    let cluster = Cluster::start(3, 0);
    let client = of_cluster(&cluster).await;
    let mut all = BTreeSet::new();
    for n in 0..2_500 {
        let key = format!("l:{}", n * 7919 % 10_000);
        client
            .set(&key, n.to_string(), SetOptions::new())
            .await
            .unwrap();
        all.insert(key.into_bytes());
    }
    client.set("other", "x", SetOptions::new()).await.unwrap();
    let mut listed = vec![];
    let mut listing = client.list("l:");
    while let Some(key) = listing.next().await.unwrap() {
        assert_eq!(key.state, None);
        listed.push(key.key);
    }
    assert!(listed.iter().eq(&all));
    let first = &listed[1_000];
    let mut full = client.list("l:").after(first).full();
    let one = full.next().await.unwrap().unwrap();
    assert_eq!(one.key, listed[1_001]);
    let state = one.state.unwrap();
    let now = client.get(&one.key).await.unwrap().unwrap();
    assert_eq!((state.value, state.version), (Some(now.value), now.version));
    let since = client
        .set(&listed[5], "new", SetOptions::new())
        .await
        .unwrap();
    client.del(&listed[9], SetOptions::new()).await.unwrap();
    // Versions of different nodes are of different clocks, which see each other's.
    let mut changed = client.list("l:").since(Version(since.0 - 1)).full();
    let mut keys = vec![];
    while let Some(key) = changed.next().await.unwrap() {
        keys.push((key.key, key.state.unwrap().value));
    }
    assert!(
        keys.contains(&(listed[5].clone(), Some(b"new".to_vec()))),
        "{keys:?}"
    );
}
