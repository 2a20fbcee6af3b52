//! The first message on a connection, and its answer.

use std::io;

use super::Options;

const MAGIC: [u8; 8] = *b"RMTCP\0\0\x02";
const TOKEN_LEN: usize = 32;
/// Bytes of a hello.
pub(super) const HELLO_LEN: usize = 8 + 4 + 4 + 4 + 4 + TOKEN_LEN;

/// The acceptor's one-byte answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Answer {
    Welcome = 1,
    WrongGeneration = 2,
    WrongToken = 3,
    WrongRank = 4,
    WrongCertificate = 5,
}

impl Answer {
    pub(super) fn decode(byte: u8) -> io::Result<Self> {
        match byte {
            1 => Ok(Self::Welcome),
            2 => Ok(Self::WrongGeneration),
            3 => Ok(Self::WrongToken),
            4 => Ok(Self::WrongRank),
            5 => Ok(Self::WrongCertificate),
            other => Err(io::Error::other(format!("answered {other}"))),
        }
    }
}

/// Who a rank says it is: generation, rank, ranks in the ring, and the generation's secret.
pub(super) struct Hello<'a> {
    options: &'a Options,
}

impl<'a> Hello<'a> {
    /// Returns this rank's hello, or what is wrong with its options.
    pub(super) fn of(options: &'a Options) -> Result<Self, String> {
        match options.token.len() {
            TOKEN_LEN => Ok(Self { options }),
            other => Err(format!("the token has {other} bytes, not {TOKEN_LEN}")),
        }
    }

    pub(super) fn encode(&self) -> [u8; HELLO_LEN] {
        let Options { generation, rank, peers, token, .. } = self.options;
        let words = [generation.incarnation, generation.counter, *rank as u32, peers.len() as u32];
        let mut hello = [0; HELLO_LEN];
        hello[..8].copy_from_slice(&MAGIC);
        for (slot, word) in hello[8..24].chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        hello[24..].copy_from_slice(token);
        hello
    }

    /// Compares a newcomer's hello with this rank's own; returns its rank, a higher one, or why it
    /// is refused.
    pub(super) fn judge(&self, got: &[u8; HELLO_LEN]) -> Result<usize, Answer> {
        let wanted = self.encode();
        let peer = u32::from_le_bytes([got[16], got[17], got[18], got[19]]) as usize;
        if got[..16] != wanted[..16] {
            return Err(Answer::WrongGeneration);
        }
        if !same_secret(&got[24..], &wanted[24..]) {
            return Err(Answer::WrongToken);
        }
        let is_higher = peer > self.options.rank && peer < self.options.peers.len();
        if got[20..24] != wanted[20..24] || !is_higher {
            return Err(Answer::WrongRank);
        }
        Ok(peer)
    }
}

/// Compares without an early exit, so that timing tells nothing about the token.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
