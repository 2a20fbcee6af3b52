//! Whether the nodes of a job reach one another: asked before its ranks are started, and again when all of
//! them wait for one another.
//!
//! A firewall, a wrong subnet, a broken link, an address at which nobody else is: without this a ring would
//! learn of it from connections that time out, one generation after the other. Agents dial one another's data
//! addresses, which takes a round trip; what was found out is not asked again for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ringmaster_proto::v1::coordinator_message::Message;
use ringmaster_proto::v1::{self, Generation};
use tokio::time::Instant;

use super::table::Nodes;
use crate::fleet::rings::Fault;
use crate::fleet::{Batch, Dial, Job, Jobs};

/// How long it is believed that one node reaches another.
const BELIEVED: Duration = Duration::from_secs(600);
/// All ranks of a ring wait for one another for so long before their nodes are asked.
const SUSPICIOUS: Duration = Duration::from_secs(3);
/// Pause between two times that the nodes of a ring that stands still are asked.
const ASKED_AGAIN: Duration = Duration::from_secs(5);
/// How often the pause between two rounds for ranks to be started is doubled.
const MOST_DOUBLED: u32 = 4;
/// So many nodes all ask one another. Of more each asks those at distances 1, 2, 4, … in the order of names:
/// a wrong subnet or a firewall shows there, too, and what is asked does not grow with their square.
const ALL_ASK_ALL: usize = 32;

/// When one node was found to reach another.
#[derive(Debug, Default)]
pub(super) struct Links {
    reached: BTreeMap<(String, String), Instant>,
}

/// Whom the node at this place asks, of all nodes in the order of their names.
fn asked_by(place: usize, nodes: &BTreeSet<String>) -> Vec<&String> {
    if nodes.len() <= ALL_ASK_ALL {
        return nodes.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, to)| to).collect();
    }
    let all: Vec<&String> = nodes.iter().collect();
    let distances = std::iter::successors(Some(1), |distance| Some(distance * 2));
    let near = distances.take_while(|distance| *distance < all.len());
    near.map(|distance| all[(place + distance) % all.len()]).collect()
}

impl Links {
    fn forget_old(&mut self, now: Instant) {
        self.reached.retain(|_, at| now.saturating_duration_since(*at) < BELIEVED);
    }

    fn reaches(&self, from: &str, to: &str, now: Instant) -> bool {
        let reached = self.reached.get(&(from.to_owned(), to.to_owned()));
        reached.is_some_and(|at| now.saturating_duration_since(*at) < BELIEVED)
    }

    fn note(&mut self, from: &str, to: &str, reached: Option<Instant>) {
        let link = (from.to_owned(), to.to_owned());
        match reached {
            Some(at) => drop(self.reached.insert(link, at)),
            None => drop(self.reached.remove(&link)),
        }
    }
}

impl Nodes {
    /// Whether ranks of a job may be started: its nodes reach one another, as far as they can be asked.
    /// Asks them if that is not known.
    pub(super) fn reach_one_another(
        &mut self,
        job_id: &str,
        job: &mut Job,
        batch: &mut Batch,
    ) -> bool {
        let nodes: BTreeSet<String> = job.record.seats.iter().flatten().cloned().collect();
        if nodes.len() < 2 {
            return true;
        }
        if job.fault.is_some() {
            return false;
        }
        if let Some(fault) = self.misplaced(&nodes) {
            job.event(batch, "unreachable", fault.what().to_owned());
            job.fault = Some(fault);
            return false;
        }
        let generation = job.generation();
        let is_asked = job.dial.generation == generation && nodes.is_subset(&job.dial.nodes);
        if !is_asked || job.dial.asked_at.is_none() {
            // Those that did not reach one another a moment ago are not asked again at once: a switch that
            // starts anew takes longer than the budget has tries.
            let last = job.dial.asked_at.filter(|_| !job.dial.unreached.is_empty());
            let tries = job.record.without_progress.min(MOST_DOUBLED);
            let pause = batch.config.dial_deadline * 2_u32.pow(tries);
            if last.is_some_and(|at| batch.now.at < at + pause) {
                return false;
            }
            self.links.forget_old(batch.now.at);
            job.dial = self.dial(job_id, generation, &nodes, batch, false);
        }
        self.conclude(job, batch)
    }

