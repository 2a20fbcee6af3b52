//! What Ringmaster's parts take: time, memory, and how they stand beside plain ways of doing the same.
//! `cargo xtask bench` runs it; nothing of it is in what people install.
//!
//! [`loss`], [`collective`], [`checkpoint`], [`inputs`] and [`data`] measure the data plane: real processes
//! ([`processes`]), real sockets, memory as the kernel counts it ([`memory`]), one line of JSON.
//! [`control_plane`] loads a coordinator as a large cluster would.

pub mod checkpoint;
pub mod collective;
pub mod control_plane;
pub mod data;
pub mod inputs;
pub mod loss;
pub mod memory;
pub mod processes;

/// Returns the middle one, or the mean of the two in the middle; NaN of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
