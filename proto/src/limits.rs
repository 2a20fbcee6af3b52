//! Sizes and intervals that both ends of a connection set explicitly.

use std::time::Duration;

/// Largest gRPC message either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Idle time after which an HTTP/2 keep-alive ping is sent.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Time a ping may stay unanswered before the connection counts as lost.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams one connection may have open.
pub const MAX_CONCURRENT_STREAMS: u32 = 256;
/// Time a client waits for a TCP connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Version of what an agent and its ranks say to one another: their environment, the messages on the
/// agent's socket, the status file, the exit codes. Raised when an older end would misunderstand.
pub const RANK_PROTOCOL: u32 = 2;
