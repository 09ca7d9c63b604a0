//! Backups of live servers, through the client and on the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use maos_client::{
    Applied, BackupId, BackupJob, BackupJobKind, BackupJobState, BackupOptions, Client, Code,
    Config, Error, HistoryOptions, RestoreCounts, RestoreOptions, SetOptions,
};
use serde_json::{json, Value};

use crate::harness::{Cluster, ClusterSetup, Server};
use crate::proxy::Proxy;
use crate::{client, config};

const LOOKS: Duration = Duration::from_millis(2);

/// A server whose backups lie in its own directory, unsealed.
pub fn server() -> Server {
    Server::with(&[("maos.backup-dir", "."), ("maos.backup-plain", "yes")])
}

/// Waits until a job has ended.
async fn ended(client: &Client, id: BackupId) -> BackupJob {
    client.wait_for_backup(id, LOOKS).await.unwrap()
}

/// A backup of everything, done.
async fn backup(client: &Client, name: &str) -> BackupId {
    let id = client.create_backup(name, &BackupOptions::new()).await;
    let job = ended(client, id.unwrap()).await;
    assert_eq!(job.state, BackupJobState::Done, "{job:?}");
    job.id
}

/// Brings a backup back; how many keys, and what became of the others.
async fn restored(client: &Client, id: BackupId, options: &RestoreOptions) -> (u64, RestoreCounts) {
    let job = client.restore_backup(id, options).await.unwrap();
    let job = ended(client, job).await;
    assert_eq!(job.state, BackupJobState::Done, "{job:?}");
    (job.keys, job.restore.expect("it is a restore"))
}

async fn value(client: &Client, key: &str) -> Option<String> {
    let found = client.get(key).await.unwrap();
    found.map(|found| found.text().unwrap().to_owned())
}

/// The file of a backup.
fn file_of(dir: &Path, id: BackupId) -> PathBuf {
    let is_it = |path: &PathBuf| path.to_string_lossy().contains(&id.to_string());
    let mut files = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    files.find(is_it).expect("the file of the backup")
}

/// Each method, for both protocols.
pub async fn made_looked_at_and_brought_back(client: &Client) {
    for n in 0..3 {
        let key = format!("backed:{n}");
        client
            .set(key, "v", SetOptions::new().by("me"))
            .await
            .unwrap();
    }
    let options = BackupOptions::new().prefix("backed:").prefix("none:");
    let id = client.create_backup("nightly-1", &options).await.unwrap();
    let job = ended(client, id).await;
    assert_eq!((job.id, &job.name[..]), (id, "nightly-1"));
    assert_eq!(
        (job.kind, job.state),
        (BackupJobKind::Create, BackupJobState::Done)
    );
    assert_eq!((job.keys, job.error, job.restore), (3, None, None));
    assert!(job.bytes > 0 && job.took < Duration::from_secs(3600));
    assert_eq!(client.backup_job(id).await.unwrap().keys, 3);

    let all = client.backups().await.unwrap();
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!((one.info.id, &one.info.name[..]), (id, "nightly-1"));
    assert_eq!(
        (one.info.instant, one.info.key.as_deref()),
        (job.instant, None)
    );
    assert_eq!(one.info.prefixes, [b"backed:".to_vec(), b"none:".to_vec()]);
    assert!(one.size > 0 && one.file.contains("nightly-1"), "{one:?}");
    let found = client.verify_backup(id).await.unwrap();
    assert_eq!((&found.info, found.keys), (&one.info, 3));
    let newest = client.get("backed:2").await.unwrap().unwrap().version;
    assert_eq!((found.newest, found.newest < job.instant), (newest, true));
    assert!(found.bytes > 0 && found.digest != 0);

    let beside = RestoreOptions::new().prefix("backed:").into("copy:");
    let (keys, counts) = restored(client, id, &beside.clone().dry_run()).await;
    assert_eq!((keys, counts.total, counts.passed_over()), (3, 3, 0));
    assert_eq!(value(client, "copy:1").await, None);
    assert_eq!(restored(client, id, &beside).await.0, 3);
    assert_eq!(value(client, "copy:1").await.as_deref(), Some("v"));
    let copy = client.get("copy:1").await.unwrap().unwrap();
    assert_eq!(copy.agent.as_deref(), Some("me"));

    let over = client.cancel_backup(id).await.unwrap_err();
    assert_eq!(over.code(), Some(Code::NotFound));
    client.delete_backup(id).await.unwrap();
    assert_eq!(client.backups().await.unwrap(), []);
    let gone = client.delete_backup(id).await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
}

