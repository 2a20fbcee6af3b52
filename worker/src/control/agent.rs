//! A rank's line to its agent: status one way, commands the other, over a Unix socket.
//!
//! Two named threads, so that neither a busy compute thread nor a slow coordinator keeps a command
//! or a heartbeat waiting. A rank does not outlive its agent: when the agent's socket closes, the
//! process ends at once with [`exit::AGENT_GONE`].

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringmaster_proto::Seat;
use ringmaster_proto::v1::agent_command::Command as Wire;
use ringmaster_proto::v1::rank_message::Message as Report;
use ringmaster_proto::v1::{AgentCommand, Generation, Phase, RankHello, RankMessage, RankStatus};

use crate::progress;
use ringmaster_agent::ffi::exit_now;
use ringmaster_agent::{Secret, exit, wire};

/// How often a status is sent: a sign of life, and what has changed meanwhile. That a rank stands still is known
/// to this precision.
const TICK: Duration = Duration::from_millis(250);

/// Why there is no line to the agent.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket refused the connection or the first message.
    #[error("cannot reach the agent at {}", path.display())]
    Connect {
        path: PathBuf,
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
}

/// What the agent asks of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Leave the old ring, whatever collective it is in, and join this generation.
    Regenerate(Generation),
    /// End.
    Stop {
        /// True: checkpoint and stop at a step boundary together with the other ranks.
        graceful: bool,
        /// Why, for the log.
        reason: String,
    },
}

/// A rank's end of the socket; cheap to clone, the line stays open for the process's life.
#[derive(Debug, Clone)]
pub struct Control {
    outbox: Arc<Outbox>,
}

impl Control {
    /// Connects to the agent at `socket` and says who this is, by what the agent told this process.
    ///
    /// Every command goes to `on_command` at once, on the reader's thread: the place to abort a
    /// collective. It must not block.
    ///
    /// # Errors
    /// [`Error`] when the agent cannot be reached.
    pub fn connect(
        socket: &Path,
        job_id: &str,
        seat: Seat,
        secret: &Secret,
        on_command: impl Fn(&Command) + Send + 'static,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Connect { path: socket.to_owned(), source };
        let reader = UnixStream::connect(socket).map_err(failed)?;
        let mut writer = reader.try_clone().map_err(failed)?;
        let (rank, pid) = (seat.0, std::process::id());
        let hello =
            RankHello { job_id: job_id.to_owned(), rank, pid, secret: secret.reveal().to_owned() };
        let hello = Report::Hello(hello);
        writer.write_all(&encode(hello)).map_err(failed)?;

        let first = RankStatus {
            job_id: job_id.to_owned(),
            rank,
            pid,
            phase: Phase::Start as i32,
            ..RankStatus::default()
        };
        let outbox = Arc::new(Outbox::new(first));
        spawn("control-read", move || read_commands(reader, &on_command))?;
        let shared = Arc::clone(&outbox);
        spawn("control-write", move || write_statuses(writer, &shared))?;
        Ok(Self { outbox })
    }

    /// Changes what the next heartbeats say about this rank.
    ///
    /// A change of phase or generation is sent at once, anything else within 250 ms. Takes a lock
    /// for the time of `update` and never waits for the socket, so it may be called at every step.
    pub fn status(&self, update: impl FnOnce(&mut RankStatus)) {
        self.outbox.update(update);
    }
}

/// What is to be sent, and whether it can wait.
#[derive(Debug)]
struct Outbox {
    state: Mutex<Pending>,
    wake: Condvar,
}

#[derive(Debug)]
struct Pending {
    status: RankStatus,
    urgent: bool,
}

impl Outbox {
    fn new(status: RankStatus) -> Self {
        Self { state: Mutex::new(Pending { status, urgent: true }), wake: Condvar::new() }
    }

    fn update(&self, update: impl FnOnce(&mut RankStatus)) {
        let mut pending = self.lock();
        let (phase, generation) = (pending.status.phase, pending.status.generation);
        update(&mut pending.status);
        if pending.status.phase != phase || pending.status.generation != generation {
            pending.urgent = true;
            self.wake.notify_one();
        }
    }

