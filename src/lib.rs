//! The maos module: a shared, versioned state store for fleets of agents, inside a redis-server.
//!
//! The rules are in the crate `maos-core`; this crate is the way from the server to them and back.
//! `README.md` beside this file is the map.
#![deny(unsafe_code)]

mod commands;
mod edge;
mod persist;
