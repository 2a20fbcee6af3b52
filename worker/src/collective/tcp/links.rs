//! The connections of one rank: framed sends on writer threads, receives on the caller's thread,
//! and an abort that wakes all of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::Error;
use super::ops::Frame;
use crate::ffi::memory::HostBytes;

/// The peer closed its side; missing from nix's own flags.
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
/// How often a blocked receive looks at the abort flag and its deadline.
const POLL_INTERVAL_MS: u16 = 100;
/// Messages up to this size always fit the socket's send buffer beside an earlier one, so the
/// operation thread writes them itself.
pub(super) const SMALL_MESSAGE: usize = 8 << 10;

/// A switch that ends the formation or the life of a ring; set once, with a reason.
#[derive(Debug, Clone, Default)]
pub struct AbortFlag(Arc<Mutex<Option<String>>>);

impl AbortFlag {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag; the first reason stays.
    pub fn set(&self, reason: &str) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| reason.to_owned());
    }

    /// Returns the reason once the flag is set.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.get() {
            Some(reason) => Err(Error::Aborted { reason }),
            None => Ok(()),
        }
    }
}

/// Ends the ring from another thread.
#[derive(Debug, Clone)]
pub(super) struct AbortHandle {
    flag: AbortFlag,
    streams: Arc<Vec<Option<TcpStream>>>,
}

impl AbortHandle {
    pub(super) fn abort(&self, reason: &str) {
        self.flag.set(reason);
        for stream in self.streams.iter().flatten() {
            // Wakes reads and writes here, and tells the peer.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn reason(&self) -> String {
        self.flag.get().unwrap_or_else(|| "the ring is closed".to_owned())
    }
}

/// A send handed to a peer's writer thread.
struct Outgoing {
    frame: [u8; Frame::LEN],
    data: HostBytes,
    range: std::ops::Range<usize>,
    done: SyncSender<Result<(), String>>,
}

/// A send in flight.
pub(super) struct Sent {
    peer: usize,
    done: Option<Receiver<Result<(), String>>>,
}

/// Everything one rank holds of the ring.
pub(super) struct Links {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    streams: Arc<Vec<Option<TcpStream>>>,
    writers: Vec<Option<SyncSender<Outgoing>>>,
    flag: AbortFlag,
    deadline: Option<Duration>,
}

impl Links {
    pub(super) fn new(
        rank: usize,
        streams: Vec<Option<TcpStream>>,
        deadline: Option<Duration>,
        flag: AbortFlag,
    ) -> Result<Self, Error> {
        let world_size = streams.len();
        let connect_error = |e: std::io::Error| Error::Connect {
            world_size,
            reason: format!("cannot set up a connection: {e}"),
        };
        let mut writers = Vec::with_capacity(world_size);
        for (peer, stream) in streams.iter().enumerate() {
            let Some(stream) = stream else {
                writers.push(None);
                continue;
            };
            let stream = stream.try_clone().map_err(connect_error)?;
            let (queue, outgoing) = sync_channel::<Outgoing>(4);
            std::thread::Builder::new()
                .name(format!("tcp-{rank}-to-{peer}"))
                .spawn(move || {
                    for item in outgoing {
                        let result = stream
                            .write_all(&item.frame)
                            .and_then(|()| stream.write_all(item.data.read(item.range)));
                        let _ = item.done.send(result.map_err(|e| e.to_string()));
                    }
                })
                .map_err(connect_error)?;
            writers.push(Some(queue));
        }
        Ok(Self { rank, world_size, streams: Arc::new(streams), writers, flag, deadline })
    }

    pub(super) fn abort_handle(&self) -> AbortHandle {
        AbortHandle { flag: self.flag.clone(), streams: Arc::clone(&self.streams) }
    }

    pub(super) fn check_abort(&self) -> Result<(), Error> {
        self.flag.check()
    }

    /// Starts sending a part of `data` to `peer`.
    pub(super) fn send(
        &self,
        peer: usize,
        frame: Frame,
        data: HostBytes,
        range: std::ops::Range<usize>,
    ) -> Result<Sent, Error> {
        if range.len() <= SMALL_MESSAGE {
            let mut message = Vec::with_capacity(Frame::LEN + range.len());
            message.extend_from_slice(&frame.encode());
            message.extend_from_slice(data.read(range));
            self.stream(peer).write_all(&message).map_err(|e| self.lost(peer, frame, &e))?;
            return Ok(Sent { peer, done: None });
        }
        let (done, result) = sync_channel(1);
        let writer = self.writers[peer].as_ref().expect("only peers are sent to");
        writer
            .send(Outgoing { frame: frame.encode(), data, range, done })
            .map_err(|_| self.lost(peer, frame, &std::io::Error::other("writer ended")))?;
        Ok(Sent { peer, done: Some(result) })
    }

