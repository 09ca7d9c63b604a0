//! Connections: one server or a cluster, made again when they are lost.
//!
//! Nothing here repeats a request: a [`Fault`] says what is known about its fate, and
//! [`Client`](crate::Client) decides. That is why the cluster client's own repetitions are off.

use std::error::Error as StdError;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maos_core::{Code, Refusal};
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr,
};
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, RedisError, Value};

use crate::{Config, Error, Tls};

/// What became of a request that got no answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It was not carried out: it never left.
    NotSent(RedisError),
    /// It may have been carried out.
    Unknown(RedisError),
    /// The server would not look at it now: it was not carried out.
    Later(Error),
    /// Another node of the cluster has the key: it was not carried out.
    Elsewhere(Via),
    /// There is no use in trying again.
    Final(Error),
}

/// The way to a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// The master of the slot, by what is known of the cluster; any server without a cluster.
    Slot(Slot),
    /// This node.
    Node { host: String, port: u16 },
    /// This node, which takes the slot over from another.
    Asking { host: String, port: u16 },
}

impl Via {
    /// Where it does not matter, or where there is one server.
    pub(crate) fn any() -> Via {
        Via::Slot(Slot::for_key(b""))
    }
}

pub(crate) enum Link {
    One(Box<Server>),
    Many(Box<Cluster>),
}

impl Link {
    pub(crate) fn new(config: &Config) -> Result<Link, Error> {
        let nodes = config.complete_nodes()?;
        let encrypted = nodes
            .iter()
            .any(|n| matches!(n.addr(), ConnectionAddr::TcpTls { .. }));
        if encrypted && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may have been faster, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        match config.cluster {
            true => Cluster::new(config, nodes).map(|c| Link::Many(Box::new(c))),
            false => Server::new(config, nodes).map(|s| Link::One(Box::new(s))),
        }
    }

    /// Makes sure that there is a connection.
    pub(crate) async fn connect(&self) -> Result<(), Fault> {
        match self {
            Link::One(server) => server.conn().await.map(drop),
            Link::Many(cluster) => cluster.conn().await.map(drop),
        }
    }

    /// Sends once. `departed` becomes true before anything can reach a server.
    pub(crate) async fn send(
        &self,
        cmd: &Cmd,
        via: &Via,
        departed: &AtomicBool,
    ) -> Result<Value, Fault> {
        match self {
            Link::One(server) => server.send(cmd, departed).await,
            Link::Many(cluster) => cluster.send(cmd, via, departed).await,
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Link::Many(_))
    }
}

/// One server, by one or several addresses.
pub(crate) struct Server {
    ways: Vec<redis::Client>,
    config: AsyncConnectionConfig,
    live: Mutex<Live>,
    connecting: tokio::sync::Mutex<()>,
}

struct Live {
    conn: Option<MultiplexedConnection>,
    /// Which connection this is, so that only the first who sees it fail puts it away.
    number: u64,
    /// The address to begin with.
    way: usize,
}

