//! A store of shards that answers as one far away: after a while, and no faster than its connections are.

use std::collections::HashMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::request::Request;
use super::shards::{LEN, Shards};

/// Time before each answer.
const LATENCY: Duration = Duration::from_millis(30);
/// Bytes per second of a connection.
const BANDWIDTH: f64 = 100e6;
/// Bytes made and sent at a time.
const PIECE: u64 = 256 << 10;
const CHANGED: &str = "Sat, 01 Jan 2022 00:00:00 GMT";

/// Requests by kind, and the bytes that were sent for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Asked {
    pub(super) heads: u64,
    /// Reads of a part of a shard.
    pub(super) shard_ranges: u64,
    pub(super) shard_bytes: u64,
    /// Reads of other files, missing ones included.
    pub(super) files: u64,
    pub(super) file_bytes: u64,
    pub(super) puts: u64,
    /// What was refused: another version, bytes beyond the end, an unknown method.
    pub(super) refused: u64,
}

/// Serves all shards and the files beside them over HTTP/1.1 until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    shards: Shards,
    /// Beside the shards, by name.
    files: Mutex<HashMap<String, Vec<u8>>>,
    /// Whether every shard has an index beside it.
    is_indexed: bool,
    asked: Mutex<Asked>,
    ended: AtomicBool,
}

/// What a name stands for.
enum File {
    Shard(u64),
    Small(Vec<u8>),
}

