//! Benches of the data plane: real processes, real sockets, one line of JSON.

pub mod collective;
pub mod loss;
pub mod memory;
pub mod processes;
