//! Drills: a backup is restored into a private server, which is gone afterwards, whatever came of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use maos_core::codec::backup::{Content, Entry, Head, Sealer, Writer};
use maos_core::codec::v1::{decode_record, encode_definition, encode_record, Bounds};
use maos_core::model::Model;
use maos_core::restored::Restored;
use maos_core::{Interner, Stamp};
use serde_json::{json, Value};

use crate::chains::{chain, id_of, make, object, put_keys, server, text, ONE, TWO};
use crate::harness::{eventually, module_path, server_program, ClusterSetup, PATIENCE};

const VARIABLE: &str = "MAOS_BACKUP_ENCRYPTION_KEY";
const NOW_US: u64 = 1_790_000_000_000_000;

/// Where drills are done: what they leave is seen.
struct Place {
    dir: PathBuf,
    /// What runs in the place of the server, before it.
    before: String,
    /// What runs in its place.
    server: String,
}

impl Place {
    fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("maos-drills-{}-{count}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(dir.join("tmp")).unwrap();
        fs::create_dir_all(dir.join("backups")).unwrap();
        Place {
            dir,
            before: String::new(),
            server: format!("exec {} \"$@\"", server_program()),
        }
    }

    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// The process id of the private server, if one was started.
    fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("pid")).ok()?;
        text.trim().parse().ok()
    }

    /// The tool, about to begin.
    fn tool(&self, args: &[&str]) -> Command {
        let script = self.dir.join("server");
        let pid = self.dir.join("pid");
        let _ = fs::remove_file(&pid);
        let (before, server) = (&self.before, &self.server);
        let lines = format!(
            "#!/bin/sh\n{before}\necho $$ > {}\n{server}\n",
            pid.display()
        );
        fs::write(&script, lines).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o700)).unwrap();
        let mut tool = Command::new(env!("CARGO_BIN_EXE_maosctl"));
        tool.env("REDIS_STATE_URLS", "redis://127.0.0.1:1/")
            .env("TMPDIR", self.tmp())
            .env("MAOS_SERVER", &script)
            .env("MAOS_MODULE", module_path())
            .env_remove(VARIABLE)
            .env_remove("MAOS_BACKUP_DIR")
            .args(["--utc", "backup", "drill"])
            .args(args)
            .stdin(Stdio::null());
        tool
    }

    /// Expects that nothing is left of the private server; that one was started, if `started`.
    #[track_caller]
    fn is_clean(&self, started: bool) {
        assert_eq!(self.pid().is_some(), started);
        if let Some(pid) = self.pid() {
            assert!(!is_alive(pid), "the server {pid} is there still");
        }
        let left: Vec<_> = fs::read_dir(self.tmp()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Does a drill and expects an exit code; gives what was reported, and standard error.
    #[track_caller]
    fn drill(&self, code: i32, args: &[&str]) -> (Value, String) {
        let output = self.tool(&[args, &["--json"]].concat()).output().unwrap();
        self.ended(code, args, output)
    }

    #[track_caller]
    fn ended(&self, code: i32, args: &[&str], output: Output) -> (Value, String) {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
        for secret in [ONE, TWO] {
            let shown = out.contains(&secret[..8]) || err.contains(&secret[..8]);
            assert!(!shown, "{out}\n{err}");
        }
        let value = match &out[..] {
            "" => Value::Null,
            out => serde_json::from_str(out).unwrap(),
        };
        (value, err)
    }

    /// A drill that finds nothing to differ.
    #[track_caller]
    fn fine(&self, args: &[&str]) -> Value {
        let (done, err) = self.drill(0, args);
        assert_eq!((&done["same"], &err[..]), (&json!(true), ""), "{done}");
        assert_eq!(done["digest"], done["held"]);
        assert_eq!((&done["differ"], &done["first"]), (&json!(0), &json!([])));
        self.is_clean(true);
        done
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.join("backups").join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// All that is in a directory: names, bytes, when each was written.
fn all_of(dir: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
    let one = |path: PathBuf| {
        let at = fs::metadata(&path).unwrap().modified().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(&path).unwrap(), at)
    };
    let files = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|e| e == "maosbackup"));
    let mut all: Vec<_> = files.map(one).collect();
    all.sort();
    all
}

