//! A hub on the loopback interface: speaks HTTP/1.1, one request a connection.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has and how it misbehaves; tests change it between requests.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Content by `ORG/NAME/FILE`.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Token that is asked for.
    pub(super) token: Option<String>,
    /// Bytes after which the next bodies break off.
    pub(super) cuts: Vec<usize>,
    /// Answers whole files where parts are asked for.
    pub(super) ignores_ranges: bool,
    /// Sends other bytes than it announces.
    pub(super) lies: bool,
    /// Describes large files by redirecting to storage, small ones inside the hub.
    pub(super) redirects: bool,
    /// Headers that replace the hub's own.
    pub(super) replaced: BTreeMap<String, String>,
    /// Status of every answer.
    pub(super) status: Option<u16>,
    /// Requests so far: `METHOD PATH`, with ` from N` for a part.
    pub(super) log: Vec<String>,
}

pub(super) struct Server {
    pub(super) url: String,
    pub(super) state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec()));
        let state = State { files: files.collect(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                match serve(stream, &shared) {
                    Ok(true) => {}
                    // The test is over.
                    Ok(false) => return,
                    // A client that went away has been answered.
                    Err(_) => {}
                }
            }
        });
        Self { url, state, thread: Some(thread) }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Returns the requests since the last call.
    pub(super) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.write_all(b"END / HTTP/1.1\r\n\r\n");
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let (method, path) = first.split_once(' ').unwrap_or_default();
    let path = path.split(' ').next().unwrap_or_default();
    if method == "END" {
        return Ok(false);
    }
    let mut state = state.lock().unwrap();
    let range =
        headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start = range.and_then(|start| start.parse::<usize>().ok());
    state.log.push(match start {
        Some(start) => format!("{method} {path} from {start}"),
        None => format!("{method} {path}"),
    });
    let (head, body) = answer(&mut state, method, path, start, headers.get("authorization"));
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    Ok(true)
}

/// Returns the head of an answer and as much of its body as is sent.
fn answer(
    state: &mut State,
    method: &str,
    path: &str,
    start: Option<usize>,
    authorization: Option<&String>,
) -> (String, Vec<u8>) {
    let empty = |status: u16, code: &str| {
        let code =
            if code.is_empty() { String::new() } else { format!("X-Error-Code: {code}\r\n") };
        (
            format!("HTTP/1.1 {status} -\r\n{code}Content-Length: 0\r\nConnection: close\r\n\r\n"),
            vec![],
        )
    };
    if let Some(status) = state.status {
        return empty(status, "");
    }
    let expected = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if let Some(expected) = expected {
        match authorization {
            None => return empty(401, ""),
            Some(given) if *given != expected => return empty(403, "GatedRepo"),
            Some(_) => {}
        }
    }
    let moved = path.starts_with("/moved/");
    let path = path.trim_start_matches("/moved").trim_start_matches('/');
    let Some((repository, rest)) = path.split_once("/resolve/") else { return empty(404, "") };
    let Some((revision, file)) = rest.split_once('/') else { return empty(404, "") };
    if !state.files.keys().any(|name| name.starts_with(&format!("{repository}/"))) {
        return empty(404, "RepoNotFound");
    }
    if !["main", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
        return empty(404, "RevisionNotFound");
    }
    let Some(content) = state.files.get(&format!("{repository}/{file}")).cloned() else {
        return empty(404, "EntryNotFound");
    };
    let large = !file.ends_with(".json");
    let etag = if large { sha256(&content) } else { sha256(&content)[..40].to_owned() };
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| headers.insert(name.to_owned(), value);
    set("X-Repo-Commit", COMMIT.to_owned());
    let mut status = 200;
    let mut body = content;
    if large {
        set("X-Linked-Etag", format!("\"{etag}\""));
        set("X-Linked-Size", body.len().to_string());
    } else {
        set("ETag", format!("W/\"{etag}\""));
    }
    if state.redirects && !moved && (method == "HEAD" || !large) {
        // Storage elsewhere must not be asked by HEAD: nothing listens there.
        let elsewhere = "http://127.0.0.1:9/storage".to_owned();
        set("Location", if large { elsewhere } else { format!("/moved/{path}") });
        (status, body) = (307, b"elsewhere".to_vec());
    } else if let Some(start) = start.filter(|_| !state.ignores_ranges) {
        set("Content-Range", format!("bytes {start}-{}/{}", body.len() - 1, body.len()));
        (status, body) = (206, body.split_off(start));
    }
    if state.lies && method == "GET" {
        body.iter_mut().for_each(|byte| *byte ^= 1);
    }
    set("Content-Length", body.len().to_string());
    headers.extend(state.replaced.clone());
    if method == "HEAD" {
        body.clear();
    } else if !state.cuts.is_empty() {
        body.truncate(state.cuts.remove(0));
    }
    let lines: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    (format!("HTTP/1.1 {status} -\r\n{lines}Connection: close\r\n\r\n"), body)
}
