//! Names of state: `namespace:category:identifier[:partition]`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A state key whose segments may hold any text.
///
/// The characters `% : { }` inside a segment are percent-encoded, so two different state keys never
/// make the same Redis key, and no segment can choose the cluster slot. Every method of
/// [`Client`](crate::Client) takes a `StateKey`, or plain text or bytes, as the key.
///
/// ```
/// use maos_client::StateKey;
///
/// let key = StateKey::new("shop", "task", "ship v1.4:api");
/// assert_eq!(key.to_string(), "shop:task:ship v1.4%3Aapi");
/// assert_eq!(key.identifier(), "ship v1.4:api");
/// assert_eq!("shop:task:ship v1.4%3Aapi".parse(), Ok(key));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey(String);

/// Why a text is no [`StateKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BadKey {
    /// A state key has three or four segments.
    Segments(usize),
    /// After `%` stands one of `25 3A 7B 7D`; everything else stands for itself.
    Encoding,
    /// A hash tag encloses the first three segments, or is not there.
    Tag,
}

impl StateKey {
    /// The key `namespace:category:identifier`. Empty segments are kept as such.
    pub fn new(namespace: &str, category: &str, identifier: &str) -> StateKey {
        let mut text =
            String::with_capacity(namespace.len() + category.len() + identifier.len() + 2);
        encode(namespace, &mut text);
        text.push(':');
        encode(category, &mut text);
        text.push(':');
        encode(identifier, &mut text);
        StateKey(text)
    }

    /// The same key with this partition as its last segment, in the place of the one it had.
    pub fn partition(&self, partition: &str) -> StateKey {
        let mut text = self.whole().to_owned();
        text.push(':');
        encode(partition, &mut text);
        StateKey(text)
    }

    /// The same key with its first three segments in hash-tag braces: in a cluster all partitions
    /// of `{namespace:category:identifier}` then lie in one slot, so that one `mset` or `mcas` can
    /// write them together. A tagged key and an untagged one are different keys.
    pub fn tagged(&self) -> StateKey {
        if self.is_tagged() {
            return self.clone();
        }
        let whole = self.whole();
        StateKey(format!("{{{whole}}}{}", &self.0[whole.len()..]))
    }

    /// Whether the key carries a hash tag.
    pub fn is_tagged(&self) -> bool {
        self.0.starts_with('{')
    }

    /// The first segment.
    pub fn namespace(&self) -> Cow<'_, str> {
        self.segment(0).unwrap_or_default()
    }

    /// The second segment.
    pub fn category(&self) -> Cow<'_, str> {
        self.segment(1).unwrap_or_default()
    }

    /// The third segment.
    pub fn identifier(&self) -> Cow<'_, str> {
        self.segment(2).unwrap_or_default()
    }

    /// The fourth segment, if there is one.
    pub fn partition_name(&self) -> Option<Cow<'_, str>> {
        self.segment(3)
    }

    /// The Redis key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn segment(&self, n: usize) -> Option<Cow<'_, str>> {
        let part = self.0.split(':').nth(n)?;
        Some(decode(part.trim_matches(['{', '}'])))
    }

    /// The first three segments and the tag around them.
    fn whole(&self) -> &str {
        match self.0.match_indices(':').nth(2) {
            Some((end, _)) => &self.0[..end],
            None => &self.0,
        }
    }
}

impl FromStr for StateKey {
    type Err = BadKey;

    /// Reads a Redis key back. Only what [`StateKey`] would write is taken, so reading and writing
    /// are each other's inverse.
    fn from_str(text: &str) -> Result<StateKey, BadKey> {
        let parts: Vec<&str> = text.split(':').collect();
        if !(3..=4).contains(&parts.len()) {
            return Err(BadKey::Segments(parts.len()));
        }
        let tagged = text.starts_with('{');
        let bare: Cow<'_, str> = if tagged {
            let end = text.find('}').ok_or(BadKey::Tag)?;
            if end != parts[..3].join(":").len() - 1 {
                return Err(BadKey::Tag);
            }
            Cow::Owned(format!("{}{}", &text[1..end], &text[end + 1..]))
        } else {
            Cow::Borrowed(text)
        };
        if bare.contains(['{', '}']) {
            return Err(BadKey::Tag);
        }
        let well_encoded = |(at, _): (usize, &str)| {
            let code = bare.get(at + 1..at + 3);
            code.is_some_and(|code| ["25", "3A", "7B", "7D"].contains(&code))
        };
        if !bare.match_indices('%').all(well_encoded) {
            return Err(BadKey::Encoding);
        }
        Ok(StateKey(text.to_owned()))
    }
}

