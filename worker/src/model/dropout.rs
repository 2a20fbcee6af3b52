//! Dropout (Srivastava et al., JMLR 15, 2014) whose masks are a function of what they fall on.
//!
//! A value falls or stays by a hash of (seed, step, global row, position in the caption) and (site,
//! column), so neither world size, nor micro-batching, nor how captions are packed changes a mask, and a
//! second pass over the same rows finds the first one's. Hashes are integer arithmetic in libtorch: the
//! same bits on a CPU and a GPU, and none of them crosses to the device.

use tch::Tensor;

use super::clip::Mode;
use ringmaster_inputs::rng::{self, Site};

/// Random bits of a hash that decide.
const BITS: u32 = 53;

/// The masks of one forward pass over packed tokens.
#[derive(Debug)]
pub(super) struct Dropout {
    /// A key for each token. Shape: [S] i64.
    keys: Tensor,
    rates: Rates,
}

/// Shares that fall.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    /// Of what is added to the residual stream.
    pub(super) hidden: f64,
    /// Of attention's weights.
    pub(super) attention: f64,
}

impl Rates {
    /// Whether nothing falls in this pass.
    pub(super) fn are_idle(self, mode: &Mode<'_>) -> bool {
        matches!(mode, Mode::Eval) || (self.hidden == 0.0 && self.attention == 0.0)
    }
}

/// Returns the key of a token, by its caption's place in the batch and its own in the caption.
pub(super) fn token_key(mode: &Mode<'_>, caption: usize, position: usize) -> i64 {
    match *mode {
        Mode::Eval => 0,
        Mode::Train { seed, step, rows } => {
            rng::key(seed, Site::Dropout, &[step, rows[caption], position as u64]) as i64
        }
    }
}

impl Dropout {
    pub(super) fn new(keys: &Tensor, rates: Rates) -> Self {
        Self { keys: keys.shallow_clone(), rates }
    }

    /// Returns `x` with a share of its values dropped and the others enlarged accordingly.
    /// Shapes: x [S, W] -> [S, W].
    pub(super) fn hidden(&self, x: &Tensor, site: u64) -> Tensor {
        let rate = self.rates.hidden;
        if rate == 0.0 {
            return x.shallow_clone();
        }
        let columns = column_keys(site, x.size()[1]).to_device(x.device()); // [W]
        let kept = kept(&self.keys.unsqueeze(1), &columns, rate);
        x * kept.to_kind(x.kind()) * (1.0 / (1.0 - rate))
    }

    /// Returns attention's weights with a share of them dropped; `tokens` are the rows of the matrix
    /// that the queries are. Shapes: weights [N, H, T, T] -> [N, H, T, T].
    pub(super) fn attention(
        &self,
        weights: &Tensor,
        tokens: std::ops::Range<i64>,
        site: u64,
    ) -> Tensor {
        let rate = self.rates.attention;
        if rate == 0.0 {
            return weights.shallow_clone();
        }
        let (rows, heads, queries, keys) = weights.size4().expect("weights are [N, H, T, T]");
        // By position, not by length: a caption's columns do not move when it is filled up.
        let of_head = (0..heads as u64).map(|head| column_keys(site ^ ((head + 1) << 32), keys));
        let columns = Tensor::stack(&of_head.collect::<Vec<_>>(), 0).unsqueeze(1); // [H, 1, T]
        let tokens = self.keys.narrow(0, tokens.start, tokens.end - tokens.start);
        let kept =
            kept(&tokens.view([rows, 1, queries, 1]), &columns.to_device(weights.device()), rate);
        weights * kept.to_kind(weights.kind()) * (1.0 / (1.0 - rate))
    }
}

/// Returns a key for each column of a site. Shape: [count] i64.
fn column_keys(site: u64, count: i64) -> Tensor {
    let keys = (0..count as u64).map(|column| rng::mixed(&[site, column]) as i64);
    Tensor::from_slice(&keys.collect::<Vec<_>>())
}

