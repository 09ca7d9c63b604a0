//! The command-line tool from end to end.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{eventually, Cluster, Server, PATIENCE};

/// Runs the tool with some standard input.
fn run(url: &str, args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .env_remove("REDIS_STATE_URLS")
        .args(["--url", url, "--utc"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // In a thread of its own: the tool may write before it has read everything.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it and expects an exit code; gives standard output and standard error.
#[track_caller]
fn expect(url: &str, code: i32, args: &[&str]) -> (String, String) {
    let output = run(url, args, b"");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

#[track_caller]
fn json(url: &str, code: i32, args: &[&str]) -> Value {
    let (out, err) = expect(url, code, &[&["--json"], args].concat());
    match serde_json::from_str(out.trim()) {
        Ok(value) => value,
        Err(e) => panic!("{e}: {out}\n{err}"),
    }
}

fn merges_and_transactions(url: &str) {
    let key = "app:m:1";
    let base = json(url, 0, &["set", key, r#"{"a":1,"b":1}"#])["version"].to_string();
    json(url, 0, &["patch", key, r#"{"a":2}"#, "--by", "them"]);
    let merge = |code, value: &str, more: &[&str]| {
        let args = [&["merge", key, &base, value], more].concat();
        json(url, code, &args)
    };
    assert_eq!(merge(0, r#"{"a":1,"b":2}"#, &[])["how"], "merged");
    assert_eq!(merge(3, r#"{"a":3,"b":1}"#, &[])["applied"], false);
    let (_, told) = expect(url, 3, &["merge", key, &base, r#"{"a":3,"b":1}"#]);
    assert!(told.contains("both changed: /a"), "{told}");
    let late = &["--strategy", "lww", "--made", "5m ago"];
    assert_eq!(merge(0, "{}", late)["how"], "kept");
    expect(url, 4, &["merge", key, "5", "{}"]);
    expect(
        url,
        4,
        &["merge", key, &base, "{}", "--strategy", "function:nobody"],
    );
    expect(
        url,
        2,
        &["merge", key, &base, "{}", "--strategy", "function:"],
    );
    expect(url, 2, &["merge", key, &base, "no json"]);

    let txn = |code: i32, text: &str| {
        let output = run(url, &["txn", "--by", "me"], text.as_bytes());
        let (out, err) = (self::text(&output.stdout), self::text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{text}\n{out}\n{err}");
        (out, err)
    };
    let hand_over = "
        # The task changes hands.
        IF {t}:task absent
        then set {t}:task '{\"owner\": \"me\"}' ex 600
        then incrby {t}:moves 1 max 10

        then get {t}:task
        else get {t}:task
    ";
    let (out, _) = txn(0, hand_over);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[1..], ["1", r#"{"owner": "me"}"#]);
    assert_eq!(json(url, 0, &["get", "{t}:task"])["agent"], "me");
    let (out, err) = txn(3, hand_over);
    assert_eq!(out, "{\"owner\": \"me\"}\n");
    assert!(err.contains("a condition does not hold"), "{err}");
    for (text, why) in [
        (
            "then get a\nsome get b",
            "line 2: a line begins with if, then or else",
        ),
        ("then get", "line 1: too few words"),
        ("then set a 'b", "line 1: "),
        (
            "if a older 5\nthen get a",
            "line 1: MAOS.TXN: what IF asks is one of",
        ),
        ("then get a then get b", "line 1: "),
        ("if a absent", "no line that begins with then"),
    ] {
        let (_, err) = txn(2, text);
        assert!(err.contains(why), "{text}: {err}");
    }
    let (_, err) = txn(4, "then incrby {t}:moves 100 max 10");
    assert!(err.contains("LIMIT THEN 1"), "{err}");
    let file = std::env::temp_dir().join(format!("maos-txn-{}", std::process::id()));
    fs::write(&file, "then get {t}:moves").unwrap();
    let done = json(url, 0, &["txn", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    assert_eq!(done["held"], true);
    assert_eq!(done["replies"][0]["value"], "1");
}

#[test]
fn every_subcommand_answers_people_and_programs() {
    let server = Server::start();
    let url = &server.url()[..];
    let key = "app:t:1";
    let first = json(
        url,
        0,
        &[
            "set",
            key,
            r#"{"n":1}"#,
            "--by",
            "me",
            "--meta",
            r#"{"why":"x"}"#,
        ],
    );
    let first = first["version"].to_string();
    assert_eq!(expect(url, 0, &["get", key]).0, "{\"n\":1}\n");
    assert_eq!(expect(url, 0, &["get", key, "--raw"]).0, "{\"n\":1}");
    let full = expect(url, 0, &["get", key, "--full"]).0;
    assert!(
        full.contains(&first) && full.contains("me") && full.contains("UTC"),
        "{full}"
    );
    let got = json(url, 0, &["get", key]);
    assert_eq!(
        (&got["value"]["n"], &got["agent"]),
        (&Value::from(1), &Value::from("me"))
    );
    assert_eq!(got["metadata"]["why"], "x");

    let cas = json(url, 0, &["cas", key, &first, r#"{"n":2}"#]);
    let second = cas["version"].to_string();
    let lost = json(url, 3, &["cas", key, &first, "late"]);
    assert_eq!(lost["applied"], false);
    assert_eq!(
        (lost["version"].to_string(), &lost["value"]["n"]),
        (second.clone(), &Value::from(2))
    );
    assert!(expect(url, 3, &["set", key, "late", "--if-absent"])
        .1
        .contains(&second));

    let doc = "app:t:3";
    json(url, 0, &["patch", doc, r#"{"a":1.50,"b":{"c":null}}"#]);
    assert_eq!(
        expect(url, 0, &["get", doc, "--raw"]).0,
        r#"{"a":1.50,"b":{}}"#
    );
    let test = r#"[{"op":"test","path":"/a","value":2},{"op":"remove","path":"/b"}]"#;
    let lost = json(url, 3, &["patch", doc, test, "--json-patch"]);
    assert_eq!(lost["applied"], false);
    expect(url, 3, &["patch", doc, r#"{"a":2}"#, "--if-absent"]);
    expect(url, 2, &["patch", doc, "{"]);
    let spent = ["incr", doc, "-1", "--path", "/a", "--min", "0"];
    assert_eq!(expect(url, 0, &spent).0, "0.5\n");
    expect(url, 4, &spent);
    assert_eq!(json(url, 0, &["incr", "app:t:4"])["number"], 1);

    merges_and_transactions(url);

    let out = run(url, &["set", "app:t:2", "-", "--ttl", "7d"], b"from\0stdin");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(
        expect(url, 0, &["get", "app:t:2", "--raw"]).0,
        "from\0stdin"
    );
    assert!(json(url, 0, &["get", "app:t:2"])["expires_in_ms"].as_u64() > Some(600_000_000));

    let (history, _) = expect(url, 0, &["history", key, "--desc", "--values"]);
    assert!(
        history.starts_with(&second) && history.contains("{\"n\":1}"),
        "{history}"
    );
    assert_eq!(
        expect(url, 0, &["--json", "history", key])
            .0
            .lines()
            .count(),
        2
    );
    assert!(expect(url, 0, &["diff", key, "-1", &second])
        .0
        .contains("/n"));
    assert_eq!(
        json(url, 0, &["diff", key, &first, &second])[0]["op"],
        "replace"
    );
    assert_eq!(
        expect(url, 0, &["get", key, "--version", "-1"]).0,
        "{\"n\":1}\n"
    );
    expect(
        url,
        0,
        &["rollback", key, "--version", &first, "--by", "op"],
    );
    assert_eq!(json(url, 0, &["get", key])["value"]["n"], 1);
    expect(
        url,
        3,
        &["rollback", key, "--version", "-1", "--if-version", "1"],
    );
    expect(url, 0, &["del", key]);
    assert_eq!(json(url, 1, &["get", key])["value"], Value::Null);
    expect(url, 1, &["del", key]);
    assert!(expect(url, 0, &["info"]).0.contains("maos_writes"));
    assert!(json(url, 0, &["info"])["maos_writes"].as_u64() > Some(3));
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let server = Server::start();
    let url = &server.url()[..];
    expect(url, 0, &["--help"]);
    for help in ["Exit codes", "REDIS_STATE_URLS", "Examples"] {
        assert!(expect(url, 0, &["--help"]).0.contains(help));
    }
    expect(url, 1, &["get", "app:none:1"]);
    expect(url, 1, &["history", "app:none:1"]);
    expect(url, 1, &["get", "app:none:1", "--version", "5"]);
    expect(url, 2, &["frobnicate"]);
    expect(url, 2, &["get", "app:none:1", "--at", "yesterday"]);
    expect(url, 2, &["rollback", "app:none:1"]);
    expect("http://u:secret@x/", 2, &["get", "k"]);
    assert!(!expect("http://u:secret@x/", 2, &["get", "k"])
        .1
        .contains("secret"));
    expect(url, 4, &["set", "app:none:1", "v", "--meta", "5"]);
    let refused = expect(url, 4, &["--json", "set", "app:none:1", "v", "--meta", "5"]).1;
    assert_eq!(
        serde_json::from_str::<Value>(&refused).unwrap()["code"],
        "NOTJSON"
    );
    expect("redis://127.0.0.1:1/", 5, &["get", "k"]);
    server.conn().run("LPUSH app:list:1 x").int();
    assert!(expect(url, 4, &["get", "app:list:1"])
        .1
        .contains("WRONGTYPE"));
}

fn export(url: &str, args: &[&str]) -> Vec<String> {
    let (out, _) = expect(url, 0, &[&["export"], args].concat());
    let mut lines: Vec<_> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A line without its version, which an import makes anew.
fn unversioned(line: &str) -> String {
    let at = line.find(",\"version\":").unwrap_or(line.len());
    line[..at].to_owned()
}

#[test]
fn a_hundred_thousand_lines_go_in_and_come_out_again() {
    let (one, two) = (Server::start(), Server::start());
    let mut lines = String::new();
    for n in 0..100_000 {
        let value = match n % 4 {
            0 => format!(r#""value":{{"n": {n}, "text":"ü\n"}}"#),
            1 => format!(r#""value":"plain {n}\r\n""#),
            2 => r#""value_b64":"/wAB""#.to_owned(),
            _ => format!(r#""value":"{n}","metadata":{{"n":{n}}}"#),
        };
        writeln!(
            lines,
            r#"{{"key":"app:line:{n}",{value},"agent":"a{}"}}"#,
            n % 7
        )
        .unwrap();
    }
    let out = run(&one.url(), &["import", "-"], lines.as_bytes());
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("100000 lines written"));
    assert_eq!(one.conn().run("DBSIZE").int(), 100_000);
    let exported = export(&one.url(), &["app:line:"]);
    assert_eq!(exported.len(), 100_000);

    // Through a file, into another server: the same lines.
    let file = one.dir().join("export.ndjson");
    let path = file.to_str().unwrap();
    expect(&one.url(), 0, &["export", "--output", path]);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 100_000);
    expect(&two.url(), 0, &["import", path]);
    let again = export(&two.url(), &[]);
    for (a, b) in exported.iter().zip(&again) {
        assert_eq!(unversioned(a), unversioned(b));
    }
    assert_eq!(again.len(), 100_000);
}

#[test]
fn an_import_stops_at_a_wrong_line_and_names_it() {
    let server = Server::start();
    let url = &server.url()[..];
    let good = r#"{"key":"app:g:1","value":"v"}"#;
    for (bad, code, why) in [
        ("not JSON", 2, "line 3"),
        (r#"{"key":"app:g:2"}"#, 2, "value"),
        (r#"{"key":"app:g:2","value":"v","agent":""}"#, 4, "line 3"),
    ] {
        let input = format!("{good}\n\n{bad}\n{good}\n");
        let out = run(url, &["import"], input.as_bytes());
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{err}");
        assert!(
            err.contains("line 3") && err.contains(why) && err.contains("other lines were written"),
            "{err}"
        );
    }
    let out = run(
        url,
        &["import", "--dry-run"],
        format!("{good}\n{good}").as_bytes(),
    );
    assert!(text(&out.stderr).contains("2 lines checked"));
    // Two lines about one key are written in their order.
    let lines: String = (0..200)
        .map(|n| format!("{{\"key\":\"app:o:1\",\"value\":\"{n}\"}}\n"))
        .collect();
    assert!(run(url, &["import"], lines.as_bytes()).status.success());
    assert_eq!(expect(url, 0, &["get", "app:o:1"]).0, "199\n");
}

#[test]
fn a_cluster_is_exported_from_all_its_masters() {
    let cluster = Cluster::start(3, 0);
    let url = cluster.nodes[0].url();
    let lines: String = (0..300)
        .map(|n| format!("{{\"key\":\"app:x*:{n}\",\"value\":\"{n}\"}}\n"))
        .collect();
    let out = run(&url, &["--cluster", "import"], lines.as_bytes());
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(export(&url, &["--cluster", "app:x*:"]).len(), 300);
    assert_eq!(export(&url, &["--cluster", "app:xx"]).len(), 0);
    assert_eq!(
        expect(&url, 0, &["--cluster", "--json", "info"])
            .0
            .lines()
            .count(),
        3
    );
    let elsewhere = (0..300).map(|n| format!("app:x*:{n}"));
    let elsewhere = elsewhere
        .into_iter()
        .find(|key| cluster.node_for(key).port() != cluster.nodes[0].port());
    let told = expect(&url, 2, &["get", &elsewhere.unwrap()]).1;
    assert!(told.contains("node of a cluster"), "{told}");
}

#[test]
fn locks_are_taken_shown_and_given_back() {
    let server = Server::start();
    let url = &server.url()[..];
    let lock = ["lock", "app:l", "me", "--lease", "10m", "--note", "nightly"];
    let token = json(url, 0, &lock)["token"].to_string();
    assert_eq!(json(url, 3, &["lock", "app:l", "you"])["locked"], false);
    let state = json(url, 0, &["locks", "app:l"]);
    assert_eq!(state["mode"], "exclusive");
    assert_eq!(state["holders"][0]["owner"], "me");
    assert_eq!(state["holders"][0]["token"].to_string(), token);
    let shown = expect(url, 0, &["locks", "app:l"]).0;
    assert!(shown.contains("me") && shown.contains("nightly"), "{shown}");
    assert!(expect(url, 4, &["set", "app:l", "x"]).1.contains("LOCKED"));
    expect(
        url,
        0,
        &["set", "app:l", "v", "--token", &token, "--fence", "zk=7"],
    );
    expect(url, 0, &["unlock", "app:l", &token]);
    assert!(expect(url, 4, &["unlock", "app:l", &token])
        .1
        .contains("FENCED"));
    assert!(expect(url, 4, &["set", "app:l", "x", "--fence", "zk=6"])
        .1
        .contains("FENCED"));
    assert_eq!(json(url, 0, &["locks", "app:l"])["mode"], Value::Null);
    expect(url, 2, &["lock", "app:l", "me", "--lease", "soon"]);
    expect(url, 2, &["set", "app:l", "x", "--fence", "zk"]);
}

#[test]
fn a_command_runs_while_its_lock_is_held() {
    let server = Server::start();
    let url = &server.url()[..];
    let script = r#"echo "$MAOS_LOCK_KEY $MAOS_LOCK_TOKEN"; exit 7"#;
    let out = expect(
        url,
        7,
        &["run", "--lock", "app:r", "--", "sh", "-c", script],
    )
    .0;
    let (key, token) = out.trim().split_once(' ').expect("a key and a token");
    assert_eq!(key, "app:r");
    assert!(token.parse::<u64>().is_ok_and(|t| t > 0), "{token}");
    assert_eq!(
        server.conn().run("EXISTS app:r").int(),
        0,
        "it was given back"
    );
    expect(
        url,
        2,
        &["run", "--lock", "app:r", "--", "/no/such/program"],
    );
    let held = json(url, 0, &["lock", "app:r", "me", "--lease", "10m"]);
    expect(url, 3, &["run", "--lock", "app:r", "--", "true"]);
    let token = held["token"].to_string();
    let waits = std::thread::spawn({
        let url = url.to_owned();
        move || {
            run(
                &url,
                &["run", "--lock", "app:r", "--wait", "10m", "--", "true"],
                b"",
            )
        }
    });
    while json(url, 0, &["locks", "app:r"])["waiters"] == Value::Array(vec![]) {}
    expect(url, 0, &["unlock", "app:r", &token]);
    assert_eq!(waits.join().unwrap().status.code(), Some(0));
    // The lock is lost while the command runs: it does not go on.
    let lost = std::thread::spawn({
        let url = url.to_owned();
        move || {
            let args = [
                "run", "--lock", "app:r", "--lease", "1s", "--", "sleep", "600",
            ];
            run(&url, &args, b"")
        }
    });
    while server.conn().run("DEL app:r").int() == 0 {}
    let lost = lost.join().unwrap();
    assert_eq!(lost.status.code(), Some(4));
    assert!(text(&lost.stderr).contains("lock was lost"));
}

#[test]
fn partitions_are_made_changed_shown_and_dropped() {
    let server = Server::start();
    let url = &server.url()[..];
    let name = "partition:crew";
    let line = "partition create partition:crew --bytes 100kb --type agent_dedicated --agent a1 \
                --prefix crew: --prefix team: --ttl 7d --onfull evict --onconflict function:choose \
                --history 7 --maxage 15m --maxvalue 9kb";
    let create: Vec<_> = line.split_whitespace().collect();
    let made = json(url, 0, &create);
    let list = ["partition", "list"];
    let got = json(url, 0, &list);
    let wanted = serde_json::json!({
        "name": name, "type": "agent_dedicated", "agent": "a1", "quota": 102_400, "used": 0,
        "free": 102_400, "fullness": 0.0, "keys": 0, "used_here": 0, "keys_here": 0,
        "high_water": 0, "refused": 0, "evicted": 0, "prefixes": ["crew:", "team:"],
        "onfull": "evict", "onconflict": "function:choose", "history": 7, "max_age_ms": 900_000,
        "max_value": 9216, "key_ttl_ms": 604_800_000, "expires_in_ms": null,
        "version": made["version"], "time": made["time"], "audit": null,
    });
    assert_eq!(got, wanted);
    assert!(expect(url, 4, &create).1.contains("EXISTS"));
    let info = |args: &[&str]| json(url, 0, &[&["partition", "info", name], args].concat());
    assert_eq!(info(&[]), wanted);

    let alter = |args: &[&str]| json(url, 0, &[&["partition", "alter", name], args].concat());
    alter(&[
        "--type",
        "shared_pool",
        "--no-prefix",
        "--ttl",
        "0",
        "--maxage",
        "0",
    ]);
    alter(&[
        "--maxvalue",
        "0",
        "--history",
        "0",
        "--onfull",
        "reject",
        "--onconflict",
        "lww",
    ]);
    alter(&["--bytes", "10k"]);
    let now = info(&[]);
    assert_eq!(
        (&now["type"], &now["agent"]),
        (&Value::from("shared_pool"), &Value::Null)
    );
    assert_eq!(
        (&now["quota"], &now["onfull"]),
        (&Value::from(10_000), &Value::from("reject"))
    );
    assert_eq!(now["prefixes"], Value::Array(vec![]));
    for none in ["key_ttl_ms", "max_age_ms", "max_value", "history"] {
        assert_eq!(now[none], Value::Null, "{none}");
    }

    // What people see.
    expect(url, 0, &["set", "crew:1", "v", "--partition", name]);
    let (table, _) = expect(url, 0, &list);
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("name            type         used  quota  full  keys"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("partition:crew  shared_pool"),
        "{table}"
    );
    assert!(lines[1].ends_with("9.8kb    1%     1"), "{table}");
    let (shown, _) = expect(url, 0, &["partition", "info", name]);
    for part in [
        "10000 bytes (9.8kb)",
        "shared_pool",
        "none yet",
        "those whose writes name it",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let audited = info(&["--audit"])["audit"].clone();
    assert_eq!(
        (&audited["keys"], &audited["drift"]),
        (&Value::from(1), &Value::from(0))
    );
    let (shown, _) = expect(url, 0, &["partition", "info", name, "--audit"]);
    assert!(shown.contains("by 1 key, as it was known"), "{shown}");
    let (pool, _) = expect(url, 0, &["partition", "pool"]);
    assert!(
        pool.starts_with("pool  9.8kb of 10.0gb reserved (1%), 10.0gb free;"),
        "{pool}"
    );
    assert_eq!(json(url, 0, &["partition", "pool"])["reserved"], 10_000);
    expect(
        url,
        0,
        &[
            "partition",
            "create",
            "p:2",
            "--bytes",
            "1kb",
            "--agent",
            "a2",
        ],
    );
    let of = |agent| expect(url, 0, &["partition", "list", "--agent", agent]).0;
    assert!(of("a2").contains("p:2") && !of("a2").contains(name));
    assert_eq!(of("a3"), "");

    let drop = ["partition", "drop", name];
    assert!(expect(url, 4, &drop).1.contains("EXISTS"));
    let dropped = json(url, 0, &[&drop[..], &["--force"]].concat());
    assert_eq!(dropped, serde_json::json!({"name": name, "keys": 1}));
    assert!(expect(url, 4, &["partition", "info", name])
        .1
        .contains("NOTFOUND"));
    let lasts = [
        "partition",
        "create",
        "p:3",
        "--bytes",
        "1kb",
        "--type",
        "temporary",
        "--ttl",
        "1h",
    ];
    json(url, 0, &lasts);
    let left = json(url, 0, &["partition", "info", "p:3"])["expires_in_ms"].as_u64();
    assert!(left > Some(0) && left <= Some(3_600_000));
}

#[test]
fn what_is_said_wrong_about_a_partition_is_told_before_anything_is_sent() {
    // Nobody answers there.
    let url = "redis://127.0.0.1:1/";
    for (line, why) in [
        ("create p --bytes 10xb", "500, 100kb, 10mb"),
        ("create p --bytes 0", "holds nothing"),
        ("create p", "--bytes"),
        (
            "create p --bytes 1 --type shared",
            "shared_pool, agent_dedicated",
        ),
        ("create p --bytes 1 --onfull wait", "reject or evict"),
        ("create p --bytes 1 --onconflict chance", "function:NAME"),
        ("create p --bytes 1 --ttl soon", "90s"),
        ("create p --bytes 1 --maxvalue 1.5mb", "100kb"),
        ("alter p --prefix a --no-prefix", "cannot be used with"),
        ("info p --wait 5s", "--audit"),
        ("top --interval 0s", "90s"),
        ("shrink p", "shrink"),
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let (_, err) = expect(url, 2, &[&["partition"], &args[..]].concat());
        assert!(err.contains(why), "{line}: {err}");
    }
    let server = Server::start();
    let line = "partition create p --bytes 1 --type persistent --agent a1";
    let args: Vec<_> = line.split(' ').collect();
    let (_, err) = expect(&server.url(), 2, &args);
    assert!(err.contains("--agent goes with"), "{err}");
    assert_eq!(server.conn().run("EXISTS p").int(), 0);
}

#[test]
fn every_writing_command_takes_a_partition() {
    let server = Server::start();
    let url = &server.url()[..];
    let named = ["--partition", "partition:p"];
    expect(
        url,
        0,
        &["partition", "create", "partition:p", "--bytes", "1mb"],
    );
    let write = |args: &[&str]| expect(url, 0, &[args, &named].concat());
    write(&["set", "k:1", "1"]);
    write(&["cas", "k:2", "0", "1"]);
    write(&["merge", "k:3", "0", "1"]);
    write(&["patch", "k:4", "{}"]);
    write(&["incr", "k:5"]);
    let first = json(url, 0, &["set", "k:6", "1"])["version"].to_string();
    write(&["rollback", "k:6", "--version", &first]);
    let feed = |args: &[&str], input: &str| {
        let output = run(url, &[args, &named].concat(), input.as_bytes());
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    feed(&["txn"], "then set k:7 1\n");
    feed(&["import"], "{\"key\":\"k:8\",\"value\":\"1\"}\n");
    for n in 1..=8 {
        let key = format!("k:{n}");
        assert_eq!(
            json(url, 0, &["get", &key])["partition"],
            "partition:p",
            "{key}"
        );
    }
    let full = expect(url, 0, &["get", "k:1", "--full"]).0;
    assert!(full.contains("partition:p"), "{full}");
    write(&["del", "k:8"]);
    assert_eq!(
        json(url, 0, &["partition", "info", "partition:p"])["keys"],
        8
    );
    let none = ["set", "k:9", "1", "--partition", "partition:none"];
    assert!(expect(url, 4, &none).1.contains("NOTFOUND"));
    assert_eq!(json(url, 0, &["set", "k:9", "1"])["applied"], true);
    assert_eq!(json(url, 0, &["get", "k:9"])["partition"], Value::Null);
    // A merge that leaves it to the partition does as that says.
    let alter = ["partition", "alter", "partition:p", "--onconflict", "fww"];
    expect(url, 0, &alter);
    let merge = ["merge", "k:6", &first, "7", "--strategy", "partition"];
    assert_eq!(json(url, 0, &merge)["how"], "kept");
}

#[test]
fn the_fullest_partition_stands_on_top() {
    let server = Server::start();
    let url = &server.url()[..];
    for (name, prefix) in [("p:empty", "e:"), ("p:full", "f:"), ("p:half", "h:")] {
        let args = [
            "partition",
            "create",
            name,
            "--bytes",
            "10kb",
            "--prefix",
            prefix,
        ];
        expect(url, 0, &args);
    }
    expect(url, 0, &["set", "f:1", &"x".repeat(9000)]);
    expect(url, 0, &["set", "h:1", &"x".repeat(4500)]);
    expect(url, 4, &["set", "f:2", &"x".repeat(9000)]);
    let (once, _) = expect(url, 0, &["partition", "top", "--once"]);
    let lines: Vec<_> = once.lines().collect();
    assert!(
        lines[0].starts_with("pool  30.0kb of 10.0gb reserved"),
        "{once}"
    );
    let names: Vec<_> = lines[2..].iter().map(|l| l.split(' ').next()).collect();
    assert_eq!(names, ["name", "p:full", "p:half", "p:empty"].map(Some));
    let words: Vec<_> = lines[3].split_whitespace().collect();
    assert_eq!(words[3..], ["10.0kb", "88%", "1", "-", "1", "0"], "{once}");
    assert!(
        words[1].starts_with("####") && words[1].ends_with('.'),
        "{once}"
    );
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{once}"
    );
    let seen = json(url, 0, &["partition", "top", "--once"]);
    assert_eq!(seen["pool"]["reserved"], 30 * 1024);
    assert_eq!(seen["partitions"][0]["name"], "p:full");
    assert_eq!(seen["partitions"][0]["bytes_per_second"], Value::Null);
}

#[test]
fn top_goes_on_until_it_is_interrupted() {
    let server = Server::start();
    let url = &server.url()[..];
    expect(
        url,
        0,
        &[
            "partition",
            "create",
            "p:1",
            "--bytes",
            "1mb",
            "--prefix",
            "k:",
        ],
    );
    let mut top = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args([
            "--url",
            url,
            "--json",
            "partition",
            "top",
            "--interval",
            "10ms",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut looks = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut look = || -> Value {
        let line = looks.next().expect("it goes on").unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["partitions"][0].clone()
    };
    let first = look();
    assert_eq!(
        (&first["used"], &first["bytes_per_second"]),
        (&Value::from(0), &Value::Null)
    );
    server
        .conn()
        .run(&format!("MAOS.SET k:1 {}", "x".repeat(1000)));
    // What came since the look before is a rate once, and then it is none any more.
    let mut grown = false;
    eventually(PATIENCE, "a rate is shown", || {
        let rate = look()["bytes_per_second"].as_f64();
        let rose = rate > Some(0.0);
        grown |= rose;
        grown && rate == Some(0.0)
    });
    let pid = top.id().to_string();
    assert!(Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap()
        .success());
    // The rest of what it wrote, that it does not stand still for want of a reader.
    let _ = looks.last();
    assert_eq!(top.wait().unwrap().code(), Some(0));
}

/// The tool while it watches, and what it writes.
fn watching(url: &str, args: &[&str]) -> (std::process::Child, impl FnMut() -> String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_maosctl"))
        .args(["--url", url, "--utc"])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, move || lines.next().expect("a line").unwrap())
}

#[test]
fn what_is_there_is_listed_and_what_happens_is_shown() {
    let server = Server::start();
    let (url, conn) = (&server.url(), &mut server.conn());
    for n in [3, 1, 2] {
        conn.run(&format!("MAOS.SET app:{n} v{n} BY planner")).int();
    }
    let since = conn.run("MAOS.SET other 1").int();
    assert_eq!(expect(url, 0, &["ls"]).0, "app:1\napp:2\napp:3\nother\n");
    assert_eq!(
        expect(url, 0, &["ls", "app:", "-n", "2"]).0,
        "app:1\napp:2\n"
    );
    let gone = conn.run("MAOS.DEL app:2 BY cleaner").int();
    let (long, _) = expect(url, 0, &["ls", "app:", "--long"]);
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("2 bytes  planner  app:1"), "{long}");
    let (changed, _) = expect(url, 0, &["ls", "app:", "--since", &since.to_string()]);
    assert!(changed.starts_with(&gone.to_string()), "{changed}");
    assert!(changed.ends_with("deleted  cleaner  app:2\n"), "{changed}");
    let (lines, _) = expect(url, 0, &["--json", "ls", "app:", "--since", "1h ago"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        (&lines[0]["value"], &lines[1]["deleted"]),
        (&"v1".into(), &true.into())
    );
    expect(url, 2, &["ls", "app:", "--since", "whenever"]);

    let place = server.dir().join("place");
    let place = place.to_str().unwrap();
    let args = [
        "--json",
        "watch",
        "app:*",
        "--values",
        "-n",
        "3",
        "--checkpoint",
        place,
    ];
    let (mut tool, mut next) = watching(url, &args);
    eventually(PATIENCE, "it watches", || {
        conn.info("maos")["maos_watchers"] == "1"
    });
    conn.run("MAOS.SET app:1 '{\"n\":1}' BY me").int();
    conn.run("MAOS.SET other 2").int();
    conn.run("DEL app:3").int();
    conn.run("FLUSHALL").ok();
    let told: Vec<Value> = (0..3)
        .map(|_| serde_json::from_str(&next()).unwrap())
        .collect();
    assert_eq!(
        (&told[0]["type"], &told[0]["key"]),
        (&"updated".into(), &"app:1".into())
    );
    assert_eq!(
        (&told[0]["value"]["n"], &told[0]["agent"]),
        (&1.into(), &"me".into())
    );
    assert_eq!(
        (&told[1]["type"], &told[1]["previous"].is_u64()),
        (&"deleted".into(), &true)
    );
    assert_eq!(
        (&told[2]["type"], &told[2]["key"]),
        (&"flushed".into(), &Value::Null)
    );
    assert_eq!(tool.wait().unwrap().code(), Some(0));
    // It goes on where it was, with what happened meanwhile.
    conn.run("MAOS.SET app:4 v BY other").int();
    conn.run("MAOS.SET app:5 v BY me").int();
    let args = [
        "watch",
        "app:*",
        "-n",
        "1",
        "--not-by",
        "other",
        "--types",
        "created",
        "--checkpoint",
        place,
    ];
    let (out, _) = expect(url, 0, &args);
    assert!(
        out.contains("created     app:5") && out.trim_end().ends_with("me"),
        "{out}"
    );
    // The present state first; the end of it goes to people.
    let (out, err) = expect(url, 0, &["watch", "app:", "--snapshot", "-n", "3"]);
    assert!(
        out.lines().count() == 2 && err.contains("what happens"),
        "{out}{err}"
    );
    let (_, err) = expect(url, 4, &["watch", "app:["]);
    assert!(err.contains("without its ]"), "{err}");
    expect(url, 2, &["watch", "a", "b", "--snapshot"]);
    expect(url, 2, &["watch", "a", "--types", "nonsense"]);
    fs::write(place, "nonsense").unwrap();
    let (_, err) = expect(url, 2, &["watch", "a", "--checkpoint", place]);
    assert!(err.contains("place"), "{err}");
    // What the log has let go is said, also to programs.
    fs::write(place, "server=5").unwrap();
    let args = ["--json", "watch", "app:*", "-n", "1", "--checkpoint", place];
    let gap: Value = serde_json::from_str(&expect(url, 0, &args).0).unwrap();
    assert_eq!(
        (&gap["type"], &gap["cause"]),
        (&"gap".into(), &"compacted".into())
    );
}
