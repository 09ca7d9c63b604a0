//! Conversations with a store, as data: the examples of the command table and the files of
//! `tests/scripts`. The same text is run against the model in memory and against a live server.
//!
//! ```text
//! # a remark
//! > MAOS.SET k 'two words' META '{"a":1}'      a request; quotes as in redis-cli
//! < $one                                       an integer, remembered as $one
//! > MAOS.GET k VERSION $one WITHVERSION
//! < ['two words', $one]                        an array; text in quotes, with \n \r \\ \xNN
//! > MAOS.GET k VERSION 7
//! < !NOVERSION                                 an error that begins with this
//! ```
//!
//! Also: `null`, plain integers, `@name` for a text that is remembered, `{name: reply, …}` for maps (flat arrays in RESP2), `*` for
//! anything. A name that is remembered must be larger than all remembered before it: versions rise.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::wire::Value;

/// Whoever answers requests.
pub trait Store {
    /// Answers one request; an error is the line that the server would send.
    ///
    /// # Errors
    /// The error line, code first.
    fn ask(&mut self, request: &[Vec<u8>]) -> Result<Value, String>;
}

/// Runs a transcript.
///
/// # Errors
/// What differs, with the line.
pub fn run(text: &str, store: &mut dyn Store) -> Result<usize, String> {
    let mut names = Names::default();
    let mut pending: Option<Result<Value, String>> = None;
    let mut asked = 0;
    for (number, line) in text.lines().enumerate() {
        let at = |what: String| format!("line {}: {line}\n  {what}", number + 1);
        if let Some(request) = line.strip_prefix("> ") {
            if let Some(reply) = pending.replace(store.ask(&words(request, &names).map_err(at)?)) {
                return Err(at(format!("the reply before was not looked at: {reply:?}")));
            }
            asked += 1;
        } else if let Some(pattern) = line.strip_prefix("< ") {
            let reply = pending
                .take()
                .ok_or_else(|| at("a reply without a request".into()))?;
            check(pattern, &reply, &mut names).map_err(at)?;
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            return Err(at("neither request, reply nor remark".into()));
        }
    }
    match pending {
        None => Ok(asked),
        Some(reply) => Err(format!("the last reply was not looked at: {reply:?}")),
    }
}

#[derive(Default)]
struct Names {
    known: HashMap<String, i64>,
    texts: HashMap<String, Vec<u8>>,
    largest: i64,
}

/// The words of a request line, `'...'` and `"..."` being one each.
///
/// # Errors
/// What is wrong with it.
pub fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
    words(line, &Names::default())
}

fn words(line: &str, names: &Names) -> Result<Vec<Vec<u8>>, String> {
    let mut words = vec![];
    let mut p = Parser::new(line);
    while p.skip_spaces() {
        words.push(match p.peek() {
            Some('\'' | '"') => p.quoted()?,
            Some('$') => {
                let name = p.bare(|c| !c.is_whitespace());
                let known = names.known.get(&name);
                let n = known.ok_or_else(|| format!("{name} is not known yet"))?;
                n.to_string().into_bytes()
            }
            Some('@') => {
                let name = p.bare(|c| !c.is_whitespace());
                let known = names.texts.get(&name).cloned();
                known.ok_or_else(|| format!("{name} is not known yet"))?
            }
            _ => p.bare(|c| !c.is_whitespace()).into_bytes(),
        });
    }
    Ok(words)
}

fn check(pattern: &str, reply: &Result<Value, String>, names: &mut Names) -> Result<(), String> {
    if let Some(code) = pattern.strip_prefix('!') {
        return match reply {
            Err(line) if line.starts_with(code) => Ok(()),
            other => Err(format!("wanted an error {code}, got {}", show(other))),
        };
    }
    let value = reply.as_ref().map_err(|e| format!("got the error {e}"))?;
    let mut p = Parser::new(pattern);
    matches(&mut p, value, names).map_err(|e| format!("{e}\n  in {}", show(reply)))?;
    match p.skip_spaces() {
        false => Ok(()),
        true => Err("the pattern goes on after its end".into()),
    }
}

