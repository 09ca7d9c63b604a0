//! Replies of a server: their shapes, a parser that trusts nothing, and accessors for tests.
//!
//! The parser is strict on purpose. A module that writes one byte too many into a reply makes every
//! later reply of that connection wrong, so framing that is not exactly the protocol's is an error
//! at the place where it happens, never skipped or repaired.

use std::fmt;
use std::io::{self, BufRead, Read};

/// The longest bulk string that is accepted: what a server itself allows.
const MAX_BULK: usize = 512 << 20;
/// The most elements that one aggregate may announce.
const MAX_ELEMENTS: usize = 1 << 24;
/// How deep aggregates may be nested.
const MAX_DEPTH: usize = 64;
/// The longest line: a type byte with a length, a number, a simple string or an error.
const MAX_LINE: usize = 64 << 10;

/// The protocol of a connection; each has types that the other must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The protocol a connection begins with.
    Resp2,
    /// The protocol after `HELLO 3`.
    Resp3,
}

/// One reply, in the shape in which it was sent.
#[derive(Clone, PartialEq)]
pub enum Reply {
    /// Null: `_` in RESP3, `$-1` or `*-1` in RESP2.
    Nil,
    /// A simple string, such as `OK`.
    Simple(String),
    /// An error line, its code word first.
    Error(String),
    /// An integer.
    Int(i64),
    /// A string of any bytes.
    Bulk(Vec<u8>),
    /// An array.
    Array(Vec<Reply>),
    /// A RESP3 map, in the order in which it was sent.
    Map(Vec<(Reply, Reply)>),
    /// A RESP3 set, in the order in which it was sent.
    Set(Vec<Reply>),
    /// A RESP3 push: a message that answers no command.
    Push(Vec<Reply>),
    /// A RESP3 boolean.
    Bool(bool),
    /// A RESP3 double, as it was written.
    Double(String),
    /// A RESP3 big number, as it was written.
    Big(String),
    /// A RESP3 verbatim string: its three-letter format and its bytes.
    Verbatim(String, Vec<u8>),
}

impl Reply {
    /// Reads one reply and not a byte more.
    pub fn read(from: &mut impl BufRead, protocol: Protocol) -> io::Result<Reply> {
        Parser { from, protocol }.reply(0)
    }

    /// The integer; panics when the reply is another thing.
    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(number) => *number,
            other => panic!("an integer was expected, not: {other}"),
        }
    }

    /// The bytes of a bulk or verbatim string; panics when the reply is another thing.
    #[track_caller]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Reply::Bulk(bytes) | Reply::Verbatim(_, bytes) => bytes,
            other => panic!("a string was expected, not: {other}"),
        }
    }

    /// The text of any string, simple string or double; panics when there is none or it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        match self {
            Reply::Simple(text) | Reply::Double(text) | Reply::Big(text) => text,
            Reply::Bulk(bytes) | Reply::Verbatim(_, bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text,
                Err(_) => panic!("UTF-8 was expected, not: {self}"),
            },
            other => panic!("text was expected, not: {other}"),
        }
    }

    /// The elements of an array, set or push; panics when the reply is another thing.
    #[track_caller]
    pub fn array(&self) -> &[Reply] {
        match self {
            Reply::Array(list) | Reply::Set(list) | Reply::Push(list) => list,
            other => panic!("an array was expected, not: {other}"),
        }
    }

    /// The error line; panics when the reply is not an error.
    #[track_caller]
    pub fn err(&self) -> &str {
        match self {
            Reply::Error(line) => line,
            other => panic!("an error was expected, not: {other}"),
        }
    }

    /// The first word of the error line; panics when the reply is not an error.
    #[track_caller]
    pub fn code(&self) -> &str {
        self.err().split(' ').next().unwrap_or_default()
    }

    /// Panics unless the reply is `OK`.
    #[track_caller]
    pub fn ok(&self) {
        assert!(
            matches!(self, Reply::Simple(text) if text == "OK"),
            "OK was expected, not: {self}"
        );
    }

    /// Whether the reply is null.
    pub fn is_nil(&self) -> bool {
        matches!(self, Reply::Nil)
    }

    /// Whether the reply is an error.
    pub fn is_err(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// The named fields of a record: a map, or the flat array that stands for one in RESP2.
    #[track_caller]
    pub fn fields(&self) -> Vec<(&str, &Reply)> {
        match self {
            Reply::Map(pairs) => pairs.iter().map(|(k, v)| (k.text(), v)).collect(),
            Reply::Array(flat) if flat.len().is_multiple_of(2) => flat
                .chunks_exact(2)
                .map(|pair| (pair[0].text(), &pair[1]))
                .collect(),
            other => panic!("a record of named fields was expected, not: {other}"),
        }
    }

    /// One named field of a record; panics when the record does not have it.
    #[track_caller]
    pub fn field(&self, name: &str) -> &Reply {
        match self.fields().into_iter().find(|(found, _)| *found == name) {
            Some((_, value)) => value,
            None => panic!("a field {name:?} was expected in: {self}"),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Nil => write!(f, "(nil)"),
            Reply::Simple(text) => write!(f, "{text}"),
            Reply::Error(line) => write!(f, "(error) {line}"),
            Reply::Int(number) => write!(f, "{number}"),
            Reply::Bulk(bytes) | Reply::Verbatim(_, bytes) => write_bytes(f, bytes),
            Reply::Array(list) => write_list(f, "[", list, "]"),
            Reply::Set(list) => write_list(f, "~[", list, "]"),
            Reply::Push(list) => write_list(f, ">[", list, "]"),
            Reply::Map(pairs) => write_pairs(f, pairs),
            Reply::Bool(truth) => write!(f, "({truth})"),
            Reply::Double(text) => write!(f, "(double) {text}"),
            Reply::Big(text) => write!(f, "(big) {text}"),
        }
    }
}

