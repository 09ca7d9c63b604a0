//! Three-way merge: what two have made of one document, taken together.
//!
//! What only one of them changed is as that one left it; what both changed alike is so; what both changed
//! differently is a conflict, which is told by the smallest path to it. Objects are merged member by member, and
//! arrays whose elements are all objects with an `id` of their own element by element, whatever their places
//! are; any other array is one value. Which of the two is whom makes no difference to what comes out, nor to
//! what is in conflict.

use std::collections::{HashMap, HashSet};

use super::decimal;
use super::node::{Kind, Name, Node, Places, Work};
use super::Pointer;
use crate::Refusal;

/// So many conflicts are told.
pub const CONFLICTS_MAX: usize = 100;

/// What came of a merge.
#[derive(Clone, Debug)]
pub enum Merged<'a> {
    /// The document that has both changes.
    Done(Node<'a>),
    /// The paths of what both changed differently, at most [`CONFLICTS_MAX`] of them.
    Conflicts(Vec<Pointer>),
}

/// Merges what `theirs` and `mine` have made of `base`.
///
/// # Errors
/// `LIMIT` when it takes too long.
pub fn merge<'a>(
    base: &Node<'a>,
    theirs: Node<'a>,
    mine: Node<'a>,
    work: &mut Work,
) -> Result<Merged<'a>, Refusal> {
    let mut merge = Merge {
        work,
        path: Pointer::default(),
        conflicts: vec![],
    };
    let made = merge.value(Some(base), Some(theirs), Some(mine))?;
    Ok(match made {
        Some(made) if merge.conflicts.is_empty() => Merged::Done(made),
        _ => Merged::Conflicts(merge.conflicts),
    })
}

struct Merge<'w> {
    work: &'w mut Work,
    path: Pointer,
    conflicts: Vec<Pointer>,
}

type Members<'a> = Vec<(Name<'a>, Node<'a>)>;

