//! The only bytes that outlive the process.
//!
//! A released encoding is never edited; a new one is added beside it. What [`v1`] writes is frozen
//! by golden files.

pub mod backup;
pub mod chain;
pub mod v1;

use bincode::config::{Configuration, Varint};

/// Little-endian, variable-length integers.
const CONFIG: Configuration<bincode::config::LittleEndian, Varint> = bincode::config::standard();

/// Bytes that are not what they should be, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged(pub &'static str);

const CUT: Damaged = Damaged("the bytes end in the middle of a field");

/// Reads primitives off the front of bytes, none of which are trusted.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    fn take<T: bincode::BorrowDecode<'a, ()>>(&mut self) -> Result<T, Damaged> {
        let (value, used) = bincode::borrow_decode_from_slice(self.0, CONFIG).map_err(|_| CUT)?;
        self.0 = &self.0[used..];
        Ok(value)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, Damaged> {
        let (first, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline]
    pub(crate) fn number(&mut self) -> Result<u64, Damaged> {
        match self.0.first() {
            // What is below stands for itself: most lengths, counts and places.
            Some(first) if *first < 251 => self.byte().map(u64::from),
            _ => self.take(),
        }
    }

    /// Bytes with their length before them; borrowed, so a lying length takes no memory.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let len = usize::try_from(self.number()?).map_err(|_| CUT)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// So many bytes as they are.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*bytes)
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// A count of things that take at least one byte each.
    pub(crate) fn count(&mut self, max: u64) -> Result<usize, Damaged> {
        let n = self.number()?;
        if n > max || n > self.0.len() as u64 {
            return Err(Damaged("a count is larger than what follows"));
        }
        Ok(n as usize)
    }

    pub(crate) fn end(&self) -> Result<(), Damaged> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Damaged("bytes are left over")),
        }
    }
}

/// Appends primitives to a buffer.
pub(crate) struct Writer<'b>(pub(crate) &'b mut Vec<u8>);

impl Writer<'_> {
    fn put(&mut self, value: impl bincode::Encode) {
        // Into memory: there is nothing that could fail.
        let done = bincode::encode_into_std_write(value, &mut *self.0, CONFIG);
        debug_assert!(done.is_ok());
    }

    pub(crate) fn byte(&mut self, b: u8) {
        self.0.push(b);
    }

    #[inline]
    pub(crate) fn number(&mut self, n: u64) {
        // What bincode makes of it, on the way of every write that is told.
        match n {
            0..251 => self.0.push(n as u8),
            4_294_967_296.. => {
                let [a, b, c, d, e, f, g, h] = n.to_le_bytes();
                self.0.extend_from_slice(&[253, a, b, c, d, e, f, g, h]);
            }
            _ => self.put(n),
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}
