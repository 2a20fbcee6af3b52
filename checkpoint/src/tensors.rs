//! Tensors as safetensors files: written as a stream without a second copy, read by name.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::Error;
use super::state::{NamedTensor, OptimSlice};
use super::upload::Upload;

// Values are written as they lie in memory, and the format is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// A tensor about to be written; borrows its values.
pub(crate) struct Outgoing<'a> {
    name: String,
    shape: Vec<i64>,
    values: &'a [f32],
}

/// Lists the parameters by name.
pub(crate) fn of_model(model: &[NamedTensor]) -> Vec<Outgoing<'_>> {
    model
        .iter()
        .map(|t| Outgoing { name: t.name.clone(), shape: t.shape.clone(), values: &t.values })
        .collect()
}

/// Lists a rank's moments as `exp_avg/<parameter>/<start>` and `exp_avg_sq/<parameter>/<start>`.
pub(crate) fn of_slices(slices: &[OptimSlice]) -> Vec<Outgoing<'_>> {
    let mut tensors = Vec::with_capacity(2 * slices.len());
    for slice in slices {
        for (moment, values) in
            [(Moment::ExpAvg, &slice.exp_avg), (Moment::ExpAvgSq, &slice.exp_avg_sq)]
        {
            let name = format!("{}/{}/{}", moment.name(), slice.name, slice.start);
            tensors.push(Outgoing { name, shape: vec![values.len() as i64], values });
        }
    }
    tensors
}

/// Streams a safetensors file of f32 tensors, in the order given.
///
/// # Errors
/// [`Error::Shape`] before anything is written, else the store's.
pub(crate) async fn write(upload: &mut Upload<'_>, tensors: &[Outgoing<'_>]) -> Result<(), Error> {
    upload.write(&header(tensors)?).await?;
    for tensor in tensors {
        upload.write(bytemuck::cast_slice(tensor.values)).await?;
    }
    Ok(())
}

/// Returns the length-prefixed JSON header, padded so that values are 8-byte aligned.
fn header(tensors: &[Outgoing<'_>]) -> Result<Vec<u8>, Error> {
    let mut fields = Map::new();
    // What readers in Python look for before they trust the layout.
    fields.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let expected: i64 = tensor.shape.iter().product();
        if expected != tensor.values.len() as i64 {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            return Err(Error::Shape { name, shape, values: tensor.values.len() });
        }
        let end = offset + size_of_val(tensor.values);
        let entry: Value =
            json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]});
        fields.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::to_vec(&fields).expect("a header has string keys");
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// Parameters by name: shape and values.
pub(crate) type Model = BTreeMap<String, (Vec<i64>, Vec<f32>)>;

/// Reads model.safetensors; `object` names it in errors.
pub(crate) fn read_model(bytes: &[u8], object: &str) -> Result<Model, Error> {
    let tensors = read(bytes, object)?;
    Ok(tensors.into_iter().map(|t| (t.name, (t.shape, t.values))).collect())
}

/// Which of AdamW's two running means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    ExpAvg,
    ExpAvgSq,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
        }
    }
}

/// Full vectors put together from the slices of all ranks.
pub(crate) struct Moments<'a> {
    model: &'a Model,
    /// By moment and parameter.
    filled: BTreeMap<(Moment, &'a str), Filled>,
}

/// One parameter's vector and which parts of it are filled.
#[derive(Default)]
struct Filled {
    vector: Vec<f32>,
    parts: Vec<(usize, usize)>,
}

impl<'a> Moments<'a> {
    /// Prepares for the parameters of `model`.
    pub(crate) fn of(model: &'a Model) -> Self {
        Self { model, filled: BTreeMap::new() }
    }

    /// Puts the slices of one optim file in their places.
    pub(crate) fn add(&mut self, bytes: &[u8], object: &str) -> Result<(), Error> {
        for NamedTensor { name, values, .. } in read(bytes, object)? {
            let damaged = |reason: String| Error::Damaged { object: object.to_owned(), reason };
            let Some((moment, parameter, start)) = parse_name(&name) else {
                return Err(damaged(format!("tensor name {name:?} names no slice of a moment")));
            };
            let Some((parameter, (_, model_values))) = self.model.get_key_value(parameter) else {
                return Err(damaged(format!("{name:?} belongs to no parameter of the model")));
            };
            let len = model_values.len();
            let end =
                start.checked_add(values.len()).filter(|&end| end <= len).ok_or_else(|| {
                    damaged(format!("{name:?} holds {} of only {len} elements", values.len()))
                })?;
            let filled = self
                .filled
                .entry((moment, parameter.as_str()))
                .or_insert_with(|| Filled { vector: vec![0.0; len], parts: Vec::new() });
            filled.vector[start..end].copy_from_slice(&values);
            filled.parts.push((start, end));
        }
        Ok(())
    }

