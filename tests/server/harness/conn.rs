//! A client connection that shows everything it is told.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::reply::{Protocol, Reply};
use super::wait::PATIENCE;

/// One connection. Replies come back as they were sent; anything malformed panics.
///
/// In RESP3 a push is a reply like any other here: who subscribes reads it with [`Conn::recv`].
pub struct Conn {
    stream: BufReader<TcpStream>,
    protocol: Protocol,
    port: u16,
}

impl Conn {
    /// Connects to a server on this machine; panics when it does not answer.
    #[track_caller]
    pub fn open(port: u16) -> Conn {
        match Conn::try_open(port) {
            Ok(conn) => conn,
            Err(error) => panic!("cannot connect to 127.0.0.1:{port}: {error}"),
        }
    }

    /// Connects to a server on this machine.
    pub fn try_open(port: u16) -> io::Result<Conn> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Conn {
            stream: BufReader::new(stream),
            protocol: Protocol::Resp2,
            port,
        })
    }

    /// The port of the server it is connected to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How long to wait for a reply before giving up.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let set = self.stream.get_ref().set_read_timeout(Some(timeout));
        set.expect("a timeout above zero");
    }

    /// One command and its reply; panics when the connection fails.
    #[track_caller]
    pub fn cmd(&mut self, args: &[impl AsRef<[u8]>]) -> Reply {
        match self.try_cmd(args) {
            Ok(reply) => reply,
            Err(error) => panic!("{} failed: {error}", show(args)),
        }
    }

    /// One command and its reply, for tests in which the connection may fail.
    pub fn try_cmd(&mut self, args: &[impl AsRef<[u8]>]) -> io::Result<Reply> {
        self.try_send(args)?;
        self.try_recv()
    }

    /// One command as it would be typed into redis-cli, quotes and `\x00` included, and its reply.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> Reply {
        self.cmd(&arguments(line))
    }

    /// Several lines in one pipeline, and their replies.
    #[track_caller]
    pub fn pipeline(&mut self, lines: &[impl AsRef<str>]) -> Vec<Reply> {
        let bytes: Vec<u8> = lines
            .iter()
            .flat_map(|line| encode(&arguments(line.as_ref())))
            .collect();
        self.send_raw(&bytes);
        lines.iter().map(|_| self.recv()).collect()
    }

    /// Sends a command without waiting for its reply.
    #[track_caller]
    pub fn send(&mut self, args: &[impl AsRef<[u8]>]) {
        if let Err(error) = self.try_send(args) {
            panic!("{} could not be sent: {error}", show(args));
        }
    }

    /// Sends a command without waiting for its reply.
    pub fn try_send(&mut self, args: &[impl AsRef<[u8]>]) -> io::Result<()> {
        self.stream.get_mut().write_all(&encode(args))
    }

    /// Sends bytes as they are: a pipeline made by [`encode`](Conn::encode), or nonsense.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let sent = self.stream.get_mut().write_all(bytes);
        sent.expect("the server takes our bytes");
    }

    /// Sends bytes as they are, for tests in which the connection may fail.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// A command as it is sent.
    pub fn encode(args: &[impl AsRef<[u8]>]) -> Vec<u8> {
        encode(args)
    }

    /// The next reply; panics when there is none in time, or it is malformed.
    #[track_caller]
    pub fn recv(&mut self) -> Reply {
        match self.try_recv() {
            Ok(reply) => reply,
            Err(error) => panic!("no reply from port {}: {error}", self.port),
        }
    }

    /// The next reply.
    pub fn try_recv(&mut self) -> io::Result<Reply> {
        Reply::read(&mut self.stream, self.protocol)
    }

    /// Changes to RESP3; gives what the server tells about itself.
    #[track_caller]
    pub fn hello3(&mut self) -> Reply {
        self.protocol = Protocol::Resp3;
        let reply = self.run("HELLO 3");
        assert!(!reply.is_err(), "HELLO 3 was refused: {reply}");
        reply
    }

    /// Changes back to RESP2.
    #[track_caller]
    pub fn hello2(&mut self) -> Reply {
        self.protocol = Protocol::Resp2;
        self.run("HELLO 2")
    }

    /// Lets the next command into a slot that is being imported.
    #[track_caller]
    pub fn asking(&mut self) {
        self.run("ASKING").ok();
    }

    /// The fields of a section of INFO.
    #[track_caller]
    pub fn info(&mut self, section: &str) -> BTreeMap<String, String> {
        let reply = self.cmd(&["INFO", section]);
        fields(reply.text())
    }

    /// The value of a setting; panics when the server does not know it.
    #[track_caller]
    pub fn config(&mut self, name: &str) -> String {
        let reply = self.cmd(&["CONFIG", "GET", name]);
        reply.field(name).text().to_owned()
    }
}

/// `name:value` lines, as INFO and CLUSTER INFO write them.
pub fn fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn encode(args: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn show(args: &[impl AsRef<[u8]>]) -> String {
    let words: Vec<String> = args
        .iter()
        .take(8)
        .map(|arg| {
            let arg = arg.as_ref();
            arg[..arg.len().min(60)].escape_ascii().to_string()
        })
        .collect();
    words.join(" ")
}

#[track_caller]
fn arguments(line: &str) -> Vec<Vec<u8>> {
    match split_line(line) {
        Some(args) if !args.is_empty() => args,
        _ => panic!("not a command line: {line}"),
    }
}

/// Splits a line into arguments by the rules of redis-cli; nothing when its quotes do not match.
///
/// `SET k "a\x00b"` has three arguments. Inside double quotes `\xHH`, `\n`, `\r`, `\t`, `\b`, `\a`
/// and a backslash before any other character stand for one byte; inside single quotes only `\'` does.
pub fn split_line(line: &str) -> Option<Vec<Vec<u8>>> {
    let mut rest = line.as_bytes();
    let mut args = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(args);
        }
        let (arg, after) = split_one(rest)?;
        args.push(arg);
        rest = after;
    }
}

/// The first argument of a line that does not begin with a space, and the line after it.
fn split_one(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut arg = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => break,
            b'"' | b'\'' => {
                rest = quoted(byte, after, &mut arg)?;
                let ended = rest.first().is_none_or(u8::is_ascii_whitespace);
                return ended.then_some((arg, rest));
            }
            _ => arg.push(byte),
        }
        rest = after;
    }
    Some((arg, rest))
}

/// Reads up to the closing quote, and gives what follows it.
fn quoted<'a>(quote: u8, mut rest: &'a [u8], arg: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [] => return None,
            [end, after @ ..] if *end == quote => return Some(after),
            [b'\\', b'x', high, low, after @ ..] if quote == b'"' && hex(*high, *low).is_some() => {
                arg.extend(hex(*high, *low));
                after
            }
            [b'\\', escaped, after @ ..] if quote == b'"' => {
                arg.push(unescape(*escaped));
                after
            }
            [b'\\', b'\'', after @ ..] => {
                arg.push(b'\'');
                after
            }
            [byte, after @ ..] => {
                arg.push(*byte);
                after
            }
        }
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}
