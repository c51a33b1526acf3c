//! Listening on a unix socket that only its owner can reach.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::{UnixListener, UnixSocket};
use tokio_stream::Stream;

use crate::Connection;

const BACKLOG: u32 = 128;
/// What the kernel's `sun_path` holds, without its final zero byte.
const LONGEST_PATH: usize = 107;

/// Why a socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process answers there.
    #[error("another process serves the socket {}; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has the name.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The kernel's limit for socket addresses.
    #[error("the socket path {} is longer than {LONGEST_PATH} bytes; choose a shorter directory", .0.display())]
    PathTooLong(PathBuf),
    /// The system refused a step.
    #[error("can't listen on the socket {}: {source}; check that its directory exists and is writable", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// Accepted connections, as tonic's `serve_with_incoming` wants them. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file, so that a successor's file of the same name is left alone.
    identity: Option<(u64, u64)>,
}

/// Listens on `path`, mode 0600, its directory existing. A socket that a dead process left behind is replaced.
///
/// Must be called within a tokio runtime.
pub fn listen(path: impl AsRef<Path>) -> Result<Listener, ListenError> {
    let path = path.as_ref();
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(ListenError::PathTooLong(path.to_owned()));
    }
    let system = |source| ListenError::System { path: path.to_owned(), source };
    remove_stale(path)?;
    let socket = UnixSocket::new_stream().map_err(system)?;
    socket.bind(path).map_err(system)?;
    // Nobody can connect before `listen`, so nobody gets in between the file's appearance and its mode.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(system)?;
    let inner = socket.listen(BACKLOG).map_err(system)?;
    Ok(Listener { inner, path: path.to_owned(), identity: fs::symlink_metadata(path).ok().map(identity) })
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let system = |source| ListenError::System { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system(error)),
    }
}

fn identity(file: Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| Connection::new(stream))))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let present = fs::symlink_metadata(&self.path).ok().map(identity);
        if present.is_some() && present == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}
