//! Commands and coordinators as processes, and servers that are none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Only a broken build makes anybody wait so long.
const LIMIT: Duration = Duration::from_secs(60);

/// Variables that lead commands elsewhere, which no test takes from whoever runs it.
const NOT_OURS: [&str; 8] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Returns `ringmaster WORDS`, with nothing in its environment about proxies, stores and coordinators.
pub(crate) fn ringmaster(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmaster"));
    command.args(words).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        let store = ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| text.starts_with(prefix));
        if store || NOT_OURS.contains(&text.as_str()) || text == "RINGMASTER_COORDINATOR" {
            command.env_remove(name);
        }
    }
    command
}

/// What a command said, and its exit code.
pub(crate) fn said(output: &Output) -> (i32, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// A coordinator that ends with this value.
pub(crate) struct Coordinator {
    child: Child,
    pub(crate) people: String,
    pub(crate) fleet: String,
}

impl Coordinator {
    /// Starts one whose log goes to a file, and waits until it serves.
    pub(crate) fn start(folder: &Path, more: &[(&str, &str)]) -> Self {
        let any = "127.0.0.1:0";
        let flags = ["--listen", "--fleet-listen", "--health-listen"];
        let child = ringmaster(&["coordinator", "--parent-pipe", "--state-dir"])
            .arg(folder)
            .args(flags.iter().flat_map(|flag| [flag, &any]))
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stderr(std::fs::File::create(folder.join("coordinator.log")).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let addresses = loop {
            let text = std::fs::read_to_string(folder.join("addresses.json")).unwrap_or_default();
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                break value;
            }
            assert!(began.elapsed() < LIMIT, "the coordinator does not serve");
            std::thread::sleep(Duration::from_millis(10));
        };
        let address =
            |name: &str| addresses[name].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { child, people: address("people"), fleet: address("fleet") }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// Starts a server that reads something, answers every connection in the same way and closes it.
pub(crate) fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // What is not read would make the close a reset.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        }
    });
    address
}

/// What a server behind TLS sends to whoever speaks without it: an alert, "unexpected message".
pub(crate) const TLS_ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 10];
/// What a web server sends to whoever does not speak HTTP/1.
pub(crate) const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";

/// Returns an address on loopback at which nothing answers.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
