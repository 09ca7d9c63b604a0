//! A proxy that lies: the checker must see it.

use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::harness::*;

/// What it lies about, now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// A write is not made, and answered with the version of another.
    Reused,
    /// A compare-and-set is made as a plain write: over whatever is there.
    LostUpdate,
    /// A read is answered with what was read some time ago.
    Stale,
    /// A read is answered with a value that nobody wrote.
    NeverWritten,
    /// A deletion is answered and not made.
    DelIgnored,
    /// A write is answered at once and made some time later.
    EarlyAnswer,
    /// Two writes get each other's versions.
    OutOfOrder,
}

/// What the connections share.
struct Proxy {
    lie: Lie,
    to: u16,
    count: AtomicU64,
    reads: Mutex<VecDeque<Vec<u8>>>,
    version: Mutex<i64>,
    late: Mutex<VecDeque<Vec<Vec<u8>>>>,
}

/// Starts a proxy before a server; gives its port. Its threads end with the connections.
pub fn start(to: u16, lie: Lie) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let proxy = Arc::new(Proxy {
        lie,
        to,
        count: AtomicU64::new(0),
        reads: Mutex::default(),
        version: Mutex::default(),
        late: Mutex::default(),
    });
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let proxy = proxy.clone();
            thread::spawn(move || drop(proxy.serve(stream)));
        }
    });
    port
}

impl Proxy {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut out = stream.try_clone()?;
        let mut from = BufReader::new(stream);
        let mut server = Conn::try_open(self.to)?;
        loop {
            let request = Reply::read(&mut from, Protocol::Resp2)?;
            let words: Vec<Vec<u8>> = request.array().iter().map(|w| w.bytes().to_vec()).collect();
            out.write_all(&self.answer(&mut server, words)?)?;
        }
    }

    fn answer(&self, server: &mut Conn, mut words: Vec<Vec<u8>>) -> std::io::Result<Vec<u8>> {
        let nth = self.count.fetch_add(1, Relaxed);
        let now_and_then = nth % 40 == 39;
        let command = String::from_utf8_lossy(&words[0]).into_owned();
        let plain = command == "MAOS.SET" && words.len() == 3;
        let mut version = self.version.lock().expect("no panic");
        // One at a time: only what is a lie on purpose is wrong.
        if let Some(late) = self.take_late() {
            server.try_cmd(&late)?;
        }
        match (self.lie, command.as_str()) {
            (Lie::Reused, _) if plain && now_and_then && *version > 0 => {
                return Ok(encode(&Reply::Int(*version)));
            }
            (Lie::LostUpdate, "MAOS.CAS") if now_and_then => {
                words = vec![b"MAOS.SET".to_vec(), words[1].clone(), words[3].clone()];
                let won = server.try_cmd(&words)?;
                return Ok(encode(&Reply::Array(vec![Reply::Int(1), won])));
            }
            (Lie::DelIgnored, "MAOS.DEL") if words.len() == 2 => {
                *version += 1;
                return Ok(encode(&Reply::Int(*version)));
            }
            (Lie::EarlyAnswer, _) if plain && now_and_then => {
                *version += 1;
                self.late.lock().expect("no panic").push_back(words);
                return Ok(encode(&Reply::Int(*version)));
            }
            _ => {}
        }
        let mut reply = server.try_cmd(&words)?;
        if plain {
            let given = reply.int();
            if self.lie == Lie::OutOfOrder && *version > 0 {
                reply = Reply::Int(*version);
            }
            *version = given;
        }
        if let (Reply::Array(parts), true) = (&reply, command != "MAOS.GET") {
            if let (Reply::Int(1), Reply::Int(given)) = (&parts[0], &parts[1]) {
                *version = *given;
            }
        }
        if command == "MAOS.GET" {
            let mut reads = self.reads.lock().expect("no panic");
            reads.push_back(encode(&reply));
            if reads.len() > 100 {
                let old = reads.pop_front().unwrap_or_default();
                if self.lie == Lie::Stale && now_and_then {
                    return Ok(old);
                }
            }
            if let (Lie::NeverWritten, Reply::Array(parts), true) =
                (self.lie, &mut reply, nth % 5 == 4)
            {
                parts[0] = Reply::Bulk(b"999999999".to_vec());
            }
        }
        Ok(encode(&reply))
    }

    fn take_late(&self) -> Option<Vec<Vec<u8>>> {
        let mut late = self.late.lock().expect("no panic");
        let due = self.count.load(Relaxed).is_multiple_of(20);
        if due {
            late.pop_front()
        } else {
            None
        }
    }
}

/// A reply as it is sent.
fn encode(reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Simple(text) => format!("+{text}\r\n").into_bytes(),
        Reply::Error(text) => format!("-{text}\r\n").into_bytes(),
        Reply::Int(n) => format!(":{n}\r\n").into_bytes(),
        Reply::Bulk(bytes) => {
            let mut out = format!("${}\r\n", bytes.len()).into_bytes();
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
            out
        }
        Reply::Array(parts) => {
            let mut out = format!("*{}\r\n", parts.len()).into_bytes();
            out.extend(parts.iter().flat_map(encode));
            out
        }
        _ => b"$-1\r\n".to_vec(),
    }
}
