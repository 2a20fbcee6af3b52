//! Tensors as safetensors files: written from a snapshot without a second copy, read in pieces.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use ringmaster_kernels::convert::{self, Element};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::Error;
use super::chunks::Chunks;

// Values are written as they lie in memory, and the format is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// Bytes of the length before the header.
const LENGTH: usize = 8;
/// Longest header that is believed, as the format's own library has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// Which of AdamW's two running means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// m, of the gradient.
    ExpAvg,
    /// v, of its square.
    ExpAvgSq,
}

impl Moment {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ExpAvg, Self::ExpAvgSq];

    fn name(self) -> &'static str {
        match self {
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
        }
    }

    /// Returns the name of the slice of `parameter`'s mean that begins at element `start`:
    /// `<moment>/<parameter>/<start>`.
    pub(crate) fn slice_name(self, parameter: &str, start: usize) -> String {
        format!("{}/{parameter}/{start}", self.name())
    }

    /// Splits the name of a slice.
    fn parse_slice(name: &str) -> Option<(Self, &str, usize)> {
        let (moment, rest) = name.split_once('/')?;
        let (parameter, start) = rest.rsplit_once('/')?;
        let moment = Self::ALL.into_iter().find(|known| known.name() == moment)?;
        Some((moment, parameter, start.parse().ok()?))
    }
}

/// A tensor within a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in the safetensors file.
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<i64>,
    /// F32, or F64 for a run that computes in f64.
    pub dtype: Dtype,
    /// Where its values lie, row-major.
    pub bytes: Range<usize>,
}

impl Part {
    /// Names `len` consecutive elements, from `start` on, of one of a parameter's running means.
    pub fn moment(
        moment: Moment,
        parameter: &str,
        start: usize,
        len: usize,
        dtype: Dtype,
        bytes: Range<usize>,
    ) -> Self {
        Self { name: moment.slice_name(parameter, start), shape: vec![len as i64], dtype, bytes }
    }
}

/// Returns a safetensors file of tensors of a snapshot as the pieces it is made of, in the order
/// given; `object` names it in errors.
///
/// # Errors
/// [`Error::Shape`] for values that do not fill their tensor's shape.
pub(crate) fn pieces(parts: &[Part], bytes: &Bytes, object: &str) -> Result<Vec<Bytes>, Error> {
    let mut pieces = vec![header(parts, object)?.into()];
    pieces.extend(parts.iter().map(|part| bytes.slice(part.bytes.clone())));
    Ok(pieces)
}

