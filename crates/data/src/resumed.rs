//! Whether a run can go on from where another one left the order of samples.

use ringmaster_checkpoint::State;
use ringmaster_manifest::order_differences;
use ringmaster_manifest::spec::Data;

use crate::order;

/// Returns why the order of samples of a checkpoint is not that of a job with this data; `fingerprint` is that of the
/// job's data, where it has been opened.
pub fn conflict(saved: &State, data: &Data, fingerprint: Option<&str>) -> Option<String> {
    if saved.data.order != order::VERSION {
        return Some(format!(
            "its run read samples in order version {}, and this release knows version {}",
            saved.data.order,
            order::VERSION
        ));
    }
    let differences = order_differences(&saved.manifest.data, data).join(", ");
    match fingerprint {
        Some(fingerprint) if fingerprint == saved.data.fingerprint => None,
        Some(_) if differences.is_empty() => Some(
            "the data is not what its run read: shards have other names, lengths or numbers of samples".to_owned(),
        ),
        None if differences.is_empty() => None,
        _ => Some(format!("the data is not what its run read: {differences}")),
    }
}

/// Returns what to do about that.
pub fn remedy(saved: &State) -> &'static str {
    if saved.data.order == order::VERSION {
        "bring it back as it was, or go on with it as it is, after as many samples, with --resume and \
         --accept-new-data"
    } else {
        "train on with the release that wrote it, or go on in the new order, after as many samples, with --resume and \
         --accept-new-data"
    }
}
