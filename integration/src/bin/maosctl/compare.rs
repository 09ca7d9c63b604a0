//! What a backup says, beside what a server holds that it was restored into. Both come entry by entry, in any order.
//!
//! The same is what is the same but for what a restore makes anew by its rules: locks do not come back, a definition of a
//! partition gets a version of its own, and where a key of a newer version went meanwhile (it expired) those that come after
//! it get a version on top.

use std::collections::{BTreeSet, HashMap};

use maos_core::codec::backup::{Content, Entry};
use maos_core::codec::v1::{self, Bounds};
use maos_core::codec::Damaged;
use maos_core::restored::Restored;
use maos_core::{Interner, Stamp};

/// So many keys that differ are told by name.
pub const NAMED: usize = 10;

/// A key and its database.
pub type Place = (u32, Box<[u8]>);

/// What is at a key, in few bytes.
struct One {
    digest: u128,
    /// The current version of a record.
    current: Stamp,
    /// How many versions a record has.
    versions: u64,
    bytes: u64,
    expires_ms: Option<u64>,
    is: Is,
    /// The partition that it leaves with.
    leaves_with: Option<Box<[u8]>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Record,
    /// With the quota, which the digest leaves out.
    Definition(u64),
    Native,
}

/// A definition of a partition, as it is in a backup.
pub struct Defined {
    pub db: u32,
    pub name: Vec<u8>,
    pub definition: maos_core::partition::Definition,
    pub expires_ms: Option<u64>,
}

/// All that a backup says.
#[derive(Default)]
pub struct Said {
    all: HashMap<Place, One>,
    /// Keys that hold no more than a lock.
    bare: u64,
    pub defined: Vec<Defined>,
    /// The highest database.
    pub last_db: u32,
    interner: Interner,
}

/// How a key differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Differs {
    /// The backup has it, the server has not.
    Missing,
    /// The server has it, the backup has not.
    More,
    /// Both have it, and not the same.
    Other,
}

impl Differs {
    pub fn word(self) -> &'static str {
        match self {
            Differs::Missing => "missing",
            Differs::More => "more",
            Differs::Other => "other",
        }
    }
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Compared {
    /// Keys that hold what they should: state, and the server's own types.
    pub keys: u64,
    /// How many of these are of the server's own types.
    pub natives: u64,
    /// Versions of these keys.
    pub versions: u64,
    /// What they take in a backup before compression.
    pub bytes: u64,
    pub partitions: u64,
    /// Keys that are not there because their time is over, or that of the partition that they leave with.
    pub expired: u64,
    /// Keys of the backup that held no more than a lock: they do not come back.
    pub bare: u64,
    /// Keys that got a version on top.
    pub renewed: u64,
    pub missing: u64,
    pub more: u64,
    pub other: u64,
    /// The first of those, by name.
    pub first: BTreeSet<(Place, Differs)>,
    /// The sum of the hashes of what has to be there, and of what is.
    pub said: u128,
    pub held: u128,
}

impl Compared {
    pub fn differ(&self) -> u64 {
        self.missing + self.more + self.other
    }

    fn note(&mut self, place: Place, how: Differs) {
        *match how {
            Differs::Missing => &mut self.missing,
            Differs::More => &mut self.more,
            Differs::Other => &mut self.other,
        } += 1;
        self.first.insert((place, how));
        if self.first.len() > NAMED {
            self.first.pop_last();
        }
    }
}

/// Keys that are not the same, but would be with a version on top: which one, and what they would come to.
#[derive(Default)]
pub struct Suspects(HashMap<Place, (Stamp, u128)>);

impl Suspects {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Said {
    /// Takes one entry of a backup.
    ///
    /// # Errors
    /// [`Damaged`] if it does not decode.
    pub fn take(&mut self, entry: &Entry<'_>) -> Result<(), Damaged> {
        self.last_db = self.last_db.max(entry.db);
        if let Content::Definition(bytes) = entry.content {
            self.defined.push(Defined {
                db: entry.db,
                name: entry.key.to_vec(),
                definition: v1::decode_definition(bytes)?,
                expires_ms: entry.expires_ms,
            });
        }
        match one(entry, None, &mut self.interner)? {
            None => self.bare += 1,
            // A key that a walk came by twice is restored as it is there first.
            Some(one) => drop(self.all.entry(place(entry)).or_insert(one)),
        }
        Ok(())
    }

