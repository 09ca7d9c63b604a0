//! The command table holds together, and everything made from it agrees with it.

use std::path::{Path, PathBuf};

use maos_core::config::{self, LEASE_MAX_MS};
use maos_core::event::Event;
use maos_core::glob::Glob;
use maos_core::wire::backup::*;
use maos_core::wire::lock::*;
use maos_core::wire::partition::*;
use maos_core::wire::range::*;
use maos_core::wire::reference::{markdown, usage, COMMANDS};
use maos_core::wire::rollback::RollbackTo;
use maos_core::wire::spec::{Access, ArgKind, CommandSpec, Keys, Tok};
use maos_core::wire::state::*;
use maos_core::wire::txn::*;
use maos_core::wire::update::{self, How, IncrBy, Merge, MergeReply, Patch};
use maos_core::wire::watch::*;
use maos_core::wire::{Arg, Decoded, Reply, Request, Value};
use maos_core::{Code, Refusal, Stamp};
use proptest::prelude::*;

#[test]
fn entries_are_consistent() {
    let mut names: Vec<_> = COMMANDS.iter().map(|s| s.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), COMMANDS.len(), "a name stands twice");
    for s in COMMANDS {
        let name = s.name;
        assert!(
            name.starts_with("MAOS.") && name == name.to_ascii_uppercase(),
            "{name}"
        );
        assert!(
            !s.summary.ends_with('.') && s.reply.ends_with('.'),
            "{name}"
        );
        let flags: Vec<_> = s.flags.split(' ').collect();
        assert_eq!(s.is_write(), flags.contains(&"write"), "{name}");
        assert_eq!(!s.is_write(), flags.contains(&"readonly"), "{name}");
        assert_eq!(flags.contains(&"fast"), s.acl.contains("fast"), "{name}");
        assert!(
            s.acl
                .starts_with(if s.is_write() { "write" } else { "read" }),
            "{name}"
        );
        let least = 1
            + usize::from(s.names().1.is_some())
            + s.args.iter().map(fewest).sum::<usize>()
            + s.options
                .iter()
                .flat_map(|o| o.iter())
                .map(fewest)
                .sum::<usize>();
        assert_eq!(s.arity.unsigned_abs() as usize, least, "{name}: arity");
        let exact = s.all_args().all(|a| !a.optional && !a.multiple);
        assert_eq!(s.arity > 0, exact, "{name}: exact arity");
        let first = s.args.first().map(|a| a.kind);
        let key_first = matches!(first, Some(ArgKind::Key));
        let names_no_key = matches!(
            first,
            None | Some(ArgKind::Pattern | ArgKind::Beginning | ArgKind::Backup)
        );
        assert_eq!(s.keys == Keys::None, names_no_key, "{name}: key spec");
        assert_eq!(
            matches!(s.keys, Keys::One(_)),
            key_first,
            "{name}: key spec"
        );
        assert!(!s.internal && s.complexity.starts_with("O("), "{name}");
    }
}

/// How many words an argument needs at least.
fn fewest(arg: &Arg) -> usize {
    if arg.optional {
        return 0;
    }
    let own = usize::from(arg.token.is_some());
    own + match arg.kind {
        ArgKind::Word => 0,
        ArgKind::OneOf(of) => of.iter().map(fewest).min().unwrap_or(0),
        ArgKind::Block(of) => of.iter().map(fewest).sum(),
        _ => 1,
    }
}

#[test]
fn usage_lines_are_in_the_notation_of_redis() {
    let of = |name: &str| usage(COMMANDS.iter().find(|s| s.name == name).unwrap());
    assert_eq!(
        of("MAOS.GET"),
        "MAOS.GET key [VERSION version | AT unix-time-milliseconds] [WITHVERSION | FULL]"
    );
    assert_eq!(
        of("MAOS.MSET"),
        "MAOS.MSET numkeys key value [key value ...] [BY agent] [META json] [REQID id] [TOKEN token [TOKEN token ...]] [FENCE name number] [PARTITION partition]"
    );
    assert_eq!(
        of("MAOS.ROLLBACK"),
        "MAOS.ROLLBACK key <VERSION version | AT unix-time-milliseconds> [BY agent] [META json] [REQID id] [IFVERSION version] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL] [TOKEN token] [FENCE name number] [PARTITION partition]"
    );
}