/// The same as `Display`, so that a failed `assert_eq!` can be read.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    const SHOWN: usize = 400;
    let head = &bytes[..bytes.len().min(SHOWN)];
    write!(f, "\"{}\"", head.escape_ascii())?;
    match bytes.len() > SHOWN {
        true => write!(f, "… ({} bytes)", bytes.len()),
        false => Ok(()),
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, open: &str, list: &[Reply], close: &str) -> fmt::Result {
    f.write_str(open)?;
    for (i, item) in list.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{item}")?;
    }
    f.write_str(close)
}

fn write_pairs(f: &mut fmt::Formatter<'_>, pairs: &[(Reply, Reply)]) -> fmt::Result {
    f.write_str("{")?;
    for (i, (key, value)) in pairs.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{key}: {value}")?;
    }
    f.write_str("}")
}

struct Parser<'a, R> {
    from: &'a mut R,
    protocol: Protocol,
}

impl<R: BufRead> Parser<'_, R> {
    fn reply(&mut self, depth: usize) -> io::Result<Reply> {
        if depth > MAX_DEPTH {
            return Err(malformed(format!("nested deeper than {MAX_DEPTH}")));
        }
        let line = self.line()?;
        let Some((&kind, rest)) = line.split_first() else {
            return Err(malformed("an empty line where a reply should begin"));
        };
        self.check_protocol(kind, &line)?;
        match kind {
            b'+' => Ok(Reply::Simple(lossy(rest))),
            b'-' => Ok(Reply::Error(lossy(rest))),
            b':' => Ok(Reply::Int(integer(rest)?)),
            b'$' if rest == b"-1" => self.old_null(),
            b'*' if rest == b"-1" => self.old_null(),
            b'$' => Ok(Reply::Bulk(self.blob(rest)?)),
            b'*' => Ok(Reply::Array(self.list(rest, depth)?)),
            b'~' => Ok(Reply::Set(self.list(rest, depth)?)),
            b'>' => Ok(Reply::Push(self.list(rest, depth)?)),
            b'%' => Ok(Reply::Map(self.pairs(rest, depth)?)),
            b'!' => Ok(Reply::Error(lossy(&self.blob(rest)?))),
            b'=' => verbatim(self.blob(rest)?),
            b'_' if rest.is_empty() => Ok(Reply::Nil),
            b'#' if rest == b"t" => Ok(Reply::Bool(true)),
            b'#' if rest == b"f" => Ok(Reply::Bool(false)),
            b',' => double(rest),
            b'(' => big(rest),
            _ => Err(malformed(format!("no reply begins {:?}", lossy(&line)))),
        }
    }

    /// RESP2 knows five types; one of the others there is a reply that a RESP2 client cannot read.
    fn check_protocol(&self, kind: u8, line: &[u8]) -> io::Result<()> {
        if self.protocol == Protocol::Resp2 && !b"+-:$*".contains(&kind) {
            let line = lossy(line);
            return Err(malformed(format!(
                "a type of RESP3 on a RESP2 connection: {line:?}"
            )));
        }
        Ok(())
    }

    fn old_null(&self) -> io::Result<Reply> {
        match self.protocol {
            Protocol::Resp2 => Ok(Reply::Nil),
            Protocol::Resp3 => Err(malformed("a null of RESP2 on a RESP3 connection")),
        }
    }

    fn list(&mut self, count: &[u8], depth: usize) -> io::Result<Vec<Reply>> {
        (0..length(count, MAX_ELEMENTS)?)
            .map(|_| self.reply(depth + 1))
            .collect()
    }

    fn pairs(&mut self, count: &[u8], depth: usize) -> io::Result<Vec<(Reply, Reply)>> {
        (0..length(count, MAX_ELEMENTS)?)
            .map(|_| Ok((self.reply(depth + 1)?, self.reply(depth + 1)?)))
            .collect()
    }

    /// A counted string and the line end that must follow it.
    fn blob(&mut self, count: &[u8]) -> io::Result<Vec<u8>> {
        let len = length(count, MAX_BULK)?;
        let mut bytes = Vec::with_capacity(len.min(1 << 20));
        let read = self.from.take(len as u64).read_to_end(&mut bytes)?;
        if read < len {
            return Err(cut(format!("{read} of {len} bytes of a string")));
        }
        let mut end = [0; 2];
        self.from.read_exact(&mut end)?;
        if &end != b"\r\n" {
            let end = end.escape_ascii();
            return Err(malformed(format!(
                "a string of {len} bytes is followed by {end}"
            )));
        }
        Ok(bytes)
    }

    /// A line without its CRLF. A CR or LF anywhere else is malformed.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = self.from.take(MAX_LINE as u64);
        limited.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(cut("the connection was closed where a reply should begin"));
        }
        if !line.ends_with(b"\r\n") {
            let shown = line[..line.len().min(80)].escape_ascii();
            return Err(malformed(format!("a line that CRLF does not end: {shown}")));
        }
        line.truncate(line.len() - 2);
        if line.contains(&b'\r') {
            let shown = line.escape_ascii();
            return Err(malformed(format!("a CR inside a line: {shown}")));
        }
        Ok(line)
    }
}

