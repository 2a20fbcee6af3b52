//! The product's binaries, built from the sources as they are now.

#[path = "../../proto/build_id.rs"]
mod build_id;
#[path = "cargo_env.rs"]
mod cargo_env;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Paths of the two binaries.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `ringmaster`: command line, coordinator and agent.
    pub ringmaster: PathBuf,
    /// `ringmaster-worker`: rank.
    pub worker: PathBuf,
}

impl Binaries {
    /// Returns those that were built together with the running program and lie beside it.
    ///
    /// # Panics
    /// When the system does not say where the program lies.
    pub fn beside_this_program() -> Self {
        let program = std::env::current_exe().expect("a running program has a path");
        let folder = program.parent().expect("a program lies in a folder");
        Self { ringmaster: folder.join("ringmaster"), worker: folder.join("ringmaster-worker") }
    }
}

/// Returns the binaries, after building them once per test process.
///
/// # Panics
/// When the build fails, or a binary was not made from the sources beside this crate.
pub fn binaries() -> &'static Binaries {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    BUILT.get_or_init(|| {
        let root = root();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(&root);
        let status = cargo_env::forget_package(&mut cargo).status().expect("cargo starts");
        assert!(status.success(), "cargo build failed: {status}");
        // This test runs from <target>/<profile>/deps.
        let test = std::env::current_exe().expect("a running test has a path");
        let folder = test.parent().and_then(Path::parent).expect("deps lies in a profile folder");
        let binaries = Binaries {
            ringmaster: folder.join("ringmaster"),
            worker: folder.join("ringmaster-worker"),
        };
        check(&root, &binaries.ringmaster, build_id::RINGMASTER, &["faults"]);
        check(&root, &binaries.worker, build_id::WORKER, &["faults"]);
        binaries
    })
}

/// Returns the root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

/// Refuses a binary of other sources, or without the features that tests need.
fn check(root: &Path, binary: &Path, folder: &str, features: &[&str]) {
    let output = Command::new(binary).arg("--version").output().expect("the binary starts");
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = build_id::compute(root, folder, features).expect("sources are read");
    assert!(
        version.contains(&id),
        "{} is stale: it says {version:?}, the sources with the features {features:?} have build id {id}",
        binary.display()
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The list of crates was kept by hand once, and a crate was forgotten.
    #[test]
    fn a_build_id_covers_every_crate_that_the_binary_is_made_of_and_no_other() {
        let root = root();
        let covers = |own: &str, folder: &str| {
            let inputs = build_id::inputs(&root, own).unwrap();
            inputs.contains(&root.join(folder).join("src"))
        };
        // The last of these is reached through others only.
        for shared in ["proto", "crates/manifest", "crates/store", "crates/words", "crates/kernels"]
        {
            assert!(covers(build_id::RINGMASTER, shared), "{shared}");
            assert!(covers(build_id::WORKER, shared), "{shared}");
        }
        assert!(covers(build_id::RINGMASTER, "cli") && covers(build_id::RINGMASTER, "coordinator"));
        assert!(covers(build_id::WORKER, "worker") && covers(build_id::WORKER, "crates/inputs"));
        assert!(
            !covers(build_id::RINGMASTER, "worker") && !covers(build_id::WORKER, "coordinator")
        );
        assert!(!covers(build_id::WORKER, "tests"), "what only its tests need");
    }

    #[test]
    fn features_change_a_build_id() {
        let id =
            |features: &[&str]| build_id::compute(&root(), build_id::WORKER, features).unwrap();
        assert_ne!(id(&[]), id(&["faults"]));
    }
}
