//! Programs the machine must have, and how to get the ones it lacks.

use std::env;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Which downloads are still to be made, and so which programs are needed for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// libtorch's wheels come through pip.
    pub(crate) pip: bool,
    /// The emoji packages come through npm.
    pub(crate) npm: bool,
}

/// The programs that were found.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// pip with its leading arguments: `["python3", "-m", "pip"]`.
    pub(crate) pip: Vec<String>,
    /// npm.
    pub(crate) npm: Vec<String>,
}

/// One program, the ways to call it, and its package in several distributions.
struct Requirement {
    what: &'static str,
    why: &'static str,
    candidates: Vec<Vec<String>>,
    /// Packages for apt, dnf, pacman, zypper and apk, in the order of [`MANAGERS`].
    packages: [&'static str; 5],
    elsewhere: &'static str,
}

const MANAGERS: [(&str, &str); 5] = [
    ("apt-get", "apt-get install -y"),
    ("dnf", "dnf install -y"),
    ("pacman", "pacman -S"),
    ("zypper", "zypper install"),
    ("apk", "apk add"),
];

/// Finds all programs that are needed, or names all that are missing at once.
pub(crate) fn find(needs: Needs) -> Result<Tools> {
    let mut tools = Tools::default();
    let mut missing = Vec::new();
    for requirement in [c_compiler(), cxx_compiler()] {
        if first_that_works(&requirement).is_none() {
            missing.push(requirement);
        }
    }
    if needs.pip {
        match first_that_works(&pip()) {
            Some(command) => tools.pip = command,
            None => missing.push(pip()),
        }
    }
    if needs.npm {
        match first_that_works(&npm()) {
            Some(command) => tools.npm = command,
            None => missing.push(npm()),
        }
    }
    if missing.is_empty() { Ok(tools) } else { bail!(describe(&missing, package_manager())) }
}

/// Finds pip alone, for what is neither built nor linked.
pub(crate) fn find_pip() -> Result<Tools> {
    match first_that_works(&pip()) {
        Some(pip) => Ok(Tools { pip, ..Tools::default() }),
        None => bail!(describe(&[pip()], package_manager())),
    }
}

fn c_compiler() -> Requirement {
    Requirement {
        what: "a C compiler",
        why: "SQLite is compiled from source",
        candidates: compilers("CC", &["cc", "gcc", "clang"]),
        packages: ["build-essential", "gcc", "base-devel", "gcc", "build-base"],
        elsewhere: "install gcc or clang, or name one in CC",
    }
}

fn cxx_compiler() -> Requirement {
    Requirement {
        what: "a C++ compiler",
        why: "the bindings of libtorch are compiled from source",
        candidates: compilers("CXX", &["c++", "g++", "clang++"]),
        packages: ["build-essential", "gcc-c++", "base-devel", "gcc-c++", "build-base"],
        elsewhere: "install g++ or clang++, or name one in CXX",
    }
}

fn pip() -> Requirement {
    Requirement {
        what: "Python 3 with pip",
        why: "libtorch and tools for tests are downloaded from the Python package index",
        candidates: [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip3"], &["pip"]]
            .iter()
            .map(|words| words.iter().map(ToString::to_string).collect())
            .collect(),
        packages: ["python3-pip", "python3-pip", "python-pip", "python3-pip", "py3-pip"],
        elsewhere: "install Python 3 from python.org, then `python3 -m ensurepip`",
    }
}

fn npm() -> Requirement {
    Requirement {
        what: "npm",
        why: "the emoji drawings are downloaded from the npm registry",
        candidates: vec![vec!["npm".to_owned()]],
        packages: ["npm", "npm", "npm", "npm", "npm"],
        elsewhere: "install Node.js from nodejs.org, which brings npm",
    }
}

/// A compiler named by the environment is the only candidate, as it is for the build scripts.
fn compilers(variable: &str, usual: &[&str]) -> Vec<Vec<String>> {
    match env::var(variable).ok().filter(|value| !value.trim().is_empty()) {
        Some(value) => vec![value.split_whitespace().map(str::to_owned).collect()],
        None => usual.iter().map(|name| vec![(*name).to_owned()]).collect(),
    }
}

fn first_that_works(requirement: &Requirement) -> Option<Vec<String>> {
    requirement.candidates.iter().find(|command| answers(command)).cloned()
}

fn answers(command: &[String]) -> bool {
    let Some((program, arguments)) = command.split_first() else { return false };
    Command::new(program)
        .args(arguments)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Index into [`MANAGERS`] of the first package manager on the search path.
fn package_manager() -> Option<usize> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> =
        env::split_paths(&path).chain([Path::new("/usr/bin").to_owned()]).collect();
    MANAGERS
        .iter()
        .position(|(program, _)| folders.iter().any(|folder| folder.join(program).is_file()))
}

fn describe(missing: &[Requirement], manager: Option<usize>) -> String {
    let mut text = String::from("this machine lacks what set-up needs:\n");
    for requirement in missing {
        let tried: Vec<_> = requirement.candidates.iter().map(|words| words.join(" ")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  - {}: {} (tried: {})",
            requirement.what,
            requirement.why,
            tried.join(", ")
        );
    }
    match manager {
        Some(index) => {
            let mut packages: Vec<_> = missing.iter().map(|r| r.packages[index]).collect();
            packages.dedup();
            let _ = write!(text, "install with: {} {}", MANAGERS[index].1, packages.join(" "));
        }
        None => {
            let ways: Vec<_> = missing.iter().map(|requirement| requirement.elsewhere).collect();
            text.push_str(&ways.join("\n"));
        }
    }
    text.push_str("\nthen run the same command again");
    text
}

#[cfg(test)]
mod tests {
    use super::{c_compiler, cxx_compiler, describe, npm, pip};

    #[test]
    fn everything_missing_is_named_at_once_with_one_command_to_install_it() {
        let text = describe(&[c_compiler(), cxx_compiler(), pip(), npm()], Some(0));
        assert!(text.contains("a C++ compiler: the bindings of libtorch"), "{text}");
        assert!(text.contains("(tried: python3 -m pip, python -m pip, pip3, pip)"), "{text}");
        assert!(
            text.contains("install with: apt-get install -y build-essential python3-pip npm\n"),
            "{text}"
        );
    }

    #[test]
    fn without_a_known_package_manager_each_remedy_is_spelled_out() {
        let text = describe(&[npm()], None);
        assert!(text.contains("install Node.js from nodejs.org"), "{text}");
    }
}
