//! Settings by environment and file.

use maos_client::{Config, Error};

/// Settings from variables given in place of the environment's.
fn vars(vars: &[(&str, &str)]) -> Result<Config, Error> {
    let find = |name: &str| vars.iter().find(|(n, _)| *n == name);
    Config::from_vars(|name| find(name).map(|(_, value)| (*value).to_owned()))
}

#[track_caller]
fn field_of(config: Result<Config, Error>) -> (String, String) {
    match config {
        Err(Error::Config { field, text }) => (field, text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_environment_is_read() {
    let shown = format!("{:?}", vars(&[]).unwrap());
    assert!(
        shown.contains("127.0.0.1:6379") && shown.contains("cluster: false"),
        "{shown}"
    );
    let config = vars(&[
        ("REDIS_STATE_URLS", "redis://a:1, rediss://b:2"),
        ("REDIS_CLUSTER_ENABLED", "true"),
        ("REDIS_AUTH_USERNAME", "planner"),
        ("REDIS_AUTH_PASSWORD", "hush"),
        ("REDIS_TLS_ENABLED", "yes"),
        ("REDIS_TLS_CA_FILE", "/ca.pem"),
        ("REDIS_PROTOCOL", "2"),
        ("REDIS_DEADLINE_MS", "1234"),
        ("REDIS_ATTEMPTS", ""),
    ])
    .unwrap();
    assert_eq!(config.addresses(), ["a:1", "b:2"]);
    let shown = format!("{config:?}");
    for part in ["cluster: true", "planner", "/ca.pem", "RESP2", "1.234s"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value) in [
        ("REDIS_STATE_URLS", "http://x"),
        ("REDIS_STATE_URLS", "redis://a,,redis://b"),
        ("REDIS_CLUSTER_ENABLED", "maybe"),
        ("REDIS_TLS_ENABLED", "2"),
        ("REDIS_PROTOCOL", "4"),
        ("REDIS_DEADLINE_MS", "soon"),
        ("REDIS_CONNECT_TIMEOUT_MS", "0"),
        ("REDIS_ATTEMPTS", "0"),
    ] {
        let (field, text) = field_of(vars(&[(name, value)]));
        assert_eq!(field, name, "{value}: {text}");
    }
    let (field, _) = field_of(vars(&[("REDIS_TLS_CERT_FILE", "/c.pem")]));
    assert_eq!(field, "REDIS_TLS_KEY_FILE");
    let (_, text) = field_of(vars(&[("REDIS_STATE_URLS", "http://me:hush@x")]));
    assert!(!text.contains("hush"), "{text}");
}

#[test]
fn a_file_is_read_and_what_it_should_not_hold_is_refused() {
    let config = Config::from_toml(
        r#"
        urls = ["redis://a:1", "redis://b:2"]
        cluster = true
        protocol = 2
        deadline_ms = 500
        [auth]
        username = "planner"
        password = "hush"
        [tls]
        ca_file = "/ca.pem"
        "#,
    )
    .unwrap();
    let shown = format!("{config:?}");
    for part in ["a:1", "b:2", "cluster: true", "RESP2", "500ms", "/ca.pem"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains("hush"), "{shown}");

    for (toml, field, part) in [
        ("cluster = true\ncolour = 1", "line 2", "colour"),
        ("[auth]\nuser = 'x'", "line 2", "user"),
        ("\n\nprotocol = 'two'", "line 3", "wrong kind"),
        ("protocol = 4", "protocol", "2 or 3"),
        ("urls = []", "urls", "at least one"),
        ("urls = ['x']", "urls", "address 1"),
        ("[tls]\nkey_file = '/k.pem'", "tls.cert_file", "certificate"),
        ("attempts = 0", "attempts", "at least 1"),
    ] {
        let (said, text) = field_of(Config::from_toml(toml));
        assert_eq!(said, field, "{toml}: {text}");
        assert!(text.contains(part), "{toml}: {text}");
    }
    // The password is not repeated.
    for toml in ["[auth]\npassword = hush", "[auth]\npassword = 4711"] {
        let (_, text) = field_of(Config::from_toml(toml));
        assert!(!text.contains("hush") && !text.contains("4711"), "{text}");
    }
    let (field, text) = field_of(Config::from_file("/no/such/file.toml"));
    assert!(
        field.contains("/no/such/file.toml") && text.contains("cannot be read"),
        "{text}"
    );
}
