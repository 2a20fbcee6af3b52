//! Pickles as data: a machine that runs the instructions that build values and calls nothing.
//!
//! Python's `pickle` may name any function of any module and call it; so loading a pickle runs
//! whatever its author wished. This machine knows a closed list of names (`globals`), each of which
//! stands for a way of building data; any other is refused when it is named. Values lie in an arena
//! and refer to each other by number, so that sharing and cycles cost nothing. Nothing is larger
//! than the pickle that describes it.
//!
//! Instructions: Python's `Lib/pickletools.py` (protocols 0 to 5).

mod globals;
mod machine;
mod opcode;
mod value;

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
    /// A name that is not on the list.
    Refused(String),
    /// Anything else.
    Broken(String),
}
