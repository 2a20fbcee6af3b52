//! How two ranks make sure of each other: a challenge, a hello and an answer.
//!
//! The acceptor speaks first, with 32 random bytes. The dialer's hello says who it is, carries 32
//! random bytes of its own and proves with HMAC-SHA256 (RFC 2104) that it knows the generation's
//! token; the acceptor's welcome proves the same. The proofs cover both random parts, the
//! generation, both ranks and the direction, so neither can be used again or elsewhere, and the
//! token itself never travels.

use std::io;

use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng as _;
use sha2::Sha256;

use super::Options;

const MAGIC: [u8; 8] = *b"RMTCP\0\0\x03";
const TOKEN_LEN: usize = 32;
const PROOF_LEN: usize = 32;
/// Bytes that say who is speaking: magic, generation, rank and ranks in the ring.
const NAME_LEN: usize = 8 + 4 + 4 + 4 + 4;
/// Bytes of a challenge.
pub(super) const NONCE_LEN: usize = 32;
/// Bytes of a hello.
pub(super) const HELLO_LEN: usize = NAME_LEN + NONCE_LEN + PROOF_LEN;
/// Bytes of an answer to a hello; the proof of a refusal is zero.
pub(super) const ANSWER_LEN: usize = 1 + PROOF_LEN;

/// Random bytes that nobody has seen before.
pub(super) type Nonce = [u8; NONCE_LEN];

/// Returns a fresh nonce.
pub(super) fn nonce() -> Nonce {
    // Seeded by the system and cryptographically secure.
    rand::rng().random()
}

/// What the acceptor answers to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Answer {
    Welcome = 1,
    WrongGeneration = 2,
    WrongToken = 3,
    WrongRank = 4,
    WrongCertificate = 5,
    /// The rank has a connection already; it may have died unnoticed.
    Taken = 6,
}

impl Answer {
    fn decode(byte: u8) -> io::Result<Self> {
        match byte {
            1 => Ok(Self::Welcome),
            2 => Ok(Self::WrongGeneration),
            3 => Ok(Self::WrongToken),
            4 => Ok(Self::WrongRank),
            5 => Ok(Self::WrongCertificate),
            6 => Ok(Self::Taken),
            other => Err(io::Error::other(format!("answered {other}"))),
        }
    }
}

/// Who gives a proof to whom.
#[derive(Clone, Copy)]
enum Direction {
    Dial,
    Accept,
}

/// A rank that knows the generation's token.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    options: &'a Options,
}

/// One conversation as both ends see it.
#[derive(Clone, Copy)]
struct Conversation {
    /// The acceptor's.
    challenge: Nonce,
    /// The dialer's.
    nonce: Nonce,
    dialer: usize,
    acceptor: usize,
}

impl<'a> Member<'a> {
    /// Returns this rank, or what is wrong with its options.
    pub(super) fn of(options: &'a Options) -> Result<Self, String> {
        match options.token.len() {
            TOKEN_LEN => Ok(Self { options }),
            other => Err(format!("the token has {other} bytes, not {TOKEN_LEN}")),
        }
    }

    /// Returns what this rank, having dialed `peer`, says to its challenge.
    pub(super) fn hello(&self, peer: usize, challenge: Nonce, nonce: Nonce) -> [u8; HELLO_LEN] {
        let talk = self.dialed(peer, challenge, nonce);
        let mut hello = [0; HELLO_LEN];
        hello[..NAME_LEN].copy_from_slice(&self.name(self.options.rank));
        hello[NAME_LEN..][..NONCE_LEN].copy_from_slice(&nonce);
        hello[NAME_LEN + NONCE_LEN..].copy_from_slice(&self.prove(Direction::Dial, talk));
        hello
    }

    /// Reads the answer to this rank's hello.
    ///
    /// # Errors
    /// The answer makes no sense, or welcomes without proof of knowing the token.
    pub(super) fn read_answer(
        &self,
        peer: usize,
        challenge: Nonce,
        nonce: Nonce,
        answer: &[u8; ANSWER_LEN],
    ) -> io::Result<Answer> {
        let verdict = Answer::decode(answer[0])?;
        let talk = self.dialed(peer, challenge, nonce);
        if verdict == Answer::Welcome && !self.verify(Direction::Accept, talk, &answer[1..]) {
            return Err(io::Error::other("it has not proved that it knows the token"));
        }
        Ok(verdict)
    }