    /// Asks the nodes of a ring in which everybody waits whether they still reach one another.
    pub(super) fn doubt(&mut self, job_id: &str, job: &mut Job, batch: &mut Batch) {
        let generation = job.generation();
        let waited = job.movement.all_wait(generation);
        if !job.record.formed || waited.is_none_or(|waited| waited < SUSPICIOUS) {
            return;
        }
        let nodes: BTreeSet<String> = job.record.seats.iter().flatten().cloned().collect();
        let asked = job.dial.asked_at.filter(|_| job.dial.generation == generation);
        if nodes.len() > 1 && asked.is_none_or(|at| batch.now.at >= at + ASKED_AGAIN) {
            job.dial = self.dial(job_id, generation, &nodes, batch, true);
        }
        if job.fault.is_none() {
            self.conclude(job, batch);
        }
    }

    /// Asks each node for those that it is not known to reach; with `all` for every other one.
    fn dial(
        &self,
        job_id: &str,
        generation: Generation,
        nodes: &BTreeSet<String>,
        batch: &mut Batch,
        all: bool,
    ) -> Dial {
        let now = batch.now.at;
        let nodes_asked = nodes.clone();
        let mut dial =
            Dial { generation, asked_at: Some(now), nodes: nodes_asked, ..Dial::default() };
        for (place, from) in nodes.iter().enumerate() {
            let Some(session) = self.by_name.get(from).and_then(|node| node.session.as_ref())
            else {
                continue;
            };
            let others = asked_by(place, nodes);
            let unknown = others.into_iter().filter(|to| all || !self.links.reaches(from, to, now));
            let peers: Vec<v1::DialPeer> = unknown.filter_map(|to| self.peer(from, to)).collect();
            if peers.is_empty() {
                continue;
            }
            let awaited = peers.iter().map(|peer| peer.node.clone()).collect();
            dial.awaited.insert(from.clone(), awaited);
            let (job_id, generation) = (job_id.to_owned(), Some(generation));
            batch.send(&session.outbound, Message::Dial(v1::Dial { job_id, generation, peers }));
        }
        dial
    }

    /// How one node is to reach another; none where one of them does not take part in that.
    fn peer(&self, from: &str, to: &str) -> Option<v1::DialPeer> {
        let takes_part = |name: &str| {
            self.by_name.get(name).map(|node| node.dial_address.clone()).filter(|at| !at.is_empty())
        };
        takes_part(from)?;
        Some(v1::DialPeer { node: to.to_owned(), address: takes_part(to)? })
    }

    /// Takes in which other nodes one reaches.
    pub(crate) fn dialled(
        &mut self,
        jobs: &mut Jobs,
        batch: &Batch,
        session: u64,
        said: v1::Dialled,
    ) {
        let Some(from) = self.of_session(session).map(|(name, _)| name.to_owned()) else { return };
        let Some(job) = jobs.by_id.get_mut(&said.job_id) else { return };
        if said.generation != Some(job.dial.generation) {
            return;
        }
        let Some(asked) = job.dial.awaited.remove(&from) else { return };
        for to in asked {
            let unreached = said.unreached.iter().find(|unreached| unreached.node == to);
            self.links.note(&from, &to, unreached.is_none().then_some(batch.now.at));
            job.dial.unreached.extend(unreached.map(|unreached| (from.clone(), unreached.clone())));
        }
    }

    /// Whether all that can be known is known and speaks for the nodes; what speaks against them becomes the
    /// job's fault to be acted on.
    fn conclude(&self, job: &mut Job, batch: &mut Batch) -> bool {
        if job.dial.is_over {
            return true;
        }
        let asked_at = job.dial.asked_at.unwrap_or(batch.now.at);
        // One that does not answer says nothing of the network.
        if !job.dial.awaited.is_empty() && batch.now.at < asked_at + batch.config.dial_deadline {
            return false;
        }
        job.dial.is_over = true;
        let Some(mut fault) = between(&job.dial.unreached) else { return true };
        if let Fault::Pair { nodes, often, .. } = &mut fault {
            // Ranks that are to be started would run into it; those that stand in a ring may be slow.
            let named = job.breaks.note_pair(nodes);
            *often = if job.record.formed { named } else { named.max(*often) };
        }
        job.event(batch, "unreachable", fault.what().to_owned());
        job.fault = Some(fault);
        false
    }

