//! The operations, one module per kind.

pub(crate) mod admin;
mod buckets;
pub(crate) mod cluster;
pub(crate) mod federation;
pub(crate) mod imds;
mod list;
mod multipart;
pub(crate) mod pars;
mod read;
mod write;

use http::StatusCode;
pub(crate) use list::MAX_PAGE;

use crate::error::ApiError;
use crate::route::Operation;
use crate::server::Call;
use crate::server::reply::{self, Handled};

/// Object Storage's operations, for a caller who may call them.
pub(crate) async fn handle(call: &mut Call) -> Handled {
    match call.target.operation {
        Operation::GetNamespace => Ok(reply::json(StatusCode::OK, &call.state.namespace)),
        Operation::GetNamespaceMetadata => Ok(buckets::namespace_metadata(call)),
        Operation::ListBuckets => buckets::list(call),
        Operation::CreateBucket => buckets::create(call).await,
        Operation::GetBucket | Operation::HeadBucket => buckets::get(call),
        Operation::UpdateBucket => buckets::update(call).await,
        Operation::DeleteBucket => buckets::delete(call),
        Operation::List => list::list(call).await,
        Operation::Get => read::get(call).await,
        Operation::Head => read::head(call).await,
        Operation::Put => write::put(call).await,
        Operation::Delete => write::delete(call),
        Operation::Restore => write::restore(call).await,
        Operation::CreateUpload => multipart::create(call).await,
        Operation::ListUploads => multipart::list_uploads(call),
        Operation::UploadPart => multipart::upload_part(call).await,
        Operation::ListParts => multipart::list_parts(call),
        Operation::CommitUpload => multipart::commit(call).await,
        Operation::AbortUpload => multipart::abort(call),
        Operation::CreatePar => pars::create(call).await,
        Operation::ListPars => pars::list(call),
        Operation::GetPar => pars::get(call),
        Operation::DeletePar => pars::delete(call),
        Operation::Imds
        | Operation::Federation
        | Operation::WorkloadIdentity
        | Operation::Admin
        | Operation::Unknown => Err(ApiError::no_such_route().into()),
    }
}