    /// Judges the hello that answers this rank's challenge; returns the dialer, a higher rank, or
    /// why it is refused.
    pub(super) fn judge(&self, challenge: Nonce, hello: &[u8; HELLO_LEN]) -> Result<usize, Answer> {
        let talk = Self::heard(self.options.rank, challenge, hello);
        let name = self.name(talk.dialer);
        if hello[..16] != name[..16] {
            return Err(Answer::WrongGeneration);
        }
        if !self.verify(Direction::Dial, talk, &hello[NAME_LEN + NONCE_LEN..]) {
            return Err(Answer::WrongToken);
        }
        let is_higher = talk.dialer > self.options.rank && talk.dialer < self.options.peers.len();
        if hello[..NAME_LEN] != name || !is_higher {
            return Err(Answer::WrongRank);
        }
        Ok(talk.dialer)
    }

    /// Returns this rank's answer to a hello; only a welcome proves anything.
    pub(super) fn answer(
        &self,
        challenge: Nonce,
        hello: &[u8; HELLO_LEN],
        answer: Answer,
    ) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[0] = answer as u8;
        if answer == Answer::Welcome {
            let talk = Self::heard(self.options.rank, challenge, hello);
            bytes[1..].copy_from_slice(&self.prove(Direction::Accept, talk));
        }
        bytes
    }

    fn dialed(&self, peer: usize, challenge: Nonce, nonce: Nonce) -> Conversation {
        Conversation { challenge, nonce, dialer: self.options.rank, acceptor: peer }
    }

    fn heard(acceptor: usize, challenge: Nonce, hello: &[u8; HELLO_LEN]) -> Conversation {
        let dialer = u32::from_le_bytes([hello[16], hello[17], hello[18], hello[19]]) as usize;
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hello[NAME_LEN..][..NONCE_LEN]);
        Conversation { challenge, nonce, dialer, acceptor }
    }

    /// What a rank of this generation and ring calls itself.
    fn name(&self, rank: usize) -> [u8; NAME_LEN] {
        let Options { generation, peers, .. } = self.options;
        let words = [generation.incarnation, generation.counter, rank as u32, peers.len() as u32];
        let mut name = [0; NAME_LEN];
        name[..8].copy_from_slice(&MAGIC);
        for (slot, word) in name[8..].chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        name
    }

    fn prove(&self, direction: Direction, talk: Conversation) -> [u8; PROOF_LEN] {
        self.mac(direction, talk).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    fn verify(&self, direction: Direction, talk: Conversation, proof: &[u8]) -> bool {
        self.mac(direction, talk).verify_slice(proof).is_ok()
    }

    fn mac(&self, direction: Direction, talk: Conversation) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.options.token)
            .expect("HMAC takes keys of any length");
        mac.update(match direction {
            Direction::Dial => b"dial\0\0",
            Direction::Accept => b"accept",
        });
        mac.update(&talk.challenge);
        mac.update(&talk.nonce);
        mac.update(&self.name(talk.dialer));
        mac.update(&(talk.acceptor as u32).to_le_bytes());
        mac
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::testing::ring_options;
    use super::*;

    #[test]
    fn a_hello_convinces_only_the_rank_and_the_challenge_it_was_made_for() {
        let (_, options) = ring_options(4);
        let member = |rank: usize| Member::of(&options[rank]).unwrap();
        let (challenge, own) = (nonce(), nonce());
        let hello = member(2).hello(0, challenge, own);
        assert_eq!(member(0).judge(challenge, &hello), Ok(2));
        assert_eq!(member(1).judge(challenge, &hello), Err(Answer::WrongToken));
        assert_eq!(member(0).judge(nonce(), &hello), Err(Answer::WrongToken));
        for at in NAME_LEN - 8..HELLO_LEN {
            let mut changed = hello;
            changed[at] ^= 1;
            assert!(member(0).judge(challenge, &changed).is_err(), "byte {at}");
        }
        // A lower rank never dials.
        let backwards = member(0).hello(2, challenge, own);
        assert_eq!(member(2).judge(challenge, &backwards), Err(Answer::WrongRank));
    }

    #[test]
    fn a_welcome_is_believed_only_with_its_proof_and_cannot_be_a_hellos() {
        let (_, options) = ring_options(2);
        let (first, second) = (Member::of(&options[0]).unwrap(), Member::of(&options[1]).unwrap());
        let (challenge, own) = (nonce(), nonce());
        let hello = second.hello(0, challenge, own);
        let welcome = first.answer(challenge, &hello, Answer::Welcome);
        assert_eq!(second.read_answer(0, challenge, own, &welcome).unwrap(), Answer::Welcome);
        assert!(second.read_answer(0, challenge, nonce(), &welcome).is_err());
        let mut reflected = welcome;
        reflected[1..].copy_from_slice(&hello[NAME_LEN + NONCE_LEN..]);
        assert!(second.read_answer(0, challenge, own, &reflected).is_err());
        let refusal = first.answer(challenge, &hello, Answer::Taken);
        assert_eq!(refusal[1..], [0; PROOF_LEN]);
        assert_eq!(second.read_answer(0, challenge, own, &refusal).unwrap(), Answer::Taken);
    }
}
