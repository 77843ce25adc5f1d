//! Work that blocks, off the reactor.

use crate::error::{Error, Result};

/// Runs blocking work on a thread of its own and waits for it.
///
/// The work is finished even when the caller is dropped: put here what must not be
/// left half done.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // Its log lines belong to the caller's span.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::internal(format!("a blocking task failed: {error}")).caused_by(error))
        }
    }
}
