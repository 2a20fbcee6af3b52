//! Pickles as data: a machine that runs the instructions that build values and calls nothing.
//!
//! Python's `pickle` may name any function of any module and call it; so loading a pickle runs
//! whatever its author wished. This machine calls nothing. It knows a closed list of names (`globals`),
//! each of which stands for a way of building data; a call of any other name, such as the arguments of
//! somebody's training script beside the weights, becomes an object of which no more than the name and
//! what it was called with is known. Names that run programs or code are refused when they are named:
//! whoever wrote them was up to no good. Values lie in an arena and refer to each other by number, so
//! that sharing and cycles cost nothing. Nothing is larger than the pickle that describes it.
//!
//! Instructions: Python's `Lib/pickletools.py` (protocols 0 to 5).

mod globals;
mod machine;
mod number;
mod opcode;
mod value;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub(crate) use machine::run;
pub(crate) use value::Storage;
pub use value::{Pickle, Value, ValueRef};

/// Why a pickle cannot be run.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Byte of the instruction.
    pub(crate) position: usize,
    pub(crate) reason: Reason,
}

/// What is wrong at that place.
#[derive(Debug)]
pub(crate) enum Reason {
    /// A name that runs programs or code.
    Refused(String),
    /// Anything else.
    Broken(String),
}
