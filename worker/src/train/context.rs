//! What every step of a generation is given.

use ringmaster_manifest::spec::TrainJob;
use tch::Device;

use crate::collective::Collective;
use crate::control::agent::Control;
use crate::faults::Faults;
use crate::plan::NumericPlan;

/// See the module.
pub(crate) struct Context<'a> {
    pub job: &'a TrainJob,
    pub collective: &'a dyn Collective,
    pub control: &'a Control,
    pub faults: &'a Faults,
    pub device: Device,
    /// Rows of the global batch every rank holds, by rank.
    pub counts: &'a [usize],
    /// How the work is divided.
    pub plan: &'a NumericPlan,
    /// Corrupt samples that the whole run may replace.
    pub corrupt_limit: u64,
}