/// A valid sample of an argument's words.
fn words(arg: &Arg, out: &mut Vec<Vec<u8>>) {
    if let Some(tok) = arg.token {
        out.push(tok.word().to_ascii_lowercase().into_bytes());
    }
    match arg.kind {
        ArgKind::Word => {}
        ArgKind::OneOf(of) => words(&of[0], out),
        ArgKind::Block(of) => of
            .iter()
            .filter(|a| !a.optional)
            .for_each(|a| words(a, out)),
        ArgKind::Patch => out.push(b"[]".to_vec()),
        ArgKind::Number => out.push(b"1.5".to_vec()),
        ArgKind::Pointer => out.push(b"/a".to_vec()),
        ArgKind::Json => out.push(b"{\"a\":1}".to_vec()),
        ArgKind::Beginning => out.push(b"app:".to_vec()),
        ArgKind::Key | ArgKind::KeyAgain | ArgKind::KeyLike => out.push(b"key".to_vec()),
        ArgKind::Pattern => out.push(b"app:*".to_vec()),
        // Both a name and an id.
        ArgKind::Backup => out.push(b"0123456789abcdef0123456789abcdef".to_vec()),
        ArgKind::Events => out.push(b"created,expired".to_vec()),
        ArgKind::Value | ArgKind::Name(_) | ArgKind::Owner | ArgKind::Partition => {
            out.push(b"text".to_vec());
        }
        ArgKind::NumKeys => out.push(b"1".to_vec()),
        ArgKind::Integer(..)
        | ArgKind::Cursor
        | ArgKind::Version
        | ArgKind::VersionRef
        | ArgKind::Token
        | ArgKind::Lease => out.push(b"7".to_vec()),
        ArgKind::UnixMillis | ArgKind::UnixSeconds => out.push(b"1790000000000".to_vec()),
    }
}

fn parses(spec: &CommandSpec, args: &[Vec<u8>]) -> Result<(), Refusal> {
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    macro_rules! dispatch {
        ($($kind:ident $name:ident),*) => {
            $(if spec.name == <$name<'_> as Request<'_>>::SPEC.name {
                return <$name<'_> as Request<'_>>::parse(&args).map(drop);
            })*
        };
    }
    maos_core::for_each_command!(dispatch);
    unreachable!("{}", spec.name)
}

#[test]
fn the_parser_takes_what_the_table_offers_and_nothing_else() {
    for s in COMMANDS {
        let mut required = vec![];
        s.args.iter().for_each(|a| words(a, &mut required));
        let options: Vec<&Arg> = s.all_args().skip(s.args.len()).collect();
        for a in options.iter().filter(|a| !a.optional) {
            words(a, &mut required);
        }
        parses(s, &required).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        // Everything at once, as far as it goes together.
        let mut all = required.clone();
        for a in options.iter().filter(|a| a.optional && !a.reserved) {
            words(a, &mut all);
        }
        parses(s, &all).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        // Where arguments are repeated the first option ends them.
        let mut before = required.clone();
        if s.args.iter().any(|a| matches!(a.kind, ArgKind::Pattern)) {
            let word = options.iter().find(|a| matches!(a.kind, ArgKind::Word));
            words(word.expect("one that is a word alone"), &mut before);
        }
        for tok in Tok::ALL {
            let mut with = before.clone();
            with.push(tok.word().into());
            let offered = s.tokens() & tok.bit() != 0 && !s.is_reserved(*tok);
            let refusal = parses(s, &with);
            let unknown = refusal.as_ref().is_err_and(|e| {
                e.text.contains("unknown option") || e.text.contains("not offered")
            });
            assert_eq!(unknown, !offered, "{} {}: {refusal:?}", s.name, tok.word());
        }
        for n in 0..required.len() {
            assert!(
                parses(s, &required[..n]).is_err(),
                "{} with {n} arguments",
                s.name
            );
        }
        let mut more = all.clone();
        more.push(b"more".to_vec());
        assert_eq!(parses(s, &more).unwrap_err().code, Code::Err, "{}", s.name);
    }
}

// --- both directions -------------------------------------------------------------------------

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..20)
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (0..=Stamp::MAX.0).prop_map(Stamp)
}

