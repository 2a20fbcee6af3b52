//! Length-delimited protobuf messages on a byte stream: how a rank and its agent talk over their
//! Unix socket (`local.proto`). Used by the agent (async) and by the rank (a blocking thread).

use bytes::{Buf as _, BytesMut};
use prost::Message;

/// Largest message either side accepts, in bytes; theirs take a few hundred.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// A varint of a 64-bit length takes at most this many bytes.
const MAX_PREFIX_BYTES: usize = 10;

/// Why a byte stream stopped making sense.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The length is no varint or is beyond the limit.
    #[error("a message announces more than {MAX_MESSAGE_BYTES} bytes")]
    Length,
    /// The bytes are no message of the expected type.
    #[error("a message cannot be decoded")]
    Decode {
        #[source]
        source: prost::DecodeError,
    },
}

/// Returns `message` with its length in front.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_length_delimited_to_vec()
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Appends bytes as they came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete message, or none until more bytes are pushed.
    ///
    /// # Errors
    /// [`Error`]; the stream cannot be used after one.
    pub fn decode<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        let mut view = &self.buffer[..];
        let Ok(length) = prost::decode_length_delimiter(&mut view) else {
            let incomplete = self.buffer.len() < MAX_PREFIX_BYTES;
            return if incomplete { Ok(None) } else { Err(Error::Length) };
        };
        if length > MAX_MESSAGE_BYTES {
            return Err(Error::Length);
        }
        if view.len() < length {
            return Ok(None);
        }
        let prefix = self.buffer.len() - view.len();
        self.buffer.advance(prefix);
        let body = self.buffer.split_to(length);
        M::decode(body).map(Some).map_err(|source| Error::Decode { source })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::{ExitAck, RankHello};

    use super::*;

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let messages: Vec<RankHello> = (0..5)
            .map(|rank| RankHello {
                job_id: "x".repeat(rank as usize * 100),
                rank,
                pid: 7,
                secret: String::new(),
            })
            .collect();
        let bytes: Vec<u8> = messages.iter().flat_map(encode).collect();
        for piece in [1, 2, 3, 64, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(piece) {
                decoder.push(chunk);
                while let Some(message) = decoder.decode::<RankHello>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, messages, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_endless_length_and_an_enormous_one_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 12]);
        assert!(matches!(decoder.decode::<ExitAck>(), Err(Error::Length)));
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0x7f]);
        assert!(matches!(decoder.decode::<ExitAck>(), Err(Error::Length)));
    }
}
