//! Where the store is and how to talk to it: by builder, environment or file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use serde::Deserialize;

use crate::Error;

/// The address used where none is given.
pub const DEFAULT_URL: &str = "redis://127.0.0.1:6379/";

/// The settings of a [`Client`](crate::Client).
///
/// ```
/// use std::time::Duration;
/// use maos_client::Config;
///
/// # fn main() -> Result<(), maos_client::Error> {
/// let config = Config::new("redis://127.0.0.1:6379/")?
///     .username("planner")
///     .password("a secret")
///     .deadline(Duration::from_secs(3));
/// assert!(!format!("{config:?}").contains("a secret"));
/// # Ok(())
/// # }
/// ```
///
/// [`from_env`](Config::from_env) reads these variables, [`from_file`](Config::from_file) a TOML
/// file with the same settings:
///
/// | variable | file | meaning | default |
/// | --- | --- | --- | --- |
/// | `REDIS_STATE_URLS` | `urls = ["…"]` | addresses, comma separated: `redis://`, `rediss://` (TLS), `redis+unix://` | `redis://127.0.0.1:6379/` |
/// | `REDIS_CLUSTER_ENABLED` | `cluster` | the addresses are nodes of a cluster | `false` |
/// | `REDIS_PROTOCOL` | `protocol` | RESP version, 2 or 3 | 3 |
/// | `REDIS_AUTH_USERNAME` | `auth.username` | the ACL user | the URL's |
/// | `REDIS_AUTH_PASSWORD` | `auth.password` | the password | the URL's |
/// | `REDIS_TLS_ENABLED` | `tls.enabled` | use TLS for `redis://` addresses too | `false` |
/// | `REDIS_TLS_CA_FILE` | `tls.ca_file` | PEM file of the certificates to trust | those of the system |
/// | `REDIS_TLS_CERT_FILE` | `tls.cert_file` | PEM file of the client's certificate | none |
/// | `REDIS_TLS_KEY_FILE` | `tls.key_file` | PEM file of its key | none |
/// | `REDIS_CONNECT_TIMEOUT_MS` | `connect_timeout_ms` | to make one connection | 2000 |
/// | `REDIS_RESPONSE_TIMEOUT_MS` | `response_timeout_ms` | for one answer | 5000 |
/// | `REDIS_DEADLINE_MS` | `deadline_ms` | for one call with all its repetitions | 15000 |
/// | `REDIS_ATTEMPTS` | `attempts` | how often one call is tried at most | 25 |
///
/// Several addresses without `cluster` are the same store by different ways: they are tried in
/// turn, and one that turns out to be a read-only replica is passed over for writes.
#[derive(Clone)]
pub struct Config {
    pub(crate) nodes: Vec<ConnectionInfo>,
    pub(crate) cluster: bool,
    pub(crate) protocol: ProtocolVersion,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) tls: Option<Tls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) attempts: u32,
    pub(crate) agent: Option<String>,
}

/// The RESP version of a connection. Both carry the same answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Protocol {
    /// RESP2: for servers and proxies that know no other.
    Resp2,
    /// RESP3.
    Resp3,
}

/// How connections are encrypted. Certificates are always checked.
#[derive(Clone, Default, Debug)]
pub struct Tls {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// TLS that trusts the certificates the system trusts.
    pub fn new() -> Tls {
        Tls::default()
    }

    /// Trusts the certificates of this PEM file and no others.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Tls {
        self.ca = Some(path.into());
        self
    }

    /// Shows the server this certificate, with this key: PEM files.
    pub fn identity(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    pub(crate) fn load(&self) -> Result<redis::TlsCertificates, Error> {
        let client_tls = match &self.identity {
            None => None,
            Some((cert, key)) => Some(redis::ClientTlsConfig {
                client_cert: read("tls.cert_file", cert)?,
                client_key: read("tls.key_file", key)?,
            }),
        };
        let root_cert = self.ca.as_deref().map(|ca| read("tls.ca_file", ca));
        Ok(redis::TlsCertificates {
            client_tls,
            root_cert: root_cert.transpose()?,
        })
    }
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|e| Error::config(field, format!("cannot read {}: {e}", path.display())))
}

