//! The limits of the process, set when the driver starts.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::parse_size;
use crate::error::{Error, Result};
use crate::model::size_text;

/// The least that `--heap-limit` may be: the driver's threads need some of it for their stacks.
const LEAST_HEAP: u64 = 256 << 20;

/// What must be left of it at the start.
const MARGIN: u64 = 128 << 20;

/// Keeps the memory of this process, which holds keys and tokens, out of core dumps, and from
/// other processes of the same user (`PR_SET_DUMPABLE`, see prctl(2)). Unlike a limit on the size
/// of core files it also holds where the kernel hands cores to a program.
///
/// # Errors
/// `Internal` if the kernel refuses.
pub(super) fn hide_memory() -> Result<()> {
    prctl::set_dumpable(false)
        .map_err(|errno| Error::io("keeping the memory out of core dumps", &errno.into()))
}

/// Raises the soft limit on descriptors to the hard one. The soft limit is 1,024 in many
/// places, for programs that use select(2), which the driver does not.
///
/// # Errors
/// `Internal` if the kernel refuses.
pub(super) fn raise_descriptors() -> Result<()> {
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

/// Limits the memory that the process allocates, heap and stacks, to this many bytes
/// (`RLIMIT_DATA`, see setrlimit(2)). The page cache does not count.
///
/// # Errors
/// `Invalid` if the process needs as much already, on a machine with many cores; `Internal` if
/// the kernel refuses.
pub(super) fn limit_heap(bytes: u64) -> Result<()> {
    let allocated = allocated().unwrap_or(0);
    if bytes < allocated + MARGIN {
        return Err(Error::invalid(format!(
            "--heap-limit is {}, and the driver takes {} before it has done anything: raise it by \
             {} at least",
            size_text(bytes),
            size_text(allocated),
            size_text(allocated + MARGIN - bytes)
        )));
    }
    setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
        .map_err(|errno| Error::io(format!("setting --heap-limit to {bytes} bytes"), &errno.into()))
}

/// What the process has allocated, as `RLIMIT_DATA` counts it (`VmData`, see proc(5)).
fn allocated() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Parses `--heap-limit`.
///
/// # Errors
/// The message says what would be right.
pub(super) fn parse_heap_limit(text: &str) -> Result<u64, String> {
    match parse_size(text)?.as_u64() {
        bytes if bytes >= LEAST_HEAP => Ok(bytes),
        _ => Err(format!("`{text}` is less than 256MiB, which the driver may need")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_limit_is_a_size_of_at_least_256_mib() {
        assert_eq!(parse_heap_limit("1GiB"), Ok(1 << 30));
        assert_eq!(parse_heap_limit("256MiB"), Ok(LEAST_HEAP));
        assert!(parse_heap_limit("255MiB").unwrap_err().contains("less than 256MiB"));
        assert!(parse_heap_limit("1G").unwrap_err().contains("write 1GiB"));
    }
}
