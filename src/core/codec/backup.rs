//! A backup: one file, format 1. What was written is what is read, or an error; nothing in between.
//!
//! ```text
//!   MAOSBKP 1 | HEAD            | ENVELOPE       | chunk 0 | chunk 1 | ... | last chunk |
//!             | whose, of when, | how the chunks | entries ->  ->  ->      | MANIFEST   | end of the file
//!             | of which keys   | are sealed     |                         |            |
//!             '-- never changes -'-- rewrap() ---'-- each tied to the head, to its place, and to being the last or not
//! ```
//!
//! Integers are bincode varints (little-endian), `bytes` is a length and that many bytes, as in [`v1`]; `u32` and `u64` take
//! 4 and 8 bytes, little-endian.
//!
//! ```text
//! file    = "MAOSBKP", 1, u32 length and HEAD, u32 length and ENVELOPE, chunks
//!
//! HEAD    = id (16 bytes), name bytes, node bytes, instant, count of prefixes, bytes of each,
//!           0 | 1 and id of the parent (16 bytes), its instant; flags, bytes of the version that made it
//! flags   = one byte; bit 0: native keys may be in it; all other bits 0
//!
//! ENVELOPE= 0: the chunks are plain | 1: AES-256-GCM; key id bytes, salt (32 bytes), nonce (12 bytes), wrapped (48 bytes)
//! wrapped = the data key (32 bytes) and its tag: AES-256-GCM under HKDF-SHA256(key, salt, "maos backup 1 wrap"), with the
//!           nonce, and `bound` as what is authenticated beside it
//! bound   = SHA-256 of all before the envelope: "MAOSBKP", 1, the length of HEAD, HEAD
//!
//! chunk   = u32 word, body, tag (16 bytes)
//! word    = bit 31: the last chunk; the others: the length of body and tag together
//! body    = 0, raw bytes | 1, u32 length of the raw bytes, these as an LZ4 block. 1 to 262,144 raw bytes
//! sealed  : the body is encrypted, AES-256-GCM under the data key; nonce: 4 bytes 0, u64 place of the chunk, from 0;
//!           authenticated beside it: bound, word, u64 place
//! plain   : tag = the first 16 bytes of SHA-256("maos backup 1 plain", bound, word, u64 place, body)
//!
//! The raw bytes of all chunks but the last are one stream. An entry may begin and end anywhere in it.
//! stream  = entries
//! entry   = kind, length of what follows, then by kind
//!   1       a record: db, key bytes, expires, bytes of a record of encoding 1
//!   2       unchanged since the parent: db, key bytes, stamp of the current version (0: it has none), expires
//!   3       the definition of a partition: db, key bytes, expires, bytes of a definition of encoding 1
//!   4       a native key: db, key bytes, expires, read at, type, count of elements, bytes of each
//! expires = ms of unix time, 0: never
//! read at = ms of unix time
//! type    = one byte: 0 string, 1 list, 2 set, 3 hash (field, value, field, ...), 4 sorted set (member, score as text, ...)
//!
//! MANIFEST= count of entries of kind 1, of 2, of 3, of 4, length of the stream, newest stamp, SHA-256 of the tags of all
//!           chunks before this one, in order (32 bytes)
//! ```
//!
//! - A chunk that was changed, moved, left out, put in twice, or that is of another file, has a wrong tag. What a tag cannot
//!   show (a plain file that somebody made up, two files with one head) the manifest does: it counts, and has a hash of
//!   all tags. A file that is cut has no last chunk; behind that one nothing may follow.
//! - The data key is random and of this file alone, so a place is never used twice as a nonce with one key. To give the
//!   file to another key only the envelope is made anew ([`rewrap`]).
//! - Whoever has no key sees the head, with the name, the node and the prefixes, and how long the chunks are; of the keys and
//!   values nothing. A plain file is proof against accidents, not against people: who must be sure of both looks at
//!   [`Reader::key_id`].
//! - What is read is handed out chunk by chunk: each is checked, but that the file is whole is known at its end. To
//!   know before anything is done with it, [`verify`] first.
//! - No length is believed: memory grows with the bytes that have arrived.

use std::fmt;
use std::io::{self, Read, Write};

use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{v1, Damaged, Reader as Fields, Writer as Put};
use crate::digest;
use crate::keyring::{is_plain, key_id, Key, Keyring, KEY, KEY_ID_MAX};
use crate::{Interner, Stamp};

/// What every backup begins with, before the number of its format.
pub const MAGIC: &[u8; 7] = b"MAOSBKP";
/// The number of this format.
pub const FORMAT: u8 = 1;
/// The most raw bytes of one chunk.
pub const CHUNK: usize = 256 << 10;
/// The longest HEAD, in bytes.
pub const HEAD_MAX: usize = 1 << 20;
/// The longest name of a backup, in bytes.
pub const NAME_MAX: usize = 64;
/// The longest id of a node, in bytes.
pub const NODE_MAX: usize = 64;
/// The longest version of the module, in bytes.
pub const MADE_WITH_MAX: usize = 32;
/// The most prefixes of a backup.
pub const PREFIXES_MAX: usize = 1024;
/// The longest of these prefixes, in bytes.
pub const PREFIX_MAX: usize = 512;
/// The longest entry, in bytes, without its kind and its length.
pub const ENTRY_MAX: u64 = 1 << 32;
/// How many random bytes [`Sealer::with_key`] takes: a data key, a salt and a nonce.
pub const SEAL_RANDOM: usize = KEY + REWRAP_RANDOM;
/// How many random bytes [`rewrap`] takes: a salt and a nonce.
pub const REWRAP_RANDOM: usize = SALT + NONCE;
/// All that comes before the chunks is at most this long, in bytes.
pub const LEAD_MAX: usize = START + 2 * WORD + HEAD_MAX + ENVELOPE_MAX;

const SALT: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
const WORD: usize = size_of::<u32>();
const START: usize = MAGIC.len() + 1;
const ENVELOPE_MAX: usize = 2 + KEY_ID_MAX + SALT + NONCE + KEY + TAG;

const PLAIN: u8 = 0;
const AES_256_GCM: u8 = 1;
const NATIVES: u8 = 1;
const LAST: u32 = 1 << 31;

const RAW: u8 = 0;
const LZ4: u8 = 1;
/// What stands before the bytes of a body that is packed: how it is, how long it was.
const PACKED: usize = 1 + WORD;
/// The longest body: what does not become smaller stays raw.
const BODY_MAX: usize = 1 + CHUNK;
/// What an entry begins with takes at most this: two numbers.
const NUMBERS: usize = 18;
/// What a buffer keeps for the next entries after one that was long.
const SPARE: usize = 4 * CHUNK;

