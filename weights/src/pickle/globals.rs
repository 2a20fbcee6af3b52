//! The names a pickle of weights may use, and what each stands for.

use super::Reason;
use super::machine::View;
use super::value::{Id, Value};
use crate::DType;

/// What a call gives.
pub(super) enum Called {
    /// A new value.
    Value(Value),
    /// A value that is there.
    Same(Id),
}

const DICTIONARIES: [&str; 3] =
    ["collections.OrderedDict", "collections.defaultdict", "builtins.dict"];
const SETS: [&str; 2] = ["builtins.set", "__builtin__.set"];
const REBUILD: [&str; 2] = ["torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"];
/// Calls whose first argument is what they stand for.
const WRAPPERS: [&str; 7] = [
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.jit._pickle.restore_type_tag",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
];
const NUMPY_SCALARS: [&str; 2] = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"];
/// Classes whose instances are kept as they are described.
const PLAIN: [&str; 6] = [
    "torch.Size",
    "torch.device",
    "torch.dtype",
    "numpy.dtype",
    "argparse.Namespace",
    "torch.serialization._get_layout",
];
const ENCODE: &str = "_codecs.encode";

/// Returns whether `name` stands for data.
pub(super) fn is_harmless(name: &str) -> bool {
    is_dictionary(name)
        || SETS.contains(&name)
        || REBUILD.contains(&name)
        || WRAPPERS.contains(&name)
        || NUMPY_SCALARS.contains(&name)
        || PLAIN.contains(&name)
        || name == ENCODE
        || storage_type(name).is_some()
        // Types of tensors, named as attributes of torch.
        || is_torch_type(name)
        // Classes of a TorchScript archive: named, never run.
        || name.starts_with("__torch__.")
}

pub(super) fn is_dictionary(name: &str) -> bool {
    DICTIONARIES.contains(&name)
}

fn is_torch_type(name: &str) -> bool {
    let types = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"];
    name.strip_prefix("torch.").is_some_and(|name| types.contains(&name))
}

/// Returns the type of the elements of a class of storages.
pub(super) fn storage_type(name: &str) -> Option<DType> {
    let name = name.strip_prefix("torch.")?;
    let name = name.strip_prefix("cuda.").unwrap_or(name);
    Some(match name {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        _ => return None,
    })
}

/// Returns what calling `name` stands for.
pub(super) fn call(
    name: &str,
    arguments: Id,
    values: &mut [Value],
    view: &mut View<'_>,
) -> Result<Called, Reason> {
    let Value::List(given) = &values[arguments] else {
        return Err(Reason::Broken(format!("{name} is called with no tuple")));
    };
    let given = given.clone();
    let missing = || Reason::Broken(format!("{name} is called with {} arguments", given.len()));
    if REBUILD.contains(&name) {
        return tensor(&given, values, view).map(Called::Value);
    }
    if WRAPPERS.contains(&name) {
        return given.first().copied().map(Called::Same).ok_or_else(missing);
    }
    if is_dictionary(name) {
        return Ok(Called::Value(Value::Dict(pairs(&given, values))));
    }
    if SETS.contains(&name) {
        let same = given.first().copied().map(Called::Same);
        return Ok(same.unwrap_or(Called::Value(Value::List(Vec::new()))));
    }
    if NUMPY_SCALARS.contains(&name) {
        return numpy_scalar(&given, values).map(Called::Value).ok_or_else(missing);
    }
    if name == ENCODE {
        return latin1(&given, values).map(Called::Value).ok_or_else(missing);
    }
    let class = name.to_owned();
    Ok(Called::Value(Value::Object { class, arguments, state: None }))
}

/// `OrderedDict([(key, value), …])`, as Python 2 wrote it.
fn pairs(given: &[Id], values: &[Value]) -> Vec<(Id, Id)> {
    let Some(Value::List(entries)) = given.first().map(|id| &values[*id]) else {
        return Vec::new();
    };
    let pair = |id: &Id| match &values[*id] {
        Value::List(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
        _ => None,
    };
    entries.iter().filter_map(pair).collect()
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, …)`.
fn tensor(given: &[Id], values: &[Value], view: &mut View<'_>) -> Result<Value, Reason> {
    let value = |index: usize| given.get(index).map(|id| &values[*id]);
    let sizes = |index: usize| match value(index) {
        Some(Value::List(sizes)) => sizes
            .iter()
            .map(|id| match &values[*id] {
                Value::Int(size) => usize::try_from(*size).ok(),
                _ => None,
            })
            .collect::<Option<Vec<usize>>>(),
        _ => None,
    };
    let (Some(Value::Storage(storage)), Some(Value::Int(offset)), Some(shape), Some(strides)) =
        (value(0), value(1), sizes(2), sizes(3))
    else {
        return Err(Reason::Broken("a tensor without storage, offset, shape and strides".into()));
    };
    let offset = usize::try_from(*offset)
        .map_err(|_| Reason::Broken(format!("a tensor at offset {offset}")))?;
    let tensor = view(&storage.0, offset, shape, strides).map_err(Reason::Broken)?;
    Ok(Value::Tensor(Box::new(tensor)))
}

/// `numpy.core.multiarray.scalar(dtype, bytes)`.
fn numpy_scalar(given: &[Id], values: &[Value]) -> Option<Value> {
    let (Value::Object { arguments, .. }, Value::Bytes(bytes)) =
        (&values[*given.first()?], &values[*given.get(1)?])
    else {
        return None;
    };
    let Value::List(described) = &values[*arguments] else { return None };
    let Value::Str(kind) = &values[*described.first()?] else { return None };
    Some(match (kind.as_str(), bytes.as_slice()) {
        ("f8", bytes) => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        ("f4", bytes) => Value::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
        ("i8", bytes) => Value::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
        ("i4", bytes) => Value::Int(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        ("b1", [byte]) => Value::Bool(*byte != 0),
        _ => return None,
    })
}

/// `_codecs.encode(text, 'latin1')`: how protocol 2 writes bytes.
fn latin1(given: &[Id], values: &[Value]) -> Option<Value> {
    let Value::Str(text) = &values[*given.first()?] else { return None };
    let bytes = text.chars().map(|character| u8::try_from(u32::from(character)).ok());
    Some(Value::Bytes(bytes.collect::<Option<_>>()?))
}
