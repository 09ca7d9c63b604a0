//! Chains of incremental backups, read without a server.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{json, Value};

use crate::harness::Server;

/// Keys of backups.
pub const ONE: &str = "c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11";
pub const TWO: &str = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e";

/// Runs `maosctl backup`, with the keys of a file if there is one.
pub fn run(args: &[&str], keys: Option<&Path>) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_maosctl"));
    tool.env("REDIS_STATE_URLS", "redis://127.0.0.1:1/")
        .env_remove("MAOS_BACKUP_ENCRYPTION_KEY")
        .args(["--utc", "backup"])
        .args(args);
    if let Some(keys) = keys {
        tool.arg("--key-file").arg(keys);
    }
    tool.output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it and expects an exit code; gives standard output and standard error.
#[track_caller]
pub fn expect(code: i32, args: &[&str], keys: Option<&Path>) -> (String, String) {
    let output = run(args, keys);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

#[track_caller]
pub fn object(code: i32, args: &[&str], keys: Option<&Path>) -> Value {
    let (out, err) = expect(code, &[args, &["--json"]].concat(), keys);
    match serde_json::from_str(out.trim()) {
        Ok(value) => value,
        Err(e) => panic!("{e}: {out}\n{err}"),
    }
}

/// What was refused, and how it was told.
#[track_caller]
pub fn refused(args: &[&str], keys: Option<&Path>) -> String {
    let (out, err) = expect(4, &[args, &["--json"]].concat(), keys);
    assert_eq!(out, "", "{args:?}");
    let told: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(told["code"], "BADBACKUP", "{args:?}: {err}");
    told["error"].as_str().unwrap().to_owned()
}

/// A server whose backups are sealed, if `sealed`, with the key `one`; and its key file.
pub fn server(sealed: bool) -> (Server, Option<PathBuf>) {
    if !sealed {
        let lines = [("maos.backup-dir", "."), ("maos.backup-plain", "yes")];
        return (Server::with(&lines), None);
    }
    let server = Server::with(&[("maos.backup-dir", "."), ("maos.backup-key-file", "keys")]);
    let keys = put_keys(&server.dir().join("keys"), &format!("one {ONE}\n"));
    (server, Some(keys))
}

pub fn put_keys(path: &Path, keys: &str) -> PathBuf {
    fs::write(path, keys).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

/// Makes a backup of a server; its file.
pub fn make(server: &Server, name: &str, words: &str) -> PathBuf {
    let mut conn = server.conn();
    let id = conn.run(&format!("MAOS.BACKUP CREATE {name} {words}"));
    let id = id.text().to_owned();
    loop {
        let status = conn.run(&format!("MAOS.BACKUP STATUS {id}"));
        match status.field("state").text() {
            "running" => {}
            "done" => break,
            _ => panic!("{status}"),
        }
    }
    server.dir().join(format!("{name}-{id}.maosbackup"))
}

/// The id in the name of a file.
pub fn id_of(file: &Path) -> String {
    let name = file.file_stem().unwrap().to_str().unwrap();
    name[name.len() - 32..].to_owned()
}

/// A full backup and two that go on from it; and after each what a full one of the same moment is. Whether a key is locked
/// the full one says alone, where nothing else has changed.
pub fn chain(server: &Server, locks: bool) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut conn = server.conn();
    let (mut links, mut fulls): (Vec<PathBuf>, Vec<PathBuf>) = (vec![], vec![]);
    for n in 0..60 {
        let long = "x".repeat(300 + n);
        let (key, meta) = (format!("app:{n}"), format!("{{\"n\":{n}}}"));
        conn.cmd(&["MAOS.SET", &key, &long, "BY", "planner", "META", &meta])
            .int();
        conn.run(&format!("MAOS.SET app:{n} second-{n}")).int();
    }
    conn.run("MAOS.PARTITION CREATE p:crew BYTES 500000 PREFIX crew: HISTORY 5")
        .int();
    conn.run("MAOS.SET crew:1 v EX 100000").int();
    conn.run("MAOS.SET app:fenced v FENCE zk 7").int();
    for link in 0..3 {
        if link > 0 {
            conn.run(&format!("MAOS.SET app:1 link-{link}")).int();
            conn.run(&format!("DEL app:{}", 10 + link)).int();
            conn.run(&format!("MAOS.DEL app:{} BY janitor", 20 + link))
                .int();
            conn.run(&format!("MAOS.SET new:{link} v BY worker")).int();
            conn.run(&format!("PEXPIRE app:{} 100000000", 30 + link))
                .int();
            if locks {
                conn.run(&format!("MAOS.LOCK app:{} me 60000", 40 + link));
            }
        }
        // What was removed is there again, as another one.
        if link == 2 {
            conn.run("MAOS.SET app:11 again").int();
        }
        let since = match links.last() {
            Some(last) => format!("SINCE {}", id_of(last)),
            None => String::new(),
        };
        links.push(make(server, &format!("link-{link}"), &since));
        fulls.push(make(server, &format!("full-{link}"), ""));
    }
    (links, fulls)
}

/// The lines of a text, in any order.
fn lines(text: &str) -> Vec<Value> {
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut lines: Vec<Value> = text.lines().map(read).collect();
    lines.sort_by_key(|line| line["key"].to_string() + &line["define"].to_string());
    lines
}

/// What a server holds, as it exports it itself.
fn exported(server: &Server) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args(["--url", &server.url(), "export", ""])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    lines(&text(&output.stdout))
}

