//! How many files, and so connections, this process and its children may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as the host allows and returns it. Shells often start programs with
/// 1,024, which is less than one connection for each agent of a large cluster.
///
/// # Errors
/// Whatever the system answers.
pub fn raise_limit() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
