//! What strikes a run, and how it is repaired.

use std::time::Duration;

use turmoil::Sim;

use super::coordinator::step_clock;
use super::run::{CLIENT, COORDINATOR, LATENCY};
use super::saving::Spoils;
use super::scenario::Fault;
use super::world::World;

/// A node counts as disturbed for so long after a fault of the coordinator or the network.
const AFTERMATH: Duration = Duration::from_secs(4);
/// When a repair that could not be made is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What is to be repaired, and when.
pub(crate) type Repairs = Vec<(Duration, Repair)>;

pub(crate) enum Repair {
    Bounce(String),
    Heal(String),
    Release(String),
    Latency,
    /// The second agent of a name ends.
    Remove(String),
    /// Something is over that nobody has to see to.
    Nothing,
}

/// What faults strike, and what their repairs are left with.
pub(crate) struct Striker<'a> {
    pub(crate) world: &'a World,
    pub(crate) names: &'a [String],
    pub(crate) repairs: Repairs,
}

impl Striker<'_> {
    /// Lets a fault strike.
    pub(crate) fn strike(&mut self, sim: &mut Sim<'_>, fault: &Fault, now: Duration) {
        self.world.log(format!("---- {fault:?}"));
        let struck = self.at_hosts(sim, fault, now)
            || self.at_the_network(sim, fault, now)
            || self.at_ranks(fault, now);
        if struck {
            self.world.count(fault.word());
        }
    }

    /// Ends the coordinator for some time.
    pub(crate) fn crash_coordinator(&mut self, sim: &mut Sim<'_>, down: Duration, now: Duration) {
        for name in self.names {
            self.world.disturb(name, now + down + AFTERMATH);
        }
        sim.crash(COORDINATOR);
        self.repairs.push((now + down, Repair::Bounce(COORDINATOR.to_owned())));
    }

    fn at_hosts(&mut self, sim: &mut Sim<'_>, fault: &Fault, now: Duration) -> bool {
        match *fault {
            Fault::CoordinatorCrash { down } => self.crash_coordinator(sim, down, now),
            Fault::NodeCrash { node, down } => {
                let name = self.names[node].clone();
                sim.crash(name.as_str());
                self.world.with(|state| {
                    let ranks = state.processes.values().filter(|process| process.host == name);
                    let ranks = ranks.count();
                    state.blame.lost_machine(&name, ranks);
                    state.end_processes_of(&name);
                    state.leaving.remove(&name);
                });
                self.repairs.push((now + down, Repair::Bounce(name)));
            }
            Fault::NodeLeave { node, notice, down } => {
                let name = self.names[node].clone();
                self.world.with(|state| state.leaving.insert(name.clone(), notice));
                self.repairs.push((now + down, Repair::Bounce(name)));
            }
            Fault::Twin { node, lasts } => {
                let twin = twin(node);
                if sim.is_host_running(twin.as_str()) {
                    return false;
                }
                sim.bounce(twin.as_str());
                self.repairs.push((now + lasts, Repair::Remove(twin)));
            }
            _ => return false,
        }
        true
    }

    fn at_the_network(&mut self, sim: &mut Sim<'_>, fault: &Fault, now: Duration) -> bool {
        let (node, lasts) = match *fault {
            Fault::Partition { node, lasts }
            | Fault::OneWay { node, lasts, .. }
            | Fault::Hold { node, lasts } => (node, lasts),
            Fault::SlowNetwork { most, lasts } => {
                for name in self.names {
                    self.world.disturb(name, now + lasts + AFTERMATH);
                }
                sim.set_max_message_latency(most);
                self.repairs.push((now + lasts, Repair::Latency));
                return true;
            }
            Fault::ClientPartition { lasts } => {
                sim.partition(CLIENT, COORDINATOR);
                self.repairs.push((now + lasts, Repair::Heal(CLIENT.to_owned())));
                return true;
            }
            _ => return false,
        };
        let name = self.names[node].clone();
        self.world.disturb(&name, now + lasts + AFTERMATH);
        let mut repair = Repair::Heal(name.clone());
        match *fault {
            Fault::OneWay { from_node: true, .. } => {
                sim.partition_oneway(name.as_str(), COORDINATOR);
            }
            Fault::OneWay { .. } => sim.partition_oneway(COORDINATOR, name.as_str()),
            Fault::Hold { .. } => {
                sim.hold(name.as_str(), COORDINATOR);
                repair = Repair::Release(name);
            }
            _ => sim.partition(name.as_str(), COORDINATOR),
        }
        self.repairs.push((now + lasts, repair));
        true
    }

    /// Strikes ranks, links between them, and what they meet.
    fn at_ranks(&mut self, fault: &Fault, now: Duration) -> bool {
        let name = |node: usize| self.names[node].clone();
        self.world.with(|state| match *fault {
            Fault::RankKill { pick } => state.kill(pick),
            Fault::RankHang { pick, mute } => state.hang(pick, mute),
            Fault::Undead { pick, lasts } => {
                self.repairs.extend(lasts.map(|lasts| (now + lasts, Repair::Nothing)));
                state.make_undead(pick, lasts.unwrap_or(Duration::MAX))
            }
            Fault::RingBreak { pick, frail } => {
                let rings = state.live_rings();
                let picked = pick.checked_rem(rings.len()).map(|index| &rings[index]);
                let ring = picked.and_then(|key| state.rings.get_mut(key));
                let Some(ring) = ring else { return false };
                (ring.frail, ring.broken) = (ring.frail || frail, !frail);
                true
            }
            Fault::LinkDown { one, other, lasts } if one != other => {
                let pair = (name(one.min(other)), name(one.max(other)));
                let broken = state.cut(&pair.0, &pair.1);
                state.log(&format!("---- {broken} rings break"));
                let until = state.links.entry(pair).or_default();
                *until = (*until).max(now + lasts);
                self.repairs.push((now + lasts, Repair::Nothing));
                true
            }
            Fault::ShardFails { pick, then_down } => {
                state.spoil_shard(pick, Spoils::Fails { then_down })
            }
            Fault::ShardStalls { pick } => state.spoil_shard(pick, Spoils::Stalls),
            Fault::BrokenNode { node, class, lasts } => {
                self.repairs.extend(lasts.map(|lasts| (now + lasts, Repair::Nothing)));
                state.spoil_node(&name(node), class, lasts.unwrap_or(Duration::MAX));
                true
            }
            Fault::BrokenJob { pick, class } => state.spoil_job(pick, class),
            Fault::ClockStep { seconds } => {
                step_clock(seconds);
                true
            }
            _ => false,
        })
    }

    /// Makes the repairs that are due.
    pub(crate) fn mend(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let all = std::mem::take(&mut self.repairs);
        for (at, repair) in all {
            if at > now {
                self.repairs.push((at, repair));
            } else if let Some(later) = mend(sim, self.world, repair, now) {
                self.repairs.push(later);
            }
        }
    }
}

