//! The command language, once.
//!
//! Each command is an entry of the table ([`spec`]) beside its request and reply types ([`state`]).
//! Registration, arity, key specs, `COMMAND DOCS`, the README's reference, the client's methods and
//! the random requests of the tests all come from here.

pub mod cursor;
pub mod reference;
pub mod reply;
pub mod spec;
pub mod state;

pub use cursor::Cursor;
pub use reply::{Decoded, Reply, Sink, Value};
pub use spec::{Access, Arg, ArgKind, CommandSpec, Keys, Tok};

use crate::Refusal;

/// A request: arguments that have been understood, or are about to be sent.
pub trait Request<'a>: Sized {
    /// The table's entry.
    const SPEC: &'static CommandSpec;

    /// Understands the arguments after the command's name.
    ///
    /// # Errors
    /// `ERR`, `LIMIT`, `TOOBIG` or `NOTJSON` where the arguments break the command's syntax or the
    /// fixed bounds of [`config`](crate::config).
    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal>;

    /// The arguments after the command's name, such that `parse` gives this request again.
    fn encode(&self) -> Vec<Vec<u8>>;
}

/// Calls `$then!{ Variant, … }` with every public command's request type, in the order of the table.
#[macro_export]
macro_rules! for_each_command {
    ($then:ident) => {
        $then! {
            write Set, write Cas, read Get, write Del, write MSet, write MCas, read MGet,
            read History, read Diff, write Rollback
        }
    };
}
