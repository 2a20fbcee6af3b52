//! Forming the mesh: every rank connects to the lower ranks and accepts the higher ones.
//!
//! The first message on a connection is a hello with generation, rank and token; the answer is one
//! byte. Strangers, stale generations and wrong tokens are turned away and do not disturb the
//! ring, nor does a connection that says nothing: all newcomers are listened to at the same time.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::Error;
use super::channel::Channel;
use super::hello::{Answer, HELLO_LEN, Hello};
use super::{AbortFlag, Options};

/// How often the wait for peers looks at the abort flag; the pause between attempts to connect.
const POLL_INTERVAL_MS: u16 = 50;
/// Time one attempt to connect may take before the abort flag is looked at.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Time a newcomer may take over its handshake and hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Newcomers listened to at the same time; more of them wait in the listener's queue.
const NEWCOMERS: usize = 256;

/// The mesh as far as it has been formed.
pub(super) struct Mesh<'a> {
    options: &'a Options,
    abort: &'a AbortFlag,
    deadline: Instant,
    channels: Vec<Option<Channel>>,
}

/// A connection that has not yet said who it is.
struct Newcomer {
    channel: Channel,
    address: SocketAddr,
    since: Instant,
    hello: [u8; HELLO_LEN],
    filled: usize,
}

/// Returns one connection per peer, `None` at this rank's own place.
pub(super) fn mesh(
    listener: &TcpListener,
    options: &Options,
    abort: &AbortFlag,
) -> Result<Vec<Option<Channel>>, Error> {
    let mut mesh = Mesh {
        options,
        abort,
        deadline: Instant::now() + options.connect_timeout,
        channels: options.peers.iter().map(|_| None).collect(),
    };
    Hello::of(options).map_err(|reason| mesh.failed(reason))?;
    for peer in 0..options.rank {
        mesh.channels[peer] = Some(mesh.connect(peer)?);
    }
    mesh.accept_higher(listener)?;
    Ok(mesh.channels)
}