    /// Returns the vectors of one moment by parameter; `object` names the checkpoint in errors.
    ///
    /// # Errors
    /// [`Error::Damaged`] unless the slices cover every parameter exactly once.
    pub(crate) fn take(
        &mut self,
        moment: Moment,
        object: &str,
    ) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let mut vectors = BTreeMap::new();
        for (name, (_, model_values)) in self.model {
            let Filled { vector, mut parts } =
                self.filled.remove(&(moment, name.as_str())).unwrap_or_default();
            parts.sort_unstable();
            let mut covered = 0;
            for (start, end) in parts {
                if start != covered {
                    let what = if start > covered { "are missing" } else { "come twice" };
                    let (from, to) = (start.min(covered), start.max(covered));
                    let reason =
                        format!("elements {from}..{to} of {} of {name} {what}", moment.name());
                    return Err(Error::Damaged { object: object.to_owned(), reason });
                }
                covered = end;
            }
            if covered != model_values.len() {
                let len = model_values.len();
                let reason =
                    format!("elements {covered}..{len} of {} of {name} are missing", moment.name());
                return Err(Error::Damaged { object: object.to_owned(), reason });
            }
            vectors.insert(name.clone(), vector);
        }
        Ok(vectors)
    }
}

/// Splits `<moment>/<parameter>/<start>`.
fn parse_name(name: &str) -> Option<(Moment, &str, usize)> {
    let (moment, rest) = name.split_once('/')?;
    let (parameter, start) = rest.rsplit_once('/')?;
    let moment =
        [Moment::ExpAvg, Moment::ExpAvgSq].into_iter().find(|known| known.name() == moment)?;
    Some((moment, parameter, start.parse().ok()?))
}

/// Returns every tensor of a safetensors file, sorted by name.
fn read(bytes: &[u8], object: &str) -> Result<Vec<NamedTensor>, Error> {
    let damaged = |reason: String| Error::Damaged { object: object.to_owned(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            let reason = format!("tensor {name:?} has dtype {:?}, expected F32", view.dtype());
            return Err(damaged(reason));
        }
        let shape = view.shape().iter().map(|&extent| extent as i64).collect();
        // A view need not be aligned, so values are read from bytes one by one.
        let (words, _) = view.data().as_chunks::<4>();
        let values = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        tensors.push(NamedTensor { name, shape, values });
    }
    // The parser's order is a hash map's; which mistake is reported must not depend on it.
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(tensors: &[Outgoing<'_>]) -> Vec<u8> {
        let mut bytes = header(tensors).unwrap();
        for tensor in tensors {
            bytes.extend_from_slice(bytemuck::cast_slice(tensor.values));
        }
        bytes
    }

    fn model() -> Model {
        [("a", 5), ("b.weight", 3)]
            .map(|(name, len)| (name.to_owned(), (vec![len as i64], vec![0.5; len])))
            .into()
    }

    fn slice(name: &str, start: usize, len: usize) -> OptimSlice {
        let exp_avg = (start..start + len).map(|i| i as f32).collect();
        let exp_avg_sq = (start..start + len).map(|i| -(i as f32)).collect();
        OptimSlice { name: name.to_owned(), start, exp_avg, exp_avg_sq }
    }

    fn assembled(slices: &[OptimSlice]) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let model = model();
        let mut moments = Moments::of(&model);
        moments.add(&file(&of_slices(slices)), "optim")?;
        moments.take(Moment::ExpAvgSq, "step")
    }

    #[test]
    fn scalars_matrices_and_every_bit_of_a_value_survive() {
        let values = vec![f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, 1.5, 2.5];
        let tensors = [
            NamedTensor { name: "logit_scale".into(), shape: vec![], values: vec![2.3] },
            NamedTensor { name: "visual.proj".into(), shape: vec![2, 3], values },
        ];
        let back = read_model(&file(&of_model(&tensors)), "m").unwrap();
        for tensor in &tensors {
            let (shape, values) = &back[&tensor.name];
            assert_eq!(*shape, tensor.shape);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(values), bits(&tensor.values));
        }
    }

    #[test]
    fn a_file_without_tensors_is_a_file() {
        assert!(read_model(&file(&[]), "m").unwrap().is_empty());
    }

    #[test]
    fn values_that_do_not_fill_their_shape_are_refused() {
        let tensor = NamedTensor { name: "w".into(), shape: vec![2, 2], values: vec![1.0; 3] };
        let error = header(&of_model(&[tensor])).unwrap_err();
        assert_eq!(error.to_string(), "tensor w has shape [2, 2] and 3 values");
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
            (vec![b()], "elements 0..5 of exp_avg_sq of a are missing"),
            (vec![b(), slice("a", 0, 4)], "elements 4..5 of exp_avg_sq of a are missing"),
            (vec![b(), slice("a", 0, 2), slice("a", 3, 2)], "elements 2..3 of exp_avg_sq of a"),
            (vec![b(), slice("a", 0, 3), slice("a", 2, 3)], "2..3 of exp_avg_sq of a come twice"),
            (vec![b(), slice("a", 3, 3)], "\"exp_avg/a/3\" holds 3 of only 5 elements"),
            (vec![slice("c", 0, 1)], "\"exp_avg/c/0\" belongs to no parameter of the model"),
        ] {
            let error = assembled(&slices).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_file_cut_short_is_damaged_not_a_panic() {
        let bytes = file(&of_slices(&[slice("a", 0, 5)]));
        for len in 0..bytes.len() {
            let error = read_model(&bytes[..len], "m").unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }));
        }
    }
}
