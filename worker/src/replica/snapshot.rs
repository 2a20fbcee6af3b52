//! The state at a step boundary, in one pass: hashed whole, and copied where this rank saves it.
//!
//! A piece is hashed right after it was copied, while the processor's cache still has it, by a CRC of
//! 64 bits that its carry-less multiplication computes faster than memory delivers; several threads
//! share the pieces. So a snapshot costs hardly more than a copy of memory. The digest does not
//! depend on what is copied nor on the number of threads: replicas that agree have the same one.

use std::ops::Range;
use std::sync::Arc;

use ringmaster_checkpoint::{Dtype, Layout, Moment, Part};
use ringmaster_kernels::digest;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

use crate::ffi::memory::HostBytes;
use crate::model::{Entry, Params};

/// Bytes that are copied and hashed as one.
const PIECE: usize = 256 << 10;
/// Bytes of a GPU's buffer that are on the host at once; a multiple of [`PIECE`].
const STAGE: usize = 64 << 20;

/// What one rank saves of the flat buffers: parameters, first moments, second moments.
#[derive(Debug, Clone)]
pub struct Portion {
    /// Which tensors the copy holds.
    pub layout: Arc<Layout>,
    /// Which bytes of each buffer are copied, one after the other.
    kept: [Range<usize>; 3],
}

impl Portion {
    /// Returns the portion of rank `rank`: its slice of the moments, and on rank 0 all parameters.
    pub fn of(params: &Params, rank: usize, world_size: usize) -> Self {
        let flat = params.flat();
        Self::new(params.entries(), flat.numel(), flat.kind(), rank, world_size)
    }

    /// As [`Portion::of`], for flat buffers of `total` elements of dtype `kind` (f32 or f64) in which
    /// `entries` lie in order.
    pub fn new(
        entries: &[Entry],
        total: usize,
        kind: Kind,
        rank: usize,
        world_size: usize,
    ) -> Self {
        let (dtype, width) = match kind {
            Kind::Double => (Dtype::F64, 8),
            _ => (Dtype::F32, 4),
        };
        let slice = total * rank / world_size..total * (rank + 1) / world_size;
        let bytes = |elements: Range<usize>| elements.start * width..elements.end * width;
        let whole = if rank == 0 { 0..total } else { 0..0 };
        let kept = [bytes(whole), bytes(slice.clone()), bytes(slice.clone())];

        let mut layout =
            Layout { len: kept.iter().map(ExactSizeIterator::len).sum(), ..Layout::default() };
        if rank == 0 {
            layout.model = entries
                .iter()
                .map(|entry| Part {
                    name: entry.name.clone(),
                    shape: entry.shape.clone(),
                    dtype,
                    bytes: bytes(entry.offset..entry.offset + entry.len),
                })
                .collect();
        }
        let mut base = kept[0].len();
        for moment in Moment::ALL {
            for entry in entries {
                let start = entry.offset.max(slice.start);
                let end = (entry.offset + entry.len).min(slice.end);
                if start < end {
                    let lies = bytes(start - slice.start..end - slice.start);
                    let lies = base + lies.start..base + lies.end;
                    let (first, len) = (start - entry.offset, end - start);
                    layout.optim.push(Part::moment(moment, &entry.name, first, len, dtype, lies));
                }
            }
            base += kept[1].len();
        }
        Self { layout: Arc::new(layout), kept }
    }
}

/// Copies `portion` of the buffers into `memory`, of the layout's length, and returns the digest of
/// the whole state after step `applied`.
///
/// # Panics
/// When the buffers are not those the portion was made for.
pub fn capture(
    applied: u64,
    buffers: [&Tensor; 3],
    portion: &Portion,
    memory: &mut [u8],
    threads: usize,
) -> u64 {
    assert_eq!(memory.len(), portion.layout.len, "memory is of the layout's length");
    pass(applied, buffers, &portion.kept, memory, threads)
}

/// Returns the digest of the whole state after step `applied`, copying nothing.
pub fn digest(applied: u64, buffers: [&Tensor; 3], threads: usize) -> u64 {
    pass(applied, buffers, &[0..0, 0..0, 0..0], &mut [], threads)
}

/// A piece of a buffer.
struct Piece<'b, 'm> {
    bytes: &'b [u8],
    /// The part of it that is copied, to `to`.
    kept: Range<usize>,
    to: &'m mut [u8],
    digest: u64,
}

fn pass(
    applied: u64,
    buffers: [&Tensor; 3],
    kept: &[Range<usize>; 3],
    mut memory: &mut [u8],
    threads: usize,
) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&applied.to_le_bytes());
    for (buffer, kept) in buffers.into_iter().zip(kept) {
        let width = buffer.kind().elt_size_in_bytes();
        let stage = match buffer.device() {
            Device::Cpu => buffer.numel().max(1),
            _ => STAGE / width,
        };
        for first in (0..buffer.numel()).step_by(stage) {
            let len = stage.min(buffer.numel() - first);
            // On the CPU this is the buffer itself.
            let host = buffer.narrow(0, first as i64, len as i64).to_device(Device::Cpu);
            let host = HostBytes::of(&host.contiguous()).expect("flat buffers are contiguous");
            let (mut pieces, rest) = cut(host.read(0..host.len()), first * width, kept, memory);
            memory = rest;
            copy_and_hash(&mut pieces, threads);
            pieces.iter().for_each(|piece| hasher.update(&piece.digest.to_le_bytes()));
        }
    }
    hasher.digest()
}

