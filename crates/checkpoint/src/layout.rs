//! Names inside a job's folder of checkpoints.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ringmaster_proto::v1::Generation;

/// Bytes under one checksum, and of one part of an upload.
pub(crate) const CHUNK: usize = 16 << 20;

/// Written last; what has none does not exist.
pub(crate) const MANIFEST: &str = "MANIFEST.json";
/// Beside the checkpoints: names the newest complete one.
pub(crate) const LATEST: &str = "latest.json";
/// Parameters by OpenCLIP's names.
pub(crate) const MODEL: &str = "model.safetensors";
/// [`super::State`].
pub(crate) const STATE: &str = "state.json";

/// Returns the folder that holds the checkpoints of `job_id`, in the style of `uri` (a URL or an
/// absolute path).
pub fn job_url(uri: &str, job_id: &str) -> String {
    url_below(uri.trim_end_matches('/'), job_id)
}

/// What of a name cannot stand in a URL as it is; a path has no such thing.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Returns the path or URL of `name`, a file's or folder's own name or a path of such, below `folder`, a
/// URL or an absolute path without a slash at its end: escaped in a URL, as it is in a path.
pub fn url_below(folder: &str, name: &str) -> String {
    if folder.contains("://") {
        format!("{folder}/{}", utf8_percent_encode(name, ESCAPED))
    } else {
        format!("{folder}/{name}")
    }
}

/// Whether a URL or path names files of this machine, or of what is mounted there.
pub fn is_local(url: &str) -> bool {
    url.starts_with('/') || url.starts_with("file:")
}

/// How files of weights end.
const WEIGHTS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".npz", ".index.json"];

/// Whether a path or URL ends as a file of weights does, or as an index of weights in parts.
pub fn is_weights(url: &str) -> bool {
    WEIGHTS.iter().any(|ending| url.ends_with(ending))
}

/// Returns the step of the checkpoint at `url`; none when its last part is no checkpoint's name.
pub fn step_of(url: &str) -> Option<u64> {
    let name = url.trim_end_matches('/').rsplit('/').next()?;
    name.parse::<StepName>().ok().map(|name| name.step)
}

/// Returns the name of one rank's slice of the optimizer state.
pub(crate) fn optim(rank: usize, world_size: usize) -> String {
    format!("optim-{rank:05}-of-{world_size:05}.safetensors")
}

/// Whether an object holds a slice of the optimizer state.
pub(crate) fn is_optim(name: &str) -> bool {
    name.starts_with("optim-") && name.ends_with(".safetensors")
}

/// Name of a checkpoint's folder. Ordered by generation, then step: after a roll-back the lower
/// step of the newer generation is the one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StepName {
    pub(crate) generation: Generation,
    pub(crate) step: u64,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{:010}.{}", self.step, self.generation)
    }
}

/// A name that is not a checkpoint's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAStep;

impl FromStr for StepName {
    type Err = NotAStep;

    fn from_str(text: &str) -> Result<Self, NotAStep> {
        let rest = text.strip_prefix("step-").ok_or(NotAStep)?;
        let (step, generation) = rest.split_once('.').ok_or(NotAStep)?;
        let name = Self {
            step: step.parse().map_err(|_| NotAStep)?,
            generation: generation.parse().map_err(|_| NotAStep)?,
        };
        // Only the one spelling: `step-+5.g01.2` would otherwise name a folder nobody wrote.
        if name.to_string() == text { Ok(name) } else { Err(NotAStep) }
    }
}

/// A roll-back that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rollback {
    /// The newest generation whose work is given up.
    pub(crate) up_to: Generation,
    /// What the job went back to.
    pub(crate) to: StepName,
}

impl Rollback {
    /// Whether this roll-back gave a checkpoint up.
    pub(crate) fn abandons(self, name: StepName) -> bool {
        name > self.to && name.generation <= self.up_to
    }
}

impl fmt::Display for Rollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rollback-{}-to-{}.json", self.up_to, self.to)
    }
}

/// A name that is not a roll-back's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotARollback;

impl FromStr for Rollback {
    type Err = NotARollback;

    fn from_str(text: &str) -> Result<Self, NotARollback> {
        let rest = text.strip_prefix("rollback-").and_then(|rest| rest.strip_suffix(".json"));
        let (up_to, to) = rest.and_then(|rest| rest.split_once("-to-")).ok_or(NotARollback)?;
        let rollback = Self {
            up_to: up_to.parse().map_err(|_| NotARollback)?,
            to: to.parse().map_err(|_| NotARollback)?,
        };
        if rollback.to_string() == text { Ok(rollback) } else { Err(NotARollback) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(counter: u32, step: u64) -> StepName {
        StepName { generation: Generation::new(1, counter), step }
    }

    #[test]
    fn a_checkpoint_name_round_trips_and_other_spellings_are_refused() {
        let name = StepName { generation: Generation::new(1, 7), step: 1000 };
        assert_eq!(name.to_string(), "step-0000001000.g1.7");
        assert_eq!(step_of("file:///data/runs/tiny-abc/step-0000001000.g1.7"), Some(1000));
        assert_eq!(step_of(""), None);
        assert_eq!("step-0000001000.g1.7".parse(), Ok(name));
        for text in ["step-1000.g1.7", "step-+000001000.g1.7", "step-0000001000", "latest.json"] {
            assert_eq!(text.parse::<StepName>(), Err(NotAStep), "{text}");
        }
    }

    #[test]
    fn a_newer_generation_is_above_a_higher_step_of_an_older_one() {
        assert!(name(2, 100) > name(1, 900));
        assert!(name(2, 101) > name(2, 100));
    }

    #[test]
    fn a_job_folder_keeps_the_style_of_its_place() {
        assert_eq!(job_url("/data/runs/", "tiny-abc"), "/data/runs/tiny-abc");
        assert_eq!(job_url("file:///data/runs", "tiny-abc"), "file:///data/runs/tiny-abc");
        assert_eq!(job_url("/data/runs", "a #1%~ü"), "/data/runs/a #1%~ü");
        assert_eq!(job_url("s3://b/runs/", "a #1%~ü"), "s3://b/runs/a%20%231%25~%C3%BC");
        assert_eq!(url_below("s3://b", "sub/part-1.bin"), "s3://b/sub/part-1.bin");
    }

    #[test]
    fn files_of_this_machine_are_told_from_stores() {
        assert!(is_local("/data/runs") && is_local("file:///data/runs"));
        assert!(!is_local("s3://b/runs") && !is_local("memory:///runs"));
    }

    #[test]
    fn a_name_says_the_whole_roll_back() {
        let rollback = Rollback { up_to: Generation::new(2, 9), to: name(3, 100) };
        let text = "rollback-g2.9-to-step-0000000100.g1.3.json";
        assert_eq!((rollback.to_string().as_str(), text.parse()), (text, Ok(rollback)));
        for other in ["rollback-g2.9.json", "rollback-g2.9-to-step-100.g1.3.json", "latest.json"] {
            assert_eq!(other.parse::<Rollback>(), Err(NotARollback), "{other}");
        }
    }

    #[test]
    fn what_is_above_is_abandoned_until_a_later_generation() {
        let rollback = Rollback { up_to: Generation::new(1, 5), to: name(3, 100) };
        for abandoned in [name(3, 101), name(4, 50), name(5, 900)] {
            assert!(rollback.abandons(abandoned), "{abandoned}");
        }
        for kept in [name(3, 100), name(3, 90), name(2, 900), name(6, 101), name(6, 1)] {
            assert!(!rollback.abandons(kept), "{kept}");
        }
    }
}
