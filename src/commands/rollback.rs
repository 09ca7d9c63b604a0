//! Bringing the keys of a prefix back to an instant.

use maos_core::wire::backup::BegunReply;
use maos_core::wire::rollback::RollbackTo;
use maos_core::wire::Request;
use maos_core::Refusal;

use crate::edge::call::Call;
use crate::edge::{failpoint, rolling};

/// MAOS.ROLLBACKTO
pub fn rollback<'a, C: Request<'a> + Into<RollbackTo<'a>>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request: RollbackTo<'_> = C::parse(call.args)?.into();
    failpoint::hit("rollback");
    let id = rolling::begin(call, &request)?;
    call.reply(&BegunReply(id));
    Ok(())
}
