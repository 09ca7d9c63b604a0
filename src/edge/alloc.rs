//! The global allocator: the server's, so that `maxmemory` and `MEMORY` see what the module holds.
//!
//! All that every server's allocator promises is alignment to 8 bytes: the jemalloc that Redis
//! ships has size classes of 24, 40 and 56 bytes, and a build that keeps sizes itself puts 8 bytes
//! before each block. For more, a larger block is taken and the distance to its start is kept just
//! before the part handed out.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use super::api::api;

/// What every server's allocator aligns to.
const SERVER_ALIGN: usize = 8;

struct ServerAlloc;

#[global_allocator]
static ALLOCATOR: ServerAlloc = ServerAlloc;

fn wide(layout: Layout) -> Option<usize> {
    (layout.align() > SERVER_ALIGN).then(|| layout.size() + layout.align() + size_of::<usize>())
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

/// Checks over-aligned allocation on the allocator in use, over sizes that fall into odd classes.
#[cfg(debug_assertions)]
pub fn self_test() -> bool {
    let aligns = [8usize, 16, 32, 64, 256, 4096];
    let sizes = [1usize, 8, 24, 40, 52, 56, 100, 1000];
    // Several at a time: one that happens to be aligned proves nothing.
    aligns.iter().all(|align| {
        sizes
            .iter()
            .all(|size| (0..8).all(|_| aligns_to(*align, *size)))
    })
}

#[cfg(debug_assertions)]
fn aligns_to(align: usize, size: usize) -> bool {
    const LARGER: usize = 5000;
    let Ok(layout) = Layout::from_size_align(size, align) else {
        return false;
    };
    // SAFETY: each block is used within its layout and given back with it.
    unsafe {
        let (first, second) = (ALLOCATOR.alloc(layout), ALLOCATOR.alloc_zeroed(layout));
        let zeroed = (0..size).all(|i| *second.add(i) == 0);
        let aligned = first.addr().is_multiple_of(align) && second.addr().is_multiple_of(align);
        ptr::write_bytes(second, 7, size);
        let moved = ALLOCATOR.realloc(second, layout, LARGER);
        let kept = (0..size).all(|i| *moved.add(i) == 7) && moved.addr().is_multiple_of(align);
        ALLOCATOR.dealloc(first, layout);
        ALLOCATOR.dealloc(moved, Layout::from_size_align_unchecked(LARGER, align));
        zeroed && aligned && kept
    }
}
