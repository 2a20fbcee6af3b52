//! What the names in a pickle of weights stand for.
//!
//! PyTorch's own reader of weights (`torch.load(…, weights_only=True)`, the default since 2.6) allows
//! ordered dictionaries and counters, sets, bytes and their encoding, `torch.Size`, devices, types, storages
//! and the calls that rebuild tensors and parameters, and refuses the whole file for any other name. Here
//! names beyond these are kept as what they are, names, so that what a training script left beside the
//! weights (`argparse.Namespace`, configurations, numpy's numbers, enumerations) keeps nobody from the
//! weights: only a tensor that is made by such a name cannot be read.

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

const DICTIONARIES: [&str; 5] = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "builtins.dict",
    "__builtin__.dict",
];
/// Classes of several values, called with them or with nothing.
const LISTS: [&str; 9] = [
    "builtins.set",
    "builtins.frozenset",
    "builtins.list",
    "builtins.tuple",
    "__builtin__.set",
    "__builtin__.frozenset",
    "__builtin__.list",
    "__builtin__.tuple",
    "collections.deque",
];
const BYTES: [&str; 4] =
    ["builtins.bytes", "builtins.bytearray", "__builtin__.bytes", "__builtin__.bytearray"];
const REBUILD: [&str; 2] = ["torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"];
/// As these, for types of elements that have no class of storages; the seventh argument is the type.
const REBUILD_TYPED: &str = "torch._utils._rebuild_tensor_v3";
/// Makes a subclass of tensors: the function that makes the tensor, the subclass, its arguments, state.
const REBUILD_SUBCLASS: &str = "torch._tensor._rebuild_from_type_v2";
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
const NUMPY_ARRAYS: [&str; 2] =
    ["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"];
const ENCODE: &str = "_codecs.encode";

/// Modules that start programs, load code or reach out: no description of data names anything in them.
const HARMFUL: [&str; 24] = [
    "_pickle",
    "cPickle",
    "code",
    "commands",
    "ctypes",
    "ftplib",
    "imp",
    "importlib",
    "marshal",
    "nt",
    "os",
    "pickle",
    "pip",
    "popen2",
    "posix",
    "pty",
    "requests",
    "runpy",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "urllib",
    "webbrowser",
];
/// Functions that do, in modules that also hold data's types.
const HARMFUL_BUILTINS: [&str; 10] = [
    "__import__",
    "apply",
    "breakpoint",
    "compile",
    "eval",
    "exec",
    "execfile",
    "file",
    "input",
    "open",
];
const HARMFUL_FUNCTIONS: [&str; 6] = [
    "numpy.load",
    "torch.hub",
    "torch.jit.load",
    "torch.load",
    "torch.serialization.load",
    "torch.utils.cpp_extension",
];