impl Merge<'_> {
    /// Merges one value, which each of the three may have or not.
    fn value<'a>(
        &mut self,
        base: Option<&Node<'a>>,
        theirs: Option<Node<'a>>,
        mine: Option<Node<'a>>,
    ) -> Result<Option<Node<'a>>, Refusal> {
        if self.same(theirs.as_ref(), mine.as_ref())? || self.same(base, mine.as_ref())? {
            return Ok(theirs);
        }
        if self.same(base, theirs.as_ref())? {
            return Ok(mine);
        }
        let (Some(mut t), Some(mut m)) = (theirs, mine) else {
            self.conflict();
            return Ok(None);
        };
        let mut b = base.cloned();
        if let (Some(theirs), Some(mine)) = (t.members(), m.members()) {
            // Where both made an object of something else, they began with none.
            let base = b.as_mut().and_then(Node::members);
            let (theirs, mine) = (std::mem::take(theirs), std::mem::take(mine));
            let base = base.map_or(&[][..], |members| members);
            return self.members(base, theirs, mine).map(Some);
        }
        let arrays = (
            b.as_mut().and_then(Node::elements),
            t.elements(),
            m.elements(),
        );
        if let (Some(base), Some(theirs), Some(mine)) = arrays {
            if let (Some(b), Some(t), Some(m)) = (ids(base), ids(theirs), ids(mine)) {
                let (theirs, mine) = (std::mem::take(theirs), std::mem::take(mine));
                return self.elements((base, &b), (theirs, &t), (mine, &m));
            }
        }
        self.conflict();
        Ok(None)
    }

    fn same(&mut self, a: Option<&Node<'_>>, b: Option<&Node<'_>>) -> Result<bool, Refusal> {
        match (a, b) {
            (Some(a), Some(b)) => a.same(b, self.work),
            (None, None) => Ok(true),
            _ => Ok(false),
        }
    }

    fn conflict(&mut self) {
        if self.conflicts.len() < CONFLICTS_MAX {
            self.conflicts.push(self.path.clone());
        }
    }

    fn members<'a>(
        &mut self,
        base: &[(Name<'a>, Node<'a>)],
        theirs: Members<'a>,
        mine: Members<'a>,
    ) -> Result<Node<'a>, Refusal> {
        self.work.spend(theirs.len() + mine.len())?;
        let bases = Places::of(base, theirs.len() + mine.len());
        let found: Vec<Option<usize>> = {
            let places = Places::of(&mine, theirs.len());
            let find = |(name, _): &(Name<'a>, _)| places.find(&mine, name.text(), self.work);
            theirs.iter().map(find).collect::<Result<_, _>>()?
        };
        let mut mine: Vec<Option<(Name<'a>, Node<'a>)>> = mine.into_iter().map(Some).collect();
        let mut made = Vec::with_capacity(theirs.len());
        let theirs = theirs
            .into_iter()
            .zip(found)
            .map(|((name, value), at)| (name, Some(value), at));
        let theirs: Vec<_> = theirs.collect();
        for (name, theirs, at) in theirs {
            let mine = at.and_then(|at| mine[at].take()).map(|(_, value)| value);
            self.member(base, &bases, name, theirs, mine, &mut made)?;
        }
        for (name, value) in mine.into_iter().flatten() {
            self.member(base, &bases, name, None, Some(value), &mut made)?;
        }
        Ok(Node::Object(made))
    }

    fn member<'a>(
        &mut self,
        base: &[(Name<'a>, Node<'a>)],
        bases: &Places<'_>,
        name: Name<'a>,
        theirs: Option<Node<'a>>,
        mine: Option<Node<'a>>,
        made: &mut Members<'a>,
    ) -> Result<(), Refusal> {
        let before = bases
            .find(base, name.text(), self.work)?
            .map(|at| &base[at].1);
        self.path.0.push(name.text().to_owned());
        let value = self.value(before, theirs, mine)?;
        self.path.0.pop();
        made.extend(value.map(|value| (name, value)));
        Ok(())
    }

    fn elements<'a>(
        &mut self,
        (base, base_ids): (&[Node<'a>], &[String]),
        (theirs, their_ids): (Vec<Node<'a>>, &[String]),
        (mine, my_ids): (Vec<Node<'a>>, &[String]),
    ) -> Result<Option<Node<'a>>, Refusal> {
        self.work
            .spend(4 * (base.len() + theirs.len() + mine.len()))?;
        let [in_base, in_theirs, in_mine] = [base_ids, their_ids, my_ids].map(|ids| {
            let places = ids.iter().enumerate().map(|(at, id)| (&**id, at));
            places.collect::<HashMap<&str, usize>>()
        });
        let stays = |id: &&str| {
            in_base.contains_key(id) && in_theirs.contains_key(id) && in_mine.contains_key(id)
        };
        let order = |ids: &'_ [String]| -> Vec<String> {
            let ids = ids.iter().map(|id| &**id).filter(|id| stays(id));
            ids.map(str::to_owned).collect()
        };
        // Who moved those that stay says where they are.
        let [before, t, m] = [order(base_ids), order(their_ids), order(my_ids)];
        let frame = match (t == before, m == before || m == t) {
            (true, _) => m,
            (false, true) => t,
            (false, false) => {
                self.conflict();
                return Ok(None);
            }
        };
        let sequence = sequence(&frame, their_ids, my_ids);
        let mut theirs: Vec<Option<Node<'a>>> = theirs.into_iter().map(Some).collect();
        let mut mine: Vec<Option<Node<'a>>> = mine.into_iter().map(Some).collect();
        let mut made = vec![];
        for id in sequence {
            let theirs_at = in_theirs.get(&*id).copied();
            let before = in_base.get(&*id).map(|at| &base[*at]);
            let t = theirs_at.and_then(|at| theirs[at].take());
            let m = in_mine.get(&*id).and_then(|at| mine[*at].take());
            // What they took out has no place in what is there now.
            let step = theirs_at.map(|at| at.to_string());
            let deeper = step.is_some();
            self.path.0.extend(step);
            made.extend(self.value(before, t, m)?);
            if deeper {
                self.path.0.pop();
            }
        }
        Ok(Some(Node::Array(made)))
    }
}

/// The order in which elements stand: those that all three have as in the frame, each other one behind the
/// one of those that it follows.
fn sequence(frame: &[String], theirs: &[String], mine: &[String]) -> Vec<String> {
    let places: HashMap<&str, usize> = frame
        .iter()
        .enumerate()
        .map(|(at, id)| (&**id, at + 1))
        .collect();
    // Behind which place of the frame (0: before all) each other element stands.
    let anchors = |ids: &[String]| -> HashMap<String, usize> {
        let mut behind = 0;
        let mut anchors = HashMap::new();
        for id in ids {
            match places.get(&**id) {
                Some(place) => behind = *place,
                None => {
                    anchors.insert(id.clone(), behind);
                }
            }
        }
        anchors
    };
    let (t, m) = (anchors(theirs), anchors(mine));
    let anchor = |id: &String| match (t.get(id), m.get(id)) {
        (Some(a), Some(b)) => *a.min(b),
        (Some(a), None) | (None, Some(a)) => *a,
        (None, None) => 0,
    };
    let mut behind: Vec<[Vec<String>; 2]> = vec![Default::default(); frame.len() + 1];
    for (side, ids) in [theirs, mine].into_iter().enumerate() {
        for id in ids.iter().filter(|id| !places.contains_key(&***id)) {
            behind[anchor(id)][side].push(id.clone());
        }
    }
    let mut sequence = vec![];
    for (at, [mut a, mut b]) in behind.into_iter().enumerate() {
        if at > 0 {
            sequence.push(frame[at - 1].clone());
        }
        // The same whoever is who.
        if b < a {
            std::mem::swap(&mut a, &mut b);
        }
        let first: HashSet<String> = a.iter().cloned().collect();
        sequence.extend(a);
        sequence.extend(b.into_iter().filter(|id| !first.contains(id)));
    }
    sequence
}

