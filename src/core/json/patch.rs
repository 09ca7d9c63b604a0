//! Changes of a document: a merge patch (RFC 7396), a JSON patch (RFC 6902), a number that is added to.

use super::decimal::Decimal;
use super::node::{Kind, Name, Node, Places, Work, EMPTY, NULL};
use super::{check_shape, pointer, Pointer};
use crate::{Code, Refusal};

/// Applies a merge patch: its members take the place of those of the same name, objects into each other, and
/// `null` removes one. A patch that is no object takes the place of it all.
///
/// # Errors
/// `LIMIT` when it takes too long.
pub fn merge_patch<'a>(
    doc: &mut Node<'a>,
    mut patch: Node<'a>,
    work: &mut Work,
) -> Result<(), Refusal> {
    let Some(patches) = patch.members() else {
        *doc = patch;
        return Ok(());
    };
    if doc.kind() != Kind::Object {
        *doc = EMPTY;
    }
    let Some(members) = doc.members() else {
        return Ok(());
    };
    work.spend(members.len() + patches.len())?;
    let places = Places::of(members, patches.len());
    let found: Vec<Option<usize>> = patches
        .iter()
        .map(|(name, _)| places.find(members, name.text(), work))
        .collect::<Result<_, _>>()?;
    drop(places);
    let mut removes = false;
    let mut gone = vec![false; members.len()];
    for ((name, value), at) in patches.drain(..).zip(found) {
        match (at, value.kind()) {
            (Some(at), Kind::Null) => {
                gone[at] = true;
                removes = true;
            }
            (Some(at), _) => merge_patch(&mut members[at].1, value, work)?,
            (None, Kind::Null) => {}
            (None, _) => {
                // Whatever it removes below is not kept as a null.
                let mut made = NULL;
                merge_patch(&mut made, value, work)?;
                members.push((name, made));
            }
        }
    }
    if removes {
        let mut gone = gone.into_iter();
        members.retain(|_| !gone.next().unwrap_or(false));
    }
    Ok(())
}

/// What came of a JSON patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patched {
    /// All of it was applied.
    Done,
    /// The document is not what a `test` says: it is to be left as it was.
    TestFailed,
}

/// Applies the operations of a JSON patch, of which copies may add so many bytes.
///
/// # Errors
/// `ERR` for what is no JSON patch, `NOTFOUND` where an operation finds nothing at its place, `LIMIT` when it
/// takes too long or copies too much. The document is then to be left as it was.
pub fn json_patch<'a>(
    doc: &mut Node<'a>,
    mut patch: Node<'a>,
    most: usize,
    work: &mut Work,
) -> Result<Patched, Refusal> {
    let Some(operations) = patch.elements() else {
        return Err(Refusal::fixed(
            Code::Err,
            "a JSON patch is an array of operations, like [{\"op\":\"add\",\"path\":\"/a\",\"value\":1}]",
        ));
    };
    let mut copied = 0;
    for (n, operation) in operations.drain(..).enumerate() {
        let operation = Operation::read(n, operation)?;
        if operation.apply(doc, most, &mut copied, work)? == Patched::TestFailed {
            return Ok(Patched::TestFailed);
        }
    }
    Ok(Patched::Done)
}

/// One operation, understood.
struct Operation<'a> {
    number: usize,
    name: String,
    path: Pointer,
    from: Option<Pointer>,
    value: Option<Node<'a>>,
}