    /// Waits until the bytes of these sends are in the kernel, so their memory may change.
    pub(super) fn finish(&self, frame: Frame, sends: Vec<Sent>) -> Result<(), Error> {
        for sent in sends {
            let Some(done) = sent.done else { continue };
            let result = done.recv().unwrap_or_else(|_| Err("writer ended".to_owned()));
            result.map_err(|reason| self.lost(sent.peer, frame, &std::io::Error::other(reason)))?;
        }
        Ok(())
    }

    /// Receives a frame from `peer` and checks that it is the expected one.
    pub(super) fn expect(&self, peer: usize, want: Frame) -> Result<(), Error> {
        let mut buffer = [0; Frame::LEN];
        self.receive(peer, want, &mut buffer)?;
        let got = Frame::decode(&buffer);
        if got != Some(want) {
            let got = got.map_or_else(|| "an unreadable frame".to_owned(), |f| f.to_string());
            return Err(Error::Mismatch { peer, got, want: want.to_string() });
        }
        Ok(())
    }

    /// Fills `buffer` from `peer`, watching the abort flag, the deadline and every other peer.
    pub(super) fn receive(
        &self,
        peer: usize,
        frame: Frame,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut filled = 0;
        let mut last_progress = Instant::now();
        while filled < buffer.len() {
            if !self.wait_readable(peer, frame)? {
                if let Some(deadline) = self.deadline
                    && last_progress.elapsed() > deadline
                {
                    let (operation, sequence) = (frame.name(), frame.sequence);
                    return Err(Error::Deadline { operation, sequence, peer, deadline });
                }
                continue;
            }
            match self.stream(peer).read(&mut buffer[filled..]) {
                Ok(0) => {
                    return Err(self.lost(peer, frame, &std::io::Error::other("closed by peer")));
                }
                Ok(n) => {
                    filled += n;
                    last_progress = Instant::now();
                }
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(self.lost(peer, frame, &e)),
            }
        }
        Ok(())
    }

    /// Waits a moment for bytes from `peer`; a hang-up of any other peer is an error at once.
    fn wait_readable(&self, peer: usize, frame: Frame) -> Result<bool, Error> {
        self.check_abort()?;
        let mut ranks = Vec::with_capacity(self.world_size);
        let mut fds = Vec::with_capacity(self.world_size);
        for (other, stream) in self.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let mut events = PEER_CLOSED;
            events.set(PollFlags::POLLIN, other == peer);
            ranks.push(other);
            fds.push(PollFd::new(stream.as_fd(), events));
        }
        match poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(self.lost(peer, frame, &std::io::Error::from(e))),
        }
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut readable = false;
        for (&other, fd) in ranks.iter().zip(&fds) {
            // nix has no name for POLLRDHUP and returns None for it, the only other bit asked for.
            let events = fd.revents().unwrap_or(PollFlags::POLLHUP);
            if other == peer {
                readable = !events.is_empty();
            } else if events.intersects(gone) && frame.watches_others() {
                return Err(self.lost(other, frame, &std::io::Error::other("closed by peer")));
            }
        }
        Ok(readable)
    }

    fn stream(&self, peer: usize) -> &TcpStream {
        self.streams[peer].as_ref().expect("a rank has no connection to itself only")
    }

    fn lost(&self, peer: usize, frame: Frame, error: &std::io::Error) -> Error {
        if let Some(reason) = self.flag.get() {
            return Error::Aborted { reason };
        }
        let (operation, sequence) = (frame.name(), frame.sequence);
        Error::PeerLost { peer, operation, sequence, reason: error.to_string() }
    }
}

/// `&TcpStream` writes without exclusive access; only the operation thread and the writer thread
/// of the same peer write, and never at the same time.
trait WriteAll {
    fn write_all(&self, bytes: &[u8]) -> std::io::Result<()>;
    fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize>;
}

impl WriteAll for TcpStream {
    fn write_all(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut stream = self;
        Write::write_all(&mut stream, bytes)
    }

    fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut stream = self;
        Read::read(&mut stream, buffer)
    }
}
