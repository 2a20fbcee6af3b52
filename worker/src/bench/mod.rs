//! Benches of the data plane: real processes, real sockets, one line of JSON.

pub mod checkpoint;
pub mod collective;
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