const WRAP_INFO: &[u8] = b"maos backup 1 wrap";
const PLAIN_INFO: &[u8] = b"maos backup 1 plain";

/// The latest time in milliseconds of unix time that a key can expire at.
const MS_MAX: u64 = i64::MAX as u64 / 2;

/// Why a backup cannot be read or written. Holds no key, and of the file only what its own rules let stand in a reply.
#[derive(Debug)]
pub enum BackupError {
    /// It is cut or altered: what is wrong, and near which byte of the file.
    Damaged(&'static str, u64),
    /// The key of this id does not open it.
    WrongKey {
        /// The id of the key.
        id: Box<str>,
    },
    /// The key that sealed it is not in the ring.
    NoKey {
        /// The id of the key.
        id: Box<str>,
    },
    /// It does not begin as a backup does.
    NotABackup,
    /// It is of a format that only a later version knows.
    Newer {
        /// The number of the format.
        version: u8,
    },
    /// It is not sealed, so it cannot be given to another key.
    Plain,
    /// What was to be written is not what a backup holds. Nothing of it was written.
    Unfit(&'static str),
    /// The source or the target failed.
    Io(io::Error),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Damaged(what, at) => write!(
                f,
                "the backup is damaged near byte {at}: {what}; take another copy of it"
            ),
            BackupError::WrongKey { id } => write!(
                f,
                "the key {id} does not open the backup: give the key that had this id when it was made, or, if it is \
                 that one, take another copy of the backup: its beginning is damaged"
            ),
            BackupError::NoKey { id } => write!(
                f,
                "the backup is sealed with the key {id}, which is not known here: add it to the backup keys"
            ),
            BackupError::NotABackup => f.write_str(
                "this is not a backup: it does not begin as one does; check which file it is",
            ),
            BackupError::Newer { version } => write!(
                f,
                "the backup is of format {version}, and here only format {FORMAT} is known: use a later version of the \
                 module"
            ),
            BackupError::Plain => f.write_str(
                "the backup is not sealed, so it cannot be given to another key: make a new one with a key",
            ),
            BackupError::Unfit(what) => {
                write!(f, "this cannot be written into a backup: {what}")
            }
            BackupError::Io(e) => write!(
                f,
                "the backup could not be read or written: {e}; try again when that is mended"
            ),
        }
    }
}

impl std::error::Error for BackupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BackupError::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<io::Error> for BackupError {
    fn from(e: io::Error) -> BackupError {
        BackupError::Io(e)
    }
}

/// Puts the place to what is wrong.
fn near(at: u64) -> impl Fn(Damaged) -> BackupError {
    move |Damaged(what)| BackupError::Damaged(what, at)
}

/// The backup that an incremental one goes on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Its id.
    pub id: [u8; 16],
    /// Its instant.
    pub instant: Stamp,
}

/// What a backup says of itself, to everybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Which backup it is: random, one for each.
    pub id: [u8; 16],
    /// How its owner calls it: `[a-z0-9_-]`, 1 to [`NAME_MAX`] bytes.
    pub name: Box<str>,
    /// Which node made it: at most [`NODE_MAX`] bytes.
    pub node: Box<[u8]>,
    /// Of when it is: what was written until then is in it, nothing that was written later.
    pub instant: Stamp,
    /// What its keys begin with: at most [`PREFIXES_MAX`], of 1 to [`PREFIX_MAX`] bytes; none: it holds all keys.
    pub prefixes: Vec<Box<[u8]>>,
    /// What it goes on from, if it is incremental.
    pub parent: Option<Parent>,
    /// Native keys may be in it.
    pub natives: bool,
    /// The version of the module that made it: printable ASCII, at most [`MADE_WITH_MAX`] bytes.
    pub made_with: Box<str>,
}

