//! The keys that backups are sealed with: one that seals, and those that still open what they sealed before.
//!
//! ```text
//! # since March
//! 2026-03 8d2f…64 hexadecimal digits, which are 32 bytes…91
//! # opens what is older
//! 2025-11 04b7…0c
//! ```
//!
//! The first key is the active one. To change it, a new line goes on top, and the old one stays for as long as
//! there are backups that it sealed.
//!
//! Nothing here shows a key: `Debug` shows ids, and an error says in which line something is wrong, not what
//! stands there. The bytes of a key are overwritten when it is dropped. The text that it was read from is its owner's to
//! overwrite.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The bytes of a key.
pub const KEY: usize = 32;
/// The longest id of a key, in bytes.
pub const KEY_ID_MAX: usize = 32;
/// The most keys of a ring.
pub const KEYS_MAX: usize = 64;
/// The longest text that a ring is read from, in bytes.
pub const KEYRING_MAX: usize = 64 << 10;

/// How many hexadecimal digits of its fingerprint name a key that came without an id.
const FINGERPRINT: usize = 8;

/// A key, and the name by which a backup asks for it.
pub struct Key {
    id: Box<str>,
    /// Never moved, so there is no copy of it to forget.
    bytes: Box<Zeroizing<[u8; KEY]>>,
}

impl Key {
    /// Its name: `[a-z0-9_-]`, 1 to [`KEY_ID_MAX`] bytes.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY] {
        &self.bytes
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.id).finish()
    }
}

/// What is wrong with the text of a ring, and where. Holds nothing of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadKeyring {
    /// The line, from 1; in a variable, the how-manyth key.
    pub line: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for BadKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the backup keys: {}", self.line, self.what)
    }
}

impl std::error::Error for BadKeyring {}

/// The keys that a node knows: at least one, each with an id of its own.
pub struct Keyring {
    keys: Vec<Key>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.keys).finish()
    }
}

impl Keyring {
    /// Reads a key file: a key in each line, `id` and 64 hexadecimal digits with blanks between them. Empty lines, and
    /// what follows a `#`, say nothing.
    ///
    /// # Errors
    /// [`BadKeyring`], naming the first line that is wrong: no such id, one that is there twice, not 64 digits, more
    /// than [`KEYS_MAX`] keys or [`KEYRING_MAX`] bytes, no key at all.
    pub fn parse(text: &[u8]) -> Result<Keyring, BadKeyring> {
        Self::read(text, |byte| byte == b'\n')
    }

    /// Reads the variable `MAOS_BACKUP_ENCRYPTION_KEY`: 64 hexadecimal digits alone, whose id is then `env-` and the first
    /// 8 digits of the SHA-256 of the key; or what a key file holds, with newlines, commas or semicolons between the
    /// keys.
    ///
    /// # Errors
    /// As [`parse`](Keyring::parse).
    pub fn from_env_text(text: &[u8]) -> Result<Keyring, BadKeyring> {
        let digits = text.trim_ascii();
        if let Some(bytes) = key_bytes(digits) {
            let print = Sha256::digest(bytes.as_slice());
            let mut id = String::from("env-");
            for byte in print.iter().take(FINGERPRINT / 2) {
                id.push_str(&format!("{byte:02x}"));
            }
            let id = id.into();
            return Ok(Keyring {
                keys: vec![Key { id, bytes }],
            });
        }
        Self::read(text, |byte| matches!(byte, b'\n' | b',' | b';'))
    }

    fn read(text: &[u8], ends: impl Fn(u8) -> bool) -> Result<Keyring, BadKeyring> {
        if text.len() > KEYRING_MAX {
            let line = text.iter().take(KEYRING_MAX).filter(|b| ends(**b)).count() + 1;
            let what = "the text is longer than 64 KiB";
            return Err(BadKeyring { line, what });
        }
        let mut keys: Vec<Key> = Vec::new();
        let mut lines = 0;
        for text in text.split(|byte| ends(*byte)) {
            lines += 1;
            let bad = |what| BadKeyring { line: lines, what };
            let text = text.split(|byte| *byte == b'#').next().unwrap_or_default();
            let mut words = text
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty());
            let Some(id) = words.next() else { continue };
            let id = key_id(id).ok_or(bad(
                "a line begins with the id of its key: 1 to 32 of a-z, 0-9, _ and -",
            ))?;
            let (Some(digits), None) = (words.next(), words.next()) else {
                return Err(bad("a line is an id and a key, with a blank between them"));
            };
            let bytes = key_bytes(digits).ok_or(bad("a key is 64 hexadecimal digits"))?;
            if keys.iter().any(|known| *known.id == *id) {
                return Err(bad("the id is that of an earlier line"));
            }
            if keys.len() == KEYS_MAX {
                return Err(bad("there are more than 64 keys"));
            }
            let id = id.into();
            keys.push(Key { id, bytes });
        }
        if keys.is_empty() {
            let what = "there is no key";
            return Err(BadKeyring { line: lines, what });
        }
        Ok(Keyring { keys })
    }

    /// The key that seals.
    pub fn active(&self) -> &Key {
        // A ring without a key is not made.
        &self.keys[0]
    }

    /// The key of this name.
    pub fn get(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| *key.id == *id)
    }

    /// The names of all keys, the active one first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(Key::id)
    }
}

