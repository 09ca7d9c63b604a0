//! What a digest sees of a record: what it says, not how it is kept. Master and replica agree though
//! only one of them has compressed a version.
//!
//! The module's hook feeds the server's `DEBUG DIGEST-VALUE` from here, and so do the tests that
//! compute what it must show: the two cannot drift apart.

use crate::codec::v1::{self, Share};
use crate::partition::Definition;
use crate::record::Record;

/// What takes a digest: the server, or a test.
pub trait Digest {
    /// A number.
    fn number(&mut self, n: u64);
    /// Bytes, of any length.
    fn bytes(&mut self, bytes: &[u8]);
    /// All of the value has been shown.
    fn end(&mut self);
}

/// Shows a record to a digest, in the order that counts, and the partition that it names.
pub fn show(record: &Record, share: Option<Share<'_>>, to: &mut impl Digest) {
    to.number(record.created().0);
    to.number(record.floor().0);
    for v in record.iter() {
        to.number(v.stamp().0);
        part(to, Some(&v.who().author));
        part(to, v.who().agent.as_deref());
        part(to, v.meta());
        part(to, v.reqid());
        if let Some(ms) = v.time_given() {
            to.number(ms);
        }
        part(to, v.value().as_deref());
    }
    if let Some(guard) = record.guard() {
        to.number(u64::from(guard.mode.shared) + 2 * u64::from(guard.mode.advisory));
        for holder in &guard.holders {
            part(to, Some(&holder.owner));
            to.number(holder.token.0);
            to.number(holder.expires_ms);
            to.number(holder.holds.into());
            part(to, holder.note.as_deref());
        }
        for (name, token) in &guard.fences {
            part(to, Some(name));
            to.number(*token);
        }
    }
    if let Some(share) = share {
        part(to, Some(share.name));
        to.number(u64::from(share.chosen) + 2 * u64::from(share.dies));
    }
    to.end();
}

/// Shows the definition of a partition.
pub fn show_definition(definition: &Definition, to: &mut impl Digest) {
    to.bytes(&v1::encode_definition(definition));
    to.end();
}

/// What is absent differs from what is empty.
fn part(to: &mut impl Digest, bytes: Option<&[u8]>) {
    to.number(u64::from(bytes.is_some()));
    to.bytes(bytes.unwrap_or_default());
}
