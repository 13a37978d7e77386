//! How a refusal reaches the client: its code, the whole chain of reasons, and one line in the log.

use std::error::Error;

use tonic::{Code, Status};

use crate::from_cri::InvalidRequest;

/// A refused or failed request. The error stops travelling here, so here it is logged.
pub(crate) fn refuse(code: Code, error: &(dyn Error + 'static)) -> Status {
    let text = telemetry::chain(error).to_string();
    match code {
        Code::NotFound | Code::InvalidArgument | Code::Unimplemented => {
            tracing::debug!(%code, error = text, "request refused");
        }
        _ => tracing::warn!(%code, error = text, "request failed"),
    }
    Status::new(code, text)
}

/// A request that could not be understood changes nothing.
pub(crate) fn invalid(error: InvalidRequest) -> Status {
    refuse(Code::InvalidArgument, &error)
}

/// An RPC that is not built yet.
pub(crate) fn unimplemented<T>(rpc: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{rpc} is not implemented by this version of crio")))
}
