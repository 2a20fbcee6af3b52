//! Forming the mesh: every rank connects to the lower ranks and accepts the higher ones.
//!
//! The first message on a connection is a hello with generation, rank and token; the answer is one
//! byte. Strangers, stale generations and wrong tokens are turned away and do not disturb the ring.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringmaster_proto::v1::Generation;

use super::super::Error;
use super::{AbortFlag, Options};

const MAGIC: [u8; 8] = *b"RMTCP\0\0\x01";
const TOKEN_LEN: usize = 32;
const HELLO_LEN: usize = 8 + 4 + 4 + 4 + 4 + TOKEN_LEN;
const POLL_INTERVAL_MS: u16 = 50;
/// Time a peer that has connected may take over its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The acceptor's one-byte answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Answer {
    Welcome = 1,
    WrongGeneration = 2,
    WrongToken = 3,
    WrongRank = 4,
}

/// Returns one connection per peer, `None` at this rank's own place.
pub(super) fn mesh(
    listener: &TcpListener,
    options: &Options,
    abort: &AbortFlag,
) -> Result<Vec<Option<TcpStream>>, Error> {
    let world_size = options.peers.len();
    if options.token.len() != TOKEN_LEN {
        let reason = format!("the token has {} bytes, not {TOKEN_LEN}", options.token.len());
        return Err(Error::Connect { world_size, reason });
    }
    let deadline = Instant::now() + options.connect_timeout;
    let mut streams: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
    for (peer, slot) in streams.iter_mut().enumerate().take(options.rank) {
        *slot = Some(connect(peer, options, abort, deadline)?);
    }
    accept_higher(listener, options, abort, deadline, &mut streams)?;
    Ok(streams)
}

fn connect(
    peer: usize,
    options: &Options,
    abort: &AbortFlag,
    deadline: Instant,
) -> Result<TcpStream, Error> {
    let address = &options.peers[peer];
    loop {
        abort.check()?;
        let failure = match try_connect(address, options, deadline) {
            Ok((stream, Answer::Welcome)) => return Ok(stream),
            Ok((_, answer)) => {
                let reason = format!("rank {peer} at {address} refused this rank: {answer:?}");
                return Err(Error::Connect { world_size: options.peers.len(), reason });
            }
            Err(e) => e,
        };
        if Instant::now() >= deadline {
            let reason = format!("cannot reach rank {peer} at {address}: {failure}");
            return Err(Error::Connect { world_size: options.peers.len(), reason });
        }
        std::thread::sleep(Duration::from_millis(u64::from(POLL_INTERVAL_MS)));
    }
}

fn try_connect(
    address: &str,
    options: &Options,
    deadline: Instant,
) -> std::io::Result<(TcpStream, Answer)> {
    let target = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&target, left.min(HELLO_TIMEOUT))?;
    stream.set_nodelay(true)?;
    stream.write_all(&hello(options))?;
    // The peer answers when it accepts, which may be after it has connected to its own lower ranks.
    stream.set_read_timeout(Some(left))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    stream.set_read_timeout(None)?;
    let answer = match answer[0] {
        1 => Answer::Welcome,
        2 => Answer::WrongGeneration,
        3 => Answer::WrongToken,
        4 => Answer::WrongRank,
        other => return Err(std::io::Error::other(format!("answered {other}"))),
    };
    Ok((stream, answer))
}

fn hello(options: &Options) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    hello[..8].copy_from_slice(&MAGIC);
    let Generation { incarnation, counter } = options.generation;
    let words = [incarnation, counter, options.rank as u32, options.peers.len() as u32];
    for (slot, word) in hello[8..24].chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    hello[24..].copy_from_slice(&options.token);
    hello
}

fn accept_higher(
    listener: &TcpListener,
    options: &Options,
    abort: &AbortFlag,
    deadline: Instant,
    streams: &mut [Option<TcpStream>],
) -> Result<(), Error> {
    let world_size = options.peers.len();
    let failed = |reason: String| Error::Connect { world_size, reason };
    listener.set_nonblocking(true).map_err(|e| failed(format!("listener: {e}")))?;
    while let Some(missing) = (options.rank + 1..world_size).find(|&peer| streams[peer].is_none()) {
        abort.check()?;
        if Instant::now() >= deadline {
            return Err(failed(format!("rank {missing} did not connect in time")));
        }
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS));
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok((peer, stream)) = welcome(stream, options, streams) {
                    streams[peer] = Some(stream);
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(failed(format!("accept: {e}"))),
        }
    }
    Ok(())
}

/// Reads a newcomer's hello and answers it; an error means that it was turned away.
fn welcome(
    mut stream: TcpStream,
    options: &Options,
    streams: &[Option<TcpStream>],
) -> std::io::Result<(usize, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let mut got = [0; HELLO_LEN];
    stream.read_exact(&mut got)?;
    let mut wanted = hello(options);
    wanted[16..20].copy_from_slice(&got[16..20]);
    let peer = u32::from_le_bytes([got[16], got[17], got[18], got[19]]) as usize;
    let answer = if got[..16] != wanted[..16] {
        Answer::WrongGeneration
    } else if !same_secret(&got[24..], &wanted[24..]) {
        Answer::WrongToken
    } else if got[20..24] != wanted[20..24]
        || peer <= options.rank
        || peer >= options.peers.len()
        || streams[peer].is_some()
    {
        Answer::WrongRank
    } else {
        Answer::Welcome
    };
    stream.write_all(&[answer as u8])?;
    if answer != Answer::Welcome {
        return Err(std::io::Error::other(format!("{answer:?}")));
    }
    stream.set_read_timeout(None)?;
    Ok((peer, stream))
}

/// Compares without an early exit, so that timing tells nothing about the token.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
