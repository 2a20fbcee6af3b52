//! Small texts between ranks, carried as numbers.

use tch::{Device, Kind, Tensor};

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
    let mut numbers = match collective.rank() == root {
        true => numbers(bytes),
        false => vec![0; words],
    };
    let tensor = Tensor::from_slice(&numbers);
    // collective: broadcast of the bytes themselves.
    collective.broadcast(&tensor, root)?.wait()?;
    tensor.copy_data(&mut numbers, words);
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.truncate(len);
    assert_eq!(tensor.kind(), Kind::Int64);
    Ok(bytes)
}

/// Returns bytes as whole numbers, the last one padded with zeros.
fn numbers(bytes: &[u8]) -> Vec<i64> {
    let number = |word: &[u8]| {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        i64::from_le_bytes(padded)
    };
    bytes.chunks(8).map(number).collect()
}

/// Returns every rank's bytes, by rank, in two collectives however many ranks there are.
pub(crate) fn gather(bytes: &[u8], collective: &dyn Collective) -> Result<Vec<Vec<u8>>, Error> {
    let world_size = collective.world_size();
    let len = Tensor::from_slice(&[bytes.len() as i64]);
    let lens = Tensor::zeros([world_size as i64], (Kind::Int64, Device::Cpu));
    // collective: all-gather of the lengths, which every rank needs to lay out what follows.
    collective.all_gather(&len, &lens, &vec![1; world_size])?.wait()?;
    let mut sizes = vec![0_i64; world_size];
    lens.copy_data(&mut sizes, world_size);
    let words: Vec<usize> = sizes.iter().map(|&size| (size as usize).div_ceil(8)).collect();
    let own = Tensor::from_slice(&numbers(bytes));
    let all = Tensor::zeros([words.iter().sum::<usize>() as i64], (Kind::Int64, Device::Cpu));
    // collective: all-gather of the bytes; a rank's share may be empty.
    collective.all_gather(&own, &all, &words)?.wait()?;
    let total = words.iter().sum();
    let mut gathered = vec![0_i64; total];
    all.copy_data(&mut gathered, total);
    let mut next = 0;
    let texts = words.iter().zip(&sizes).map(|(&words, &size)| {
        let own = &gathered[next..next + words];
        next += words;
        let mut bytes: Vec<u8> = own.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.truncate(size as usize);
        bytes
    });
    Ok(texts.collect())
}
