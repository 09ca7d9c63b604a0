//! A wire between client and server that can be cut.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Passes bytes between its port and a server's.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Cut in place of the next bytes from the server.
    swallow_next_reply: AtomicBool,
    /// Cut each connection after a random number of bytes up to this one, in a random direction.
    bytes_to_live: AtomicU64,
    connections: AtomicU32,
    cuts: AtomicU32,
}

impl Proxy {
    pub async fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connection(client, server, shared.clone()));
            }
        });
        Proxy { port, state, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The next request gets through to the server; in place of its reply the connection is cut.
    pub fn swallow_next_reply(&self) {
        self.state.swallow_next_reply.store(true, Ordering::SeqCst);
    }

    /// From now on connections are cut at random points, on the average after half so many bytes;
    /// 0: no longer.
    pub fn cut_after(&self, bytes: u64) {
        self.state.bytes_to_live.store(bytes, Ordering::SeqCst);
    }

    /// How many connections there were.
    pub fn connections(&self) -> u32 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How many were cut.
    pub fn cuts(&self) -> u32 {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, server: SocketAddr, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    // Or the client would wait 40 ms for each small packet.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let budget = match state.bytes_to_live.load(Ordering::SeqCst) {
        0 => u64::MAX,
        most => fastrand::u64(0..=most),
    };
    // Requests get through and replies do not, or a request is cut in the middle.
    let (up, down) = match fastrand::bool() {
        true => (u64::MAX, budget),
        false => (budget, u64::MAX),
    };
    // When one direction ends, both halves of both sockets are dropped: that is the cut.
    let ended = tokio::select! {
        ended = pump(from_client, to_server, up, None) => ended,
        ended = pump(from_server, to_client, down, Some(&state)) => ended,
    };
    if matches!(ended, Ok(End::Cut)) {
        state.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

enum End {
    Closed,
    Cut,
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut budget: u64,
    replies: Option<&State>,
) -> io::Result<End> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(End::Closed);
        }
        if replies.is_some_and(|s| s.swallow_next_reply.swap(false, Ordering::SeqCst)) {
            return Ok(End::Cut);
        }
        let pass = usize::try_from(budget).unwrap_or(usize::MAX).min(read);
        to.write_all(&buffer[..pass]).await?;
        budget = budget.saturating_sub(read as u64);
        if pass < read {
            return Ok(End::Cut);
        }
    }
}