/// Whether `name` runs programs or code. Nothing is ever called here; but a file that asks for such a
/// thing is none to take weights from in silence.
pub(super) fn is_harmful(name: &str) -> bool {
    let (module, rest) = name.split_once('.').unwrap_or((name, ""));
    if let "builtins" | "__builtin__" = module {
        return HARMFUL_BUILTINS.contains(&rest);
    }
    let is = |harmful: &&str| {
        name.strip_prefix(*harmful).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    HARMFUL.contains(&module) || HARMFUL_FUNCTIONS.iter().any(is)
}

pub(super) fn is_dictionary(name: &str) -> bool {
    DICTIONARIES.contains(&name)
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
    let called = match rebuilt(name, &given, values, view)? {
        None => plain(name, &given, values),
        called => called,
    };
    // The type of what cannot be read, or what is called and not known.
    Ok(called.unwrap_or_else(|| {
        let class = in_words(name, &given, values);
        Called::Value(Value::Object { class, arguments, state: None })
    }))
}

/// What PyTorch's calls give; none for others, and for tensors that are not read.
fn rebuilt(
    name: &str,
    given: &[Id],
    values: &[Value],
    view: &mut View<'_>,
) -> Result<Option<Called>, Reason> {
    if REBUILD.contains(&name) {
        return match given.first().map(|id| &values[*id]) {
            // A storage of a type that is not read.
            Some(Value::Object { .. }) => Ok(None),
            _ => tensor(given, values, view).map(|tensor| Some(Called::Value(tensor))),
        };
    }
    if name == REBUILD_SUBCLASS
        && let [function, _, arguments, ..] = given
        && let (Value::Global(by), Value::List(given)) = (&values[*function], &values[*arguments])
        && REBUILD.contains(&by.as_str())
    {
        return rebuilt(REBUILD[0], given, values, view);
    }
    if WRAPPERS.contains(&name) {
        return Ok(given.first().copied().map(Called::Same));
    }
    Ok(None)
}

/// What Python's and numpy's own types give; none for others.
fn plain(name: &str, given: &[Id], values: &[Value]) -> Option<Called> {
    let first = given.first().map(|id| &values[*id]);
    let value = if is_dictionary(name) {
        Some(Value::Dict(pairs(given, values)))
    } else if LISTS.contains(&name) {
        match first {
            None => Some(Value::List(Vec::new())),
            // A copy: more may be added to it.
            Some(Value::List(elements)) => Some(Value::List(elements.clone())),
            Some(_) => None,
        }
    } else if BYTES.contains(&name) && first.is_none() {
        Some(Value::Bytes(Vec::new()))
    } else if name == ENCODE || BYTES.contains(&name) {
        latin1(given, values)
    } else if NUMPY_SCALARS.contains(&name) {
        numpy_scalar(given, values)
    } else {
        None
    };
    value.map(Called::Value)
}

/// Says what a call gives that is not followed.
fn in_words(name: &str, given: &[Id], values: &[Value]) -> String {
    let value = |index: usize| given.get(index).map(|id| &values[*id]);
    match (name, value(0), value(6)) {
        (_, Some(Value::Object { class, .. }), _) if REBUILD.contains(&name) => {
            format!("a tensor on a {class}")
        }
        (REBUILD_TYPED, _, Some(Value::Global(dtype))) => format!("a tensor of {dtype}"),
        _ if NUMPY_SCALARS.contains(&name) => match numpy_dtype(given, values) {
            // Such a name is short; it is not charged for.
            Some((kind, _)) if kind.len() <= 16 => format!("a number of numpy's type {kind}"),
            _ => "a number of numpy's".to_owned(),
        },
        _ if NUMPY_ARRAYS.contains(&name) => "a numpy array".to_owned(),
        _ => name.to_owned(),
    }
}

/// `OrderedDict([(key, value), …])`, as Python 2 wrote it, or `Counter({key: value, …})`.
fn pairs(given: &[Id], values: &[Value]) -> Vec<(Id, Id)> {
    let entries = match given.first().map(|id| &values[*id]) {
        Some(Value::Dict(entries)) => return entries.clone(),
        Some(Value::List(entries)) => entries,
        _ => return Vec::new(),
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

/// `numpy.core.multiarray.scalar(dtype, bytes)`; none for types that are no plain numbers.
fn numpy_scalar(given: &[Id], values: &[Value]) -> Option<Value> {
    let (kind, order) = numpy_dtype(given, values)?;
    let Value::Bytes(bytes) = &values[*given.get(1)?] else { return None };
    let mut bytes = bytes.clone();
    if order == ">" {
        bytes.reverse();
    }
    Some(match kind {
        "f8" => Value::Float(f64::from_le_bytes(le(&bytes)?)),
        "f4" => Value::Float(f64::from(f32::from_le_bytes(le(&bytes)?))),
        "f2" => Value::Float(half::f16::from_le_bytes(le(&bytes)?).to_f64()),
        "i8" => Value::Int(i64::from_le_bytes(le(&bytes)?)),
        "i4" => Value::Int(i64::from(i32::from_le_bytes(le(&bytes)?))),
        "i2" => Value::Int(i64::from(i16::from_le_bytes(le(&bytes)?))),
        "i1" => Value::Int(i64::from(i8::from_le_bytes(le(&bytes)?))),
        "u8" => Value::Int(i64::try_from(u64::from_le_bytes(le(&bytes)?)).ok()?),
        "u4" => Value::Int(i64::from(u32::from_le_bytes(le(&bytes)?))),
        "u2" => Value::Int(i64::from(u16::from_le_bytes(le(&bytes)?))),
        "u1" => Value::Int(i64::from(u8::from_le_bytes(le(&bytes)?))),
        "b1" => Value::Bool(le::<1>(&bytes)? != [0]),
        _ => return None,
    })
}

fn le<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// Reads `dtype(kind, align, copy)`, whose state is `(version, byte order, …)`.
fn numpy_dtype<'a>(given: &[Id], values: &'a [Value]) -> Option<(&'a str, &'a str)> {
    let Value::Object { arguments, state, .. } = &values[*given.first()?] else { return None };
    let text = |of: Id, index: usize| match &values[of] {
        Value::List(parts) => match &values[*parts.get(index)?] {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        },
        _ => None,
    };
    Some((text(*arguments, 0)?, state.and_then(|state| text(state, 1)).unwrap_or("<")))
}

/// `_codecs.encode(text, 'latin1')`: how protocol 2 writes bytes.
fn latin1(given: &[Id], values: &[Value]) -> Option<Value> {
    let text = match &values[*given.first()?] {
        Value::Str(text) => text,
        Value::Bytes(bytes) => return Some(Value::Bytes(bytes.clone())),
        _ => return None,
    };
    let bytes = text.chars().map(|character| u8::try_from(u32::from(character)).ok());
    Some(Value::Bytes(bytes.collect::<Option<_>>()?))
}
