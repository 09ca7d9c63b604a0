//! Keys, values and the scripts that users of plain Redis write today.

use crate::harness::{Conn, Reply};

/// Commands sent at once while a server is filled.
const BATCH: usize = 1000;

/// The sizes of value that are measured.
pub const SIZES: [usize; 2] = [100, 1024];

/// A versioned set with a history of 100 values, as the module keeps by default.
pub const LUA_VERSIONED_SET: &str = "\
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'time', now[1] .. '.' .. now[2])
redis.call('LPUSH', KEYS[1] .. ':history', ARGV[1])
redis.call('LTRIM', KEYS[1] .. ':history', 0, 99)
return version";

/// A compare-and-set on a hash of version and value.
pub const LUA_CAS: &str = "\
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[1] then return {0, version, redis.call('HGET', KEYS[1], 'value')} end
redis.call('HSET', KEYS[1], 'version', version + 1, 'value', ARGV[2])
return {1, version + 1}";

/// A merge of some members into a document, with a version, as people write it.
pub const LUA_PATCH: &str = "\
local text = redis.call('HGET', KEYS[1], 'value')
local doc = text and cjson.decode(text) or {}
for name, value in pairs(cjson.decode(ARGV[1])) do
  if value == cjson.null then doc[name] = nil else doc[name] = value end
end
redis.call('HSET', KEYS[1], 'value', cjson.encode(doc))
return redis.call('HINCRBY', KEYS[1], 'version', 1)";

/// A task as agents keep it, of about so many bytes: a JSON object with members of every kind.
pub fn document(size: usize) -> String {
    let head = r#"{"status":"open","attempts":0,"owner":"worker-12","budget":{"tokens":12000,"usd":1.25},"tags":["urgent","export"],"steps":["#;
    let mut doc = head.to_owned();
    let mut n = 0;
    while doc.len() + 80 < size {
        let comma = if n == 0 { "" } else { "," };
        doc += &format!(
            r#"{comma}{{"id":{n},"text":"{}","done":false}}"#,
            sentence(n)
        );
        n += 1;
    }
    doc + "]}"
}

/// Text that does not compress, the same in every run.
pub fn value(size: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut letter = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(LETTERS[(state >> 58) as usize])
    };
    (0..size).map(|_| letter()).collect()
}

/// Plain words, the same for the same seed, as people and agents write them.
pub fn sentence(seed: usize) -> String {
    const WORDS: [&str; 24] = [
        "plan", "read", "the", "parser", "and", "test", "a", "second", "branch", "before", "merge",
        "review", "failing", "build", "with", "new", "schema", "for", "customer", "export", "then",
        "report", "every", "result",
    ];
    let pick =
        |n: usize| WORDS[seed.wrapping_mul(31).wrapping_add(n * n * 7 + n * seed) % WORDS.len()];
    (0..6 + seed % 7).map(pick).collect::<Vec<_>>().join(" ")
}

/// A key as redis-benchmark writes it for `prefix:__rand_int__`.
pub fn key(prefix: &str, i: usize) -> String {
    format!("{prefix}:{i:012}")
}

/// The name under which the server keeps a script.
pub fn load_script(conn: &mut Conn, script: &str) -> String {
    conn.cmd(&["SCRIPT", "LOAD", script]).text().to_owned()
}

/// Sends many commands in pipelines; panics at the first that is refused.
pub fn send_all(conn: &mut Conn, commands: impl IntoIterator<Item = Vec<String>>) {
    let mut commands = commands.into_iter().peekable();
    while commands.peek().is_some() {
        let batch: Vec<Vec<u8>> = commands
            .by_ref()
            .take(BATCH)
            .map(|c| Conn::encode(&c))
            .collect();
        conn.send_raw(&batch.concat());
        for _ in batch {
            accept(conn.recv());
        }
    }
}

/// Gives a reply back, unless it is an error.
pub fn accept(reply: Reply) -> Reply {
    assert!(!reply.is_err(), "the server refuses: {reply}");
    reply
}

/// A command from words.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
