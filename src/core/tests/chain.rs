//! Chains of incremental backups: what the newest link holds is what was there at its instant, whichever link has it; a link
//! that is another one than it should be is none.

use std::collections::BTreeMap;

use maos_core::codec::backup::{Content, Entry, Head, Parent, Reader, Sealer, Writer};
use maos_core::codec::chain::{each, of_link, ChainError, Heads, LINKS_MAX};
use maos_core::codec::v1::encode_record;
use maos_core::model::Model;
use maos_core::wire::backup::{id_in_file_name, BackupId};
use maos_core::Stamp;

const NOW_US: u64 = 1_790_000_000_000_000;

fn head(n: u8) -> Head {
    Head {
        id: [n; 16],
        name: "link".into(),
        node: (*b"node-1").into(),
        instant: Stamp(NOW_US + u64::from(n)),
        prefixes: vec![(*b"app:").into()],
        parent: (n > 1).then(|| Parent {
            id: [n - 1; 16],
            instant: Stamp(NOW_US + u64::from(n) - 1),
        }),
        natives: false,
        made_with: "0.1.0".into(),
    }
}

/// What a link says of a key.
#[derive(Clone, Copy)]
enum Says {
    Holds(&'static str),
    Unchanged(&'static str),
    UnchangedSince(u64),
}

/// The record of a key that got this value: the same each time, with the same version.
fn record(value: &str) -> (Vec<u8>, Stamp) {
    let number: u64 = value.bytes().map(u64::from).sum();
    let mut m = Model::at(NOW_US - 1_000_000 + number);
    m.run(&[b"MAOS.SET", b"k", value.as_bytes()]).unwrap();
    let record = &m.keys()[&b"k"[..]].record;
    let mut bytes = vec![];
    encode_record(record, None, &mut bytes);
    (bytes, record.current().stamp())
}

fn link(n: u8, says: &[(&str, Says, Option<u64>)]) -> Vec<u8> {
    let mut writer = Writer::create(vec![], head(n), Sealer::plain()).unwrap();
    for (key, what, expires_ms) in says {
        let bytes;
        let content = match what {
            Says::Holds(value) => {
                bytes = record(value).0;
                Content::Record(&bytes)
            }
            Says::Unchanged(value) => Content::Unchanged(record(value).1),
            Says::UnchangedSince(stamp) => Content::Unchanged(Stamp(*stamp)),
        };
        let entry = Entry {
            db: 0,
            key: key.as_bytes(),
            expires_ms: *expires_ms,
            content,
        };
        writer.entry(&entry).unwrap();
    }
    writer.finish().unwrap().0
}

type Held = BTreeMap<String, (Vec<u8>, Option<u64>)>;

/// What the first of these files holds, which goes on from the others.
fn held(files: &[&[u8]]) -> Result<Held, ChainError> {
    let mut all = BTreeMap::new();
    let open = |n: usize| {
        let read = Reader::open(files[n], None);
        read.map_err(|why| of_link(n, BackupId([0; 16]), why))
    };
    each(files.len(), open, &mut |entry| {
        let Content::Record(bytes) = entry.content else {
            panic!("{entry:?}");
        };
        let key = String::from_utf8(entry.key.to_vec()).unwrap();
        let before = all.insert(key, (bytes.to_vec(), entry.expires_ms));
        assert_eq!(before, None, "once");
        Ok(())
    })?;
    Ok(all)
}

fn of(all: &[(&str, &str, Option<u64>)]) -> Held {
    let one = |(key, value, expires_ms): &(&str, &str, Option<u64>)| {
        ((*key).to_owned(), (record(value).0, *expires_ms))
    };
    all.iter().map(one).collect()
}

#[test]
fn the_newest_wins_and_what_is_not_named_is_gone() {
    use Says::{Holds, Unchanged};
    let one = link(
        1,
        &[
            ("app:gone", Holds("g1"), None),
            ("app:a", Holds("a1"), None),
            ("app:b", Holds("b1"), Some(5)),
            ("app:c", Holds("c1"), None),
            ("app:again", Holds("x1"), None),
        ],
    );
    let two = link(
        2,
        &[
            ("app:a", Unchanged("a1"), None),
            ("app:b", Unchanged("b1"), Some(6)),
            ("app:c", Holds("c2"), None),
        ],
    );
    let three = link(
        3,
        &[
            // It was removed, and made anew.
            ("app:again", Holds("x3"), None),
            ("app:a", Unchanged("a1"), None),
            ("app:b", Unchanged("b1"), None),
            ("app:c", Unchanged("c2"), Some(9)),
            ("app:d", Holds("d3"), None),
        ],
    );
    assert_eq!(
        held(&[&three, &two, &one]).unwrap(),
        of(&[
            ("app:a", "a1", None),
            ("app:again", "x3", None),
            // An expiry is that of the newest link.
            ("app:b", "b1", None),
            ("app:c", "c2", Some(9)),
            ("app:d", "d3", None),
        ])
    );
    assert_eq!(
        held(&[&two, &one]).unwrap(),
        of(&[
            ("app:a", "a1", None),
            ("app:b", "b1", Some(6)),
            ("app:c", "c2", None),
        ])
    );
    assert_eq!(held(&[&one]).unwrap().len(), 5);
    // Without one of them it lacks keys, and says how many; another version is no good either.
    let lacks = |files: &[&[u8]], n: u64| match held(files) {
        Err(ChainError::Lacks(keys)) => assert_eq!(keys, n),
        other => panic!("{other:?}"),
    };
    lacks(&[&three], 3);
    lacks(&[&three, &two], 2);
    let other = link(
        3,
        &[("app:a", Says::UnchangedSince(record("a1").1 .0 + 1), None)],
    );
    let told = held(&[&other, &two, &one]).unwrap_err();
    assert!(matches!(told, ChainError::OtherVersion), "{told}");
    // What is wrong with a link says which one it is.
    let told = held(&[&two, &one[..one.len() - 1]])
        .unwrap_err()
        .to_string();
    assert!(
        told.contains(&"01".repeat(16)) && told.contains("before its end"),
        "{told}"
    );
    let told = held(&[&one[..one.len() - 1]]).unwrap_err().to_string();
    assert!(!told.contains("goes on from"), "{told}");
}

#[test]
fn a_link_is_what_the_one_after_it_says() {
    let id = |n: u8| BackupId([n; 16]);
    let mut heads = Heads::of(id(3));
    assert_eq!(heads.wanted(), Some(id(3)));
    let foreign = |heads: &Heads, head: Head, told: &str| match heads.clone().take(head) {
        Err(error @ ChainError::Foreign { .. }) => {
            let text = error.to_string();
            assert!(text.contains(told), "{text}");
        }
        other => panic!("{told}: {other:?}"),
    };
    foreign(&heads, head(2), &id(3).to_string());
    heads.take(head(3)).unwrap();
    assert_eq!(heads.wanted(), Some(id(2)));
    foreign(&heads, head(3), "another id");
    let instant = Stamp(NOW_US + 1);
    let other = Head { instant, ..head(2) };
    foreign(&heads, other, "another instant");
    for prefixes in [vec![], vec![(*b"app").into()]] {
        let other = Head {
            prefixes,
            ..head(2)
        };
        foreign(&heads, other, "another choice of prefixes");
    }
    // A link of another node is good: the server goes on from those too.
    let node = (*b"node-2").into();
    heads.take(Head { node, ..head(2) }).unwrap();
    heads.take(head(1)).unwrap();
    assert_eq!((heads.wanted(), heads.found().len()), (None, 3));
    let all: Vec<_> = heads.found().iter().map(|head| head.id[0]).collect();
    assert_eq!(all, [3, 2, 1]);
}

#[test]
fn a_chain_has_an_end() {
    let no_end = |heads: &mut Heads, head: Head| {
        let told = heads.take(head).unwrap_err();
        assert!(matches!(told, ChainError::NoChain(_)), "{told}");
    };
    // A parent that is not older.
    let loops = Head {
        parent: Some(Parent {
            id: [9; 16],
            instant: head(2).instant,
        }),
        ..head(2)
    };
    no_end(&mut Heads::of(BackupId([2; 16])), loops);
    // More links than there can be.
    let nth = |n: usize| {
        let id = |n: usize| (n as u128 + 1).to_be_bytes();
        let at = |n: usize| Stamp(NOW_US + 5_000 - n as u64);
        Head {
            id: id(n),
            instant: at(n),
            parent: Some(Parent {
                id: id(n + 1),
                instant: at(n + 1),
            }),
            ..head(1)
        }
    };
    let mut heads = Heads::of(BackupId(nth(0).id));
    for n in 0..LINKS_MAX {
        heads.take(nth(n)).unwrap();
    }
    no_end(&mut heads, nth(LINKS_MAX));
}

#[test]
fn the_name_of_a_file_has_its_id() {
    let id = "0123456789abcdef0123456789abcdef";
    for name in ["nightly", "a-b-c", "x_1"] {
        let found = id_in_file_name(&format!("{name}-{id}.maosbackup"));
        assert_eq!(found, BackupId::parse(id.as_bytes()));
    }
    for name in [
        format!("{id}.maosbackup"),
        format!("-{id}.maosbackup"),
        format!(".a-{id}.maosbackup"),
        format!("a-{id}"),
        format!("a-{id}.part"),
        format!("A-{id}.maosbackup"),
        format!("a-{}.maosbackup", &id[1..]),
    ] {
        assert_eq!(id_in_file_name(&name), None, "{name}");
    }
}
