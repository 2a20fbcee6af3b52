//! Rings that broke although nobody died: who could not reach whom, as their ranks say.
//!
//! Each rank that was in a broken ring says in its next Join how the ring ended for it and which peers it
//! blames. Two ranks that lose one another blame one another, and nothing tells which of them is at fault:
//! so a pair is named and its nodes are replaced one after the other. A node that several others name is
//! another matter, and so is a rank whose state differs from that of most.
//!
//! Who gives up because it does not reach one peer closes its connections to all, who then blame it: a
//! connection that broke to one that gave up says nothing, and none does where another was not to be had. And
//! where two that lost one another blame one another, what a third says of them says nothing.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1::{Generation, RingLoss, RingLossKind};
use ringmaster_proto::{RingRank, Seat};

/// A rank of a ring that was formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) seat: Seat,
    pub(crate) node: String,
    /// Where it accepted its peers.
    pub(crate) address: String,
}

/// What broke a ring, as far as its ranks tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Two nodes do not reach one another.
    Pair {
        /// In the order of their names.
        nodes: [String; 2],
        /// How often this pair was named since the last new step.
        often: u32,
        /// In a sentence, with the addresses.
        what: String,
    },
    /// One node is to blame.
    Node { node: String, what: String },
    /// A node says that it is where others cannot reach it.
    Address { node: String, what: String },
}

impl Fault {
    /// What happened, in a sentence.
    pub(crate) fn what(&self) -> &str {
        match self {
            Self::Pair { what, .. } | Self::Node { what, .. } | Self::Address { what, .. } => what,
        }
    }
}

/// What the ranks of the newest ring say of its end.
#[derive(Debug, Default)]
pub(crate) struct Breaks {
    generation: Generation,
    /// The ring of `generation`, by rank.
    ring: Vec<Member>,
    /// By the rank that says it.
    said: BTreeMap<RingRank, RingLoss>,
    /// How often pairs of nodes were named since the last new step.
    pairs: BTreeMap<[String; 2], u32>,
}

impl Breaks {
    /// A ring stands: what is said from now on is about it.
    pub(crate) fn formed(&mut self, generation: Generation, ring: Vec<Member>) {
        (self.generation, self.ring) = (generation, ring);
        self.said.clear();
    }

    /// Takes in what the rank of a seat says of the ring that it was in.
    pub(crate) fn hear(&mut self, seat: Seat, loss: &RingLoss) {
        let mut ring = (0..).map(RingRank).zip(&self.ring);
        let own = ring.find_map(|(rank, member)| (member.seat == seat).then_some(rank));
        if let Some(rank) = own.filter(|_| loss.generation == Some(self.generation)) {
            self.said.insert(rank, loss.clone());
        }
    }

    /// A rank of the ring was lost: that is why it broke, whatever its peers say.
    pub(crate) fn explained(&mut self) {
        self.ring.clear();
        self.said.clear();
    }

    /// A new step is done: nothing has kept the ranks from one another.
    pub(crate) fn progressed(&mut self) {
        self.pairs.clear();
    }

    /// Says what broke the ring, if somebody says anything. That is said once of each ring: its ranks repeat
    /// what they say until they are in another.
    pub(crate) fn judge(&mut self) -> Option<Fault> {
        let said = std::mem::take(&mut self.said);
        let fault = self.differs(&said).or_else(|| self.unreached(&said));
        if fault.is_some() {
            self.explained();
        }
        fault
    }

    /// The node of the one rank whose state differs from that of most.
    fn differs(&self, said: &BTreeMap<RingRank, RingLoss>) -> Option<Fault> {
        let loss = said.values().find(|loss| loss.kind() == RingLossKind::Differs)?;
        let mut members = loss.peers.iter().filter_map(|peer| self.member(*peer));
        let Member { seat, node, .. } = members.next()?;
        if members.any(|other| other.node != *node) {
            return None;
        }
        let what =
            format!("rank {seat} on {node} holds another state than all others: {}", loss.how);
        Some(Fault::Node { node: node.clone(), what })
    }

