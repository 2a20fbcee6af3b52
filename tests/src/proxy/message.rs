//! Requests and answers of HTTP/1.1, as far as S3 needs them: kept as the bytes they came as.

use std::io::{BufRead, Error, Read, Result};

/// A request or an answer, whole.
#[derive(Debug)]
pub(super) struct Message {
    /// First line and headers, with the empty line at the end.
    head: String,
    /// As it came, chunk sizes included.
    body: Vec<u8>,
}

impl Message {
    /// Reads a request; none when the connection ends before one.
    pub(super) fn read_request(from: &mut impl BufRead) -> Result<Option<Self>> {
        let Some(head) = read_head(from)? else { return Ok(None) };
        let body = read_body(from, &head, false)?;
        Ok(Some(Self { head, body }))
    }

    /// Reads the answer to a request of this method; none when the connection ends before one.
    pub(super) fn read_answer(from: &mut impl BufRead, method: &str) -> Result<Option<Self>> {
        loop {
            let Some(head) = read_head(from)? else { return Ok(None) };
            let status = head.split_whitespace().nth(1).unwrap_or_default();
            if status == "100" {
                continue;
            }
            let none = method == "HEAD" || matches!(status, "204" | "304");
            let body = if none { Vec::new() } else { read_body(from, &head, true)? };
            return Ok(Some(Self { head, body }));
        }
    }

    pub(super) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// Path and query of a request.
    pub(super) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }

    /// The head and half of the body; of a message without body, half of the head.
    pub(super) fn half(&self) -> Vec<u8> {
        match self.body.len() {
            0 => self.head.as_bytes()[..self.head.len() / 2].to_vec(),
            len => [self.head.as_bytes(), &self.body[..len / 2]].concat(),
        }
    }

    /// Changes a bit in the middle of the body.
    pub(super) fn flip(&mut self) {
        let middle = self.body.len() / 2;
        self.body.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
    }

    /// Whether the connection ends with this answer.
    pub(super) fn closes(&self) -> bool {
        header(&self.head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Returns an answer in a server's stead, with S3's kind of body.
pub(super) fn refusal(status: u16, code: &str, headers: &str, to: &Message) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
         <Message>said by the proxy</Message></Error>"
    );
    let length = body.len();
    let body = if to.method() == "HEAD" { "" } else { &body };
    format!(
        "HTTP/1.1 {status} Trouble\r\n{headers}Content-Type: application/xml\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn read_head(from: &mut impl BufRead) -> Result<Option<String>> {
    let mut head = String::new();
    loop {
        let read = from.read_line(&mut head)?;
        match (read, head.as_str()) {
            (0, "") => return Ok(None),
            (0, _) => return Err(Error::other("the connection ended in a head")),
            _ if head.ends_with("\r\n\r\n") => return Ok(Some(head)),
            _ => {}
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.trim().eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn read_body(from: &mut impl BufRead, head: &str, to_the_end: bool) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = header(head, "content-length") {
        let length = length.parse().map_err(Error::other)?;
        let read = from.take(length).read_to_end(&mut body)?;
        if read as u64 != length {
            return Err(Error::other("the connection ended in a body"));
        }
    } else if header(head, "transfer-encoding").is_some() {
        read_chunks(from, &mut body)?;
    } else if to_the_end {
        from.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        body.extend_from_slice(line.as_bytes());
        let digits = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(digits, 16).map_err(Error::other)?;
        // The chunk, or the end of the trailer, and the line's end.
        from.take(size + 2).read_to_end(body)?;
        if size == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_passed_on_byte_for_byte() {
        let text = b"PUT /b/k?x=1 HTTP/1.1\r\nHost: h\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let mut from = &text[..];
        let first = Message::read_request(&mut from).unwrap().unwrap();
        assert_eq!((first.method(), first.target()), ("PUT", "/b/k?x=1"));
        let second = Message::read_request(&mut from).unwrap().unwrap();
        assert_eq!([first.bytes(), second.bytes()].concat(), text);
        assert!(Message::read_request(&mut from).unwrap().is_none());
    }

    #[test]
    fn chunked_answers_end_with_their_last_chunk_and_head_requests_have_none() {
        let text =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nrest";
        let mut from = &text[..];
        let answer = Message::read_answer(&mut from, "GET").unwrap().unwrap();
        assert_eq!(answer.bytes(), text[..text.len() - 4]);
        assert_eq!(from, b"rest");
        let mut from = &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"[..];
        let answer = Message::read_answer(&mut from, "HEAD").unwrap().unwrap();
        assert!(answer.body.is_empty() && !answer.closes());
    }
}