fn version_ref() -> impl Strategy<Value = i64> {
    let max = Stamp::MAX.0 as i64;
    (-max..=max).prop_filter("0 is no version", |n| *n != 0)
}

type Owned = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<Stamp>,
    Expire,
    Vec<Stamp>,
    Option<(Vec<u8>, u64)>,
    Option<Vec<u8>>,
);

fn options() -> impl Strategy<Value = Owned> {
    let expire = prop_oneof![
        Just(Expire::Unsaid),
        Just(Expire::Keep),
        (1..i64::MAX as u64).prop_map(Expire::In),
        (1..i64::MAX as u64).prop_map(Expire::At),
    ];
    use prop::option::of;
    let tokens = prop::collection::vec(token(), 0..4);
    let fence = of((text(), 0..=i64::MAX as u64));
    (
        of(text()),
        of(text()),
        of(text()),
        of(stamp()),
        expire,
        tokens,
        fence,
        of(text()),
    )
}

fn token() -> impl Strategy<Value = Stamp> {
    (1..=Stamp::MAX.0).prop_map(Stamp)
}

fn lent(o: &Owned) -> WriteOptions<'_> {
    WriteOptions {
        by: o.0.as_deref(),
        meta: o.1.as_deref(),
        reqid: o.2.as_deref(),
        if_version: o.3,
        expire: o.4,
        tokens: o.5.iter().copied().collect(),
        fence: o.6.as_ref().map(|(name, token)| (&name[..], *token)),
        partition: o.7.as_deref(),
    }
}

fn same<'a, R: Request<'a> + PartialEq + std::fmt::Debug>(request: &R, encoded: &'a [Vec<u8>]) {
    let args: Vec<&'a [u8]> = encoded.iter().map(Vec::as_slice).collect();
    assert_eq!(&R::parse(&args).unwrap(), request);
}