impl Head {
    fn check(&self) -> Result<(), Damaged> {
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > NAME_MAX || !name.iter().all(is_plain) {
            return Err(Damaged(
                "the name of a backup is 1 to 64 of a-z, 0-9, _ and -",
            ));
        }
        if self.node.len() > NODE_MAX {
            return Err(Damaged("the id of a node has at most 64 bytes"));
        }
        let is_instant = |stamp| stamp != Stamp::NONE && stamp <= Stamp::MAX;
        if !is_instant(self.instant) || self.parent.is_some_and(|p| !is_instant(p.instant)) {
            return Err(Damaged("the instant of a backup is a version"));
        }
        if self.parent.is_some_and(|p| p.id == self.id) {
            return Err(Damaged("a backup does not go on from itself"));
        }
        if self.prefixes.len() > PREFIXES_MAX
            || self
                .prefixes
                .iter()
                .any(|p| p.is_empty() || p.len() > PREFIX_MAX)
        {
            return Err(Damaged(
                "a backup has at most 1024 prefixes, of 1 to 512 bytes",
            ));
        }
        let made = self.made_with.as_bytes();
        if made.len() > MADE_WITH_MAX || !made.iter().all(u8::is_ascii_graphic) {
            return Err(Damaged(
                "the version of the module has at most 32 printable bytes",
            ));
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let w = &mut Put(&mut out);
        w.0.extend_from_slice(&self.id);
        w.bytes(self.name.as_bytes());
        w.bytes(&self.node);
        w.number(self.instant.0);
        w.number(self.prefixes.len() as u64);
        self.prefixes.iter().for_each(|prefix| w.bytes(prefix));
        w.byte(u8::from(self.parent.is_some()));
        if let Some(parent) = self.parent {
            w.0.extend_from_slice(&parent.id);
            w.number(parent.instant.0);
        }
        w.byte(u8::from(self.natives) * NATIVES);
        w.bytes(self.made_with.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Head, Damaged> {
        let text = |bytes| {
            std::str::from_utf8(bytes)
                .map(Box::from)
                .map_err(|_| Damaged("a name that is no text"))
        };
        let r = &mut Fields::new(bytes);
        let (id, name, node) = (r.array()?, text(r.bytes()?)?, r.bytes()?.into());
        let instant = Stamp(r.number()?);
        let mut prefixes = Vec::new();
        for _ in 0..r.count(PREFIXES_MAX as u64)? {
            prefixes.push(r.bytes()?.into());
        }
        let parent = match r.byte()? {
            0 => None,
            1 => Some(Parent {
                id: r.array()?,
                instant: Stamp(r.number()?),
            }),
            _ => return Err(Damaged("a parent must be there or not")),
        };
        let flags = r.byte()?;
        if flags & !NATIVES != 0 {
            return Err(Damaged("it has flags that only a later version knows"));
        }
        let head = Head {
            id,
            name,
            node,
            instant,
            prefixes,
            parent,
            natives: flags & NATIVES != 0,
            made_with: text(r.bytes()?)?,
        };
        r.end()?;
        head.check()?;
        Ok(head)
    }
}

/// How the chunks are sealed.
enum Envelope {
    Plain,
    Sealed(Wrapped),
}

/// The data key, as it stands in the file.
struct Wrapped {
    id: Box<str>,
    salt: [u8; SALT],
    nonce: [u8; NONCE],
    key: [u8; KEY],
    tag: [u8; TAG],
}

impl Envelope {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENVELOPE_MAX);
        let w = &mut Put(&mut out);
        match self {
            Envelope::Plain => w.byte(PLAIN),
            Envelope::Sealed(wrapped) => {
                w.byte(AES_256_GCM);
                w.bytes(wrapped.id.as_bytes());
                for part in [
                    &wrapped.salt[..],
                    &wrapped.nonce,
                    &wrapped.key,
                    &wrapped.tag,
                ] {
                    w.0.extend_from_slice(part);
                }
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Envelope, Damaged> {
        let r = &mut Fields::new(bytes);
        let envelope = match r.byte()? {
            PLAIN => Envelope::Plain,
            AES_256_GCM => Envelope::Sealed(Wrapped {
                id: key_id(r.bytes()?)
                    .ok_or(Damaged("the id of its key cannot be one"))?
                    .into(),
                salt: r.array()?,
                nonce: r.array()?,
                key: r.array()?,
                tag: r.array()?,
            }),
            _ => return Err(Damaged("it is sealed in a way that nobody knows here")),
        };
        r.end()?;
        Ok(envelope)
    }
}

/// The cipher that a key and a salt make, to wrap a data key with.
fn wrapper(key: &Key, salt: &[u8; SALT]) -> Aes256Gcm {
    let mut made = Zeroizing::new([0; KEY]);
    Hkdf::<Sha256>::new(Some(salt), key.bytes())
        .expand(WRAP_INFO, &mut *made)
        .expect("32 bytes are as many as one round gives");
    Aes256Gcm::new((&*made).into())
}

impl Wrapped {
    fn new(
        data_key: &[u8; KEY],
        key: &Key,
        random: &[u8; REWRAP_RANDOM],
        bound: &[u8; 32],
    ) -> Wrapped {
        let (mut salt, mut nonce) = ([0; SALT], [0; NONCE]);
        salt.copy_from_slice(&random[..SALT]);
        nonce.copy_from_slice(&random[SALT..]);
        let mut wrapped = *data_key;
        let tag = wrapper(key, &salt)
            .encrypt_in_place_detached(&nonce.into(), bound, &mut wrapped)
            .expect("32 bytes are not too many");
        Wrapped {
            id: key.id().into(),
            salt,
            nonce,
            key: wrapped,
            tag: tag.into(),
        }
    }

    /// The data key.
    fn open(
        &self,
        ring: Option<&Keyring>,
        bound: &[u8; 32],
    ) -> Result<Zeroizing<[u8; KEY]>, BackupError> {
        let id = || self.id.clone();
        let key = ring
            .and_then(|ring| ring.get(&self.id))
            .ok_or_else(|| BackupError::NoKey { id: id() })?;
        let mut data_key = Zeroizing::new(self.key);
        wrapper(key, &self.salt)
            .decrypt_in_place_detached(&self.nonce.into(), bound, &mut *data_key, &self.tag.into())
            .map_err(|_| BackupError::WrongKey { id: id() })?;
        Ok(data_key)
    }
}

/// All that comes before the chunks.
struct Lead {
    head: Head,
    bound: [u8; 32],
    envelope: Envelope,
    /// Where the envelope begins, with its length.
    sealed_at: u64,
    /// Where the chunks begin.
    end: u64,
}

/// What comes before the envelope.
fn front(head: &Head) -> Result<Vec<u8>, BackupError> {
    head.check()
        .map_err(|Damaged(what)| BackupError::Unfit(what))?;
    let head = head.encode();
    let mut out = Vec::with_capacity(START + WORD + head.len());
    out.extend_from_slice(MAGIC);
    out.push(FORMAT);
    put_part(&head, &mut out);
    Ok(out)
}

fn put_part(part: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    out.extend_from_slice(part);
}

fn cut(e: io::Error, at: u64) -> BackupError {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends before its end", at),
        _ => BackupError::Io(e),
    }
}

/// Reads a part with its length before it, takes it into the hash, and moves `at` behind it.
fn part(
    source: &mut impl Read,
    max: usize,
    at: &mut u64,
    hash: &mut Sha256,
) -> Result<Vec<u8>, BackupError> {
    let mut len = [0; WORD];
    source.read_exact(&mut len).map_err(|e| cut(e, *at))?;
    hash.update(len);
    let len = u64::from(u32::from_le_bytes(len));
    if len > max as u64 {
        let what = "its head or envelope is longer than one can be";
        return Err(BackupError::Damaged(what, *at));
    }
    *at += WORD as u64;
    let mut part = Vec::new();
    source.take(len).read_to_end(&mut part)?;
    if (part.len() as u64) < len {
        return Err(cut(io::ErrorKind::UnexpectedEof.into(), *at));
    }
    hash.update(&part);
    *at += len;
    Ok(part)
}

impl Lead {
    fn read(source: &mut impl Read) -> Result<Lead, BackupError> {
        let mut start = [0; START];
        match source.read_exact(&mut start) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BackupError::NotABackup)
            }
            read => read?,
        }
        match start.strip_prefix(MAGIC) {
            Some([FORMAT]) => {}
            Some([version]) if *version > FORMAT => {
                return Err(BackupError::Newer { version: *version })
            }
            _ => return Err(BackupError::NotABackup),
        }
        let mut at = START as u64;
        let mut hash = Sha256::new_with_prefix(start);
        let head = Head::decode(&part(source, HEAD_MAX, &mut at, &mut hash)?)
            .map_err(near(START as u64))?;
        let (bound, sealed_at) = (hash.finalize_reset().into(), at);
        let envelope = part(source, ENVELOPE_MAX, &mut at, &mut hash)?;
        Ok(Lead {
            head,
            bound,
            envelope: Envelope::decode(&envelope).map_err(near(sealed_at))?,
            sealed_at,
            end: at,
        })
    }
}