    /// The nodes that did not reach one another.
    fn unreached(&mut self, said: &BTreeMap<RingRank, RingLoss>) -> Option<Fault> {
        let no_connection = self.blames(said, RingLossKind::Connect);
        let pairs = if no_connection.is_empty() {
            let lost = self.blames(said, RingLossKind::Lost);
            pairs(&lost, is_mutual_if_any(&lost))
        } else {
            pairs(&no_connection, |_| true)
        };
        let (nodes, what) = pairs.first_key_value()?;
        if let Some(node) = common(&pairs) {
            let what = format!("several nodes do not reach {node}: {what}");
            return Some(Fault::Node { node, what });
        }
        let often = self.note_pair(nodes);
        Some(Fault::Pair { nodes: nodes.clone(), often, what: what.clone() })
    }

    /// Which node blames which other one for a loss of this kind, and in what words.
    fn blames(&self, said: &BTreeMap<RingRank, RingLoss>, kind: RingLossKind) -> Blames {
        let mut blames = Blames::new();
        for (rank, loss) in said.iter().filter(|(_, loss)| loss.kind() == kind) {
            let Some(from) = self.member(rank.0) else { continue };
            let gave_up = |peer: &u32| {
                let loss = said.get(&RingRank(*peer));
                loss.is_some_and(|loss| loss.kind() == RingLossKind::Connect)
            };
            let peers =
                loss.peers.iter().filter(|peer| kind == RingLossKind::Connect || !gave_up(peer));
            let peers = peers.filter_map(|peer| self.member(*peer));
            for to in peers.filter(|to| to.node != from.node) {
                let nodes = (from.node.clone(), to.node.clone());
                blames.entry(nodes).or_insert_with(|| in_words(from, to, loss));
            }
        }
        blames
    }

    /// Notes that two nodes, in the order of their names, do not reach one another; returns how often that
    /// was since the last new step.
    pub(crate) fn note_pair(&mut self, nodes: &[String; 2]) -> u32 {
        let often = self.pairs.entry(nodes.clone()).or_default();
        *often += 1;
        *often
    }

    /// With how many others a node has had trouble since the last new step.
    pub(crate) fn troubles(&self, node: &str) -> usize {
        self.pairs.keys().filter(|pair| pair.iter().any(|name| name == node)).count()
    }

    fn member(&self, rank: u32) -> Option<&Member> {
        self.ring.get(RingRank(rank).index())
    }
}

/// Who blames whom, and in what words.
type Blames = BTreeMap<(String, String), String>;

/// Counts those that blame one another; where there are none, all.
fn is_mutual_if_any(blames: &Blames) -> impl Fn(&(String, String)) -> bool {
    let is_mutual =
        |(from, to): &(String, String)| blames.contains_key(&(to.clone(), from.clone()));
    let any_mutual = blames.keys().any(is_mutual);
    move |nodes| !any_mutual || is_mutual(nodes)
}

/// The pairs of which one that counts blames the other.
fn pairs(
    blames: &Blames,
    counts: impl Fn(&(String, String)) -> bool,
) -> BTreeMap<[String; 2], String> {
    let mut pairs = BTreeMap::new();
    for ((from, to), what) in blames.iter().filter(|(nodes, _)| counts(nodes)) {
        let mut nodes = [from.clone(), to.clone()];
        nodes.sort();
        pairs.entry(nodes).or_insert_with(|| what.clone());
    }
    pairs
}

/// The node that is in every one of several pairs.
fn common(pairs: &BTreeMap<[String; 2], String>) -> Option<String> {
    let first: BTreeSet<&String> = pairs.keys().next()?.iter().collect();
    let in_all = |node: &&&String| pairs.keys().all(|pair| pair.contains(**node));
    let mut common = first.iter().filter(in_all);
    let node = common.next()?;
    (pairs.len() > 1 && common.next().is_none()).then(|| (*node).clone())
}

fn in_words(from: &Member, to: &Member, loss: &RingLoss) -> String {
    let lost = match loss.kind() {
        RingLossKind::Connect => "does not reach",
        _ => "lost its connection to",
    };
    format!(
        "rank {} on {} ({}) {lost} rank {} on {} ({}): {}",
        from.seat, from.node, from.address, to.seat, to.node, to.address, loss.how
    )
}

#[cfg(test)]
#[path = "breaks_tests.rs"]
mod tests;