proptest! {
    #[test]
    fn a_request_that_is_sent_is_understood(
        key in text(), value in text(), o in options(), version in stamp(), n in version_ref(),
        ms in 0..Stamp::MAX.millis(), flags in any::<[bool; 3]>(), keys in prop::collection::vec((text(), stamp(), text()), 1..5),
    ) {
        let (key, value, many) = (&key[..], &value[..], lent(&o));
        let patterns: Vec<_> = keys.iter().map(|(p, ..)| [b"k", &p[..]].concat()).collect();
        let patterns: Option<Vec<_>> = patterns.iter().map(|p| Glob::new(p).ok()).collect();
        if let Some(patterns) = patterns {
            let watch = Watch {
                patterns,
                since: flags[0].then_some(Mark { at: version, reign: if flags[1] { version } else { Stamp::NONE } }),
                count: flags[1].then_some(1 + ms % 10_000),
                block_ms: flags[2].then_some(ms % 3_600_001),
                types: flags[0].then_some(1 + (ms % 0x1fff) as u16),
                values: flags[1],
                not_by: many.by.map(std::borrow::Cow::Borrowed),
            };
            same(&watch, &watch.encode());
        }
        let back = RollbackTo { prefix: value, at_ms: ms, dry_run: flags[0], by: many.by };
        same(&back, &back.encode());
        let options = WriteOptions { tokens: many.tokens.iter().copied().take(1).collect(), ..many.clone() };
        let select = if flags[0] { Select::Version(n) } else { Select::At(ms) };
        let form = match (flags[1], flags[2]) {
            (true, _) => Form::Full,
            (_, true) => Form::WithVersion,
            _ => Form::Value,
        };
        let origin = WriteOptions { if_version: None, expire: Expire::Unsaid, ..many };
        let unconditional = WriteOptions { if_version: None, ..options.clone() };
        let r = Set { key, value, options: options.clone() };
        same(&r, &r.encode());
        let r = Cas { key, version, value, options: unconditional };
        same(&r, &r.encode());
        let r = Get { key, select: flags[0].then_some(select), form };
        same(&r, &r.encode());
        let r = Del { key, options: options.clone() };
        same(&r, &r.encode());
        let r = MSet { pairs: keys.iter().map(|(k, _, v)| (&k[..], &v[..])).collect(), options: origin.clone() };
        same(&r, &r.encode());
        let r = MCas { items: keys.iter().map(|(k, s, v)| (&k[..], *s, &v[..])).collect(), options: origin.clone() };
        same(&r, &r.encode());
        let r = MGet { keys: keys.iter().map(|(k, _, _)| &k[..]).collect(), form };
        same(&r, &r.encode());
        let r = History { key, from: flags[0].then_some(n), to: flags[1].then_some(n), count: flags[2].then_some(ms + 1), desc: flags[0], values: flags[1] };
        same(&r, &r.encode());
        let r = Diff { key, from: n, to: -n };
        same(&r, &r.encode());
        let r = Rollback { key, select, options };
        same(&r, &r.encode());
        let (owner, token, ttl_ms) = (value, Stamp(version.0.max(1)), 1 + ms % LEASE_MAX_MS.unsigned_abs());
        let note = o.0.as_deref();
        let r = Lock { key, owner, ttl_ms, shared: flags[0], advisory: flags[1], wait_ms: ms % 3_600_001, note };
        same(&r, &r.encode());
        let r = MLock { keys: keys.iter().map(|(k, _, _)| &k[..]).collect(), owner, ttl_ms, wait_ms: ms % 3_600_001, note };
        same(&r, &r.encode());
        let r = Unlock { key, token };
        same(&r, &r.encode());
        let r = Renew { key, token, ttl_ms };
        same(&r, &r.encode());
        let r = Locks { key };
        same(&r, &r.encode());
        let longer = [key, b"+"].concat();
        for strategy in [update::Strategy::Reject, update::Strategy::Lww, update::Strategy::Fww, update::Strategy::Merge, update::Strategy::Function(value)] {
            let options = WriteOptions { if_version: None, tokens: [token].into_iter().collect(), ..origin.clone() };
            let r = Merge { key, base: version, value, strategy: Some(strategy), ts: flags[0].then_some(ms), options };
            same(&r, &r.encode());
            let terms = Terms {
                bytes: Some(1 + ms), class: Class::at(n.unsigned_abs() as usize % 5), agent: o.0.as_deref(),
                prefixes: flags[0].then(|| vec![key, &longer]), ttl_ms: flags[1].then_some(ms), on_full: flags[2].then_some(OnFull::Evict),
                on_conflict: flags[0].then_some(strategy), history: flags[1].then_some(7), max_age_ms: flags[2].then_some(ms), max_value: flags[0].then_some(9),
            };
            let r = PartitionCreate { name: value, terms: terms.clone() };
            same(&r, &r.encode());
            let prefixes = if flags[2] { Some(vec![]) } else { terms.prefixes.clone() };
            let r = PartitionAlter { name: value, terms: Terms { prefixes, ..terms } };
            same(&r, &r.encode());
        }
        let r = PartitionDrop { name: key, force: flags[0] };
        same(&r, &r.encode());
        let r = PartitionInfo { name: key, audit: flags[0] };
        same(&r, &r.encode());
        let r = PartitionList { agent: o.0.as_deref() };
        same(&r, &r.encode());
        let r = PartitionPool::default();
        same(&r, &r.encode());
        let r = PartitionHelp::default();
        same(&r, &r.encode());
        let id = BackupId((u128::from(ms) << 64 | u128::from(version.0)).to_be_bytes());
        let prefixes: Vec<_> = keys.iter().map(|(k, _, _)| &k[..]).collect();
        let r = BackupCreate { name: b"nightly-1", prefixes: prefixes.clone(), since: flags[0].then_some(id), native: flags[1] };
        same(&r, &r.encode());
        let r = BackupRestore {
            id, prefixes: if flags[0] { prefixes[..1].to_vec() } else { prefixes }, into: flags[0].then_some(value), dry_run: flags[1], replace: flags[2],
        };
        same(&r, &r.encode());
        same(&BackupStatus::new(id), &BackupStatus::new(id).encode());
        same(&BackupVerify::new(id), &BackupVerify::new(id).encode());
        same(&BackupCancel::new(id), &BackupCancel::new(id).encode());
        same(&BackupDelete::new(id), &BackupDelete::new(id).encode());
        same(&BackupList::default(), &BackupList::default().encode());
        let mut all: Vec<&[u8]> = keys.iter().map(|(k, _, _)| &k[..]).collect();
        all.sort_unstable();
        all.dedup();
        let tests = [Test::Version(version), Test::Absent, Test::Exists, Test::Value(value), Test::Token(token)];
        let bound = flags[0].then_some("1.50");
        let actions = [
            Action::Set(value, origin.expire), Action::Set(key, o.4), Action::Del, Action::Patch(value), Action::Get,
            Action::IncrBy { delta: "-7", path: flags[1].then_some("/a~1b"), min: bound, max: flags[2].then_some("9") },
        ];
        let operation = |(n, action)| Operation { key: n % all.len(), action };
        let r = Txn {
            conditions: tests.into_iter().enumerate().map(|(n, test)| Condition { key: n % all.len(), test }).collect(),
            then: actions.into_iter().enumerate().map(operation).collect(),
            otherwise: vec![operation((3, Action::Get))],
            options: origin,
            keys: all.clone(),
        };
        same(&r, &r.encode());
    }

    #[test]
    fn a_reply_that_is_made_is_read_in_both_protocols(
        value in text(), version in stamp(), name in prop::option::of(text()), meta in prop::option::of(text()),
        n in 0..i64::MAX as u64, ttl in -1i64..i64::MAX, flags in any::<[bool; 2]>(),
    ) {
        use std::borrow::Cow;
        let bytes = || Cow::Owned(value.clone());
        let agent = || name.clone().map(Cow::Owned);
        let metadata = || meta.clone().map(Cow::Owned);
        fn both<R: Reply + PartialEq + std::fmt::Debug>(reply: R) {
            let read = |v: Value| -> Decoded<R> { R::decode(v) };
            assert_eq!(read(Value::of(&reply)).unwrap(), reply);
            assert_eq!(read(Value::of(&reply).flat()).unwrap(), reply);
        }
        both(WriteReply::Version(version));
        both(WriteReply::Applied(version));
        both(WriteReply::Lost(Lost { version, value: Some(bytes()), author: Some(bytes()), agent: agent() }));
        both(MCasReply::Applied(version));
        both(MCasReply::Lost(vec![(bytes(), version), (bytes(), Stamp::NONE)]));
        let holder = || HolderReply { owner: bytes(), token: version, expires_ms: n, holds: ttl as u32, note: metadata() };
        let locks = || LocksReply { shared: Some(flags[1]), advisory: flags[0], holders: vec![holder(), holder()], waiters: vec![WaiterReply { owner: value.clone(), shared: flags[0], waited_ms: n }], highest: Some(version) };
        both(locks());
        both(LocksReply { shared: None, advisory: false, holders: vec![], waiters: vec![], highest: None });
        both(LockReply(flags[0].then_some((version, n))));
        both(MLockReply(flags[0].then(|| (vec![version, version], n))));
        both(UnlockReply(ttl as u32));
        both(RenewReply(n));
        let full = || GetReply::Full(Box::new(Full {
            value: bytes(), version, created: version, author: bytes(), agent: agent(), metadata: metadata(),
            ttl_ms: ttl, bytes: n, versions: n, lock: flags[0].then(locks), partition: agent(),
        }));
        both(GetReply::Absent);
        both(GetReply::Value(bytes()));
        both(GetReply::WithVersion(bytes(), version));
        both(full());
        both(MGetReply(vec![GetReply::Absent, GetReply::Value(bytes()), full()]));
        let entry = Entry {
            version, deleted: flags[0], author: bytes(), agent: agent(), metadata: metadata(), reqid: agent(), bytes: n,
            value: flags[1].then(|| (!flags[0]).then(bytes)),
        };
        both(HistoryReply(vec![entry.clone(), entry]));
        both(DiffReply(bytes()));
        for how in How::ALL {
            both(MergeReply::Applied(version, how));
        }
        let lost = Lost { version, value: Some(bytes()), author: Some(bytes()), agent: agent() };
        let partition = || PartitionReply {
            name: bytes(), class: Class::Temporary, agent: agent(), quota: n, used: n, keys: n, used_here: n, keys_here: n, high_water: n, refused: n,
            evicted: n, prefixes: vec![bytes(), bytes()], on_full: OnFull::Evict, on_conflict: metadata(), history: n, max_age_ms: n, max_value: n,
            key_ttl_ms: n, ttl_ms: ttl, version,
            audit: flags[0].then_some(AuditReply { running: flags[1], bytes: n, keys: n, drift: -ttl, ended_ms: n }),
        };
        both(partition());
        both(PartitionsReply(vec![partition(), partition()]));
        both(PoolReply { bytes: n, reserved: n, free: n, used: n, keys: n, partitions: n });
        both(DefinedReply(version));
        both(DroppedReply(n));
        let id = BackupId(u128::from(n).to_be_bytes());
        both(BegunReply(id));
        let backup = || BackupReply { id, name: bytes(), instant: version, made_on: bytes(), key: agent(), parent: flags[0].then_some(id), prefixes: vec![bytes(), bytes()] };
        both(BackupsReply(vec![BackupFileReply { backup: backup(), file: bytes(), size: n }]));
        both(VerifiedReply { backup: backup(), keys: n, partitions: n, bytes: n, newest: version, links: n, digest: id });
        for state in [JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled] {
            let counts = RestoreCounts { kept: n, same: n, expired: n, elsewhere: n, refused: n, reason: agent(), total: n };
            both(StatusReply {
                id, name: bytes(), kind: if flags[0] { JobKind::Restore } else { JobKind::Create }, state, keys: n, bytes: n, instant: version,
                millis: n, error: metadata(), left_out: n, restore: flags[0].then_some(counts), rollback: None,
            });
            let counts = RollbackCounts {
                deleted: n, same: n, newer: n, elsewhere: n, refused: n, reason: agent(), beyond: n, beyond_keys: vec![bytes(); usize::from(flags[1])],
            };
            both(StatusReply {
                id, name: bytes(), kind: JobKind::Rollback, state, keys: n, bytes: n, instant: version, millis: n, error: metadata(), left_out: n, restore: None,
                rollback: Some(counts),
            });
        }
        for kept in [None, Some(Kept::None), Some(Kept::Gone), Some(Kept::Value(bytes()))] {
            let events = Event::ALL.iter().map(|event| EventReply {
                event: *event, key: agent(), version, previous: version, author: agent(), agent: metadata(), value: kept.clone(),
            });
            both(WatchReply { cursor: Mark { at: version, reign: version }, events: events.collect() });
        }
        both(MergeReply::Lost(lost, vec!["/a/b".into(), String::new()]));
        both(TxnReply {
            held: flags[0], version,
            replies: vec![Outcome::Version(version), Outcome::Number(version, bytes()), Outcome::Value(Some(bytes())), Outcome::Value(None)],
        });
    }

    #[test]
    fn any_arguments_are_understood_or_refused(args in prop::collection::vec(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        prop::sample::select(Tok::ALL).prop_map(|t| t.word().into()),
        any::<i64>().prop_map(|n| n.to_string().into_bytes()),
    ], 0..12)) {
        for s in COMMANDS {
            if let Err(refusal) = parses(s, &args) {
                prop_assert!(refusal.to_string().bytes().all(|b| (0x20..0x7f).contains(&b)));
            }
        }
    }
}

