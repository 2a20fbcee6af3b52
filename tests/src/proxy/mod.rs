//! A proxy in front of an S3 server that misbehaves as a test says, while real processes use it.
//!
//! It speaks plain HTTP/1.1 and passes requests on as they come, the Host header included, so that
//! their signatures hold. What goes wrong is a list of troubles that can be changed at any time; which
//! of the requests that a trouble fits it strikes depends on the seed and the request's number alone.

mod message;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::message::Message;

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It takes so long.
    Delay(Duration),
    /// 503 SlowDown, with the seconds after which to come again.
    SlowDown(Option<u32>),
    /// This status with this S3 code, without asking the server.
    Refuse(u16, &'static str),
    /// The connection closes after half of the request.
    CutRequest,
    /// The server does it, and the connection closes without an answer.
    LoseReply,
    /// The connection closes in the middle of the answer's body.
    CutResponse,
    /// One bit of the answer's body changes.
    Corrupt,
    /// One bit of the request's body changes.
    CorruptRequest,
    /// Nothing happens for so long, then the connection closes.
    BlackHole(Duration),
    /// From this request on nothing is let through for so long.
    GoAway(Duration),
}

/// Something that goes wrong with some requests.
#[derive(Debug, Clone)]
pub struct Trouble {
    what: What,
    method: Option<&'static str>,
    target: Option<String>,
    one_in: u64,
    left: Option<u32>,
}

impl Trouble {
    /// Goes wrong with every request.
    pub fn new(what: What) -> Self {
        Self { what, method: None, target: None, one_in: 1, left: None }
    }

    /// Only with requests of this method.
    pub fn method(self, method: &'static str) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Only with requests whose path or query contains this.
    pub fn target(self, part: &str) -> Self {
        Self { target: Some(part.to_owned()), ..self }
    }

    /// Only with one of so many, drawn by the seed.
    pub fn one_in(self, many: u64) -> Self {
        Self { one_in: many, ..self }
    }

    /// Only so many times.
    pub fn times(self, times: u32) -> Self {
        Self { left: Some(times), ..self }
    }

    fn fits(&self, request: &Message, draw: u64) -> bool {
        self.method.is_none_or(|method| method == request.method())
            && self.target.as_ref().is_none_or(|part| request.target().contains(part))
            && draw.is_multiple_of(self.one_in)
            && self.left != Some(0)
    }
}

/// A running proxy; it stops taking connections when it is dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    troubles: Vec<Trouble>,
    away_until: Option<Instant>,
    requests: u64,
    struck: u64,
    closed: bool,
}

impl FaultyProxy {
    /// Starts a proxy in front of a server; nothing goes wrong yet.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub fn start(upstream: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared { upstream, seed, state: Mutex::default() });
        let proxy = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if proxy.state().closed {
                    return;
                }
                let proxy = Arc::clone(&proxy);
                // A connection that breaks off is what this is for.
                std::thread::spawn(move || proxy.serve(&stream).ok());
            }
        });
        Self { address, shared }
    }

    /// Replaces what goes wrong; nothing does for an empty list.
    pub fn set(&self, troubles: Vec<Trouble>) {
        self.shared.state().troubles = troubles;
    }

    /// Lets nothing through from now on, or everything again.
    pub fn set_away(&self, away: bool) {
        let for_ever = Instant::now() + Duration::from_secs(1 << 30);
        self.shared.state().away_until = away.then_some(for_ever);
    }

    /// Returns how many requests something went wrong with.
    pub fn struck(&self) -> u64 {
        self.shared.state().struck
    }

    /// Returns how many requests there were.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one connection until one side closes it.
    fn serve(&self, client: &TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let mut requests = BufReader::new(client.try_clone()?);
        let mut server: Option<BufReader<TcpStream>> = None;
        while let Some(request) = Message::read_request(&mut requests)? {
            let Some(what) = self.strike(&request) else { break };
            if !self.answer(client, &mut server, &request, what)? {
                break;
            }
        }
        client.shutdown(Shutdown::Both)
    }

    /// Says what goes wrong with a request: something, nothing, or that nothing is let through.
    #[expect(clippy::option_option, reason = "away, nothing, something")]
    fn strike(&self, request: &Message) -> Option<Option<What>> {
        let mut state = self.state();
        state.requests += 1;
        if state.away_until.is_some_and(|until| Instant::now() < until) {
            state.struck += 1;
            return None;
        }
        let number = state.requests;
        let drawn = |index: usize| {
            let mut hasher = DefaultHasher::new();
            (self.seed, number, index).hash(&mut hasher);
            hasher.finish()
        };
        let found = state.troubles.iter().enumerate().find(|(i, t)| t.fits(request, drawn(*i)));
        let Some(index) = found.map(|(index, _)| index) else { return Some(None) };
        state.struck += 1;
        let trouble = &mut state.troubles[index];
        trouble.left = trouble.left.map(|left| left - 1);
        let what = trouble.what.clone();
        if let What::GoAway(time) = what {
            state.away_until = Some(Instant::now() + time);
            return None;
        }
        Some(Some(what))
    }

    /// Answers one request; returns whether the connection goes on.
    fn answer(
        &self,
        mut client: &TcpStream,
        server: &mut Option<BufReader<TcpStream>>,
        request: &Message,
        what: Option<What>,
    ) -> std::io::Result<bool> {
        match &what {
            Some(What::Delay(time)) => std::thread::sleep(*time),
            Some(What::BlackHole(time)) => {
                std::thread::sleep(*time);
                return Ok(false);
            }
            Some(What::SlowDown(after)) => {
                let header = after.map_or_else(String::new, |s| format!("Retry-After: {s}\r\n"));
                client.write_all(&message::refusal(503, "SlowDown", &header, request))?;
                return Ok(true);
            }
            Some(What::Refuse(status, code)) => {
                client.write_all(&message::refusal(*status, code, "", request))?;
                return Ok(true);
            }
            _ => {}
        }
        let connection = match server {
            Some(open) => open,
            None => {
                let open = TcpStream::connect(self.upstream)?;
                open.set_nodelay(true)?;
                server.insert(BufReader::new(open))
            }
        };
        let mut whole = request.bytes();
        if what == Some(What::CorruptRequest)
            && let Some(last) = whole.last_mut()
        {
            *last ^= 1;
        }
        if what == Some(What::CutRequest) {
            connection.get_mut().write_all(&whole[..whole.len() / 2])?;
            return Ok(false);
        }
        connection.get_mut().write_all(&whole)?;
        let Some(mut answer) = Message::read_answer(connection, request.method())? else {
            return Ok(false);
        };
        match what {
            Some(What::LoseReply) => return Ok(false),
            Some(What::CutResponse) => {
                client.write_all(&answer.half())?;
                return Ok(false);
            }
            Some(What::Corrupt) => answer.flip(),
            _ => {}
        }
        client.write_all(&answer.bytes())?;
        Ok(!answer.closes())
    }
}