/// Text that is never shown.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Config {
    /// The settings for the store at one address.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not an address.
    pub fn new(url: &str) -> Result<Config, Error> {
        Config::with_urls([url])
    }

    /// The settings for the store at these addresses.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none, or one is not an address.
    pub fn with_urls<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Config, Error> {
        Config::read_urls("urls", urls)
    }

    fn read_urls<'a>(
        field: &str,
        urls: impl IntoIterator<Item = &'a str>,
    ) -> Result<Config, Error> {
        let mut nodes = Vec::new();
        for (n, url) in urls.into_iter().enumerate() {
            // The address is not repeated: it may hold a password.
            let node = url.into_connection_info().map_err(|e| {
                let why = e.detail().map_or_else(|| e.to_string(), str::to_owned);
                let text = format!(
                    "address {} is not of the form redis://[user:password@]host[:port][/db]: {}",
                    n + 1,
                    without(&why, url),
                );
                Error::config(field, text)
            })?;
            nodes.push(node);
        }
        if nodes.is_empty() {
            return Err(Error::config(field, "at least one address is needed"));
        }
        Ok(Config {
            nodes,
            cluster: false,
            protocol: ProtocolVersion::RESP3,
            username: None,
            password: None,
            tls: None,
            connect_timeout: Duration::from_millis(2_000),
            response_timeout: Duration::from_millis(5_000),
            deadline: Duration::from_millis(15_000),
            attempts: 25,
            agent: None,
        })
    }

    /// The settings of the environment.
    ///
    /// # Errors
    /// [`Error::Config`], naming the variable.
    pub fn from_env() -> Result<Config, Error> {
        Config::from_vars(|name| std::env::var(name).ok())
    }

    /// The settings of variables that `get` knows; an empty one counts as not there.
    ///
    /// # Errors
    /// [`Error::Config`], naming the variable.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Config, Error> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let urls = get("REDIS_STATE_URLS").unwrap_or_else(|| DEFAULT_URL.to_owned());
        let urls = urls.split(',').map(str::trim);
        let mut config = Config::read_urls("REDIS_STATE_URLS", urls)?;
        config.username = get("REDIS_AUTH_USERNAME");
        config.password = get("REDIS_AUTH_PASSWORD").map(Secret);
        let flag = |name: &str| match get(name).as_deref() {
            None => Ok(None),
            Some("1" | "true" | "yes" | "on") => Ok(Some(true)),
            Some("0" | "false" | "no" | "off") => Ok(Some(false)),
            Some(other) => Err(Error::config(name, format!("true or false, not {other:?}"))),
        };
        let number = |name: &str| match get(name) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                Error::config(name, format!("a whole number is needed, not {text:?}"))
            }),
        };
        config.apply(
            Fields {
                cluster: flag("REDIS_CLUSTER_ENABLED")?,
                protocol: number("REDIS_PROTOCOL")?,
                connect_timeout_ms: number("REDIS_CONNECT_TIMEOUT_MS")?,
                response_timeout_ms: number("REDIS_RESPONSE_TIMEOUT_MS")?,
                deadline_ms: number("REDIS_DEADLINE_MS")?,
                attempts: number("REDIS_ATTEMPTS")?,
                tls: TlsFields {
                    enabled: flag("REDIS_TLS_ENABLED")?,
                    ca_file: get("REDIS_TLS_CA_FILE").map(Into::into),
                    cert_file: get("REDIS_TLS_CERT_FILE").map(Into::into),
                    key_file: get("REDIS_TLS_KEY_FILE").map(Into::into),
                },
                ..Fields::default()
            },
            &variable,
        )?;
        Ok(config)
    }

    /// The settings of a TOML file. A field that is not known is refused.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field or the line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Config, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::config(&name, format!("cannot be read: {e}")))?;
        Config::from_toml(&text).map_err(|e| match e {
            Error::Config { field, text } => Error::config(format!("{name}: {field}"), text),
            other => other,
        })
    }

    /// The settings of a TOML text, as [`from_file`](Config::from_file).
    ///
    /// # Errors
    /// [`Error::Config`], naming the field or the line.
    pub fn from_toml(text: &str) -> Result<Config, Error> {
        let fields: Fields = toml::from_str(text).map_err(|e| {
            // Neither the line nor what stands in it is shown: it may be the password.
            let before = e.span().map_or(0, |s| s.start);
            let line = text.get(..before).unwrap_or(text).matches('\n').count() + 1;
            let text = match e.message().rsplit_once(", expected ") {
                Some((what, kind)) if what.starts_with("invalid ") => {
                    format!("a value of the wrong kind; expected {kind}")
                }
                _ => e.message().to_owned(),
            };
            Error::config(format!("line {line}"), text)
        })?;
        let default = vec![DEFAULT_URL.to_owned()];
        let urls = fields.urls.clone().unwrap_or(default);
        let mut config = Config::with_urls(urls.iter().map(String::as_str))?;
        config.username = fields.auth.username.clone();
        config.password = fields.auth.password.clone().map(Secret);
        config.apply(fields, &str::to_owned)?;
        Ok(config)
    }

    fn apply(&mut self, fields: Fields, name: &dyn Fn(&str) -> String) -> Result<(), Error> {
        self.cluster = fields.cluster.unwrap_or(self.cluster);
        match fields.protocol {
            None | Some(3) => {}
            Some(2) => self.protocol = ProtocolVersion::RESP2,
            Some(n) => return Err(Error::config(name("protocol"), format!("2 or 3, not {n}"))),
        }
        let millis = |field: &str, value: Option<u64>, default: Duration| match value {
            None => Ok(default),
            Some(0) => Err(Error::config(
                name(field),
                "at least 1 millisecond is needed",
            )),
            Some(ms) => Ok(Duration::from_millis(ms)),
        };
        self.connect_timeout = millis(
            "connect_timeout_ms",
            fields.connect_timeout_ms,
            self.connect_timeout,
        )?;
        self.response_timeout = millis(
            "response_timeout_ms",
            fields.response_timeout_ms,
            self.response_timeout,
        )?;
        self.deadline = millis("deadline_ms", fields.deadline_ms, self.deadline)?;
        if let Some(n) = fields.attempts {
            let n = u32::try_from(n).ok().filter(|n| *n > 0);
            self.attempts =
                n.ok_or_else(|| Error::config(name("attempts"), "at least 1 is needed"))?;
        }
        self.tls = fields.tls.read(name)?;
        Ok(())
    }

    /// Whether the addresses are nodes of a cluster.
    pub fn cluster(mut self, cluster: bool) -> Config {
        self.cluster = cluster;
        self
    }

    /// The RESP version to speak.
    pub fn protocol(mut self, protocol: Protocol) -> Config {
        self.protocol = match protocol {
            Protocol::Resp2 => ProtocolVersion::RESP2,
            Protocol::Resp3 => ProtocolVersion::RESP3,
        };
        self
    }

    /// The ACL user, in the place of the addresses'.
    pub fn username(mut self, username: impl Into<String>) -> Config {
        self.username = Some(username.into());
        self
    }

    /// The password, in the place of the addresses'.
    pub fn password(mut self, password: impl Into<String>) -> Config {
        self.password = Some(Secret(password.into()));
        self
    }

    /// Encrypts all connections, whatever the addresses say.
    pub fn tls(mut self, tls: Tls) -> Config {
        self.tls = Some(tls);
        self
    }

    /// How long making one connection may take.
    pub fn connect_timeout(mut self, limit: Duration) -> Config {
        self.connect_timeout = limit;
        self
    }

    /// How long one answer may take before its connection counts as lost.
    pub fn response_timeout(mut self, limit: Duration) -> Config {
        self.response_timeout = limit;
        self
    }

    /// How long one call may take with all its repetitions.
    pub fn deadline(mut self, limit: Duration) -> Config {
        self.deadline = limit;
        self
    }

    /// How often one call is tried at most; 1 means that nothing is repeated.
    pub fn attempts(mut self, attempts: u32) -> Config {
        self.attempts = attempts.max(1);
        self
    }

    /// The agent that writes declare when they do not name one themselves.
    pub fn agent(mut self, agent: impl Into<String>) -> Config {
        self.agent = Some(agent.into());
        self
    }

    /// The same for one node of the cluster.
    pub(crate) fn at(mut self, host: &str, port: u16) -> Config {
        let node = self.nodes[0].clone();
        // A node that has never met another one does not know its own.
        let host = match (host, node.addr()) {
            ("", ConnectionAddr::Tcp(known, _) | ConnectionAddr::TcpTls { host: known, .. }) => {
                known.clone()
            }
            _ => host.to_owned(),
        };
        let addr = match node.addr().clone() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure,
                tls_params,
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.nodes = vec![node.set_addr(addr)];
        self.cluster = false;
        self
    }

    /// The addresses as they may be shown.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.addr().to_string()).collect()
    }

    /// The addresses with user, password, protocol and TLS put in.
    pub(crate) fn complete_nodes(&self) -> Result<Vec<ConnectionInfo>, Error> {
        let nodes = self.nodes.iter().cloned();
        nodes.map(|node| self.complete(node)).collect()
    }

    fn complete(&self, node: ConnectionInfo) -> Result<ConnectionInfo, Error> {
        let mut settings = node
            .redis_settings()
            .clone()
            .set_protocol(self.protocol)
            .set_skip_set_lib_name();
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(Secret(password)) = &self.password {
            settings = settings.set_password(password);
        }
        if settings.username().is_some() && settings.password().is_none() {
            return Err(Error::config("password", "a user name needs a password"));
        }
        let addr = match (node.addr().clone(), &self.tls) {
            (ConnectionAddr::Tcp(host, port), Some(_)) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
            (ConnectionAddr::TcpTls { insecure: true, .. }, _) => {
                let text =
                    "#insecure is not offered; name the certificates to trust in tls.ca_file";
                return Err(Error::config("urls", text));
            }
            (ConnectionAddr::Unix(_), Some(_)) => {
                return Err(Error::config("tls", "a Unix socket is not encrypted"));
            }
            (addr, _) => addr,
        };
        Ok(node.set_addr(addr).set_redis_settings(settings))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("addresses", &self.addresses())
            .field("cluster", &self.cluster)
            .field("protocol", &self.protocol)
            .field("username", &self.username)
            .field("password", &self.password)
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("deadline", &self.deadline)
            .field("attempts", &self.attempts)
            .field("agent", &self.agent)
            .finish()
    }
}