impl Server {
    /// Starts on a free port of the loopback interface. `is_indexed`: counts and indexes lie beside the shards.
    ///
    /// # Errors
    /// When the system gives no port or thread.
    pub(super) fn start(is_indexed: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let counts = is_indexed.then(|| ("sizes.json".to_owned(), Shards::sizes()));
        let shared = Arc::new(Shared {
            shards: Shards::new()?,
            files: Mutex::new(counts.into_iter().collect()),
            is_indexed,
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let accept = std::thread::Builder::new().name("store-accept".to_owned());
        let thread = accept.spawn(move || accept_all(&listener, &serving))?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what was asked since this was called last.
    pub(super) fn take_asked(&self) -> Asked {
        std::mem::take(&mut *lock(&self.shared.asked))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes whoever waits for the next connection.
        drop(TcpStream::connect(self.address));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        // A client that hangs up is its own business.
        let serve = move || connection.and_then(|stream| answer_all(stream, &shared));
        std::thread::spawn(serve);
    }
}

/// Answers the requests of a connection one after the other.
fn answer_all(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = Request::read(&mut reader)? {
        let mut body = Vec::new();
        reader.by_ref().take(request.body).read_to_end(&mut body)?;
        std::thread::sleep(LATENCY);
        if shared.ended.load(Ordering::SeqCst) {
            break;
        }
        match request.method.as_str() {
            "GET" | "HEAD" => shared.answer(&request, &mut stream)?,
            "PUT" => {
                lock(&shared.files).insert(request.name, body);
                lock(&shared.asked).puts += 1;
                reply(&mut stream, "201 Created", 0, "")?;
            }
            _ => shared.refuse("405 Method Not Allowed", &mut stream)?,
        }
    }
    Ok(())
}

impl Shared {
    fn answer(&self, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let is_head = request.method == "HEAD";
        let Some(file) = self.file(&request.name) else {
            self.count(is_head, None, 0);
            return reply(stream, "404 Not Found", 0, "");
        };
        let (len, tag) = match &file {
            File::Shard(shard) => (LEN, format!("\"shard-{shard}\"")),
            File::Small(bytes) => (bytes.len() as u64, format!("\"bytes-{}\"", bytes.len())),
        };
        if request.if_match.as_ref().is_some_and(|only| *only != tag) {
            return self.refuse("412 Precondition Failed", stream);
        }
        let Some(range) = request.bytes(len) else {
            return self.refuse("416 Range Not Satisfiable", stream);
        };
        let mut more =
            format!("ETag: {tag}\r\nLast-Modified: {CHANGED}\r\nAccept-Ranges: bytes\r\n");
        let mut status = "200 OK";
        if request.range.is_some() {
            status = "206 Partial Content";
            let last = range.end.saturating_sub(1);
            more += &format!("Content-Range: bytes {}-{last}/{len}\r\n", range.start);
        }
        let count = range.end - range.start;
        reply(stream, status, count, &more)?;
        self.count(is_head, Some(&file), count);
        if is_head {
            return Ok(());
        }
        paced(range, stream, |piece, out| match &file {
            File::Shard(shard) => self.shards.append(*shard, piece, out),
            File::Small(bytes) => {
                out.extend_from_slice(&bytes[piece.start as usize..piece.end as usize]);
            }
        })
    }

    fn file(&self, name: &str) -> Option<File> {
        if let Some(shard) = Shards::named(name) {
            return Some(File::Shard(shard));
        }
        if let Some(bytes) = lock(&self.files).get(name) {
            return Some(File::Small(bytes.clone()));
        }
        let of_shard = name.strip_suffix(".idx").filter(|_| self.is_indexed)?;
        Shards::named(&format!("{of_shard}.tar")).map(|shard| File::Small(Shards::index(shard)))
    }

    fn count(&self, is_head: bool, file: Option<&File>, bytes: u64) {
        let mut asked = lock(&self.asked);
        match file {
            _ if is_head => asked.heads += 1,
            Some(File::Shard(_)) => {
                asked.shard_ranges += 1;
                asked.shard_bytes += bytes;
            }
            _ => {
                asked.files += 1;
                asked.file_bytes += bytes;
            }
        }
    }

    fn refuse(&self, status: &str, stream: &mut TcpStream) -> io::Result<()> {
        lock(&self.asked).refused += 1;
        reply(stream, status, 0, "")
    }
}

fn reply(stream: &mut TcpStream, status: &str, len: u64, more: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{more}\r\n");
    stream.write_all(head.as_bytes())
}

/// Sends bytes as they are made, at most at [`BANDWIDTH`].
fn paced(
    range: Range<u64>,
    stream: &mut TcpStream,
    mut append: impl FnMut(Range<u64>, &mut Vec<u8>),
) -> io::Result<()> {
    let (began, mut at, mut piece) = (Instant::now(), range.start, Vec::new());
    while at < range.end {
        let end = range.end.min(at + PIECE);
        piece.clear();
        append(at..end, &mut piece);
        stream.write_all(&piece)?;
        at = end;
        let due = Duration::from_secs_f64((at - range.start) as f64 / BANDWIDTH);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Makes requests over one connection; returns all answers in one text, shards' bytes as they come.
    fn ask(server: &Server, requests: &[&str]) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        for request in requests {
            write!(stream, "{request}\r\nHost: store\r\n\r\n").unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_shard_is_read_in_ranges_of_the_version_that_is_asked_for_and_requests_are_counted() {
        let server = Server::start(true).unwrap();
        let head = ask(&server, &["HEAD /09999.tar HTTP/1.1"]);
        assert!(
            head.contains(&format!("Content-Length: {LEN}\r\nETag: \"shard-9999\"\r\n")),
            "{head}"
        );
        let range = "GET /09999.tar HTTP/1.1\r\nRange: bytes=0-8\r\nIf-Match: ";
        let (same, other) = (format!("{range}\"shard-9999\""), format!("{range}\"shard-1\""));
        let both = ask(&server, &[&other, &same]);
        assert!(both.starts_with("HTTP/1.1 412"), "{both}");
        assert!(both.contains(&format!("Content-Range: bytes 0-8/{LEN}\r\n")), "{both}");
        assert!(both.ends_with("\r\n\r\n099990000"), "{both}");
        let files = ["GET /sizes.json HTTP/1.1", "GET /10000.tar HTTP/1.1"];
        let files = ask(&server, &files);
        assert!(files.contains("{\"00000.tar\":1000,") && files.contains("HTTP/1.1 404"));
        let asked = server.take_asked();
        let expected =
            Asked { heads: 1, shard_ranges: 1, shard_bytes: 9, files: 2, refused: 1, ..asked };
        assert_eq!((asked, asked.puts), (expected, 0));
        assert_eq!(server.take_asked(), Asked::default());
    }
}
