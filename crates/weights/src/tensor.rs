//! Tensors of a file: their types, their views, and how they become f32.

use std::collections::BTreeMap;

use ringmaster_kernels::convert::{self, Element, View};

use crate::map::Bytes;

/// What a file holds by name.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Tensors.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// What is no tensor that can be read, with its type in words.
    pub(crate) unreadable: BTreeMap<String, String>,
}

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// A byte that is zero or one.
    Bool,
}

impl DType {
    /// Returns the bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Returns what its elements are to be read as; a truth value is 0 or 1.
    fn element(self) -> Element {
        match self {
            Self::F64 => Element::F64,
            Self::F32 => Element::F32,
            Self::F16 => Element::F16,
            Self::BF16 => Element::Bf16,
            Self::I64 => Element::I64,
            Self::I32 => Element::I32,
            Self::I16 => Element::I16,
            Self::I8 => Element::I8,
            Self::U8 | Self::Bool => Element::U8,
        }
    }
}

/// Most dimensions, as PyTorch has it; walking a view goes one call deeper for each.
const MOST_DIMENSIONS: usize = 64;
/// How often a view may repeat its storage, as an expanded one does: not without bound.
const MOST_REPEATED: usize = 4096;

/// A tensor of a file: a view of some storage.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    /// Elements from one index to the next, by dimension.
    strides: Vec<usize>,
    /// First element in the storage.
    offset: usize,
    storage: Bytes,
}

impl Tensor {
    /// Makes a view, if it stays inside its storage and its size can be counted.
    pub(crate) fn new(
        dtype: DType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        storage: Bytes,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("a shape {shape:?} with strides {strides:?}"));
        }
        if shape.len() > MOST_DIMENSIONS {
            let dimensions = shape.len();
            return Err(format!("of {dimensions} dimensions; expected at most {MOST_DIMENSIONS}"));
        }
        let elements = storage.len() / dtype.size();
        let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        if count.is_some_and(|count| count > elements.max(1).saturating_mul(MOST_REPEATED)) {
            return Err(format!(
                "a view of shape {shape:?} on a storage of {elements} elements; views that repeat their \
                 storage more than {MOST_REPEATED} times are not read"
            ));
        }
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (size, stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
        });
        match (count, last) {
            // Where nothing is, it does not matter where: offset and strides may be anything.
            (Some(0), _) => {
                let strides = vec![0; shape.len()];
                return Ok(Self { dtype, shape, strides, offset: 0, storage });
            }
            (Some(_), Some(last)) if last < elements => {}
            _ => {
                return Err(format!(
                    "a view of shape {shape:?}, strides {strides:?} and offset {offset} leaves its \
                     storage of {elements} elements"
                ));
            }
        }
        Ok(Self { dtype, shape, strides, offset, storage })
    }

    /// Makes a tensor of elements that lie one after another, the last dimension fastest.
    pub(crate) fn contiguous(
        dtype: DType,
        shape: Vec<usize>,
        storage: Bytes,
    ) -> Result<Self, String> {
        let strides = strides(&shape).ok_or_else(|| format!("a shape {shape:?}"))?;
        Self::new(dtype, shape, strides, 0, storage)
    }

    /// Makes a tensor of values.
    ///
    /// # Errors
    /// When there are not as many as the shape has.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, String> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(format!("{} values for a shape {shape:?}", values.len()));
        }
        let bytes = convert::to_bytes(values);
        Self::contiguous(DType::F32, shape, Bytes::Own(std::sync::Arc::new(bytes)))
    }

    /// Returns the type of the elements in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns true if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the elements in the order of the shape, as f32. Shape: that of the tensor, flat.
    pub fn to_f32(&self) -> Vec<f32> {
        if self.is_empty() {
            return Vec::new();
        }
        let size = self.dtype.size();
        if strides(&self.shape).as_ref() == Some(&self.strides) {
            let bytes = &self.storage[self.offset * size..(self.offset + self.len()) * size];
            return convert::to_f32(self.dtype.element(), bytes);
        }
        let view = View { shape: &self.shape, strides: &self.strides, offset: self.offset };
        convert::view_to_f32(self.dtype.element(), &self.storage, view)
    }

    /// Returns the only element.
    pub fn scalar(&self) -> Option<f32> {
        (self.len() == 1).then(|| self.to_f32()[0])
    }

    /// Returns the view whose dimensions come in another order.
    pub(crate) fn permute(&self, order: &[usize]) -> Self {
        let pick = |of: &[usize]| order.iter().map(|dimension| of[*dimension]).collect();
        Self { shape: pick(&self.shape), strides: pick(&self.strides), ..self.clone() }
    }

    /// Returns the part at `index` of the first dimension.
    pub(crate) fn select(&self, index: usize) -> Option<Self> {
        let (size, stride) = (*self.shape.first()?, *self.strides.first()?);
        (index < size).then(|| Self {
            shape: self.shape[1..].to_vec(),
            strides: self.strides[1..].to_vec(),
            offset: self.offset + index * stride,
            ..self.clone()
        })
    }
}

/// Returns the strides of elements that lie one after another.
fn strides(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1_usize; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].checked_mul(shape[dimension].max(1))?;
    }
    Some(strides)
}