fn matches(p: &mut Parser<'_>, value: &Value, names: &mut Names) -> Result<(), String> {
    p.skip_spaces();
    let differs = |wanted: &str| Err(format!("wanted {wanted}, got {value:?}"));
    match p.peek() {
        Some('[') => {
            let Value::Array(items) = value else {
                return differs("an array");
            };
            p.next();
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    p.expect(',')?;
                }
                matches(p, item, names)?;
            }
            p.expect(']')
        }
        Some('{') => {
            let flat = value.clone().flat();
            let Value::Array(items) = flat else {
                return differs("a map");
            };
            p.next();
            for (i, pair) in items.chunks(2).enumerate() {
                if i > 0 {
                    p.expect(',')?;
                }
                p.skip_spaces();
                let name = p.bare(|c| c != ':');
                p.expect(':')?;
                let [key, value] = pair else {
                    return differs("a map");
                };
                if *key != Value::Bulk(name.clone().into_bytes()) {
                    return Err(format!("wanted the field {name}, got {key:?}"));
                }
                matches(p, value, names)?;
            }
            p.expect('}')
        }
        Some('\'' | '"') => {
            let wanted = p.quoted()?;
            match value {
                Value::Bulk(got) if *got == wanted => Ok(()),
                _ => differs(&format!("'{}'", wanted.escape_ascii())),
            }
        }
        _ => {
            let word = p.bare(|c| !c.is_whitespace() && !",]}".contains(c));
            match (word.as_str(), value) {
                ("*", _) | ("null", Value::Null) => Ok(()),
                (name, Value::Int(n)) if name.starts_with('$') => names.check(name, *n),
                (name, Value::Bulk(text)) if name.starts_with('@') => {
                    let known = names.texts.entry(name.to_string());
                    match known.or_insert_with(|| text.clone()) == text {
                        true => Ok(()),
                        false => differs(name),
                    }
                }
                (number, Value::Int(n)) if number == n.to_string() => Ok(()),
                (wanted, _) => differs(wanted),
            }
        }
    }
}

impl Names {
    fn check(&mut self, name: &str, n: i64) -> Result<(), String> {
        match self.known.get(name) {
            Some(known) if *known == n => Ok(()),
            Some(known) => Err(format!("{name} is {known}, not {n}")),
            None if n <= self.largest => Err(format!("{name} is {n}, not above {}", self.largest)),
            None => {
                self.known.insert(name.to_string(), n);
                self.largest = n;
                Ok(())
            }
        }
    }
}

/// A reply in the notation of a transcript.
pub fn show(reply: &Result<Value, String>) -> String {
    match reply {
        Err(line) => format!("the error {line}"),
        Ok(value) => {
            let mut out = String::new();
            show_value(value, &mut out);
            out
        }
    }
}

fn show_value(value: &Value, out: &mut String) {
    let list = |items: &[Value], out: &mut String| {
        for (i, item) in items.iter().enumerate() {
            *out += if i > 0 { ", " } else { "" };
            show_value(item, out);
        }
    };
    match value {
        Value::Null => *out += "null",
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Bulk(b) => {
            let _ = write!(out, "'{}'", b.escape_ascii());
        }
        Value::Array(items) => {
            *out += "[";
            list(items, out);
            *out += "]";
        }
        Value::Map(pairs) => {
            *out += "{";
            for (k, v) in pairs {
                list(&[k.clone(), v.clone()], out);
                *out += "; ";
            }
            *out += "}";
        }
    }
}

struct Parser<'t>(std::iter::Peekable<std::str::Chars<'t>>);

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Parser(text.chars().peekable())
    }

    fn peek(&mut self) -> Option<char> {
        self.0.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        self.0.next()
    }

    /// True if something is left.
    fn skip_spaces(&mut self) -> bool {
        while self.0.next_if(|c| c.is_whitespace()).is_some() {}
        self.peek().is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        self.skip_spaces();
        match self.next() {
            Some(c) if c == wanted => Ok(()),
            got => Err(format!(
                "wanted {wanted} here in the pattern, found {got:?}"
            )),
        }
    }

    fn bare(&mut self, part: impl Fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(c) = self.0.next_if(|c| part(*c)) {
            word.push(c);
        }
        word
    }

    fn quoted(&mut self) -> Result<Vec<u8>, String> {
        let quote = self.next();
        let mut out = vec![];
        loop {
            match self.next() {
                None => return Err("a quote is not closed".into()),
                c if c == quote => return Ok(out),
                Some('\\') => out.push(self.escape()?),
                Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self) -> Result<u8, String> {
        Ok(match self.next() {
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('x') => {
                let hex: String = [self.next(), self.next()].into_iter().flatten().collect();
                u8::from_str_radix(&hex, 16).map_err(|e| e.to_string())?
            }
            Some(c @ ('\\' | '\'' | '"')) => c as u8,
            other => return Err(format!("unknown escape {other:?}")),
        })
    }
}
