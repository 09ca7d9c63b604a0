//! Transactions as they are written in a file.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use maos_client::wire::{Action, Expire, Test, Txn, WriteOptions};
use maos_client::{IncrementOptions, Operation, SetOptions, Transaction};
use maos_core::wire::Request;
use serde_json::value::RawValue;

use crate::Failure;

/// Reads a transaction: a line for each condition and operation.
pub fn read(file: &Path) -> Result<Transaction, Failure> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|e| Failure::Input(format!("cannot read {}: {e}", file.display())))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Transaction, Failure> {
    let mut lines = vec![];
    for (n, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let said = said(line).map_err(|why| Failure::Input(format!("line {n}: {why}")))?;
        lines.push(said);
    }
    let mut first = lines.iter().position(|said| matches!(said, Said::Then(_)));
    let then = first.take().map(|at| lines.remove(at));
    let Some(Said::Then(operation)) = then else {
        let text = "there is no line that begins with then";
        return Err(Failure::Input(text.to_owned()));
    };
    // Conditions first: where they stand makes no difference.
    Ok(lines
        .into_iter()
        .fold(Transaction::new(operation), |txn, said| match said {
            Said::Then(operation) => txn.and(operation),
            Said::Else(operation) => txn.or_else(operation),
            Said::If(key, Asked::Version(v)) => txn.if_version(key, v),
            Said::If(key, Asked::Absent) => txn.if_absent(key),
            Said::If(key, Asked::Exists) => txn.if_exists(key),
            Said::If(key, Asked::Value(value)) => txn.if_value(key, value),
            Said::If(key, Asked::Token(token)) => txn.if_token(key, token),
        }))
}

enum Said {
    If(Vec<u8>, Asked),
    Then(Operation),
    Else(Operation),
}

enum Asked {
    Version(maos_client::Version),
    Absent,
    Exists,
    Value(Vec<u8>),
    Token(maos_client::Version),
}

/// What one line says, by the parser of the command itself.
fn said(line: &str) -> Result<Said, String> {
    let words = split(line)?;
    let place = match &words[0].to_ascii_lowercase()[..] {
        b"if" => 1,
        b"then" | b"else" => 2,
        _ => {
            let other = words[0].escape_ascii();
            return Err(format!("a line begins with if, then or else, not {other}"));
        }
    };
    let key = &words.get(place).ok_or("too few words")?[..];
    let mut args: Vec<&[u8]> = vec![b"1", key];
    args.extend(words.iter().map(|word| &word[..]));
    // There is something to do in every transaction.
    args.extend([&b"THEN"[..], b"GET", key]);
    let mut txn = Txn::parse(&args).map_err(|refusal| refusal.text.into_owned())?;
    txn.then.pop();
    // Whatever else the line says would be said in vain: a condition must not be lost.
    let parts = (&txn.conditions[..], &txn.then[..], &txn.otherwise[..]);
    Ok(match parts {
        _ if txn.options != WriteOptions::default() => return Err(ONE.to_owned()),
        ([condition], [], []) => Said::If(key.to_vec(), asked(condition.test)),
        ([], [then], []) => Said::Then(operation(key, &then.action)?),
        ([], [], [otherwise]) => Said::Else(operation(key, &otherwise.action)?),
        _ => return Err(ONE.to_owned()),
    })
}

const ONE: &str = "one condition or operation a line; who writes is said on the command line";

fn asked(test: Test<'_>) -> Asked {
    match test {
        Test::Version(version) => Asked::Version(version),
        Test::Absent => Asked::Absent,
        Test::Exists => Asked::Exists,
        Test::Value(value) => Asked::Value(value.to_vec()),
        Test::Token(token) => Asked::Token(token),
    }
}

