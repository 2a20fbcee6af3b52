//! The Unix socket that ranks connect to.
//!
//! It lies in a folder of its own that only this user can enter. A connection counts only if it shows the
//! secret that this agent told the rank at exec: not by its process id, which is another one in a container.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::rank_message::Message;
use ringmaster_proto::v1::{AgentCommand, RankHello, RankMessage};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::ranks::{Key, Table};
use super::secret::Secret;
use super::wire;

/// The kernel allows 107 bytes and some systems 103.
const MAX_PATH_BYTES: usize = 100;
const NAME: &str = "agent.sock";

/// A bound socket; the folder goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    listener: StdListener,
    folder: TempDir,
}

impl Socket {
    /// Binds a socket in a new folder for temporary files.
    pub(super) fn bind() -> io::Result<Self> {
        let wanted = std::env::temp_dir();
        // The folder's own name takes about 20 bytes.
        let fits = wanted.as_os_str().len() + NAME.len() + 24 < MAX_PATH_BYTES;
        let parent = if fits { wanted.as_path() } else { Path::new("/tmp") };
        let folder = tempfile::Builder::new()
            .prefix("ringmaster-")
            // By default the umask decides, and usually lets everybody in.
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let listener = StdListener::bind(folder.path().join(NAME))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, folder })
    }

    /// Returns the path ranks connect to.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    /// Returns the folder, for who ends the process without dropping this.
    pub(super) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Serves ranks until dropped.
    pub(super) async fn serve(self, table: Arc<Table>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve_rank(stream, Arc::clone(&table)));
        }
    }
}

async fn serve_rank(stream: UnixStream, table: Arc<Table>) {
    // For the log alone.
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (mut reader, writer) = stream.into_split();
    let mut inbox = Inbox::default();
    let hello = match inbox.next(&mut reader).await {
        Ok(Some(Message::Hello(hello))) => hello,
        Ok(_) => return tracing::warn!(peer, "a connection that does not say which rank it is"),
        Err(error) => return tracing::warn!(peer, %error, "a connection that is no rank's"),
    };
    let RankHello { job_id, rank, secret, .. } = hello;
    let key: Key = (job_id, Seat(rank));
    let (commands, queue) = mpsc::unbounded_channel();
    let Some(pid) = table.connected(&key, &Secret::of(secret), commands) else {
        tracing::warn!(job_id = %key.0, rank, peer, "a process that is not this agent's rank");
        return;
    };
    // Ends with the connection or when the rank connects anew.
    let sender = tokio::spawn(send_commands(writer, queue));
    loop {
        match inbox.next(&mut reader).await {
            Ok(Some(Message::Status(status))) => table.status(&key, pid, status),
            Ok(Some(Message::Hello(_))) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(job_id = %key.0, rank, %error, "the line to the rank broke");
                break;
            }
        }
    }
    // The rank is ending: its exit says more than its closed socket.
    sender.abort();
}

async fn send_commands(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<AgentCommand>,
) {
    while let Some(command) = queue.recv().await {
        if let Err(error) = writer.write_all(&wire::encode(&command)).await {
            tracing::debug!(%error, "a rank hung up before it read a command");
            return;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read from the socket")]
    Read(#[from] io::Error),
    #[error("cannot understand the rank")]
    Wire(#[from] wire::Error),
}

#[derive(Debug, Default)]
struct Inbox {
    decoder: wire::Decoder,
}

impl Inbox {
    /// Returns the next message; none when the rank hung up.
    async fn next(&mut self, reader: &mut OwnedReadHalf) -> Result<Option<Message>, Error> {
        let mut bytes = [0; 4096];
        loop {
            while let Some(message) = self.decoder.decode::<RankMessage>()? {
                // A message this build does not know is passed over.
                if let Some(message) = message.message {
                    return Ok(Some(message));
                }
            }
            match reader.read(&mut bytes).await {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(&bytes[..count]),
                // A killed rank with unread commands in its socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_has_a_short_path_in_a_folder_of_its_own_that_goes_with_it() {
        let socket = Socket::bind().unwrap();
        let (path, folder) = (socket.path(), socket.folder());
        assert!(path.as_os_str().len() < MAX_PATH_BYTES);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&folder).unwrap());
        assert_eq!(mode & 0o077, 0, "nobody else may enter");
        drop(socket);
        assert!(!folder.exists());
    }
}
