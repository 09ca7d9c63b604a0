//! The client and the command-line tool against live servers.

#[path = "../../../tests/server/harness/mod.rs"]
mod harness;

mod backup_files;
mod backups;
mod chains;
mod cluster;
mod conflicts;
mod drills;
mod edges;
mod locks;
mod lost;
mod methods;
mod partitions;
mod proxy;
mod tls;
mod tool;
mod updates;
mod watching;

use harness::Server;
use maos_client::{Client, Config};

/// The settings for a server of the harness.
fn config(server: &Server) -> Config {
    Config::new(&server.url()).expect("the harness gives a good address")
}

/// A client of a server of the harness.
async fn client(server: &Server) -> Client {
    match Client::connect(config(server)).await {
        Ok(client) => client,
        Err(error) => panic!("no connection to {}: {error}", server.url()),
    }
}