fn operation(key: &[u8], action: &Action<'_>) -> Result<Operation, String> {
    Ok(match *action {
        Action::Set(value, expire) => {
            let options = SetOptions::new();
            let options = match expire {
                Expire::Unsaid => options,
                Expire::Keep => options.keep_ttl(),
                Expire::In(ms) => options.ttl(Duration::from_millis(ms)),
                Expire::At(ms) => {
                    options.expires_at(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
                }
            };
            Operation::set_with(key, value, &options)
        }
        Action::Del => Operation::del(key),
        Action::Patch(patch) => {
            let json = serde_json::from_slice::<&RawValue>(patch);
            json.map_err(|e| format!("not JSON: {e}"))?;
            Operation::patch_text(key, patch)
        }
        Action::IncrBy {
            delta,
            path,
            min,
            max,
        } => {
            let mut options = IncrementOptions::new();
            options = path.map_or(options.clone(), |path| options.path(path));
            options = min.map_or(options.clone(), |min| options.min(min));
            options = max.map_or(options.clone(), |max| options.max(max));
            Operation::increment_with(key, delta, options)
        }
        Action::Get => Operation::get(key),
    })
}

/// The words of a line, quoted as redis-cli has it.
fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut words = vec![];
    let mut rest = line.as_bytes().trim_ascii_start();
    while !rest.is_empty() {
        let mut word = vec![];
        rest = one(rest, &mut word)?.trim_ascii_start();
        words.push(word);
    }
    Ok(words)
}

/// Takes one word, and gives what is behind it.
fn one<'l>(mut rest: &'l [u8], word: &mut Vec<u8>) -> Result<&'l [u8], String> {
    while let [byte, after @ ..] = rest {
        match byte {
            b'"' | b'\'' => {
                let rest = quoted(*byte, after, word)?;
                return match rest.first() {
                    Some(next) if !next.is_ascii_whitespace() => {
                        Err("a space must follow a quote that closes".to_owned())
                    }
                    _ => Ok(rest),
                };
            }
            byte if byte.is_ascii_whitespace() => break,
            byte => word.push(*byte),
        }
        rest = after;
    }
    Ok(rest)
}

/// Takes what is in quotes: in double ones with escapes, in single ones as it is but for `\'`.
fn quoted<'l>(quote: u8, mut rest: &'l [u8], word: &mut Vec<u8>) -> Result<&'l [u8], String> {
    let hex = |a: u8, b: u8| Some(digit(a)? << 4 | digit(b)?);
    loop {
        let (byte, after) = match (quote, rest) {
            (_, []) => return Err("a quote is not closed".to_owned()),
            (_, [end, after @ ..]) if *end == quote => return Ok(after),
            (b'"', [b'\\', b'x', a, b, after @ ..]) if hex(*a, *b).is_some() => {
                (hex(*a, *b).unwrap_or_default(), after)
            }
            (b'"', [b'\\', escaped, after @ ..]) => (
                match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                },
                after,
            ),
            (b'\'', [b'\\', b'\'', after @ ..]) => (b'\'', after),
            (_, [byte, after @ ..]) => (*byte, after),
        };
        word.push(byte);
        rest = after;
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_in_redis_cli() {
        let words = |line| split(line).map(|words| words.join(&b'|'));
        for (line, wanted) in [
            ("", ""),
            (" if  k\tabsent ", "if|k|absent"),
            (r#"set k '{"a": "x\ny"}'"#, r#"set|k|{"a": "x\ny"}"#),
            (r#""\x41\n\"\q" '\'' """#, "A\n\"q|'|"),
            ("k'a b'", "ka b"),
            ("$5 #1 a#b", "$5|#1|a#b"),
        ] {
            assert_eq!(words(line).unwrap(), wanted.as_bytes(), "{line}");
        }
        assert_eq!(split(r#""\xff""#), Ok(vec![vec![0xff]]));
        for (line, why) in [("'a", "closed"), (r#""a\""#, "closed"), ("'a'b", "space")] {
            let said = split(line).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
        }
    }
}