/// Returns what stays, for every pair of a key and a column: SplitMix64's finaliser over both.
fn kept(keys: &Tensor, columns: &Tensor, rate: f64) -> Tensor {
    let mut z = keys.bitwise_xor_tensor(columns);
    for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9_u64), (27, 0x94D0_49BB_1331_11EB)] {
        z = xor_shifted(&z, shift);
        let _ = z.g_mul_scalar_(factor as i64);
    }
    let z = logical_shift(&xor_shifted(&z, 31), 64 - BITS);
    z.ge((rate * (1_u64 << BITS) as f64) as i64)
}

fn xor_shifted(z: &Tensor, by: u32) -> Tensor {
    let mut shifted = logical_shift(z, by);
    shifted.bitwise_xor_tensor_(z)
}

/// Shifts in zeros, where libtorch repeats the sign.
fn logical_shift(z: &Tensor, by: u32) -> Tensor {
    let mut shifted = z.bitwise_right_shift_tensor_scalar(i64::from(by));
    shifted.bitwise_and_((1_i64 << (64 - by)) - 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn dropout(rows: &[u64], rates: Rates) -> Dropout {
        let mode = Mode::Train { seed: 3, step: 5, rows };
        let key = |caption: usize| (0..4).map(move |position| (caption, position));
        let keys = (0..rows.len()).flat_map(key).map(|(c, p)| token_key(&mode, c, p));
        Dropout::new(&Tensor::from_slice(&keys.collect::<Vec<_>>()), rates)
    }

    const RATES: Rates = Rates { hidden: 0.25, attention: 0.1 };

    #[test]
    fn hashes_are_those_of_plain_arithmetic() {
        let (keys, columns) = ([7_i64, -1, i64::MIN, 123_456_789], [0_i64, -5, i64::MAX]);
        let tensor = |values: &[i64]| Tensor::from_slice(values);
        let rate = 0.4;
        let got = kept(&tensor(&keys).unsqueeze(1), &tensor(&columns), rate);
        let got = Vec::<i64>::try_from(got.to_kind(Kind::Int64).view([-1])).unwrap();
        let plain = keys.iter().flat_map(|key| columns.iter().map(move |column| key ^ column));
        let plain = plain
            .map(|z| i64::from((rng::mix(z as u64) >> 11) as f64 >= rate * (1_u64 << 53) as f64));
        assert_eq!(got, plain.collect::<Vec<_>>());
    }

    #[test]
    fn the_share_that_falls_is_the_rate_and_the_mean_stays() {
        let rows: Vec<u64> = (0..50).collect();
        let dropout = dropout(&rows, RATES);
        let ones = Tensor::ones([200, 300], (Kind::Float, Device::Cpu));
        let x = dropout.hidden(&ones, 1);
        let share = x.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((share - 0.25).abs() < 0.01, "{share}");
        assert!((x.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.01);
        let other = dropout.hidden(&ones, 2);
        let both = (x.eq(0.0) * other.eq(0.0)).to_kind(Kind::Float).mean(Kind::Float);
        assert!((both.double_value(&[]) - 0.0625).abs() < 0.01, "sites are independent");
        let weights = Tensor::ones([50, 3, 4, 4], (Kind::Float, Device::Cpu));
        let dropped = dropout.attention(&weights, 0..200, 3);
        let share = dropped.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((share - 0.1).abs() < 0.03, "{share}");
    }

    #[test]
    fn a_rows_mask_is_its_own_whatever_else_is_in_the_batch() {
        let x = |rows: i64| Tensor::ones([rows * 4, 8], (Kind::Float, Device::Cpu));
        let together = dropout(&[10, 11, 12], RATES).hidden(&x(3), 1);
        let alone = dropout(&[11], RATES).hidden(&x(1), 1);
        assert_eq!(together.narrow(0, 4, 4), alone);
        assert_ne!(together.narrow(0, 0, 4), alone);
        let weights = |rows: i64| Tensor::ones([rows, 2, 4, 4], (Kind::Float, Device::Cpu));
        let together = dropout(&[10, 11, 12], RATES).attention(&weights(3), 0..12, 1);
        let alone = dropout(&[11], RATES).attention(&weights(1), 0..4, 1);
        assert_eq!(together.narrow(0, 1, 1), alone);
    }
}