#[test]
fn what_was_backed_up_is_what_is_restored() {
    let place = Place::new();
    for sealed in [true, false] {
        let (server, keys) = server(sealed);
        let (links, fulls) = chain(&server, true);
        let before = all_of(server.dir());
        let key_args = match &keys {
            Some(keys) => vec!["--key-file", keys.to_str().unwrap()],
            None => vec![],
        };
        for (n, (link, full)) in links.iter().zip(&fulls).enumerate() {
            let [one, whole] = [link, full].map(|file| {
                let args = [&[file.to_str().unwrap()], &key_args[..]].concat();
                let done = place.fine(&args);
                let found = object(0, &["verify", args[0]], keys.as_deref());
                assert_eq!(done["keys"], found["keys"]);
                assert_eq!(done["restored"], found["keys"]);
                assert_eq!(done["partitions"], 1);
                let all = object_lines(&args);
                assert_eq!(done["versions"].as_u64().unwrap() as usize, all);
                for field in ["id", "links", "key", "parent", "instant"] {
                    assert_eq!(done[field], found[field], "{field}");
                }
                done
            });
            assert_eq!((&one["links"], &whole["links"]), (&json!(n + 1), &json!(1)));
            assert_eq!(one["digest"], whole["digest"], "link {n}");
            assert!(one["restore_ms"].is_u64() && one["took_ms"].as_u64() > Some(0));
        }
        // Where they lie nothing is written, and the server that made them has not been asked.
        assert_eq!(all_of(server.dir()), before);
        // The keys may come from the variable, for both.
        let newest = links[2].to_str().unwrap();
        let mut tool = place.tool(&[newest, "--json"]);
        tool.env(VARIABLE, format!("one {ONE}"));
        let (done, _) = place.ended(0, &[newest], tool.output().unwrap());
        assert_eq!((&done["same"], &done["links"]), (&json!(true), &json!(3)));
        if sealed {
            // And those of the file are taken, whatever the variable says.
            let args = [&[newest, "--json"], &key_args[..]].concat();
            let mut tool = place.tool(&args);
            tool.env(VARIABLE, format!("one {TWO}"));
            place.ended(0, &args, tool.output().unwrap());
        }
        place.is_clean(true);
    }
}

/// How many versions there are in a file.
fn object_lines(args: &[&str]) -> usize {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_maosctl"));
    tool.args(["backup", "export", "--history"]).args(args);
    let output = tool.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    out.lines()
        .filter(|line| !line.contains("\"define\""))
        .count()
}

#[test]
fn it_is_told_for_people_too() {
    let place = Place::new();
    let (server, _) = server(false);
    server.conn().run("MAOS.SET k v").int();
    server.conn().run("MAOS.SET k w").int();
    let file = make(&server, "nightly", "");
    let output = place.tool(&[file.to_str().unwrap()]).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((output.status.code(), &err[..]), (Some(0), ""), "{out}");
    for line in [
        "name        nightly",
        "restored    1 key from 1 file in ",
        "compared    1 key, 2 versions, ",
        "digest      ",
    ] {
        assert!(out.lines().any(|l| l.starts_with(line)), "{line}: {out}");
    }
    assert!(out.contains(": all the same"), "{out}");
    place.is_clean(true);
}