/// The ids of elements, if each is an object with one of its own: a string or a number.
fn ids(elements: &mut [Node<'_>]) -> Option<Vec<String>> {
    let mut seen = HashSet::with_capacity(elements.len());
    let mut ids = Vec::with_capacity(elements.len());
    for element in elements {
        let members = element.members()?;
        let (_, id) = members.iter().find(|(name, _)| name.text() == "id")?;
        let id = match id.kind() {
            Kind::String => format!("s{}", id.string()?),
            Kind::Number => format!("n{}", decimal::plain(id.scalar()?)?),
            _ => return None,
        };
        if !seen.insert(id.clone()) {
            return None;
        }
        ids.push(id);
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{json, Map, Value};

    use super::super::patch::finished;
    use super::*;

    fn merged(base: &Value, theirs: &Value, mine: &Value) -> Result<Value, Vec<String>> {
        let [base, theirs, mine] = [base, theirs, mine].map(Value::to_string);
        let node = |text| Node::parse("the test's value", str::as_bytes(text)).unwrap();
        let made = merge(
            &node(&base),
            node(&theirs),
            node(&mine),
            &mut Work::default(),
        );
        match made.unwrap() {
            Merged::Done(made) => {
                let text = finished(&made, usize::MAX).unwrap();
                Ok(serde_json::from_slice(&text).unwrap())
            }
            Merged::Conflicts(paths) => Err(paths.iter().map(Pointer::to_string).collect()),
        }
    }

    #[test]
    fn changes_to_different_parts_are_both_kept() {
        let base = json!({"title": "plan", "steps": {"a": 1, "b": 2}, "tags": ["x"]});
        let theirs =
            json!({"title": "plan", "steps": {"a": 9, "b": 2}, "tags": ["x"], "who": "them"});
        let mine = json!({"title": "plan B", "steps": {"a": 1}, "tags": ["x"]});
        let both = json!({"title": "plan B", "steps": {"a": 9}, "tags": ["x"], "who": "them"});
        assert_eq!(merged(&base, &theirs, &mine), Ok(both));
        // Alike is one change; so is a number that is written otherwise.
        let same = json!({"title": "plan", "steps": {"a": 1.0, "b": 3}, "tags": ["x"]});
        let alike = json!({"title": "plan", "steps": {"a": 1, "b": 3}, "tags": ["x"]});
        assert!(merged(&base, &same, &alike).is_ok());
    }

    #[test]
    fn a_conflict_names_the_smallest_path() {
        let base = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        let theirs = json!({"a": {"b": 2, "c": [1, 2, 3]}, "e": {"x": 1, "y": 1}});
        let mine = json!({"a": {"b": 3, "c": [0, 1, 2]}, "d": 2, "e": {"x": 1, "y": 2}});
        let paths = merged(&base, &theirs, &mine).unwrap_err();
        assert_eq!(paths, ["/a/b", "/a/c", "/e/y", "/d"]);
        assert_eq!(
            merged(&json!(1), &json!(2), &json!(3)),
            Err(vec![String::new()])
        );
        assert_eq!(
            merged(&json!({"a/b": 1}), &json!({"a/b": 2}), &json!({})),
            Err(vec!["/a~1b".into()])
        );
    }

    #[test]
    fn elements_with_ids_are_merged_wherever_they_are() {
        let task = |id: u32, state: &str| json!({"id": id, "state": state});
        let base = json!([task(1, "open"), task(2, "open"), task(3, "open")]);
        // They close the first, add a fourth at the end; I reorder, drop the third, add one behind the second.
        let theirs = json!([
            task(1, "done"),
            task(2, "open"),
            task(3, "open"),
            task(4, "new")
        ]);
        let mine = json!([task(2, "open"), task(5, "new"), task(1, "open")]);
        let both = json!([
            task(2, "open"),
            task(4, "new"),
            task(5, "new"),
            task(1, "done")
        ]);
        let made = merged(&base, &theirs, &mine).unwrap();
        assert_eq!(made, merged(&base, &mine, &theirs).unwrap());
        assert_eq!(made, both);
        let paths = |theirs, mine| merged(&base, &theirs, &mine).unwrap_err();
        // Changed and taken out; changed by both; moved by both.
        let dropped = json!([task(1, "open"), task(2, "open")]);
        let changed = json!([task(1, "open"), task(2, "open"), task(3, "done")]);
        assert_eq!(paths(dropped.clone(), changed.clone()), [""]);
        assert_eq!(paths(changed.clone(), dropped), ["/2"]);
        let other = json!([task(3, "lost"), task(1, "open"), task(2, "open")]);
        assert_eq!(paths(other, changed), ["/0/state"]);
        let moved = [
            json!([task(2, "open"), task(1, "open"), task(3, "open")]),
            json!([task(3, "open"), task(2, "open"), task(1, "open")]),
        ];
        assert_eq!(paths(moved[0].clone(), moved[1].clone()), [""]);
        // Two that have one id are no elements with ids.
        let twins = json!([task(1, "a"), task(1, "b")]);
        assert_eq!(
            merged(&twins, &json!([task(1, "a")]), &json!([])),
            Err(vec![String::new()])
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), (0i64..3).prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 3, |inner| {
            let item = (0u32..4, inner.clone()).prop_map(|(id, v)| json!({"id": id, "v": v}));
            prop_oneof![
                1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                2 => prop::collection::vec(item, 0..4).prop_map(Value::from),
                3 => prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    /// A document in which some of the members of another are replaced or gone.
    fn edited() -> impl Strategy<Value = [Value; 3]> {
        (json(), json(), json(), any::<[bool; 4]>()).prop_map(|(base, a, b, mix)| {
            let blend = |with: &Value, keep: bool| match (&base, with) {
                (Value::Object(base), Value::Object(with)) if keep => {
                    let mut both: Map<String, Value> = base.clone();
                    both.extend(with.clone());
                    Value::Object(both)
                }
                _ => with.clone(),
            };
            [
                base.clone(),
                blend(&a, mix[0] || mix[1]),
                blend(&b, mix[2] || mix[3]),
            ]
        })
    }

    /// Paths at which two documents differ, as far as objects go.
    fn changes(a: &Value, b: &Value, path: &str, out: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => {
                let names: HashSet<&String> = a.keys().chain(b.keys()).collect();
                for name in names {
                    let at = format!("{path}/{name}");
                    match (a.get(name), b.get(name)) {
                        (Some(a), Some(b)) => changes(a, b, &at, out),
                        _ => out.push(at),
                    }
                }
            }
            _ if a != b => out.push(path.to_owned()),
            _ => {}
        }
    }

    fn differ(a: &Value, b: &Value) -> Vec<String> {
        let mut out = vec![];
        changes(a, b, "", &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn a_side_that_changed_nothing_gives_the_other([base, a, _] in edited()) {
            prop_assert_eq!(merged(&base, &a, &base), Ok(a.clone()));
            prop_assert_eq!(merged(&base, &base, &a), Ok(a.clone()));
            prop_assert_eq!(merged(&base, &a, &a), Ok(a));
        }

        #[test]
        fn it_makes_no_difference_who_is_who([base, a, b] in edited()) {
            let (one, other) = (merged(&base, &a, &b), merged(&base, &b, &a));
            prop_assert_eq!(one.is_ok(), other.is_ok(), "{:?} {:?}", one, other);
            if let (Ok(one), Ok(other)) = (one, other) {
                prop_assert_eq!(one, other);
            }
        }

        #[test]
        fn changes_of_different_paths_do_not_conflict([base, a, b] in edited()) {
            let (theirs, mine) = (differ(&base, &a), differ(&base, &b));
            let touch = |x: &String, y: &String| x == y || x.starts_with(&format!("{y}/")) || y.starts_with(&format!("{x}/")) || x.is_empty() || y.is_empty();
            let disjoint = !theirs.iter().any(|x| mine.iter().any(|y| touch(x, y)));
            let made = merged(&base, &a, &b);
            if disjoint {
                let made = made.expect("no conflict");
                // Both changes, and nothing else.
                let mut all: Vec<String> = differ(&base, &made);
                let mut expected: Vec<String> = theirs.iter().chain(&mine).cloned().collect();
                all.sort();
                expected.sort();
                prop_assert_eq!(all, expected);
            }
        }

        #[test]
        fn a_conflict_is_where_all_three_differ([base, a, b] in edited()) {
            let Err(paths) = merged(&base, &a, &b) else { return Ok(()); };
            prop_assert!(!paths.is_empty());
            for path in paths {
                let (t, m) = (a.pointer(&path), b.pointer(&path));
                // Elements with ids have another place on each side.
                if path.split('/').any(|s| s.parse::<u32>().is_ok()) {
                    continue;
                }
                prop_assert_ne!(t, m, "{}", path);
                prop_assert_ne!(base.pointer(&path), t, "{}", path);
                prop_assert_ne!(base.pointer(&path), m, "{}", path);
                let objects = t.is_some_and(Value::is_object) && m.is_some_and(Value::is_object);
                prop_assert!(!objects, "a smaller path than {} would do", path);
            }
        }
    }
}
