//! Why an agent cannot start or go on.

use std::io;
use std::path::PathBuf;

use ringmaster_proto::address;

/// Why an agent cannot start or go on.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No coordinator can be where it was said to be.
    #[error("the coordinator's address (--coordinator) cannot be used")]
    Address(#[source] address::Error),
    /// There is no address at which other nodes reach this one.
    #[error("this node needs an address at which other nodes reach its ranks")]
    Advertised(#[source] crate::address::Error),
    /// Nobody can listen at the address of this node.
    #[error(
        "cannot listen at {address}, where other nodes are to reach this one's ranks; name an address that \
         this machine has by --address"
    )]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    /// A folder cannot be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The socket for ranks cannot be bound, or broke.
    #[error("cannot serve the Unix socket for ranks")]
    Socket {
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start thread {name}")]
    Thread {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    /// The coordinator does not take this agent, for instance because it is of another build.
    #[error("{message}")]
    Refused { message: String },
    /// The agent of `ringmaster train` has a worker that cannot run; any other agent waits for a better one.
    #[error("the worker cannot run: {why}")]
    Worker { why: String },
    /// A part of the agent ended that never should.
    #[error("the agent's {part} ended unexpectedly")]
    Ended { part: &'static str },
}
