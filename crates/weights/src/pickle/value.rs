//! What a pickle builds.

use crate::Tensor;

/// Number of a value in its pickle.
pub(crate) type Id = usize;

/// Type and place of the elements of some tensors.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    pub(crate) dtype: crate::DType,
    /// The name of its data: an entry of the archive, or a key of the legacy format.
    pub(crate) key: String,
    /// Elements.
    pub(crate) len: usize,
}

/// A value of a pickle. Parts are named by number; see [`ValueRef`].
#[derive(Debug, Clone)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, tuple or set.
    List(Vec<usize>),
    /// A dictionary, in its order.
    Dict(Vec<(usize, usize)>),
    /// The name of a function or class.
    Global(String),
    /// What a call that is not followed gave: as a rule an instance of a class.
    Object {
        /// Name of what was called, or of the type in words.
        class: String,
        /// What it was made with.
        arguments: usize,
        /// What its attributes were set from, if anything.
        state: Option<usize>,
    },
    /// A tensor.
    Tensor(Box<Tensor>),
    /// The elements of some tensors.
    #[doc(hidden)]
    Storage(StorageValue),
}

impl Value {
    /// Returns the bytes that a copy of it costs beyond its own, as what becomes of it: an element of
    /// a list becomes an entry of two.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Str(text) | Self::Global(text) | Self::Object { class: text, .. } => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(elements) => 2 * size_of_val(elements.as_slice()),
            Self::Dict(entries) => size_of_val(entries.as_slice()),
            Self::Storage(storage) => storage.0.key.len(),
            _ => 0,
        }
    }
}

/// The elements of some tensors, opaque outside.
#[derive(Debug, Clone)]
pub struct StorageValue(pub(crate) Storage);

/// A pickle that has been run.
#[derive(Debug, Clone)]
pub struct Pickle {
    pub(crate) values: Vec<Value>,
    pub(crate) root: Id,
}

/// One value of a [`Pickle`].
#[derive(Debug, Clone, Copy)]
pub struct ValueRef<'a> {
    pickle: &'a Pickle,
    id: Id,
}

impl Pickle {
    /// Returns the value that the pickle is.
    pub fn root(&self) -> ValueRef<'_> {
        ValueRef { pickle: self, id: self.root }
    }

    /// Returns every storage that is named, whether or not a tensor views it.
    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(&storage.0),
            _ => None,
        })
    }
}

impl<'a> ValueRef<'a> {
    /// Returns the value itself.
    pub fn value(self) -> &'a Value {
        &self.pickle.values[self.id]
    }

    fn at(self, id: Id) -> Self {
        Self { pickle: self.pickle, id }
    }

    /// Returns what a dictionary, or an object's state, holds under `key`.
    pub fn get(self, key: &str) -> Option<Self> {
        self.entries().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Returns what a dictionary holds under the number `key`.
    pub fn get_index(self, key: i64) -> Option<Self> {
        let Value::Dict(entries) = self.value() else { return None };
        let found = entries.iter().find(|(name, _)| self.at(*name).as_i64() == Some(key));
        found.map(|(_, value)| self.at(*value))
    }

    /// Returns the entries of a dictionary, or of an object's state, whose keys are text.
    pub fn entries(self) -> impl Iterator<Item = (&'a str, Self)> {
        let entries = match self.value() {
            Value::Dict(entries) => entries.as_slice(),
            Value::Object { state: Some(state), .. } => match &self.pickle.values[*state] {
                Value::Dict(entries) => entries.as_slice(),
                _ => &[],
            },
            _ => &[],
        };
        entries
            .iter()
            .filter_map(move |(key, value)| Some((self.at(*key).as_str()?, self.at(*value))))
    }

    /// Returns the elements of a list, tuple or set.
    pub fn elements(self) -> impl Iterator<Item = Self> {
        let elements = match self.value() {
            Value::List(elements) => elements.as_slice(),
            _ => &[],
        };
        elements.iter().map(move |id| self.at(*id))
    }

    /// Returns text.
    pub fn as_str(self) -> Option<&'a str> {
        match self.value() {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Returns an integer.
    pub fn as_i64(self) -> Option<i64> {
        match self.value() {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns a number, whether it is an integer, a float or a tensor of one element.
    pub fn as_f64(self) -> Option<f64> {
        match self.value() {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            Value::Tensor(tensor) => tensor.scalar().map(f64::from),
            _ => None,
        }
    }

    /// Returns a tensor.
    pub fn as_tensor(self) -> Option<&'a Tensor> {
        match self.value() {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Returns how many entries a dictionary or an object's state has, whatever their keys.
    pub(crate) fn len(self) -> usize {
        match self.value() {
            Value::Dict(entries) => entries.len(),
            Value::Object { state: Some(state), .. } => match &self.pickle.values[*state] {
                Value::Dict(entries) => entries.len(),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Says for people what it is; of a dictionary also the first of its keys.
    pub(crate) fn in_words(self) -> String {
        const SHOWN: usize = 8;
        match self.value() {
            Value::None => "None".to_owned(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => "a number".to_owned(),
            Value::Str(_) | Value::Bytes(_) => "text".to_owned(),
            Value::Global(name) => format!("the name {name}"),
            Value::Object { class, .. } => format!("an object of {class}"),
            Value::Tensor(_) => "a tensor without a name".to_owned(),
            Value::Storage(_) => "a storage without a tensor".to_owned(),
            Value::List(elements) => match elements.first() {
                Some(first) if !matches!(self.at(*first).value(), Value::List(_)) => {
                    let first = self.at(*first).in_words();
                    format!("a list of {}, the first of them {first}", elements.len())
                }
                _ => format!("a list of {}", elements.len()),
            },
            Value::Dict(entries) => {
                let keys: Vec<&str> = self.entries().map(|(key, _)| key).take(SHOWN).collect();
                match (keys.is_empty(), entries.len().saturating_sub(keys.len())) {
                    (true, count) => format!("a dictionary of {count} entries"),
                    (false, 0) => format!("a dictionary of {}", keys.join(", ")),
                    (false, more) => format!("a dictionary of {} and {more} more", keys.join(", ")),
                }
            }
        }
    }
}