/// What a backup says of itself, and the id of the key that it is sealed with, without any key: so none of it is certain.
///
/// # Errors
/// As [`Reader::open`], but for what a key is needed for.
pub fn peek(mut source: impl Read) -> Result<(Head, Option<Box<str>>), BackupError> {
    let lead = Lead::read(&mut source)?;
    let id = match lead.envelope {
        Envelope::Plain => None,
        Envelope::Sealed(wrapped) => Some(wrapped.id),
    };
    Ok((lead.head, id))
}

/// Gives a sealed backup to another key. Takes how the file begins, at least until its chunks ([`LEAD_MAX`] bytes
/// are always enough); gives what stands there instead, and where in the old file the chunks begin: these stay as
/// they are.
///
/// The random bytes must be new each time, and from a source that nobody can foretell.
///
/// # Errors
/// As [`Reader::open`], and [`BackupError::Plain`] for a backup that is not sealed.
pub fn rewrap(
    prefix: &[u8],
    ring: &Keyring,
    to: &Key,
    random: &[u8; REWRAP_RANDOM],
) -> Result<(Vec<u8>, u64), BackupError> {
    let lead = Lead::read(&mut &*prefix)?;
    let Envelope::Sealed(wrapped) = &lead.envelope else {
        return Err(BackupError::Plain);
    };
    let data_key = wrapped.open(Some(ring), &lead.bound)?;
    let envelope = Envelope::Sealed(Wrapped::new(&data_key, to, random, &lead.bound));
    let front = prefix.get(..lead.sealed_at as usize).unwrap_or_default();
    let mut out = front.to_vec();
    put_part(&envelope.encode(), &mut out);
    Ok((out, lead.end))
}

/// The tag of each chunk: it says that the chunk is of this file and in its place.
struct Seal {
    bound: [u8; 32],
    cipher: Option<Box<Aes256Gcm>>,
    /// The place of the next chunk.
    place: u64,
    /// Over the tags of all chunks so far.
    tags: Sha256,
}

impl Seal {
    fn new(bound: [u8; 32], data_key: Option<&[u8; KEY]>) -> Seal {
        Seal {
            bound,
            cipher: data_key.map(|key| Box::new(Aes256Gcm::new(key.into()))),
            place: 0,
            tags: Sha256::new(),
        }
    }

    /// What is authenticated beside the body of the next chunk.
    fn beside(&self, word: u32) -> [u8; 32 + WORD + 8] {
        let mut beside = [0; 32 + WORD + 8];
        let (bound, rest) = beside.split_at_mut(32);
        let (at_word, at_place) = rest.split_at_mut(WORD);
        bound.copy_from_slice(&self.bound);
        at_word.copy_from_slice(&word.to_le_bytes());
        at_place.copy_from_slice(&self.place.to_le_bytes());
        beside
    }

    fn nonce(&self) -> [u8; NONCE] {
        let mut nonce = [0; NONCE];
        nonce[NONCE - 8..].copy_from_slice(&self.place.to_le_bytes());
        nonce
    }

    fn plain_tag(&self, word: u32, body: &[u8]) -> [u8; TAG] {
        let hash = Sha256::new_with_prefix(PLAIN_INFO)
            .chain_update(self.beside(word))
            .chain_update(body)
            .finalize();
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hash[..TAG]);
        tag
    }

    fn next(&mut self, tag: &[u8]) {
        self.place += 1;
        self.tags.update(tag);
    }

    fn tags(&self) -> [u8; 32] {
        self.tags.clone().finalize().into()
    }

    /// Seals the body of the next chunk where it stands.
    fn close(&mut self, word: u32, body: &mut [u8]) -> [u8; TAG] {
        let tag = match &self.cipher {
            None => self.plain_tag(word, body),
            Some(cipher) => cipher
                .encrypt_in_place_detached(&self.nonce().into(), &self.beside(word), body)
                .expect("a chunk is not too long")
                .into(),
        };
        self.next(&tag);
        tag
    }

    /// Opens the body of the next chunk where it stands.
    fn open(&mut self, word: u32, body: &mut [u8], tag: &[u8; TAG]) -> Result<(), Damaged> {
        let right = match &self.cipher {
            None => self.plain_tag(word, body) == *tag,
            Some(cipher) => cipher
                .decrypt_in_place_detached(
                    &self.nonce().into(),
                    &self.beside(word),
                    body,
                    tag.into(),
                )
                .is_ok(),
        };
        if !right {
            return Err(Damaged("a chunk is not what was written in its place"));
        }
        self.next(tag);
        Ok(())
    }
}

/// What kind of value a native key holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// One element.
    String = 0,
    /// Elements in order.
    List = 1,
    /// Elements in any order.
    Set = 2,
    /// A field, its value, the next field.
    Hash = 3,
    /// A member, its score as text, the next member.
    ZSet = 4,
}

impl Type {
    const ALL: [Type; 5] = [Type::String, Type::List, Type::Set, Type::Hash, Type::ZSet];

    /// How many elements belong together.
    fn group(self) -> usize {
        match self {
            Type::String | Type::List | Type::Set => 1,
            Type::Hash | Type::ZSet => 2,
        }
    }
}

/// The elements of a native key, encoded: what [`Native`] is written from, buffer by buffer.
#[derive(Default, Debug)]
pub struct ElementsBuf {
    count: u64,
    bytes: Vec<u8>,
}

impl ElementsBuf {
    /// One more element.
    pub fn push(&mut self, element: &[u8]) {
        Put(&mut self.bytes).bytes(element);
        self.count += 1;
    }

    /// No elements; the memory stays, for those of the next key.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// What there is.
    pub fn elements(&self) -> Elements<'_> {
        Elements {
            count: self.count,
            bytes: &self.bytes,
        }
    }
}

/// The elements of a native key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Elements<'a> {
    count: u64,
    /// Known to be as many byte strings.
    bytes: &'a [u8],
}

impl<'a> Elements<'a> {
    /// How many: of a hash or a sorted set two for each field or member.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut r = Fields::new(self.bytes);
        (0..self.count).map_while(move |_| r.bytes().ok())
    }

    fn decode(r: &mut Fields<'a>) -> Result<Elements<'a>, Damaged> {
        let count = r.count(u64::MAX)? as u64;
        let bytes = r.rest();
        for _ in 0..count {
            r.bytes()?;
        }
        r.end()?;
        Ok(Elements { count, bytes })
    }
}

