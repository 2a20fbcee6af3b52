//! What the image tower sees of a batch: pixels normalised, noise where they are erased.
//!
//! Pixels reach the device as bytes, a quarter of what they are as f32, and become numbers where a micro-batch goes
//! through the tower.

use std::ops::Range;

use ringmaster_data::Batch;
use ringmaster_inputs::image::{Hole, Preprocess};
use tch::{Device, Kind, Tensor};

/// Pixels of this rank's rows, on its device.
#[derive(Debug)]
pub(super) struct Pixels {
    /// Values 0–255. Shape `[n, 3, S, S]`, u8.
    bytes: Tensor,
    holes: Vec<(usize, Hole)>,
    /// 255, mean and standard deviation of the channels. Shape `[1, 3, 1, 1]` each.
    scale: Tensor,
    mean: Tensor,
    std: Tensor,
}

impl Pixels {
    /// Takes a batch to a device; `kind` is that of the numbers that rows become.
    pub(super) fn new(batch: &Batch, preprocess: &Preprocess, device: Device, kind: Kind) -> Self {
        let (rows, side) = (batch.samples.len() as i64, i64::from(preprocess.image_size));
        let per_channel = |values: [f32; 3]| {
            Tensor::from_slice(&values).view([1, 3, 1, 1]).to_kind(kind).to_device(device)
        };
        Self {
            bytes: Tensor::from_slice(&batch.images).view([rows, 3, side, side]).to_device(device),
            holes: batch.holes.clone(),
            // A tensor: of a number CUDA would take the reciprocal, which rounds otherwise.
            scale: per_channel([255.0; 3]),
            mean: per_channel(preprocess.mean),
            std: per_channel(preprocess.std),
        }
    }

    /// Returns some rows as the tower takes them: (x / 255 − mean) / std, and noise. Shape `[n, 3, S, S]`.
    pub(super) fn rows(&self, rows: Range<usize>) -> Tensor {
        let bytes = self.bytes.narrow(0, rows.start as i64, rows.len() as i64);
        let mut images = bytes.to_kind(self.mean.kind());
        let _ = images.g_div_(&self.scale).g_sub_(&self.mean).g_div_(&self.std);
        for (row, hole) in self.holes.iter().filter(|(row, _)| rows.contains(row)) {
            let (rect, row) = (hole.rect, (row - rows.start) as i64);
            let (height, width) = (i64::from(rect.height), i64::from(rect.width));
            let noise = Tensor::from_slice(&hole.noise()).view([3, height, width]);
            let erased = images.select(0, row).narrow(1, rect.top.into(), height);
            erased.narrow(2, rect.left.into(), width).copy_(&noise);
        }
        images
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_data::corrupt::SampleKey;
    use ringmaster_inputs::image::{Augment, RgbImage, Scratch};
    use ringmaster_inputs::rng::{Site, Stream};
    use ringmaster_manifest::spec::AugCfg;

    use super::*;

    /// Pictures of noise, as the loader makes a batch of them, and what each has erased.
    fn batch(rows: usize, preprocess: Preprocess) -> Batch {
        let aug: AugCfg = serde_json::from_value(serde_json::json!({
            "scale": [0.5, 1.0], "ratio": [0.75, 1.3], "color_jitter": [0, 0, 0, 0], "color_jitter_prob": 0,
            "gray_scale_prob": 0, "hflip_prob": 0.5, "affine": null, "re_prob": 0.6, "re_count": 3, "use_timm": true
        }))
        .unwrap();
        let (augment, mut batch) = (Augment::new(aug, preprocess), Batch::default());
        for row in 0..rows {
            let mut stream = Stream::new(1, Site::Augment, &[row as u64]);
            let picture = RgbImage::from_fn(40, 33, |_, _| [0; 3].map(|_| stream.below(256) as u8));
            let mut pixels = vec![0; preprocess.values()];
            let holes =
                augment.apply(&picture, &mut stream, &mut Scratch::default(), &mut pixels).unwrap();
            batch.images.extend(pixels);
            batch.holes.extend(holes.into_iter().map(|hole| (row, hole)));
            batch.samples.push(SampleKey { source: 0, index: row as u64 });
        }
        batch
    }

    #[test]
    fn rows_are_to_the_bit_what_one_at_a_time_gives_whatever_the_micro_batch() {
        let preprocess = Preprocess::clip(17);
        let batch = batch(9, preprocess);
        assert!(batch.holes.len() > 3, "{:?}", batch.holes);
        // One value at a time, as evaluation normalises it.
        let mut expected = preprocess.normalized(&batch.images);
        for (row, hole) in &batch.holes {
            let mut noise = hole.noise().into_iter();
            let rect = hole.rect;
            for plane in 0..3 {
                for y in rect.top..rect.top + rect.height {
                    for x in rect.left..rect.left + rect.width {
                        let place = ((row * 3 + plane) * 17 + y as usize) * 17 + x as usize;
                        expected[place] = noise.next().unwrap();
                    }
                }
            }
            assert_eq!(noise.next(), None);
        }
        let pixels = Pixels::new(&batch, &preprocess, Device::Cpu, Kind::Float);
        for micro in [1, 2, 4, 9] {
            let parts = (0..9).step_by(micro).map(|start| pixels.rows(start..9.min(start + micro)));
            let all = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
            assert_eq!(Vec::<f32>::try_from(all.view([-1])).unwrap(), expected, "{micro}");
        }
    }
}