    /// A node that says it is where others cannot reach it, though not all are there.
    fn misplaced(&self, nodes: &BTreeSet<String>) -> Option<Fault> {
        let known = nodes.iter().filter_map(|name| Some((name, &self.by_name.get(name)?.address)));
        let known: Vec<(&String, &String)> = known.collect();
        let all_local = known.iter().all(|(_, address)| is_local(address));
        let is_bad = |address: &str| is_unspecified(address) || (is_local(address) && !all_local);
        let (node, address) = known.iter().find(|(_, address)| is_bad(address))?;
        let what = format!(
            "{node} says that its ranks are at {address}, where those of other nodes do not reach them; start \
             its agent with `--address ADDRESS`, an address of that machine that the others reach"
        );
        Some(Fault::Address { node: (*node).clone(), what })
    }
}

/// What does not reach what, in a sentence and as a fault.
fn between(unreached: &[(String, v1::Unreached)]) -> Option<Fault> {
    let in_words = |(from, to): &(String, v1::Unreached)| {
        format!("{from} does not reach {} at {}: {}", to.node, to.address, to.why)
    };
    let first = unreached.first()?;
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in unreached {
        seen.entry(from).or_default().insert(&to.node);
        seen.entry(&to.node).or_default().insert(from);
    }
    // One that has trouble with several others, who have none with one another.
    let most = seen.iter().max_by_key(|(_, others)| others.len());
    if let Some((node, others)) = most.filter(|(_, others)| others.len() > 1)
        && seen.iter().all(|(other, its)| other == node || its.len() == 1)
    {
        let what = format!("{} (and {} more)", in_words(first), others.len() - 1);
        return Some(Fault::Node { node: (*node).to_owned(), what });
    }
    let mut nodes = [first.0.clone(), first.1.node.clone()];
    nodes.sort();
    Some(Fault::Pair { nodes, often: 2, what: in_words(first) })
}

/// An address without a port, or with one, that means this machine or none in particular.
fn is_local(address: &str) -> bool {
    ip(address).map_or(address == "localhost", |ip| ip.is_loopback() || ip.is_unspecified())
}

fn is_unspecified(address: &str) -> bool {
    ip(address).is_some_and(|ip| ip.is_unspecified())
}

fn ip(address: &str) -> Option<IpAddr> {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| address.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreached(from: &str, to: &str) -> (String, v1::Unreached) {
        let (address, why) = (format!("{to}:7"), "connection refused".to_owned());
        (from.to_owned(), v1::Unreached { node: to.to_owned(), address, why })
    }

    #[test]
    fn two_nodes_that_do_not_reach_one_another_are_a_pair() {
        let fault = between(&[unreached("b", "a"), unreached("a", "b")]);
        let what = "b does not reach a at a:7: connection refused".to_owned();
        let nodes = ["a".to_owned(), "b".to_owned()];
        assert_eq!(fault, Some(Fault::Pair { nodes, often: 2, what }));
        assert_eq!(between(&[]), None);
    }

    #[test]
    fn a_node_that_has_trouble_with_several_others_is_to_blame() {
        let fault = between(&[unreached("a", "c"), unreached("b", "c")]);
        assert!(matches!(fault, Some(Fault::Node { node, .. }) if node == "c"));
        // Nothing tells which of three that all lose one another it is.
        let all = [unreached("a", "b"), unreached("b", "c"), unreached("c", "a")];
        assert!(matches!(between(&all), Some(Fault::Pair { .. })));
    }

    #[test]
    fn few_nodes_all_ask_one_another_and_many_ask_those_at_powers_of_two() {
        let nodes =
            |count: usize| (0..count).map(|at| format!("n{at:04}")).collect::<BTreeSet<_>>();
        let few = nodes(3);
        assert_eq!(asked_by(1, &few), ["n0000", "n0002"]);
        let many = nodes(1000);
        let asked = asked_by(998, &many);
        assert_eq!(asked.len(), 10);
        assert_eq!(asked[..3], ["n0999", "n0000", "n0002"]);
    }

    #[test]
    fn addresses_that_mean_this_machine_or_none_are_told_from_others() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "0.0.0.0", "::"] {
            assert!(is_local(local), "{local}");
        }
        for other in ["10.0.0.5", "n7", "fe80::1", "[fd00::7]", "10.0.0.5:80", ""] {
            assert!(!is_local(other), "{other}");
        }
        assert!(
            is_unspecified("0.0.0.0") && is_unspecified("[::]") && !is_unspecified("127.0.0.1")
        );
    }
}