    /// Waits until there is something urgent to send, at most [`TICK`] after the last time.
    fn next(&self, sent_at: Instant) -> RankStatus {
        let mut pending = self.lock();
        loop {
            let elapsed = sent_at.elapsed();
            if pending.urgent || elapsed >= TICK {
                pending.urgent = false;
                return pending.status.clone();
            }
            pending = self
                .wake
                .wait_timeout(pending, TICK - elapsed)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // A panic in a caller's closure ends the process anyway; the status itself is plain data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map(drop).map_err(|source| Error::Thread { name, source })
}

fn encode(report: Report) -> Vec<u8> {
    wire::encode(&RankMessage { message: Some(report) })
}

/// Fills in what changes without anybody saying so: how far the rank has come, and whether it waits.
fn as_of_now(mut status: RankStatus) -> RankStatus {
    let phase = status.phase();
    status.collective_sequence = progress::collectives_entered();
    if progress::waits_for_peers(phase) {
        status.phase = Phase::Collective.into();
    }
    status.progress = progress::of_phase(status.phase());
    status
}

fn write_statuses(mut socket: UnixStream, outbox: &Outbox) {
    let mut sent_at = Instant::now();
    loop {
        let status = as_of_now(outbox.next(sent_at));
        sent_at = Instant::now();
        if let Err(error) = socket.write_all(&encode(Report::Status(status))) {
            agent_gone(&error.to_string());
        }
    }
}

fn read_commands(mut socket: UnixStream, on_command: &impl Fn(&Command)) {
    let mut decoder = wire::Decoder::default();
    let mut bytes = [0; 4096];
    loop {
        let count = match socket.read(&mut bytes) {
            Ok(0) => agent_gone("its socket closed"),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => agent_gone(&error.to_string()),
        };
        decoder.push(&bytes[..count]);
        loop {
            match decoder.decode::<AgentCommand>() {
                Ok(Some(message)) => {
                    if let Some(command) = command_of(message) {
                        tracing::info!(?command, "the agent asks");
                        on_command(&command);
                    }
                }
                Ok(None) => break,
                Err(error) => agent_gone(&error.to_string()),
            }
        }
    }
}

fn command_of(message: AgentCommand) -> Option<Command> {
    Some(match message.command? {
        Wire::Regenerate(regenerate) => Command::Regenerate(regenerate.generation?),
        Wire::Stop(stop) => Command::Stop { graceful: stop.graceful, reason: stop.reason },
    })
}

fn agent_gone(why: &str) -> ! {
    tracing::error!(why, "the agent is gone: this rank ends");
    exit_now(exit::AGENT_GONE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use ringmaster_proto::v1::{Regenerate, StopRank};

    use super::*;

    /// Reads messages of a rank until one satisfies `wanted`.
    fn read_until(
        socket: &mut UnixStream,
        decoder: &mut wire::Decoder,
        wanted: impl Fn(&Report) -> bool,
    ) -> Report {
        let mut bytes = [0; 4096];
        loop {
            while let Some(message) = decoder.decode::<RankMessage>().unwrap() {
                let report = message.message.unwrap();
                if wanted(&report) {
                    return report;
                }
            }
            let count = socket.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "the rank hung up");
            decoder.push(&bytes[..count]);
        }
    }

    #[test]
    fn hello_comes_first_then_statuses_and_commands_reach_the_hook() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (hooked, hook) = std::sync::mpsc::channel();
        let control = Control::connect(
            &path,
            "job-1",
            Seat(3),
            &Secret::of("s3cret".into()),
            move |command| {
                hooked.send(command.clone()).unwrap();
            },
        )
        .unwrap();
        let (mut agent, _) = listener.accept().unwrap();
        let mut decoder = wire::Decoder::default();

        let hello = read_until(&mut agent, &mut decoder, |_| true);
        let pid = std::process::id();
        let expected = RankHello { job_id: "job-1".into(), rank: 3, pid, secret: "s3cret".into() };
        assert_eq!(hello, Report::Hello(expected));

        control.status(|status| {
            status.phase = Phase::Compute as i32;
            status.step = 9;
        });
        read_until(&mut agent, &mut decoder, |report| match report {
            Report::Status(status) => status.step == 9 && status.phase() == Phase::Compute,
            Report::Hello(_) => false,
        });

        let generation = Generation::new(2, 1);
        for command in [
            Wire::Regenerate(Regenerate {
                job_id: "job-1".into(),
                rank: 3,
                generation: Some(generation),
            }),
            Wire::Stop(StopRank {
                graceful: true,
                reason: "cancelled".into(),
                ..StopRank::default()
            }),
        ] {
            agent.write_all(&wire::encode(&AgentCommand { command: Some(command) })).unwrap();
        }
        let expected = [
            Command::Regenerate(generation),
            Command::Stop { graceful: true, reason: "cancelled".into() },
        ];
        for command in expected {
            assert_eq!(hook.recv().unwrap(), command);
        }
        // The line stays open: closing it would end this process, which is the agent's test.
        std::mem::forget(agent);
    }

    #[test]
    fn a_status_says_what_the_phase_has_done_and_that_a_rank_waits_for_its_peers() {
        let of =
            |phase: Phase| as_of_now(RankStatus { phase: phase.into(), ..RankStatus::default() });
        let before = of(Phase::Data).progress;
        progress::advance(progress::Work::Data);
        assert!(of(Phase::Data).progress > before);
        let waiting = progress::wait_for_peers();
        for phase in [Phase::Load, Phase::Compute, Phase::Eval, Phase::Save] {
            assert_eq!(of(phase).phase(), Phase::Collective);
        }
        // Where nothing is asked of a peer, another thread's wait is not this rank's.
        assert_eq!(of(Phase::Join).phase(), Phase::Join);
        assert_eq!(of(Phase::Data).phase(), Phase::Data);
        drop(waiting);
    }

    #[test]
    fn an_absent_agent_names_its_socket() {
        let error = Control::connect(
            Path::new("/nonexistent/agent.sock"),
            "job-1",
            Seat(0),
            &Secret::of(String::new()),
            |_| {},
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("/nonexistent/agent.sock"), "{error}");
    }
}
