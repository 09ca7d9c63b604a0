//! A document as it is written: a tree over its text, in which only what is looked into is opened. What
//! nobody touched is copied as it stands: numbers, names, their order, white space within.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::{after_string, check_shape, decimal, not_json};
use crate::{Code, Refusal};

/// A JSON value.
#[derive(Clone, Debug)]
pub enum Node<'a> {
    /// Not opened: the text of a value. Scalars are never anything else.
    Text(&'a str),
    /// An opened array.
    Array(Vec<Node<'a>>),
    /// An opened object. No two members have one name; of those that had, the last counts.
    Object(Vec<(Name<'a>, Node<'a>)>),
}

/// The name of a member.
#[derive(Clone, Debug)]
pub struct Name<'a> {
    /// As it is written, with its quotes.
    raw: Cow<'a, str>,
    /// What it says.
    text: Cow<'a, str>,
}

/// What kind of value a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// Steps that may be taken to carry a request out: members and elements that are looked at or moved. Bounds the
/// time, which the server spends on one client, to some tens of milliseconds.
#[derive(Debug)]
pub struct Work(u64);

impl Default for Work {
    fn default() -> Work {
        Work(10_000_000)
    }
}

impl Work {
    /// Takes so many steps.
    ///
    /// # Errors
    /// `LIMIT` when there have been too many.
    pub fn spend(&mut self, steps: usize) -> Result<(), Refusal> {
        match self.0.checked_sub(steps as u64) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(Refusal::fixed(
                Code::Limit,
                "this takes more than 10,000,000 steps over members and elements; split it up",
            )),
        }
    }
}

/// The empty object, from which an absent key starts.
pub const EMPTY: Node<'static> = Node::Text("{}");
/// `null`
pub const NULL: Node<'static> = Node::Text("null");

impl<'a> Node<'a> {
    /// Looks whether a text is JSON within the bounds. Takes no memory for it.
    ///
    /// # Errors
    /// `NOTJSON`, and `LIMIT` for too deep or too large a document.
    pub fn parse(what: &str, text: &'a [u8]) -> Result<Node<'a>, Refusal> {
        check_shape(what, text)?;
        let Ok(text) = std::str::from_utf8(text) else {
            let text = format!("{what} is not UTF-8, so it is not JSON");
            return Err(Refusal::new(Code::NotJson, text));
        };
        serde_json::from_str::<IgnoredAny>(text).map_err(|e| not_json(what, &e))?;
        Ok(Node::Text(text.trim_matches(WHITE)))
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Node::Array(_) => Kind::Array,
            Node::Object(_) => Kind::Object,
            Node::Text(text) => match text.as_bytes().first() {
                Some(b'{') => Kind::Object,
                Some(b'[') => Kind::Array,
                Some(b'"') => Kind::String,
                Some(b'n') => Kind::Null,
                Some(b't' | b'f') => Kind::Bool,
                _ => Kind::Number,
            },
        }
    }

