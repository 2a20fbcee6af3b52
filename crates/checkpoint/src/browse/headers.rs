//! What safetensors files hold, from their headers alone.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use object_store::ObjectStoreExt as _;
use serde::Deserialize;

use super::Checkpoint;
use crate::Error;
use crate::layout;

/// Longest header that is read, as the format's own readers have it.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header that say how long it is.
const PREFIX: u64 = 8;

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// OpenCLIP's key, or which part of which moment.
    pub name: String,
    /// As the format spells it: `F32`.
    pub dtype: String,
    /// Empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorInfo {
    /// Returns how many values it has.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Checkpoint {
    /// Returns the tensors of each safetensors file, in the order they lie there.
    ///
    /// # Errors
    /// A store that fails, or a header that does not describe its file.
    pub async fn tensors(&self) -> Result<BTreeMap<String, Vec<TensorInfo>>, Error> {
        let mut files = BTreeMap::new();
        for (name, size) in &self.objects {
            if name.ends_with(".safetensors") {
                files.insert(name.clone(), self.header(name, *size).await?);
            }
        }
        Ok(files)
    }

    /// Reads one file's header.
    pub(super) async fn header(&self, object: &str, size: u64) -> Result<Vec<TensorInfo>, Error> {
        let damaged = |reason: String| Error::Damaged {
            object: self.dir.object_url(self.step_name, object),
            reason,
        };
        if size < PREFIX {
            return Err(damaged(format!("{size} bytes are no safetensors file")));
        }
        let prefix = self.range(object, 0..PREFIX).await?;
        let Ok(prefix) = <[u8; PREFIX as usize]>::try_from(prefix.as_slice()) else {
            return Err(damaged(format!("only {} of its first bytes can be read", prefix.len())));
        };
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER || length > size - PREFIX {
            return Err(damaged(format!("its header is said to be {length} bytes of {size} long")));
        }
        let text = self.range(object, PREFIX..PREFIX + length).await?;
        parse(&text, size - PREFIX - length).map_err(damaged)
    }

    async fn range(&self, object: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.dir.object(self.step_name, object);
        let bytes = self.dir.store.get_range(&path, range).await;
        let bytes = bytes.map_err(|e| self.dir.read_error(self.step_name, object, e))?;
        Ok(bytes.into())
    }

    /// Says which parts of the optimizer state the slices of all ranks do not cover exactly once.
    pub(super) fn gaps(files: &BTreeMap<String, Vec<TensorInfo>>) -> Vec<String> {
        let empty = Vec::new();
        let model = files.get(layout::MODEL).unwrap_or(&empty);
        let mut parts: BTreeMap<(String, &str), Vec<(u64, u64)>> = BTreeMap::new();
        let mut gaps = Vec::new();
        for (file, tensors) in files.iter().filter(|(file, _)| layout::is_optim(file)) {
            for tensor in tensors {
                let Some((moment, parameter, start)) = slice_of(&tensor.name) else {
                    gaps.push(format!("{file}: {:?} names no slice of a moment", tensor.name));
                    continue;
                };
                let Some(whole) = model.iter().find(|whole| whole.name == parameter) else {
                    gaps.push(format!("{file}: {:?} belongs to no parameter", tensor.name));
                    continue;
                };
                let part = (start, start.saturating_add(tensor.numel()));
                parts.entry((moment.to_owned(), &whole.name)).or_default().push(part);
            }
        }
        let mut moments: Vec<String> = parts.keys().map(|(moment, _)| moment.clone()).collect();
        moments.dedup();
        for moment in moments {
            for whole in model {
                let mut ranges =
                    parts.remove(&(moment.clone(), whole.name.as_str())).unwrap_or_default();
                ranges.sort_unstable();
                gaps.extend(uncovered(&ranges, whole.numel()).map(|(from, to, what)| {
                    format!("elements {from}..{to} of {moment} of {} {what}", whole.name)
                }));
            }
        }
        gaps
    }
}

/// Says where sorted ranges do not cover `0..len` exactly once: first gap only.
fn uncovered(ranges: &[(u64, u64)], len: u64) -> Option<(u64, u64, &'static str)> {
    let mut covered = 0;
    for &(start, end) in ranges {
        if start != covered {
            let what = if start > covered { "are missing" } else { "come twice" };
            return Some((start.min(covered), start.max(covered), what));
        }
        covered = end;
    }
    match covered.cmp(&len) {
        Ordering::Equal => None,
        Ordering::Less => Some((covered, len, "are missing")),
        Ordering::Greater => Some((len, covered, "are too many")),
    }
}

