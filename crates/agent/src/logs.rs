//! Rank logs: each file is followed by a task, the lines go to the coordinator over a connection
//! of their own.
//!
//! Nothing here can delay a heartbeat: the queue between the two is bounded, a task that finds it
//! full stops reading (the file is the buffer), and a coordinator that does not read only fills
//! this connection's window. Lines are delivered at least once: a batch is sent until it is
//! acknowledged, so a lost acknowledgement repeats it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{ExponentialBuilder, Retryable as _};
use ringmaster_proto::limits;
use ringmaster_proto::status::is_transient;
use ringmaster_proto::v1::fleet_client::FleetClient;
use ringmaster_proto::v1::{AgentLogLine, LogBatch};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::entry::unpack;

/// Lines that may wait to be shipped.
pub(super) const QUEUE_LINES: usize = 4096;
/// How often a log file is looked at for more.
const POLL: Duration = Duration::from_millis(100);
/// Longer lines are cut into pieces of this many bytes.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Lines of one call and of one message in it.
const CALL_LINES: usize = 1024;
const BATCH_LINES: usize = 128;
/// A call that takes longer is given up and repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses before a call is repeated, for ever.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(Duration::from_secs(5))
    .with_jitter()
    .without_max_times();

/// One rank's log.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) job_id: String,
    pub(super) rank: u32,
    /// Packed; a survivor's changes.
    pub(super) generation: Arc<AtomicU64>,
}

/// Starts a task per log; usable from threads outside the runtime.
#[derive(Debug, Clone)]
pub(super) struct Tails {
    pub(super) runtime: tokio::runtime::Handle,
    // Weak: when the agent drops its sender and the last tail ends, the shipper has seen all.
    pub(super) lines: mpsc::WeakSender<AgentLogLine>,
}

/// Held as long as the rank lives; its drop makes the tail read to the end and stop.
#[derive(Debug)]
pub(super) struct Ended(
    #[expect(dead_code, reason = "its drop is the signal")] oneshot::Sender<()>,
);

impl Tails {
    /// Follows `source` until the returned value is dropped, then to its end.
    pub(super) fn follow(&self, source: Source) -> Ended {
        let (sender, ended) = oneshot::channel();
        if let Some(lines) = self.lines.upgrade() {
            self.runtime.spawn(async move {
                let path = source.path.clone();
                if let Err(error) = tail(source, &lines, ended).await {
                    tracing::warn!(%error, path = %path.display(), "cannot read the rank's log");
                }
            });
        }
        Ended(sender)
    }
}

async fn tail(
    source: Source,
    lines: &mpsc::Sender<AgentLogLine>,
    mut ended: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let mut file = File::open(&source.path).await?;
    let mut splitter = Splitter::default();
    let mut bytes = vec![0; 64 << 10];
    let mut last_round = false;
    loop {
        loop {
            let count = file.read(&mut bytes).await?;
            let texts = if count > 0 { splitter.push(&bytes[..count]) } else { Vec::new() };
            for text in texts {
                if lines.send(source.line(text)).await.is_err() {
                    return Ok(());
                }
            }
            if count == 0 {
                break;
            }
        }
        if last_round {
            if let Some(text) = splitter.finish() {
                drop(lines.send(source.line(text)).await);
            }
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = &mut ended => last_round = true,
        }
    }
}

impl Source {
    fn line(&self, text: String) -> AgentLogLine {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        AgentLogLine {
            job_id: self.job_id.clone(),
            generation: Some(unpack(self.generation.load(Ordering::Relaxed))),
            rank: self.rank,
            at_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            text,
        }
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            let (taken, complete) = match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (window.len(), window.len() == room),
            };
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if complete {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// Returns what is there without waiting for the end of the line.
    fn finish(&mut self) -> Option<String> {
        if self.partial.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_end_matches(['\n', '\r']).to_owned())
    }
}

/// Ships lines until every sender is gone and the last line is acknowledged.
pub(super) async fn ship(endpoint: Endpoint, mut lines: mpsc::Receiver<AgentLogLine>) {
    let client = FleetClient::new(endpoint.connect_lazy())
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let mut waiting = Vec::new();
    while lines.recv_many(&mut waiting, CALL_LINES).await > 0 {
        let chunks = waiting.chunks(BATCH_LINES);
        let batches: Vec<LogBatch> =
            chunks.map(|chunk| LogBatch { lines: chunk.to_vec() }).collect();
        deliver(client.clone(), &batches).await;
        waiting.clear();
    }
}

/// Sends batches until the coordinator has taken or refused them.
async fn deliver(client: FleetClient<Channel>, batches: &[LogBatch]) {
    let call = move || deliver_once(client.clone(), batches);
    let later = |status: &Status, _: Duration| {
        tracing::debug!(error = %status.message(), "cannot ship logs yet");
    };
    if let Err(status) = call.retry(PAUSES).when(is_transient).notify(later).await {
        let lines: usize = batches.iter().map(|batch| batch.lines.len()).sum();
        tracing::warn!(lines, error = %status.message(), "the coordinator refuses log lines; the files keep them");
    }
}

async fn deliver_once(
    mut client: FleetClient<Channel>,
    batches: &[LogBatch],
) -> Result<(), Status> {
    let stream = tokio_stream::iter(batches.to_vec());
    match tokio::time::timeout(CALL_TIMEOUT, client.ship_logs(stream)).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => {
            tracing::warn!(timeout = ?CALL_TIMEOUT, "the coordinator does not take log lines");
            Err(Status::deadline_exceeded("the coordinator does not take log lines"))
        }
    }
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder as _;

    use super::*;

    #[test]
    fn lines_are_never_given_up() {
        let mut pauses = PAUSES.build();
        // Each is spread over its own length, so that many agents do not come at once.
        let first = pauses.next().expect("there is a first");
        let ten_thousandth = pauses.nth(10_000).expect("they never end");
        let [tenth, five] = [Duration::from_millis(100), Duration::from_secs(5)];
        assert!((tenth..=2 * tenth).contains(&first), "{first:?}");
        assert!((five..=2 * five).contains(&ten_thousandth), "{ten_thousandth:?}");
    }

    /// Who takes no lines for a while is asked again: they are not dropped.
    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_takes_too_long_is_asked_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        // Connects, and is never answered: time passes as soon as nothing else can happen.
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let client = FleetClient::new(endpoint.expect("a URL").connect_lazy());
        let status = deliver_once(client, &[]).await.expect_err("nobody answers");
        assert!(is_transient(&status), "{status}");
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let text = b"one\r\n\ntwo \xff\nthree";
        for piece in 1..text.len() {
            let mut splitter = Splitter::default();
            let mut lines: Vec<String> =
                text.chunks(piece).flat_map(|chunk| splitter.push(chunk)).collect();
            lines.extend(splitter.finish());
            assert_eq!(lines, ["one", "", "two \u{fffd}", "three"], "in pieces of {piece}");
        }
    }

    #[test]
    fn an_endless_line_is_cut_and_loses_nothing() {
        let mut splitter = Splitter::default();
        let text = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        let mut lines = splitter.push(&text);
        lines.extend(splitter.finish());
        let lengths: Vec<usize> = lines.iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]);
    }
}