/// Digits with an optional minus, and no second spelling: no plus, no spare zero, no minus zero.
fn integer(text: &[u8]) -> io::Result<i64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| Some((text, text.parse::<i64>().ok()?)))
        .filter(|(text, number)| number.to_string() == *text)
        .map(|(_, number)| number)
        .ok_or_else(|| malformed(format!("not an integer: {:?}", lossy(text))))
}

fn length(text: &[u8], most: usize) -> io::Result<usize> {
    let number = integer(text)?;
    usize::try_from(number)
        .ok()
        .filter(|len| *len <= most)
        .ok_or_else(|| malformed(format!("a length of {number}")))
}

fn double(text: &[u8]) -> io::Result<Reply> {
    let text = lossy(text);
    match text.parse::<f64>() {
        Ok(_) => Ok(Reply::Double(text)),
        Err(_) => Err(malformed(format!("not a double: {text:?}"))),
    }
}

fn big(text: &[u8]) -> io::Result<Reply> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
        true => Ok(Reply::Big(lossy(text))),
        false => Err(malformed(format!("not a number: {:?}", lossy(text)))),
    }
}

fn verbatim(mut bytes: Vec<u8>) -> io::Result<Reply> {
    if bytes.get(3) != Some(&b':') {
        return Err(malformed("a verbatim string without its format"));
    }
    let text = bytes.split_off(4);
    Ok(Reply::Verbatim(lossy(&bytes[..3]), text))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn malformed(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn cut(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, what.into())
}
