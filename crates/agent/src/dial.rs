//! Whether nodes reach one another.
//!
//! Every agent listens at the address that other nodes' ranks are told, and says its node's name to whoever
//! connects. Before ranks of several nodes are started, each of their agents dials the others: an address
//! that is not reached, or that leads to another node, is known before a ring fails to form.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use ringmaster_proto::v1::{Dial, DialPeer, Dialled, Unreached};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection to this agent may take to take its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are answered at once; further ones wait in the kernel.
const MOST_ANSWERS: usize = 64;
/// How long a dial may take, the answer included.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// Bytes read of an answer. Names of nodes are short.
const MOST_BYTES: u64 = 1024;
/// Pause after a connection could not be taken: there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes dials, once it is served.
#[derive(Debug)]
pub(super) struct Listener {
    listener: StdListener,
    /// host:port.
    address: String,
}

impl Listener {
    /// Listens at this host, on a port that the system chooses.
    pub(super) fn bind(host: &str) -> io::Result<Self> {
        let host = host.trim_matches(['[', ']']);
        let listener = StdListener::bind((host, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let address =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { listener, address })
    }

    /// Returns host and port as other nodes dial them.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Answers dials with the name of this node until dropped.
    pub(super) async fn serve(self, node: String) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let places = Arc::new(Semaphore::new(MOST_ANSWERS));
        let answer: Arc<[u8]> = format!("{node}\n").into_bytes().into();
        loop {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answer = Arc::clone(&answer);
                    tokio::spawn(async move {
                        say(stream, &answer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot take a dial");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn say(mut stream: TcpStream, answer: &[u8]) {
    let said = async {
        stream.write_all(answer).await?;
        stream.shutdown().await
    };
    // Who hung up before has not waited for the answer.
    drop(timeout(ANSWER_LIMIT, said).await);
}

/// Dials all that are asked for at once, and returns whom it did not reach.
pub(super) async fn reach_all(dial: Dial) -> Dialled {
    let Dial { job_id, generation, peers } = dial;
    let mut dials = JoinSet::new();
    for (index, peer) in peers.into_iter().enumerate() {
        dials.spawn(async move { (index, reach(peer, DIAL_LIMIT).await) });
    }
    // None of them panics, and nobody aborts them.
    let mut answers = dials.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    let unreached = answers.into_iter().filter_map(|(_, reached)| reached.err()).collect();
    Dialled { job_id, generation, unreached }
}

async fn reach(peer: DialPeer, limit: Duration) -> Result<(), Unreached> {
    let DialPeer { node, address } = peer;
    let answer = timeout(limit, ask(&address)).await;
    let why = match answer {
        Ok(Ok(answer)) => match misfit(&node, &answer) {
            None => return Ok(()),
            Some(why) => why,
        },
        Ok(Err(error)) => in_words(&error),
        Err(_) => format!("no answer within {} s", limit.as_secs_f64()),
    };
    Err(Unreached { node, address, why })
}

async fn ask(address: &str) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect(address).await?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Says what is wrong with an answer; nothing when the node itself gave it.
fn misfit(node: &str, answer: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(answer).ok().and_then(|text| text.strip_suffix('\n'));
    match name.filter(|name| !name.is_empty() && !name.chars().any(char::is_control)) {
        Some(name) if name == node => None,
        Some(name) => Some(format!("{name} answers there")),
        None => Some("what answers there is no agent".to_owned()),
    }
}

/// Returns the error without its number, where the system's words for it are plain enough.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        kind @ (io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::TimedOut) => kind.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn peer(node: &str, address: &str) -> DialPeer {
        DialPeer { node: node.to_owned(), address: address.to_owned() }
    }

    /// Returns the address of an agent of this name.
    fn agent(node: &str, host: &str) -> String {
        let listener = Listener::bind(host).unwrap();
        let address = listener.address().to_owned();
        tokio::spawn(listener.serve(node.to_owned()));
        address
    }

    #[tokio::test]
    async fn only_nodes_that_do_not_answer_by_their_name_are_unreached() {
        let (well, other) = (agent("n1", "127.0.0.1"), agent("n7", "localhost"));
        assert!(well.starts_with("127.0.0.1:") && other.starts_with("localhost:"));
        // Nobody has its port any more.
        let gone = Listener::bind("127.0.0.1").unwrap().address().to_owned();
        let generation = Some(Generation::new(1, 3));
        let peers = vec![peer("n1", &well), peer("n2", &gone), peer("n3", &other)];
        let dialled = reach_all(Dial { job_id: "job".into(), generation, peers }).await;
        assert_eq!((dialled.job_id.as_str(), dialled.generation), ("job", generation));
        let unreached: Vec<(&str, &str, &str)> = dialled
            .unreached
            .iter()
            .map(|peer| (peer.node.as_str(), peer.address.as_str(), peer.why.as_str()))
            .collect();
        let expected = [
            ("n2", gone.as_str(), "connection refused"),
            ("n3", other.as_str(), "n7 answers there"),
        ];
        assert_eq!(unreached, expected);
    }

    #[tokio::test]
    async fn an_agent_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let unreached = reach(peer("n1", &address), Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(unreached.why, "no answer within 0.5 s");
    }

    #[tokio::test]
    async fn more_callers_than_places_are_all_answered() {
        let address = agent("n1", "127.0.0.1");
        let peers = vec![peer("n1", &address); MOST_ANSWERS + 16];
        let dialled = reach_all(Dial { peers, ..Dial::default() }).await;
        assert!(dialled.unreached.is_empty(), "{:?}", dialled.unreached);
    }

    #[test]
    fn an_answer_is_a_name_and_nothing_else() {
        assert_eq!(misfit("n1", b"n1\n"), None);
        assert_eq!(misfit("n1", b"n2\n").unwrap(), "n2 answers there");
        for other in [&b""[..], b"n1", b"\n", b"SSH-2.0-OpenSSH\r\n", b"n1\x1b[2J\n", b"\xff\n"] {
            assert_eq!(misfit("n1", other).unwrap(), "what answers there is no agent", "{other:?}");
        }
    }

    #[test]
    fn an_address_of_ipv6_is_dialled_in_brackets() {
        // A machine need not have IPv6.
        if let Ok(listener) = Listener::bind("::1") {
            assert!(listener.address().starts_with("[::1]:"), "{}", listener.address());
        }
    }
}
