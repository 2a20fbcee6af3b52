//! One connection to a peer, plain or TLS; no call on it ever blocks.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::Connection;

use crate::ffi::socket::{answering, wake_from};

/// The peer closed its side; missing from nix's own flags.
pub(super) const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
/// Seconds of silence after which an idle connection is probed, and seconds between probes.
const KEEPALIVE_IDLE: u32 = 5;
const KEEPALIVE_INTERVAL: u32 = 1;
/// Unanswered probes after which the peer's host is taken to be gone.
const KEEPALIVE_PROBES: u32 = 5;
/// The same for a connection with bytes under way, on which the kernel sends no such probes.
const UNANSWERED_MS: u32 = 10_000;
/// Bytes handed over in one call, so that one peer's sends do not hold up all receives.
const WRITE_AT_ONCE: usize = 1 << 20;
/// Bytes worth waking up for, if more are expected.
const WAKE_AT_MOST: usize = 1 << 20;
/// Bytes of plaintext a TLS connection takes before it has sent any.
const TLS_BUFFER: usize = 256 << 10;

/// A connection; `None` as a result means that it would block.
#[derive(Debug)]
pub(super) struct Channel {
    stream: Arc<TcpStream>,
    tls: Option<Box<Connection>>,
    /// Bytes from which on poll reports this socket as readable.
    wakes_from: usize,
}

impl Channel {
    /// Takes over a connected socket; a TLS handshake happens in the first reads and writes.
    pub(super) fn new(stream: TcpStream, tls: Option<Connection>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
        let tls = tls.map(|mut connection| {
            connection.set_buffer_limit(Some(TLS_BUFFER));
            Box::new(connection)
        });
        Ok(Self { stream: Arc::new(stream), tls, wakes_from: 1 })
    }

    pub(super) fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// Reads what is there; `Some(0)` means that the peer has closed.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else {
            return unless_blocked(|| (&*self.stream).read(buffer));
        };
        loop {
            // A handshake's answers go out with its reads.
            flush(tls, &self.stream)?;
            match tls.reader().read(buffer) {
                Ok(read) => return Ok(Some(read)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            match unless_blocked(|| tls.read_tls(&mut &*self.stream))? {
                None => return Ok(None),
                Some(0) => return Ok(Some(0)),
                Some(_) => {}
            }
            if let Err(error) = tls.process_new_packets() {
                // The peer is told why.
                let _ = flush(tls, &self.stream);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
    }

    /// Writes some of `head` and then `data`.
    pub(super) fn write(&mut self, head: &[u8], data: &[u8]) -> io::Result<Option<usize>> {
        let data = &data[..data.len().min(WRITE_AT_ONCE)];
        let slices = [IoSlice::new(head), IoSlice::new(data)];
        let Some(tls) = &mut self.tls else {
            return unless_blocked(|| {
                if head.is_empty() {
                    (&*self.stream).write(data)
                } else {
                    (&*self.stream).write_vectored(&slices)
                }
            });
        };
        flush(tls, &self.stream)?;
        let written = tls.writer().write_vectored(&slices)?;
        flush(tls, &self.stream)?;
        Ok((written > 0).then_some(written))
    }

    /// Hands what TLS holds back to the socket; true once nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.tls.as_mut().map_or(Ok(true), |tls| flush(tls, &self.stream))
    }

    /// Whether TLS holds bytes that the socket has not taken.
    pub(super) fn holds_back(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// The TLS state, for a look at the peer's certificate.
    pub(super) fn tls(&self) -> Option<&Connection> {
        self.tls.as_deref()
    }

    /// Whether the other end has closed or failed, whatever it had sent before.
    pub(super) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PEER_CLOSED)];
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0) | Err(Errno::EINTR))
    }

    /// Returns for how long the peer's host has left bytes unacknowledged, if that is too long.
    ///
    /// A peer that is alive but not reading closes its window and answers probes of it: that may
    /// go on for any time. `TCP_USER_TIMEOUT` would end such a connection too.
    pub(super) fn host_is_gone(&self) -> Option<u32> {
        let state = answering(self.stream.as_fd()).ok()?;
        let unanswered = (state.unacknowledged > 0 && state.retransmits > 1)
            || state.unanswered_probes as u32 >= KEEPALIVE_PROBES;
        (unanswered && state.silent_ms > UNANSWERED_MS).then_some(state.silent_ms / 1000)
    }

    /// Lets the wait for `wanted` bytes end when a good part of them has come: on a machine with
    /// more ranks than cores, waking up for each segment costs more than moving it.
    pub(super) fn await_bytes(&mut self, wanted: usize) -> io::Result<()> {
        let least = if self.tls.is_some() { 1 } else { wanted.clamp(1, WAKE_AT_MOST) };
        if least != self.wakes_from {
            wake_from(self.stream.as_fd(), least)?;
            self.wakes_from = least;
        }
        Ok(())
    }

    /// What to poll for: room to write if `sending` or TLS is behind, bytes if `receiving`.
    pub(super) fn interest(&self, sending: bool, receiving: bool) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, receiving);
        events.set(PollFlags::POLLOUT, sending || self.holds_back());
        events
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn flush(tls: &mut Connection, stream: &TcpStream) -> io::Result<bool> {
    while tls.wants_write() {
        if unless_blocked(|| tls.write_tls(&mut &*stream))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn unless_blocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(moved) => return Ok(Some(moved)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
