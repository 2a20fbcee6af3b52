//! A GPU before it is used: its memory, and what its driver knows of damage.

use super::Error;
use super::memory::{Bytes, Demand};
use crate::ffi::driver::Context;
use crate::ffi::nvml::{self, Condition, Device};

/// What libraries take on a device beside the state.
const DEVICE_MARGIN: u64 = 256 << 20;

/// Looks at GPU `ordinal`; returns what will tell of its errors from now on.
pub(super) fn check(ordinal: usize, demand: Demand) -> Result<Option<Watch>, Error> {
    let failed = |source| Error::Driver { node: super::node(), ordinal, source };
    let context = Context::primary(ordinal).map_err(failed)?;
    let pci = context.pci_address().map_err(failed)?;
    let free = context.free_memory().map_err(failed)?;
    let mut name = format!("GPU {ordinal} ({pci})");
    let watch = match examine(&pci) {
        Ok(Examined { uuid, condition, watch }) => {
            name = format!("GPU {ordinal} ({pci}, {uuid})");
            judge(&name, &condition)?;
            watch.map(|events| Watch { name: name.clone(), events })
        }
        Err(error) => {
            tracing::warn!(%error, "health: {name} cannot be asked about damage");
            None
        }
    };
    tracing::info!(
        "health: {name}: {} of its memory free, the state takes {}",
        Bytes(free),
        demand.state
    );
    let needed = demand.state.0 + DEVICE_MARGIN;
    if free < needed {
        return Err(Error::Memory {
            node: super::node(),
            memory: name,
            free: Bytes(free),
            needed: Bytes(needed),
            parameters: demand.parameters,
        });
    }
    Ok(watch)
}

struct Examined {
    uuid: String,
    condition: Condition,
    watch: Option<nvml::Watch>,
}

fn examine(pci: &str) -> Result<Examined, nvml::Error> {
    let device = Device::at(pci)?;
    Ok(Examined { uuid: device.uuid()?, condition: device.condition()?, watch: device.watch()? })
}

/// Refuses a GPU whose memory has lost data or cannot be mended, and warns of one that asks for a
/// reset.
fn judge(name: &str, condition: &Condition) -> Result<(), Error> {
    let errors = condition.uncorrected_errors.unwrap_or(0);
    let refused = |what: String| Error::Gpu { node: super::node(), gpu: name.to_owned(), what };
    if errors > 0 {
        let what = format!("{errors} memory errors that ECC could not correct");
        return Err(refused(what));
    }
    if condition.remap_failed == Some(true) {
        return Err(refused("a damaged memory row could not be replaced".to_owned()));
    }
    if condition.rows_pending == Some(true) || condition.pages_pending == Some(true) {
        tracing::warn!(
            "health: {name} has damaged memory that is taken out of use at its next reset; reset it \
             when the node is free"
        );
    }
    Ok(())
}

/// Takes note of a GPU's critical errors.
#[derive(Debug)]
pub struct Watch {
    name: String,
    events: nvml::Watch,
}

impl Watch {
    /// Says which there were since it was last asked.
    pub(super) fn tell_news(&mut self) {
        match self.events.news() {
            Ok(numbers) => {
                for xid in numbers {
                    tracing::error!(xid, "health: {} reports a critical error", self.name);
                }
            }
            Err(error) => tracing::warn!(%error, "health: {} cannot be asked", self.name),
        }
    }
}

#[cfg(test)]
#[path = "stub_tests.rs"]
mod stub_tests;
