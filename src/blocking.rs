//! Work that blocks, off the reactor.

use crate::error::{Error, Result};

/// Runs blocking work on a thread of its own and waits for it.
///
/// The work is finished even when the caller goes away: what must not be left
/// half done belongs in here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // What it says belongs to what its caller does.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("a blocking task failed: {error}"))),
    }
}