impl fmt::Debug for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The value of a key that is not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Native<'a> {
    /// What it is.
    pub kind: Type,
    /// When it was read, in milliseconds of unix time: it has no version that would tell.
    pub read_ms: u64,
    /// What it holds: one element for a string, else at least one.
    pub elements: Elements<'a>,
}

/// What is at a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// A record: its encoding 1.
    Record(&'a [u8]),
    /// What the parent has, still with this current version; none for a key that is only locked.
    Unchanged(Stamp),
    /// The definition of a partition: its encoding 1.
    Definition(&'a [u8]),
    /// The value of another type.
    Native(Native<'a>),
}

impl Content<'_> {
    fn kind(&self) -> u64 {
        match self {
            Content::Record(_) => 1,
            Content::Unchanged(_) => 2,
            Content::Definition(_) => 3,
            Content::Native(_) => 4,
        }
    }
}

/// One key of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// In which database, at most 2^31 - 1.
    pub db: u32,
    /// The key.
    pub key: &'a [u8],
    /// When it expires, in milliseconds of unix time; never 0.
    pub expires_ms: Option<u64>,
    /// What is there.
    pub content: Content<'a>,
}

impl<'a> Entry<'a> {
    fn decode(kind: u64, bytes: &'a [u8]) -> Result<Entry<'a>, Damaged> {
        let r = &mut Fields::new(bytes);
        let db =
            u32::try_from(r.number()?).map_err(|_| Damaged("a database that there cannot be"))?;
        let key = r.bytes()?;
        let expires = |r: &mut Fields<'a>| r.number().map(|ms| Some(ms).filter(|ms| *ms > 0));
        let (expires_ms, content) = match kind {
            1 => (expires(r)?, Content::Record(r.bytes()?)),
            2 => {
                let stamp = Stamp(r.number()?);
                (expires(r)?, Content::Unchanged(stamp))
            }
            3 => (expires(r)?, Content::Definition(r.bytes()?)),
            4 => {
                let (expires_ms, read_ms, kind) = (expires(r)?, r.number()?, r.byte()?);
                let kind = Type::ALL.get(usize::from(kind)).copied();
                let native = Native {
                    kind: kind.ok_or(Damaged("a type that only a later version knows"))?,
                    read_ms,
                    elements: Elements::decode(r)?,
                };
                let content = Content::Native(native);
                let entry = Entry {
                    db,
                    key,
                    expires_ms,
                    content,
                };
                return Ok(entry);
            }
            _ => return Err(UNKNOWN),
        };
        r.end()?;
        Ok(Entry {
            db,
            key,
            expires_ms,
            content,
        })
    }

    /// Writes all but the longest part, and gives that.
    fn encode(&self, out: &mut Vec<u8>) -> &'a [u8] {
        let w = &mut Put(out);
        let expires = self.expires_ms.unwrap_or(0);
        w.number(self.db.into());
        w.bytes(self.key);
        match self.content {
            Content::Record(bytes) | Content::Definition(bytes) => {
                w.number(expires);
                w.number(bytes.len() as u64);
                bytes
            }
            Content::Unchanged(stamp) => {
                w.number(stamp.0);
                w.number(expires);
                &[]
            }
            Content::Native(native) => {
                w.number(expires);
                w.number(native.read_ms);
                w.byte(native.kind as u8);
                w.number(native.elements.count);
                native.elements.bytes
            }
        }
    }

    /// Whether it can stand in a backup of this head.
    fn check(&self, head: &Head) -> Result<(), Damaged> {
        if self.db > i32::MAX as u32 {
            return Err(Damaged("a database that there cannot be"));
        }
        if self.expires_ms.is_some_and(|ms| ms == 0 || ms > MS_MAX) {
            return Err(Damaged("a time to expire that there cannot be"));
        }
        match self.content {
            Content::Record(_) | Content::Definition(_) => Ok(()),
            Content::Unchanged(_) if head.parent.is_none() => Err(Damaged(
                "a key that did not change, in a backup without a parent",
            )),
            Content::Unchanged(stamp) if stamp > Stamp::MAX => {
                Err(Damaged("a version too far in the future"))
            }
            Content::Unchanged(_) => Ok(()),
            Content::Native(_) if !head.natives => {
                Err(Damaged("a native key, in a backup that says to hold none"))
            }
            Content::Native(native) => native.check(),
        }
    }

    /// The newest stamp in it; none in a native key.
    fn newest(&self) -> Result<Stamp, Damaged> {
        match self.content {
            Content::Record(bytes) => v1::newest_of(bytes),
            Content::Unchanged(stamp) => Ok(stamp),
            Content::Definition(bytes) => Ok(v1::decode_definition(bytes)?.stamp),
            Content::Native(_) => Ok(Stamp::NONE),
        }
    }

    /// What it says, in 128 bits of a SHA-256: the same for a record whose versions are compressed or not, and for a
    /// native key whose elements come in another order where order says nothing, or that was read at another time.
    ///
    /// # Errors
    /// [`Damaged`] if a record or a definition does not decode.
    pub fn digest(&self, interner: &mut Interner) -> Result<u128, Damaged> {
        let mut all = Feed(Sha256::new());
        let to: &mut dyn digest::Digest = &mut all;
        to.number(self.content.kind());
        to.number(self.db.into());
        to.bytes(self.key);
        to.number(self.expires_ms.unwrap_or(0));
        match self.content {
            Content::Record(bytes) => {
                let (record, share) = v1::decode_record(bytes, v1::Bounds::HARD, interner)?;
                digest::show(&record, share, &mut all);
            }
            Content::Unchanged(stamp) => to.number(stamp.0),
            Content::Definition(bytes) => {
                digest::show_definition(&v1::decode_definition(bytes)?, &mut all);
            }
            Content::Native(native) => {
                to.number(native.kind as u64);
                to.number(native.elements.count);
                native.show(&mut all);
            }
        }
        Ok(all.end())
    }
}