impl Mesh<'_> {
    fn failed(&self, reason: String) -> Error {
        Error::Connect { world_size: self.options.peers.len(), reason }
    }

    fn connect(&self, peer: usize) -> Result<Channel, Error> {
        let address = &self.options.peers[peer];
        loop {
            self.abort.check()?;
            let failure = match self.try_connect(peer, address) {
                Ok((channel, Answer::Welcome)) => return Ok(channel),
                Ok((_, answer)) => {
                    let reason = format!("rank {peer} at {address} refused this rank: {answer:?}");
                    return Err(self.failed(reason));
                }
                // What TLS refuses once it refuses always.
                Err(e) if e.kind() == ErrorKind::InvalidData => {
                    return Err(self.failed(format!("rank {peer} at {address}: {e}")));
                }
                Err(e) => e,
            };
            self.abort.check()?;
            if Instant::now() >= self.deadline {
                let reason = format!("cannot reach rank {peer} at {address}: {failure}");
                return Err(self.failed(reason));
            }
            // The peer may not listen yet.
            std::thread::sleep(Duration::from_millis(u64::from(POLL_INTERVAL_MS)));
        }
    }

    /// Says hello and waits for the answer, which the peer gives when it accepts: that may be
    /// after it has connected to its own lower ranks.
    fn try_connect(&self, peer: usize, address: &str) -> io::Result<(Channel, Answer)> {
        let stream = dial(address)?;
        let tls = match &self.options.tls {
            Some(tls) => Some(tls.connect(self.options.generation, peer)?),
            None => None,
        };
        let mut channel = Channel::new(stream, tls)?;
        let hello = Hello::of(self.options).map_err(io::Error::other)?.encode();
        let mut said = 0;
        let mut answer = [0];
        while Instant::now() < self.deadline && self.abort.get().is_none() {
            if said < hello.len() {
                said += channel.write(&[], &hello[said..])?.unwrap_or(0);
            }
            match channel.read(&mut answer)? {
                Some(0) => return Err(io::Error::other("the connection was closed")),
                Some(_) => return Ok((channel, Answer::decode(answer[0])?)),
                None => {}
            }
            let events = channel.interest(said < hello.len(), true);
            let mut fds = [PollFd::new(channel.as_fd(), events)];
            let _ = poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS));
        }
        Err(io::Error::other("no answer"))
    }

    fn accept_higher(&mut self, listener: &TcpListener) -> Result<(), Error> {
        listener.set_nonblocking(true).map_err(|e| self.failed(format!("listener: {e}")))?;
        let mut newcomers: Vec<Newcomer> = Vec::new();
        while let Some(missing) = self.missing() {
            self.abort.check()?;
            if Instant::now() >= self.deadline {
                return Err(self.failed(format!("rank {missing} did not connect in time")));
            }
            wait(listener, &newcomers);
            self.accept(listener, &mut newcomers)?;
            for mut newcomer in std::mem::take(&mut newcomers) {
                match self.listen_to(&mut newcomer) {
                    Ok(Some(peer)) => self.channels[peer] = Some(newcomer.channel),
                    Ok(None) => newcomers.push(newcomer),
                    Err(reason) => {
                        tracing::warn!(address = %newcomer.address, %reason, "turned away");
                    }
                }
            }
        }
        Ok(())
    }

    fn missing(&self) -> Option<usize> {
        (self.options.rank + 1..self.channels.len()).find(|&peer| self.channels[peer].is_none())
    }

    /// Takes over all that wait in the listener's queue.
    fn accept(&self, listener: &TcpListener, newcomers: &mut Vec<Newcomer>) -> Result<(), Error> {
        while newcomers.len() < NEWCOMERS {
            let (stream, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // The newcomer is gone again, or a signal came.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Interrupted
                            | ErrorKind::ConnectionAborted
                            | ErrorKind::ConnectionReset
                    ) =>
                {
                    continue;
                }
                Err(e) => return Err(self.failed(format!("accept: {e}"))),
            };
            let tls = match self.options.tls.as_ref().map(super::Tls::accept).transpose() {
                Ok(tls) => tls,
                Err(e) => return Err(self.failed(e.to_string())),
            };
            if let Ok(channel) = Channel::new(stream, tls) {
                let (since, hello) = (Instant::now(), [0; HELLO_LEN]);
                newcomers.push(Newcomer { channel, address, since, hello, filled: 0 });
            }
        }
        Ok(())
    }

    /// Reads what a newcomer has said so far, and answers its complete hello; returns its rank if
    /// it is welcome, an error if it is turned away.
    fn listen_to(&self, newcomer: &mut Newcomer) -> io::Result<Option<usize>> {
        while newcomer.filled < HELLO_LEN {
            match newcomer.channel.read(&mut newcomer.hello[newcomer.filled..])? {
                Some(0) => return Err(io::Error::other("left without a hello")),
                Some(read) => newcomer.filled += read,
                None if newcomer.since.elapsed() > HELLO_TIMEOUT => {
                    return Err(io::Error::other("said no hello in time"));
                }
                None => return Ok(None),
            }
        }
        let (peer, answer) = self.judge(newcomer);
        // One byte always fits the empty send buffer of a fresh connection.
        newcomer.channel.write(&[], &[answer as u8])?;
        match answer {
            Answer::Welcome => Ok(Some(peer)),
            refusal => Err(io::Error::other(format!("{refusal:?}"))),
        }
    }

    fn judge(&self, newcomer: &Newcomer) -> (usize, Answer) {
        let options = self.options;
        let hello = match Hello::of(options) {
            Ok(own) => own.judge(&newcomer.hello),
            Err(_) => Err(Answer::WrongToken),
        };
        let peer = match hello {
            Ok(peer) => peer,
            Err(refusal) => return (0, refusal),
        };
        // A rank whose first connection has died before the ring was formed may come again.
        let taken = self.channels[peer].as_ref().is_some_and(|channel| !channel.is_closed());
        if taken {
            return (peer, Answer::WrongRank);
        }
        let certified = match (&options.tls, newcomer.channel.tls()) {
            (Some(tls), Some(state)) => tls.check(state, options.generation, peer).is_ok(),
            (None, None) => true,
            _ => false,
        };
        (peer, if certified { Answer::Welcome } else { Answer::WrongCertificate })
    }
}

/// Sleeps until somebody comes or a newcomer speaks, for a moment at most.
fn wait(listener: &TcpListener, newcomers: &[Newcomer]) {
    let mut fds = Vec::with_capacity(newcomers.len() + 1);
    if newcomers.len() < NEWCOMERS {
        fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    }
    for newcomer in newcomers {
        let channel = &newcomer.channel;
        fds.push(PollFd::new(channel.as_fd(), channel.interest(false, true)));
    }
    let _ = poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS));
}

/// Connects to the first address of `name` that answers.
fn dial(name: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("the name has no address");
    for address in name.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}