#[test]
fn a_link_is_what_the_server_held_at_its_instant() {
    let (server, keys) = server(true);
    let keys = keys.as_deref();
    let (mut links, mut held) = (vec![], vec![]);
    let mut conn = server.conn();
    for n in 0..40 {
        conn.run(&format!("MAOS.SET k{n} v{n} BY planner")).int();
    }
    for link in 0..3 {
        conn.run(&format!("MAOS.SET k{link} changed-{link}")).int();
        conn.run(&format!("DEL k{}", 20 + link)).int();
        conn.run(&format!("MAOS.DEL k{}", 30 + link)).int();
        if link == 2 {
            conn.run("MAOS.SET k20 again").int();
        }
        let since = links.last().map(|last: &PathBuf| id_of(last));
        let since = since.map(|id| format!("SINCE {id}")).unwrap_or_default();
        links.push(make(&server, "link", &since));
        held.push(exported(&server));
    }
    for (n, (link, held)) in links.iter().zip(&held).enumerate() {
        let file = link.to_str().unwrap();
        let (out, err) = expect(0, &["export", file], keys);
        let mut all = lines(&out);
        // Who is told apart by an agent's name has no other in a line of a server.
        for line in &mut all {
            line.as_object_mut().unwrap().remove("author");
        }
        let (gone, there): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|line| line["deleted"] == true);
        assert_eq!(&there, held, "{file}");
        assert_eq!(gone.len(), n + 1, "deletions are lines of their own");
        assert!(!err.contains("left out"), "{err}");
    }
    assert_eq!(held[2].len(), 40 - 3 - 3 + 1);
}

#[test]
fn a_chain_is_verified_and_exported_as_the_full_backup_of_its_moment() {
    for sealed in [true, false] {
        let (server, keys) = server(sealed);
        let keys = keys.as_deref();
        let (links, fulls) = chain(&server, false);
        for (n, (link, full)) in links.iter().zip(&fulls).enumerate() {
            let (file, whole) = (link.to_str().unwrap(), full.to_str().unwrap());
            let (found, wanted) = (
                object(0, &["verify", file], keys),
                object(0, &["verify", whole], keys),
            );
            for field in ["digest", "keys", "partitions", "newest"] {
                assert_eq!(found[field], wanted[field], "link {n}: {field}");
            }
            assert_eq!(
                (&found["links"], &wanted["links"]),
                (&json!(n + 1), &json!(1))
            );
            // And as the server has it.
            let id = id_of(link);
            let told = server.conn().run(&format!("MAOS.BACKUP VERIFY {id}"));
            assert_eq!(found["digest"], told.field("digest").text());
            for more in [&[][..], &["--history"]] {
                let export = |file| lines(&expect(0, &[&["export", file], more].concat(), keys).0);
                assert_eq!(export(file), export(whole), "link {n} {more:?}");
            }
        }
        let newest = links[2].to_str().unwrap();
        let (out, _) = expect(0, &["verify", newest], keys);
        assert!(
            out.contains("read        3 files") && out.contains("unchanged   5"),
            "{out}"
        );
        // Called otherwise, the newest link is the same; only its parents are looked for by name.
        let other = server.dir().join("other");
        fs::copy(newest, &other).unwrap();
        let other = object(0, &["verify", other.to_str().unwrap()], keys);
        assert_eq!(other["links"], 3);
        // Of a link it is what that leads to.
        let elsewhere = server.dir().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let link = elsewhere.join("link");
        std::os::unix::fs::symlink(newest, &link).unwrap();
        let link = link.to_str().unwrap();
        assert_eq!(object(0, &["verify", link], keys)["links"], 3);
        assert_eq!(
            object(0, &["show", link], None)["parent_fault"],
            Value::Null
        );
    }
}

