//! Who listens where no call is answered: asked without gRPC, by the first bytes of a connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Uri;

/// What a client of HTTP/2 begins with (RFC 9113, section 3.4): the preface, and settings that say nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length of the head of a frame, and where in it the type is.
const HEAD: usize = 9;
const TYPE: usize = 3;
/// The type of the frame that a server of HTTP/2 sends first.
const SETTINGS: u8 = 4;
/// The record that ends a TLS connection, and the first byte of its version.
const TLS_ALERT: [u8; 2] = [0x15, 3];
/// Time whoever listens has to say something.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns what the server at `url` speaks instead of HTTP/2, in words; none where it speaks that, says
/// nothing, or cannot be reached.
pub(crate) async fn foreign(url: &str) -> Option<&'static str> {
    let uri: Uri = url.parse().ok()?;
    let address = (uri.host()?.trim_matches(['[', ']']), uri.port_u16()?);
    let first = tokio::time::timeout(PATIENCE, first_bytes(address)).await.ok()?.ok()?;
    recognised(&first)
}

/// Returns what a server sends first, up to the length of a frame's head.
async fn first_bytes(address: (&str, u16)) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // Who has answered already may listen no more.
    let _ = stream.write_all(PREFACE).await;
    let mut first = Vec::new();
    // What came before an end, in order or not, is an answer.
    let _ = stream.take(HEAD as u64).read_to_end(&mut first).await;
    Ok(first)
}

fn recognised(first: &[u8]) -> Option<&'static str> {
    match first {
        [] => None,
        _ if first.len() == HEAD && first[TYPE] == SETTINGS => None,
        _ if first.starts_with(b"HTTP/") => Some("it answers as a web server does, in HTTP/1"),
        _ if first.starts_with(&TLS_ALERT) => Some("it wants TLS"),
        _ => Some("what it sends is no HTTP/2"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A server's answer and the end of its connection arrive together. A call that learned of the end alone
    /// was said to have met nobody, once in a few hundred times.
    #[test]
    fn what_a_server_sent_before_it_hung_up_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            stream.write_all(&[0x15, 3, 3, 0, 2, 2, 10]).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(foreign(&url)), Some("it wants TLS"));
        server.join().unwrap();
        assert_eq!(runtime.block_on(foreign(&url)), None, "nobody listens any more");
    }

    #[test]
    fn servers_are_told_apart_by_their_first_bytes() {
        assert_eq!(recognised(b""), None);
        assert_eq!(recognised(b"\0\0\x12\x04\0\0\0\0\0"), None);
        assert_eq!(recognised(b"HTTP/1.1 "), Some("it answers as a web server does, in HTTP/1"));
        assert_eq!(recognised(&[0x15, 3, 3, 0, 2, 2, 10]), Some("it wants TLS"));
        assert_eq!(recognised(b"SSH-2.0-O"), Some("what it sends is no HTTP/2"));
    }
}