/// An explanation without the address it explains, should it repeat it.
fn without(why: &str, url: &str) -> String {
    if url.is_empty() {
        return "it is empty".to_owned();
    }
    why.replace(url, "(it)")
}

/// The variable that a field has in the environment.
fn variable(field: &str) -> String {
    let name = field.replace('.', "_").to_uppercase();
    format!("REDIS_{name}")
}

/// The fields of a file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    urls: Option<Vec<String>>,
    cluster: Option<bool>,
    protocol: Option<u64>,
    connect_timeout_ms: Option<u64>,
    response_timeout_ms: Option<u64>,
    deadline_ms: Option<u64>,
    attempts: Option<u64>,
    auth: AuthFields,
    tls: TlsFields,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AuthFields {
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TlsFields {
    enabled: Option<bool>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

impl TlsFields {
    /// Files without `enabled` count as enabling; with `enabled = false` they are put by.
    fn read(self, name: &dyn Fn(&str) -> String) -> Result<Option<Tls>, Error> {
        let identity = match (self.cert_file, self.key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                let text = "the certificate needs its key";
                return Err(Error::config(name("tls.key_file"), text));
            }
            (None, Some(_)) => {
                let text = "the key needs its certificate";
                return Err(Error::config(name("tls.cert_file"), text));
            }
        };
        let given = self.ca_file.is_some() || identity.is_some();
        let tls = Tls {
            ca: self.ca_file,
            identity,
        };
        Ok(self.enabled.unwrap_or(given).then_some(tls))
    }
}
