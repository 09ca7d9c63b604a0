//! The names of all state keys in order, which MAOS.RANGE goes by, in the server's own radix trees.
//!
//! Kept where keys come and go, and never lacking one: a key that is written over costs nothing. It may hold names too
//! many, of keys that came by a command which failed in the end; who reads looks at the keys, and a pass in small steps
//! takes out what is not there.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::c_void;
use std::ops::Bound;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Mutex;

use maos_core::range::{Keyspace, NO_INDEX};
use maos_core::record::Record;
use maos_core::wire::range::Range;
use maos_core::{Code, Refusal};

use super::api::{api, raw};
use super::background;
use super::call::{flags, Call, Reader};
use super::keys::{Key, Mode};
use super::lineage::{context, Name};
use super::node::node;

/// So many names are looked at in one step whether they are still those of keys.
const TIDIED: usize = 200;
/// More names than this are freed in a thread: the server is not to wait for it.
const FREED_LATER: u64 = 1_000;
/// So many values may be neither at a key nor freed before all keys are looked through.
const ORPHANS_MAX: usize = 1_000;

/// Names in order.
struct Tree(*mut raw::RedisModuleDict);

// SAFETY: one thread at a time has it; all that another one does is to free its memory.
unsafe impl Send for Tree {}

// SAFETY of all calls here: the tree is ours from `new` to `drop`, and the server copies the names.
impl Tree {
    fn new() -> Tree {
        // SAFETY: without a context it is freed by us only.
        Tree(unsafe { api!(RedisModule_CreateDict)(ptr::null_mut()) })
    }

    fn insert(&mut self, name: &[u8]) {
        // SAFETY: see above. A name that is there stays.
        unsafe { api!(RedisModule_DictSetC)(self.0, start(name), name.len(), ptr::null_mut()) };
    }

    fn remove(&mut self, name: &[u8]) {
        // SAFETY: see above. What was beside it, nothing, is not asked for.
        unsafe { api!(RedisModule_DictDelC)(self.0, start(name), name.len(), ptr::null_mut()) };
    }

    fn len(&self) -> u64 {
        // SAFETY: see above.
        unsafe { api!(RedisModule_DictSize)(self.0) }
    }

    fn names(&self, from: Bound<&[u8]>, most: usize) -> Vec<Box<[u8]>> {
        let (op, from) = match from {
            Bound::Included(name) => (c">=", name),
            Bound::Excluded(name) => (c">", name),
            Bound::Unbounded => (c"^", &[][..]),
        };
        let mut found = vec![];
        // SAFETY: see above; a name that the iterator gives lives until it goes on.
        unsafe {
            let begin = api!(RedisModule_DictIteratorStartC);
            let iterator = begin(self.0, op.as_ptr(), start(from), from.len());
            while found.len() < most {
                let mut len = 0;
                let name = api!(RedisModule_DictNextC)(iterator, &raw mut len, ptr::null_mut());
                if name.is_null() {
                    break;
                }
                found.push(std::slice::from_raw_parts(name.cast::<u8>(), len).into());
            }
            api!(RedisModule_DictIteratorStop)(iterator);
        }
        found
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { api!(RedisModule_FreeDict)(ptr::null_mut(), self.0) };
    }
}

/// Where a name begins, for the server to read.
fn start(name: &[u8]) -> *mut c_void {
    name.as_ptr().cast_mut().cast()
}

/// The names of each database.
#[derive(Default)]
struct Names(Vec<Option<Tree>>);

impl Names {
    fn place(&mut self, db: i32) -> Option<&mut Option<Tree>> {
        let at = usize::try_from(db).ok()?;
        if at >= self.0.len() {
            self.0.resize_with(at + 1, || None);
        }
        Some(&mut self.0[at])
    }

    fn insert(&mut self, db: i32, name: &[u8]) {
        if let Some(place) = self.place(db) {
            place.get_or_insert_with(Tree::new).insert(name);
        }
    }

    fn of(&mut self, db: i32) -> Option<&mut Tree> {
        self.0.get_mut(usize::try_from(db).ok()?)?.as_mut()
    }
}

/// Frees names, in a thread where they are many.
fn free(trees: Vec<Option<Tree>>) {
    if trees.iter().flatten().map(Tree::len).sum::<u64>() > FREED_LATER {
        std::thread::spawn(move || drop(trees));
    }
}

/// Whether all keys are in the index.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// It is switched off.
    Off,
    /// Some may be missing: all keys are to be looked through.
    Lacks,
    /// They are being looked through.
    Fills,
    /// They are.
    #[default]
    Whole,
}

/// A value that has come to a key, in whose place another may have been: that one is unlinked after it.
#[derive(Default)]
struct Came {
    db: i32,
    key: Vec<u8>,
    value: usize,
}

#[derive(Default)]
struct Index {
    state: State,
    names: Names,
    /// Those of a data set that is being loaded beside the one that is served.
    beside: Option<Names>,
    came: Option<Came>,
    /// There may be names too many, since the pass over them began.
    untidy: bool,
    /// Where that pass is.
    tidy: Option<(i32, Vec<u8>)>,
}