#[test]
fn a_backup_is_found_by_its_id_where_it_is_said_to_be() {
    let place = Place::new();
    let (server, _) = server(false);
    server.conn().run("MAOS.SET k v").int();
    let file = make(&server, "one", "");
    let (id, dir) = (id_of(&file), server.dir().to_str().unwrap());
    assert_eq!(place.fine(&[&id, "--dir", dir])["id"], id);
    let mut tool = place.tool(&[&id, "--json"]);
    let output = tool.env("MAOS_BACKUP_DIR", dir).output().unwrap();
    assert_eq!(place.ended(0, &[], output).0["id"], id);
    let output = place.tool(&[&id]).current_dir(dir).output().unwrap();
    assert!(output.status.success());
    // Under any name, and through a link; what it is restored from is called as it should be.
    let other = place.put("other", &fs::read(&file).unwrap());
    assert_eq!(place.fine(&[&other])["id"], id);
    let link = place.dir.join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    place.fine(&[link.to_str().unwrap()]);
    let (_, err) = place.drill(2, &[&id, "--dir", place.dir.to_str().unwrap()]);
    assert!(
        err.contains("there is no backup") && err.contains("--dir"),
        "{err}"
    );
    place.is_clean(false);
}

#[test]
fn the_module_lies_beside_the_tool_and_the_server_is_where_it_is_said_to_be() {
    let place = Place::new();
    let made = place.put("made", &file(&["MAOS.SET k v"], false, as_it_is));
    let (tool, library) = (place.dir.join("maosctl"), module_path());
    fs::hard_link(env!("CARGO_BIN_EXE_maosctl"), &tool).unwrap();
    let begin = || {
        // Its script, its directory.
        place.tool(&[]);
        let mut begin = Command::new(&tool);
        begin
            .env("TMPDIR", place.tmp())
            .env_remove("MAOS_MODULE")
            .env_remove("MAOS_SERVER")
            .current_dir(&place.dir)
            .args(["--json", "backup", "drill", &made]);
        begin
    };
    let server = ["--server", "./server"];
    let output = begin().args(server).output().unwrap();
    let (_, err) = place.ended(2, &[], output);
    assert!(err.contains("say where the module is: --module"), "{err}");
    place.is_clean(false);
    fs::hard_link(&library, place.dir.join(library.file_name().unwrap())).unwrap();
    let output = begin().args(server).output().unwrap();
    assert_eq!(place.ended(0, &[], output).0["same"], true);
    place.is_clean(true);
    // What is said goes before what is there.
    let mut tool = begin();
    tool.env("MAOS_MODULE", "/none/env.so").args(server);
    let (_, err) = place.ended(2, &[], tool.output().unwrap());
    assert!(err.contains("/none/env.so"), "{err}");
    tool.args(["--module", library.to_str().unwrap()]);
    place.ended(0, &[], tool.output().unwrap());
    place.is_clean(true);
}