/// Splits `<moment>/<parameter>/<start>`.
fn slice_of(name: &str) -> Option<(&str, &str, u64)> {
    let (moment, rest) = name.split_once('/')?;
    let (parameter, start) = rest.rsplit_once('/')?;
    Some((moment, parameter, start.parse().ok()?))
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads a header whose file has `data` bytes after it, or says what is wrong.
fn parse(text: &[u8], data: u64) -> Result<Vec<TensorInfo>, String> {
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(text).map_err(|e| format!("its header is not JSON: {e}"))?;
    let mut entries = Vec::new();
    for (name, value) in fields.into_iter().filter(|(name, _)| name != "__metadata__") {
        let entry: Entry = serde_json::from_value(value)
            .map_err(|e| format!("its header does not describe tensor {name:?}: {e}"))?;
        entries.push((entry.data_offsets, name, entry));
    }
    entries.sort_by_key(|(offsets, ..)| *offsets);
    let mut at = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for ((start, end), name, Entry { dtype, shape, .. }) in entries {
        let width =
            width_of(&dtype).ok_or_else(|| format!("tensor {name:?} has dtype {dtype:?}"))?;
        let numel = shape.iter().try_fold(1_u64, |all, extent| all.checked_mul(*extent));
        let bytes = numel.and_then(|numel| numel.checked_mul(width));
        if start != at || bytes.and_then(|bytes| start.checked_add(bytes)) != Some(end) {
            return Err(format!(
                "tensor {name:?} of shape {shape:?} is said to be bytes {start}..{end}, after {at}"
            ));
        }
        at = end;
        tensors.push(TensorInfo { name, dtype, shape });
    }
    if at == data {
        Ok(tensors)
    } else {
        Err(format!("its header describes {at} bytes of values, {data} follow"))
    }
}

/// Bytes of one value.
fn width_of(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => Some(1),
        "I16" | "U16" | "F16" | "BF16" => Some(2),
        "I32" | "U32" | "F32" => Some(4),
        "I64" | "U64" | "F64" => Some(8),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tensor(name: &str, numel: u64) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype: "F32".to_owned(), shape: vec![numel] }
    }

    fn gaps(slices: &[TensorInfo]) -> Vec<String> {
        let model = vec![tensor("a", 5), tensor("b/w", 3)];
        let optim = layout::optim(0, 1);
        Checkpoint::gaps(&[(layout::MODEL.to_owned(), model), (optim, slices.to_vec())].into())
    }

    #[test]
    fn slices_that_do_not_cover_the_model_once_are_named() {
        let b = tensor("exp_avg/b/w/0", 3);
        let whole = [tensor("exp_avg/a/0", 2), tensor("exp_avg/a/2", 3), b.clone()];
        assert_eq!(gaps(&whole), Vec::<String>::new());
        assert_eq!(gaps(&whole[1..]), ["elements 0..2 of exp_avg of a are missing"]);
        for (slice, expected) in [
            (tensor("exp_avg/a/0", 5), "elements 0..2 of exp_avg of a come twice"),
            (tensor("exp_avg/c/0", 5), ": \"exp_avg/c/0\" belongs to no parameter"),
            (tensor("exp_avg", 5), ": \"exp_avg\" names no slice of a moment"),
            (tensor("exp_avg/a/5", 1), "elements 5..6 of exp_avg of a are too many"),
        ] {
            let found = gaps(&[&whole[..], &[slice]].concat());
            assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}");
        }
    }

    #[test]
    fn a_header_that_does_not_describe_its_file_says_how() {
        let one = br#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let read = parse(one, 24).unwrap();
        assert_eq!((read.len(), read[0].numel()), (1, 6));
        for (text, data, reason) in [
            (&one[..], 23, "describes 24 bytes of values, 23 follow"),
            (&one[1..], 24, "not JSON"),
            (br#"{"w":{"dtype":"F32"}}"#, 0, "does not describe tensor \"w\""),
            (br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "bytes 0..4"),
            (br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "after 0"),
            (br#"{"w":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}"#, 4, "dtype \"X\""),
            (
                br#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
                4,
                "bytes 0..4",
            ),
        ] {
            let error = parse(text, data).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