impl Native<'_> {
    fn check(&self) -> Result<(), Damaged> {
        let (count, group) = (self.elements.count, self.kind.group() as u64);
        if count == 0 || count % group != 0 || (self.kind == Type::String && count != 1) {
            return Err(Damaged(
                "a native key with a number of elements that its type cannot have",
            ));
        }
        if self.kind == Type::ZSet && !self.elements.iter().skip(1).step_by(2).all(is_score) {
            return Err(Damaged("a score that is no number"));
        }
        Ok(())
    }

    fn show(&self, to: &mut Feed) {
        let mut elements = self.elements.iter();
        if matches!(self.kind, Type::String | Type::List) {
            elements.for_each(|element| digest::Digest::bytes(to, element));
            return;
        }
        let mut sum = 0u128;
        while let Some(first) = elements.next() {
            let mut one = Feed(Sha256::new());
            digest::Digest::bytes(&mut one, first);
            if self.kind.group() == 2 {
                digest::Digest::bytes(&mut one, elements.next().unwrap_or_default());
            }
            sum = sum.wrapping_add(one.end());
        }
        to.0.update(sum.to_le_bytes());
    }
}

/// A score as the server writes one.
fn is_score(text: &[u8]) -> bool {
    let number = std::str::from_utf8(text).ok().filter(|t| t.len() <= 64);
    number.is_some_and(|t| t.parse::<f64>().is_ok_and(|score| !score.is_nan()))
}

/// A hash that takes a digest.
struct Feed(Sha256);

impl Feed {
    fn end(self) -> u128 {
        let hash: [u8; 32] = self.0.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        u128::from_le_bytes(half)
    }
}

impl digest::Digest for Feed {
    fn number(&mut self, n: u64) {
        self.0.update(n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn end(&mut self) {}
}

const UNKNOWN: Damaged = Damaged("an entry of a kind that only a later version knows");

/// What all of a backup comes to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Manifest {
    /// How many records.
    pub records: u64,
    /// How many keys that did not change.
    pub unchanged: u64,
    /// How many definitions of partitions.
    pub definitions: u64,
    /// How many native keys.
    pub natives: u64,
    /// How long the stream of entries is, in bytes, before it is compressed.
    pub bytes: u64,
    /// The newest of all stamps in it: versions and tokens of records, versions of what did not change and of definitions.
    pub newest: Stamp,
    /// SHA-256 of the tags of all chunks before the last.
    pub tags: [u8; 32],
}

impl Manifest {
    /// How many entries.
    pub fn entries(&self) -> u64 {
        let kinds = [self.records, self.unchanged, self.definitions, self.natives];
        kinds.into_iter().fold(0, u64::saturating_add)
    }

    fn count(&mut self, content: Content<'_>, len: u64, newest: Stamp) {
        *match content {
            Content::Record(_) => &mut self.records,
            Content::Unchanged(_) => &mut self.unchanged,
            Content::Definition(_) => &mut self.definitions,
            Content::Native(_) => &mut self.natives,
        } += 1;
        self.bytes += len;
        self.newest = self.newest.max(newest);
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let w = &mut Put(out);
        for n in [
            self.records,
            self.unchanged,
            self.definitions,
            self.natives,
            self.bytes,
            self.newest.0,
        ] {
            w.number(n);
        }
        w.0.extend_from_slice(&self.tags);
    }

    fn decode(bytes: &[u8]) -> Result<Manifest, Damaged> {
        let r = &mut Fields::new(bytes);
        let manifest = Manifest {
            records: r.number()?,
            unchanged: r.number()?,
            definitions: r.number()?,
            natives: r.number()?,
            bytes: r.number()?,
            newest: Stamp(r.number()?),
            tags: r.array()?,
        };
        r.end()?;
        Ok(manifest)
    }

    /// What was read, beside what the file says of itself.
    fn compare(&self, said: &Manifest) -> Result<(), Damaged> {
        if self.tags != said.tags {
            return Err(Damaged("its chunks are not those that it was closed with"));
        }
        if self != said {
            return Err(Damaged("its entries are not as many as it says, or others"));
        }
        Ok(())
    }
}

/// How a backup is to be sealed.
pub struct Sealer<'k>(Option<(&'k Key, &'k [u8; SEAL_RANDOM])>);

impl<'k> Sealer<'k> {
    /// Not at all: everybody can read it, and make one.
    pub fn plain() -> Sealer<'k> {
        Sealer(None)
    }

    /// With this key. The random bytes must be new for each backup, and from a source that nobody can foretell: the first 32 are
    /// the key of its data. They are the caller's to overwrite.
    pub fn with_key(key: &'k Key, random: &'k [u8; SEAL_RANDOM]) -> Sealer<'k> {
        Sealer(Some((key, random)))
    }
}

/// Writes a backup. What was written before [`finish`](Writer::finish) is none, and is refused as one.
pub struct Writer<W> {
    out: W,
    head: Head,
    seal: Seal,
    so_far: Manifest,
    /// How many raw bytes go into a chunk.
    chunk: usize,
    /// The raw bytes of the next chunk.
    raw: Vec<u8>,
    /// The next chunk as it is written.
    stored: Vec<u8>,
    /// The fields of an entry.
    fields: Vec<u8>,
    /// The target failed; what it holds is not known.
    broken: bool,
}

impl<W: Write> Writer<W> {
    /// Begins a backup: writes what comes before its chunks.
    ///
    /// # Errors
    /// [`BackupError::Unfit`] for a head beyond its bounds, and when the target fails.
    pub fn create(mut out: W, head: Head, sealer: Sealer<'_>) -> Result<Writer<W>, BackupError> {
        let mut front = front(&head)?;
        let bound = Sha256::digest(&front).into();
        let (envelope, seal) = match sealer.0 {
            None => (Envelope::Plain, Seal::new(bound, None)),
            Some((key, random)) => {
                let (mut data_key, mut rest) = (Zeroizing::new([0; KEY]), [0; REWRAP_RANDOM]);
                data_key.copy_from_slice(&random[..KEY]);
                rest.copy_from_slice(&random[KEY..]);
                let wrapped = Wrapped::new(&data_key, key, &rest, &bound);
                let seal = Seal::new(bound, Some(&data_key));
                (Envelope::Sealed(wrapped), seal)
            }
        };
        put_part(&envelope.encode(), &mut front);
        out.write_all(&front)?;
        Ok(Writer {
            out,
            head,
            seal,
            so_far: Manifest::default(),
            chunk: CHUNK,
            raw: Vec::new(),
            stored: Vec::new(),
            fields: Vec::new(),
            broken: false,
        })
    }

