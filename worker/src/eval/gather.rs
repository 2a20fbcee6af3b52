//! Numbers and strings through a collective that moves tensors.

use tch::{Device, Kind, Tensor};

use super::Error;
use crate::collective::Collective;

/// Bytes of text that travel in one element.
const BYTES_PER_ELEMENT: usize = 8;

/// Returns every rank's `value`, by rank.
pub(super) fn counts(collective: &dyn Collective, value: usize) -> Result<Vec<usize>, Error> {
    let world_size = collective.world_size();
    let own = Tensor::from_slice(&[value as i64]);
    let all = Tensor::zeros([world_size as i64], (Kind::Int64, Device::Cpu));
    // collective: all-gather; a rank without samples enters it too, with a zero.
    collective.all_gather(&own, &all, &vec![1; world_size])?.wait()?; // [W]
    Ok(integers(&all)?.into_iter().map(|count| count as usize).collect())
}

/// Returns all ranks' rows, in rank order. `counts` says how many each rank has.
///
/// Shapes: own [counts[rank], …] -> [Σ counts, …].
pub(super) fn rows(
    collective: &dyn Collective,
    own: &Tensor,
    counts: &[usize],
) -> Result<Tensor, Error> {
    let mut shape = own.size();
    shape[0] = counts.iter().sum::<usize>() as i64;
    let all = Tensor::zeros(shape, (own.kind(), Device::Cpu));
    // collective: all-gather; ranks without rows enter it too.
    collective.all_gather(&own.contiguous(), &all, counts)?.wait()?;
    Ok(all)
}

/// Returns all ranks' strings, in rank order.
pub(super) fn strings(collective: &dyn Collective, own: &[String]) -> Result<Vec<String>, Error> {
    let packed = pack(own);
    let elements = counts(collective, packed.len())?;
    let all = rows(collective, &Tensor::from_slice(&packed), &elements)?;
    let all = integers(&all)?;
    let mut strings = Vec::new();
    let mut first = 0;
    for count in elements {
        unpack(&all[first..first + count], &mut strings);
        first += count;
    }
    Ok(strings)
}

/// Returns a one-dimensional integer tensor's values.
pub(super) fn integers(tensor: &Tensor) -> Result<Vec<i64>, Error> {
    let failed = |source| Error::Tensor { operation: "copying integers", source };
    Vec::try_from(tensor.flatten(0, -1)).map_err(failed)
}

/// Returns a tensor's values as f32, flattened.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let failed = |source| Error::Tensor { operation: "copying values", source };
    Vec::try_from(tensor.flatten(0, -1)).map_err(failed)
}

/// Packs strings: their number, then for each its length in bytes and its bytes, eight at a time.
fn pack(strings: &[String]) -> Vec<i64> {
    let mut packed = vec![strings.len() as i64];
    for string in strings {
        packed.push(string.len() as i64);
        for chunk in string.as_bytes().chunks(BYTES_PER_ELEMENT) {
            let mut bytes = [0; BYTES_PER_ELEMENT];
            bytes[..chunk.len()].copy_from_slice(chunk);
            packed.push(i64::from_le_bytes(bytes));
        }
    }
    packed
}

/// Appends the strings of one rank's `packed` elements.
fn unpack(packed: &[i64], strings: &mut Vec<String>) {
    let Some((&count, mut rest)) = packed.split_first() else { return };
    for _ in 0..count {
        let Some((&length, tail)) = rest.split_first() else { return };
        let length = length as usize;
        let (body, tail) = tail.split_at(length.div_ceil(BYTES_PER_ELEMENT).min(tail.len()));
        let mut bytes: Vec<u8> = body.iter().flat_map(|element| element.to_le_bytes()).collect();
        bytes.truncate(length);
        strings.push(String::from_utf8_lossy(&bytes).into_owned());
        rest = tail;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::collective::testing::with_ring;

    #[test]
    fn strings_arrive_in_rank_order_whatever_their_length() {
        let parts: [&[&str]; 3] = [&["", "12345678", "größer 🍎"], &[], &["a"]];
        let gathered = with_ring(3, |ring| {
            let own: Vec<String> = parts[ring.rank()].iter().map(|&s| s.to_owned()).collect();
            strings(ring, &own).unwrap()
        });
        for all in gathered {
            assert_eq!(all, ["", "12345678", "größer 🍎", "a"]);
        }
    }
}