struct MainThread(RefCell<Option<Index>>);

// SAFETY: commands, timers, events and the callbacks of values that are loaded, copied or unlinked come on the main
// thread only; `free`, which may run elsewhere, does not come here.
unsafe impl Sync for MainThread {}

static INDEX: MainThread = MainThread(RefCell::new(None));

/// The server does not say what it renames and moves.
static GUESSES: AtomicBool = AtomicBool::new(false);

/// Where it does not: values that are at a key no longer and have not been freed. One that stays here is at another key.
static ORPHANS: Mutex<Option<HashSet<usize>>> = Mutex::new(None);

/// Nothing of the server that could come back here is called inside.
fn with<T>(then: impl FnOnce(&mut Index) -> T) -> T {
    then(INDEX.0.borrow_mut().get_or_insert_default())
}

/// Keys are renamed and moved without a word of the server about it.
pub fn guess() {
    GUESSES.store(true, Relaxed);
}

/// Switches the index on or off.
pub fn switch(on: bool) {
    let gone = with(|i| match (on, i.state) {
        (true, State::Off) => {
            i.state = State::Lacks;
            vec![]
        }
        (false, State::Lacks | State::Fills | State::Whole) => {
            let index = std::mem::take(i);
            i.state = State::Off;
            let beside = index.beside.unwrap_or_default();
            index.names.0.into_iter().chain(beside.0).collect()
        }
        _ => vec![],
    });
    free(gone);
}

/// A state key was made by a command of ours.
#[inline]
pub fn made(db: i32, key: &[u8]) {
    with(|i| {
        if i.state != State::Off {
            i.came = None;
            i.names.insert(db, key);
        }
    });
}

/// A state key was found, or is known to be there now.
pub fn found(db: i32, key: &[u8]) {
    with(|i| {
        if i.state != State::Off {
            i.names.insert(db, key);
        }
    });
}

/// A value is about to come to a key, by being loaded, restored or copied. It may not come after all.
pub fn comes(db: i32, key: &[u8], value: *const c_void) {
    with(|i| {
        if i.state == State::Off {
            return;
        }
        i.untidy = true;
        if let Some(names) = &mut i.beside {
            return names.insert(db, key);
        }
        i.names.insert(db, key);
        let came = i.came.get_or_insert_default();
        came.key.clear();
        came.key.extend_from_slice(key);
        (came.db, came.value) = (db, value.addr());
    });
}

/// A value is at a key no longer.
pub fn unlinked(db: i32, key: &[u8], value: *const c_void) {
    with(|i| {
        let replaced = |c: &Came| c.db == db && c.key == key && c.value != value.addr();
        if i.state != State::Off && !i.came.as_ref().is_some_and(replaced) {
            if let Some(tree) = i.names.of(db) {
                tree.remove(key);
            }
        }
    });
    if GUESSES.load(Relaxed) {
        orphaned(value);
    }
}

#[cold]
fn orphaned(value: *const c_void) {
    let mut orphans = ORPHANS.lock().unwrap_or_else(|e| e.into_inner());
    let orphans = orphans.get_or_insert_default();
    orphans.insert(value.addr());
    if orphans.len() > ORPHANS_MAX {
        orphans.clear();
        lack();
    }
}

/// A value is freed; in any thread.
pub fn freed(value: *const c_void) {
    if GUESSES.load(Relaxed) {
        let mut orphans = ORPHANS.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(orphans) = orphans.as_mut() {
            orphans.remove(&value.addr());
        }
    }
}

/// Some keys may be missing.
pub fn lack() {
    with(|i| {
        if i.state != State::Off {
            i.state = State::Lacks;
        }
    });
}

/// Keys may have come and gone without being seen.
pub fn unseen() {
    lack();
    with(|i| i.untidy = true);
}

/// All keys of a database went, or of all (-1).
pub fn flushed(db: i32) {
    let gone = with(|i| match i.names.place(db) {
        Some(place) => vec![place.take()],
        None => std::mem::take(&mut i.names.0),
    });
    free(gone);
}

/// Two databases have changed places.
pub fn swapped(one: i32, other: i32) {
    with(|i| {
        let tree = i.names.place(one).and_then(Option::take);
        let other = i
            .names
            .place(other)
            .map(|place| std::mem::replace(place, tree));
        if let Some((place, tree)) = i.names.place(one).zip(other) {
            *place = tree;
        }
    });
}

/// What becomes of a data set that is loaded beside the one that is served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// It begins to be loaded.
    Begins,
    /// It is served from here on.
    Served,
    /// It is given up.
    Dropped,
}

/// A data set is loaded beside the one that is served.
pub fn loads_beside(what: Beside) {
    let gone = with(|i| match what {
        Beside::Begins => i.beside.replace(Names::default()),
        Beside::Dropped => i.beside.take(),
        Beside::Served => {
            let names = i.beside.take().unwrap_or_default();
            Some(std::mem::replace(&mut i.names, names))
        }
    });
    free(gone.unwrap_or_default().0);
}

/// True if keys may be missing that nobody looks for yet.
pub fn is_lacking() -> bool {
    with(|i| i.state == State::Lacks)
}