/// A backup that the core makes: what comes of a conversation, changed.
fn file(
    lines: &[&str],
    keys_first: bool,
    change: impl Fn(&mut Entry<'_>, &mut Vec<u8>),
) -> Vec<u8> {
    let mut m = Model::at(NOW_US);
    for line in lines {
        m.now_us += 1_000_000;
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        m.run(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    let mut all = vec![];
    for (name, held) in m.defined() {
        let mut definition = held.definition.clone();
        if **name == *b"small" {
            definition.quota = 10;
        }
        all.push((
            name.to_vec(),
            held.expires_ms,
            false,
            encode_definition(&definition),
        ));
    }
    for (key, held) in m.keys() {
        let mut bytes = vec![];
        encode_record(&held.record, m.share(&held.record), &mut bytes);
        all.push((key.to_vec(), held.expires_ms, true, bytes));
    }
    all.sort_by_key(|(name, _, is_key, _)| (*is_key != keys_first, name.clone()));
    let head = Head {
        id: [7; 16],
        name: "made".into(),
        node: (*b"node-1").into(),
        instant: Stamp(NOW_US + 1_000_000_000),
        prefixes: vec![],
        parent: None,
        natives: false,
        made_with: "0.1.0".into(),
    };
    let mut writer = Writer::create(vec![], head, Sealer::plain()).unwrap();
    for (key, expires_ms, is_key, mut bytes) in all {
        let mut entry = Entry {
            db: 0,
            key: &key,
            expires_ms,
            content: Content::Unchanged(Stamp::NONE),
        };
        change(&mut entry, &mut bytes);
        entry.content = match is_key {
            true => Content::Record(&bytes),
            false => Content::Definition(&bytes),
        };
        writer.entry(&entry).unwrap();
    }
    writer.finish().unwrap().0
}

fn as_it_is(_: &mut Entry<'_>, _: &mut Vec<u8>) {}

#[test]
fn what_the_server_holds_otherwise_is_named_and_fails() {
    let mut place = Place::new();
    let same = ["MAOS.SET same 1", "MAOS.PARTITION CREATE p BYTES 5000"];
    let said = [&same[..], &["MAOS.SET lacks 1", "MAOS.SET other 1"]].concat();
    let holds = [&same[..], &["MAOS.SET more 1", "MAOS.SET other 2"]].concat();
    let said = place.put("said", &file(&said, false, as_it_is));
    let holds = place.put("holds", &file(&holds, false, as_it_is));
    place.fine(&[&said]);
    // What the server finds is another backup of the same name, id and instant.
    let id = "07".repeat(16);
    let there = format!("backups/made-{id}.maosbackup");
    place.before = format!("rm {there}; cp {holds} {there}");
    let (done, err) = place.drill(6, &[&said]);
    let first = json!([
        {"key": "lacks", "db": 0, "how": "missing"},
        {"key": "more", "db": 0, "how": "more"},
        {"key": "other", "db": 0, "how": "other"},
    ]);
    assert_eq!((&done["same"], &done["first"]), (&json!(false), &first));
    let counts = ["differ", "missing", "more", "other", "keys", "partitions"];
    let counts = counts.map(|field| done[field].as_u64().unwrap());
    assert_eq!(counts, [3, 1, 1, 1, 1, 1], "{err}");
    assert_ne!(done["digest"], done["held"]);
    place.is_clean(true);
    let output = place.tool(&[&said]).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(6), "{out}\n{err}");
    assert!(
        out.contains("differ      1 missing, 1 more, 1 other") && out.contains("missing  lacks"),
        "{out}"
    );
    assert!(err.contains("3 keys differ"), "{err}");
    place.is_clean(true);
}

/// Where a key goes whose time is over while others come back, the server gives these a version on top: they may have been
/// seen here. That it is told is shown by what the server is given instead of the backup.
#[test]
fn a_version_on_top_of_what_was_backed_up_is_no_difference() {
    let mut place = Place::new();
    let lines = ["MAOS.SET k 1 BY me", "MAOS.SET same 1"];
    let on_top = |entry: &mut Entry<'_>, bytes: &mut Vec<u8>| {
        if entry.key == b"k" {
            let interner = &mut Interner::default();
            let (mut record, _) = decode_record(bytes, Bounds::HARD, interner).unwrap();
            let was = record.current().stamp();
            let now = Stamp(was.0 + 5);
            Restored { was, now }.apply(&mut record);
            bytes.clear();
            encode_record(&record, None, bytes);
        }
    };
    let said = place.put("said", &file(&lines, false, as_it_is));
    let holds = place.put("holds", &file(&lines, false, on_top));
    let there = format!("backups/made-{}.maosbackup", "07".repeat(16));
    place.before = format!("rm {there}; cp {holds} {there}");
    let done = place.fine(&[&said]);
    assert_eq!((&done["renewed"], &done["keys"]), (&json!(1), &json!(2)));
    // The other way round it would be one that was lost.
    place.before = format!("rm {there}; cp {said} {there}");
    let (done, _) = place.drill(6, &[&holds]);
    assert_eq!((&done["other"], &done["renewed"]), (&json!(1), &json!(0)));
    place.is_clean(true);
}

#[test]
fn time_locks_databases_and_quotas_are_no_differences() {
    let place = Place::new();
    let lines = [
        "MAOS.SET early 1 PXAT 1790000500000",
        "MAOS.SET late 1 PXAT 4102444800000",
        "MAOS.DEL late PXAT 4102444800001",
        "MAOS.SET elsewhere 1",
        "MAOS.SET locked 1",
        "MAOS.LOCK locked me 60000 NOTE why",
        "MAOS.LOCK bare me 60000",
        "MAOS.SET fenced 1 FENCE zk 7",
        "MAOS.PARTITION CREATE gone BYTES 50000 TYPE temporary TTL 90000 PREFIX gone:",
        "MAOS.SET gone:1 v",
        "MAOS.PARTITION CREATE stays BYTES 50000 TYPE agent_dedicated AGENT planner PREFIX stays: HISTORY 5 ONFULL evict ONCONFLICT function f TTL 9000000000000 MAXAGE 1000 MAXVALUE 7000",
        "MAOS.SET stays:1 1 BY planner",
        "MAOS.SET stays:1 2 BY planner",
    ];
    let elsewhere = |entry: &mut Entry<'_>, _: &mut Vec<u8>| {
        if entry.key == b"elsewhere" {
            entry.db = 33;
        }
    };
    let made = place.put("made", &file(&lines, false, elsewhere));
    let done = place.fine(&[&made]);
    let counts = ["locked_only", "partitions", "refused"].map(|f| done[f].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 0]);
    let found = object(0, &["verify", &made], None);
    let (keys, expired) = (
        done["keys"].as_u64().unwrap(),
        done["expired"].as_u64().unwrap(),
    );
    // What leaves with its partition may have left yet or not.
    assert!(expired == 1 || expired == 2, "{done}");
    assert_eq!(found["keys"], keys + expired + 1);

    // A partition that holds more than its quota, in whichever order all comes.
    let lines = [
        "MAOS.PARTITION CREATE small BYTES 50000 PREFIX small: HISTORY 7",
        "MAOS.PARTITION CREATE wide BYTES 50000 PREFIX wide:",
        "MAOS.SET small:1 value",
        "MAOS.SET small:2 value",
        "MAOS.SET wide:1 value",
    ];
    for keys_first in [false, true] {
        let made = place.put("made", &file(&lines, keys_first, as_it_is));
        let done = place.fine(&[&made]);
        assert_eq!(done["over_quota"], json!(["small"]), "{done}");
        assert_eq!((&done["keys"], &done["partitions"]), (&json!(3), &json!(2)));
        assert!(done["refused"].as_u64() > Some(0) && done["reason"].is_string());
        let output = place.tool(&[&made]).output().unwrap();
        let out = text(&output.stdout);
        assert!(out.contains("small holds more than its quota"), "{out}");
    }
}

