//! What a refusal takes: a request that is too much is refused before memory is taken for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use maos_core::model::Model;
use maos_core::wire::Value;
use maos_core::Code;

/// Counts what is allocated, and the most there was. The only test here is alone with it.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by the caller.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that was allocated while this ran, above what was before.
fn most(of: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    of();
    MOST.load(Relaxed) - before
}

#[test]
fn a_refusal_takes_less_than_twice_its_input_and_a_mebibyte() {
    const SIZE: usize = 4 << 20;
    let mut model = Model::at(1_790_000_000_000_000);
    let long = format!(r#"{{"list":[{}1],"n":1}}"#, "1,".repeat(200_000));
    model.run(&[b"MAOS.SET", b"doc", long.as_bytes()]).unwrap();
    let deep = "[".repeat(SIZE);
    let closed = ["[".repeat(SIZE / 2), "]".repeat(SIZE / 2)].concat();
    let many = format!("[{}1]", "1,".repeat(SIZE / 2));
    let members = format!("{{{}\"z\":1}}", "\"a\":1,".repeat(SIZE / 6));
    let open = format!(r#"{{"a":"{}"#, "x".repeat(SIZE));
    let bad = format!(r#"{{"a":[{}01]}}"#, "1,".repeat(200_000));
    let pointer = "/a".repeat(SIZE / 2);
    let number = "9".repeat(SIZE);
    let one: &[u8] = b"1";
    let Ok(Value::Int(base)) = model.run(&[b"MAOS.SET", b"m", b"{}"]) else {
        panic!("it is written");
    };
    model.run(&[b"MAOS.SET", b"m", b"{\"theirs\":1}"]).unwrap();
    let base = base.to_string();
    let merging = |value| {
        let base = base.as_bytes();
        vec![&b"MAOS.MERGE"[..], b"m", base, value, b"STRATEGY", b"MERGE"]
    };
    for (code, words) in [
        (Code::Limit, vec![&b"MAOS.PATCH"[..], b"k", deep.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", closed.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", many.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", members.as_bytes()]),
        (Code::NotJson, vec![b"MAOS.PATCH", b"k", open.as_bytes()]),
        (Code::NotJson, vec![b"MAOS.PATCH", b"k", bad.as_bytes()]),
        (
            Code::Limit,
            vec![b"MAOS.PATCH", b"doc", many.as_bytes(), b"JSONPATCH"],
        ),
        (
            Code::Limit,
            vec![b"MAOS.INCRBY", b"doc", one, b"PATH", pointer.as_bytes()],
        ),
        (Code::Err, vec![b"MAOS.INCRBY", b"k", number.as_bytes()]),
        (Code::Limit, merging(deep.as_bytes())),
        (Code::Limit, merging(many.as_bytes())),
        (Code::Limit, merging(members.as_bytes())),
        (Code::NotJson, merging(open.as_bytes())),
        (
            Code::Limit,
            vec![
                b"MAOS.TXN",
                b"1",
                b"k",
                b"THEN",
                b"SET",
                b"k",
                one,
                b"THEN",
                b"PATCH",
                b"k",
                deep.as_bytes(),
            ],
        ),
    ] {
        let input: usize = words.iter().map(|w| w.len()).sum();
        let mut refused = None;
        let most = most(|| refused = model.run(&words).err());
        let refused = refused.expect("a refusal");
        let what = format!("{} {}", String::from_utf8_lossy(words[0]), refused);
        assert_eq!(refused.code, code, "{what}");
        assert!(
            most <= 2 * input + (1 << 20),
            "{most} bytes for {input}: {what}"
        );
    }
}
