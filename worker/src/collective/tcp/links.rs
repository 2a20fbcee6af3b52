//! The connections of one rank, driven both ways by one thread: while it waits for a peer's bytes
//! it sends what is queued, and it watches every peer for a hang-up.
//!
//! No other thread touches the tensors, so when an operation has reported its end, good or bad,
//! nothing reads or writes their memory any more.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::Error;
use super::abort::{AbortFlag, AbortHandle};
use super::channel::{Channel, PEER_CLOSED};
use super::frame::{Frame, Operation};
use crate::ffi::memory::HostBytes;
use crate::progress::{self, Work};

/// How often a blocked operation looks at the abort flag and its deadline.
const POLL_INTERVAL_MS: u16 = 100;
/// How often a blocked operation asks whether its peers' hosts still answer.
const HOST_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes on their way to a peer.
struct Segment {
    head: [u8; Frame::LEN],
    /// Bytes of `head` that are still to be sent.
    head_left: usize,
    data: HostBytes,
    range: Range<usize>,
}

/// Everything one rank holds of the ring.
pub(super) struct Links {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    channels: Vec<Option<Channel>>,
    outgoing: Vec<VecDeque<Segment>>,
    abort: AbortHandle,
    deadline: Option<Duration>,
    /// Since when nothing has moved.
    stalled: Option<Instant>,
    hosts_asked: Instant,
}

impl Links {
    /// Takes one connection per peer, none at this rank's own place.
    pub(super) fn new(
        rank: usize,
        channels: Vec<Option<Channel>>,
        deadline: Option<Duration>,
        flag: AbortFlag,
    ) -> Self {
        let streams = channels.iter().flatten().map(|c| Arc::clone(c.stream())).collect();
        Self {
            rank,
            world_size: channels.len(),
            outgoing: channels.iter().map(|_| VecDeque::new()).collect(),
            channels,
            abort: AbortHandle { flag, streams: Arc::new(streams) },
            deadline,
            stalled: None,
            hosts_asked: Instant::now(),
        }
    }

    pub(super) fn abort_handle(&self) -> &AbortHandle {
        &self.abort
    }

    pub(super) fn check_abort(&self) -> Result<(), Error> {
        self.abort.flag.check()
    }