#[tokio::test]
async fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let server = server();
    let client = client(&server).await;
    let set =
        async |key: &str, value: &str| client.set(key, value, SetOptions::new()).await.unwrap();
    let first = set("k:1", "old").await;
    let ttl = SetOptions::new().ttl(Duration::from_secs(500));
    client.set("k:1", "older", ttl).await.unwrap();
    set("k:2", "same").await;
    set("k:3", "gone").await;
    set("other", "v").await;
    let id = backup(&client, "b").await;
    let after = set("k:1", "new").await;
    server.conn().run("DEL k:3").int();

    let only = RestoreOptions::new().prefix("k:");
    let (keys, counts) = restored(&client, id, &only.clone().dry_run()).await;
    assert_eq!((keys, counts.kept, counts.same, counts.total), (1, 1, 1, 3));
    assert_eq!(value(&client, "k:3").await, None);
    let (keys, counts) = restored(&client, id, &only).await;
    assert_eq!((keys, counts.kept, counts.same, counts.total), (1, 1, 1, 3));
    assert_eq!(value(&client, "k:1").await.as_deref(), Some("new"));
    assert_eq!(value(&client, "k:3").await.as_deref(), Some("gone"));
    let (keys, counts) = restored(&client, id, &only.replace()).await;
    assert_eq!((keys, counts.kept, counts.same), (1, 0, 2));
    assert_eq!(value(&client, "k:1").await.as_deref(), Some("older"));
    // With its history and its expiry, and a version that nobody has seen before.
    let now = client.get("k:1").await.unwrap().unwrap();
    assert!(now.version > after && now.expires_in.is_some(), "{now:?}");
    let history = client.history("k:1", HistoryOptions::new()).await.unwrap();
    assert_eq!(history[0].version, first);
    assert_eq!(value(&client, "other").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn a_backup_goes_on_from_another_one_and_takes_other_types_if_asked() {
    let server = server();
    let client = client(&server).await;
    for n in 0..50 {
        let (key, value) = (format!("k:{n}"), "v".repeat(100));
        client.set(key, value, SetOptions::new()).await.unwrap();
    }
    server.conn().run("RPUSH list a b").int();
    server.conn().run("XADD stream * a b");
    let first = backup(&client, "first").await;
    client
        .set("k:1", "changed", SetOptions::new())
        .await
        .unwrap();
    server.conn().run("DEL k:2").int();
    let id = client
        .create_backup("second", &BackupOptions::new().since(first))
        .await
        .unwrap();
    let job = ended(&client, id).await;
    assert_eq!(job.state, BackupJobState::Done, "{job:?}");
    let whole = backup(&client, "whole").await;
    let all = client.backups().await.unwrap();
    let one = |id| all.iter().find(|one| one.info.id == id).unwrap();
    assert_eq!(
        (one(id).info.parent, one(first).info.parent),
        (Some(first), None)
    );
    assert!(one(id).size < one(whole).size);
    let (found, all_of_it) = (
        client.verify_backup(id).await.unwrap(),
        client.verify_backup(whole).await.unwrap(),
    );
    assert_eq!((found.digest, found.keys), (all_of_it.digest, 49));
    assert_eq!((found.links, all_of_it.links), (2, 1));
    let needed = client.delete_backup(first).await.unwrap_err();
    assert_eq!(needed.code(), Some(Code::Err));
    let other = BackupOptions::new().prefix("k:").since(first);
    let other = client.create_backup("x", &other).await.unwrap_err();
    assert!(other.to_string().contains("prefixes"), "{other}");
    server.conn().run("FLUSHALL").ok();
    assert_eq!(restored(&client, id, &RestoreOptions::new()).await.0, 49);
    assert_eq!(value(&client, "k:1").await.as_deref(), Some("changed"));

    server.conn().run("RPUSH list a b").int();
    server.conn().run("XADD stream * a b");
    let id = client
        .create_backup("native", &BackupOptions::new().native())
        .await
        .unwrap();
    let job = ended(&client, id).await;
    assert_eq!(
        (job.state, job.keys, job.left_out),
        (BackupJobState::Done, 50, 1)
    );
    server.conn().run("DEL list").int();
    let (keys, counts) = restored(&client, id, &RestoreOptions::new()).await;
    assert_eq!((keys, counts.same), (1, 49));
    assert_eq!(server.conn().run("LRANGE list 0 -1").array().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_told_why() {
    let without = Server::start();
    let nowhere = client(&without).await;
    let id = BackupId([0; 16]);
    let off = [
        nowhere
            .create_backup("b", &BackupOptions::new())
            .await
            .map(drop),
        nowhere.backups().await.map(drop),
        nowhere.verify_backup(id).await.map(drop),
        nowhere
            .restore_backup(id, &RestoreOptions::new())
            .await
            .map(drop),
        nowhere.delete_backup(id).await,
    ];
    for refused in off {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Some(Code::Err));
        assert!(refused.to_string().contains("maos.backup-dir"), "{refused}");
    }
    let without_key = Server::with(&[("maos.backup-dir", ".")]);
    let refused = client(&without_key).await;
    let refused = refused
        .create_backup("b", &BackupOptions::new())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("maos.backup-key-file"),
        "{refused}"
    );

    let server = server();
    let client = client(&server).await;
    client.set("k", "v", SetOptions::new()).await.unwrap();
    for name in ["", "Nightly", "../up"] {
        let refused = client
            .create_backup(name, &BackupOptions::new())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some(Code::Err), "{name}");
    }
    let unknown = [
        client.backup_job(id).await.map(drop),
        client.wait_for_backup(id, LOOKS).await.map(drop),
        client.verify_backup(id).await.map(drop),
        client
            .restore_backup(id, &RestoreOptions::new())
            .await
            .map(drop),
        client.cancel_backup(id).await,
        client.delete_backup(id).await,
    ];
    for refused in unknown {
        assert_eq!(refused.unwrap_err().code(), Some(Code::NotFound));
    }
    let id = backup(&client, "b").await;
    let several = RestoreOptions::new().prefix("a").prefix("b").into("c");
    let refused = client.restore_backup(id, &several).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Err));

    // What is damaged is told, and changes nothing.
    let file = file_of(server.dir(), id);
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    server.conn().run("DEL k").int();
    let refused = client.verify_backup(id).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::BadBackup));
    let job = client
        .restore_backup(id, &RestoreOptions::new())
        .await
        .unwrap();
    let job = ended(&client, job).await;
    assert_eq!((job.state, job.keys), (BackupJobState::Failed, 0));
    assert!(job.error.is_some_and(|why| why.contains("damaged")));
    assert_eq!(value(&client, "k").await, None);
    fs::write(&file, b"MAOSBKP").unwrap();
    let refused = client
        .restore_backup(id, &RestoreOptions::new())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(Code::BadBackup));
}

