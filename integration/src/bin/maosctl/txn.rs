//! Transactions as they are written in a file.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use maos_client::wire::{Action, Expire, Test, Txn};
use maos_client::{IncrementOptions, Operation, SetOptions, Transaction};
use maos_core::wire::Request;

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
    let words = shell_words::split(line).map_err(|e| format!("{e}; quote like a shell"))?;
    let first = words[0].to_ascii_lowercase();
    let key = match first.as_str() {
        "if" => words.get(1),
        "then" | "else" => words.get(2),
        other => return Err(format!("a line begins with if, then or else, not {other}")),
    };
    let key = key.ok_or("too few words")?.as_bytes();
    let mut args: Vec<&[u8]> = vec![b"1", key];
    args.extend(words.iter().map(|word| word.as_bytes()));
    if first != "then" {
        args.extend([&b"THEN"[..], b"GET", key]);
    }
    let txn = Txn::parse(&args).map_err(|refusal| refusal.text.into_owned())?;
    let operation = |side: &[maos_client::wire::Operation<'_>]| {
        let [only] = side else {
            return Err("one condition or operation a line".to_owned());
        };
        Ok(operation(key, &only.action))
    };
    Ok(match first.as_str() {
        "then" => Said::Then(operation(&txn.then)?),
        "else" => Said::Else(operation(&txn.otherwise)?),
        _ => match &txn.conditions[..] {
            [only] => Said::If(key.to_vec(), asked(only.test)),
            _ => return Err("one condition or operation a line".to_owned()),
        },
    })
}

fn asked(test: Test<'_>) -> Asked {
    match test {
        Test::Version(version) => Asked::Version(version),
        Test::Absent => Asked::Absent,
        Test::Exists => Asked::Exists,
        Test::Value(value) => Asked::Value(value.to_vec()),
        Test::Token(token) => Asked::Token(token),
    }
}

fn operation(key: &[u8], action: &Action<'_>) -> Operation {
    match *action {
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
        Action::Patch(patch) => Operation::patch_text(key, patch),
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
    }
}