#[test]
fn what_a_link_is_that_is_missing_or_another_one_is_told_and_nothing_is_written() {
    let (server, keys) = server(true);
    let keys = keys.as_deref();
    let (links, fulls) = chain(&server, false);
    let [first, middle, newest] = &links[..] else {
        panic!("{links:?}")
    };
    let (file, id) = (newest.to_str().unwrap(), id_of(middle));
    let out = server.dir().join("out.ndjson");
    let none = |keys: Option<&Path>, whys: &[&str]| {
        for args in [
            &["verify", file][..],
            &["export", file],
            &["export", file, "--output", out.to_str().unwrap()],
        ] {
            let told = refused(args, keys);
            for why in whys {
                assert!(told.contains(why), "{args:?} {why}: {told}");
            }
            assert!(!out.exists() && !out.with_extension("ndjson.partial").exists());
        }
    };
    let parent = |field: &str| object(0, &["show", file], None)[field].clone();
    let name = middle.file_name().unwrap().to_str().unwrap();
    assert_eq!(parent("parent_file"), name);
    assert_eq!(parent("parent_fault"), Value::Null);
    let (shown, _) = expect(0, &["show", file], None);
    assert!(
        shown.contains(&format!("parent      {name}, of 20")),
        "{shown}"
    );

    // Gone; the one before it gone; another one in its place; a link of its name, which the server does not follow either.
    let (aside, bytes) = (server.dir().join("aside"), fs::read(middle).unwrap());
    fs::rename(middle, &aside).unwrap();
    none(keys, &[&id, "which is not there"]);
    assert_eq!(parent("parent_file"), Value::Null);
    let fault = parent("parent_fault");
    assert!(fault.as_str().unwrap().contains(&id), "{fault}");
    let (shown, _) = expect(0, &["show", file], None);
    assert!(shown.contains("which is not there"), "{shown}");
    std::os::unix::fs::symlink(&aside, middle).unwrap();
    none(keys, &[&id, "which is not there"]);
    fs::remove_file(middle).unwrap();
    fs::copy(&fulls[1], middle).unwrap();
    none(keys, &[&id, "that of another one"]);
    assert!(parent("parent_fault")
        .as_str()
        .unwrap()
        .contains("that of another"));
    fs::rename(&aside, middle).unwrap();
    fs::rename(first, &aside).unwrap();
    none(keys, &[&id_of(first), "which is not there"]);
    fs::rename(&aside, first).unwrap();

    // Sealed with a key that is not given, which the newest link does not need.
    let both = put_keys(
        &server.dir().join("both"),
        &format!("two {TWO}\none {ONE}\n"),
    );
    expect(0, &["rewrap", middle.to_str().unwrap()], Some(&both));
    none(keys, &[&id, "the key two", "--key-file"]);
    object(0, &["verify", file], Some(&both));

    // Damaged at its end, behind all that the newest one needs of it; and cut.
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(middle, &bad).unwrap();
    none(keys, &[&id, "damaged"]);
    fs::write(middle, &bytes[..bytes.len() / 2]).unwrap();
    none(keys, &[&id, "before its end"]);
    fs::write(middle, &bytes).unwrap();
    expect(
        0,
        &["export", file, "--output", out.to_str().unwrap()],
        keys,
    );
    assert!(out.exists());
}

#[test]
fn a_link_that_nothing_is_needed_of_has_to_be_good_too() {
    let (server, _) = server(false);
    let mut conn = server.conn();
    let mut links: Vec<PathBuf> = vec![];
    for link in 0..3 {
        conn.run(&format!("MAOS.SET k value-{link}")).int();
        let since = links.last().map(|last| format!("SINCE {}", id_of(last)));
        links.push(make(&server, "link", &since.unwrap_or_default()));
    }
    let file = links[2].to_str().unwrap();
    assert_eq!(object(0, &["verify", file], None)["unchanged"], 0);
    for link in &links[..2] {
        let whole = fs::read(link).unwrap();
        let mut bad = whole.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(link, bad).unwrap();
        for command in ["verify", "export", "drill"] {
            let told = refused(&[command, file], None);
            assert!(
                told.contains(&id_of(link)) && told.contains("damaged"),
                "{told}"
            );
        }
        fs::write(link, whole).unwrap();
    }
    expect(0, &["export", file], None);
}