    /// Returns the other ranks, beginning with the next one.
    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world_size) = (self.rank, self.world_size);
        (1..world_size).map(move |distance| (rank + distance) % world_size)
    }

    /// Queues the header of a message and a part of `data` for `peer`.
    pub(super) fn send(&mut self, peer: usize, frame: Frame, data: HostBytes, range: Range<usize>) {
        let segment = Segment { head: frame.encode(), head_left: Frame::LEN, data, range };
        self.outgoing[peer].push_back(segment);
    }

    /// Queues more of the last message for `peer`.
    pub(super) fn send_more(&mut self, peer: usize, data: HostBytes, range: Range<usize>) {
        if !range.is_empty() {
            let segment = Segment { head: [0; Frame::LEN], head_left: 0, data, range };
            self.outgoing[peer].push_back(segment);
        }
    }

    /// Forgets what was queued, as after a failure.
    pub(super) fn forget_sends(&mut self) {
        self.outgoing.iter_mut().for_each(VecDeque::clear);
    }

    /// Receives a header from `peer` and checks that it is the expected one.
    pub(super) fn expect(&mut self, peer: usize, want: Frame) -> Result<(), Error> {
        let mut buffer = [0; Frame::LEN];
        self.receive(peer, want, &mut buffer)?;
        let got = Frame::decode(&buffer);
        if got != Some(want) {
            let got = got.map_or_else(|| "an unreadable frame".to_owned(), |f| f.to_string());
            return Err(Error::Mismatch { peer, got, want: want.to_string() });
        }
        Ok(())
    }

    /// Fills `buffer` from `peer`, sending meanwhile.
    pub(super) fn receive(
        &mut self,
        peer: usize,
        frame: Frame,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.channel(peer).read(&mut buffer[filled..]) {
                Ok(Some(0)) => return Err(self.lost(peer, frame, &"closed by peer")),
                Ok(Some(read)) => {
                    filled += read;
                    self.stalled = None;
                    progress::advance_by(Work::Transfer, read);
                }
                Ok(None) if self.send_queued(frame)? => {}
                Ok(None) => {
                    let waited = self.channel(peer).await_bytes(buffer.len() - filled);
                    waited.map_err(|e| self.lost(peer, frame, &e))?;
                    self.wait(Some(peer), frame)?;
                }
                Err(e) => return Err(self.lost(peer, frame, &e)),
            }
        }
        Ok(())
    }

    /// Sends what the sockets take at once, in the middle of other work.
    pub(super) fn send_meanwhile(&mut self, frame: Frame) -> Result<(), Error> {
        self.check_abort()?;
        self.send_queued(frame).map(drop)
    }

    /// Waits until everything queued is in the kernel, so its memory may change.
    pub(super) fn flush(&mut self, frame: Frame) -> Result<(), Error> {
        while self.is_sending() {
            if !self.send_queued(frame)? {
                self.wait(None, frame)?;
            }
        }
        Ok(())
    }

    fn is_sending(&self) -> bool {
        let queued = self.outgoing.iter().any(|queue| !queue.is_empty());
        queued || self.channels.iter().flatten().any(Channel::holds_back)
    }

    /// Writes what the sockets take without blocking; whether they took anything.
    fn send_queued(&mut self, frame: Frame) -> Result<bool, Error> {
        let mut moved = false;
        for peer in self.peers() {
            match send_some(self.channels[peer].as_mut(), &mut self.outgoing[peer]) {
                Ok(some) => moved |= some,
                Err(e) => return Err(self.lost(peer, frame, &e)),
            }
        }
        if moved {
            self.stalled = None;
        }
        Ok(moved)
    }

    /// Sleeps until `awaited` has bytes or a queued send has room, for a moment at most; a hang-up
    /// of any peer is an error at once.
    fn wait(&mut self, awaited: Option<usize>, frame: Frame) -> Result<(), Error> {
        self.check_abort()?;
        let leaving = frame.operation == Operation::Goodbye;
        let mut peers = Vec::with_capacity(self.world_size);
        let mut fds = Vec::with_capacity(self.world_size);
        for (peer, channel) in self.channels.iter().enumerate() {
            let Some(channel) = channel else { continue };
            let mut events =
                channel.interest(!self.outgoing[peer].is_empty(), awaited == Some(peer));
            // Who has said goodbye may close.
            events.set(PEER_CLOSED, !leaving || !events.is_empty());
            if !events.is_empty() {
                peers.push(peer);
                fds.push(PollFd::new(channel.as_fd(), events));
            }
        }
        let ready = match poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(self.lost(awaited.unwrap_or(self.rank), frame, &e)),
        };
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let hung_up = peers.iter().zip(&fds).find(|(peer, fd)| {
            // nix has no name for POLLRDHUP and returns None for it.
            let events = fd.revents().unwrap_or(PollFlags::POLLHUP);
            // Reading tells what the awaited peer has left behind.
            awaited != Some(**peer) && events.intersects(gone)
        });
        match hung_up {
            Some((&peer, _)) if !leaving => Err(self.lost(peer, frame, &"closed by peer")),
            _ if ready == 0 => self.check_stall(awaited, frame),
            _ => Ok(()),
        }
    }

    /// Nothing moves: a deadline may have passed, or a host may be gone without a word.
    fn check_stall(&mut self, awaited: Option<usize>, frame: Frame) -> Result<(), Error> {
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if let Some(deadline) = self.deadline
            && since.elapsed() > deadline
        {
            let behind = || self.peers().find(|&peer| !self.outgoing[peer].is_empty());
            let peer = awaited.or_else(behind).unwrap_or(self.rank);
            let (operation, sequence) = (frame.operation.name(), frame.sequence);
            return Err(Error::Deadline { operation, sequence, peer, deadline });
        }
        if self.hosts_asked.elapsed() < HOST_INTERVAL {
            return Ok(());
        }
        self.hosts_asked = Instant::now();
        for peer in self.peers() {
            if let Some(seconds) = self.channel(peer).host_is_gone() {
                let reason = format!("its host has not answered for {seconds} s");
                return Err(self.lost(peer, frame, &reason));
            }
        }
        Ok(())
    }

    fn channel(&mut self, peer: usize) -> &mut Channel {
        self.channels[peer].as_mut().expect("a rank has no connection to itself only")
    }

    fn lost(&self, peer: usize, frame: Frame, reason: &dyn std::fmt::Display) -> Error {
        if let Err(aborted) = self.check_abort() {
            return aborted;
        }
        let (operation, sequence) = (frame.operation.name(), frame.sequence);
        Error::PeerLost { peer, operation, sequence, reason: reason.to_string() }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // Also when the thread that owned this has panicked: the peers must not wait for it.
        self.abort.abort("the ring is closed");
    }
}

/// Sends from the front of `queue` until the connection takes no more.
fn send_some(
    channel: Option<&mut Channel>,
    queue: &mut VecDeque<Segment>,
) -> std::io::Result<bool> {
    let Some(channel) = channel else { return Ok(false) };
    let mut moved = false;
    while let Some(segment) = queue.front_mut() {
        let head = &segment.head[Frame::LEN - segment.head_left..];
        let data = segment.data.read(segment.range.clone());
        let Some(mut written) = channel.write(head, data)? else { return Ok(moved) };
        moved = true;
        progress::advance_by(Work::Transfer, written);
        let of_head = written.min(segment.head_left);
        segment.head_left -= of_head;
        written -= of_head;
        segment.range.start += written;
        if segment.head_left == 0 && segment.range.is_empty() {
            queue.pop_front();
        } else if segment.head_left == 0 {
            // The socket took a part: it is full, and the receives have waited.
            return Ok(moved);
        }
    }
    if channel.holds_back() {
        moved |= channel.flush()?;
    }
    Ok(moved)
}