    /// Puts so many raw bytes into a chunk, from 1 to [`CHUNK`], which is how it begins: a writer that has little memory takes
    /// fewer.
    pub fn set_chunk(&mut self, bytes: usize) {
        self.chunk = bytes.clamp(1, CHUNK);
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// [`BackupError::Unfit`] for an entry that does not go with the head, is beyond its bounds, or is a record or a definition
    /// whose stamps are not found: it is left out, and the backup can go on. When the target fails it cannot.
    pub fn entry(&mut self, entry: &Entry<'_>) -> Result<(), BackupError> {
        let unfit = |Damaged(what)| BackupError::Unfit(what);
        entry.check(&self.head).map_err(unfit)?;
        let newest = entry.newest().map_err(unfit)?;
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        let long = entry.encode(&mut fields);
        let len = fields.len() as u64 + long.len() as u64;
        let mut written = Err(BackupError::Unfit("an entry longer than 4 GiB"));
        if len <= ENTRY_MAX {
            let (begin, mut numbers) = (fields.len(), 0);
            // What comes first is known last.
            let w = &mut Put(&mut fields);
            w.number(entry.content.kind());
            w.number(len);
            numbers += fields.len() - begin;
            let (fields, first) = fields.split_at(begin);
            written = [first, fields, long]
                .into_iter()
                .try_for_each(|part| self.push(part));
            if written.is_ok() {
                self.so_far
                    .count(entry.content, numbers as u64 + len, newest);
            }
        }
        self.fields = fields;
        written
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        while !bytes.is_empty() {
            let room = self.chunk.saturating_sub(self.raw.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.raw.extend_from_slice(now);
            bytes = later;
            if self.raw.len() >= self.chunk {
                self.write_chunk(0)?;
            }
        }
        Ok(())
    }

    /// Seals and writes the raw bytes.
    fn write_chunk(&mut self, last: u32) -> Result<(), BackupError> {
        if self.broken {
            let before = "it failed before";
            return Err(BackupError::Io(io::Error::other(before)));
        }
        let (raw, stored) = (&self.raw, &mut self.stored);
        let room = WORD + PACKED + get_maximum_output_size(raw.len()) + TAG;
        if stored.len() < room {
            stored.resize(room, 0);
        }
        let packed = compress_into(raw, &mut stored[WORD + PACKED..]);
        let packed = packed.ok().filter(|len| PACKED + len < 1 + raw.len());
        let body = match packed {
            Some(len) => {
                stored[WORD] = LZ4;
                stored[WORD + 1..WORD + PACKED].copy_from_slice(&(raw.len() as u32).to_le_bytes());
                PACKED + len
            }
            None => {
                stored[WORD] = RAW;
                stored[WORD + 1..WORD + 1 + raw.len()].copy_from_slice(raw);
                1 + raw.len()
            }
        };
        let word = last | (body + TAG) as u32;
        stored[..WORD].copy_from_slice(&word.to_le_bytes());
        let tag = self.seal.close(word, &mut stored[WORD..WORD + body]);
        stored[WORD + body..WORD + body + TAG].copy_from_slice(&tag);
        self.raw.clear();
        self.broken = true;
        self.out.write_all(&self.stored[..WORD + body + TAG])?;
        self.broken = false;
        Ok(())
    }

    /// Closes the backup, and gives the target back, flushed.
    ///
    /// # Errors
    /// When the target fails, now or before.
    pub fn finish(mut self) -> Result<(W, Manifest), BackupError> {
        if !self.raw.is_empty() {
            self.write_chunk(0)?;
        }
        self.so_far.tags = self.seal.tags();
        self.so_far.encode(&mut self.raw);
        self.write_chunk(LAST)?;
        self.out.flush()?;
        Ok((self.out, self.so_far))
    }
}

/// What a reader has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Whole,
    Broken,
}

/// Reads a backup, entry by entry.
pub struct Reader<R> {
    source: R,
    /// How many bytes of the file have been read.
    at: u64,
    head: Head,
    key_id: Option<Box<str>>,
    seal: Seal,
    so_far: Manifest,
    state: State,
    /// A chunk as it was read.
    stored: Vec<u8>,
    /// The raw bytes that were read, and which of them were handed out.
    stream: Vec<u8>,
    done: usize,
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("head", &self.head)
            .field("key_id", &self.key_id)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Reader<R> {
    /// Begins to read a backup: its head, and with which key it is sealed. A ring opens plain backups, too.
    ///
    /// # Errors
    /// [`BackupError`]: it is none, is of a later format, begins with what makes no sense, its key is not there, or not the
    /// right one.
    pub fn open(mut source: R, ring: Option<&Keyring>) -> Result<Reader<R>, BackupError> {
        let lead = Lead::read(&mut source)?;
        let (key_id, seal) = match &lead.envelope {
            Envelope::Plain => (None, Seal::new(lead.bound, None)),
            Envelope::Sealed(wrapped) => {
                let data_key = wrapped.open(ring, &lead.bound)?;
                let seal = Seal::new(lead.bound, Some(&data_key));
                (Some(wrapped.id.clone()), seal)
            }
        };
        Ok(Reader {
            source,
            at: lead.end,
            head: lead.head,
            key_id,
            seal,
            so_far: Manifest::default(),
            state: State::Reading,
            stored: Vec::new(),
            stream: Vec::new(),
            done: 0,
        })
    }

    /// What it says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The id of the key that it is sealed with; none, if it is plain and anybody may have made it.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// The next entry. `None` after the last, when all of the file was there and nothing else: its chunks, their
    /// number and order, what the manifest says, the end of the file.
    ///
    /// # Errors
    /// [`BackupError`]; after one there is nothing more to read. Entries that came before it are what was written, but
    /// not all of it.
    #[expect(clippy::should_implement_trait, reason = "what it gives is borrowed")]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, BackupError> {
        match self.state {
            State::Reading => {}
            State::Whole => return Ok(None),
            State::Broken => {
                let what = "it was read on after an error";
                return Err(BackupError::Damaged(what, self.at));
            }
        }
        self.state = State::Broken;
        let Some(found) = self.find()? else {
            self.state = State::Whole;
            return Ok(None);
        };
        let near = near(self.at);
        let bytes = self.stream.get(found.start..found.end).unwrap_or_default();
        let entry = Entry::decode(found.kind, bytes).map_err(&near)?;
        entry.check(&self.head).map_err(&near)?;
        let newest = entry.newest().map_err(&near)?;
        let len = (found.end - self.done) as u64;
        self.so_far.count(entry.content, len, newest);
        self.done = found.end;
        self.state = State::Reading;
        Ok(Some(entry))
    }

