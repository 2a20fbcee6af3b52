//! Forming the mesh: every rank connects to the lower ranks and accepts the higher ones (`accept`).
//!
//! What both ends say to each other is in `hello`. A peer that closes a connection while the mesh
//! is formed ends the formation: nobody waits for it until the timeout.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};

use super::super::Error;
use super::accept::Acceptor;
use super::channel::Channel;
use super::hello::{ANSWER_LEN, Answer, Member, NONCE_LEN, nonce};
use super::{AbortFlag, Options, tls};

/// How often the wait for peers looks at the abort flag; the pause between attempts to connect.
pub(super) const POLL_INTERVAL_MS: u16 = 50;
/// Time one attempt to connect may take before the abort flag is looked at.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Time a higher rank whose connection has closed may take to dial again.
const RETURN: Duration = Duration::from_secs(1);

/// The mesh as far as it has been formed.
struct Mesh<'a> {
    options: &'a Options,
    abort: &'a AbortFlag,
    deadline: Instant,
    channels: Vec<Option<Channel>>,
    /// Since when the connection of a rank has been seen closed.
    closed: Vec<Option<Instant>>,
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
        closed: vec![None; options.peers.len()],
    };
    Member::of(options).map_err(|reason| mesh.failed(Vec::new(), reason))?;
    for peer in 0..options.rank {
        mesh.channels[peer] = Some(mesh.connect(peer)?);
    }
    mesh.accept_higher(listener)?;
    Ok(mesh.channels)
}

impl Mesh<'_> {
    fn failed(&self, peers: Vec<usize>, reason: String) -> Error {
        Error::Connect { world_size: self.options.peers.len(), peers, reason }
    }

    /// Returns a rank that was connected and is gone: a lower one as soon as its end has closed, a
    /// higher one, which may have given up only this connection, when it has not come again.
    fn gone(&mut self) -> Option<usize> {
        for (peer, channel) in self.channels.iter().enumerate() {
            if !channel.as_ref().is_some_and(Channel::is_closed) {
                self.closed[peer] = None;
                continue;
            }
            let since = *self.closed[peer].get_or_insert_with(Instant::now);
            if peer < self.options.rank || since.elapsed() > RETURN {
                return Some(peer);
            }
        }
        None
    }

    /// Whether to go on: not if an abort or the loss of a peer has ended the formation.
    fn check(&mut self) -> Result<(), Error> {
        self.abort.check()?;
        self.gone().map_or(Ok(()), |peer| {
            let reason = "it has left while the ring was being formed".to_owned();
            Err(Error::PeerLost { peer, operation: "connect", sequence: 0, reason })
        })
    }

    fn connect(&mut self, peer: usize) -> Result<Channel, Error> {
        let options = self.options;
        let address = &options.peers[peer];
        loop {
            self.check()?;
            let failure = match self.try_connect(peer, address) {
                Ok((channel, Answer::Welcome)) => return Ok(channel),
                // Until the peer sees that the earlier connection is dead.
                Ok((_, Answer::Taken)) => {
                    io::Error::other("it still holds another connection of this rank")
                }
                Ok((_, answer)) => {
                    let reason = format!("rank {peer} at {address} refused this rank: {answer:?}");
                    return Err(self.failed(vec![peer], reason));
                }
                // Refused once, refused always.
                Err(e) if tls::is_about_certificates(&e) => {
                    let reason = format!("rank {peer} at {address}: {e}");
                    return Err(self.failed(vec![peer], reason));
                }
                // The address may still be somebody else's, who does not even speak TLS.
                Err(e) => e,
            };
            self.check()?;
            if Instant::now() >= self.deadline {
                let reason = format!("cannot reach rank {peer} at {address}: {failure}");
                return Err(self.failed(vec![peer], reason));
            }
            // The peer may not listen yet.
            std::thread::sleep(Duration::from_millis(u64::from(POLL_INTERVAL_MS)));
        }
    }

    /// Says hello and waits for the answer, which the peer gives when it accepts: that may be
    /// after it has connected to its own lower ranks.
    fn try_connect(&mut self, peer: usize, address: &str) -> io::Result<(Channel, Answer)> {
        let options = self.options;
        let stream = dial(address)?;
        let tls = options.tls.as_ref().map(|tls| tls.connect(options.generation, peer));
        let mut channel = Channel::new(stream, tls.transpose()?)?;
        let member = Member::of(options).map_err(io::Error::other)?;
        let own = nonce();
        let challenge: [u8; NONCE_LEN] = self.receive(&mut channel)?;
        self.send(&mut channel, &member.hello(peer, challenge, own))?;
        let answer: [u8; ANSWER_LEN] = self.receive(&mut channel)?;
        Ok((channel, member.read_answer(peer, challenge, own, &answer)?))
    }

    fn receive<const LEN: usize>(&mut self, channel: &mut Channel) -> io::Result<[u8; LEN]> {
        let mut bytes = [0; LEN];
        let mut filled = 0;
        while filled < LEN {
            match channel.read(&mut bytes[filled..])? {
                Some(0) => return Err(io::Error::other("the connection was closed")),
                Some(read) => filled += read,
                None => self.wait(channel, false)?,
            }
        }
        Ok(bytes)
    }

    fn send(&mut self, channel: &mut Channel, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match channel.write(&[], bytes)? {
                Some(written) => bytes = &bytes[written..],
                None => self.wait(channel, true)?,
            }
        }
        Ok(())
    }

    /// Sleeps until the connection is ready, for a moment at most.
    fn wait(&mut self, channel: &Channel, sending: bool) -> io::Result<()> {
        if Instant::now() >= self.deadline || self.check().is_err() {
            return Err(io::Error::other("no answer"));
        }
        let mut fds = [PollFd::new(channel.as_fd(), channel.interest(sending, !sending))];
        let _ = poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS));
        Ok(())
    }

    fn accept_higher(&mut self, listener: &TcpListener) -> Result<(), Error> {
        let acceptor = Acceptor::new(listener, self.options);
        let mut acceptor =
            acceptor.map_err(|e| self.failed(Vec::new(), format!("listener: {e}")))?;
        loop {
            let missing = self.missing();
            let Some(first) = missing.first() else { return Ok(()) };
            self.check()?;
            if Instant::now() >= self.deadline {
                let reason = match missing.len() {
                    1 => format!("rank {first} did not connect in time"),
                    count => {
                        format!("{count} ranks, rank {first} among them, did not connect in time")
                    }
                };
                return Err(self.failed(missing, reason));
            }
            acceptor.wait();
            acceptor.admit().map_err(|reason| self.failed(Vec::new(), reason))?;
            acceptor.hear(&mut self.channels);
        }
    }

    /// Returns the higher ranks that are not connected.
    fn missing(&self) -> Vec<usize> {
        let is_missing =
            |&peer: &usize| self.channels[peer].as_ref().is_none_or(Channel::is_closed);
        (self.options.rank + 1..self.channels.len()).filter(is_missing).collect()
    }
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
