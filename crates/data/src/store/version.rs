//! Whether an object is still the one that was asked about first.

use object_store::ObjectMeta;

/// Returns what shows that an object was replaced since its properties were `first`; none where nothing does.
///
/// Files are told apart by length and time of change, objects of stores by length and ETag. A store without ETags
/// may tell a time of change.
pub(super) fn replaced(first: &ObjectMeta, now: &ObjectMeta, is_file: bool) -> Option<String> {
    if first.size != now.size {
        return Some(format!("it has {} bytes now and had {}", now.size, first.size));
    }
    match (&first.e_tag, &now.e_tag) {
        (Some(first), Some(now)) if !is_file => {
            (first != now).then(|| format!("its ETag is {now} now and was {first}"))
        }
        _ => {
            // A server that does not tell it leaves it at the beginning of time.
            let is_told = |meta: &ObjectMeta| meta.last_modified.timestamp() > 0;
            let is_other = first.last_modified != now.last_modified;
            (is_other && is_told(first) && is_told(now)).then(|| {
                format!(
                    "it was changed on {} and before on {}",
                    now.last_modified, first.last_modified
                )
            })
        }
    }
}

/// Returns the ETag that a request may make a condition: a weak one is by definition equal to none.
pub(super) fn condition(first: &ObjectMeta) -> Option<String> {
    first.e_tag.clone().filter(|tag| !tag.starts_with("W/"))
}