    /// The manifest, once [`next`](Reader::next) has given `None`.
    pub fn manifest(&self) -> Option<&Manifest> {
        (self.state == State::Whole).then_some(&self.so_far)
    }

    /// Reads on until there is an entry, or the end.
    fn find(&mut self) -> Result<Option<Found>, BackupError> {
        loop {
            let ahead = self.stream.get(self.done..).unwrap_or_default();
            let found = Found::look(ahead).map_err(near(self.at))?;
            if let Some((kind, from, to)) = found {
                return Ok(Some(Found {
                    kind,
                    start: self.done + from,
                    end: self.done + to,
                }));
            }
            let start = self.at;
            let last = self.read_chunk()?;
            if last {
                self.close(start)?;
                return Ok(None);
            }
        }
    }

    /// Reads a chunk and puts its raw bytes behind those that are still to be handed out. True if it is the last.
    fn read_chunk(&mut self) -> Result<bool, BackupError> {
        self.stream.drain(..self.done);
        self.done = 0;
        if self.stream.capacity() > SPARE && self.stream.len() < CHUNK {
            self.stream.shrink_to(SPARE);
        }
        let start = self.at;
        let damaged = |what| Err(BackupError::Damaged(what, start));
        let mut word = [0; WORD];
        self.read_exact(&mut word)?;
        let word = u32::from_le_bytes(word);
        let len = (word & !LAST) as usize;
        if !(TAG + 2..=TAG + BODY_MAX).contains(&len) {
            return damaged("a chunk of a length that there cannot be");
        }
        let mut stored = std::mem::take(&mut self.stored);
        stored.resize(len, 0);
        let read = self.read_exact(&mut stored);
        self.stored = stored;
        read?;
        let last = word & LAST != 0;
        let Some((body, tag)) = self.stored.split_last_chunk_mut() else {
            return damaged("a chunk of a length that there cannot be");
        };
        if last {
            // What all chunks before it come to.
            self.so_far.tags = self.seal.tags();
        }
        self.seal.open(word, body, tag).map_err(near(start))?;
        if last && !self.stream.is_empty() {
            return damaged("the last entry is cut");
        }
        unpack(body, &mut self.stream).map_err(near(start))?;
        Ok(last)
    }

    /// Compares what was read with what the last chunk says, and makes sure that nothing follows.
    fn close(&mut self, start: u64) -> Result<(), BackupError> {
        let said = Manifest::decode(&self.stream).map_err(near(start))?;
        self.so_far.compare(&said).map_err(near(start))?;
        self.stream.clear();
        match self.source.read_exact(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(e) => Err(BackupError::Io(e)),
            Ok(()) => Err(BackupError::Damaged("something follows its end", self.at)),
        }
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), BackupError> {
        self.source.read_exact(into).map_err(|e| cut(e, self.at))?;
        self.at += into.len() as u64;
        Ok(())
    }
}

/// Appends the raw bytes of a body.
fn unpack(body: &[u8], out: &mut Vec<u8>) -> Result<(), Damaged> {
    match body.split_first() {
        Some((&RAW, raw)) => {
            out.extend_from_slice(raw);
            Ok(())
        }
        Some((&LZ4, packed)) => {
            let (len, packed) = packed
                .split_first_chunk()
                .ok_or(Damaged("a chunk that does not say how long it was"))?;
            let len = u32::from_le_bytes(*len) as usize;
            if len == 0 || len > CHUNK {
                return Err(Damaged("a chunk that unpacks to more than one can hold"));
            }
            let start = out.len();
            out.resize(start + len, 0);
            match decompress_into(packed, &mut out[start..]) {
                Ok(n) if n == len => Ok(()),
                _ => Err(Damaged("a chunk that does not unpack")),
            }
        }
        _ => Err(Damaged("a chunk packed in a way that nobody knows here")),
    }
}

/// Where an entry is in the stream.
struct Found {
    kind: u64,
    start: usize,
    end: usize,
}

impl Found {
    /// The kind of the first entry, where what follows its length begins, and where it ends; `None` if that has not arrived
    /// yet.
    fn look(ahead: &[u8]) -> Result<Option<(u64, usize, usize)>, Damaged> {
        let r = &mut Fields::new(ahead);
        let numbers = r.number().and_then(|kind| Ok((kind, r.number()?)));
        let (kind, len) = match numbers {
            Ok(numbers) => numbers,
            Err(_) if ahead.len() < NUMBERS => return Ok(None),
            Err(_) => return Err(Damaged("an entry that does not say how long it is")),
        };
        // Before all of it is waited for.
        if !(1..=4).contains(&kind) {
            return Err(UNKNOWN);
        }
        if len > ENTRY_MAX {
            return Err(Damaged("an entry longer than 4 GiB"));
        }
        let rest = r.rest().len();
        let start = ahead.len() - rest;
        Ok(usize::try_from(len)
            .ok()
            .filter(|len| *len <= rest)
            .map(|len| (kind, start, start + len)))
    }
}

/// Reads the rest of a backup, to its last byte, and decodes every record and every definition.
///
/// # Errors
/// [`BackupError`], naming the first thing that is wrong.
pub fn verify<R: Read>(reader: &mut Reader<R>) -> Result<Manifest, BackupError> {
    let interner = &mut Interner::default();
    walk(reader, |entry| match entry.content {
        Content::Record(bytes) => v1::decode_record(bytes, v1::Bounds::HARD, interner).map(|_| ()),
        // Decoded already, for its version.
        Content::Definition(_) | Content::Unchanged(_) | Content::Native(_) => Ok(()),
    })
}

/// The same, and a sum of the [digests](Entry::digest) of all entries: of two backups that hold the same, in whatever order, it
/// is the same. It shows mistakes; somebody with a lot of time could make up another content with the same sum.
///
/// # Errors
/// As [`verify`].
pub fn sum<R: Read>(reader: &mut Reader<R>) -> Result<(Manifest, u128), BackupError> {
    let interner = &mut Interner::default();
    let mut sum = 0u128;
    let manifest = walk(reader, |entry| {
        sum = sum.wrapping_add(entry.digest(interner)?);
        Ok(())
    })?;
    Ok((manifest, sum))
}

fn walk<R: Read>(
    reader: &mut Reader<R>,
    mut each: impl FnMut(&Entry<'_>) -> Result<(), Damaged>,
) -> Result<Manifest, BackupError> {
    while let Some(entry) = reader.next()? {
        each(&entry).map_err(|Damaged(what)| BackupError::Damaged(what, reader.at))?;
    }
    Ok(reader.so_far.clone())
}
