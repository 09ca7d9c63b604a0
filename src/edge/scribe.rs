//! Writes backups down, in a thread: takes what the main thread hands over, and seals it into a file. And how that is
//! handed over: entries in a few bytes more than their own, many of them at once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use maos_core::codec::backup::{
    Content, ElementsBuf, Entry, Head, Native, Sealer, Type, Writer, SEAL_RANDOM,
};
use maos_core::keyring::Keyring;
use maos_core::Stamp;

use super::chain::{Chain, Known};
use super::failpoint;
use super::vault::{Unfinished, Vault};

/// What the thread and the main thread tell each other.
#[derive(Default)]
pub struct Shared {
    /// Bytes that wait to be written.
    pub waiting: AtomicUsize,
    /// Keys that were written.
    pub keys: AtomicU64,
    /// Bytes that were.
    pub bytes: AtomicU64,
    /// Nobody wants it any more.
    pub cancelled: AtomicBool,
    /// What is known of the backup that this one goes on from, once it has been read: then it may begin.
    pub ready: Mutex<Option<Option<Arc<Known>>>>,
    /// What came of it.
    pub ended: Mutex<Option<Result<(), String>>>,
}

/// What is in a lock, whoever has panicked with it.
pub fn locked<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is handed to the thread.
pub enum Parcel {
    /// It begins, and this is what it says of itself.
    Head(Box<Head>),
    /// Entries, one after the other: see [`Packed`].
    Entries(Vec<u8>),
    /// There are no more.
    End,
}

/// What is at a key, as it is handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A record, encoded.
    Record,
    /// The definition of a partition, encoded.
    Definition,
    /// The version that it has still.
    Unchanged,
    /// A value of one of the server's own types: when it was read, and what is in it.
    Native(u8),
}

/// One key, as it is handed over.
pub struct Packed<'a> {
    /// In which database.
    pub db: i32,
    /// The key.
    pub key: &'a [u8],
    /// When it expires, in milliseconds of unix time; 0: it does not.
    pub expires_ms: u64,
    /// What is there.
    pub kind: Kind,
    /// The bytes of that.
    pub bytes: &'a [u8],
}

/// The bytes of an entry that come before those of key and value.
pub const LEADING: usize = 4 + 4 + 8 + 4 + 1;
/// What kinds of values are numbered from here on.
const NATIVE: u8 = 16;

