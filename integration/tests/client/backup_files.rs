//! Files of backups on the command line, without a server: shown, checked, exported, given to another key. The files are
//! made by the core, as a server makes them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use maos_core::codec::backup::{
    sum, Content, ElementsBuf, Entry, Head, Native, Parent, Reader, Sealer, Type, Writer,
    SEAL_RANDOM,
};
use maos_core::codec::v1::{encode_definition, encode_record};
use maos_core::keyring::Keyring;
use maos_core::model::Model;
use maos_core::Stamp;
use serde_json::{json, Value};

use crate::harness::Server;

/// Keys whose digits occur in no text of ours.
const ONE: &str = "c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11";
const TWO: &str = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e";
/// What is in values and metadata, and never on standard error.
const CANARY: &str = "canary";
const VARIABLE: &str = "MAOS_BACKUP_ENCRYPTION_KEY";
const ID: &str = "07070707070707070707070707070707";
const NOW_US: u64 = 1_790_000_000_000_000;
const FAR_MS: u64 = 4_102_444_800_000;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("maos-files-{}-{count}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file with these bytes and this mode; its path.
    fn put(&self, name: &str, bytes: &[u8], mode: u32) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let all = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = all
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `maosctl backup` where nobody answers; a server is not asked.
fn run(variable: Option<&str>, args: &[&str]) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_maosctl"));
    tool.env("REDIS_STATE_URLS", "redis://127.0.0.1:1/")
        .env_remove(VARIABLE)
        .args(["--utc", "backup"])
        .args(args)
        .stdin(Stdio::null());
    if let Some(keys) = variable {
        tool.env(VARIABLE, keys);
    }
    let output = tool.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    for secret in [ONE, TWO] {
        for part in [&secret[..8], &secret[3..11]] {
            let shown = out.contains(part) || err.contains(part);
            assert!(!shown, "{args:?} shows a key:\n{out}\n{err}");
        }
    }
    assert!(!err.contains(CANARY), "{args:?} shows a value:\n{err}");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it and expects an exit code; gives standard output and standard error.
#[track_caller]
fn expect(variable: Option<&str>, code: i32, args: &[&str]) -> (String, String) {
    let output = run(variable, args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

#[track_caller]
fn json(variable: Option<&str>, args: &[&str]) -> Value {
    let (out, err) = expect(variable, 0, &[args, &["--json"]].concat());
    match serde_json::from_str(out.trim()) {
        Ok(value) => value,
        Err(e) => panic!("{e}: {out}\n{err}"),
    }
}

/// The code of what was refused.
#[track_caller]
fn refused(variable: Option<&str>, args: &[&str]) -> String {
    let (_, err) = expect(variable, 4, &[args, &["--json"]].concat());
    let told: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(told["code"], "BADBACKUP", "{args:?}: {err}");
    told["error"].as_str().unwrap().to_owned()
}

fn ring(keys: &str) -> Keyring {
    Keyring::parse(keys.as_bytes()).unwrap()
}

fn head() -> Head {
    Head {
        id: [7; 16],
        name: "nightly".into(),
        node: (*b"node-1").into(),
        instant: Stamp(NOW_US + 100_000_000),
        prefixes: vec![],
        parent: None,
        natives: false,
        made_with: "0.1.0".into(),
    }
}

/// State of every shape, as a server would hold it.
fn state() -> Model {
    let mut m = Model::at(NOW_US);
    let long = format!("{CANARY}-{}", "a".repeat(600));
    let far = FAR_MS.to_string();
    for words in [
        "MAOS.PARTITION CREATE p:crew BYTES 500000 PREFIX crew: TYPE agent_dedicated AGENT planner HISTORY 5 ONFULL evict ONCONFLICT function f TTL 900000 MAXAGE 800000 MAXVALUE 7000",
        "MAOS.PARTITION CREATE p:over BYTES 50000 TYPE temporary TTL 90000000",
        "MAOS.PARTITION CREATE p:long BYTES 60000 TYPE temporary TTL 2000000000000 ONCONFLICT merge",
        "MAOS.SET app:1 canary-1",
        "MAOS.SET app:2 {\"canary\":1.50} BY planner META {\"canary\":1} REQID r-1",
        "MAOS.SET app:2 LONG BY worker",
        "MAOS.SET app:2 canary-3",
        "MAOS.SET app:gone canary-4",
        "MAOS.DEL app:gone BY janitor META {\"why\":\"canary\"} PXAT FAR",
        "MAOS.SET app:late canary-5 PXAT FAR",
        "MAOS.SET crew:1 canary-6 BY planner PXAT FAR",
        "MAOS.SET app:named canary-7 PARTITION p:crew BY planner PXAT FAR",
        "MAOS.LOCK app:bare a 60000 ADVISORY",
        "MAOS.LOCK app:2 a 60000",
    ] {
        m.now_us += 1_000_000;
        let line = words.replace("LONG", &long).replace("FAR", &far);
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        m.run(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    m.run(&[b"MAOS.SET", b"app:\xff", b"canary\0\xfe", b"BY", b"a\xff"])
        .unwrap();
    m.run(&[
        b"MAOS.SET",
        b"app:lines",
        b"{\n\"canary\":1}",
        b"META",
        b"{\r\n\"n\":1}",
    ])
    .unwrap();
    m.tend(b"app:2");
    m
}

/// A backup of that: definitions first, keys in order.
fn backup_of(m: &Model, head: Head, sealer: Sealer<'_>) -> Vec<u8> {
    let mut writer = Writer::create(vec![], head, sealer).unwrap();
    writer.set_chunk(300);
    let mut defined: Vec<_> = m.defined().iter().collect();
    defined.sort_by_key(|(name, _)| name.to_vec());
    for (name, held) in defined {
        let bytes = encode_definition(&held.definition);
        writer
            .entry(&entry(name, held.expires_ms, Content::Definition(&bytes)))
            .unwrap();
    }
    let mut keys: Vec<_> = m.keys().iter().collect();
    keys.sort_by_key(|(key, _)| key.to_vec());
    for (key, held) in keys {
        let mut bytes = vec![];
        encode_record(&held.record, m.share(&held.record), &mut bytes);
        writer
            .entry(&entry(key, held.expires_ms, Content::Record(&bytes)))
            .unwrap();
    }
    writer.finish().unwrap().0
}

fn entry<'a>(key: &'a [u8], expires_ms: Option<u64>, content: Content<'a>) -> Entry<'a> {
    Entry {
        db: 0,
        key,
        expires_ms,
        content,
    }
}

fn plain() -> Vec<u8> {
    backup_of(&state(), head(), Sealer::plain())
}

fn sealed(ring: &Keyring) -> Vec<u8> {
    let random = [0x5a; SEAL_RANDOM];
    backup_of(&state(), head(), Sealer::with_key(ring.active(), &random))
}

fn digest(file: &[u8], ring: Option<&Keyring>) -> String {
    let mut reader = Reader::open(file, ring).unwrap();
    format!("{:032x}", sum(&mut reader).unwrap().1)
}

/// The two keys, in the one order and in the other; each alone.
fn key_files(dir: &Dir) -> [String; 4] {
    let (one, two) = (format!("one {ONE}\n"), format!("two {TWO}\n"));
    [
        dir.put("one-two", format!("{one}{two}").as_bytes(), 0o600),
        dir.put("two-one", format!("{two}{one}").as_bytes(), 0o600),
        dir.put("one", one.as_bytes(), 0o600),
        dir.put("two", two.as_bytes(), 0o400),
    ]
}

#[test]
fn what_a_file_says_of_itself_is_shown_without_its_key() {
    let dir = Dir::new();
    let sealed = dir.put("s", &sealed(&ring(&format!("one {ONE}"))), 0o600);
    let shown = json(None, &["show", &sealed]);
    let size = fs::metadata(&sealed).unwrap().len();
    let wanted = json!({
        "id": ID, "name": "nightly", "instant": NOW_US + 100_000_000,
        "time": "2026-09-21 14:15:00.000000 UTC", "made_on": "node-1", "key": "one", "prefixes": [],
        "format": 1, "made_with": "0.1.0", "natives": false, "parent": null,
        "parent_instant": null, "parent_file": null, "parent_fault": null, "size": size,
    });
    assert_eq!(shown, wanted);
    let (out, _) = expect(None, 0, &["show", &sealed]);
    for line in [
        "name        nightly",
        &format!("id          {ID}"),
        "instant     1790000100000000  (2026-09-21 14:15:00.000000 UTC)",
        "made on     node-1",
        "keys        all",
        "sealed      with the key one",
        "format      1",
        "made with   0.1.0",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}\n{out}");
    }

    // All that a head may say.
    let odd = Head {
        node: Box::default(),
        prefixes: vec![(*b"app:\x1b[2J").into(), (*b"b:").into()],
        parent: Some(Parent {
            id: [6; 16],
            instant: Stamp(NOW_US),
        }),
        ..head()
    };
    let odd = backup_of(&Model::at(NOW_US), odd, Sealer::plain());
    let odd = dir.put("o", &odd, 0o600);
    let shown = json(None, &["show", &odd]);
    assert_eq!(shown["key"], Value::Null);
    assert_eq!(shown["prefixes"], json!(["app:\u{1b}[2J", "b:"]));
    assert_eq!(shown["parent"], "06".repeat(16));
    assert_eq!(shown["parent_instant"], NOW_US);
    let (out, _) = expect(None, 0, &["show", &odd]);
    assert!(out.contains("not at all: anybody can read it"), "{out}");
    // Nothing of a file reaches the terminal as it is.
    assert!(out.contains("app:\\u{1b}[2J* b:*"), "{out}");
}

#[test]
fn what_is_no_backup_is_told_as_that() {
    let dir = Dir::new();
    let whole = plain();
    let mut newer = whole.clone();
    newer[7] = 2;
    for (bytes, why) in [
        (&b""[..], "not a backup"),
        (b"REDIS0011", "not a backup"),
        (&whole[..20], "it ends before its end"),
        (&newer, "format 2"),
    ] {
        let file = dir.put("f", bytes, 0o600);
        for command in ["show", "verify", "export"] {
            let told = refused(None, &[command, &file]);
            assert!(told.contains(why), "{command} {why}: {told}");
        }
    }
    for command in ["show", "verify", "export"] {
        let none = dir.path("none");
        let (_, err) = expect(None, 2, &[command, &none]);
        assert!(
            err.contains("cannot read") && err.contains("No such file"),
            "{err}"
        );
        let (_, err) = expect(None, 2, &[command, &dir.path("")]);
        assert!(err.contains("is a directory"), "{err}");
    }
}

#[test]
fn a_file_is_verified_to_its_last_byte() {
    let dir = Dir::new();
    let [both, changed, one, two] = key_files(&dir);
    let keys = ring(&format!("one {ONE}"));
    let (open, shut) = (plain(), sealed(&keys));
    let (plain, sealed) = (dir.put("p", &open, 0o600), dir.put("s", &shut, 0o600));
    let digest = digest(&open, None);
    assert_eq!(digest, self::digest(&shut, Some(&keys)));
    let m = state();

    let found = json(None, &["verify", &plain]);
    assert_eq!((&found["id"], &found["key"]), (&json!(ID), &Value::Null));
    assert_eq!(found["keys"], m.keys().len());
    assert_eq!(
        (&found["partitions"], &found["digest"]),
        (&json!(3), &json!(digest))
    );
    let newest = m.keys().values().map(|held| held.record.newest().0).max();
    assert_eq!(found["newest"].as_u64(), newest);
    assert_eq!(
        (&found["natives"], &found["unchanged"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(found["size"], open.len());

    // With the key in whatever place of the ring, from a file or from the variable, which a file goes before.
    for keys in [&both, &changed, &one] {
        let found = json(None, &["verify", &sealed, "--key-file", keys]);
        assert_eq!(
            (&found["digest"], &found["key"]),
            (&json!(digest), &json!("one"))
        );
        let wrong = format!("one {TWO}");
        json(Some(&wrong), &["verify", &sealed, "--key-file", keys]);
    }
    json(Some(&format!("two {TWO},one {ONE}")), &["verify", &sealed]);
    let (out, err) = expect(None, 0, &["verify", &sealed, "--key-file", &one]);
    assert_eq!(err, "");
    for line in [
        format!("holds       {} keys", m.keys().len()),
        "partitions  3".to_owned(),
        format!("digest      {digest}"),
    ] {
        assert!(out.lines().any(|found| found == line), "{line}\n{out}");
    }

    // Keys that are missing or wrong.
    for told in [
        refused(None, &["verify", &sealed]),
        refused(None, &["verify", &sealed, "--key-file", &two]),
        refused(Some(&format!("two {TWO}")), &["export", &sealed]),
    ] {
        let names = told.contains("the key one") && told.contains("--key-file");
        assert!(names && told.contains(VARIABLE), "{told}");
    }
    let told = refused(Some(&format!("one {TWO}")), &["verify", &sealed]);
    assert!(told.contains("the key one does not open"), "{told}");

    // Anything that is not what was written: bits, ends, more than the end.
    for file in [&open, &shut] {
        let mut bad = vec![[file, &b"x"[..]].concat()];
        for n in 1..20 {
            let at = file.len() * n / 20;
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            bad.push(flipped);
            bad.push(file[..at].to_vec());
        }
        for bytes in bad {
            let path = dir.put("bad", &bytes, 0o600);
            for command in ["verify", "export"] {
                refused(None, &[command, &path, "--key-file", &both]);
                let (out, _) = expect(None, 4, &[command, &path, "--key-file", &both]);
                assert_eq!(out, "", "{command}");
            }
        }
    }
}

#[test]
fn keys_that_others_may_read_are_not_used() {
    let dir = Dir::new();
    let file = dir.put("s", &sealed(&ring(&format!("one {ONE}"))), 0o600);
    let line = format!("one {ONE}\n");
    for mode in [0o644, 0o640, 0o604, 0o620, 0o602, 0o601, 0o4644] {
        let keys = dir.put("keys", line.as_bytes(), mode);
        for command in ["verify", "export", "rewrap"] {
            let (out, err) = expect(None, 2, &[command, &file, "--key-file", &keys]);
            let told = err.contains("others than its owner") && err.contains("0600");
            assert!(told && err.contains(&format!("{mode:04o}")), "{err}");
            assert_eq!(out, "");
        }
    }
    for mode in [0o600, 0o400, 0o700] {
        let keys = dir.put("keys", line.as_bytes(), mode);
        json(None, &["verify", &file, "--key-file", &keys]);
    }
}

#[test]
fn a_key_that_is_told_wrongly_is_not_repeated() {
    let dir = Dir::new();
    let file = dir.put("s", &sealed(&ring(&format!("one {ONE}"))), 0o600);
    // In the place of the path of a file.
    let (_, err) = expect(None, 2, &["verify", &file, "--key-file", ONE]);
    assert!(err.contains("--key-file: cannot be read"), "{err}");
    let (_, err) = expect(None, 2, &["verify", &file, "--key-file", &dir.path("")]);
    assert!(err.contains("--key-file"), "{err}");
    for (text, line) in [
        (String::new(), 1),
        (ONE.to_owned(), 1),
        (format!("one {ONE}\ntwo {ONE}0"), 2),
        (format!("one {ONE} {TWO}"), 1),
        (format!("one={ONE}"), 1),
    ] {
        let keys = dir.put("keys", text.as_bytes(), 0o600);
        let (_, err) = expect(None, 2, &["verify", &file, "--key-file", &keys]);
        let wanted = format!("--key-file: line {line} of the backup keys");
        assert!(err.contains(&wanted), "{err}");
    }
    let long = dir.put("keys", &vec![b'#'; 1 << 17], 0o600);
    let (_, err) = expect(None, 2, &["verify", &file, "--key-file", &long]);
    assert!(err.contains("longer than 64 KiB"), "{err}");
    for text in [&ONE[1..], &format!("one {ONE},{TWO}"), ""] {
        let (_, err) = expect(Some(text), 2, &["verify", &file]);
        assert!(err.contains("MAOS_BACKUP_ENCRYPTION_KEY: line"), "{err}");
    }
    // One that came without an id has a fingerprint for one.
    let alone = ring(&format!("env-686d0182 {ONE}"));
    let alone = dir.put("alone", &sealed(&alone), 0o600);
    json(Some(ONE), &["verify", &alone]);
}

/// The lines of an export.
fn lines(args: &[&str]) -> Vec<Value> {
    let (out, _) = expect(None, 0, &[&["export"], args].concat());
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    out.lines().map(read).collect()
}

#[test]
fn each_key_is_exported_as_it_was() {
    let dir = Dir::new();
    let [both, ..] = key_files(&dir);
    let file = dir.put("s", &sealed(&ring(&format!("one {ONE}"))), 0o600);
    let all = lines(&[&file, "--key-file", &both]);
    let named: Vec<_> = all
        .iter()
        .filter_map(|line| line["define"].as_str())
        .collect();
    assert_eq!(named, ["p:crew", "p:long", "p:over"]);
    let m = state();
    let crew = &m.defined()[&b"p:crew"[..]].definition;
    let wanted = json!({
        "define": "p:crew", "type": "agent_dedicated", "agent": "planner", "quota": 500_000, "prefixes": ["crew:"],
        "onfull": "evict", "onconflict": "function:f", "history": 5, "max_age_ms": 800_000, "max_value": 7000,
        "key_ttl_ms": 900_000, "version": crew.stamp.0,
    });
    assert_eq!(all[0], wanted);
    let version = |key: &[u8]| m.keys()[key].record.current().stamp().0;
    let wanted = [
        json!({"key": "app:1", "value": "canary-1", "author": "default", "version": version(b"app:1")}),
        json!({"key": "app:2", "value": "canary-3", "author": "default", "version": version(b"app:2")}),
        json!({"key": "app:gone", "deleted": true, "author": "default", "agent": "janitor",
            "metadata": {"why": "canary"}, "expires_at_ms": FAR_MS,
            "version": version(b"app:gone")}),
        json!({"key": "app:late", "value": "canary-5", "author": "default", "expires_at_ms": FAR_MS,
            "version": version(b"app:late")}),
        json!({"key": "app:lines", "value": "{\n\"canary\":1}", "author": "default", "metadata": {"n": 1},
            "version": version(b"app:lines")}),
        json!({"key": "app:named", "value": "canary-7", "author": "default", "agent": "planner",
            "expires_at_ms": FAR_MS, "partition": "p:crew",
            "version": version(b"app:named")}),
        json!({"key_b64": "YXBwOv8=", "value_b64": "Y2FuYXJ5AP4=", "author": "default", "agent_b64": "Yf8=",
            "version": version(b"app:\xff")}),
        json!({"key": "crew:1", "value": "canary-6", "author": "default", "agent": "planner",
            "expires_at_ms": FAR_MS, "partition": "p:crew", "version": version(b"crew:1")}),
    ];
    let keys: Vec<_> = all[3..].iter().map(without_nulls).collect();
    let wanted: Vec<_> = wanted.iter().map(without_nulls).collect();
    assert_eq!(keys, wanted);

    // What a line cannot say is counted.
    let (_, err) = expect(None, 0, &["export", &file, "--key-file", &both]);
    assert!(
        err.contains("11 lines") && err.contains("1 key that held no more than a lock"),
        "{err}"
    );
    let (_, err) = expect(None, 0, &["export", &file, "--key-file", &both, "--json"]);
    assert!(!err.contains("11 lines"), "{err}");
}

fn without_nulls(line: &Value) -> Value {
    let fields = line.as_object().unwrap().iter();
    let there = fields.filter(|(_, value)| !value.is_null());
    Value::Object(there.map(|(k, v)| (k.clone(), v.clone())).collect())
}

#[test]
fn with_its_history_all_versions_are_exported_the_oldest_first() {
    let dir = Dir::new();
    let file = dir.put("p", &plain(), 0o600);
    let all = lines(&[&file, "--history"]);
    let m = state();
    let of = |key: &str| -> Vec<&Value> { all.iter().filter(|line| line["key"] == key).collect() };
    let two = of("app:2");
    let versions: Vec<_> = two
        .iter()
        .map(|line| line["version"].as_u64().unwrap())
        .collect();
    let kept: Vec<_> = m.keys()[&b"app:2"[..]]
        .record
        .iter()
        .map(|v| v.stamp().0)
        .collect();
    assert_eq!(versions, kept);
    assert_eq!(two[0]["value"].to_string(), r#"{"canary":1.50}"#);
    assert_eq!(
        (&two[0]["agent"], &two[0]["metadata"]),
        (&json!("planner"), &json!({"canary": 1}))
    );
    // It was compressed.
    assert_eq!(two[1]["value"].as_str().map(str::len), Some(607));
    assert_eq!(
        (&two[1]["agent"], &two[2]["value"]),
        (&json!("worker"), &json!("canary-3"))
    );
    let gone = of("app:gone");
    assert_eq!(
        (&gone[0]["value"], &gone[0]["expires_at_ms"]),
        (&json!("canary-4"), &Value::Null)
    );
    assert_eq!(gone[1]["deleted"], true);
    let count: usize = m.keys().values().map(|held| held.record.len()).sum();
    assert_eq!(all.len(), 3 + count);
}

#[test]
fn what_is_of_no_state_is_left_out_and_counted() {
    let dir = Dir::new();
    let head = Head {
        natives: true,
        ..head()
    };
    let mut writer = Writer::create(vec![], head, Sealer::plain()).unwrap();
    let mut elements = ElementsBuf::default();
    elements.push(b"canary");
    let native = Native {
        kind: Type::List,
        read_ms: 5,
        elements: elements.elements(),
    };
    writer
        .entry(&entry(b"list", None, Content::Native(native)))
        .unwrap();
    writer
        .entry(&entry(b"list-2", None, Content::Native(native)))
        .unwrap();
    let mut m = Model::at(NOW_US);
    m.run(&[b"MAOS.SET", b"k", b"canary"]).unwrap();
    let mut record = vec![];
    encode_record(&m.keys()[&b"k"[..]].record, None, &mut record);
    let elsewhere = Entry {
        db: 3,
        ..entry(b"k", None, Content::Record(&record))
    };
    writer.entry(&elsewhere).unwrap();
    let file = dir.put("n", &writer.finish().unwrap().0, 0o600);
    let (out, err) = expect(None, 0, &["export", &file]);
    assert_eq!(out.lines().count(), 1);
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&line["key"], &line["db"]), (&json!("k"), &json!(3)));
    assert!(err.contains("left out: 2 keys of another type"), "{err}");
    let found = json(None, &["verify", &file]);
    assert_eq!(
        (&found["natives"], &found["unchanged"], &found["keys"]),
        (&json!(2), &json!(0), &json!(3))
    );
    let (out, _) = expect(None, 0, &["verify", &file]);
    assert!(out.contains("natives     2 keys"), "{out}");
}

#[test]
fn an_export_has_its_name_once_it_is_whole_and_nobody_else_may_read_it() {
    let dir = Dir::new();
    let whole = plain();
    let (file, out) = (dir.put("p", &whole, 0o600), dir.path("out.ndjson"));
    // What somebody else has left there.
    dir.put("out.ndjson.partial", b"old", 0o666);
    let (shown, err) = expect(None, 0, &["export", &file, "--output", &out]);
    assert_eq!((&shown[..], err.lines().next()), ("", Some("11 lines")));
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o777, 0o600);
    let (all, _) = expect(None, 0, &["export", &file]);
    assert_eq!(fs::read_to_string(&out).unwrap(), all);
    fs::remove_file(&out).unwrap();
    let bad = dir.put("bad", &whole[..whole.len() - 1], 0o600);
    refused(None, &["export", &bad, "--output", &out]);
    assert_eq!(dir.names(), ["bad", "p"]);
    let (_, err) = expect(
        None,
        2,
        &["export", &file, "--output", &dir.path("none/out")],
    );
    assert!(err.contains("cannot write"), "{err}");
}

#[test]
fn only_the_envelope_is_made_anew_for_another_key() {
    let dir = Dir::new();
    let [both, changed, one, two] = key_files(&dir);
    let keys = ring(&format!("one {ONE}"));
    let before = sealed(&keys);
    let file = dir.put("nightly.maosbackup", &before, 0o640);
    // Whoever it belonged to it still belongs to.
    let is_root = chown(&file, Some(12_345), Some(54_321)).is_ok();
    let there = dir.names();
    let done = json(None, &["rewrap", &file, "--key-file", &changed]);
    let wanted = json!({"id": ID, "key": "two", "key_before": "one", "rewrapped": true});
    assert_eq!(done, wanted);
    assert_eq!(dir.names(), there);
    let found = fs::metadata(&file).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o640);
    if is_root {
        assert_eq!((found.uid(), found.gid()), (12_345, 54_321));
    }
    let after = fs::read(&file).unwrap();
    assert_ne!(before, after);
    let same = before.iter().rev().zip(after.iter().rev());
    let same = same.take_while(|(a, b)| a == b).count();
    assert!(before.len() - same < 300, "{same} of {}", before.len());
    // The old key does not open it any more, the new one does.
    let told = refused(None, &["verify", &file, "--key-file", &one]);
    assert!(told.contains("the key two"), "{told}");
    let found = json(None, &["verify", &file, "--key-file", &two]);
    assert_eq!(found["digest"], digest(&before, Some(&keys)));

    // Once more changes nothing, and back again is as good.
    let done = json(None, &["rewrap", &file, "--key-file", &two]);
    assert_eq!(
        (&done["rewrapped"], &done["key_before"]),
        (&json!(false), &json!("two"))
    );
    assert_eq!(fs::read(&file).unwrap(), after);
    let (out, _) = expect(None, 0, &["rewrap", &file, "--key-file", &changed]);
    assert_eq!(out, format!("{ID} was sealed with two already\n"));
    let variable = format!("one {ONE};two {TWO}");
    let (out, _) = expect(Some(&variable), 0, &["rewrap", &file]);
    assert_eq!(
        out,
        format!("{ID} is sealed with one, and no longer with two\n")
    );
    json(None, &["verify", &file, "--key-file", &both]);
    // A fresh salt and nonce each time.
    assert_ne!(fs::read(&file).unwrap(), before);

    // Of a link it is what that leads to.
    let link = dir.path("link");
    symlink(&file, &link).unwrap();
    json(None, &["rewrap", &link, "--key-file", &changed]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    json(None, &["verify", &file, "--key-file", &two]);
}

#[test]
fn what_cannot_be_given_to_another_key_stays_as_it_is() {
    let dir = Dir::new();
    let [_, changed, one, two] = key_files(&dir);
    let bytes = sealed(&ring(&format!("one {ONE}")));
    let file = dir.put("s", &bytes, 0o600);
    let open = dir.put("p", &plain(), 0o600);
    let there = dir.names();
    let (_, err) = expect(None, 2, &["rewrap", &file]);
    assert!(
        err.contains("--key-file") && err.contains(VARIABLE),
        "{err}"
    );
    let told = refused(None, &["rewrap", &file, "--key-file", &two]);
    assert!(told.contains("the key one, which is not known"), "{told}");
    let wrong = format!("two {TWO},one {TWO}");
    let told = refused(Some(&wrong), &["rewrap", &file]);
    assert!(told.contains("the key one does not open"), "{told}");
    let told = refused(None, &["rewrap", &open, "--key-file", &one]);
    assert!(told.contains("not sealed"), "{told}");
    assert_eq!(
        (fs::read(&file).unwrap(), dir.names()),
        (bytes.clone(), there)
    );
    // Somebody else is at it.
    let draft = dir.put("s.rewrap", b"draft", 0o600);
    let (_, err) = expect(None, 2, &["rewrap", &file, "--key-file", &changed]);
    assert!(err.contains("s.rewrap is there already"), "{err}");
    assert_eq!(fs::read(&draft).unwrap(), b"draft");
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

#[test]
fn where_nothing_can_be_written_everything_stays_as_it_is() {
    let dir = Dir::new();
    let [_, changed, ..] = key_files(&dir);
    let bytes = sealed(&ring(&format!("one {ONE}")));
    let file = dir.put("s", &bytes, 0o600);
    let (out, there) = (dir.path("out"), dir.names());
    for args in [
        &["rewrap", &file, "--key-file", &changed][..],
        &["export", &file, "--key-file", &changed, "--output", &out],
    ] {
        // Each write to a file fails, as on a disk that is full.
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_maosctl"))
            .arg("backup")
            .args(args)
            .output()
            .unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains("cannot write"), "{err}");
        assert_eq!(dir.names(), there);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}

/// What a live server exports, without what an import makes anew.
fn exported(server: &Server, prefix: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args(["--url", &server.url(), "export", prefix])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        for made_anew in ["version", "author", "partition", "expires_at_ms"] {
            line.remove(made_anew);
        }
    }
    lines.sort_by_key(|line| line.to_string());
    lines
}

#[test]
fn what_was_exported_from_a_file_is_imported_again() {
    let dir = Dir::new();
    let server = Server::start();
    let mut conn = server.conn();
    let file = dir.put("p", &plain(), 0o600);
    let import = |args: &[&str]| {
        let out = dir.path("out.ndjson");
        let args = [&["export", &file, "--output", &out], args].concat();
        expect(None, 0, &args);
        let output = Command::new(env!("CARGO_BIN_EXE_maosctl"))
            .args(["--url", &server.url(), "import", &out])
            .output()
            .unwrap();
        let err = text(&output.stderr);
        assert!(output.status.success(), "{err}");
        err
    };
    // One partition is there, and stays as it is; one is over.
    conn.run("MAOS.PARTITION CREATE p:long BYTES 7777").int();
    // What the backup says to be deleted is deleted.
    conn.run("MAOS.SET app:gone v").int();
    assert_eq!(import(&[]), "10 lines written\n");
    let crew = conn.run("MAOS.PARTITION INFO p:crew");
    assert_eq!(crew.field("quota").int(), 500_000);
    assert_eq!(crew.field("onconflict").text(), "function f");
    assert_eq!(crew.field("prefixes").array().len(), 1);
    assert_eq!(crew.field("keys").int(), 1);
    let long = conn.run("MAOS.PARTITION INFO p:long");
    assert_eq!(long.field("quota").int(), 7777);
    assert!(conn.run("MAOS.GET app:gone").is_nil());
    let mut wanted = lines(&[&file]);
    wanted.retain(|line| line["define"].is_null() && line["deleted"].is_null());
    for line in &mut wanted {
        let line = line.as_object_mut().unwrap();
        for made_anew in ["version", "author", "partition", "expires_at_ms"] {
            line.remove(made_anew);
        }
    }
    wanted.sort_by_key(|line| line.to_string());
    assert_eq!(exported(&server, ""), wanted);
    let expiry = conn.run("PEXPIRETIME app:late").int();
    assert_eq!(u64::try_from(expiry), Ok(FAR_MS));

    // With its history each version becomes one, in their order.
    conn.run("FLUSHALL").ok();
    import(&["--history"]);
    assert_eq!(exported(&server, ""), wanted);
    let versions = conn.run("MAOS.HISTORY app:2");
    assert_eq!(versions.array().len(), 3);
    let gone = conn.run("MAOS.HISTORY app:gone");
    assert_eq!(gone.array().len(), 2);
    let deletion = gone.array()[1].to_string();
    assert!(
        deletion.contains("janitor") && deletion.contains("canary"),
        "{deletion}"
    );
}

#[test]
fn what_is_said_wrong_is_told_before_anybody_is_asked() {
    for (line, why) in [
        (
            "verify 00000000000000000000000000000000 --key-file k",
            "a server has keys of its own",
        ),
        ("status nightly", "32 hexadecimal digits"),
        ("restore 0123", "32 hexadecimal digits"),
        ("restore", "<ID>"),
        ("show", "<FILE>"),
        ("create", "<NAME>"),
        ("keep", "keep"),
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let (_, err) = expect(None, 2, &args);
        assert!(err.contains(why), "{line}: {err}");
    }
    // Who asks a server without one is told as ever.
    expect(None, 5, &["list"]);
    expect(None, 5, &["verify", ID]);
}
