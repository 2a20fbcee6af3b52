//! Who comes to a rank's listener: higher ranks, and strangers that must not disturb the ring.
//!
//! Strangers, stale generations and wrong tokens are turned away. All newcomers are listened to at
//! the same time; where there is room for no more of them, those that say nothing make room.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Options;
use super::channel::Channel;
use super::connect::POLL_INTERVAL_MS;
use super::hello::{Answer, HELLO_LEN, Member, Nonce, nonce};

/// Time a newcomer may take over its handshake and hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while others wait for its place.
const PATIENCE: Duration = Duration::from_millis(300);
/// Newcomers listened to at the same time; more of them wait in the listener's queue.
const NEWCOMERS: usize = 256;

/// A connection that has not yet said who it is.
struct Newcomer {
    channel: Channel,
    address: SocketAddr,
    since: Instant,
    challenge: Nonce,
    hello: [u8; HELLO_LEN],
    filled: usize,
}

/// A listener and those who have come to it.
pub(super) struct Acceptor<'a> {
    listener: &'a TcpListener,
    options: &'a Options,
    /// The oldest first.
    newcomers: Vec<Newcomer>,
    /// Whether nobody else can be let in at the moment.
    is_full: bool,
}

/// What to do after a failed accept(2).
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nobody waits.
    Stop,
    /// The one who waited is gone, or its network failed; others may wait.
    GoOn,
    /// The process or the system has no descriptor or memory left.
    MakeRoom,
    /// The listener is broken.
    Fail,
}

impl Next {
    /// As accept(2) advises: errors of the new connection's network are no errors of the listener.
    fn after(error: &io::Error) -> Self {
        use Errno as E;
        match error.raw_os_error().map_or(E::UnknownErrno, E::from_raw) {
            E::EAGAIN => Self::Stop,
            E::EMFILE | E::ENFILE | E::ENOBUFS | E::ENOMEM => Self::MakeRoom,
            E::EINTR | E::ECONNABORTED | E::ECONNRESET | E::EPERM | E::ETIMEDOUT => Self::GoOn,
            E::ENETDOWN | E::EPROTO | E::ENOPROTOOPT | E::EHOSTDOWN | E::ENONET => Self::GoOn,
            E::EHOSTUNREACH | E::EOPNOTSUPP | E::ENETUNREACH => Self::GoOn,
            _ => Self::Fail,
        }
    }
}