/// True if keys may be missing: whoever asks looks through all of them from now on.
pub fn take_lacking() -> bool {
    with(|i| {
        let lacks = i.state == State::Lacks;
        if lacks {
            i.state = State::Fills;
        }
        lacks
    })
}

/// True if each state key that is looked at is to be told.
pub fn is_filling() -> bool {
    with(|i| i.state == State::Fills)
}

/// All keys were looked through.
pub fn filled() {
    with(|i| {
        if i.state == State::Fills {
            i.state = State::Whole;
        }
    });
}

/// How many names it holds.
pub fn len() -> u64 {
    with(|i| i.names.0.iter().flatten().map(Tree::len).sum())
}

/// Looks at some names whether they are still those of state keys.
pub fn tidy() {
    // A replica does not see what has expired, and holds it until its master says so.
    if !may_tidy() {
        return;
    }
    let some = with(|i| {
        if i.tidy.is_none() && std::mem::take(&mut i.untidy) {
            i.tidy = Some((0, vec![]));
        }
        let (db, from) = i.tidy.take()?;
        let tree = i.names.of(db);
        let names = tree.map_or(vec![], |t| t.names(Bound::Excluded(&from), TIDIED));
        i.tidy = match names.last() {
            Some(last) => Some((db, last.to_vec())),
            None if usize::try_from(db).is_ok_and(|db| db + 1 < i.names.0.len()) => {
                Some((db + 1, vec![]))
            }
            None => None,
        };
        Some((db, names))
    });
    let Some((db, names)) = some else { return };
    for name in names {
        show(db, &name, &mut |_, _| {});
    }
}

fn may_tidy() -> bool {
    let now = flags(ptr::null_mut());
    let busy = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    now & raw::REDISMODULE_CTX_FLAGS_MASTER != 0 && now & busy == 0
}

/// Shows what is held at a name, and forgets it if that is no state key.
fn show(db: i32, name: &[u8], then: &mut dyn FnMut(&Record, i64)) {
    let ctx = context(db);
    let string = Name::new(ctx, name);
    // SAFETY: the context and the string outlive the key, which nobody else has open.
    let held = unsafe { Key::open(ctx, string.string, Mode::Look) };
    match held
        .as_ref()
        .ok()
        .and_then(|key| Some((key.record()?, key)))
    {
        Some((record, key)) => then(record, key.ttl_ms()),
        None if may_tidy() => with(|i| {
            if let Some(tree) = i.names.of(db) {
                tree.remove(name);
            }
        }),
        None => {}
    }
}

/// The keys of a database, as one user sees them.
struct Here {
    db: i32,
    reader: Reader,
}

impl Keyspace for Here {
    fn names(&mut self, from: Bound<&[u8]>, most: usize) -> Vec<Box<[u8]>> {
        with(|i| {
            let tree = i.names.of(self.db);
            tree.map_or(vec![], |tree| tree.names(from, most))
        })
    }

    fn look(&mut self, name: &[u8], then: &mut dyn FnMut(&Record, i64)) {
        show(self.db, name, then);
    }

    fn may_read(&self, name: &[u8]) -> bool {
        self.reader.may_read(name)
    }

    fn readable(&self) -> Vec<Vec<u8>> {
        self.reader.readable()
    }
}

/// Why no names are to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unlisted {
    /// The index is switched off.
    Off,
    /// Some may be missing, and are being looked for.
    Lacking,
}

/// Names of a database in order, from here on, at most so many. None of a state key is left out; some may be of none.
///
/// # Errors
/// Where some may be missing.
pub fn names(db: i32, from: Bound<&[u8]>, most: usize) -> Result<Vec<Box<[u8]>>, Unlisted> {
    look_for_orphans();
    with(|i| match i.state {
        State::Whole => Ok(i.names.of(db).map_or(vec![], |tree| tree.names(from, most))),
        State::Off => Err(Unlisted::Off),
        State::Lacks | State::Fills => Err(Unlisted::Lacking),
    })
}

/// Where the server renames without a word: values that are at a key no longer, and are not freed, are at another one.
fn look_for_orphans() {
    let orphans = || Some(ORPHANS.lock().ok()?.as_mut()?.drain().count());
    if GUESSES.load(Relaxed) && orphans().is_some_and(|n| n > 0) {
        lack();
    }
}

/// MAOS.RANGE
pub fn range(call: &Call<'_>, range: &Range<'_>) -> Result<(), Refusal> {
    let user = call.with_user(&mut node().users, |user| Box::<[u8]>::from(user));
    look_for_orphans();
    let state = || with(|i| i.state);
    if matches!(state(), State::Lacks | State::Fills) {
        background::look_now(call.ctx);
    }
    match state() {
        State::Whole => {}
        State::Off => return Err(NO_INDEX),
        State::Lacks | State::Fills => {
            let text = format!("the index of keys is being made, {} so far; not while the server saves or loads. Try again", len());
            return Err(Refusal::new(Code::Busy, text));
        }
    }
    let mut here = Here {
        db: call.db(),
        reader: Reader::of(call.ctx, &user),
    };
    call.reply(&range.list(&mut here)?);
    Ok(())
}