/// Keys that take a while.
fn fill(server: &Server) {
    let lines: Vec<String> = (0..50_000).map(|n| format!("MAOS.SET k{n} {n}")).collect();
    server.conn().pipeline(&lines);
}

#[tokio::test]
async fn what_goes_on_can_be_ended() {
    let server = server();
    fill(&server);
    // Once each: who is told that the server is busy asks again otherwise, and by then it may be done.
    let once = Client::connect(config(&server).attempts(1)).await.unwrap();
    let options = BackupOptions::new();
    let id = once.create_backup("one", &options).await.unwrap();
    for busy in [
        once.create_backup("two", &options).await.map(drop),
        once.delete_backup(id).await,
    ] {
        assert_eq!(busy.unwrap_err().code(), Some(Code::Busy));
    }
    let client = client(&server).await;
    // It waits for the one before.
    let id = client.create_backup("two", &options).await.unwrap();
    client.cancel_backup(id).await.unwrap();
    let job = ended(&client, id).await;
    assert_eq!((job.state, job.error), (BackupJobState::Cancelled, None));
    let left = client.backups().await.unwrap();
    assert!(left.iter().all(|one| one.info.name != "two"), "{left:?}");
    let over = client.cancel_backup(id).await.unwrap_err();
    assert_eq!(over.code(), Some(Code::NotFound));
    // The next one waits until what is left of it is cleared.
    let id = backup(&client, "three").await;
    let job = client
        .restore_backup(id, &RestoreOptions::new())
        .await
        .unwrap();
    client.cancel_backup(job).await.unwrap();
    assert_eq!(ended(&client, job).await.state, BackupJobState::Cancelled);
}