impl<'a> Operation<'a> {
    fn read(number: usize, mut operation: Node<'a>) -> Result<Operation<'a>, Refusal> {
        let bad = |what: &str| {
            let text =
                format!("operation {number} of the JSON patch (they are counted from 0) {what}");
            Refusal::new(Code::Err, text)
        };
        let Some(members) = operation.members() else {
            return Err(bad("is no object"));
        };
        let (mut name, mut path, mut from, mut value) = (None, None, None, None);
        for (member, node) in members.drain(..) {
            let text = || {
                node.string()
                    .ok_or_else(|| bad("has a name or a path that is no string"))
            };
            match member.text() {
                "op" => name = Some(text()?.into_owned()),
                "path" => path = Some(Pointer::parse(&text()?)?),
                "from" => from = Some(Pointer::parse(&text()?)?),
                "value" => value = Some(node),
                _ => {}
            }
        }
        let name = name.ok_or_else(|| bad("has no \"op\""))?;
        let (needs_value, needs_from) = match &*name {
            "add" | "replace" | "test" => (true, false),
            "move" | "copy" => (false, true),
            "remove" => (false, false),
            _ => return Err(bad("is none of add, remove, replace, move, copy and test")),
        };
        if needs_value && value.is_none() {
            return Err(bad("has no \"value\""));
        }
        if needs_from && from.is_none() {
            return Err(bad("has no \"from\""));
        }
        Ok(Operation {
            number,
            name,
            path: path.ok_or_else(|| bad("has no \"path\""))?,
            from,
            value,
        })
    }

    fn apply(
        self,
        doc: &mut Node<'a>,
        most: usize,
        copied: &mut usize,
        work: &mut Work,
    ) -> Result<Patched, Refusal> {
        let (number, name) = (self.number, self.name.clone());
        let lost = |path: &Pointer| {
            let text = format!(
                "operation {number} of the JSON patch ({name}) finds nothing at {}",
                path.quoted()
            );
            Refusal::new(Code::NotFound, text)
        };
        match (&*self.name, self.value, self.from) {
            ("test", Some(value), _) => {
                let at = find(doc, &self.path, work)?;
                return Ok(match at {
                    Some(at) if at.same(&value, work)? => Patched::Done,
                    _ => Patched::TestFailed,
                });
            }
            ("add", Some(value), _) => {
                add(doc, &self.path, value, work)?.ok_or_else(|| lost(&self.path))?;
            }
            ("replace", Some(value), _) => {
                *find(doc, &self.path, work)?.ok_or_else(|| lost(&self.path))? = value;
            }
            ("remove", ..) => {
                remove(doc, &self.path, work)?.ok_or_else(|| lost(&self.path))?;
            }
            ("copy", _, Some(from)) => {
                let found = find(doc, &from, work)?.ok_or_else(|| lost(&from))?;
                let (bytes, parts) = found.weight();
                work.spend(parts)?;
                *copied += bytes;
                if *copied > most {
                    let text = format!("the copies of the JSON patch have more than {most} bytes");
                    return Err(Refusal::new(Code::Limit, text));
                }
                let value = found.clone();
                add(doc, &self.path, value, work)?.ok_or_else(|| lost(&self.path))?;
            }
            (_, _, Some(from)) => {
                if from.is_above(&self.path) {
                    let text = format!(
                        "operation {number} of the JSON patch moves {} into itself",
                        from.quoted()
                    );
                    return Err(Refusal::new(Code::Err, text));
                }
                let value = remove(doc, &from, work)?.ok_or_else(|| lost(&from))?;
                add(doc, &self.path, value, work)?.ok_or_else(|| lost(&self.path))?;
            }
            _ => {}
        }
        Ok(Patched::Done)
    }
}

/// One step down.
fn step<'n, 'a>(
    node: &'n mut Node<'a>,
    step: &str,
    work: &mut Work,
) -> Result<Option<&'n mut Node<'a>>, Refusal> {
    match node.kind() {
        Kind::Object => {
            let Some(members) = node.members() else {
                return Ok(None);
            };
            work.spend(members.len())?;
            let found = members.iter_mut().find(|(name, _)| name.text() == step);
            Ok(found.map(|(_, value)| value))
        }
        Kind::Array => {
            work.spend(1)?;
            let elements = node.elements();
            let at = pointer::index(step);
            Ok(elements
                .zip(at)
                .and_then(|(elements, at)| elements.get_mut(at)))
        }
        _ => Ok(None),
    }
}

/// What a pointer points to.
///
/// # Errors
/// `LIMIT` when it takes too long.
pub fn find<'n, 'a>(
    doc: &'n mut Node<'a>,
    path: &Pointer,
    work: &mut Work,
) -> Result<Option<&'n mut Node<'a>>, Refusal> {
    let mut at = doc;
    for name in &path.0 {
        match step(at, name, work)? {
            Some(below) => at = below,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Puts a value in; nothing if there is no such place.
fn add<'a>(
    doc: &mut Node<'a>,
    path: &Pointer,
    value: Node<'a>,
    work: &mut Work,
) -> Result<Option<()>, Refusal> {
    let Some((last, above)) = path.0.split_last() else {
        *doc = value;
        return Ok(Some(()));
    };
    let Some(parent) = find(doc, &Pointer(above.to_vec()), work)? else {
        return Ok(None);
    };
    if parent.kind() == Kind::Array {
        let Some(elements) = parent.elements() else {
            return Ok(None);
        };
        let at = match &**last {
            "-" => Some(elements.len()),
            digits => pointer::index(digits).filter(|at| *at <= elements.len()),
        };
        let Some(at) = at else { return Ok(None) };
        work.spend(elements.len() - at)?;
        elements.insert(at, value);
        return Ok(Some(()));
    }
    let Some(members) = parent.members() else {
        return Ok(None);
    };
    work.spend(members.len())?;
    match members.iter_mut().find(|(name, _)| name.text() == last) {
        Some((_, old)) => *old = value,
        None => members.push((Name::new(last), value)),
    }
    Ok(Some(()))
}

/// Takes a value out; nothing if there is none, and the whole document cannot be.
fn remove<'a>(
    doc: &mut Node<'a>,
    path: &Pointer,
    work: &mut Work,
) -> Result<Option<Node<'a>>, Refusal> {
    let Some((last, above)) = path.0.split_last() else {
        return Ok(None);
    };
    let Some(parent) = find(doc, &Pointer(above.to_vec()), work)? else {
        return Ok(None);
    };
    if parent.kind() == Kind::Array {
        let Some(elements) = parent.elements() else {
            return Ok(None);
        };
        let at = pointer::index(last).filter(|at| *at < elements.len());
        let Some(at) = at else { return Ok(None) };
        work.spend(elements.len() - at)?;
        return Ok(Some(elements.remove(at)));
    }
    let Some(members) = parent.members() else {
        return Ok(None);
    };
    work.spend(members.len())?;
    let at = members.iter().position(|(name, _)| name.text() == last);
    Ok(at.map(|at| members.remove(at).1))
}

/// Adds to the number at a place and gives the sum. Where nothing is there it begins at 0, and objects are
/// made on the way to it.
///
/// # Errors
/// `NOTJSON` where something else is, `LIMIT` beyond `min` or `max` or for more digits than are computed with.
pub fn increment<'a>(
    doc: &mut Node<'a>,
    path: &Pointer,
    delta: Decimal,
    bounds: [Option<Decimal>; 2],
    text: &'a mut String,
    work: &mut Work,
) -> Result<(), Refusal> {
    let mut at = doc;
    for (n, name) in path.0.iter().enumerate() {
        if step(at, name, work)?.is_none() {
            let Some(members) = at.members() else {
                let text = format!(
                    "{} is no place for a number: on the way there is no object",
                    path.quoted()
                );
                return Err(Refusal::new(Code::NotJson, text));
            };
            let made = match n + 1 == path.0.len() {
                true => Node::Text("0"),
                false => EMPTY,
            };
            members.push((Name::new(name), made));
        }
        match step(at, name, work)? {
            Some(below) => at = below,
            None => return Ok(()),
        }
    }
    let now = at.scalar().filter(|_| at.kind() == Kind::Number);
    let Some(now) = now else {
        let text = format!("there is no number at {}", path.quoted());
        return Err(Refusal::new(Code::NotJson, text));
    };
    *text = sum(now, delta, bounds)?;
    *at = Node::Text(text);
    Ok(())
}

