//! The server's digest of a value, computed here from what the model holds.

use maos_core::digest::{show, show_definition, Digest};
use maos_core::model::{Defined, Held, Model};
use sha1_smol::Sha1;

type Hash = [u8; 20];

/// What `DEBUG DIGEST-VALUE` must show for a key that holds this.
pub fn of(model: &Model, held: &Held) -> String {
    let record = &held.record;
    sealed(held.expires_ms.is_some(), |value| {
        show(record, model.share(record), value)
    })
}

/// What it must show for a key that defines a partition.
pub fn of_partition(defined: &Defined) -> String {
    let expires = defined.expires_ms.is_some();
    sealed(expires, |value| show_definition(&defined.definition, value))
}

fn sealed(expires: bool, show: impl FnOnce(&mut Value)) -> String {
    /// The number of the server's object type for a module's value.
    const OBJ_MODULE: u32 = 5;
    let mut hash = Hash::default();
    mix(&mut hash, &OBJ_MODULE.to_be_bytes());
    let mut value = Value::default();
    show(&mut value);
    xor(&mut hash, &value.sealed);
    if expires {
        xor(&mut hash, b"!!expire!!");
    }
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a module has shown of a value: elements in order, sequences in any.
#[derive(Default)]
struct Value {
    open: Hash,
    sealed: Hash,
}

impl Digest for Value {
    fn number(&mut self, n: u64) {
        mix(&mut self.open, (n as i64).to_string().as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        mix(&mut self.open, bytes);
    }

    fn end(&mut self) {
        xor(&mut self.sealed, &std::mem::take(&mut self.open));
    }
}

fn xor(hash: &mut Hash, bytes: &[u8]) {
    let other = Sha1::from(bytes).digest().bytes();
    hash.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

fn mix(hash: &mut Hash, bytes: &[u8]) {
    xor(hash, bytes);
    *hash = Sha1::from(&hash[..]).digest().bytes();
}
