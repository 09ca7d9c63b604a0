//! The handlers: one for each entry of the command table. A public command without one does not
//! compile.
#![allow(unsafe_code)] // the shims that the server calls; all they do is enter the guard

mod backup;
mod internal;
mod partition;
mod range;
mod rollback;
mod state;
mod watch;

use std::ffi::c_int;

use maos_core::wire::backup::BROUGHT;
use maos_core::wire::partition::DEFINE;
use maos_core::wire::spec::words;
use maos_core::wire::state::{APPLY, LOAD, RESTORED};
use maos_core::wire::watch::{LEAVES, REIGN};
use maos_core::wire::{requests as cmd, CommandSpec, Request};

use crate::edge::api::raw;
use crate::edge::call::enter;
use crate::edge::guard::Breaker;

/// What the server calls.
pub type Handler = unsafe extern "C" fn(
    *mut raw::RedisModuleCtx,
    *mut *mut raw::RedisModuleString,
    c_int,
) -> c_int;

/// A shim for the server that runs `$run` under the guard.
macro_rules! handler {
    ($spec:expr, $run:expr) => {{
        unsafe extern "C" fn shim(
            ctx: *mut raw::RedisModuleCtx,
            argv: *mut *mut raw::RedisModuleString,
            argc: c_int,
        ) -> c_int {
            static BREAKER: Breaker = Breaker::new();
            const WORDS: usize = words($spec.name);
            // SAFETY: the server's own arguments, in its callback.
            unsafe { enter(($spec, WORDS), &BREAKER, ctx, argv, argc, |call| $run(call)) }
        }
        ($spec, shim as Handler)
    }};
}

/// How each kind of command is run.
mod run {
    pub use super::backup::backup;
    pub use super::partition::{define, survey};
    pub use super::range::range;
    pub use super::rollback::rollback;
    pub use super::state::{lock, read, write};
    pub use super::watch::watch;
}

macro_rules! public {
    ($($kind:ident $name:ident),*) => {
        const PUBLIC: &[(&CommandSpec, Handler)] = &[
            $(handler!(
                <cmd::$name<'static> as Request<'static>>::SPEC,
                |call| run::$kind::<cmd::$name<'_>>(call)
            )),*
        ];
    };
}
maos_core::for_each_command!(public);

const INTERNAL: &[(&CommandSpec, Handler)] = &[
    handler!(&APPLY, internal::apply),
    handler!(&LOAD, internal::load),
    handler!(&RESTORED, internal::restored),
    handler!(&DEFINE, internal::define),
    handler!(&REIGN, internal::reign),
    handler!(&LEAVES, internal::leaves),
    handler!(&BROUGHT, internal::brought),
    #[cfg(debug_assertions)]
    handler!(&internal::FAIL, internal::fail),
];

/// Every command and what runs it.
pub const HANDLERS: &[&[(&CommandSpec, Handler)]] = &[PUBLIC, INTERNAL];
