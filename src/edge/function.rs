//! Redis Functions that merge: asked with nothing open, for what they answer is not ours.
//!
//! Called by FCALL_RO, as the user who asked: a function without the flag `no-writes` is refused by the server,
//! and one that the user may not call is too.

use std::ffi::c_char;
use std::time::Instant;

use maos_core::refusal::Quoted;
use maos_core::state::Question;
use maos_core::{Code, Refusal};

use super::api::{api, raw};
use super::call::{flags, Call};

/// Asks a function what becomes of a merge: `FCALL_RO name 1 key base theirs mine`.
///
/// # Errors
/// What the server says if there is no such function, or none that this user may call, or it fails;
/// `NOTJSON` if it returns no string; `LIMIT` if it takes longer than `most_ms`; `ERR` inside a script.
pub fn ask(call: &Call<'_>, question: &Question<'_>, most_ms: u64) -> Result<Vec<u8>, Refusal> {
    let name = Quoted(&question.function);
    if flags(call.ctx) & raw::REDISMODULE_CTX_FLAGS_LUA != 0 {
        let text = format!("no function can be called inside a script: merge in it, or call MAOS.MERGE with {name} outside");
        return Err(Refusal::new(Code::Err, text));
    }
    let start = Instant::now();
    let made = fcall(call, question);
    let took_ms = start.elapsed().as_millis();
    let made = made.map_err(|(code, said)| {
        let text = format!("the function {name} made no value, nothing is changed: {said}");
        Refusal::new(code, text)
    })?;
    if took_ms > most_ms.into() {
        let text = format!(
            "the function {name} took {took_ms} ms, in which the server did nothing else; at most {most_ms} ms are given (maos.merge-function-max-ms), nothing is changed"
        );
        return Err(Refusal::new(Code::Limit, text));
    }
    Ok(made)
}

fn fcall(call: &Call<'_>, question: &Question<'_>) -> Result<Vec<u8>, (Code, String)> {
    let bytes = |b: &[u8]| (b.as_ptr().cast::<c_char>(), b.len());
    let (name, name_len) = bytes(&question.function);
    let (key, key_len) = bytes(question.key);
    let [(base, base_len), (theirs, theirs_len), (mine, mine_len)] =
        [0, 1, 2].map(|n| bytes(&question.values[n]));
    // SAFETY: the context of this call. The format says what follows: bytes with their length, and a text; `C`
    // has the server judge the user, `E` has it answer where it refuses. The answer lives until it is freed.
    unsafe {
        let reply = api!(RedisModule_Call)(
            call.ctx,
            c"FCALL_RO".as_ptr(),
            c"CEbcbbbb".as_ptr(),
            name,
            name_len,
            c"1".as_ptr(),
            key,
            key_len,
            base,
            base_len,
            theirs,
            theirs_len,
            mine,
            mine_len,
        );
        if reply.is_null() {
            return Err((Code::Err, "the server does not call it".into()));
        }
        let mut len = 0;
        let start = api!(RedisModule_CallReplyStringPtr)(reply, &raw mut len);
        let text = match start.is_null() {
            true => vec![],
            false => std::slice::from_raw_parts(start.cast::<u8>(), len).to_vec(),
        };
        let kind = api!(RedisModule_CallReplyType)(reply);
        api!(RedisModule_FreeCallReply)(reply);
        match kind as isize {
            raw::REDISMODULE_REPLY_STRING => Ok(text),
            raw::REDISMODULE_REPLY_ERROR => Err(refused(&text)),
            _ => Err((
                Code::NotJson,
                "it returned no string; return JSON, as of cjson.encode".into(),
            )),
        }
    }
}

/// The server's error, as one of ours.
fn refused(said: &[u8]) -> (Code, String) {
    // One line, without what might be taken for another error.
    let shown = &said[..said.len().min(400)];
    let said = shown.trim_ascii().escape_ascii().to_string();
    let code = match said.split(' ').next().and_then(Code::from_word) {
        // As servers word it that name no code.
        _ if said
            .to_ascii_lowercase()
            .contains("acl verification failed") =>
        {
            Code::NoPerm
        }
        Some(Code::Err) if said.starts_with("ERR Function not found") => Code::NotFound,
        Some(code) => code,
        None => Code::Err,
    };
    (code, said)
}