    /// Compares it with what a server holds. Of the partitions whose quota was `raised` another one is not said to be one.
    pub fn compare(
        mut self,
        mut held: Said,
        raised: &[Vec<u8>],
        now_ms: u64,
    ) -> (Compared, Suspects) {
        let (mut compared, mut suspects) = (Compared::default(), Suspects::default());
        compared.bare = self.bare;
        let over = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
        let defined: Vec<_> = std::mem::take(&mut self.defined)
            .into_iter()
            .filter(|d| !over(d.expires_ms))
            .map(|d| d.name)
            .collect();
        // Of what was raised the quota says nothing.
        let sum = |(_, name): &Place, one: &One| match one.is {
            Is::Definition(quota) if !raised.iter().any(|raised| **raised == **name) => {
                one.digest.wrapping_add(quota.into())
            }
            _ => one.digest,
        };
        for (place, said) in self.all {
            let should = sum(&place, &said);
            let Some(is) = held.all.remove(&place) else {
                let left = |name: &[u8]| !defined.iter().any(|d| d == name);
                match over(said.expires_ms) || said.leaves_with.as_deref().is_some_and(left) {
                    true => compared.expired += u64::from(said.is_key()),
                    false => {
                        compared.said = compared.said.wrapping_add(should);
                        compared.note(place, Differs::Missing);
                    }
                }
                continue;
            };
            compared.said = compared.said.wrapping_add(should);
            let does = sum(&place, &is);
            if should == does {
                compared.held = compared.held.wrapping_add(does);
                compared.count(&said);
            } else if said.is == Is::Record && is.is == Is::Record && is.current > said.current {
                suspects.0.insert(place, (is.current, is.digest));
            } else {
                compared.held = compared.held.wrapping_add(does);
                compared.note(place, Differs::Other);
            }
        }
        for (place, is) in held.all {
            compared.held = compared.held.wrapping_add(sum(&place, &is));
            compared.note(place, Differs::More);
        }
        (compared, suspects)
    }
}

impl Suspects {
    /// Looks at an entry of the backup once more: whether it is what it should be with a version on top.
    ///
    /// # Errors
    /// [`Damaged`] if it does not decode.
    pub fn look(
        &mut self,
        entry: &Entry<'_>,
        compared: &mut Compared,
        interner: &mut Interner,
    ) -> Result<(), Damaged> {
        let place = place(entry);
        let Some((now, digest)) = self.0.remove(&place) else {
            return Ok(());
        };
        let said = one(entry, None, interner)?;
        let renewed = one(entry, Some(now), interner)?;
        match (said, renewed) {
            (Some(said), Some(renewed)) if renewed.digest == digest => {
                // It holds what it should: that goes into both sums.
                compared.held = compared.held.wrapping_add(said.digest);
                compared.count(&said);
                compared.renewed += 1;
            }
            _ => {
                compared.held = compared.held.wrapping_add(digest);
                compared.note(place, Differs::Other);
            }
        }
        Ok(())
    }
}

impl Compared {
    fn count(&mut self, one: &One) {
        match one.is {
            Is::Definition(_) => self.partitions += 1,
            is => {
                self.keys += 1;
                self.natives += u64::from(is == Is::Native);
                self.versions += one.versions;
                self.bytes += one.bytes;
            }
        }
    }
}

impl One {
    fn is_key(&self) -> bool {
        !matches!(self.is, Is::Definition(_))
    }
}

fn place(entry: &Entry<'_>) -> Place {
    (entry.db, entry.key.into())
}

/// What an entry comes to once it has been restored, with this version on top if there is one; `None`: a key that held no
/// more than a lock.
fn one(
    entry: &Entry<'_>,
    on_top: Option<Stamp>,
    interner: &mut Interner,
) -> Result<Option<One>, Damaged> {
    let mut one = One {
        digest: 0,
        current: Stamp::NONE,
        versions: 0,
        bytes: 0,
        expires_ms: entry.expires_ms,
        is: Is::Native,
        leaves_with: None,
    };
    let mut bytes = vec![];
    let content = match entry.content {
        Content::Record(encoded) => {
            let (mut record, share) = v1::decode_record(encoded, Bounds::HARD, interner)?;
            if record.is_bare() {
                return Ok(None);
            }
            one.is = Is::Record;
            one.current = record.current().stamp();
            one.versions = record.len() as u64;
            one.bytes = encoded.len() as u64;
            one.leaves_with = share.filter(|s| s.dies).map(|s| s.name.into());
            if let Some(now) = on_top {
                let was = one.current;
                Restored { was, now }.apply(&mut record);
            }
            record.unlock();
            v1::encode_record(&record, share, &mut bytes);
            Content::Record(&bytes)
        }
        Content::Definition(encoded) => {
            let mut definition = v1::decode_definition(encoded)?;
            one.is = Is::Definition(definition.quota);
            (definition.stamp, definition.quota) = (Stamp(1), 1);
            bytes = v1::encode_definition(&definition);
            Content::Definition(&bytes)
        }
        Content::Native(native) => {
            let elements = native.elements.iter();
            one.bytes = elements.map(|element| element.len() as u64).sum();
            entry.content
        }
        Content::Unchanged(_) => entry.content,
    };
    one.digest = Entry { content, ..*entry }.digest(interner)?;
    Ok(Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maos_core::codec::backup::{ElementsBuf, Native, Type};
    use maos_core::model::Model;

    const NOW_US: u64 = 1_790_000_000_000_000;
    const NOW_MS: u64 = NOW_US / 1000 + 3_600_000;

    /// What comes of these conversations, each in a store of its own, and native keys beside them.
    fn said(lines: &[&str], natives: &[(&str, &str)], change: impl Fn(&mut Entry<'_>)) -> Said {
        let mut m = Model::at(NOW_US);
        for line in lines {
            m.now_us += 1_000_000;
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            m.run(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        let mut said = Said::default();
        let mut take = |key: &[u8], expires_ms: Option<u64>, content: Content<'_>| {
            let mut entry = Entry {
                db: 0,
                key,
                expires_ms,
                content,
            };
            change(&mut entry);
            said.take(&entry).unwrap();
        };
        for (name, held) in m.defined() {
            let bytes = v1::encode_definition(&held.definition);
            take(name, held.expires_ms, Content::Definition(&bytes));
        }
        for (key, held) in m.keys() {
            let mut bytes = vec![];
            v1::encode_record(&held.record, m.share(&held.record), &mut bytes);
            take(key, held.expires_ms, Content::Record(&bytes));
        }
        for (key, value) in natives {
            let mut elements = ElementsBuf::default();
            elements.push(value.as_bytes());
            let native = Native {
                kind: Type::String,
                read_ms: 5,
                elements: elements.elements(),
            };
            take(key.as_bytes(), None, Content::Native(native));
        }
        said
    }

    fn same(_: &mut Entry<'_>) {}

    const LINES: [&str; 6] = [
        "MAOS.PARTITION CREATE p BYTES 50000 PREFIX p:",
        "MAOS.SET a 1 BY planner",
        "MAOS.SET b 1 META {\"n\":1}",
        "MAOS.SET b 2",
        "MAOS.SET p:c 1",
        "MAOS.DEL a",
    ];

    fn differs(said: Said, held: Said) -> Vec<(String, Differs)> {
        let (compared, suspects) = said.compare(held, &[], NOW_MS);
        assert!(suspects.is_empty());
        assert_eq!(compared.differ() as usize, compared.first.len());
        assert_eq!(compared.said == compared.held, compared.differ() == 0);
        let name =
            |((_, key), how): &(Place, Differs)| (String::from_utf8(key.to_vec()).unwrap(), *how);
        compared.first.iter().map(name).collect()
    }

    #[test]
    fn what_is_the_same_is_counted() {
        let natives = [("n", "v")];
        let (said, held) = (said(&LINES, &natives, same), said(&LINES, &natives, same));
        let (compared, suspects) = said.compare(held, &[], NOW_MS);
        assert!(suspects.is_empty() && compared.first.is_empty());
        assert_eq!((compared.keys, compared.natives), (4, 1));
        assert_eq!((compared.versions, compared.partitions), (5, 1));
        assert_eq!(compared.said, compared.held);
        assert!(compared.said != 0 && compared.bytes > 0);
    }

    #[test]
    fn one_that_lacks_one_that_is_more_and_one_that_is_other_are_found() {
        let natives = [("n", "v")];
        let all = || said(&LINES, &natives, same);
        let without = |key: &'static [u8]| {
            let mut said = all();
            assert!(said.all.remove(&(0, key.into())).is_some());
            said
        };
        let name = |key: &str, how| vec![(key.to_owned(), how)];
        for key in ["a", "b", "n", "p", "p:c"] {
            let found = differs(all(), without(key.as_bytes()));
            assert_eq!(found, name(key, Differs::Missing));
            let found = differs(without(key.as_bytes()), all());
            assert_eq!(found, name(key, Differs::More));
        }
        // Another value, author, metadata, version below the current one, element, quota, expiry, database.
        for (n, other, key) in [
            (2, "MAOS.SET b 1 META {\"n\":2}", "b"),
            (2, "MAOS.SET b 3 META {\"n\":1}", "b"),
            (3, "MAOS.SET b 2 BY me", "b"),
            (4, "MAOS.SET p:c 2", "p:c"),
            (0, "MAOS.PARTITION CREATE p BYTES 50001 PREFIX p:", "p"),
            (
                0,
                "MAOS.PARTITION CREATE p BYTES 50000 PREFIX p: HISTORY 3",
                "p",
            ),
        ] {
            let mut lines = LINES;
            lines[n] = other;
            let found = differs(all(), said(&lines, &natives, same));
            assert_eq!(found, name(key, Differs::Other), "{other}");
        }
        let found = differs(all(), said(&LINES, &[("n", "w")], same));
        assert_eq!(found, name("n", Differs::Other));
        let expires = |entry: &mut Entry<'_>| {
            if entry.key == b"b" {
                entry.expires_ms = Some(NOW_MS + 5);
            }
        };
        let found = differs(all(), said(&LINES, &natives, expires));
        assert_eq!(found, name("b", Differs::Other));
        let elsewhere = |entry: &mut Entry<'_>| entry.db = u32::from(entry.key == b"b");
        let found = differs(all(), said(&LINES, &natives, elsewhere));
        let both = [Differs::Missing, Differs::More].map(|how| ("b".to_owned(), how));
        assert_eq!(found, both);
        // It is the same whoever is who.
        let (compared, _) = Said::default().compare(all(), &[], NOW_MS);
        assert_eq!((compared.more, compared.said), (5, 0));
    }

    #[test]
    fn what_a_restore_makes_anew_is_no_difference() {
        // A lock does not come back, a definition gets a version of its own.
        let lines = [
            &LINES[..],
            &["MAOS.LOCK b me 60000", "MAOS.LOCK bare me 60000"],
        ]
        .concat();
        let (all, held) = (said(&lines, &[], same), said(&LINES, &[], same));
        assert_eq!((all.bare, all.all.len()), (1, 4));
        assert_eq!(differs(all, held), []);
        let mut m = Model::at(NOW_US + 77);
        m.run(&[
            b"MAOS.PARTITION",
            b"CREATE",
            b"p",
            b"BYTES",
            b"50000",
            b"PREFIX",
            b"p:",
        ])
        .unwrap();
        let bytes = v1::encode_definition(&m.defined()[&b"p"[..]].definition);
        let again = move |entry: &mut Entry<'_>| {
            if let Content::Definition(_) = entry.content {
                entry.content = Content::Definition(bytes.clone().leak());
            }
        };
        assert_eq!(
            differs(said(&LINES, &[], same), said(&LINES, &[], again)),
            []
        );
        // Another quota, if it was raised.
        let mut lines = LINES;
        lines[0] = "MAOS.PARTITION CREATE p BYTES 70000 PREFIX p:";
        let held = said(&lines, &[], same);
        let (compared, _) = said(&LINES, &[], same).compare(held, &[b"p".to_vec()], NOW_MS);
        assert_eq!((compared.differ(), compared.partitions), (0, 1));
    }

    #[test]
    fn whose_time_is_over_may_be_missing_and_nobody_else() {
        let at = |ms: u64| {
            move |entry: &mut Entry<'_>| {
                if entry.key == b"b" {
                    entry.expires_ms = Some(ms);
                }
            }
        };
        let without_b = || {
            let mut held = said(&LINES, &[], same);
            held.all.remove(&(0, b"b"[..].into()));
            held
        };
        let (compared, _) = said(&LINES, &[], at(NOW_MS)).compare(without_b(), &[], NOW_MS);
        assert_eq!(
            (compared.differ(), compared.expired, compared.keys),
            (0, 1, 2)
        );
        assert_eq!(compared.said, compared.held);
        let (compared, _) = said(&LINES, &[], at(NOW_MS + 1)).compare(without_b(), &[], NOW_MS);
        assert_eq!((compared.missing, compared.expired), (1, 0));
        // Of a partition that they leave with.
        let lines = [
            "MAOS.PARTITION CREATE t BYTES 50000 TYPE temporary TTL 5000 PREFIX t:",
            "MAOS.SET t:1 v",
        ];
        let (compared, _) = said(&lines, &[], same).compare(Said::default(), &[], NOW_MS);
        assert_eq!((compared.differ(), compared.expired), (0, 1));
        let (compared, _) = said(&lines, &[], same).compare(Said::default(), &[], NOW_US / 1000);
        assert_eq!(compared.missing, 2);
    }

    #[test]
    fn a_version_on_top_is_the_same_and_nothing_else_is() {
        let mut m = Model::at(NOW_US);
        m.run(&[b"MAOS.SET", b"k", b"1", b"BY", b"me"]).unwrap();
        let first = m.keys()[&b"k"[..]].record.clone();
        let was = first.current().stamp();
        let now = Stamp(was.0 + 9);
        let encoded = |record: &maos_core::record::Record| {
            let mut bytes = vec![];
            v1::encode_record(record, None, &mut bytes);
            bytes
        };
        let mut renewed = first.clone();
        Restored { was, now }.apply(&mut renewed);
        // Another value on top.
        m.now_us += 5;
        m.run(&[b"MAOS.SET", b"k", b"2", b"BY", b"me"]).unwrap();
        let other = m.keys()[&b"k"[..]].record.clone();
        for (held, renewed, differ) in [(&renewed, 1, 0), (&other, 0, 1)] {
            let bytes = [encoded(&first), encoded(held)];
            let entry = |bytes| Entry {
                db: 0,
                key: b"k",
                expires_ms: None,
                content: Content::Record(bytes),
            };
            let [mut said, mut held] = [Said::default(), Said::default()];
            said.take(&entry(&bytes[0])).unwrap();
            held.take(&entry(&bytes[1])).unwrap();
            let (mut compared, mut suspects) = said.compare(held, &[], NOW_MS);
            assert!(!suspects.is_empty());
            let interner = &mut Interner::default();
            suspects
                .look(&entry(&bytes[0]), &mut compared, interner)
                .unwrap();
            assert_eq!((compared.renewed, compared.differ()), (renewed, differ));
            assert_eq!(compared.said == compared.held, differ == 0);
        }
    }

    #[test]
    fn only_the_first_are_named() {
        let lines: Vec<_> = (0..30).map(|n| format!("MAOS.SET k{n:02} v")).collect();
        let lines: Vec<_> = lines.iter().map(|line| &line[..]).collect();
        let (compared, _) = said(&lines, &[], same).compare(Said::default(), &[], NOW_MS);
        assert_eq!((compared.missing, compared.first.len()), (30, NAMED));
        let last = compared.first.last().map(|((_, key), _)| key.to_vec());
        assert_eq!(last.as_deref(), Some(&b"k09"[..]));
    }
}
