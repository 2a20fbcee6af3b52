//! The peak of this process's resident memory over a stretch of work.

use std::fs;

use anyhow::{Context as _, bail};

use ringmaster_worker::ffi::driver::Context;
use ringmaster_worker::ffi::heap::trim_heap;

/// Runs `work` and returns, beside its result, how far this process's resident memory rose above
/// where it stood before, in bytes: the kernel's own high-water mark, reset first.
///
/// Memory that earlier work has freed goes back to the system first, so that nothing is hidden in
/// it; what earlier work still holds (libraries' buffers, code that is loaded) does not count.
///
/// # Errors
/// The kernel does not let this process reset its high-water mark, or `work` fails.
pub fn peak_of<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
    trim_heap();
    // "5" resets VmHWM to the present VmRSS (proc(5)).
    fs::write("/proc/self/clear_refs", "5")
        .context("cannot reset the peak of resident memory through /proc/self/clear_refs")?;
    let before = status("VmRSS")?;
    let result = work()?;
    Ok((result, status("VmHWM")?.saturating_sub(before)))
}

/// As [`peak_of`], of a GPU's memory, for work that has not been done in this process before: what
/// libtorch has once taken it keeps, so the device's free memory has fallen by the highest mark.
///
/// # Errors
/// The driver does not answer, or `work` fails.
pub fn device_peak_of<T>(
    ordinal: usize,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, u64)> {
    let context = Context::primary(ordinal)?;
    let before = context.free_memory()?;
    let result = work()?;
    tch::Cuda::synchronize(ordinal as i64);
    Ok((result, before.saturating_sub(context.free_memory()?)))
}

/// Returns this process's resident memory, in bytes.
///
/// # Errors
/// The kernel does not say.
pub fn resident() -> anyhow::Result<u64> {
    status("VmRSS")
}

/// Reads a size from /proc/self/status, in bytes.
fn status(key: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(':')) else {
            continue;
        };
        let kib = rest.trim().trim_end_matches("kB").trim();
        let kib: u64 = kib.parse().with_context(|| format!("{key} is {rest:?}"))?;
        return Ok(kib << 10);
    }
    bail!("/proc/self/status has no {key}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_and_freed_again_shows_in_the_peak() {
        const BYTES: usize = 64 << 20;
        let (sum, peak) = peak_of(|| {
            let touched = vec![1_u8; BYTES];
            Ok(touched.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>())
        })
        .unwrap();
        assert_eq!(sum, BYTES as u64 / 4096);
        assert!(peak >= BYTES as u64 * 9 / 10, "{peak}");
    }
}