#[tokio::test]
async fn a_backup_is_begun_once_though_its_reply_is_lost() {
    let server = server();
    let direct = client(&server).await;
    let proxy = Proxy::start(server.port()).await;
    let through = Client::connect(Config::new(&proxy.url()).unwrap())
        .await
        .unwrap();
    through.set("k", "v", SetOptions::new()).await.unwrap();
    proxy.swallow_next_reply();
    let lost = through.create_backup("b", &BackupOptions::new()).await;
    match lost {
        Err(Error::Transport {
            applied, attempts, ..
        }) => {
            assert_eq!((applied, attempts), (Applied::Unknown, 1));
        }
        other => panic!("{other:?}"),
    }
    let id = backup(&direct, "c").await;
    let mut names: Vec<_> = direct.backups().await.unwrap();
    assert_eq!(names.len(), 2);
    names.retain(|one| one.info.id != id);
    let id = names[0].info.id;
    // It has a connection again, and one for what takes long.
    through.backups().await.unwrap();
    proxy.swallow_next_reply();
    assert!(through.delete_backup(id).await.is_err());
    assert_eq!(direct.backups().await.unwrap().len(), 1);
    // What only looks is asked again.
    through.backups().await.unwrap();
    proxy.swallow_next_reply();
    assert_eq!(through.backups().await.unwrap().len(), 1);
    assert_eq!(proxy.cuts(), 3);
}

#[tokio::test]
async fn who_has_a_backup_verified_keeps_nobody_else_waiting() {
    let server = server();
    let client = client(&server).await;
    client.set("k", "v", SetOptions::new()).await.unwrap();
    let id = backup(&client, "b").await;
    client.verify_backup(id).await.unwrap();
    client.get("k").await.unwrap();
    let list = server.conn().run("CLIENT LIST");
    let told = list.text().to_ascii_lowercase();
    let last = |name: &str| {
        let word = format!("cmd={name}");
        told.lines().filter(|line| line.contains(&word)).count()
    };
    assert_eq!(
        (last("maos.backup|verify"), last("maos.get")),
        (1, 1),
        "{told}"
    );
}

// ---------------------------------------------------------------------------------------------
// A cluster
// ---------------------------------------------------------------------------------------------

/// A cluster whose nodes have their backups in this directory.
fn cluster(masters: usize, dir: &str) -> Cluster {
    let mut setup = ClusterSetup::new(masters, 0);
    setup.node = setup
        .node
        .set("maos.backup-dir", dir)
        .set("maos.backup-plain", "yes");
    setup.start()
}

async fn client_of(cluster: &Cluster) -> Client {
    let urls = cluster.urls();
    let config = Config::with_urls(urls.iter().map(String::as_str)).unwrap();
    Client::connect(config.cluster(true)).await.unwrap()
}

/// A directory that several nodes share.
struct Shared(PathBuf);

