//! Watching: what happened is in the log, and who waits is let wait.

use maos_core::wire::watch::Watch;
use maos_core::wire::Request;
use maos_core::Refusal;

use crate::edge::call::Call;
use crate::edge::{failpoint, feed};

/// MAOS.WATCH
pub fn watch<'a, C: Request<'a> + Into<Watch<'a>>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    failpoint::hit("watch");
    feed::watch(call, request.into())
}
