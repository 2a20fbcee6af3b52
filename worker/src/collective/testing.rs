//! A ring of threads over real loopback sockets, for tests of this crate.

use std::net::TcpListener;
use std::sync::Barrier;
use std::time::Duration;

use ringmaster_proto::v1::Generation;

use super::Collective;
use super::tcp::{AbortFlag, Options, Tcp};

/// Longer than anything here takes on a busy machine: what only this ends has hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `body` on `world_size` threads, each with its own connected [`Tcp`], and returns what
/// they returned, by rank.
pub fn with_ring<T: Send>(world_size: usize, body: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    let (listeners, options) = ring_options(world_size);
    run_ring(listeners, options, body)
}

/// Connects the ranks of these options, one thread each, and runs `body` on each.
pub fn run_ring<T: Send>(
    listeners: Vec<TcpListener>,
    options: Vec<Options>,
    body: impl Fn(&dyn Collective) -> T + Sync,
) -> Vec<T> {
    // A ring of which one rank has left is not formed any more.
    let formed = Barrier::new(listeners.len());
    std::thread::scope(|scope| {
        let (body, formed) = (&body, &formed);
        let threads: Vec<_> = listeners
            .into_iter()
            .zip(options)
            .map(|(listener, options)| {
                scope.spawn(move || {
                    let ring = Tcp::connect(&listener, &options, &AbortFlag::new());
                    formed.wait();
                    body(&ring.expect("loopback peers connect"))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread panicked")).collect()
    })
}

/// Returns bound listeners and matching options for every rank of a fresh ring.
pub fn ring_options(world_size: usize) -> (Vec<TcpListener>, Vec<Options>) {
    let listeners: Vec<TcpListener> = (0..world_size)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"))
        .collect();
    let peers: Vec<String> = listeners
        .iter()
        .map(|l| l.local_addr().expect("a bound socket has an address").to_string())
        .collect();
    let options = (0..world_size)
        .map(|rank| Options {
            generation: Generation::new(1, 1),
            rank,
            peers: peers.clone(),
            token: vec![7; 32],
            connect_timeout: PATIENCE,
            deadline: Some(PATIENCE),
            tls: None,
        })
        .collect();
    (listeners, options)
}