#[test]
fn keys_of_the_server_s_own_types_are_compared_too() {
    let place = Place::new();
    let (server, _) = server(false);
    let mut conn = server.conn();
    conn.run("MAOS.SET state v").int();
    conn.run("SET string v PX 100000000").ok();
    conn.run("RPUSH list a b c").int();
    conn.run("SADD set a b c").int();
    conn.run("HSET hash f1 v1 f2 v2").int();
    conn.run("ZADD zset 1.5 a -inf b").int();
    conn.run("XADD stream * a b");
    let file = make(&server, "all", "NATIVE");
    let done = place.fine(&[file.to_str().unwrap()]);
    assert_eq!((&done["keys"], &done["natives"]), (&json!(6), &json!(5)));
    conn.run("LSET list 1 x").ok();
    let other = make(&server, "all", "NATIVE");
    let other = place.fine(&[other.to_str().unwrap()]);
    assert_ne!(other["digest"], done["digest"]);
    let state_only = make(&server, "state", "");
    let done = place.fine(&[state_only.to_str().unwrap()]);
    assert_eq!((&done["keys"], &done["natives"]), (&json!(1), &json!(0)));
}

#[test]
fn the_backup_of_a_node_of_a_cluster_is_restored_as_a_whole() {
    let place = Place::new();
    let mut setup = ClusterSetup::new(3, 0);
    let lines = [("maos.backup-dir", "."), ("maos.backup-plain", "yes")];
    setup.node = setup.node.with(&lines);
    let cluster = setup.start();
    let mut conn = cluster.client();
    conn.cmd(
        "p:crew",
        &[
            "MAOS.PARTITION",
            "CREATE",
            "p:crew",
            "BYTES",
            "500000",
            "PREFIX",
            "k",
        ],
    )
    .int();
    for node in &cluster.nodes {
        let all = || node.conn().run("MAOS.PARTITION LIST").to_string();
        let there = || all().contains("p:crew");
        eventually(PATIENCE, "the partition is known", there);
    }
    for n in 0..60 {
        let key = format!("k{n}");
        conn.cmd(&key, &["MAOS.SET", &key, "v"]).int();
    }
    let (mut keys, mut partitions) = (0, 0);
    for node in &cluster.nodes {
        let file = make(node, "part", "");
        let done = place.fine(&[file.to_str().unwrap()]);
        keys += done["keys"].as_u64().unwrap();
        partitions += done["partitions"].as_u64().unwrap();
    }
    assert_eq!((keys, partitions), (60, 1));
}