/// Returns the length-prefixed JSON header, padded so that values are 8-byte aligned.
fn header(parts: &[Part], object: &str) -> Result<Vec<u8>, Error> {
    let mut tensors = Vec::with_capacity(parts.len());
    let mut offset = 0;
    for part in parts {
        let expected = part.shape.iter().product::<i64>() as usize * part.dtype.bitsize() / 8;
        if expected != part.bytes.len() {
            let (name, shape) = (part.name.clone(), part.shape.clone());
            return Err(Error::Shape { name, shape, bytes: part.bytes.len(), expected });
        }
        let shape = part.shape.iter().map(|&extent| extent as usize).collect();
        let data_offsets = (offset, offset + part.bytes.len());
        offset = data_offsets.1;
        tensors.push((part.name.clone(), TensorInfo { dtype: part.dtype, shape, data_offsets }));
    }
    // What readers in Python look for before they trust the layout.
    let origin = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(origin), tensors)
        .map_err(|e| Error::Damaged { object: object.to_owned(), reason: e.to_string() })?;
    let mut text = serde_json::to_vec(&metadata).expect("a header has string keys");
    text.resize(text.len().next_multiple_of(LENGTH), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// A safetensors file in memory.
#[derive(Debug)]
pub(crate) struct TensorFile {
    chunks: Chunks,
    /// Where values begin.
    start: usize,
    /// By name.
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Reads the header; `object` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Damaged`]: not a safetensors file, cut short, or of other dtypes than F32 and F64.
    pub(crate) fn parse(chunks: Chunks, object: &str) -> Result<Self, Error> {
        let damaged = |reason: String| Error::Damaged { object: object.to_owned(), reason };
        let short = || damaged(format!("{} bytes are no safetensors file", chunks.len()));
        let mut length = [0; LENGTH];
        if chunks.len() < LENGTH {
            return Err(short());
        }
        chunks.copy_to(0, &mut length);
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER || length as usize > chunks.len() - LENGTH {
            return Err(short());
        }
        let mut text = vec![0; length as usize];
        chunks.copy_to(LENGTH, &mut text);
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|e| damaged(format!("its header: {e}")))?;
        let start = LENGTH + text.len();
        if chunks.len() != start + metadata.data_len() {
            let (expected, found) = (start + metadata.data_len(), chunks.len());
            return Err(damaged(format!("{found} bytes, its header says {expected}")));
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            if !matches!(info.dtype, Dtype::F32 | Dtype::F64) {
                let dtype = info.dtype;
                return Err(damaged(format!(
                    "tensor {name:?} has dtype {dtype}, expected F32 or F64"
                )));
            }
            tensors.insert(name, info.clone());
        }
        Ok(Self { chunks, start, tensors })
    }

    /// Returns a tensor.
    pub(crate) fn get(&self, name: &str) -> Option<Values<'_>> {
        self.tensors.get_key_value(name).map(|(name, info)| self.values(name, info))
    }

    /// Returns all tensors by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Values<'_>> {
        self.tensors.iter().map(|(name, info)| self.values(name, info))
    }

    fn values<'a>(&'a self, name: &'a str, info: &'a TensorInfo) -> Values<'a> {
        Values { name, info, at: self.start + info.data_offsets.0, chunks: &self.chunks }
    }
}

/// One tensor of a file in memory.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    name: &'a str,
    info: &'a TensorInfo,
    /// Of its first byte within the file.
    at: usize,
    chunks: &'a Chunks,
}

impl<'a> Values<'a> {
    /// Returns the tensor's name in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Returns its shape; empty for a scalar.
    pub fn shape(&self) -> Vec<i64> {
        self.info.shape.iter().map(|&extent| extent as i64).collect()
    }

    /// Returns F32 or F64.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Returns the number of elements.
    pub fn numel(&self) -> usize {
        self.info.shape.iter().product()
    }

    /// Copies `out.len()` bytes of its values, little-endian and row-major, from byte `at` on.
    ///
    /// # Panics
    /// When the tensor ends before that.
    pub fn copy_bytes(&self, at: usize, out: &mut [u8]) {
        let (begin, end) = self.info.data_offsets;
        assert!(at + out.len() <= end - begin, "{} ends before byte {}", self.name, at + out.len());
        self.chunks.copy_to(self.at + at, out);
    }

    /// Returns the values as f32; F64 is rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.info.data_offsets.1 - self.info.data_offsets.0];
        self.copy_bytes(0, &mut bytes);
        let element = match self.info.dtype {
            Dtype::F64 => Element::F64,
            _ => Element::F32,
        };
        convert::to_f32(element, &bytes)
    }
}

/// Where the slices of the optimizer's running means lie in the files of all ranks.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    /// By moment and parameter: first element, end, file, name in the file.
    slices: BTreeMap<(Moment, String), Vec<Slice>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slice {
    start: usize,
    end: usize,
    file: usize,
    name: String,
}

impl Moments {
    /// Finds every slice of `files` and checks that they cover the parameters of `model` exactly
    /// once; `objects` name the files and `checkpoint` the whole in errors.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub(crate) fn index(
        model: &TensorFile,
        files: &[TensorFile],
        objects: &[String],
        checkpoint: &str,
    ) -> Result<Self, Error> {
        let mut found = Self::default();
        for (file, object) in objects.iter().enumerate() {
            for values in files[file].iter() {
                found
                    .add(model, file, values)
                    .map_err(|reason| Error::Damaged { object: object.clone(), reason })?;
            }
        }
        for slices in found.slices.values_mut() {
            slices.sort_unstable();
        }
        for moment in Moment::ALL {
            for parameter in model.iter() {
                if let Some(reason) = found.gap(moment, parameter) {
                    return Err(Error::Damaged { object: checkpoint.to_owned(), reason });
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, model: &TensorFile, file: usize, values: Values<'_>) -> Result<(), String> {
        let name = values.name();
        let Some((moment, parameter, start)) = Moment::parse_slice(name) else {
            return Err(format!("tensor name {name:?} names no slice of a moment"));
        };
        let Some(whole) = model.get(parameter) else {
            return Err(format!("{name:?} belongs to no parameter of the model"));
        };
        let end = start.checked_add(values.numel()).filter(|&end| end <= whole.numel());
        let Some(end) = end else {
            let (held, len) = (values.numel(), whole.numel());
            return Err(format!("{name:?} holds {held} of only {len} elements"));
        };
        let slices = self.slices.entry((moment, parameter.to_owned())).or_default();
        slices.push(Slice { start, end, file, name: name.to_owned() });
        Ok(())
    }

    /// Returns which elements of a parameter's mean are missing or come twice, if any.
    fn gap(&self, moment: Moment, parameter: Values<'_>) -> Option<String> {
        let (name, len) = (parameter.name(), parameter.numel());
        let of = format!("of {} of {name}", moment.name());
        let mut covered = 0;
        for slice in self.of(moment, name) {
            if slice.start != covered {
                let what = if slice.start > covered { "are missing" } else { "come twice" };
                let (from, to) = (slice.start.min(covered), slice.start.max(covered));
                return Some(format!("elements {from}..{to} {of} {what}"));
            }
            covered = slice.end;
        }
        (covered != len).then(|| format!("elements {covered}..{len} {of} are missing"))
    }

    fn of(&self, moment: Moment, parameter: &str) -> &[Slice] {
        self.slices.get(&(moment, parameter.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// Returns the slices of one parameter's mean in order, with the element each begins at.
    pub(crate) fn slices<'a>(
        &'a self,
        files: &'a [TensorFile],
        moment: Moment,
        parameter: &str,
    ) -> impl Iterator<Item = (usize, Values<'a>)> {
        self.of(moment, parameter).iter().map(|slice| {
            let values = files[slice.file].get(&slice.name);
            (slice.start, values.expect("the index was made from these files"))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// A snapshot of f32 tensors and the parts it has.
    fn parts(tensors: &[(&str, &[i64], Vec<f32>)]) -> (Vec<Part>, Bytes) {
        let (mut parts, mut bytes) = (Vec::new(), Vec::new());
        for (name, shape, values) in tensors {
            let start = bytes.len();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let range = start..bytes.len();
            let (name, shape) = ((*name).to_owned(), shape.to_vec());
            parts.push(Part { name, shape, dtype: Dtype::F32, bytes: range });
        }
        (parts, bytes.into())
    }

    fn file(tensors: &[(&str, &[i64], Vec<f32>)]) -> Vec<u8> {
        let (parts, bytes) = parts(tensors);
        pieces(&parts, &bytes, "m").unwrap().concat()
    }

    fn parsed(bytes: Vec<u8>) -> Result<TensorFile, Error> {
        TensorFile::parse(Chunks::of(bytes), "m")
    }

    #[test]
    fn scalars_matrices_and_every_bit_of_a_value_survive() {
        let strange = vec![f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, 1.5, 2.5];
        let tensors: [(&str, &[i64], Vec<f32>); 2] =
            [("logit_scale", &[], vec![2.3]), ("visual.proj", &[2, 3], strange)];
        let bytes = file(&tensors);
        let library = SafeTensors::deserialize(&bytes).unwrap();
        let back = parsed(bytes.clone()).unwrap();
        for (name, shape, values) in &tensors {
            let read = back.get(name).unwrap();
            assert_eq!((read.shape().as_slice(), read.numel()), (*shape, values.len()));
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&read.to_f32()), bits(values));
            let seen: Vec<i64> =
                library.tensor(name).unwrap().shape().iter().map(|&d| d as i64).collect();
            assert_eq!(&seen, shape, "as the format's own library reads it");
        }
    }

    #[test]
    fn doubles_are_kept_as_doubles() {
        let value = 0.1_f64 + 0.2;
        let part = Part { name: "w".into(), shape: vec![1], dtype: Dtype::F64, bytes: 0..8 };
        let bytes = Bytes::from(value.to_le_bytes().to_vec());
        let back = parsed(pieces(&[part], &bytes, "m").unwrap().concat()).unwrap();
        let mut read = [0; 8];
        back.get("w").unwrap().copy_bytes(0, &mut read);
        assert_eq!(f64::from_le_bytes(read).to_bits(), value.to_bits());
    }

    #[test]
    fn a_file_without_tensors_is_a_file() {
        assert_eq!(parsed(file(&[])).unwrap().iter().count(), 0);
    }

    #[test]
    fn values_that_do_not_fill_their_shape_are_refused() {
        let (parts, bytes) = parts(&[("w", &[2, 2], vec![1.0; 3])]);
        let error = pieces(&parts, &bytes, "m").unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor w has shape [2, 2], which is 16 bytes, and 12 bytes of values"
        );
    }

    #[test]
    fn a_file_cut_short_or_of_another_dtype_is_damaged_not_a_panic() {
        let bytes = file(&[("exp_avg/a/0", &[5], vec![0.5; 5])]);
        for len in 0..bytes.len() {
            let error = parsed(bytes[..len].to_vec()).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }));
        }
        let text = String::from_utf8_lossy(&bytes).replace("F32", "I32");
        let error = parsed(text.into_bytes());
        assert!(error.is_err_and(|e| e.to_string().contains("dtype I32, expected F32 or F64")));
    }

    fn slice(name: &str, start: usize, len: usize) -> [(String, Vec<f32>); 2] {
        let values = (start..start + len).map(|i| i as f32).collect::<Vec<_>>();
        let squares = values.iter().map(|v| -v).collect();
        let named = |moment: Moment| moment.slice_name(name, start);
        [(named(Moment::ExpAvg), values), (named(Moment::ExpAvgSq), squares)]
    }

    /// The second moment of every parameter, put together from slices.
    fn assembled(slices: &[[(String, Vec<f32>); 2]]) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let model =
            parsed(file(&[("a", &[5], vec![0.5; 5]), ("b.weight", &[3], vec![0.5; 3])])).unwrap();
        let lens: Vec<[i64; 1]> = slices.iter().flatten().map(|(_, v)| [v.len() as i64]).collect();
        let tensors: Vec<(&str, &[i64], Vec<f32>)> = slices
            .iter()
            .flatten()
            .zip(&lens)
            .map(|((name, values), len)| (name.as_str(), len.as_slice(), values.clone()))
            .collect();
        let files = [parsed(file(&tensors)).unwrap()];
        let moments = Moments::index(&model, &files, &["optim".to_owned()], "step")?;
        let of = |name: &str| {
            let slices = moments.slices(&files, Moment::ExpAvgSq, name);
            slices.flat_map(|(_, values)| values.to_f32()).collect()
        };
        Ok(["a", "b.weight"].map(|name| (name.to_owned(), of(name))).into())
    }

    #[test]
    fn slices_are_put_together_whatever_their_order() {
        let slices = [slice("a", 3, 2), slice("b.weight", 0, 3), slice("a", 0, 3)];
        let vectors = assembled(&slices).unwrap();
        assert_eq!(vectors["a"], [0.0, -1.0, -2.0, -3.0, -4.0]);
        assert_eq!(vectors["b.weight"], [0.0, -1.0, -2.0]);
    }

    #[test]
    fn slices_that_do_not_cover_a_parameter_exactly_once_are_an_error() {
        let b = || slice("b.weight", 0, 3);
        for (slices, reason) in [
            (vec![b()], "elements 0..5 of exp_avg of a are missing"),
            (vec![b(), slice("a", 0, 4)], "elements 4..5 of exp_avg of a are missing"),
            (vec![b(), slice("a", 0, 2), slice("a", 3, 2)], "elements 2..3 of exp_avg of a"),
            (vec![b(), slice("a", 0, 3), slice("a", 2, 3)], "2..3 of exp_avg of a come twice"),
            (vec![b(), slice("a", 3, 3)], "\"exp_avg/a/3\" holds 3 of only 5 elements"),
            (vec![slice("c", 0, 1)], "\"exp_avg/c/0\" belongs to no parameter of the model"),
        ] {
            let error = assembled(&slices).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
