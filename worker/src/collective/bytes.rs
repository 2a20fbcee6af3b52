//! Small texts between ranks, carried as numbers.

use tch::{Kind, Tensor};

use crate::collective::{Collective, Error};

/// Returns `bytes` of rank `root`, on every rank.
pub(crate) fn broadcast(
    bytes: &[u8],
    root: usize,
    collective: &dyn Collective,
) -> Result<Vec<u8>, Error> {
    let len = Tensor::from_slice(&[bytes.len() as i64]);
    // collective: broadcast of the length, which only the root knows and receivers need first.
    collective.broadcast(&len, root)?.wait()?;
    let len = len.int64_value(&[0]) as usize;
    let words = len.div_ceil(8);
    let mut padded = vec![0; words * 8];
    if collective.rank() == root {
        padded[..len].copy_from_slice(bytes);
    }
    let mut numbers: Vec<i64> = padded
        .chunks_exact(8)
        .map(|word| i64::from_le_bytes(word.try_into().expect("chunks of eight")))
        .collect();
    let tensor = Tensor::from_slice(&numbers);
    // collective: broadcast of the bytes themselves.
    collective.broadcast(&tensor, root)?.wait()?;
    tensor.copy_data(&mut numbers, words);
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.truncate(len);
    assert_eq!(tensor.kind(), Kind::Int64);
    Ok(bytes)
}

/// Returns every rank's bytes, by rank.
pub(crate) fn gather(bytes: &[u8], collective: &dyn Collective) -> Result<Vec<Vec<u8>>, Error> {
    // collective: one broadcast after the other, in the order of ranks everywhere.
    (0..collective.world_size()).map(|root| broadcast(bytes, root, collective)).collect()
}
