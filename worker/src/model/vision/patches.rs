//! From images to rows of patches, and which of them training keeps.

use tch::Tensor;

use super::super::clip::Mode;
use ringmaster_inputs::rng::{Site, Stream};

/// Returns every patch as a row, patches of an image one after another, row by row of the grid.
///
/// A row holds channel, then y, then x: the layout of a filter of `conv1.weight`, so embedding
/// patches is one matrix product. That is as fast as the strided convolution it equals (14 ms
/// against 12 ms for 128 images of 64 × 64 pixels, forward and backward on one core, most of it
/// the product) and lets dropped patches be left out first.
///
/// Shapes: images [N, 3, H, W] -> [N·g², 3·p²] with g = H / p rounded down.
pub(super) fn patchify(images: &Tensor, patch: i64, grid: i64) -> Tensor {
    let side = grid * patch;
    let (batch, channels) = (images.size()[0], images.size()[1]);
    images
        .narrow(2, 0, side)
        .narrow(3, 0, side)
        .reshape([batch, channels, grid, patch, grid, patch])
        .permute([0, 2, 4, 1, 3, 5]) // [N, g, g, 3, p, p]
        .reshape([batch * grid * grid, channels * patch * patch])
}

/// Returns, for each image, the numbers of the patches that stay, ascending; nothing when all do.
///
/// As OpenCLIP's `PatchDropout` (arXiv:2212.00794) a share `dropout` of the patches is left out at
/// random and at least one stays. Which ones depends on seed, step and global row only.
pub(in super::super) fn kept(mode: &Mode<'_>, patches: i64, dropout: f64) -> Option<Vec<Vec<i64>>> {
    let Mode::Train { seed, step, rows } = *mode else { return None };
    if dropout == 0.0 {
        return None;
    }
    let count = ((patches as f64 * (1.0 - dropout)) as usize).max(1);
    Some(rows.iter().map(|&row| kept_of_row(seed, step, row, patches, count)).collect())
}

fn kept_of_row(seed: u64, step: u64, row: u64, patches: i64, count: usize) -> Vec<i64> {
    let mut stream = Stream::new(seed, Site::PatchDropout, &[step, row]);
    let mut numbers: Vec<i64> = (0..patches).collect();
    for place in 0..count {
        let other = place + stream.below((numbers.len() - place) as u64) as usize;
        numbers.swap(place, other);
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::Error;
    use super::*;

    fn kept_rows(rows: &[u64]) -> Vec<Vec<i64>> {
        let mode = Mode::Train { seed: 3, step: 11, rows };
        kept(&mode, 16, 0.5).unwrap()
    }

    #[test]
    fn a_row_keeps_the_same_patches_whatever_the_batch() {
        let together = kept_rows(&[4, 5, 6, 7]);
        assert_eq!(together[2], kept_rows(&[6])[0]);
        assert_eq!(together[3], kept_rows(&[7, 4])[0]);
        assert_ne!(together[0], together[1]);
    }

    #[test]
    fn the_share_is_rounded_as_open_clip_does_and_one_patch_always_stays() {
        for patches in kept_rows(&[0, 1, 2]) {
            assert_eq!(patches.len(), 8);
            assert!(patches.is_sorted_by(|a, b| a < b) && patches[0] >= 0 && patches[7] < 16);
        }
        let mode = Mode::Train { seed: 0, step: 0, rows: &[0] };
        assert_eq!(kept(&mode, 9, 0.75).unwrap()[0].len(), 2);
        assert_eq!(kept(&mode, 9, 0.99).unwrap()[0].len(), 1);
        assert!(kept(&Mode::Eval, 9, 0.5).is_none());
        assert!(matches!(mode.check_rows(2), Err(Error::Rows { rows: 1, batch: 2 })));
    }

    #[test]
    fn every_patch_is_kept_equally_often() {
        let rows: Vec<u64> = (0..4000).collect();
        let mut counts = [0_u32; 16];
        kept_rows(&rows).iter().flatten().for_each(|&patch| counts[patch as usize] += 1);
        assert!(counts.iter().all(|count| (1850..2150).contains(count)), "{counts:?}");
    }
}
