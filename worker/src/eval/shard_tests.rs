//! Tests of sharded scoring: against a dense reference, and over real sockets.

use tch::Device;

use super::super::scoring::rank_of;
use super::*;
use crate::collective::Solo;
use crate::collective::testing::with_ring;
use ringmaster_inputs::rng::{Site, Stream};

const DIM: usize = 6;

/// Embeddings with small whole numbers: products are exact, and ties frequent.
fn embedding(kind: u64, id: u64) -> Vec<f32> {
    let mut stream = Stream::new(5, Site::Init, &[kind, id]);
    (0..DIM).map(|_| stream.below(3) as f32 - 1.0).collect()
}

fn captions() -> Vec<String> {
    (0..23_u64).map(|pair| format!("caption {}", pair * 7 % 17)).collect()
}

fn part(pairs: std::ops::Range<usize>) -> Part {
    let values: Vec<f32> = pairs.clone().flat_map(|pair| embedding(1, pair as u64)).collect();
    Part {
        images: Tensor::from_slice(&values).reshape([-1, DIM as i64]),
        indices: pairs.clone().map(|pair| pair as u64 + 100).collect(),
        captions: captions()[pairs.clone()].to_vec(),
        skipped: usize::from(pairs.start == 0),
    }
}

fn text_embedding(caption: &str) -> Vec<f32> {
    embedding(2, ringmaster_inputs::rng::key_of_name(caption))
}

fn embed(names: &[String]) -> Result<Tensor, Error> {
    let values: Vec<f32> = names.iter().flat_map(|name| text_embedding(name)).collect();
    Ok(Tensor::from_slice(&values).reshape([-1, DIM as i64]))
}

#[test]
fn one_rank_agrees_with_the_dense_matrix() {
    let outcome = score(&part(0..23), &Solo::new(), embed).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let texts: Vec<Vec<f32>> = captions().iter().map(|text| text_embedding(text)).collect();
    let matrix: Vec<Vec<f32>> = (0..23)
        .map(|image| texts.iter().map(|text| dot(&embedding(1, image), text)).collect())
        .collect();
    let to_text: Vec<u64> = (0..23).map(|pair| rank_of(&matrix[pair], pair)).collect();
    let to_image: Vec<u64> = (0..23)
        .map(|pair| {
            let column: Vec<f32> = matrix.iter().map(|row| row[pair]).collect();
            rank_of(&column, pair)
        })
        .collect();
    assert_eq!(outcome.retrieval.image_to_text, Ranks::from_zero_based(&to_text));
    assert_eq!(outcome.retrieval.text_to_image, Ranks::from_zero_based(&to_image));
    assert_eq!((outcome.classes.len(), outcome.skipped), (17, 1));
    assert_eq!(outcome.classes[1], "caption 7");
    let first = outcome.images.iter().filter(|image| image.top[0].0 == image.class).count();
    assert_eq!(outcome.top1, first as f64 / 23.0);
    assert_eq!(outcome.images[3].index, 103);
}

#[test]
fn any_division_over_ranks_gives_the_same_scores() {
    let alone = score(&part(0..23), &Solo::new(), embed).unwrap();
    for cuts in [vec![0, 12, 23], vec![0, 1, 1, 23], vec![0, 5, 9, 20, 23]] {
        let outcomes = with_ring(cuts.len() - 1, |ring| {
            let rank = ring.rank();
            score(&part(cuts[rank]..cuts[rank + 1]), ring, embed).unwrap()
        });
        for outcome in outcomes {
            assert_eq!(outcome.images, alone.images, "{cuts:?}");
            assert_eq!(outcome.retrieval, alone.retrieval, "{cuts:?}");
            assert_eq!((outcome.top1, outcome.top5), (alone.top1, alone.top5));
        }
    }
}

#[test]
fn more_ranks_than_captions_leave_some_without_work() {
    let outcomes = with_ring(4, |ring| {
        let pairs = if ring.rank() == 2 { 0..1 } else { 1..1 };
        let mut own = part(pairs);
        own.images = own.images.to_device(Device::Cpu);
        score(&own, ring, embed).unwrap()
    });
    for outcome in outcomes {
        assert_eq!((outcome.top1, outcome.images.len()), (1.0, 1));
        assert_eq!(outcome.images[0].top.len(), 1);
    }
}
