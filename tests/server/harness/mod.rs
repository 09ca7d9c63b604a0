//! What a test of a live server needs: a private server, a strict client, a replica, a cluster.
//!
//! ```text
//! let server = Server::with(&[("appendonly", "yes")]);
//! let mut conn = server.conn();
//! let version = conn.run("MAOS.SET plan:a:1 hello").int();
//! server.restart(Stop::Kill);
//! assert_eq!(server.conn().run("MAOS.GET plan:a:1").bytes(), b"hello");
//! ```
//!
//! Nothing here sleeps for a fixed time: everything waits for a condition, with a deadline
//! ([`eventually`]). Nothing here links the module. Three test binaries include this folder (by
//! `mod` or by `#[path]`), and none of them uses all of it.
//!
//! The environment chooses what is tested:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `MAOS_SERVER` | the server's program; otherwise `redis-server` on the PATH |
//! | `MAOS_MODULE` | the module; otherwise the library that cargo built beside the test |
//! | `MAOS_KEEP` | set: working directories are kept, and their paths printed |
#![allow(dead_code, unused_imports, unused_macros)]

mod cluster;
mod conn;
mod port;
mod replication;
mod reply;
mod server;
mod wait;

pub use cluster::{slot_of, Cluster, ClusterClient, ClusterSetup, Redirect, SLOTS};
pub use conn::{split_line, Conn};
pub use replication::{digest, digest_all, persist_all, replica_of, replica_with, wait_synced};
pub use reply::{Protocol, Reply};
pub use server::{module_path, server_program, Server, Setup, Stop};
pub use wait::{eventually, PATIENCE};

/// Sends one command whose arguments may be of different types, each readable as bytes.
///
/// `cmd!(conn, "MAOS.SET", key, &value[..])` is [`Conn::cmd`] without the need to make a list of equals.
macro_rules! cmd {
    ($conn:expr, $($arg:expr),+ $(,)?) => {
        $conn.cmd(&[$(AsRef::<[u8]>::as_ref(&$arg)),+])
    };
}
pub(crate) use cmd;
