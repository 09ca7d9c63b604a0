//! Ports for private servers.

use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Client ports lie in `FIRST..FIRST + COUNT`, cluster buses [`BUS`] above. Both ranges stay below
/// 32768, where the ports of outgoing connections begin, so no client of ours ever sits on one.
const FIRST: u32 = 10_600;
const COUNT: u32 = 11_000;

/// How far above its client port a node listens for the other nodes.
const BUS: u16 = 10_000;

/// A port on which nobody listens now; with `bus`, the cluster bus port that goes with it too.
///
/// Somebody may take it before our server does: who starts one must be ready to ask again.
pub fn free_port(bus: bool) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let offset = process::id().wrapping_mul(197);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + offset.wrapping_add(step) % COUNT) as u16;
        if is_free(port) && (!bus || is_free(port + BUS)) {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