impl AsRef<[u8]> for StateKey {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl AsRef<str> for StateKey {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateKey({:?})", self.0)
    }
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadKey::Segments(n) => write!(
                f,
                "a state key is namespace:category:identifier[:partition]; this has {n} segments"
            ),
            BadKey::Encoding => {
                f.write_str("in a state key % stands only before 25, 3A, 7B or 7D (% : {{ }})")
            }
            BadKey::Tag => f.write_str(
                "in a state key braces stand only around the first three segments, as a hash tag",
            ),
        }
    }
}

impl std::error::Error for BadKey {}

fn encode(segment: &str, out: &mut String) {
    for c in segment.chars() {
        match c {
            '%' => out.push_str("%25"),
            ':' => out.push_str("%3A"),
            '{' => out.push_str("%7B"),
            '}' => out.push_str("%7D"),
            other => out.push(other),
        }
    }
}

fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    // `%25` last: it may make a new `%`.
    let text = segment
        .replace("%3A", ":")
        .replace("%7B", "{")
        .replace("%7D", "}");
    Cow::Owned(text.replace("%25", "%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_read_as_they_are_written() {
        let key = StateKey::new("shop", "plan", "v1.4");
        assert_eq!(key.as_str(), "shop:plan:v1.4");
        assert_eq!(key.partition_name(), None);
        let part = key.partition("steps");
        assert_eq!(part.as_str(), "shop:plan:v1.4:steps");
        assert_eq!(part.partition("notes").as_str(), "shop:plan:v1.4:notes");
        assert_eq!(part.tagged().as_str(), "{shop:plan:v1.4}:steps");
        assert_eq!(part.tagged().partition("x").as_str(), "{shop:plan:v1.4}:x");
        assert_eq!(part.tagged().identifier(), "v1.4");
        assert_eq!(part.tagged().tagged(), part.tagged());
    }

    #[test]
    fn what_no_state_key_writes_is_refused() {
        for (text, why) in [
            ("a:b", BadKey::Segments(2)),
            ("a:b:c:d:e", BadKey::Segments(5)),
            ("a:b:%3a", BadKey::Encoding),
            ("a:b:%20", BadKey::Encoding),
            ("a:b:100%", BadKey::Encoding),
            ("a:b:%é", BadKey::Encoding),
            ("{a}:b:c", BadKey::Tag),
            ("{a:b:c:d}", BadKey::Tag),
            ("a:b:{c}", BadKey::Tag),
            ("{a:b:c", BadKey::Tag),
        ] {
            assert_eq!(text.parse::<StateKey>(), Err(why), "{text}");
        }
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof!["[%:{}0-9A-Fa]{0,6}", any::<String>()]
    }

    type Parts = (String, String, String, Option<String>, bool);

    fn parts() -> impl Strategy<Value = Parts> {
        let four = proptest::option::of(segment());
        (segment(), segment(), segment(), four, any::<bool>())
    }

    fn build((ns, cat, id, part, tagged): &Parts) -> StateKey {
        let key = StateKey::new(ns, cat, id);
        let key = part.as_ref().map_or(key.clone(), |p| key.partition(p));
        if *tagged {
            key.tagged()
        } else {
            key
        }
    }

    proptest! {
        #[test]
        fn reading_is_the_inverse_of_writing(p in parts()) {
            let key = build(&p);
            prop_assert_eq!(key.namespace(), &p.0[..]);
            prop_assert_eq!(key.category(), &p.1[..]);
            prop_assert_eq!(key.identifier(), &p.2[..]);
            let part = key.partition_name().map(Cow::into_owned);
            prop_assert_eq!(&part, &p.3);
            prop_assert_eq!(key.is_tagged(), p.4);
            prop_assert_eq!(key.as_str().parse::<StateKey>(), Ok(key.clone()));
        }

        #[test]
        fn different_keys_never_make_the_same_redis_key(a in parts(), b in parts()) {
            prop_assert_eq!(build(&a) == build(&b), a == b);
        }

        #[test]
        fn any_text_is_read_exactly_or_refused(text in "[a%:{}23AB7D5]{0,16}") {
            if let Ok(key) = text.parse::<StateKey>() {
                let part = key.partition_name().map(|p| p.into_owned());
                let p = (key.namespace().into(), key.category().into(), key.identifier().into(), part, key.is_tagged());
                let again = build(&p);
                prop_assert_eq!(again.as_str(), &text);
            }
        }
    }
}
