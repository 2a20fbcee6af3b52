//! Manifests with mistakes are refused before anything starts.

use ringmaster_tests::job::Job;

/// Writes the job's manifest with one replacement and returns what `train` says about it.
fn refusal(replace: &str, with: &str) -> String {
    let job = Job::new();
    let mut command = job.train_command(&[]);
    let text = job.manifest();
    assert!(text.contains(replace), "{text}");
    std::fs::write(job.folder().join("job.yaml"), text.replace(replace, with)).unwrap();
    let output = command.output().unwrap();
    let said = job.transcript(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!job.folder().join("runs").exists(), "nothing was started: {said}");
    said
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one() {
    let said = refusal("optimizer: {lr: 2.0e-3", "optimizer: {learning_rat: 1, lr: 2.0e-3");
    assert!(said.contains("job.yaml:9:15"), "{said}");
    assert!(said.contains("unknown key \"learning_rat\"") && said.contains("known keys"), "{said}");
}

#[test]
fn a_warm_up_longer_than_the_run_is_refused_with_its_place_and_both_lengths() {
    let said = refusal("warmup_steps: 4", "warmup_steps: 90000");
    assert!(said.contains("job.yaml:10:"), "{said}");
    assert!(said.contains("90000") && said.contains("20"), "{said}");
}

#[test]
fn a_batch_with_fewer_samples_than_ranks_is_refused() {
    let said = refusal("global: 48", "global: 1");
    assert!(
        said.contains("job.yaml:11:") && said.contains("every rank takes at least one"),
        "{said}"
    );
}