impl Server {
    fn new(config: &Config, nodes: Vec<redis::ConnectionInfo>) -> Result<Server, Error> {
        let certificates = config.tls.as_ref().map(Tls::load).transpose()?;
        let open = |node: redis::ConnectionInfo| match &certificates {
            Some(certificates) => redis::Client::build_with_tls(node, certificates.clone()),
            None => redis::Client::open(node),
        };
        let ways = nodes.into_iter().map(open).collect::<Result<Vec<_>, _>>();
        Ok(Server {
            ways: ways.map_err(|e| Error::config("tls", e.to_string()))?,
            config: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(config.connect_timeout))
                .set_response_timeout(Some(config.response_timeout))
                .set_pipeline_buffer_size(1024),
            live: Mutex::new(Live {
                conn: None,
                number: 0,
                way: 0,
            }),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> Option<(u64, MultiplexedConnection)> {
        let live = self.live();
        live.conn.clone().map(|conn| (live.number, conn))
    }

    async fn conn(&self) -> Result<(u64, MultiplexedConnection), Fault> {
        if let Some(present) = self.present() {
            return Ok(present);
        }
        let _only_one_connects = self.connecting.lock().await;
        if let Some(present) = self.present() {
            return Ok(present);
        }
        let first = self.live().way;
        let mut fault = None;
        for n in 0..self.ways.len() {
            let way = (first + n) % self.ways.len();
            let client = &self.ways[way];
            let made = client
                .get_multiplexed_async_connection_with_config(&self.config)
                .await;
            match made {
                Ok(conn) => {
                    let mut live = self.live();
                    live.number += 1;
                    live.way = way;
                    live.conn = Some(conn.clone());
                    tracing::debug!(number = live.number, "connected");
                    return Ok((live.number, conn));
                }
                Err(error) => fault = Some(not_connected(error)),
            }
        }
        Err(fault.unwrap_or_else(|| Fault::Final(Error::config("urls", "there is none"))))
    }

    async fn send(&self, cmd: &Cmd, departed: &AtomicBool) -> Result<Value, Fault> {
        let (number, mut conn) = self.conn().await?;
        departed.store(true, Ordering::Relaxed);
        let answer = conn.send_packed_command(cmd).await;
        let fault = match answer.and_then(Value::extract_error) {
            Ok(value) => return Ok(value),
            Err(error) => fault_of(error),
        };
        match fault {
            Fault::Unknown(_) | Fault::NotSent(_) => self.put_away(number, 0),
            // Another address may be that of the master.
            Fault::Final(Error::Refused(Refusal {
                code: Code::ReadOnly,
                text,
            })) if self.ways.len() > 1 => {
                self.put_away(number, 1);
                return Err(Fault::Later(Error::Refused(Refusal {
                    code: Code::ReadOnly,
                    text,
                })));
            }
            Fault::Elsewhere(_) => {
                let text = "this server is a node of a cluster: set REDIS_CLUSTER_ENABLED=true, or cluster = true";
                return Err(Fault::Final(Error::config("cluster", text)));
            }
            _ => {}
        }
        Err(fault)
    }

    fn put_away(&self, number: u64, step: usize) {
        let mut live = self.live();
        if live.number == number && live.conn.take().is_some() {
            live.way += step;
            tracing::debug!(number, "connection lost");
        }
    }
}

/// The nodes of a cluster.
pub(crate) struct Cluster {
    client: ClusterClient,
    live: tokio::sync::Mutex<Option<ClusterConnection>>,
}

impl Cluster {
    fn new(config: &Config, nodes: Vec<redis::ConnectionInfo>) -> Result<Cluster, Error> {
        let mut builder = ClusterClientBuilder::new(nodes)
            .use_protocol(config.protocol)
            .retries(0)
            .connection_timeout(config.connect_timeout)
            .response_timeout(config.response_timeout);
        if let Some(tls) = &config.tls {
            builder = builder.certs(tls.load()?);
        }
        Ok(Cluster {
            client: builder
                .build()
                .map_err(|e| Error::config("urls", e.to_string()))?,
            live: tokio::sync::Mutex::new(None),
        })
    }

    async fn conn(&self) -> Result<ClusterConnection, Fault> {
        let mut live = self.live.lock().await;
        if let Some(conn) = &*live {
            return Ok(conn.clone());
        }
        let conn = self.client.get_async_connection().await;
        let conn = conn.map_err(not_connected)?;
        *live = Some(conn.clone());
        Ok(conn)
    }

    async fn send(&self, cmd: &Cmd, via: &Via, departed: &AtomicBool) -> Result<Value, Fault> {
        let mut conn = self.conn().await?;
        departed.store(true, Ordering::Relaxed);
        let by_address = |host: &String, port: &u16| SingleNodeRoutingInfo::ByAddress {
            host: host.clone(),
            port: *port,
        };
        let answer = match via {
            Via::Slot(slot) => {
                let route = Route::with_slot(*slot, SlotAddr::Master);
                let route = SingleNodeRoutingInfo::SpecificNode(route);
                conn.route_command(cmd.clone(), RoutingInfo::SingleNode(route))
                    .await
            }
            Via::Node { host, port } => {
                let route = RoutingInfo::SingleNode(by_address(host, port));
                conn.route_command(cmd.clone(), route).await
            }
            Via::Asking { host, port } => {
                // A pipeline reaches the node in one piece: nobody's command comes between.
                let mut both = redis::Pipeline::with_capacity(2);
                both.add_command(redis::cmd("ASKING"));
                both.add_command(cmd.clone());
                let answers = conn.route_pipeline(both, 0, 2, by_address(host, port));
                answers
                    .await
                    .map(|mut answers| answers.pop().unwrap_or(Value::Nil))
            }
        };
        answer.and_then(Value::extract_error).map_err(fault_of)
    }

    /// One command to every master: the addresses and their answers.
    pub(crate) async fn masters(&self, cmd: Cmd) -> Result<Vec<(Via, Value)>, Fault> {
        let mut conn = self.conn().await?;
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answer = conn.route_command(cmd, all).await.map_err(fault_of)?;
        let Value::Map(pairs) = answer else {
            let text = "a map of nodes was expected".to_owned();
            return Err(Fault::Final(Error::Protocol(text)));
        };
        let mut masters = Vec::with_capacity(pairs.len());
        for (address, value) in pairs {
            let value = value.extract_error().map_err(fault_of)?;
            let via = match &address {
                Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(node_of),
                Value::SimpleString(text) => node_of(text),
                _ => None,
            };
            let via = via.ok_or_else(|| {
                Fault::Final(Error::Protocol("an address was expected".to_owned()))
            })?;
            masters.push((via, value));
        }
        Ok(masters)
    }
}

fn node_of(address: &str) -> Option<Via> {
    let (host, port) = address.rsplit_once(':')?;
    Some(Via::Node {
        host: host.to_owned(),
        port: port.parse().ok()?,
    })
}

/// The fault of a connection that could not be made.
fn not_connected(error: RedisError) -> Fault {
    match fault_of(error) {
        Fault::Unknown(error) => match io_error(&error) {
            // A certificate that is not good now will not be good in a second.
            Some(cause) if cause.kind() == io::ErrorKind::InvalidData => {
                Fault::Final(transport(error))
            }
            _ => Fault::NotSent(error),
        },
        other => other,
    }
}

fn transport(error: RedisError) -> Error {
    Error::Transport {
        text: format!("no connection: {error}"),
        applied: crate::Applied::No,
        attempts: 1,
        source: Some(Box::new(error)),
    }
}

fn fault_of(error: RedisError) -> Fault {
    if let Some(word) = error.code() {
        return said(word.to_owned(), &error);
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => Fault::Final(server_error(
            "WRONGPASS",
            "the user name or password is wrong",
        )),
        ErrorKind::InvalidClientConfig => Fault::Final(Error::config("urls", error.to_string())),
        ErrorKind::RESP3NotSupported => {
            let text = "the server does not know RESP3; set REDIS_PROTOCOL=2, or protocol = 2";
            Fault::Final(Error::config("protocol", text))
        }
        // A reply that was cut in the middle looks like this.
        ErrorKind::Parse => Fault::Unknown(error),
        ErrorKind::UnexpectedReturnType => Fault::Final(Error::Protocol(error.to_string())),
        ErrorKind::ClusterConnectionNotFound => Fault::NotSent(error),
        _ if error.is_connection_refusal() => Fault::NotSent(error),
        _ => Fault::Unknown(error),
    }
}

/// What an error that the server itself answered means.
fn said(word: String, error: &RedisError) -> Fault {
    let text = error.detail().unwrap_or_default().to_owned();
    match (word.as_str(), error.redirect_node()) {
        ("MOVED", Some((node, _))) => match node_of(node) {
            Some(via) => Fault::Elsewhere(via),
            None => Fault::Later(server_error(&word, &text)),
        },
        ("ASK", Some((node, _))) => match node_of(node) {
            Some(Via::Node { host, port }) => Fault::Elsewhere(Via::Asking { host, port }),
            _ => Fault::Later(server_error(&word, &text)),
        },
        ("LOADING" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN", _) => {
            Fault::Later(server_error(&word, &text))
        }
        ("BUSY", _) => Fault::Later(Error::Refused(Refusal {
            code: Code::Busy,
            text: text.into(),
        })),
        _ => Fault::Final(match Code::from_word(&word) {
            Some(code) => Error::Refused(Refusal {
                code,
                text: text.into(),
            }),
            None => server_error(&word, &text),
        }),
    }
}

fn server_error(word: &str, text: &str) -> Error {
    Error::Server {
        word: word.to_owned(),
        text: text.to_owned(),
    }
}

fn io_error(error: &RedisError) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}
