//! Numbers of files, little-endian, as f32.

use half::{bf16, f16};

/// Type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 64-bit float, which is rounded.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Signed, 64 bits, which is rounded.
    I64,
    /// Signed, 32 bits, which is rounded.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
}

/// A view of elements: their number in each dimension, and the steps from one to the next, in elements.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Extents; empty for a scalar.
    pub shape: &'a [usize],
    /// As many as extents.
    pub strides: &'a [usize],
    /// The first element.
    pub offset: usize,
}

/// Returns elements that lie one after another as f32; bytes beyond the last whole one are left out.
#[inline(never)]
pub fn to_f32(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F64 => each(bytes, |word| f64::from_le_bytes(word) as f32),
        Element::F32 => each(bytes, f32::from_le_bytes),
        Element::F16 => each(bytes, |word| f16::from_le_bytes(word).to_f32()),
        Element::Bf16 => each(bytes, |word| bf16::from_le_bytes(word).to_f32()),
        Element::I64 => each(bytes, |word| i64::from_le_bytes(word) as f32),
        Element::I32 => each(bytes, |word| i32::from_le_bytes(word) as f32),
        Element::I16 => each(bytes, |word| f32::from(i16::from_le_bytes(word))),
        Element::I8 => each(bytes, |word| f32::from(i8::from_le_bytes(word))),
        Element::U8 => each(bytes, |[byte]: [u8; 1]| f32::from(byte)),
    }
}

/// Returns the elements of a view, in the order of its shape, as f32.
///
/// # Panics
/// When the view leaves `bytes`.
#[inline(never)]
pub fn view_to_f32(element: Element, bytes: &[u8], view: View<'_>) -> Vec<f32> {
    match element {
        Element::F64 => walk(bytes, view, |word| f64::from_le_bytes(word) as f32),
        Element::F32 => walk(bytes, view, f32::from_le_bytes),
        Element::F16 => walk(bytes, view, |word| f16::from_le_bytes(word).to_f32()),
        Element::Bf16 => walk(bytes, view, |word| bf16::from_le_bytes(word).to_f32()),
        Element::I64 => walk(bytes, view, |word| i64::from_le_bytes(word) as f32),
        Element::I32 => walk(bytes, view, |word| i32::from_le_bytes(word) as f32),
        Element::I16 => walk(bytes, view, |word| f32::from(i16::from_le_bytes(word))),
        Element::I8 => walk(bytes, view, |word| f32::from(i8::from_le_bytes(word))),
        Element::U8 => walk(bytes, view, |[byte]: [u8; 1]| f32::from(byte)),
    }
}

/// Returns the bytes of `values`, little-endian.
#[inline(never)]
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().map(|word| value(*word)).collect()
}

fn walk<const N: usize>(bytes: &[u8], view: View<'_>, value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<N>();
    let mut values = Vec::with_capacity(view.shape.iter().product());
    visit(view.shape, view.strides, view.offset, &mut |index| values.push(value(words[index])));
    values
}

fn visit(shape: &[usize], strides: &[usize], at: usize, see: &mut impl FnMut(usize)) {
    let (Some((size, shape)), Some((stride, strides))) =
        (shape.split_first(), strides.split_first())
    else {
        return see(at);
    };
    for index in 0..*size {
        visit(shape, strides, at + index * stride, see);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_keeps_its_values() {
        let check = |element, bytes: &[u8]| {
            let view = View { shape: &[2], strides: &[1], offset: 0 };
            assert_eq!(to_f32(element, bytes), [1.0, -2.0], "{element:?}");
            assert_eq!(view_to_f32(element, bytes, view), [1.0, -2.0], "{element:?}");
        };
        check(Element::F64, &[1.0_f64, -2.0].map(f64::to_le_bytes).concat());
        check(Element::F32, &to_bytes(&[1.0, -2.0]));
        check(Element::F16, &[1.0, -2.0].map(|v| f16::from_f32(v).to_le_bytes()).concat());
        check(Element::Bf16, &[1.0, -2.0].map(|v| bf16::from_f32(v).to_le_bytes()).concat());
        check(Element::I64, &[1_i64, -2].map(i64::to_le_bytes).concat());
        check(Element::I32, &[1_i32, -2].map(i32::to_le_bytes).concat());
        check(Element::I16, &[1_i16, -2].map(i16::to_le_bytes).concat());
        check(Element::I8, &[1, 0xFE]);
        assert_eq!(to_f32(Element::U8, &[0, 255]), [0.0, 255.0]);
    }

    #[test]
    fn a_view_is_read_in_the_order_of_its_shape() {
        let bytes = to_bytes(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let transposed = View { shape: &[3, 2], strides: &[1, 3], offset: 1 };
        let values = view_to_f32(Element::F32, &bytes, transposed);
        assert_eq!(values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let scalar = View { shape: &[], strides: &[], offset: 5 };
        assert_eq!(view_to_f32(Element::F32, &bytes, scalar), [5.0]);
    }
}
