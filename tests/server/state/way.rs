//! One client's way through a cluster whose slots and masters change.

use std::collections::HashMap;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::*;

/// One client's way to the slot.
pub struct Way {
    ports: Vec<u16>,
    at: usize,
    conns: HashMap<u16, Conn>,
}

impl Way {
    /// Knows these nodes.
    pub fn new(ports: &[u16]) -> Way {
        Way {
            ports: ports.to_vec(),
            at: 0,
            conns: HashMap::new(),
        }
    }

    /// Follows MOVED and ASK, and tries again where that is what the server says. Other errors are replies. An
    /// `Err` leaves unknown what became of the command.
    pub fn send(&mut self, words: &[String]) -> io::Result<Reply> {
        let start = Instant::now();
        let mut asking = false;
        let mut port = self.ports[self.at];
        while start.elapsed() < PATIENCE {
            let reply = match self.try_once(port, asking, words) {
                Ok(reply) => reply,
                Err((sent, error)) => {
                    self.conns.remove(&port);
                    if sent {
                        self.next();
                        return Err(error);
                    }
                    port = self.next();
                    asking = false;
                    thread::yield_now();
                    continue;
                }
            };
            if let Some(redirect) = Redirect::of(&reply) {
                asking = redirect.ask;
                port = redirect.port;
                if !asking {
                    self.at = self.ports.iter().position(|p| *p == port).unwrap_or(0);
                }
                continue;
            }
            if !reply.is_err() {
                return Ok(reply);
            }
            match reply.code() {
                // Not carried out: the keys are in two places, or nobody knows who serves them, or the node
                // does not know whether it still does.
                "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "READONLY" | "BUSY" => {
                    asking = false;
                    port = self.ports[self.at];
                    thread::yield_now();
                }
                _ => return Ok(reply),
            }
        }
        panic!("{words:?}: no way found");
    }

    fn next(&mut self) -> u16 {
        self.at = (self.at + 1) % self.ports.len();
        self.ports[self.at]
    }

    fn try_once(
        &mut self,
        port: u16,
        asking: bool,
        words: &[String],
    ) -> Result<Reply, (bool, io::Error)> {
        let conn = match self.conns.entry(port) {
            std::collections::hash_map::Entry::Occupied(conn) => conn.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let mut conn = Conn::try_open(port).map_err(|e| (false, e))?;
                conn.set_timeout(Duration::from_secs(60));
                place.insert(conn)
            }
        };
        let mut bytes = vec![];
        if asking {
            bytes.extend(Conn::encode(&["ASKING"]));
        }
        bytes.extend(Conn::encode(words));
        conn.try_send_raw(&bytes).map_err(|e| (true, e))?;
        if asking {
            conn.try_recv().map_err(|e| (true, e))?;
        }
        conn.try_recv().map_err(|e| (true, e))
    }
}
