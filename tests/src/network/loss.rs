//! Packets that get lost on their way, so many of a hundred.

use super::run;

/// Of a classic BPF program: where a random number is loaded from (SKF_AD_OFF + SKF_AD_RANDOM).
const RANDOM: u32 = u32::MAX - 4096 + 1 + 56;
/// What such a program returns for a packet that goes on (TC_ACT_UNSPEC) or is dropped (TC_ACT_SHOT).
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// Packets are lost as long as this lives.
#[derive(Debug)]
pub struct Loss {
    /// Namespace and device of whoever sends.
    senders: Vec<(String, &'static str)>,
    how: How,
}

/// By what packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The queueing discipline that is made for it, which not every kernel has.
    Netem,
    /// A filter that draws a number for each packet. Every kernel with filters in BPF has it.
    Filter,
}

impl Loss {
    /// Begins to lose `share` of what leaves by these devices.
    pub(super) fn begin(senders: Vec<(String, &'static str)>, share: f64) -> Result<Self, String> {
        let mut refused = Vec::new();
        for how in [How::Netem, How::Filter] {
            let loss = Self { senders: senders.clone(), how };
            // One that begins only on some devices is undone where it is dropped.
            match senders.iter().try_for_each(|sender| how.add(sender, share)) {
                Ok(()) => return Ok(loss),
                Err(why) => refused.push(why),
            }
        }
        Err(refused.join("; "))
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        for (namespace, device) in &self.senders {
            // One that was never added, or whose namespace is gone.
            let _ = tc(namespace, &["qdisc", "del", "dev", device, self.how.discipline()[0]]);
        }
    }
}

impl How {
    /// What is hung on a device: `tc` deletes it by its first word.
    fn discipline(self) -> &'static [&'static str] {
        match self {
            Self::Netem => &["root", "netem"],
            Self::Filter => &["clsact"],
        }
    }

    fn add(self, (namespace, device): &(String, &'static str), share: f64) -> Result<(), String> {
        let discipline = [&["qdisc", "add", "dev", *device][..], self.discipline()].concat();
        match self {
            Self::Netem => {
                let percent = format!("{}%", share * 100.0);
                tc(namespace, &[&discipline[..], &["loss", percent.as_str()]].concat())
            }
            Self::Filter => {
                tc(namespace, &discipline)?;
                let program = program(share);
                let filter = ["filter", "add", "dev", *device, "egress", "bpf", "da", "bytecode"];
                tc(namespace, &[&filter[..], &[program.as_str()]].concat())
            }
        }
    }
}

/// A classic BPF program as `tc` takes it (number of instructions; code, two jumps and a constant of each):
/// loads a random number and drops the packet unless it is above the share.
fn program(share: f64) -> String {
    let threshold = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
    format!("4,32 0 0 {RANDOM},37 0 1 {threshold},6 0 0 {PASS},6 0 0 {DROP}")
}

fn tc(namespace: &str, args: &[&str]) -> Result<(), String> {
    run("tc", &[&["-n", namespace][..], args].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_drops_what_is_not_above_the_share() {
        let five = "4,32 0 0 4294963256,37 0 1 214748364,6 0 0 4294967295,6 0 0 2";
        assert_eq!(program(0.05), five);
        assert!(program(1.0).contains(&format!("37 0 1 {}", u32::MAX)));
    }
}
