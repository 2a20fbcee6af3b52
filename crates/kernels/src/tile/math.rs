//! Elementary functions on f32 that compile to straight-line vector code, and the same arithmetic
//! on every instruction set: each operation is a single rounded one, `mul_add` included.

/// Adds (maximum, sum) of further elements to a pair of softmax statistics.
pub fn join(pair: &mut [f64], maximum: f64, sum: f64) {
    let highest = pair[0].max(maximum); // of a NaN and a number the number
    // Nothing on either side yet: −∞ − −∞ would be NaN.
    if highest == f64::NEG_INFINITY {
        return;
    }
    pair[1] = pair[1] * (pair[0] - highest).exp() + sum * (maximum - highest).exp();
    pair[0] = highest;
}

/// 1.5 · 2²³: adding it to a small number leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first with few bits, so that n · `LN2_HIGH` is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// exp of anything below is under the smallest normal number; its tail is not wanted.
const LOWEST: f32 = -87.0;

/// exp(x) for x ≤ 0, to two units in the last place; below −87 it stays at exp(−87) ≈ 1.6e-38.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; exp(r) by its Taylor series, whose next term is under 1e-8.
#[inline(always)]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    let x = if x < LOWEST { LOWEST } else { x }; // a NaN stays one
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    // The low bits of `shifted` are n; as an exponent they are 2ⁿ.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// ln(1 + e) for 0 ≤ e ≤ 1, to two units in the last place.
///
/// With q = e / (2 + e) ≤ 1/3 it is 2 artanh q = 2 (q + q³/3 + q⁵/5 + …); the term left out is
/// under 2e-8 of the sum.
#[inline(always)]
pub(super) fn ln_1p_of_unit(e: f32) -> f32 {
    let q = e / (2.0 + e);
    let square = q * q;
    let mut p = 1.0 / 13.0;
    p = square.mul_add(p, 1.0 / 11.0);
    p = square.mul_add(p, 1.0 / 9.0);
    p = square.mul_add(p, 1.0 / 7.0);
    p = square.mul_add(p, 1.0 / 5.0);
    p = square.mul_add(p, 1.0 / 3.0);
    p = square.mul_add(p, 1.0);
    2.0 * q * p
}