fn size(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// The bytes that go before those of a key and of what is there.
pub fn leading(db: i32, key_len: usize, expires_ms: u64, kind: Kind, len: usize) -> [u8; LEADING] {
    let mut lead = [0; LEADING];
    lead[0..4].copy_from_slice(&size(key_len));
    lead[4..8].copy_from_slice(&size(len));
    lead[8..16].copy_from_slice(&expires_ms.to_le_bytes());
    lead[16..20].copy_from_slice(&db.to_le_bytes());
    lead[20] = match kind {
        Kind::Record => 0,
        Kind::Definition => 1,
        Kind::Unchanged => 2,
        Kind::Native(kind) => NATIVE + kind,
    };
    lead
}

impl<'a> Packed<'a> {
    /// Appends it.
    pub fn put(&self, to: &mut Vec<u8>) {
        let (key, bytes) = (self.key, self.bytes);
        let lead = leading(self.db, key.len(), self.expires_ms, self.kind, bytes.len());
        to.extend_from_slice(&lead);
        to.extend_from_slice(key);
        to.extend_from_slice(bytes);
    }

    /// The first one, and what comes after it. `None` at the end.
    pub fn first(bytes: &'a [u8]) -> Option<(Packed<'a>, &'a [u8])> {
        let (lead, after) = bytes.split_at_checked(LEADING)?;
        let (key, after) = after.split_at_checked(word(lead, 0) as usize)?;
        let (bytes, after) = after.split_at_checked(word(lead, 4) as usize)?;
        let expires = lead[8..16].try_into().map_or(0, u64::from_le_bytes);
        let packed = Packed {
            db: i32::try_from(word(lead, 16)).unwrap_or(i32::MAX),
            key,
            expires_ms: expires,
            kind: match lead[20] {
                0 => Kind::Record,
                1 => Kind::Definition,
                2 => Kind::Unchanged,
                kind => Kind::Native(kind - NATIVE),
            },
            bytes,
        };
        Some((packed, after))
    }
}

/// The elements of a value, as they are handed over.
#[derive(Default)]
pub struct Elements(pub Vec<u8>);

impl Elements {
    /// Read at this time, in milliseconds of unix time.
    pub fn read_at(ms: u64) -> Elements {
        Elements(ms.to_le_bytes().to_vec())
    }

    /// One more.
    pub fn push(&mut self, element: &[u8]) {
        self.0.extend_from_slice(&size(element.len()));
        self.0.extend_from_slice(element);
    }

    /// When they were read, and each of them.
    pub fn all(bytes: &[u8]) -> (u64, impl Iterator<Item = &[u8]>) {
        let (ms, mut rest) = bytes.split_at_checked(8).unwrap_or_default();
        let ms = ms.try_into().map_or(0, u64::from_le_bytes);
        let each = std::iter::from_fn(move || {
            let (len, after) = rest.split_at_checked(4)?;
            let (element, after) = after.split_at_checked(word(len, 0) as usize)?;
            rest = after;
            Some(element)
        });
        (ms, each)
    }
}

/// A kind of value by its number.
pub fn type_of(kind: u8) -> Option<Type> {
    let all = [Type::String, Type::List, Type::Set, Type::Hash, Type::ZSet];
    all.into_iter().find(|t| *t as u8 == kind)
}

/// What a backup is written with.
pub struct Scribe {
    /// Its file.
    pub file: Unfinished,
    /// Where that is.
    pub vault: Vault,
    /// The keys that seal it.
    pub ring: Option<Arc<Keyring>>,
    /// What is random about it.
    pub random: [u8; SEAL_RANDOM],
    /// What it goes on from.
    pub parent: Option<Chain>,
}

impl Scribe {
    /// Writes down what is handed over, until there is no more.
    ///
    /// # Errors
    /// Why there is no backup.
    pub fn write(mut self, parcels: &Receiver<Parcel>, shared: &Shared) -> Result<(), String> {
        self.write_all(parcels, shared)?;
        failpoint::hit("backup finish");
        self.file.finish(&self.vault)
    }

    fn write_all(&mut self, parcels: &Receiver<Parcel>, shared: &Shared) -> Result<(), String> {
        failpoint::hit("backup write");
        let known = match self.parent.take() {
            Some(parent) => {
                parent.check()?;
                Some(Arc::new(parent.known()?))
            }
            None => None,
        };
        *locked(&shared.ready) = Some(known);
        let head = match parcels.recv() {
            Ok(Parcel::Head(head)) => *head,
            _ => return Err("it was given up".into()),
        };
        let sealer = match &self.ring {
            Some(ring) => Sealer::with_key(ring.active(), &self.random),
            None => Sealer::plain(),
        };
        let out = BufWriter::with_capacity(PIECE, Pieces(&self.file.file));
        let mut writer = Writer::create(out, head, sealer).map_err(|e| e.to_string())?;
        let mut elements = ElementsBuf::default();
        loop {
            let parcel = parcels.recv();
            if shared.cancelled.load(Relaxed) {
                return Err("it was given up".into());
            }
            let bytes = match parcel {
                Ok(Parcel::Entries(bytes)) => bytes,
                Ok(Parcel::End) => break,
                _ => return Err("it was given up".into()),
            };
            put(&mut writer, &mut elements, &bytes, shared)?;
            shared.bytes.fetch_add(bytes.len() as u64, Relaxed);
            shared.waiting.fetch_sub(bytes.len(), Relaxed);
        }
        let (out, _) = writer.finish().map_err(|e| e.to_string())?;
        out.into_inner().map_err(|e| e.to_string())?;
        Ok(())
    }
}

/// So many bytes are given to the system at once: while it takes them the thread cannot be put off its core on many a
/// system, and whoever asks the server would wait for that.
const PIECE: usize = 64 << 10;

/// A file that takes a piece at a time.
struct Pieces<'f>(&'f File);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(PIECE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes one parcel down.
fn put(
    writer: &mut Writer<BufWriter<Pieces<'_>>>,
    elements: &mut ElementsBuf,
    bytes: &[u8],
    shared: &Shared,
) -> Result<(), String> {
    let mut rest = bytes;
    while let Some((packed, after)) = Packed::first(rest) {
        rest = after;
        let content = match packed.kind {
            Kind::Record => Content::Record(packed.bytes),
            Kind::Definition => Content::Definition(packed.bytes),
            Kind::Unchanged => {
                let stamp = packed.bytes.try_into().map_or(0, u64::from_le_bytes);
                Content::Unchanged(Stamp(stamp))
            }
            Kind::Native(kind) => {
                let (read_ms, each) = Elements::all(packed.bytes);
                elements.clear();
                each.for_each(|element| elements.push(element));
                Content::Native(Native {
                    kind: type_of(kind).ok_or("a value of no type that there is")?,
                    read_ms,
                    elements: elements.elements(),
                })
            }
        };
        let entry = Entry {
            db: u32::try_from(packed.db).unwrap_or(0),
            key: packed.key,
            expires_ms: Some(packed.expires_ms).filter(|ms| *ms > 0),
            content,
        };
        writer.entry(&entry).map_err(|e| e.to_string())?;
        if packed.kind != Kind::Definition {
            shared.keys.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}
