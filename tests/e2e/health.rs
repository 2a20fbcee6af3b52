//! What ranks look at before their first step.

use ringmaster_tests::job::Job;

#[test]
fn ranks_say_what_they_train_on_and_survivors_of_a_fault_do_not_look_again() {
    let mut job = Job::new();
    (job.ranks, job.steps) = (3, 12);
    let marker = job.folder().join("struck");
    let fault = format!("rank=1,step=7,at=before_reduce,marker={}", marker.display());
    job.env.insert("RINGMASTER_FAULT".into(), fault);
    let run = job.train(&[]);
    assert!(marker.exists());
    assert_eq!(run.summary()["world_size"], 3);
    let log = run.log();
    let count = |words: &str| log.matches(words).count();
    // Three ranks, and the one that took the place of the dead one.
    assert_eq!(count("host memory free, the state takes"), 4, "{log}");
    assert_eq!(count("health: 3 links between neighbours: slowest"), 1, "{log}");
}
