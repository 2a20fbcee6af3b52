//! A web server for the files of a folder that can be away: reads of shards over http:// go through it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It is answered.
    Serves,
    /// Its connection is closed without a word.
    Refuses,
    /// Nothing happens until the server's health changes, as while the network is cut.
    Mute,
    /// As [`Health::Refuses`], and for good.
    Ended,
}

/// Serves GET and HEAD, whole files and single ranges, until it is dropped.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    health: Mutex<Health>,
    changed: Condvar,
}

impl WebServer {
    /// Starts serving a folder on a free port of the loopback interface.
    ///
    /// # Panics
    /// When the system gives no port or thread.
    pub fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (folder, health) = (folder.to_owned(), Mutex::new(Health::Serves));
        let shared = Arc::new(Shared { folder, health, changed: Condvar::new() });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&listener, &serving));
        Self { address, shared, thread: Some(thread) }
    }

    /// Returns the URL of a file.
    pub fn url(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }

    /// Changes what becomes of requests, of those that wait, too.
    pub fn set(&self, health: Health) {
        *self.shared.lock() = health;
        self.shared.changed.notify_all();
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.set(Health::Ended);
        // Wakes whoever waits for the next connection.
        drop(TcpStream::connect(self.address));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a request that is here now.
    fn decide(&self) -> Health {
        let waited = self.changed.wait_while(self.lock(), |health| *health == Health::Mute);
        *waited.unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        if *shared.lock() == Health::Ended {
            return;
        }
        let shared = Arc::clone(shared);
        // A client that hangs up is its own business.
        let serve = move || connection.and_then(|stream| answer(&stream, &shared));
        std::thread::spawn(serve);
    }
}

/// One request per connection.
fn answer(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let head = read_head(stream)?;
    if shared.decide() != Health::Serves {
        return Ok(());
    }
    let mut words = head.first().map(|line| line.split(' ')).into_iter().flatten();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut stream = stream;
    let name = path.trim_start_matches('/');
    let Some(mut file) = open(&shared.folder, name) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let size = file.metadata()?.len();
    let asked = head.iter().find_map(|line| range(line, size));
    let range = asked.clone().unwrap_or(0..size);
    let status = if asked.is_some() { "206 Partial Content" } else { "200 OK" };
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Sat, 01 Jan 2022 00:00:00 GMT\r\n\
         Accept-Ranges: bytes\r\nConnection: close\r\n",
        range.end - range.start
    );
    if asked.is_some() {
        let last = range.end.saturating_sub(1);
        reply.push_str(&format!("Content-Range: bytes {}-{last}/{size}\r\n", range.start));
    }
    stream.write_all(format!("{reply}\r\n").as_bytes())?;
    if method == "GET" {
        file.seek(SeekFrom::Start(range.start))?;
        io::copy(&mut file.take(range.end - range.start), &mut stream)?;
    }
    Ok(())
}

/// The lines up to the first empty one.
fn read_head(stream: &TcpStream) -> io::Result<Vec<String>> {
    let lines = BufReader::new(stream).lines();
    lines.take_while(|line| line.as_ref().map_or(true, |line| !line.is_empty())).collect()
}

/// A file of the folder itself.
fn open(folder: &Path, name: &str) -> Option<File> {
    let is_plain = !name.is_empty() && !name.contains('/');
    is_plain.then(|| File::open(folder.join(name)).ok()).flatten()
}

/// The bytes that a header line asks for, if it is one that does: `Range: bytes=5-9`.
fn range(line: &str, size: u64) -> Option<Range<u64>> {
    let (name, value) = line.split_once(':')?;
    let bytes = value.trim().strip_prefix("bytes=")?;
    let (first, last) = bytes.split_once('-')?;
    let first = first.parse().ok()?;
    let end = last.parse::<u64>().map_or(size, |last| size.min(last + 1));
    (name.eq_ignore_ascii_case("range") && first < end).then_some(first..end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn get(server: &WebServer, file: &str, more: &str) -> String {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "GET /{file} HTTP/1.1\r\nHost: x\r\n{more}\r\n").unwrap();
        let mut text = String::new();
        // A connection that is closed at once may be reset.
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn it_serves_files_and_ranges_is_away_when_told_and_answers_what_waited() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tar"), "0123456789").unwrap();
        let server = WebServer::start(folder.path());
        assert!(get(&server, "a.tar", "").ends_with("\r\n\r\n0123456789"));
        let part = get(&server, "a.tar", "Range: bytes=2-4\r\n");
        assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n234"), "{part}");
        assert!(part.contains("Content-Range: bytes 2-4/10"), "{part}");
        assert!(get(&server, "../a.tar", "").starts_with("HTTP/1.1 404"));
        server.set(Health::Refuses);
        assert_eq!(get(&server, "a.tar", ""), "");
        server.set(Health::Mute);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| get(&server, "a.tar", ""));
            server.set(Health::Serves);
            assert!(waiting.join().unwrap().ends_with("0123456789"));
        });
    }
}
