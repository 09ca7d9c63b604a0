//! Listing keys in order.

use maos_core::wire::range::Range;
use maos_core::wire::Request;
use maos_core::Refusal;

use crate::edge::call::Call;
use crate::edge::{failpoint, index};

/// MAOS.RANGE
pub fn range<'a, C: Request<'a> + Into<Range<'a>>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    failpoint::hit("range");
    index::range(call, &request.into())
}