/// The host of the second agent of a node's name.
pub(crate) fn twin(node: usize) -> String {
    format!("t{node}")
}

/// Repairs something; returns what has to be tried again later.
fn mend(
    sim: &mut Sim<'_>,
    world: &World,
    repair: Repair,
    now: Duration,
) -> Option<(Duration, Repair)> {
    match repair {
        Repair::Bounce(host) => {
            // Two crashes may overlap: the first repair starts it, the second finds it running. An
            // agent that leaves may still be at it.
            let running = sim.is_host_running(host.as_str());
            if running && world.with(|state| state.leaving.contains_key(&host)) {
                return Some((now + RETRY, Repair::Bounce(host)));
            }
            if !running {
                world.log(format!("---- {host} starts"));
                world.with(|state| state.leaving.remove(&host));
                sim.bounce(host.as_str());
            }
        }
        Repair::Heal(host) => sim.repair(host.as_str(), COORDINATOR),
        Repair::Release(host) => sim.release(host.as_str(), COORDINATOR),
        Repair::Latency => sim.set_max_message_latency(LATENCY),
        Repair::Remove(host) => {
            world.log(format!("---- {host} ends"));
            sim.crash(host.as_str());
            world.with(|state| state.end_processes_of(&host));
        }
        Repair::Nothing => {}
    }
    None
}