/// The sum of a number and a delta, as it is written.
///
/// # Errors
/// `LIMIT` beyond the bounds, or for more digits than are computed with.
pub fn sum(now: &str, delta: Decimal, bounds: [Option<Decimal>; 2]) -> Result<String, Refusal> {
    let limit = |text: String| Refusal::new(Code::Limit, text);
    let too_long = || {
        limit(format!(
            "{now} + {delta} has more digits than are computed with: 38, and 28 after the point"
        ))
    };
    let now_is = Decimal::parse(now).ok_or_else(too_long)?;
    let sum = now_is.plus(delta).ok_or_else(too_long)?;
    if sum.is_whole() && sum.integer().is_none() {
        return Err(limit(format!("{now} + {delta} does not fit into 64 bits")));
    }
    for (bound, wrong, name) in [
        (bounds[0], std::cmp::Ordering::Less, "MIN"),
        (bounds[1], std::cmp::Ordering::Greater, "MAX"),
    ] {
        let Some(bound) = bound else { continue };
        if sum.compare(bound).ok_or_else(too_long)? == wrong {
            return Err(limit(format!(
                "{now} + {delta} is {sum}, beyond {name} {bound}"
            )));
        }
    }
    Ok(sum.to_string())
}

/// The text of a changed document.
///
/// # Errors
/// `LIMIT` for one that is too deep or has too many elements, `TOOBIG` for one of more bytes.
pub fn finished(doc: &Node<'_>, most: usize) -> Result<Vec<u8>, Refusal> {
    let mut out = vec![];
    doc.write(&mut out, most);
    if out.len() > most {
        let text = format!("the value would have more than {most} bytes (maos.value-max-bytes)");
        return Err(Refusal::new(Code::TooBig, text));
    }
    check_shape("the value that this makes", &out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn node(text: &str) -> Node<'_> {
        Node::parse("the test's value", text.as_bytes()).unwrap()
    }

    fn text(doc: &Node<'_>) -> String {
        String::from_utf8(finished(doc, usize::MAX).unwrap()).unwrap()
    }

    fn merged(doc: &str, patch: &str) -> String {
        let mut doc = node(doc);
        merge_patch(&mut doc, node(patch), &mut Work::default()).unwrap();
        text(&doc)
    }

    fn patched(doc: &str, patch: &str) -> Result<Option<String>, Code> {
        let mut made = node(doc);
        let done = json_patch(&mut made, node(patch), 1 << 20, &mut Work::default());
        match done.map_err(|refusal| refusal.code)? {
            Patched::Done => Ok(Some(text(&made))),
            Patched::TestFailed => Ok(None),
        }
    }

    #[test]
    fn the_examples_of_rfc_7396_hold() {
        for (doc, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(doc, patch), result, "{doc} with {patch}");
        }
    }

    #[test]
    fn what_is_not_touched_stays_as_it_is_written() {
        let doc = r#" { "n" : 12345678901234567890.10, "s":"\u0041\ud800", "o": { "x" :1e400 } , "a":[ 1, 2 ] } "#;
        let out = merged(doc, r#"{"new":-0.0,"o":{"y":1E5}}"#);
        let expected = r#"{"n":12345678901234567890.10,"s":"\u0041\ud800","o":{"x":1e400,"y":1E5},"a":[ 1, 2 ],"new":-0.0}"#;
        assert_eq!(out, expected);
        assert_eq!(merged("{}", r#"{"a":[ 1, { } ]}"#), r#"{"a":[ 1, { } ]}"#);
        // However a name is written, it is that name; of twins the last counts.
        assert_eq!(merged(r#"{"\u0061":1}"#, r#"{"a":2}"#), r#"{"\u0061":2}"#);
        assert_eq!(
            merged(r#"{"a":1,"b":2,"a":3}"#, r#"{"c":4}"#),
            r#"{"a":3,"b":2,"c":4}"#
        );
        // Names that a library keeps for itself are names.
        let own = r#"{"$serde_json::private::Number":"1"}"#;
        assert_eq!(merged(own, "{}"), own);
    }

    #[test]
    fn the_examples_of_rfc_6902_hold() {
        for (doc, patch, result) in [
            (
                r#"{"foo":"bar"}"#,
                r#"[{"op":"add","path":"/baz","value":"qux"}]"#,
                r#"{"foo":"bar","baz":"qux"}"#,
            ),
            (
                r#"{"foo":["bar","baz"]}"#,
                r#"[{"op":"add","path":"/foo/1","value":"qux"}]"#,
                r#"{"foo":["bar","qux","baz"]}"#,
            ),
            (
                r#"{"baz":"qux","foo":"bar"}"#,
                r#"[{"op":"remove","path":"/baz"}]"#,
                r#"{"foo":"bar"}"#,
            ),
            (
                r#"{"foo":["bar","qux","baz"]}"#,
                r#"[{"op":"remove","path":"/foo/1"}]"#,
                r#"{"foo":["bar","baz"]}"#,
            ),
            (
                r#"{"baz":"qux","foo":"bar"}"#,
                r#"[{"op":"replace","path":"/baz","value":"boo"}]"#,
                r#"{"baz":"boo","foo":"bar"}"#,
            ),
            (
                r#"{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}"#,
                r#"[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]"#,
                r#"{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}"#,
            ),
            (
                r#"{"foo":["all","grass","cows","eat"]}"#,
                r#"[{"op":"move","from":"/foo/1","path":"/foo/3"}]"#,
                r#"{"foo":["all","cows","eat","grass"]}"#,
            ),
            (
                r#"{"foo":"bar"}"#,
                r#"[{"op":"add","path":"/child","value":{"grandchild":{}}}]"#,
                r#"{"foo":"bar","child":{"grandchild":{}}}"#,
            ),
            (
                r#"{"foo":"bar"}"#,
                r#"[{"op":"add","path":"/baz","value":"qux","xyz":123}]"#,
                r#"{"foo":"bar","baz":"qux"}"#,
            ),
            (
                r#"{"/":9,"~1":10}"#,
                r#"[{"op":"test","path":"/~01","value":10}]"#,
                r#"{"/":9,"~1":10}"#,
            ),
            (
                r#"{"foo":["bar"]}"#,
                r#"[{"op":"add","path":"/foo/-","value":["abc","def"]}]"#,
                r#"{"foo":["bar",["abc","def"]]}"#,
            ),
            (
                r#"{"baz":"qux","foo":["a",2,"c"]}"#,
                r#"[{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2}]"#,
                r#"{"baz":"qux","foo":["a",2,"c"]}"#,
            ),
            // And beyond them.
            ("1", r#"[{"op":"replace","path":"","value":[]}]"#, "[]"),
            (
                "[1,2]",
                r#"[{"op":"copy","from":"","path":"/-"}]"#,
                "[1,2,[1,2]]",
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"move","from":"/a","path":"/a"}]"#,
                r#"{"a":1}"#,
            ),
            (
                r#"{"a":1.0}"#,
                r#"[{"op":"test","path":"/a","value":1}]"#,
                r#"{"a":1.0}"#,
            ),
            (
                r#"{"a":{"x":1,"y":[2]}}"#,
                r#"[{"op":"test","path":"/a","value":{"y":[2.0],"x":1e0}}]"#,
                r#"{"a":{"x":1,"y":[2]}}"#,
            ),
            (
                r#"{"":1}"#,
                r#"[{"op":"add","path":"/","value":2}]"#,
                r#"{"":2}"#,
            ),
            (
                r#"{"a":null}"#,
                r#"[{"op":"test","path":"/a","value":null}]"#,
                r#"{"a":null}"#,
            ),
            (r#"{"a":1}"#, "[]", r#"{"a":1}"#),
        ] {
            let result: Option<String> = Some(result.to_owned());
            assert_eq!(patched(doc, patch), Ok(result), "{doc} with {patch}");
        }
        for (doc, patch) in [
            (
                r#"{"baz":"qux"}"#,
                r#"[{"op":"test","path":"/baz","value":"bar"}]"#,
            ),
            (
                r#"{"/":9,"~1":10}"#,
                r#"[{"op":"test","path":"/~01","value":"10"}]"#,
            ),
            (r#"{"a":1}"#, r#"[{"op":"test","path":"/b","value":1}]"#),
            (r#"{"a":1}"#, r#"[{"op":"test","path":"/b","value":null}]"#),
            (
                "[1]",
                r#"[{"op":"add","path":"/0","value":7},{"op":"test","path":"/1","value":2}]"#,
            ),
        ] {
            assert_eq!(patched(doc, patch), Ok(None), "{doc} with {patch}");
        }
        for (code, doc, patch) in [
            (
                Code::NotFound,
                r#"{"foo":"bar"}"#,
                r#"[{"op":"add","path":"/baz/bat","value":"qux"}]"#,
            ),
            (
                Code::NotFound,
                "[1]",
                r#"[{"op":"add","path":"/2","value":1}]"#,
            ),
            (
                Code::NotFound,
                "[1]",
                r#"[{"op":"add","path":"/01","value":1}]"#,
            ),
            (Code::NotFound, "[1]", r#"[{"op":"remove","path":"/-"}]"#),
            (Code::NotFound, "[1]", r#"[{"op":"remove","path":"/1"}]"#),
            (Code::NotFound, "{}", r#"[{"op":"remove","path":""}]"#),
            (
                Code::NotFound,
                r#"{"a":1}"#,
                r#"[{"op":"replace","path":"/b","value":1}]"#,
            ),
            (
                Code::NotFound,
                r#"{"a":1}"#,
                r#"[{"op":"move","from":"/b","path":"/a"}]"#,
            ),
            (
                Code::NotFound,
                r#"{"a":"b"}"#,
                r#"[{"op":"add","path":"/a/0","value":1}]"#,
            ),
            (
                Code::Err,
                r#"{"a":{}}"#,
                r#"[{"op":"move","from":"/a","path":"/a/b"}]"#,
            ),
            (Code::Err, "{}", r#"{"op":"add"}"#),
            (Code::Err, "{}", "[1]"),
            (Code::Err, "{}", r#"[{"path":"/a"}]"#),
            (Code::Err, "{}", r#"[{"op":"add","value":1}]"#),
            (Code::Err, "{}", r#"[{"op":"add","path":"/a"}]"#),
            (Code::Err, "{}", r#"[{"op":"copy","path":"/a"}]"#),
            (Code::Err, "{}", r#"[{"op":"spam","path":"/a"}]"#),
            (Code::Err, "{}", r#"[{"op":1,"path":"/a"}]"#),
            (Code::Err, "{}", r#"[{"op":"remove","path":"a"}]"#),
        ] {
            assert_eq!(patched(doc, patch), Err(code), "{doc} with {patch}");
        }
    }

    #[test]
    fn copies_and_steps_are_bounded() {
        let copy = r#"{"op":"copy","from":"","path":"/-"}"#;
        let copies = format!("[{}]", vec![copy; 60].join(","));
        assert_eq!(patched("[1]", &copies), Err(Code::Limit));
        let long = format!("[{}0]", "0,".repeat(100_000));
        let first = r#"{"op":"add","path":"/0","value":1}"#;
        let shifts = format!("[{}]", vec![first; 1000].join(","));
        assert_eq!(patched(&long, &shifts), Err(Code::Limit));
        let deep = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n));
        let mut doc = node("{}");
        let inner = deep(64);
        merge_patch(&mut doc, node(&inner), &mut Work::default()).unwrap();
        assert!(finished(&doc, 1000).is_ok());
        assert_eq!(finished(&doc, 100).unwrap_err().code, Code::TooBig);
        let add = format!(r#"[{{"op":"add","path":"/a","value":{}}}]"#, deep(62));
        assert_eq!(
            patched(r#"{"a":[]}"#, &add).map(|made| made.is_some()),
            Ok(true)
        );
        let mut doc = node(r#"{"a":{}}"#);
        let below = format!(r#"[{{"op":"add","path":"/a/b","value":{}}}]"#, deep(62));
        json_patch(&mut doc, node(&below), 1 << 20, &mut Work::default()).unwrap();
        let deeper = text(&doc);
        let mut doc = node(&deeper);
        let path = "/a/b".to_owned() + &"/a".repeat(61);
        let below = format!(r#"[{{"op":"add","path":"{path}","value":[[1]]}}]"#);
        json_patch(&mut doc, node(&below), 1 << 20, &mut Work::default()).unwrap();
        assert_eq!(finished(&doc, usize::MAX).unwrap_err().code, Code::Limit);
    }

    #[test]
    fn numbers_are_added_to_where_they_are() {
        let add = |doc: &str, path: &str, delta: &str| {
            let mut sum = String::new();
            let path = Pointer::parse(path).unwrap();
            let delta = Decimal::parse(delta).unwrap();
            let mut doc = node(doc);
            let done = increment(
                &mut doc,
                &path,
                delta,
                [None; 2],
                &mut sum,
                &mut Work::default(),
            );
            done.map_err(|refusal| refusal.code).map(|()| text(&doc))
        };
        assert_eq!(add("41", "", "1").unwrap(), "42");
        assert_eq!(
            add(r#"{"a":{"a":0.1}}"#, "/a/a", "0.2").unwrap(),
            r#"{"a":{"a":0.3}}"#
        );
        assert_eq!(add("{}", "/a/a", "5").unwrap(), r#"{"a":{"a":5}}"#);
        assert_eq!(add("[1,2]", "/1", "-2").unwrap(), "[1,0]");
        assert_eq!(
            add("9223372036854775806", "", "1").unwrap(),
            "9223372036854775807"
        );
        assert_eq!(add("9223372036854775807", "", "1"), Err(Code::Limit));
        assert_eq!(add("1e300", "", "1"), Err(Code::Limit));
        for (doc, path) in [
            ("[1]", "/1"),
            ("[1]", "/-"),
            (r#"{"a":"1"}"#, "/a"),
            (r#"{"a":1}"#, "/a/b"),
            ("{}", ""),
        ] {
            assert_eq!(add(doc, path, "1"), Err(Code::NotJson), "{doc} {path}");
        }
        let bound = |n| Decimal::parse(n);
        assert!(sum("5", Decimal::of(1), [bound("0"), bound("6")]).is_ok());
        assert_eq!(
            sum("6", Decimal::of(1), [None, bound("6.5")])
                .unwrap_err()
                .code,
            Code::Limit
        );
        assert_eq!(
            sum("0", Decimal::of(-1), [bound("0"), None])
                .unwrap_err()
                .code,
            Code::Limit
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..3).prop_map(Value::from),
            "[a-c~/\"\\\\é]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c~/\"]{0,2}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).unwrap()
    }

    proptest! {
        /// Another implementation comes to the same.
        #[test]
        fn merge_patches_do_what_they_should(doc in json(), patch in json()) {
            let made = merged(&pretty(&doc), &pretty(&patch));
            let mut expected = doc;
            json_patch::merge(&mut expected, &patch);
            prop_assert_eq!(serde_json::from_str::<Value>(&made).unwrap(), expected);
        }

        #[test]
        fn differences_are_patches(from in json(), to in json()) {
            let patch = super::super::diff(from.to_string().as_bytes(), to.to_string().as_bytes());
            let patch = String::from_utf8(patch.unwrap()).unwrap();
            let made = patched(&pretty(&from), &patch).unwrap().unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&made).unwrap(), to);
        }

        #[test]
        fn what_is_the_same_is_the_same(a in json(), b in json()) {
            let (text_a, text_b) = (pretty(&a), b.to_string());
            let same = |x: &str, y: &str| node(x).same(&node(y), &mut Work::default()).unwrap();
            prop_assert_eq!(same(&text_a, &text_b), a == b);
            prop_assert!(same(&text_a, &a.to_string()));
        }

        #[test]
        fn any_operation_returns(doc in json(), op in "add|remove|replace|move|copy|test", path in "(/[a-c~/0-2-]{0,2}){0,3}", from in "(/[a-c0-2]{0,1}){0,3}", value in json()) {
            let patch = serde_json::json!([{"op": op, "path": path, "from": from, "value": value}]).to_string();
            let ours = patched(&doc.to_string(), &patch);
            let theirs = serde_json::from_str::<json_patch::Patch>(&patch).ok().map(|patch| {
                let mut made = doc.clone();
                json_patch::patch(&mut made, &patch).map(|()| made).ok()
            });
            if let Ok(Some(made)) = ours {
                if let Some(Some(expected)) = theirs {
                    prop_assert_eq!(serde_json::from_str::<Value>(&made).unwrap(), expected);
                }
            }
        }
    }
}
