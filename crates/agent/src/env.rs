//! The environment of a rank: written in full by its agent at exec, read once at start.
//!
//! The names live here, so that what the agent writes and what the rank reads cannot drift apart.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::Generation;

use crate::secret::Secret;

/// Id of the job.
pub const JOB_ID: &str = "RINGMASTER_JOB_ID";
/// The generation this process was started for (`g1.7`).
pub const GENERATION: &str = "RINGMASTER_GENERATION";
/// URL of the coordinator's fleet listener.
pub const COORDINATOR: &str = "RINGMASTER_COORDINATOR";
/// Path of the agent's Unix socket.
pub const AGENT_SOCKET: &str = "RINGMASTER_AGENT_SOCKET";
/// What this process shows on that socket to be the rank that the agent started.
pub const SECRET: &str = "RINGMASTER_RANK_SECRET";
/// Path of the validated manifest as JSON.
pub const MANIFEST: &str = "RINGMASTER_MANIFEST";
/// Checkpoint URL to start from; absent to start anew.
pub const RESUME_FROM: &str = "RINGMASTER_RESUME_FROM";
/// Where the rank writes why it ends.
pub const STATUS_FILE: &str = "RINGMASTER_STATUS_FILE";
/// Folder of run folders.
pub const RUNS_DIR: &str = "RINGMASTER_RUNS_DIR";
/// Address at which this node's ranks listen for their peers (no port).
pub const ADDRESS: &str = "RINGMASTER_ADDRESS";
/// A fault to inject, for tests; absent otherwise.
pub const FAULT: &str = "RINGMASTER_FAULT";
/// Path of the authority's certificate that vouches for peers of the tcp ring, as PEM; absent for
/// a plaintext ring.
pub const DATA_TLS_CA: &str = "RINGMASTER_DATA_TLS_CA";
/// Path of this rank's certificate chain as PEM; goes with [`DATA_TLS_CA`].
pub const DATA_TLS_CERT: &str = "RINGMASTER_DATA_TLS_CERT";
/// Path of that certificate's key as PEM; goes with [`DATA_TLS_CA`].
pub const DATA_TLS_KEY: &str = "RINGMASTER_DATA_TLS_KEY";
/// Rank within the job, as torchrun names it.
pub const RANK: &str = "RANK";
/// Rank within the node.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// UUID of the GPU that the rank has for itself, the only one that it sees; absent where it computes on the
/// CPU, and where it sees all GPUs of its node.
pub const DEVICE: &str = "RINGMASTER_DEVICE";
/// Ranks of the job.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Ranks of the job on this node.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// Threads libgomp gives to one operation.
pub const THREADS: &str = "OMP_NUM_THREADS";

/// What the environment of a rank says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankEnv {
    /// [`JOB_ID`].
    pub job_id: String,
    /// [`RANK`]; below `world_size`.
    pub seat: Seat,
    /// [`WORLD_SIZE`]; at least 1.
    pub world_size: u32,
    /// [`LOCAL_RANK`].
    pub local_rank: u32,
    /// [`DEVICE`]; empty where the environment does not say.
    pub device: String,
    /// [`LOCAL_WORLD_SIZE`]; 1 where the environment does not say.
    pub local_world_size: u32,
    /// [`GENERATION`].
    pub generation: Generation,
    /// [`COORDINATOR`].
    pub coordinator: String,
    /// [`AGENT_SOCKET`].
    pub agent_socket: PathBuf,
    /// [`SECRET`].
    pub secret: Secret,
    /// [`MANIFEST`].
    pub manifest_path: PathBuf,
    /// [`RESUME_FROM`].
    pub resume_from: Option<String>,
    /// [`STATUS_FILE`].
    pub status_file: PathBuf,
    /// [`RUNS_DIR`].
    pub runs_dir: PathBuf,
    /// [`ADDRESS`].
    pub address: String,
    /// [`FAULT`].
    pub fault: Option<String>,
    /// [`THREADS`]; at least 1.
    pub threads: u32,
    /// Where mutual TLS between ranks finds its files; all three or none.
    pub data_tls: Option<DataTls>,
}

/// Files for mutual TLS between ranks. They are read anew for every generation, whose name the
/// certificate carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataTls {
    /// [`DATA_TLS_CA`].
    pub authority: PathBuf,
    /// [`DATA_TLS_CERT`].
    pub certificate: PathBuf,
    /// [`DATA_TLS_KEY`].
    pub key: PathBuf,
}

