//! A rank of a training job.
//!
//! Modules in reading order: [`env`] (what the agent tells it at exec), [`control`] (the line to
//! its agent), [`client`] (its calls to the coordinator), [`exit`] (how it ends).

pub mod client;
pub mod control;
pub mod env;
pub mod exit;

pub use env::RankEnv;

/// Why a rank ended before its job did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The training loop is not part of this build.
    #[error("this build of ringmaster-worker cannot train: it has no training loop")]
    NoTrainingLoop,
}

impl Error {
    /// Returns whether another attempt may succeed.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Trains as the rank that `env` describes.
///
/// # Errors
/// [`Error::NoTrainingLoop`].
pub fn run(_env: RankEnv) -> Result<(), Error> {
    Err(Error::NoTrainingLoop)
}