// --- generated texts -------------------------------------------------------------------------

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares the block between two marks of a file with what it is made from; UPDATE=1 rewrites it.
fn block(file: &str, marks: [&str; 2], made: &str) {
    let path = project().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(marks[0]).expect("the first mark");
    let (kept, after) = rest.split_once(marks[1]).expect("the second mark");
    let made = format!("\n\n{}\n\n", made.trim());
    if kept == made {
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        let text = format!("{before}{}{made}{}{after}", marks[0], marks[1]);
        std::fs::write(&path, text).unwrap();
        return;
    }
    panic!("{file} differs from the table; `make docs` rewrites it");
}

#[test]
fn the_readme_shows_the_table() {
    let marks = [
        "<!-- commands: made from the table by `make docs` -->",
        "<!-- end of commands -->",
    ];
    block("README.md", marks, &markdown());
}

#[test]
fn the_settings_file_shows_the_settings() {
    let marks = [
        "# --- maos settings, made from the table by `make docs` ---",
        "# --- end of maos settings ---",
    ];
    block("redis.conf.example", marks, &config::example());
}

#[test]
fn access_is_what_the_command_does() {
    for s in COMMANDS {
        let reads_only = s.keys.access() == Access::Read;
        assert_eq!(reads_only, s.flags.contains("readonly"), "{}", s.name);
    }
}
