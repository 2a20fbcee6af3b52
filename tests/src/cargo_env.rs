// What cargo says of a package to the programs it runs. Included (`#[path]`) by xtask and by the tests, which
// both start cargo anew: it must not hear it.

use std::env;
use std::ffi::OsStr;
use std::process::Command;

/// Keeps from `command` what cargo set to describe the package of this program.
///
/// Build scripts that watch such a variable (ring's does) would run again, and all that stands on them be
/// compiled again, each time cargo is started from here rather than from a shell.
pub(crate) fn forget_package(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os().filter(|(name, _)| describes_package(name)) {
        command.env_remove(name);
    }
    command
}

fn describes_package(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    ["CARGO_PKG_", "CARGO_BIN_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::process::Command;

    use super::{describes_package, forget_package};

    #[test]
    fn the_callers_cargo_settings_are_passed_on() {
        assert!(describes_package("CARGO_PKG_NAME".as_ref()));
        // Where the package has a build script.
        assert!(describes_package("OUT_DIR".as_ref()));
        assert!(!describes_package("CARGO_TARGET_DIR".as_ref()));
        assert!(!describes_package("CARGO_HOME".as_ref()));
    }

    /// Every run of the tests compiled ring, rustls and all of the product once more.
    #[test]
    fn cargo_hears_nothing_of_the_package_whose_program_starts_it() {
        let mut command = Command::new("cargo");
        let removed = forget_package(&mut command).get_envs().filter(|(_, value)| value.is_none());
        let removed: Vec<&OsStr> = removed.map(|(name, _)| name).collect();
        // cargo runs this test, and sets both.
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
            assert!(removed.contains(&name.as_ref()), "{name}: {removed:?}");
        }
    }
}
