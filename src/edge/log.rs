//! The server's log. A message is an argument of a fixed format, never the format, and only
//! printable ASCII gets into it: nothing that a client sent can break a line or a server.

use std::ffi::{CStr, CString};
use std::ptr;

use super::api::{api, raw};

const LINE_MAX: usize = 900;

fn line(text: &str) -> CString {
    let text = text.as_bytes();
    let shown = text[..text.len().min(LINE_MAX)].escape_ascii().to_string();
    // Escaped: there is no NUL left in it.
    CString::new(shown).unwrap_or_default()
}

fn log(level: &CStr, text: &str) {
    let text = line(text);
    // SAFETY: all three are NUL-terminated and live through the call; a null context is allowed.
    unsafe {
        api!(RedisModule_Log)(
            ptr::null_mut(),
            level.as_ptr(),
            c"%s".as_ptr(),
            text.as_ptr(),
        );
    }
}

/// Something worth knowing happened.
pub fn notice(text: &str) {
    log(c"notice", text);
}

/// Something is wrong.
pub fn warning(text: &str) {
    log(c"warning", text);
}

/// Something is wrong with what is being loaded or saved.
///
/// # Safety
/// `io` must be the server's, in a callback of the data type.
pub unsafe fn io_warning(io: *mut raw::RedisModuleIO, text: &str) {
    let text = line(text);
    // SAFETY: `io` by the caller; the strings as in `log`.
    unsafe {
        api!(RedisModule_LogIOError)(io, c"warning".as_ptr(), c"%s".as_ptr(), text.as_ptr());
    }
}
