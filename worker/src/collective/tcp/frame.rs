//! What precedes every message: enough for the receiver to see that both ranks do the same thing.

use std::fmt;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Number of the operation in its generation.
    pub(super) sequence: u64,
    pub(super) operation: Operation,
    /// Bytes of the message, or of the whole tensor where shares follow from it.
    pub(super) len: u64,
}

/// Operation codes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    AllReduce = 1,
    AllGather = 2,
    ReduceScatter = 3,
    Broadcast = 4,
    Exchange = 5,
    Barrier = 6,
    Goodbye = 7,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Exchange => "exchange",
            Self::Barrier => "barrier",
            Self::Goodbye => "goodbye",
        }
    }
}

impl Frame {
    pub(super) const LEN: usize = 24;

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8] = self.operation as u8;
        bytes[16..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let operation = match bytes[8] {
            1 => Operation::AllReduce,
            2 => Operation::AllGather,
            3 => Operation::ReduceScatter,
            4 => Operation::Broadcast,
            5 => Operation::Exchange,
            6 => Operation::Barrier,
            7 => Operation::Goodbye,
            _ => return None,
        };
        Some(Self { sequence: word(0)?, operation, len: word(16)? })
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} of {} bytes", self.operation.name(), self.sequence, self.len)
    }
}
