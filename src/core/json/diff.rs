//! The difference of two documents.

use serde_json::Value;

use super::{check_depth, not_json, parse, shape};
use crate::config::{DIFF_MAX, JSON_ELEMENTS_MAX};
use crate::{Code, Refusal};

/// A JSON Patch (RFC 6902) that makes `to` out of `from`. Arrays are compared place by place.
///
/// # Errors
/// `NOTJSON` if one of them is no JSON; `LIMIT` beyond [`JSON_DEPTH_MAX`], [`JSON_ELEMENTS_MAX`] or
/// [`DIFF_MAX`].
pub fn diff(from: &[u8], to: &[u8]) -> Result<Vec<u8>, Refusal> {
    const FROM: &str = "the value of the first version";
    const TO: &str = "the value of the second version";
    let shapes = [shape(from), shape(to)];
    check_depth(FROM, shapes[0].0)?;
    check_depth(TO, shapes[1].0)?;
    let elements = shapes[0].1 + shapes[1].1;
    if elements > JSON_ELEMENTS_MAX {
        let text = format!("the two values have {elements} elements together, at most {JSON_ELEMENTS_MAX} are compared");
        return Err(Refusal::new(Code::Limit, text));
    }
    let (from, to) = (parse(FROM, from)?, parse(TO, to)?);
    let mut patch = Patch {
        text: b"[".to_vec(),
        path: String::new(),
    };
    patch.compare(&from, &to)?;
    patch.text.push(b']');
    Ok(patch.text)
}

/// A JSON Patch in the making.
struct Patch {
    text: Vec<u8>,
    /// The JSON pointer (RFC 6901) to what is being compared.
    path: String,
}

impl Patch {
    fn compare(&mut self, from: &Value, to: &Value) -> Result<(), Refusal> {
        match (from, to) {
            (Value::Object(from), Value::Object(to)) => {
                for (name, old) in from {
                    self.at(name, |p| match to.get(name) {
                        Some(new) => p.compare(old, new),
                        None => p.operation("remove", None),
                    })?;
                }
                for (name, new) in to.iter().filter(|(name, _)| !from.contains_key(*name)) {
                    self.at(name, |p| p.operation("add", Some(new)))?;
                }
                Ok(())
            }
            (Value::Array(from), Value::Array(to)) => {
                for (i, (old, new)) in from.iter().zip(to).enumerate() {
                    self.at(&i.to_string(), |p| p.compare(old, new))?;
                }
                // From the end, so that the places before stay what they are.
                for i in (to.len()..from.len()).rev() {
                    self.at(&i.to_string(), |p| p.operation("remove", None))?;
                }
                for (i, new) in to.iter().enumerate().skip(from.len()) {
                    self.at(&i.to_string(), |p| p.operation("add", Some(new)))?;
                }
                Ok(())
            }
            _ if from == to => Ok(()),
            _ => self.operation("replace", Some(to)),
        }
    }

    /// Does something one step further down.
    fn at(
        &mut self,
        name: &str,
        then: impl FnOnce(&mut Patch) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let here = self.path.len();
        self.path.push('/');
        self.path += &name.replace('~', "~0").replace('/', "~1");
        let done = then(self);
        self.path.truncate(here);
        done
    }

    fn operation(&mut self, name: &str, value: Option<&Value>) -> Result<(), Refusal> {
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        let head = format!("{{\"op\":\"{name}\",\"path\":");
        self.text.extend_from_slice(head.as_bytes());
        self.write(&self.path.clone().into())?;
        if let Some(value) = value {
            self.text.extend_from_slice(b",\"value\":");
            self.write(value)?;
        }
        self.text.push(b'}');
        if self.text.len() > DIFF_MAX {
            let text = format!(
                "the difference has more than {DIFF_MAX} bytes; read both versions instead"
            );
            return Err(Refusal::new(Code::Limit, text));
        }
        Ok(())
    }

    fn write(&mut self, value: &Value) -> Result<(), Refusal> {
        serde_json::to_writer(&mut self.text, value).map_err(|e| not_json("the difference", &e))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_compared_as_written() {
        let patch = diff(b"9007199254740993", b"9007199254740992").unwrap();
        assert_eq!(
            String::from_utf8(patch).unwrap(),
            r#"[{"op":"replace","path":"","value":9007199254740992}]"#
        );
    }

    #[test]
    fn a_difference_is_bounded_before_and_while_it_is_made() {
        let many = |n: usize| format!("[{}0]", "1,".repeat(n)).into_bytes();
        let code = |from: &[u8], to: &[u8]| diff(from, to).unwrap_err().code;
        assert_eq!(code(&many(JSON_ELEMENTS_MAX), b"[]"), Code::Limit);
        // A long name before each of many differences.
        let long = |b: &str| {
            let (name, items) = ("k".repeat(100_000), vec![b; 100].join(","));
            format!("{{\"{name}\":[{items}]}}").into_bytes()
        };
        assert_eq!(code(&long("1"), &long("2")), Code::Limit);
        let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert_eq!(code(&deep(65), b"[]"), Code::Limit);
        assert!(diff(&deep(64), b"[]").is_ok());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z~/]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c~/]{0,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_to_the_other(from in json(), to in json()) {
            let patch = diff(from.to_string().as_bytes(), to.to_string().as_bytes()).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
            let mut made = from;
            json_patch::patch(&mut made, &patch).unwrap();
            prop_assert_eq!(made, to);
        }
    }
}
