//! Whether every sample can be used: each is read and its image decoded, as training does.

use ringmaster_data::{Damaged, Flaw};
use serde::Serialize;
use serde_json::{Value, json};

use crate::look::{self, Looked};
use crate::walk::{Order, walk};
use crate::{Error, Input, Meter};

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Samples that were read.
    pub samples: u64,
    /// Those that cannot be used, in the order of the set.
    pub bad: Vec<Flaw>,
    /// Captions of usable samples that are empty: training takes them, and learns nothing from them.
    pub empty_captions: u64,
    /// Shards that break off, so that nobody knows how many samples they should hold.
    pub damaged: Vec<Damaged>,
}

/// A bad sample, for programs.
#[derive(Debug, Serialize)]
struct Bad<'a> {
    shard: &'a str,
    key: &'a str,
    reason: &'a str,
}

/// Reads every sample, decodes its image and reads its captions.
///
/// # Errors
/// A store that fails; [`Error::Interrupted`].
pub fn verify(input: &Input, meter: &Meter) -> Result<Verified, Error> {
    meter.begin("verifying", input.samples());
    let mut verified = Verified { damaged: input.damaged().to_vec(), ..Verified::default() };
    let tokenizer = look::counting_tokenizer();
    walk(
        &input.source,
        &Order::stored(&input.source),
        meter,
        |read| look::look(input, &tokenizer, meter, read),
        |looked| {
            verified.add(looked);
            Ok(())
        },
    )?;
    Ok(verified)
}

impl Verified {
    fn add(&mut self, looked: Result<Looked, Flaw>) {
        self.samples += 1;
        match looked {
            Ok(looked) => {
                let empty = looked.captions.iter().filter(|caption| caption.text.is_empty());
                self.empty_captions += empty.count() as u64;
            }
            Err(flaw) => self.bad.push(flaw),
        }
    }

    /// Whether every sample can be used, and none is known to be lost.
    pub fn is_good(&self) -> bool {
        self.bad.is_empty() && self.damaged.is_empty()
    }

    /// Returns what was found, for programs.
    pub fn to_json(&self) -> Value {
        let bad = self.bad.iter();
        let bad = bad.map(|Flaw { shard, key, reason }| Bad { shard, key, reason });
        let damaged = self.damaged.iter().map(|shard| {
            json!({"shard": shard.url, "samples_before_the_break": shard.samples, "reason": shard.reason})
        });
        json!({
            "samples": self.samples,
            "bad_samples": self.bad.len(),
            "empty_captions": self.empty_captions,
            "bad": bad.collect::<Vec<_>>(),
            "damaged_shards": damaged.collect::<Vec<_>>(),
        })
    }
}