/// Cuts `bytes`, which begin at `offset` of their buffer, into pieces; returns the memory that is
/// left over.
fn cut<'b, 'm>(
    bytes: &'b [u8],
    offset: usize,
    kept: &Range<usize>,
    mut memory: &'m mut [u8],
) -> (Vec<Piece<'b, 'm>>, &'m mut [u8]) {
    let mut pieces = Vec::with_capacity(bytes.len().div_ceil(PIECE));
    for (index, bytes) in bytes.chunks(PIECE).enumerate() {
        let at = offset + index * PIECE;
        let start = kept.start.clamp(at, at + bytes.len());
        let end = kept.end.clamp(start, at + bytes.len());
        let (to, rest) = memory.split_at_mut(end - start);
        memory = rest;
        pieces.push(Piece { bytes, kept: start - at..end - at, to, digest: 0 });
    }
    (pieces, memory)
}

fn copy_and_hash(pieces: &mut [Piece<'_, '_>], threads: usize) {
    let work = |pieces: &mut [Piece<'_, '_>]| {
        for piece in pieces {
            piece.digest = digest::copy_and_hash(piece.bytes, piece.kept.clone(), piece.to);
        }
    };
    let share = pieces.len().div_ceil(threads.max(1)).max(1);
    let (own, others) = pieces.split_at_mut(share.min(pieces.len()));
    std::thread::scope(|scope| {
        for others in others.chunks_mut(share) {
            scope.spawn(move || work(others));
        }
        work(own);
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{Role, Tower};

    /// Parameters of 16 × 3 elements and more, with a gap after the first.
    const LENS: [usize; 4] = [5, 300_000, 1, 77];

    fn entries() -> (Vec<Entry>, usize) {
        let mut end: usize = 0;
        let mut entries = Vec::new();
        for (index, len) in LENS.into_iter().enumerate() {
            let name = format!("p{index}");
            let (shape, tower) = (vec![len as i64], Tower::Text);
            let role = Role::Parameter;
            entries.push(Entry { name, shape, offset: end, len, tower, decay: true, role });
            end = (end + len).next_multiple_of(16);
        }
        (entries, end)
    }

    fn buffers(total: usize, kind: Kind) -> [Tensor; 3] {
        [1.0, 2.0, -1.0].map(|factor| Tensor::arange(total as i64, (kind, Device::Cpu)) * factor)
    }

    /// What a whole state says about element `element` of a parameter.
    fn element(bytes: &[u8], at: usize, kind: Kind) -> f64 {
        match kind {
            Kind::Double => f64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()),
            _ => f64::from(f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())),
        }
    }

    #[test]
    fn portions_of_all_ranks_hold_every_element_once_and_agree_on_the_digest() {
        let (entries, total) = entries();
        for (world_size, threads, kind) in
            [(1, 1, Kind::Float), (2, 3, Kind::Double), (3, 2, Kind::Float), (40, 1, Kind::Float)]
        {
            let buffers = buffers(total, kind);
            let [a, b, c] = &buffers;
            let expected = digest(7, [a, b, c], 1);
            let mut moments = [0, 0];
            for rank in 0..world_size {
                let portion = Portion::new(&entries, total, kind, rank, world_size);
                let mut memory = vec![0xff; portion.layout.len];
                let found = capture(7, [a, b, c], &portion, &mut memory, threads);
                assert_eq!(found, expected, "rank {rank} of {world_size}");
                assert_eq!(portion.layout.model.len(), if rank == 0 { LENS.len() } else { 0 });
                for part in &portion.layout.model {
                    let entry = entries.iter().find(|entry| entry.name == part.name).unwrap();
                    let first = element(&memory, part.bytes.start, kind);
                    assert_eq!(first, entry.offset as f64);
                    assert_eq!(part.bytes.len(), entry.len * kind.elt_size_in_bytes());
                }
                for part in &portion.layout.optim {
                    let names: Vec<&str> = part.name.split('/').collect();
                    let entry = entries.iter().find(|entry| entry.name == names[1]).unwrap();
                    let at = entry.offset + names[2].parse::<usize>().unwrap();
                    let (moment, factor) = match names[0] {
                        "exp_avg" => (0, 2.0),
                        _ => (1, -1.0),
                    };
                    assert_eq!(element(&memory, part.bytes.start, kind), at as f64 * factor);
                    moments[moment] += part.shape[0] as usize;
                }
            }
            assert_eq!(moments, [LENS.iter().sum::<usize>(); 2], "{world_size} ranks");
        }
    }

    #[test]
    fn a_changed_bit_anywhere_or_another_step_changes_the_digest() {
        let (_, total) = entries();
        let buffers = buffers(total, Kind::Float);
        let [a, b, c] = &buffers;
        let before = digest(7, [a, b, c], 2);
        assert_ne!(before, digest(8, [a, b, c], 2));
        for buffer in &buffers {
            for at in [0, total as i64 / 2, total as i64 - 1] {
                let mut element = buffer.narrow(0, at, 1);
                let kept = element.copy();
                let _ = element.fill_(0.5);
                assert_ne!(before, digest(7, [a, b, c], 2));
                element.copy_(&kept);
            }
        }
        assert_eq!(before, digest(7, [a, b, c], 5));
    }
}