#[test]
fn what_is_no_good_backup_is_refused_before_a_server_is_started() {
    let place = Place::new();
    let (server, keys) = server(true);
    let keys = keys.unwrap();
    let keys = keys.to_str().unwrap();
    let (links, _) = chain(&server, true);
    let file = links[2].to_str().unwrap();
    let bad = |args: &[&str], why: &str| {
        let (done, err) = place.drill(4, args);
        let told: Value = serde_json::from_str(&err).unwrap();
        assert_eq!((&done, &told["code"]), (&Value::Null, &json!("BADBACKUP")));
        assert!(
            told["error"].as_str().unwrap().contains(why),
            "{why}: {err}"
        );
        place.is_clean(false);
    };
    bad(&[file], "the key one");
    for link in &links {
        let whole = fs::read(link).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [
            &flipped[..],
            &whole[..whole.len() - 1],
            &whole[..whole.len() / 2],
        ] {
            fs::write(link, bytes).unwrap();
            bad(&[file, "--key-file", keys], "damaged");
        }
        fs::write(link, &whole).unwrap();
    }
    fs::remove_file(&links[0]).unwrap();
    bad(&[file, "--key-file", keys], &id_of(&links[0]));
    let none = place.put("none", b"REDIS0011");
    bad(&[&none], "not a backup");
}

#[test]
fn a_server_that_does_not_come_up_is_told_and_nothing_is_left() {
    let mut place = Place::new();
    let made = place.put("made", &file(&["MAOS.SET k v"], false, as_it_is));
    let (_, err) = place.drill(2, &[&made, "--module", "/none/libmaos.so"]);
    assert!(err.contains("cannot read /none/libmaos.so"), "{err}");
    place.is_clean(false);
    for (code, server) in [(2, "/none/redis-server"), (5, "no-redis-server")] {
        let (_, err) = place.drill(code, &[&made, "--server", server]);
        assert!(err.contains(&format!("cannot run {server}")), "{err}");
        place.is_clean(false);
    }
    // No module.
    let text = place.put("text", b"text");
    let (_, err) = place.drill(5, &[&made, "--module", &text]);
    assert!(
        err.contains("did not start") && err.contains("text"),
        "{err}"
    );
    place.is_clean(true);
    // It says something, and ends.
    place.server = "echo out of order; exit 3".to_owned();
    let (_, err) = place.drill(5, &[&made]);
    assert!(
        err.contains("exit status: 3") && err.contains("out of order"),
        "{err}"
    );
    place.is_clean(true);
    // A key file of others is not used.
    let keys = put_keys(&place.dir.join("keys"), &format!("one {ONE}\n"));
    if std::os::unix::fs::chown(&keys, Some(12_345), None).is_ok() {
        let (_, err) = place.drill(2, &[&made, "--key-file", keys.to_str().unwrap()]);
        assert!(err.contains("belongs to another user"), "{err}");
        place.is_clean(false);
    }
}

