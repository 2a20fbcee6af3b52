//! How much a manifest may ask for. What is beyond is refused when the manifest is read, with its place;
//! behind that, products of its numbers fit 64 bits and lists of its texts fit memory.

/// Samples of a run, and the most that a count or a size may be: 2^53. Up to here an `f64`, which is what
/// readers of JSON and of metrics count with, holds every whole number.
pub const MAX_COUNT: u64 = 1 << 53;

/// The longest time, in seconds: a year. A time that is added to a clock must not overflow it.
pub(crate) const MAX_SECONDS: u64 = 365 * 24 * 3600;

/// Letters of a job's name, which becomes part of ids, files and URLs.
pub const MAX_JOB_NAME: usize = 48;

/// Ranks of a job. The coordinator keeps a seat for each.
pub(crate) const MAX_RANKS: u32 = 1 << 16;

/// Lanes of the data order.
pub(crate) const MAX_LANES: u32 = 1 << 20;

/// Sources of a mixture.
pub(crate) const MAX_SOURCES: usize = 1000;

/// Samples of a source of no data: more than anybody has, and their blocks can be counted.
pub(crate) const MAX_SYNTHETIC: u64 = 10_000_000_000;

/// Samples of a step: what a matrix of all pairs takes in bytes still fits 64 bits.
pub(crate) const MAX_GLOBAL_BATCH: u32 = 1 << 24;

/// Rectangles erased of an image.
pub(crate) const MAX_ERASED: u32 = 1 << 10;

/// Threads of one kind that a rank may start.
pub(crate) const MAX_THREADS: u32 = 1 << 10;

/// Bytes of a manifest.
pub const MAX_TEXT: usize = 2 << 20;

/// Values of a document, aliases followed.
pub(crate) const MAX_NODES: usize = 100_000;

/// Bytes of a document's values, aliases followed.
pub(crate) const MAX_EXPANDED_TEXT: usize = 4 * MAX_TEXT;

/// Levels that a manifest may nest. Readers descend by calls, and a stack ends.
pub(crate) const MAX_DEPTH: usize = 64;

/// Shards that all lists of a manifest may expand to.
pub(crate) const MAX_SHARDS: u64 = 1_000_000;

/// Bytes of these shards' names. They travel to agents in one message.
pub const MAX_NAMES: usize = 12 << 20;

/// Fields that a manifest's overrides may name.
pub(crate) const MAX_OVERRIDES: usize = 32;

/// Bytes of all overrides, fields and values.
pub(crate) const MAX_OVERRIDES_TEXT: usize = 4 << 10;

/// Mistakes told of one file; the others are counted.
pub(crate) const MAX_MISTAKES: usize = 100;