impl<'a> Acceptor<'a> {
    /// Opens the listener.
    pub(super) fn new(listener: &'a TcpListener, options: &'a Options) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, options, newcomers: Vec::new(), is_full: false })
    }

    /// Sleeps until somebody comes or a newcomer speaks, for a moment at most.
    pub(super) fn wait(&self) {
        let mut fds = Vec::with_capacity(self.newcomers.len() + 1);
        if !self.is_full {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for newcomer in &self.newcomers {
            let channel = &newcomer.channel;
            fds.push(PollFd::new(channel.as_fd(), channel.interest(false, true)));
        }
        let _ = poll(&mut fds, PollTimeout::from(POLL_INTERVAL_MS));
    }

    /// Lets in those who wait in the listener's queue, as many as there is room for.
    ///
    /// # Errors
    /// Why nobody can come in any more.
    pub(super) fn admit(&mut self) -> Result<(), String> {
        self.is_full = false;
        // A round has an end, however many come.
        for _ in 0..NEWCOMERS {
            let is_crowded = self.newcomers.len() >= NEWCOMERS;
            if is_crowded && self.replaceable().is_none() {
                self.is_full = true;
                break;
            }
            match self.listener.accept() {
                Ok((stream, address)) => {
                    if is_crowded {
                        self.make_room();
                    }
                    self.challenge(stream, address)?;
                }
                Err(e) => match Next::after(&e) {
                    Next::Stop => break,
                    Next::GoOn => {}
                    Next::MakeRoom if self.make_room() => {}
                    Next::MakeRoom => {
                        self.is_full = true;
                        break;
                    }
                    Next::Fail => return Err(format!("accept: {e}")),
                },
            }
        }
        Ok(())
    }

    /// Returns whom to send away for another: the oldest who has said nothing, else the oldest.
    fn replaceable(&self) -> Option<usize> {
        let had_time = |newcomer: &Newcomer| newcomer.since.elapsed() > PATIENCE;
        let is_silent = |newcomer: &Newcomer| newcomer.filled == 0 && had_time(newcomer);
        let silent = self.newcomers.iter().position(is_silent);
        silent.or_else(|| self.newcomers.iter().position(had_time))
    }

    fn make_room(&mut self) -> bool {
        let Some(at) = self.replaceable() else { return false };
        let address = self.newcomers.remove(at).address;
        tracing::warn!(%address, "sent away to make room: it has not said who it is");
        true
    }

    fn challenge(&mut self, stream: TcpStream, address: SocketAddr) -> Result<(), String> {
        let tls = self.options.tls.as_ref().map(super::Tls::accept);
        let tls = tls.transpose().map_err(|e| e.to_string())?;
        let challenge = nonce();
        let greeted = Channel::new(stream, tls).and_then(|mut channel| {
            send_little(&mut channel, &challenge)?;
            Ok(channel)
        });
        // Whoever is gone already is nobody's loss.
        if let Ok(channel) = greeted {
            let (since, hello) = (Instant::now(), [0; HELLO_LEN]);
            let newcomer = Newcomer { channel, address, since, challenge, hello, filled: 0 };
            self.newcomers.push(newcomer);
        }
        Ok(())
    }

    /// Listens to all newcomers and puts those who are welcome in the place of their rank.
    pub(super) fn hear(&mut self, channels: &mut [Option<Channel>]) {
        for mut newcomer in std::mem::take(&mut self.newcomers) {
            match self.listen_to(&mut newcomer, channels) {
                Ok(Some(peer)) => channels[peer] = Some(newcomer.channel),
                Ok(None) => self.newcomers.push(newcomer),
                Err(reason) => {
                    tracing::warn!(address = %newcomer.address, %reason, "turned away");
                }
            }
        }
    }

    /// Reads what a newcomer has said so far, and answers its complete hello; returns its rank if
    /// it is welcome, an error if it is turned away.
    fn listen_to(
        &self,
        newcomer: &mut Newcomer,
        channels: &[Option<Channel>],
    ) -> io::Result<Option<usize>> {
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
        let member = Member::of(self.options).map_err(io::Error::other)?;
        let (peer, answer) = match self.judge(member, newcomer, channels) {
            Ok(peer) => (Some(peer), Answer::Welcome),
            Err(refusal) => (None, refusal),
        };
        let bytes = member.answer(newcomer.challenge, &newcomer.hello, answer);
        send_little(&mut newcomer.channel, &bytes)?;
        match peer {
            Some(peer) => Ok(Some(peer)),
            None => Err(io::Error::other(format!("{answer:?}"))),
        }
    }

    fn judge(
        &self,
        member: Member<'_>,
        newcomer: &Newcomer,
        channels: &[Option<Channel>],
    ) -> Result<usize, Answer> {
        let peer = member.judge(newcomer.challenge, &newcomer.hello)?;
        let certified = match (&self.options.tls, newcomer.channel.tls()) {
            (Some(tls), Some(state)) => tls.check(state, self.options.generation, peer).is_ok(),
            (None, None) => true,
            _ => false,
        };
        if !certified {
            return Err(Answer::WrongCertificate);
        }
        // A rank whose first connection has died before the ring was formed may come again.
        if channels[peer].as_ref().is_some_and(|channel| !channel.is_closed()) {
            Err(Answer::Taken)
        } else {
            Ok(peer)
        }
    }
}

/// Sends a few bytes, which always fit the empty send buffer of a fresh connection.
fn send_little(channel: &mut Channel, bytes: &[u8]) -> io::Result<()> {
    match channel.write(&[], bytes)? {
        Some(written) if written == bytes.len() => Ok(()),
        _ => Err(io::Error::other("takes no bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_newcomers_network_do_not_end_the_listening_and_a_lack_of_descriptors_makes_room()
    {
        let after = |errno: Errno| Next::after(&io::Error::from(errno));
        assert_eq!(after(Errno::EWOULDBLOCK), Next::Stop);
        for errno in [Errno::ECONNABORTED, Errno::ENETUNREACH, Errno::EPROTO, Errno::EHOSTDOWN] {
            assert_eq!(after(errno), Next::GoOn, "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS] {
            assert_eq!(after(errno), Next::MakeRoom, "{errno}");
        }
        assert_eq!(after(Errno::EBADF), Next::Fail);
        assert_eq!(Next::after(&io::Error::other("something else")), Next::Fail);
    }
}