/// What is wrong with the environment.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A variable is not set, or empty.
    #[error(
        "the environment variable {name} is not set: ranks are started by `ringmaster agent`, not by hand"
    )]
    Missing { name: &'static str },
    /// A variable holds something else than it should.
    #[error("the environment variable {name} is {value:?}, but must be {expected}")]
    Invalid { name: &'static str, value: String, expected: String },
}

impl RankEnv {
    /// Reads this process's environment.
    ///
    /// # Errors
    /// [`Error`], naming the first variable that is missing or wrong.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads an environment given as a function from name to value.
    ///
    /// # Errors
    /// As [`RankEnv::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let env = Lookup(lookup);
        let world_size = env.at_least(WORLD_SIZE, 1)?;
        let rank: u32 = env.parsed(RANK, "a number")?;
        if rank >= world_size {
            let expected = format!("below {WORLD_SIZE}, which is {world_size}");
            return Err(Error::Invalid { name: RANK, value: rank.to_string(), expected });
        }
        Ok(Self {
            job_id: env.text(JOB_ID)?,
            seat: Seat(rank),
            world_size,
            local_rank: env.parsed(LOCAL_RANK, "a number")?,
            device: env.optional_text(DEVICE)?.unwrap_or_default(),
            local_world_size: match env.optional_text(LOCAL_WORLD_SIZE)? {
                Some(_) => env.at_least(LOCAL_WORLD_SIZE, 1)?,
                None => 1,
            },
            generation: env.parsed(GENERATION, "a generation such as g1.7")?,
            coordinator: env.text(COORDINATOR)?,
            agent_socket: env.required(AGENT_SOCKET)?.into(),
            secret: Secret::of(env.text(SECRET)?),
            manifest_path: env.required(MANIFEST)?.into(),
            resume_from: env.optional_text(RESUME_FROM)?,
            status_file: env.required(STATUS_FILE)?.into(),
            runs_dir: env.required(RUNS_DIR)?.into(),
            address: env.text(ADDRESS)?,
            fault: env.optional_text(FAULT)?,
            threads: env.at_least(THREADS, 1)?,
            data_tls: env.data_tls()?,
        })
    }
}

struct Lookup<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Lookup<F> {
    fn optional(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<OsString, Error> {
        self.optional(name).ok_or(Error::Missing { name })
    }

    /// One file without the others must not end in a plaintext ring.
    fn data_tls(&self) -> Result<Option<DataTls>, Error> {
        let names = [DATA_TLS_CA, DATA_TLS_CERT, DATA_TLS_KEY];
        if names.iter().all(|name| self.optional(name).is_none()) {
            return Ok(None);
        }
        Ok(Some(DataTls {
            authority: self.required(DATA_TLS_CA)?.into(),
            certificate: self.required(DATA_TLS_CERT)?.into(),
            key: self.required(DATA_TLS_KEY)?.into(),
        }))
    }

    fn optional_text(&self, name: &'static str) -> Result<Option<String>, Error> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        value.into_string().map(Some).map_err(|value| Error::Invalid {
            name,
            value: value.to_string_lossy().into_owned(),
            expected: "UTF-8".into(),
        })
    }

    fn text(&self, name: &'static str) -> Result<String, Error> {
        self.optional_text(name)?.ok_or(Error::Missing { name })
    }

    fn parsed<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<T, Error> {
        let value = self.text(name)?;
        value.parse().map_err(|_| Error::Invalid { name, value, expected: expected.into() })
    }

    fn at_least(&self, name: &'static str, least: u32) -> Result<u32, Error> {
        let value: u32 = self.parsed(name, "a number")?;
        if value >= least {
            return Ok(value);
        }
        let expected = format!("at least {least}");
        Err(Error::Invalid { name, value: value.to_string(), expected })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn complete(name: &str) -> Option<OsString> {
        let value = match name {
            GENERATION => "g1.7",
            RANK | LOCAL_RANK => "1",
            WORLD_SIZE | THREADS | LOCAL_WORLD_SIZE => "2",
            RESUME_FROM => "",
            FAULT | DEVICE | DATA_TLS_CA | DATA_TLS_CERT | DATA_TLS_KEY => return None,
            _ => "x",
        };
        Some(value.into())
    }

    #[test]
    fn a_complete_environment_is_read_and_an_empty_value_counts_as_absent() {
        let env = RankEnv::from_lookup(complete).unwrap();
        assert_eq!((env.seat, env.world_size, env.threads), (Seat(1), 2, 2));
        assert_eq!(env.generation, Generation::new(1, 7));
        assert_eq!((env.resume_from, env.fault, env.device), (None, None, String::new()));
    }

    #[test]
    fn a_missing_variable_names_itself() {
        let without = |name: &str| if name == STATUS_FILE { None } else { complete(name) };
        assert_eq!(RankEnv::from_lookup(without), Err(Error::Missing { name: STATUS_FILE }));
    }

    #[test]
    fn tls_needs_all_three_of_its_files_or_none() {
        assert_eq!(RankEnv::from_lookup(complete).unwrap().data_tls, None);
        let all = |name: &str| {
            let tls = name.strip_prefix("RINGMASTER_DATA_").map(OsString::from);
            tls.or_else(|| complete(name))
        };
        let tls = RankEnv::from_lookup(all).unwrap().data_tls.unwrap();
        assert_eq!(tls.key, PathBuf::from("TLS_KEY"));
        let without_key = |name: &str| if name == DATA_TLS_KEY { None } else { all(name) };
        let error = RankEnv::from_lookup(without_key).unwrap_err();
        assert_eq!(error, Error::Missing { name: DATA_TLS_KEY });
    }

    #[test]
    fn a_rank_outside_its_world_and_a_malformed_generation_are_refused() {
        let outside = |name: &str| if name == RANK { Some("2".into()) } else { complete(name) };
        let error = RankEnv::from_lookup(outside).unwrap_err().to_string();
        assert!(error.contains("RANK is \"2\"") && error.contains("WORLD_SIZE"), "{error}");
        let malformed =
            |name: &str| if name == GENERATION { Some("7".into()) } else { complete(name) };
        let error = RankEnv::from_lookup(malformed).unwrap_err().to_string();
        assert!(error.contains("RINGMASTER_GENERATION is \"7\""), "{error}");
    }
}
