//! Which crate may depend on which.

use std::collections::BTreeSet;
use std::fs;

use super::{Graph, circle, root};

/// The crates from the ground up: each depends on crates of the floors below its own only.
const FLOORS: [&[&str]; 8] = [
    &["ringmaster-kernels", "ringmaster-proto", "ringmaster-words"],
    &["ringmaster-agent", "ringmaster-manifest", "ringmaster-store", "ringmaster-weights"],
    &["ringmaster-checkpoint", "ringmaster-inputs"],
    &["ringmaster-data"],
    &["ringmaster-coordinator", "ringmaster-dataset", "ringmaster-worker"],
    &["ringmaster", "ringmaster-bench", "ringmaster-tests"],
    &["xtask"],
    &["emoji-set"],
];

/// Crates that link libtorch.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

/// Returns every member of the workspace with what its own code (not its tests) depends on.
fn members() -> Graph {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has one");
    let (_, list) = manifest.split_once("members = [").expect("a list of members");
    let (list, _) = list.split_once(']').expect("the end of the list");
    list.split('"').skip(1).step_by(2).map(member).collect()
}

fn member(folder: &str) -> (String, BTreeSet<String>) {
    let path = root().join(folder).join("Cargo.toml");
    let manifest = fs::read_to_string(path).expect("every member has a manifest");
    let (mut name, mut needs, mut section) = (String::new(), BTreeSet::new(), "");
    for line in manifest.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.trim().trim_end_matches(".workspace");
        match section {
            "package" if key == "name" => name = value.trim().trim_matches('"').to_owned(),
            "dependencies" => _ = needs.insert(key.to_owned()),
            _ => {}
        }
    }
    (name, needs)
}

#[test]
fn every_crate_depends_on_crates_of_lower_floors_only() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let members = members();
    assert!(members.len() > 10, "the list of members was read: {members:?}");
    for (name, needs) in &members {
        let own = floor(name).unwrap_or_else(|| panic!("give {name} a floor in {}", file!()));
        for need in needs {
            let below = floor(need).is_none_or(|below| below < own);
            assert!(below, "{name} depends on {need}, which is not on a floor below it");
        }
    }
    assert_eq!(circle(&members), None);
}

#[test]
fn the_command_line_with_coordinator_and_agent_needs_no_libtorch() {
    let members = members();
    let mut reached = vec!["ringmaster".to_owned()];
    let mut next = 0;
    while let Some(name) = reached.get(next).cloned() {
        next += 1;
        for need in members.get(&name).into_iter().flatten() {
            assert!(!LIBTORCH.contains(&need.as_str()), "ringmaster needs {need} by {name}");
            if !reached.contains(need) {
                reached.push(need.clone());
            }
        }
    }
    assert!(reached.iter().any(|name| name == "ringmaster-agent"), "{reached:?}");
    assert!(members["ringmaster-worker"].contains("tch"), "what to look for is found where it is");
}