impl Shared {
    fn new(name: &str) -> Shared {
        let name = format!("maos-shared-{name}-{}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        Shared(dir)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_master_makes_its_backup_and_takes_what_is_its_own() {
    let dir = Shared::new("client");
    let cluster = cluster(3, dir.0.to_str().unwrap());
    let client = client_of(&cluster).await;
    let mut versions = vec![];
    for n in 0..90 {
        let key = format!("app:{n}");
        versions.push(client.set(&key, "v", SetOptions::new()).await.unwrap());
    }
    let masters = client.masters().await.unwrap();
    let mut ids: Vec<_> = masters.iter().map(|m| m.id().to_owned()).collect();
    let mut wanted: Vec<_> = cluster
        .nodes
        .iter()
        .map(|n| n.conn().run("CLUSTER MYID").text().to_owned())
        .collect();
    ids.sort();
    wanted.sort();
    assert_eq!(ids, wanted);
    let mut made = vec![];
    for master in &masters {
        assert!(cluster
            .urls()
            .contains(&format!("redis://{}/", master.address())));
        let id = backup(master.client(), "b").await;
        let keys = master.client().backup_job(id).await.unwrap().keys;
        assert!(keys > 0 && keys < 90);
        let info = master.client().verify_backup(id).await.unwrap().info;
        assert_eq!(info.made_on, master.id());
        made.push((id, keys));
    }
    assert_eq!(made.iter().map(|(_, keys)| keys).sum::<u64>(), 90);
    for node in &cluster.nodes {
        node.conn().run("FLUSHALL").ok();
    }
    for (id, keys) in &made {
        let (mut brought, mut sum) = (0, RestoreCounts::default());
        for master in &masters {
            let (keys, counts) = restored(master.client(), *id, &RestoreOptions::new()).await;
            brought += keys;
            sum += &counts;
        }
        assert_eq!(
            (brought, sum.elsewhere, sum.total),
            (*keys, 2 * keys, 3 * keys)
        );
    }
    for (n, before) in versions.iter().enumerate() {
        // Each as it was, under a version that nobody has seen before.
        let found = client.get(format!("app:{n}")).await.unwrap().unwrap();
        assert!(
            (&found.value[..], found.version > *before) == (b"v", true),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn a_cluster_of_one_that_never_met_another_knows_its_master() {
    let cluster = cluster(1, ".");
    let client = client_of(&cluster).await;
    client.set("k", "v", SetOptions::new()).await.unwrap();
    let masters = client.masters().await.unwrap();
    let [master] = &masters[..] else {
        panic!("{masters:?}")
    };
    assert_eq!(
        master.address(),
        format!("127.0.0.1:{}", cluster.nodes[0].port())
    );
    let id = backup(master.client(), "b").await;
    assert_eq!(master.client().backups().await.unwrap()[0].info.id, id);
    // Without a cluster it is the server.
    let server = server();
    let alone = crate::client(&server).await.masters().await.unwrap();
    assert_eq!((alone.len(), alone[0].id()), (1, "server"));
    assert_eq!(alone[0].address(), format!("127.0.0.1:{}", server.port()));
    assert_eq!(alone[0].client().backups().await.unwrap(), []);
}

// ---------------------------------------------------------------------------------------------
// The tool
// ---------------------------------------------------------------------------------------------

/// Runs `maosctl backup` and expects an exit code; gives standard output and standard error.
#[track_caller]
fn tool(url: &str, code: i32, args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .env_remove("MAOS_BACKUP_ENCRYPTION_KEY")
        .args(["--url", url, "--utc", "backup"])
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

#[track_caller]
fn objects(url: &str, code: i32, args: &[&str]) -> Vec<Value> {
    let (out, _) = tool(url, code, &[args, &["--json"]].concat());
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    out.lines().map(read).collect()
}

#[track_caller]
fn object(url: &str, code: i32, args: &[&str]) -> Value {
    let all = objects(url, code, args);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

/// What of an object is named.
fn some(object: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| object[*name].clone()).collect()
}

#[test]
fn the_tool_makes_shows_and_brings_back() {
    let server = server();
    let (url, conn) = (&server.url()[..], &mut server.conn());
    assert_eq!(
        tool(url, 0, &["list"]),
        (String::new(), "there are no backups\n".into())
    );
    conn.run("MAOS.PARTITION CREATE p BYTES 100000").int();
    for n in 0..3 {
        conn.run(&format!("MAOS.SET k:{n} v{n} BY planner")).int();
    }
    conn.run("MAOS.SET other v").int();
    let (id, err) = tool(url, 0, &["create", "nightly", "--prefix", "k:", "--wait"]);
    let id = id.trim_end();
    assert!(BackupId::parse(id.as_bytes()).is_some(), "{id}");
    assert!(err.starts_with("3 keys, "), "{err}");
    let made = object(url, 0, &["create", "all", "--wait"]);
    assert_eq!(
        some(&made, &["name", "kind", "state", "keys", "error"]),
        json!(["all", "create", "done", 4, null])
    );
    let address = format!("127.0.0.1:{}", server.port());
    assert_eq!(made["node"], address);

    let all = objects(url, 0, &["list"]);
    assert_eq!(
        all.iter().map(|one| &one["name"]).collect::<Vec<_>>(),
        ["all", "nightly"]
    );
    assert_eq!(
        some(&all[1], &["id", "key", "prefixes"]),
        json!([id, null, ["k:"]])
    );
    let (out, _) = tool(url, 0, &["list"]);
    let line = out.lines().nth(1).unwrap();
    assert!(
        line.starts_with(id) && line.ends_with("nightly  not sealed, k:*"),
        "{out}"
    );
    let status = object(url, 0, &["status", id]);
    assert_eq!(
        some(&status, &["id", "state", "keys"]),
        json!([id, "done", 3])
    );
    let (out, _) = tool(url, 0, &["status", id]);
    assert!(
        out.contains("create of nightly") && out.contains("3 keys"),
        "{out}"
    );

    // The server and the tool by itself find the same.
    let found = object(url, 0, &["verify", id]);
    let file = file_of(server.dir(), BackupId::parse(id.as_bytes()).unwrap());
    let own = object(
        "redis://127.0.0.1:1/",
        0,
        &["verify", file.to_str().unwrap()],
    );
    for (name, value) in found.as_object().unwrap() {
        // How much of it the entries themselves take each says in its own way.
        assert!(
            name == "bytes" || own[name] == *value,
            "{name}: {own} {found}"
        );
    }
    let size = fs::metadata(&file).unwrap().len();
    assert_eq!(some(&own, &["size", "keys"]), json!([size, 3]));
    let (out, _) = tool(url, 0, &["verify", id]);
    assert!(
        out.contains("holds       3 keys") && out.contains("digest      "),
        "{out}"
    );

    conn.run("DEL k:0").int();
    conn.run("MAOS.SET k:1 new").int();
    let counts = ["done", "dry_run", "keys", "kept", "same", "total"];
    let dry = object(url, 0, &["restore", id, "--dry-run"]);
    assert_eq!(some(&dry, &counts), json!([true, true, 1, 1, 1, 3]));
    assert_eq!(conn.run("EXISTS k:0").int(), 0);
    let (out, err) = tool(url, 0, &["restore", id]);
    assert!(out.starts_with("restored    1 key, "), "{out}");
    assert!(
        out.contains("kept        1 key") && out.contains("same        1 key"),
        "{out}"
    );
    assert!(err.starts_with("job ") && err.contains(&address), "{err}");
    assert_eq!(conn.run("MAOS.GET k:0").bytes(), b"v0");
    assert_eq!(conn.run("MAOS.GET k:1").bytes(), b"new");
    let done = object(url, 0, &["restore", id, "--replace"]);
    assert_eq!(some(&done, &counts), json!([true, false, 1, 0, 2, 3]));
    assert_eq!(conn.run("MAOS.GET k:1").bytes(), b"v1");
    let job = &done["nodes"][0];
    assert_eq!(
        some(job, &["node", "kind", "state"]),
        json!([address, "restore", "done"])
    );
    let status = object(url, 0, &["status", job["id"].as_str().unwrap()]);
    assert_eq!(some(&status, &["kind", "total"]), json!(["restore", 3]));
    let args = ["restore", id, "--prefix", "k:1", "--into", "copy:"];
    assert_eq!(
        some(&object(url, 0, &args), &["keys", "total"]),
        json!([1, 1])
    );
    assert_eq!(conn.run("MAOS.GET copy:").bytes(), b"v1");

    // What fails ends with another code, and says why.
    let (_, err) = tool(url, 4, &["cancel", id]);
    assert!(err.contains("NOTFOUND"), "{err}");
    assert!(tool(url, 4, &["create", "No"]).1.contains("ERR"));
    let args = [
        "restore", id, "--prefix", "a", "--prefix", "b", "--into", "c",
    ];
    assert!(tool(url, 4, &args).1.contains("one PREFIX"));
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (_, err) = tool(url, 4, &["verify", id]);
    assert!(err.contains("BADBACKUP"), "{err}");
    let (_, err) = tool(url, 4, &["restore", id]);
    assert!(
        err.contains("the restore failed: ") && err.contains("damaged"),
        "{err}"
    );
    let failed = object(url, 4, &["restore", id]);
    assert_eq!(some(&failed, &["done", "keys"]), json!([false, 0]));
    assert_eq!(failed["nodes"][0]["state"], "failed");

    let deleted = object(url, 0, &["delete", id]);
    assert_eq!(deleted, json!({"id": id, "deleted": true}));
    assert!(tool(url, 4, &["delete", id]).1.contains("NOTFOUND"));
    assert!(tool(url, 4, &["restore", id]).1.contains("NOTFOUND"));
}

#[test]
fn the_tool_makes_backups_that_go_on_from_others() {
    let server = server();
    let (url, conn) = (&server.url()[..], &mut server.conn());
    conn.run("MAOS.SET k v").int();
    conn.run("SET string v").ok();
    conn.run("XADD stream * a b");
    let (first, err) = tool(url, 0, &["create", "first", "--native", "--wait"]);
    assert!(
        err.contains("2 keys") && err.contains("left out: 1 key of a type"),
        "{err}"
    );
    let first = first.trim_end();
    let status = object(url, 0, &["status", first]);
    assert_eq!(some(&status, &["keys", "left_out"]), json!([2, 1]));
    assert!(tool(url, 0, &["status", first])
        .0
        .contains("left out    1 key"));
    conn.run("MAOS.SET new v").int();
    let second = object(url, 0, &["create", "second", "--since", first, "--wait"]);
    let second = second["id"].as_str().unwrap();
    let found = object(url, 0, &["verify", second]);
    assert_eq!(
        some(&found, &["parent", "links", "keys"]),
        json!([first, 2, 2])
    );
    let (out, _) = tool(url, 0, &["verify", second]);
    assert!(out.contains("read        2 files"), "{out}");
    assert!(out.contains(&format!("goes on     from {first}")), "{out}");
    let (out, _) = tool(url, 0, &["list"]);
    assert!(
        out.contains(&format!("second  not sealed, goes on from {first}")),
        "{out}"
    );
    // So it is without the server, with what it goes on from beside it.
    let file = file_of(server.dir(), BackupId::parse(second.as_bytes()).unwrap());
    let file = file.to_str().unwrap();
    let own = object(url, 0, &["verify", file]);
    assert_eq!(
        some(&own, &["parent", "links", "keys", "unchanged", "digest"]),
        json!([first, 2, 2, 1, found["digest"]])
    );
    let (out, err) = tool(url, 0, &["export", file]);
    assert_eq!((out.lines().count(), &err[..]), (2, "2 lines\n"));
    assert!(tool(url, 4, &["delete", first])
        .1
        .contains("go on from this one"));
    let (_, err) = tool(
        url,
        2,
        &["create", "x", "--since", first, "--since", second],
    );
    assert!(err.contains("--since is given once"), "{err}");
    let nobody = "0".repeat(32);
    assert!(tool(url, 4, &["create", "x", "--since", &nobody])
        .1
        .contains("NOTFOUND"));
}

#[test]
fn the_tool_ends_what_goes_on() {
    let server = server();
    fill(&server);
    let url = &server.url()[..];
    let (id, _) = tool(url, 0, &["create", "one"]);
    let id = id.trim_end().to_owned();
    // It may have been faster.
    let output = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args(["--url", url, "--json", "backup", "cancel", &id])
        .output()
        .unwrap();
    let status = object(url, 0, &["status", &id]);
    match output.status.code() {
        Some(0) => assert_eq!(status["state"], "cancelled"),
        code => assert_eq!((code, &status["state"]), (Some(4), &json!("done"))),
    }
    // Who waits for a backup that somebody ends is told.
    let waiting = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args(["--url", url, "backup", "create", "two", "--wait"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let conn = &mut server.conn();
    let mut is_cancelled = false;
    let mut child = waiting;
    while child.try_wait().unwrap().is_none() {
        let name = fs::read_dir(server.dir()).unwrap().find_map(|f| {
            let name = f.unwrap().file_name().into_string().ok()?;
            Some(
                name.strip_prefix(".two-")?
                    .strip_suffix(".part")?
                    .to_owned(),
            )
        });
        if let (Some(id), false) = (name, is_cancelled) {
            is_cancelled = !conn.run(&format!("MAOS.BACKUP CANCEL {id}")).is_err();
        }
    }
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    match is_cancelled {
        true => {
            assert_eq!(
                (output.status.code(), output.stdout.len()),
                (Some(4), 0),
                "{err}"
            );
            assert!(err.contains("the backup was cancelled"), "{err}");
        }
        false => assert_eq!(output.status.code(), Some(0), "{err}"),
    }
}

#[test]
fn the_tool_asks_every_master_of_a_cluster() {
    let dir = Shared::new("tool");
    for place in [dir.0.to_str().unwrap(), "."] {
        let is_shared = place != ".";
        let cluster = cluster(3, place);
        let mut conn = cluster.client();
        for n in 0..60 {
            let key = format!("k{n}");
            conn.cmd(&key, &["MAOS.SET", &key, "v"]).int();
        }
        let url = cluster.nodes[0].url();
        let run = |code, args: &[&str]| tool(&url, code, &[args, &["--cluster"]].concat());
        let one = |code, args: &[&str]| object(&url, code, &[args, &["--cluster"]].concat());
        let made = objects(&url, 0, &["create", "b", "--wait", "--cluster"]);
        assert_eq!(made.len(), 3);
        let keys: Vec<_> = made
            .iter()
            .map(|job| job["keys"].as_u64().unwrap())
            .collect();
        assert_eq!(keys.iter().sum::<u64>(), 60);
        // Without waiting: each id, and whose it is.
        let (out, _) = run(0, &["create", "c"]);
        let mut seen: Vec<_> = out
            .lines()
            .map(|line| line.split_once("  ").unwrap().1)
            .collect();
        seen.sort_unstable();
        let mut nodes: Vec<_> = cluster
            .nodes
            .iter()
            .map(|n| format!("127.0.0.1:{}", n.port()))
            .collect();
        nodes.sort();
        assert_eq!(seen, nodes);
        for line in out.lines() {
            let (id, _) = line.split_once("  ").unwrap();
            while one(0, &["status", id])["state"] == "running" {}
        }
        // Each goes on from its own, whichever those are that are given; one that made none of them says so.
        let ids: Vec<_> = made.iter().map(|job| job["id"].as_str().unwrap()).collect();
        let since: Vec<_> = ids.iter().flat_map(|id| ["--since", id]).collect();
        let args = [&["create", "d", "--wait", "--cluster"], &since[..]].concat();
        let next = objects(&url, 0, &args);
        assert_eq!(next.len(), 3);
        for job in &next {
            let id = job["id"].as_str().unwrap();
            let before = made
                .iter()
                .find(|before| before["node"] == job["node"])
                .unwrap();
            assert_eq!(one(0, &["verify", id])["parent"], before["id"]);
            run(0, &["delete", id]);
        }
        let (out, err) = run(4, &["create", "e", "--since", ids[1], "--wait"]);
        assert_eq!(out.lines().count(), 1);
        assert_eq!(
            err.matches("it has made none of the backups").count(),
            2,
            "{err}"
        );
        run(0, &["delete", &out[..32]]);
        // Those in one directory are told once.
        assert_eq!(objects(&url, 0, &["list", "--cluster"]).len(), 6);
        for node in &cluster.nodes {
            node.conn().run("FLUSHALL").ok();
        }
        for (job, keys) in made.iter().zip(&keys) {
            let id = job["id"].as_str().unwrap();
            assert_eq!(one(0, &["verify", id])["keys"], *keys);
            let done = one(0, &["restore", id]);
            let (nodes, elsewhere) = if is_shared { (3, 2 * keys) } else { (1, 0) };
            assert_eq!(
                some(&done, &["done", "keys", "elsewhere"]),
                json!([true, keys, elsewhere])
            );
            assert_eq!(done["nodes"].as_array().unwrap().len(), nodes);
        }
        for n in 0..60 {
            let key = format!("k{n}");
            assert_eq!(conn.cmd(&key, &["MAOS.GET", &key]).bytes(), b"v");
        }
        let id = made[2]["id"].as_str().unwrap();
        run(0, &["delete", id]);
        assert!(run(4, &["delete", id]).1.contains("NOTFOUND"));
        assert!(run(4, &["restore", id]).1.contains("NOTFOUND"));
        assert_eq!(objects(&url, 0, &["list", "--cluster"]).len(), 5);
    }
}

#[test]
fn sealed_backups_of_a_server_are_read_with_its_keys() {
    const KEY: &str = "c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11";
    const NEXT: &str = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e";
    let server = Server::with(&[("maos.backup-dir", "."), ("maos.backup-key-file", "keys")]);
    let keys = server.dir().join("keys");
    let put = |text: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(&keys, text).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    };
    put(&format!("one {KEY}\n"));
    let (url, conn) = (&server.url()[..], &mut server.conn());
    let version = conn.run("MAOS.SET k v BY planner").int();
    let made = object(url, 0, &["create", "sealed", "--wait"]);
    let id = made["id"].as_str().unwrap();
    let file = file_of(server.dir(), BackupId::parse(id.as_bytes()).unwrap());
    let (file, key_file) = (file.to_str().unwrap(), keys.to_str().unwrap());
    assert_eq!(object(url, 0, &["show", file])["key"], "one");
    let line = object(url, 0, &["export", file, "--key-file", key_file]);
    assert_eq!(
        some(&line, &["key", "value", "agent", "version"]),
        json!(["k", "v", "planner", version])
    );
    // Given to another key, with which the server opens it then; without it it does not.
    put(&format!("two {NEXT}\none {KEY}\n"));
    object(url, 0, &["rewrap", file, "--key-file", key_file]);
    assert_eq!(object(url, 0, &["verify", id])["key"], "two");
    put(&format!("one {KEY}\n"));
    for command in ["verify", "restore"] {
        let (_, err) = tool(url, 4, &[command, id]);
        assert!(
            err.contains("BADBACKUP") && err.contains("the key two"),
            "{err}"
        );
    }
    put(&format!("two {NEXT}\n"));
    conn.run("DEL k").int();
    assert_eq!(object(url, 0, &["restore", id])["keys"], 1);
    assert_eq!(conn.run("MAOS.GET k").bytes(), b"v");
}
