//! What people see of nodes.

use ringmaster_proto::v1;
use tokio::time::Instant;

use super::node::Node;
use crate::state::Closure;

impl Node {
    /// A node as the wire shows it. `used` slots are seats and strays together.
    pub(crate) fn view(
        &self,
        name: &str,
        used: u32,
        closure: Option<&Closure>,
        now: Instant,
    ) -> v1::Node {
        let connected = self.answers(now);
        let out = self.out_of_service();
        let free = self.slots_in_service().saturating_sub(used);
        let slots_out = out.into_iter().map(|(slot, reason)| v1::SlotOut { slot, reason });
        v1::Node {
            node: name.to_owned(),
            slots: self.slots,
            free_slots: free,
            slots_out: slots_out.collect(),
            faults: 0.0,
            accelerator: self.accelerator.clone(),
            connected,
            address: self.address.clone(),
            last_heartbeat_ms: self.last_heartbeat_ms,
            availability: self.availability(closure, connected),
            worker: self.worker.clone(),
        }
    }

    fn availability(&self, closure: Option<&Closure>, connected: bool) -> String {
        match self.unusable() {
            Some(why) if connected && closure.is_none() => format!("unusable: {why}"),
            _ => availability(closure, connected),
        }
    }
}

/// A node that is closed and was not seen since the coordinator started.
pub(crate) fn unseen_node(name: &str, closure: Option<&Closure>) -> v1::Node {
    let availability = availability(closure, false);
    v1::Node { node: name.to_owned(), availability, ..v1::Node::default() }
}

fn availability(closure: Option<&Closure>, connected: bool) -> String {
    match closure {
        Some(Closure { kind, reason, .. }) => format!("{}: {reason}", kind.word()),
        None if connected => "ready".to_owned(),
        None => "not connected".to_owned(),
    }
}
