//! `bench data store`: what a data set of ten thousand shards in a store far away costs, when it is opened and read.
//!
//! Modules in reading order: [`shards`] (any bytes of them, made on demand), [`request`] and [`server`] (the store),
//! [`bare`] (the same bytes read by nobody).

mod bare;
mod request;
mod server;
mod shards;

use std::time::Instant;

use ringmaster_data::Dataset;
use serde_json::{Value, json};

use self::server::{Asked, Server};
use self::shards::{LEN, SAMPLES, SHARDS};
use super::{self as data, Reading};
use crate::median;

/// Rows of a batch.
const BATCH: u64 = 256;
/// Batches after the first.
const BATCHES: u64 = 20;
/// Bytes of shards kept at most: the default pool of 250,000 samples has 5.4 GB.
const MEMORY: u64 = 8 << 30;
/// Turns of counting and of bare reading; the result is the median of each.
const TURNS: usize = 3;

/// The command line of `bench data store`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Shards that are counted where no count and no index lies beside them.
    #[arg(long, default_value_t = 192)]
    counted: u64,
    /// Connections that read the same bytes for comparison: as many as count shards.
    #[arg(long, default_value_t = 16)]
    connections: u64,
}

/// Measures the first batch of a rank with all rows and of one with a 64th of them, and counting.
///
/// # Errors
/// Whatever stops the loader; a system without a free port.
pub(crate) fn measure(options: &Options) -> anyhow::Result<Value> {
    let all = first_batches(BATCH)?;
    let part = first_batches(BATCH / 64)?;
    Ok(json!({
        "bench": "data store",
        "shards": SHARDS,
        "samples": SHARDS * SAMPLES,
        "bytes": SHARDS * LEN,
        "all_rows": all,
        "a_64th": part,
        "counting": counting(options)?,
    }))
}

/// Opens all shards, whose counts and indexes lie beside them, and reads some batches of a rank with as many rows.
fn first_batches(rows: u64) -> anyhow::Result<Value> {
    let server = Server::start(true)?;
    let reading = reading(&server, SHARDS);
    let job = data::job(&reading)?;
    let began = Instant::now();
    let (dataset, mut loader) = data::start_rows(&job, &reading, 0..rows, MEMORY)?;
    let open_seconds = began.elapsed().as_secs_f64();
    loader.next()?;
    let first_seconds = began.elapsed().as_secs_f64();
    let (to_first, first_blocks) = (server.take_asked(), loader.fetched().unwrap_or_default());
    let began = Instant::now();
    for _ in 0..BATCHES {
        loader.next()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (then, blocks) = (server.take_asked(), loader.fetched().unwrap_or_default());
    let requests = to_first.shard_ranges + then.shard_ranges;
    Ok(json!({
        "rows": rows,
        "samples": dataset.len(),
        "open_seconds": open_seconds,
        "first_batch_seconds": first_seconds,
        "first_batch_requests": to_first,
        "first_batch_blocks": first_blocks.blocks,
        "next_batches": BATCHES,
        "next_seconds": seconds,
        "next_requests": then,
        "next_blocks": blocks.blocks - first_blocks.blocks,
        "requests_per_block": requests as f64 / blocks.blocks.max(1) as f64,
    }))
}

/// Counts the samples of shards beside which nothing lies, and reads the same shards without looking at them.
fn counting(options: &Options) -> anyhow::Result<Value> {
    let (mut counted, mut plain, mut asked) = (Vec::new(), Vec::new(), Asked::default());
    for _ in 0..TURNS {
        let server = Server::start(false)?;
        let began = Instant::now();
        bare::read(server.address(), options.counted, options.connections)?;
        plain.push(server.take_asked().shard_bytes as f64 / began.elapsed().as_secs_f64());
        let job = data::job(&reading(&server, options.counted))?;
        let began = Instant::now();
        Dataset::open(&job.data, BATCH)?;
        let seconds = began.elapsed().as_secs_f64();
        asked = server.take_asked();
        counted.push(asked.shard_bytes as f64 / seconds);
    }
    let (counted, plain) = (median(counted), median(plain));
    Ok(json!({
        "shards": options.counted,
        "requests": asked,
        "bytes_per_second": counted,
        "bare_connections": options.connections,
        "bare_bytes_per_second": plain,
        "over_bare": counted / plain,
    }))
}

fn reading(server: &Server, shards: u64) -> Reading {
    Reading {
        shards: format!("http://{}/{{00000..{:05}}}.tar", server.address(), shards - 1),
        size: 224,
        pictures: 0,
        batch: BATCH,
        readers: 2,
    }
}
