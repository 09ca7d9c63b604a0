//! The global allocator: the server's, so that `maxmemory` and `MEMORY` see what the module holds.
//!
//! The server aligns to what its `malloc` aligns to. For more than that, a larger block is taken
//! and the distance to its start is kept in the byte before the part handed out.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use super::api::api;

/// What every `malloc` aligns to on the platforms Redis runs on.
const MALLOC_ALIGN: usize = 16;

struct ServerAlloc;

#[global_allocator]
static ALLOCATOR: ServerAlloc = ServerAlloc;

fn wide(layout: Layout) -> Option<usize> {
    (layout.align() > MALLOC_ALIGN).then(|| layout.size() + layout.align() + size_of::<usize>())
}

/// The aligned address in a block made for [`wide`], its start noted just before it.
///
/// # Safety
/// `block` must be null or have room for what `wide` says of `layout`.
unsafe fn settle(block: *mut u8, layout: Layout) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let free = block.addr() + size_of::<usize>();
    let offset = free.next_multiple_of(layout.align()) - block.addr();
    // SAFETY: `offset` leaves room for the note before and for the size behind, by `wide`.
    unsafe {
        let place = block.add(offset);
        place.cast::<usize>().sub(1).write_unaligned(offset);
        place
    }
}

/// The block in which `settle` put this address.
///
/// # Safety
/// `place` must come from `settle`.
unsafe fn block_of(place: *mut u8) -> *mut u8 {
    // SAFETY: `settle` wrote the offset there.
    unsafe { place.sub(place.cast::<usize>().sub(1).read_unaligned()) }
}

// SAFETY: the server's allocator is a malloc; over-aligned layouts are handled by `settle`. A null
// from it is passed on, as the trait allows.
unsafe impl GlobalAlloc for ServerAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a plain allocation; `settle` gets the room it needs.
        unsafe {
            match wide(layout) {
                None => api!(RedisModule_Alloc)(layout.size()).cast(),
                Some(size) => settle(api!(RedisModule_Alloc)(size).cast(), layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe {
            match wide(layout) {
                None => api!(RedisModule_Calloc)(1, layout.size()).cast(),
                Some(size) => settle(api!(RedisModule_Calloc)(1, size).cast(), layout),
            }
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back what `alloc` gave for this layout.
        unsafe {
            let block = match wide(layout) {
                None => place,
                Some(_) => block_of(place),
            };
            api!(RedisModule_Free)(block.cast());
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `alloc` and `dealloc`; the copy is of the smaller of both sizes.
        unsafe {
            if wide(layout).is_none() {
                return api!(RedisModule_Realloc)(place.cast(), size).cast();
            }
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                ptr::copy_nonoverlapping(place, moved, layout.size().min(size));
                self.dealloc(place, layout);
            }
            moved
        }
    }
}

/// Checks over-aligned allocation on the allocator in use.
#[cfg(debug_assertions)]
pub fn self_test() -> bool {
    [32usize, 64, 256, 4096].iter().all(|align| {
        let Ok(layout) = Layout::from_size_align(100, *align) else {
            return false;
        };
        // SAFETY: each block is used within its layout and given back with it.
        unsafe {
            let place = ALLOCATOR.alloc_zeroed(layout);
            let zeroed = (0..100).all(|i| *place.add(i) == 0);
            let aligned = place.addr().is_multiple_of(*align);
            ptr::write_bytes(place, 7, 100);
            let place = ALLOCATOR.realloc(place, layout, 5000);
            let kept = (0..100).all(|i| *place.add(i) == 7);
            let still = place.addr().is_multiple_of(*align);
            ALLOCATOR.dealloc(place, Layout::from_size_align_unchecked(5000, *align));
            zeroed && aligned && kept && still
        }
    })
}