/// The id, if it can be one.
pub(crate) fn key_id(id: &[u8]) -> Option<&str> {
    let fits = (1..=KEY_ID_MAX).contains(&id.len()) && id.iter().all(is_plain);
    std::str::from_utf8(id).ok().filter(|_| fits)
}

/// Whether a byte may stand in the id of a key and in the name of a backup.
pub(crate) fn is_plain(byte: &u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')
}

fn key_bytes(digits: &[u8]) -> Option<Box<Zeroizing<[u8; KEY]>>> {
    if digits.len() != 2 * KEY {
        return None;
    }
    // Where they stay: nothing is read into a place that is left behind.
    let mut bytes = Box::new(Zeroizing::new([0; KEY]));
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | char::from(*digit).to_digit(16)? as u8;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits that occur in no text of ours.
    const ONE: &str = "c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11c0ffee11";
    const TWO: &str = "5CA1AB1E5ca1ab1e5CA1AB1E5ca1ab1e5CA1AB1E5ca1ab1e5CA1AB1E5ca1ab1e";

    fn ids(ring: &Keyring) -> Vec<&str> {
        ring.ids().collect()
    }

    #[test]
    fn the_first_key_of_a_file_is_the_active_one() {
        let text = format!("\n# mine\r\n  new \t {ONE}  # since today\r\n\n#\nold-1_x {TWO}");
        let ring = Keyring::parse(text.as_bytes()).unwrap();
        assert_eq!(ids(&ring), ["new", "old-1_x"]);
        assert_eq!(ring.active().id(), "new");
        assert_eq!(ring.active().bytes()[..4], [0xc0, 0xff, 0xee, 0x11]);
        assert_eq!(
            ring.get("old-1_x").unwrap().bytes()[28..],
            [0x5c, 0xa1, 0xab, 0x1e]
        );
        assert!(ring.get("older").is_none());
    }

    #[test]
    fn a_variable_holds_digits_alone_or_what_a_file_holds() {
        let alone = Keyring::from_env_text(format!(" {ONE}\n").as_bytes()).unwrap();
        // printf c0ffee11… | xxd -r -p | sha256sum
        assert_eq!(ids(&alone), ["env-686d0182"]);
        for between in [",", ";", "\n", " ; ", ";\n,"] {
            let text = format!("a {ONE}{between}b {TWO}");
            let ring = Keyring::from_env_text(text.as_bytes()).unwrap();
            assert_eq!(ids(&ring), ["a", "b"], "{between:?}");
            assert_eq!(ring.active().bytes(), alone.active().bytes());
        }
        let bad = Keyring::from_env_text(format!("{ONE},{TWO}").as_bytes());
        assert_eq!(bad.unwrap_err().line, 1);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_never_by_a_digit() {
        let many = |n: usize| (0..n).map(|i| format!("k{i} {ONE}\n")).collect::<String>();
        assert_eq!(Keyring::parse(many(64).as_bytes()).unwrap().keys.len(), 64);
        let long = format!("a {ONE}\n{}", " ".repeat(KEYRING_MAX));
        let long_id = "x".repeat(33);
        for (line, text) in [
            (1, String::new()),
            (2, "# nothing\n".into()),
            (1, ONE.into()),
            (1, format!("{ONE} {ONE}")),
            (2, format!("a {ONE}\nb")),
            (2, format!("a {ONE}\nb {}", &TWO[1..])),
            (2, format!("a {ONE}\nb {TWO}0")),
            (3, format!("a {ONE}\n\nb {}g", &TWO[1..])),
            (1, format!("a {}\u{e9}", &ONE[2..])),
            (2, format!("a {ONE}\na {TWO}")),
            (2, format!("a {ONE}\nb {TWO} c")),
            (1, format!("a{ONE}")),
            (1, format!("A {ONE}")),
            (1, format!("a.b {ONE}")),
            (1, format!("{long_id} {ONE}")),
            (1, format!("a={ONE}")),
            (65, many(65)),
            (2, long),
        ] {
            let bad = Keyring::parse(text.as_bytes()).unwrap_err();
            assert_eq!(bad.line, line, "{bad}");
            for shown in [bad.to_string(), format!("{bad:?}")] {
                let shown = shown.to_ascii_lowercase();
                for part in ["c0f", "0ff", "fee", "ee1", "5ca", "ca1", "a1a", "ab1"] {
                    assert!(!shown.contains(part), "{shown}");
                }
            }
        }
    }

    #[test]
    fn a_ring_shows_its_ids_alone() {
        let ring = Keyring::parse(format!("a {ONE}\nb {TWO}").as_bytes()).unwrap();
        assert_eq!(format!("{ring:?}"), r#"Keyring([Key("a"), Key("b")])"#);
    }
}
