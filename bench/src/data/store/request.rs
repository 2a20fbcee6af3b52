//! Requests of HTTP, as far as a store of shards is asked them.

use std::io::{self, BufRead, Read as _};
use std::ops::Range;

/// Longest head, in bytes.
const LONGEST_HEAD: u64 = 64 << 10;

/// What a request asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Of the file, without the slash before it.
    pub(super) name: String,
    /// First byte and, unless the file's last is meant, last byte.
    pub(super) range: Option<(u64, Option<u64>)>,
    /// The only version that may be read.
    pub(super) if_match: Option<String>,
    /// Bytes that follow the head.
    pub(super) body: u64,
}

impl Request {
    /// Reads the head of the next request; none where the client has hung up.
    ///
    /// # Errors
    /// The connection's.
    pub(super) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = stream.by_ref().take(LONGEST_HEAD);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, path) = (word(), word());
        let mut request =
            Self { method, name: path.trim_start_matches('/').to_owned(), ..Self::default() };
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) => request.add(name, value.trim()),
                None => return Ok(Some(request)),
            }
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        match name.to_ascii_lowercase().as_str() {
            "range" => self.range = range(value),
            "if-match" => self.if_match = Some(value.to_owned()),
            "content-length" => self.body = value.parse().unwrap_or_default(),
            _ => {}
        }
    }

    /// Returns the bytes that are asked for of a file of this length; none if it has none of them.
    pub(super) fn bytes(&self, len: u64) -> Option<Range<u64>> {
        let Some((first, last)) = self.range else { return Some(0..len) };
        let end = last.map_or(len, |last| len.min(last.saturating_add(1)));
        (first < end).then_some(first..end)
    }
}

fn range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_of_a_connection_are_read_one_after_the_other() {
        let mut bytes = &b"GET /a.tar HTTP/1.1\r\nRange: bytes=5-9\r\nIf-Match: \"x\"\r\n\r\n\
                           HEAD /b HTTP/1.1\r\n\r\n"[..];
        let first = Request::read(&mut bytes).unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.name.as_str()), ("GET", "a.tar"));
        assert_eq!(first.if_match.as_deref(), Some("\"x\""));
        assert_eq!([100, 7, 5].map(|len| first.bytes(len)), [Some(5..10), Some(5..7), None]);
        let second = Request::read(&mut bytes).unwrap().unwrap();
        assert_eq!((second.method.as_str(), second.bytes(4)), ("HEAD", Some(0..4)));
        assert_eq!(Request::read(&mut bytes).unwrap(), None);
    }
}
