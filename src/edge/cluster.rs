//! The other nodes of a cluster: who they are, and messages to and from them over the cluster bus.

use std::ffi::{c_char, c_uchar, CStr};
use std::slice;

use super::api::{api, raw};
use super::call::flags;
use super::lineage::context;
pub use super::nodes::{Master, Nodes, NAME};

const _: () = assert!(NAME == raw::REDISMODULE_NODE_ID_LEN as usize);

/// How each message begins: modules whose names are short share one space of kinds.
const MARK: &[u8; 5] = b"maos\x01";

/// Whether this server is a node of a cluster.
pub fn is_cluster() -> bool {
    flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0
}

// ---------------------------------------------------------------------------------------------
// Messages
// ---------------------------------------------------------------------------------------------

/// The beginning of a message that says this.
pub fn begin(what: u8) -> Vec<u8> {
    let mut text = MARK.to_vec();
    text.push(what);
    text
}

/// Sends a message of this kind to a node, or to all. One that is not connected does not get it.
pub fn send(kind: u8, to: Option<&str>, text: &[u8]) {
    let mut name = [0u8; NAME + 1];
    let to = match to {
        Some(to) if to.len() == NAME => {
            name[..NAME].copy_from_slice(to.as_bytes());
            name.as_ptr()
        }
        Some(_) => return,
        None => std::ptr::null(),
    };
    let (start, len) = (text.as_ptr().cast(), text.len() as u32);
    // SAFETY: our own context; the server copies name and message.
    unsafe { api!(RedisModule_SendClusterMessage)(context(0), to.cast(), kind, start, len) };
}

/// Who has sent a message, what it says, and the rest of it; `None` if it is none of ours.
///
/// # Safety
/// What the server gives a receiver, in its callback, which nothing outlives that is returned.
pub unsafe fn heard<'m>(
    sender: *const c_char,
    payload: *const c_uchar,
    len: u32,
) -> Option<(&'m str, u8, &'m [u8])> {
    // SAFETY: a node's name, of a fixed length, and `len` bytes.
    let (sender, payload) = unsafe {
        (
            slice::from_raw_parts(sender.cast::<u8>(), NAME),
            slice::from_raw_parts(payload, len as usize),
        )
    };
    let (what, rest) = payload.strip_prefix(MARK)?.split_first()?;
    Some((std::str::from_utf8(sender).ok()?, *what, rest))
}

/// Asks the server what it knows of its cluster; `None` if it does not say.
pub fn nodes() -> Option<Nodes> {
    Some(Nodes::read(&said([c"CLUSTER", c"NODES"], None)?))
}

/// What the server says to a command of its own: a text, or the second of a pair.
pub fn said(command: [&CStr; 2], argument: Option<&CStr>) -> Option<String> {
    let [name, sub] = command.map(|word| word.as_ptr());
    let ctx = context(0);
    // SAFETY: the formats say how many strings follow; the reply lives until it is freed.
    unsafe {
        let reply = match argument {
            None => api!(RedisModule_Call)(ctx, name, c"c".as_ptr(), sub),
            Some(arg) => api!(RedisModule_Call)(ctx, name, c"cc".as_ptr(), sub, arg.as_ptr()),
        };
        if reply.is_null() {
            return None;
        }
        let text = match argument {
            None => reply,
            Some(_) => api!(RedisModule_CallReplyArrayElement)(reply, 1),
        };
        let mut len = 0;
        let start = match text.is_null() {
            true => std::ptr::null(),
            false => api!(RedisModule_CallReplyStringPtr)(text, &raw mut len),
        };
        let said = (!start.is_null()).then(|| {
            let bytes = slice::from_raw_parts(start.cast::<u8>(), len);
            String::from_utf8_lossy(bytes).into_owned()
        });
        api!(RedisModule_FreeCallReply)(reply);
        said
    }
}