/// Sends a signal.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(sent.is_ok_and(|s| s.success()));
}

#[test]
fn who_interrupts_a_drill_leaves_nothing() {
    let mut place = Place::new();
    let made = place.put("made", &file(&["MAOS.SET k v"], false, as_it_is));
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        // It never answers.
        place.server = "exec sleep 600".to_owned();
        let mut tool = place.tool(&[&made]);
        tool.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = tool.spawn().unwrap();
        eventually(PATIENCE, "the server is started", || place.pid().is_some());
        let pid = place.pid().unwrap();
        assert!(is_alive(pid) && fs::read_dir(place.tmp()).unwrap().count() == 1);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.contains("interrupted"), "{err}");
        place.is_clean(true);
    }
}

#[test]
fn files_get_another_name_or_are_copied_to_another_file_system() {
    let mut place = Place::new();
    // More than is copied at once.
    let mut state = 1u64;
    let mut next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 64) as u8)
    };
    let value: String = (0..7_000_000).map(&mut next).collect();
    let lines = [0, 1].map(|n| format!("MAOS.SET k{n} {}", &value[n..]));
    let lines = lines.each_ref().map(|line| &line[..]);
    let made = place.put("made", &file(&lines, false, as_it_is));
    let size = fs::metadata(&made).unwrap().len();
    assert!(size > 5 << 20, "{size}");
    let names = place.dir.join("names");
    place.before = format!("stat -c '%h %a' backups/* > {}", names.display());
    let seen = || fs::read_to_string(&names).unwrap();
    place.fine(&[&made]);
    assert!(seen().starts_with("2 "), "{}", seen());
    let memory = Path::new("/dev/shm");
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    if device(memory).is_none_or(|other| Some(other) == device(&place.dir)) {
        return;
    }
    let dir = memory.join(place.dir.file_name().unwrap());
    fs::create_dir(&dir).unwrap();
    let mut tool = place.tool(&[&made, "--json"]);
    let output = tool.env("TMPDIR", &dir).output().unwrap();
    let left = fs::read_dir(&dir).unwrap().count();
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(place.ended(0, &[], output).0["same"], true);
    assert_eq!((&seen()[..], left), ("1 600\n", 0));
    place.is_clean(true);
}

#[test]
fn the_private_server_is_open_to_nobody_else() {
    let mut place = Place::new();
    let (server, keys) = server(true);
    server.conn().run("MAOS.SET k v").int();
    let backup = make(&server, "one", "");
    // What it is started with is looked at while it runs.
    let (seen, modes) = (place.dir.join("seen"), place.dir.join("modes"));
    place.before = format!(
        "cp redis.conf {}; stat -c %a . redis.conf backups > {}",
        seen.display(),
        modes.display()
    );
    place.fine(&[
        backup.to_str().unwrap(),
        "--key-file",
        keys.unwrap().to_str().unwrap(),
    ]);
    let config = fs::read_to_string(seen).unwrap();
    for line in [
        "bind 127.0.0.1",
        "protected-mode yes",
        "save \"\"",
        "appendonly no",
    ] {
        assert!(config.lines().any(|l| l == line), "{line}: {config}");
    }
    let password = config.lines().find_map(|l| l.strip_prefix("requirepass "));
    assert_eq!(password.map(str::len), Some(32), "{config}");
    let modes = fs::read_to_string(modes).unwrap();
    let modes: Vec<_> = modes.lines().take(2).collect();
    assert_eq!(modes, ["700", "600"]);
    let dir = server.dir().to_str().unwrap();
    let dirs = config.lines().filter(|l| l.contains(dir));
    assert!(
        dirs.eq([format!("maos.backup-key-file \"{dir}/keys\"")]),
        "{config}"
    );
}
