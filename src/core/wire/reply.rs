//! Replies: one type for each, made by the store and read by the client with the same code.

use std::borrow::Cow;

use crate::Stamp;

/// Where a reply is written: the server's connection, or a [`Value`].
pub trait Sink {
    /// Nothing.
    fn null(&mut self);
    /// An integer.
    fn int(&mut self, n: i64);
    /// Bytes.
    fn bulk(&mut self, bytes: &[u8]);
    /// An array of this many replies, which follow.
    fn array(&mut self, len: usize);
    /// A map of this many pairs, which follow: a map in RESP3, a flat array in RESP2.
    fn map(&mut self, pairs: usize);

    /// Bytes, or nothing.
    fn maybe(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(b) => self.bulk(b),
            None => self.null(),
        }
    }
}

/// A reply as a value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// An integer.
    Int(i64),
    /// Bytes.
    Bulk(Vec<u8>),
    /// An array; in RESP2 a map too, flat.
    Array(Vec<Value>),
    /// A map.
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// The reply as a value, maps as maps.
    pub fn of(reply: &impl Reply) -> Value {
        let mut sink = Tree {
            open: vec![],
            done: None,
        };
        reply.emit(&mut sink);
        sink.done.expect("a reply is one value")
    }

    /// The value as RESP2 shows it: maps flat.
    pub fn flat(self) -> Value {
        match self {
            Value::Map(pairs) => Value::Array(
                pairs
                    .into_iter()
                    .flat_map(|(k, v)| [k.flat(), v.flat()])
                    .collect(),
            ),
            Value::Array(items) => Value::Array(items.into_iter().map(Value::flat).collect()),
            other => other,
        }
    }
}

/// Builds a [`Value`] out of what is written.
struct Tree {
    open: Vec<(bool, usize, Vec<Value>)>,
    done: Option<Value>,
}

impl Tree {
    fn put(&mut self, mut value: Value) {
        loop {
            match self.open.last_mut() {
                None => {
                    self.done = Some(value);
                    return;
                }
                Some((_, left, items)) => {
                    items.push(value);
                    *left -= 1;
                    if *left > 0 {
                        return;
                    }
                }
            }
            let (is_map, _, items) = self.open.pop().expect("just seen");
            value = close(is_map, items);
        }
    }

    fn begin(&mut self, is_map: bool, items: usize) {
        if items == 0 {
            self.put(close(is_map, vec![]));
        } else {
            self.open.push((is_map, items, Vec::with_capacity(items)));
        }
    }
}

fn close(is_map: bool, items: Vec<Value>) -> Value {
    if !is_map {
        return Value::Array(items);
    }
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(k), Some(v)) = (items.next(), items.next()) {
        pairs.push((k, v));
    }
    Value::Map(pairs)
}

impl Sink for Tree {
    fn null(&mut self) {
        self.put(Value::Null);
    }
    fn int(&mut self, n: i64) {
        self.put(Value::Int(n));
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.put(Value::Bulk(bytes.to_vec()));
    }
    fn array(&mut self, len: usize) {
        self.begin(false, len);
    }
    fn map(&mut self, pairs: usize) {
        self.begin(true, pairs * 2);
    }
}

/// A reply that is not of the shape its command promises.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadShape(pub &'static str);

/// What reading a reply gives.
pub type Decoded<T> = Result<T, BadShape>;

/// A reply type.
pub trait Reply: Sized {
    /// Writes the reply.
    fn emit(&self, to: &mut impl Sink);

    /// Reads the reply, from the shapes of RESP2 and RESP3 alike.
    ///
    /// # Errors
    /// [`BadShape`] if the value is not what `emit` writes.
    fn decode(value: Value) -> Decoded<Self>;

    /// True if it tells the loser of a race for a key.
    fn is_lost_race(&self) -> bool {
        false
    }

    /// True if it tells that a race was lost and made good.
    fn is_resolved(&self) -> bool {
        false
    }
}

/// Any reply.
impl Reply for Value {
    fn emit(&self, to: &mut impl Sink) {
        match self {
            Value::Null => to.null(),
            Value::Int(n) => to.int(*n),
            Value::Bulk(bytes) => to.bulk(bytes),
            Value::Array(items) => {
                to.array(items.len());
                items.iter().for_each(|item| item.emit(to));
            }
            Value::Map(pairs) => {
                to.map(pairs.len());
                for (key, value) in pairs {
                    key.emit(to);
                    value.emit(to);
                }
            }
        }
    }

    fn decode(value: Value) -> Decoded<Value> {
        Ok(value)
    }
}

impl Value {
    /// The integer.
    ///
    /// # Errors
    /// If it is none.
    pub fn int(self) -> Decoded<i64> {
        match self {
            Value::Int(n) => Ok(n),
            _ => Err(BadShape("an integer was expected")),
        }
    }

    /// The bytes; `None` for null.
    ///
    /// # Errors
    /// If it is something else.
    pub fn bytes<'a>(self) -> Decoded<Option<Cow<'a, [u8]>>> {
        match self {
            Value::Bulk(b) => Ok(Some(Cow::Owned(b))),
            Value::Null => Ok(None),
            _ => Err(BadShape("bytes were expected")),
        }
    }

    /// The items of an array.
    ///
    /// # Errors
    /// If it is something else.
    pub fn items(self) -> Decoded<Vec<Value>> {
        match self {
            Value::Array(items) => Ok(items),
            _ => Err(BadShape("an array was expected")),
        }
    }

    /// The fields of a map, or of the flat array that RESP2 shows for one.
    ///
    /// # Errors
    /// If it is something else.
    pub fn fields(self) -> Decoded<Fields> {
        match self {
            Value::Map(pairs) => Ok(Fields(pairs)),
            Value::Array(items) if items.len() % 2 == 0 => match close(true, items) {
                Value::Map(pairs) => Ok(Fields(pairs)),
                _ => Err(BadShape("a map was expected")),
            },
            _ => Err(BadShape("a map was expected")),
        }
    }
}

/// The fields of a map reply.
pub struct Fields(Vec<(Value, Value)>);

impl Fields {
    /// Takes the field of this name out; null if it is not there.
    pub fn take(&mut self, name: &str) -> Value {
        self.0
            .iter_mut()
            .find(|(k, _)| matches!(k, Value::Bulk(b) if b == name.as_bytes()))
            .map_or(Value::Null, |(_, v)| std::mem::replace(v, Value::Null))
    }
}

/// Bytes of a reply: borrowed where it is made, owned where it was read.
pub type Bytes<'a> = Cow<'a, [u8]>;

pub(super) fn field<'s, S: Sink>(to: &'s mut S, name: &str) -> &'s mut S {
    to.bulk(name.as_bytes());
    to
}

pub(super) fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn count(value: Value) -> Decoded<u64> {
    u64::try_from(value.int()?).map_err(|_| BadShape("a count must not be negative"))
}

pub(super) fn stamp(value: Value) -> Decoded<Stamp> {
    count(value).map(Stamp)
}

pub(super) fn required<'a>(value: Value) -> Decoded<Bytes<'a>> {
    value
        .bytes()?
        .ok_or(BadShape("bytes were expected, not null"))
}
