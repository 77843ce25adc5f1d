//! The Unix socket that kubelet and the sidecars connect to.
//!
//! A socket file outlives its process, so its existence proves nothing; only a
//! connection does. A stale socket is replaced. The socket of a running driver is
//! never taken over.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::mount::{DirId, identity};
use crate::{Error, ErrorKind, Result};

/// The longest path that connect(2) accepts: `sun_path` without its terminating NUL.
const MAX_PATH_BYTES: usize = 107;

/// The endpoint of a service: the path of a Unix socket.
///
/// Written as `unix:///path`, `unix:/path`, `unix://path` or `/path`, like the
/// endpoints of the CSI sidecars and of gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketEndpoint(PathBuf);

impl SocketEndpoint {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for SocketEndpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::invalid(format!(
                "endpoint `{text}` is not a Unix socket: {why}; write unix:///path/to/csi.sock"
            )))
        };
        let path = match text.split_once(':') {
            Some((scheme, path)) if scheme.eq_ignore_ascii_case("unix") => {
                path.strip_prefix("//").unwrap_or(path)
            }
            // A colon after a slash is part of a bare path.
            Some((scheme, _)) if !scheme.contains('/') => {
                return refuse("only unix: endpoints are served");
            }
            _ => text,
        };
        if path.contains('\0') {
            return refuse("it contains a NUL byte");
        }
        if path.starts_with('@') {
            return refuse("abstract sockets have no permissions");
        }
        let path = Path::new(path);
        if path.file_name().is_none() || text.ends_with('/') {
            return refuse("it names no file");
        }
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return refuse("the path is longer than the 107 bytes that a Unix socket can have");
        }
        Ok(Self(path.to_owned()))
    }
}

impl fmt::Display for SocketEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

/// Owns the name of a bound socket: keeps other drivers from binding it, and removes it when
/// dropped.
///
/// A process that was killed leaves a stale file, which the next [`bind`] replaces.
#[derive(Debug)]
pub struct SocketGuard {
    path: PathBuf,
    bound: DirId,
    /// Released by the kernel when the process ends, for any reason.
    _lock: File,
}

impl SocketGuard {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the socket file if it is still the one that was bound.
impl Drop for SocketGuard {
    fn drop(&mut self) {
        let path = self.path.display();
        match identity(&self.path) {
            Ok(found) if found == self.bound => match fs::remove_file(&self.path) {
                Ok(()) => debug!(%path, "removed the socket"),
                Err(error) => warn!(%path, %error, "removing the socket file failed"),
            },
            _ => warn!(%path, "another socket file has replaced the bound one; not removing it"),
        }
    }
}

/// Listens on `endpoint`. From the first moment on, only this user can connect (mode 0600).
///
/// Two drivers cannot both bind one name: the listener holds a lock on a file
/// beside the socket, `.NAME.lock`, which remains when it stops. Removing that file
/// would let a third driver lock another file of the same name.
///
/// Close the listener before dropping the guard. Blocks the thread for a few file
/// operations, once at the start.
///
/// # Errors
/// `Conflict` if another process listens there or is about to, or if the name
/// belongs to something that is not a socket, which is not changed; `Invalid` if
/// the parent directory does not exist; otherwise `Internal`.
pub async fn bind(endpoint: &SocketEndpoint) -> Result<(UnixListener, SocketGuard)> {
    let path = endpoint.path();
    let failed = |step: &str, error: &io::Error| {
        Error::io(format_args!("listening on {}: {step}", path.display()), error)
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        return Err(Error::invalid(format!(
            "listening on {}: the directory {} does not exist; create it, or mount it into the \
             container",
            path.display(),
            parent.display()
        )));
    }
    let lock = lock(path, parent)?;
    refuse_unless_free_or_stale(path).await?;
    let listener = place(path, parent).map_err(|error| failed("placing the socket", &error))?;
    let guard = SocketGuard { path: path.to_owned(), bound: identity(path)?, _lock: lock };

    listener.set_nonblocking(true).map_err(|error| failed("making it non-blocking", &error))?;
    let listener =
        UnixListener::from_std(listener).map_err(|error| failed("handing it to tokio", &error))?;
    Ok((listener, guard))
}

/// The path `.NAME.suffix` beside the socket.
fn beside(path: &Path, parent: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("socket")));
    name.push(suffix);
    parent.join(name)
}

fn lock(path: &Path, parent: &Path) -> Result<File> {
    let lock_path = beside(path, parent, ".lock");
    let failed = |error| {
        Error::io(
            format_args!("listening on {}: locking {}", path.display(), lock_path.display()),
            &error,
        )
    };
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn in_use(path: &Path) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "another driver is listening on {}; stop it first, or choose another endpoint and \
             driver name",
            path.display()
        ),
    )
}

/// Refuses a name that is in use. Only a refused connection proves that no process listens.
async fn refuse_unless_free_or_stale(path: &Path) -> Result<()> {
    let failed = |error| {
        Error::io(
            format_args!(
                "listening on {}: checking whether another driver listens there",
                path.display()
            ),
            &error,
        )
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "listening on {}: something that is not a socket has this name; it was not \
                     changed; move it away, or choose another endpoint",
                    path.display()
                ),
            ));
        }
    }
    // Never blocks: the kernel reports a full backlog.
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            debug!(path = %path.display(), "replacing a stale socket");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(in_use(path)),
        // A full backlog: another process listens, if slowly.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(path)),
        Err(error) => Err(failed(error)),
    }
}

/// Binds in a private directory, sets the mode there, and renames the socket
/// into place. bind(2) creates the file with the umask's mode, and the umask
/// belongs to the whole process; so the file must be unreachable until its mode is set.
fn place(path: &Path, parent: &Path) -> io::Result<StdUnixListener> {
    let private_dir = beside(path, parent, ".new");
    clear(&private_dir)?;
    DirBuilder::new().mode(0o700).create(&private_dir)?;
    let placed = (|| {
        // Through the descriptor, since the path may be too long for a socket's address.
        let directory = File::open(&private_dir)?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}/s", directory.as_raw_fd()));
        let listener = StdUnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    })();
    let cleared = clear(&private_dir);
    placed.and_then(|listener| cleared.map(|()| listener))
}

/// Removes what a driver that was killed in [`place`] left; the lock excludes other drivers.
fn clear(private_dir: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(private_dir.join("s")))?;
    gone(fs::remove_dir(private_dir))
}

#[cfg(test)]
mod tests;