    /// The text of a scalar.
    pub fn scalar(&self) -> Option<&'a str> {
        match (self, self.kind()) {
            (Node::Text(text), Kind::Null | Kind::Bool | Kind::Number | Kind::String) => Some(text),
            _ => None,
        }
    }

    /// What a string says.
    pub fn string(&self) -> Option<Cow<'a, str>> {
        let text = self.scalar().filter(|_| self.kind() == Kind::String)?;
        Some(decoded(text))
    }

    /// Opens it if it is of this kind.
    fn open(&mut self, kind: Kind) {
        if self.kind() == kind {
            if let Cow::Owned(opened) = self.opened() {
                *self = opened;
            }
        }
    }

    /// The members of an object.
    pub fn members(&mut self) -> Option<&mut Vec<(Name<'a>, Node<'a>)>> {
        self.open(Kind::Object);
        match self {
            Node::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn elements(&mut self) -> Option<&mut Vec<Node<'a>>> {
        self.open(Kind::Array);
        match self {
            Node::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// Writes it, and stops soon after so many bytes.
    pub fn write(&self, out: &mut Vec<u8>, most: usize) {
        if out.len() > most {
            return;
        }
        match self {
            Node::Text(text) => out.extend_from_slice(text.as_bytes()),
            Node::Array(elements) => {
                out.push(b'[');
                for (n, element) in elements.iter().enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    element.write(out, most);
                }
                out.push(b']');
            }
            Node::Object(members) => {
                out.push(b'{');
                for (n, (name, member)) in members.iter().enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(name.raw.as_bytes());
                    out.push(b':');
                    member.write(out, most);
                }
                out.push(b'}');
            }
        }
    }

    /// How many bytes it has at least, and how many parts are open.
    pub fn weight(&self) -> (usize, usize) {
        let sum = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
        match self {
            Node::Text(text) => (text.len(), 1),
            Node::Array(elements) => {
                let weights = elements.iter().map(Node::weight);
                weights.fold((elements.len() + 1, 1), sum)
            }
            Node::Object(members) => {
                let weights = members
                    .iter()
                    .map(|(name, m)| sum(m.weight(), (name.raw.len(), 1)));
                weights.fold((2 * members.len() + 1, 1), sum)
            }
        }
    }

    /// Whether two values are the same: the order of members and the way in which numbers and strings
    /// are written make no difference.
    ///
    /// # Errors
    /// `LIMIT` when it takes too long.
    pub fn same(&self, other: &Node<'_>, work: &mut Work) -> Result<bool, Refusal> {
        work.spend(1)?;
        if let (Node::Text(a), Node::Text(b)) = (self, other) {
            if a == b {
                return Ok(true);
            }
        }
        if self.kind() != other.kind() {
            return Ok(false);
        }
        match (&*self.opened(), &*other.opened()) {
            (Node::Array(a), Node::Array(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b) {
                    if !a.same(b, work)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Node::Object(a), Node::Object(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                let places = Places::of(b, a.len());
                for (name, a) in a {
                    match places.find(b, name.text(), work)? {
                        Some(at) if a.same(&b[at].1, work)? => {}
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
            _ => Ok(match (self.kind(), self.scalar(), other.scalar()) {
                (Kind::Number, Some(a), Some(b)) => decimal::same(a, b),
                (Kind::String, ..) => self.string() == other.string(),
                (_, a, b) => a == b,
            }),
        }
    }

    /// As it is when it is open.
    fn opened(&self) -> Cow<'_, Node<'a>> {
        match (self, self.kind()) {
            (Node::Text(text), Kind::Object) => Cow::Owned(Node::Object(members(text))),
            (Node::Text(text), Kind::Array) => Cow::Owned(Node::Array(elements(text))),
            _ => Cow::Borrowed(self),
        }
    }
}

impl<'a> Name<'a> {
    /// The name that says this.
    pub fn new(text: &str) -> Name<'a> {
        Name {
            raw: Cow::Owned(serde_json::Value::from(text).to_string()),
            text: Cow::Owned(text.to_owned()),
        }
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Where the members of an object are, by name: looked for one by one where that is as fast.
pub struct Places<'m>(Option<HashMap<&'m str, usize>>);

impl<'m> Places<'m> {
    /// To look for about so many names.
    pub fn of(members: &'m [(Name<'_>, Node<'_>)], names: usize) -> Places<'m> {
        const FEW: usize = 1_000;
        Places((members.len().saturating_mul(names) > FEW).then(|| {
            let names = members.iter().enumerate();
            names.map(|(at, (name, _))| (name.text(), at)).collect()
        }))
    }

    /// The place of a name.
    ///
    /// # Errors
    /// `LIMIT` when it takes too long.
    pub fn find(
        &self,
        members: &[(Name<'_>, Node<'_>)],
        name: &str,
        work: &mut Work,
    ) -> Result<Option<usize>, Refusal> {
        Ok(match &self.0 {
            Some(places) => {
                work.spend(1)?;
                places.get(name).copied()
            }
            None => {
                work.spend(members.len())?;
                members.iter().position(|(n, _)| n.text() == name)
            }
        })
    }
}

/// White space between the parts of a document.
const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

/// What a string says. Half a surrogate pair says nothing in Unicode: such a string stands for its letters.
fn decoded(raw: &str) -> Cow<'_, str> {
    let inner = raw.get(1..raw.len() - 1).unwrap_or_default();
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    serde_json::from_str(raw).map_or(Cow::Borrowed(raw), Cow::Owned)
}

/// The parts of a text that is known to be JSON.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> u8 {
        let rest = &self.text.as_bytes()[self.at..];
        let white = rest.iter().position(|b| !b" \t\n\r".contains(b));
        self.at += white.unwrap_or(rest.len());
        self.text.as_bytes().get(self.at).copied().unwrap_or(b']')
    }

    /// The text of the value that begins here.
    fn value(&mut self) -> &'a str {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut depth = 0usize;
        while let Some(b) = bytes.get(self.at) {
            match b {
                b'"' => {
                    self.at = after_string(bytes, self.at + 1);
                    if depth == 0 {
                        break;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        break;
                    }
                }
                b',' | b' ' | b'\t' | b'\n' | b'\r' | b':' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        &self.text[start..self.at]
    }
}

fn elements(text: &str) -> Vec<Node<'_>> {
    let mut scan = Scan { text, at: 1 };
    let mut elements = vec![];
    while scan.peek() != b']' {
        elements.push(Node::Text(scan.value()));
        if scan.peek() == b',' {
            scan.at += 1;
        }
    }
    elements
}

fn members(text: &str) -> Vec<(Name<'_>, Node<'_>)> {
    let mut scan = Scan { text, at: 1 };
    let mut members: Vec<(Name<'_>, Node<'_>)> = vec![];
    while !matches!(scan.peek(), b'}' | b']') {
        let raw = scan.value();
        scan.peek();
        scan.at += 1;
        scan.peek();
        let name = Name {
            raw: Cow::Borrowed(raw),
            text: decoded(raw),
        };
        members.push((name, Node::Text(scan.value())));
        if scan.peek() == b',' {
            scan.at += 1;
        }
    }
    without_twins(members)
}

/// Of members with one name the last counts, in the place of the first.
fn without_twins<'a>(mut members: Vec<(Name<'a>, Node<'a>)>) -> Vec<(Name<'a>, Node<'a>)> {
    const FEW: usize = 16;
    let twins = if members.len() <= FEW {
        let mut pairs = members.iter().enumerate();
        pairs.any(|(n, (name, _))| members[..n].iter().any(|(m, _)| m.text == name.text))
    } else {
        let mut seen = std::collections::HashSet::with_capacity(members.len());
        !members.iter().all(|(name, _)| seen.insert(&*name.text))
    };
    if !twins {
        return members;
    }
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<(Name<'a>, Node<'a>)> = Vec::with_capacity(members.len());
    for (name, value) in members.drain(..) {
        match places.get(&*name.text) {
            Some(at) => kept[*at].1 = value,
            None => {
                places.insert(name.text.clone().into_owned(), kept.len());
                kept.push((name, value));
            }
        }
    }
    kept
}
