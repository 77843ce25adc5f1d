//! Raises the limit on open file descriptors when the driver starts.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Raises the soft limit to the hard one. The soft limit is 1,024 in many places, for
/// programs that use select(2), which the driver does not.
///
/// # Errors
/// `Internal` if the kernel refuses.
pub(super) fn raise_limit() -> Result<()> {
    let failed = |step: &str, errno: nix::Error| {
        Error::io(format!("raising the limit on open descriptors: {step}"), &errno.into())
    };
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| failed("reading it", errno))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| failed("setting it", errno))?;
        tracing::debug!(soft, hard, "raised the limit on open descriptors");
    }
    Ok(())
}
