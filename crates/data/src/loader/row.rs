//! One row of a batch: its sample read, decoded and augmented, or another in its place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Shared;
use crate::batch::Unit;
use crate::corrupt::{self, Corrupt, SampleKey};
use crate::order::Visit;
use crate::sample::{RawSample, SampleError};
use crate::source::synthetic;
use crate::{Error, progress};
use ringmaster_inputs::image::{Scratch, decode, decode_scaled};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_words as words;

/// Replacements tried for one slot before the data set counts as unusable.
const SUBSTITUTES: u64 = 96;

impl Shared {
    /// Loads the sample of a row, or what replaces it.
    pub(super) fn load_row(
        &self,
        visit: Visit,
        scratch: &mut Scratch,
        unit: &mut Unit,
    ) -> Result<(), Error> {
        let order = self.options.dataset.order();
        let original = SampleKey { source: visit.source, index: order.sample(visit).index };
        let Some(reason) = self.append(visit, original, scratch, unit)? else { return Ok(()) };
        unit.replaced += 1;
        let mut tried = vec![reason.clone()];
        for attempt in 0..SUBSTITUTES {
            let index = order.substitute(visit, attempt);
            let replacement = SampleKey { source: visit.source, index };
            let Some(reason) = self.append(visit, replacement, scratch, unit)? else {
                tracing::debug!(?original, ?replacement, reason = %tried[0], "corrupt sample replaced");
                return Ok(());
            };
            tried.push(reason);
        }
        tried.truncate(corrupt::LISTED);
        let (list, source) = (tried.join("; "), self.options.dataset.name(visit.source).to_owned());
        Err(Error::NoReplacement { source_name: source, attempts: SUBSTITUTES, list })
    }

    /// Decodes one sample into `unit`; returns why not when it is corrupt, or once was.
    fn append(
        &self,
        visit: Visit,
        sample: SampleKey,
        scratch: &mut Scratch,
        unit: &mut Unit,
    ) -> Result<Option<String>, Error> {
        // A sample that a checkpoint knows to be corrupt is replaced even if it has been repaired since.
        if let Some(known) = self.options.ledger.reason(sample) {
            return Ok(Some(known.to_owned()));
        }
        let corrupt = match self.decode(visit, sample, scratch, unit)? {
            Ok(()) => {
                unit.samples.push(sample);
                progress::advance();
                return Ok(None);
            }
            Err(reason) => Corrupt { sample, reason },
        };
        self.note(&corrupt)?;
        let reason = corrupt.reason.clone();
        unit.corrupt.push(corrupt);
        Ok(Some(reason))
    }

    /// Reads and decodes one sample into `unit`; the inner error says why it cannot be used.
    fn decode(
        &self,
        visit: Visit,
        sample: SampleKey,
        scratch: &mut Scratch,
        unit: &mut Unit,
    ) -> Result<Result<(), String>, Error> {
        let options = &self.options;
        if options.dataset.is_synthetic(visit.source) {
            unit.images.extend_from_slice(self.noise());
            unit.tokens.extend(options.tokenizer.encode(synthetic::CAPTION));
            return Ok(Ok(()));
        }
        let began = Instant::now();
        let raw = self.read(visit, sample);
        count(&self.store, began);
        let began = Instant::now();
        let raw = match raw {
            Ok(raw) => raw,
            Err(SampleError::Store(error)) => return Err(error),
            Err(corrupt) => return Ok(Err(corrupt.to_string())),
        };
        let start = unit.images.len();
        unit.images.resize(start + options.preprocess.values(), 0);
        // Keyed by the position in the order: the same draws whichever rank or reader decodes the row.
        let words = [u64::from(visit.source), visit.position];
        let mut stream = Stream::new(options.seed, Site::Augment, &words);
        let decoded = match options.jpeg_scaled_decode {
            true => decode_scaled(&raw.image, options.preprocess.image_size),
            false => decode(&raw.image),
        };
        let pixels = decoded.and_then(|image| {
            self.augment.apply(&image, &mut stream, scratch, &mut unit.images[start..])
        });
        match pixels {
            Ok(holes) => {
                let row = unit.samples.len();
                unit.holes.extend(holes.into_iter().map(|hole| (row, hole)));
            }
            Err(error) => {
                unit.images.truncate(start);
                return Ok(Err(format!("{}: {}", raw.key, words::chain(&error))));
            }
        }
        let choice = match raw.captions.len() {
            1 => 0,
            n => Stream::new(options.seed, Site::Caption, &words).below(n as u64) as usize,
        };
        unit.tokens.extend(options.tokenizer.encode(&raw.captions[choice]));
        count(&self.decode, began);
        Ok(Ok(()))
    }

    /// Returns what stands for the pixels of a picture that is no data.
    fn noise(&self) -> &[u8] {
        self.noise.get_or_init(|| {
            let mut stream = Stream::new(self.options.seed, Site::Augment, &[]);
            (0..self.options.preprocess.values()).map(|_| stream.below(256) as u8).collect()
        })
    }

    fn read(&self, visit: Visit, sample: SampleKey) -> Result<RawSample, SampleError> {
        let dataset = &self.options.dataset;
        match &self.blocks {
            Some(blocks) => {
                dataset.sample(&*blocks.get(dataset.need(visit, sample.index))?, sample)
            }
            None => dataset.read(sample.source, sample.index, &self.cancel),
        }
    }

    fn note(&self, corrupt: &Corrupt) -> Result<(), Error> {
        let limit = corrupt::limit(self.options.dataset.len(), self.options.max_corrupt);
        let mut state = self.lock();
        if state.ledger.add(corrupt) {
            let reason = &corrupt.reason;
            tracing::warn!(%reason, "corrupt sample, another one takes its place");
        }
        corrupt::check(&state.ledger, limit)
    }
}

/// Adds the time that has passed since `began`.
fn count(nanoseconds: &AtomicU64, began: Instant) {
    nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
}
