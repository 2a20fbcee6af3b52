//! Data as users have it: corrupt members, missing files, held-out sets.

use ringmaster_tests::job::Job;
use ringmaster_tests::tiny;

#[test]
fn a_corrupt_member_is_skipped_and_counted_and_changes_nothing_else() {
    let mut job = Job::new();
    // An epoch: every sample once.
    job.steps = 10;
    let clean = job.train(&[]).curve();
    job.train = tiny::write_shards(&job.folder().join("corrupt"), 12, &[(3, 17)]);
    let run = job.train(&[]);
    assert_eq!(run.metrics().last().unwrap()["train/substituted"], 1.0);
    assert_eq!(run.summary()["substituted"], 1);
    let curve = run.curve();
    assert_eq!(curve.len(), clean.len());
    let changed = curve.iter().zip(&clean).filter(|(a, b)| a.2 != b.2).count();
    assert_eq!(changed, 1, "one slot of one batch was refilled");
}

#[test]
fn too_many_corrupt_samples_fail_the_job_with_their_names() {
    let mut job = Job::new();
    let corrupt: Vec<(usize, usize)> = (0..12).map(|shard| (shard, 5)).collect();
    job.train = tiny::write_shards(&job.folder().join("bad"), 12, &corrupt);
    job.max_corrupt = 0.005;
    let output = job.train_command(&[]).output().unwrap();
    let text = job.transcript(&output);
    assert!(!output.status.success(), "{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("3 corrupt samples, more than the 2 that data.max_corrupt"), "{text}");
    assert!(text.contains(".tar/") && text.contains("00005"), "{text}");
}

#[test]
fn a_missing_shard_names_itself() {
    let job = Job::new();
    let missing = job.folder().join("train/007.tar");
    std::fs::remove_file(&missing).unwrap();
    let output = job.train_command(&[]).output().unwrap();
    let text = job.transcript(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("007.tar"), "{text}");
    assert!(!job.folder().join("runs").exists(), "nothing was started: {text}");
}

#[test]
fn a_finished_run_leaves_scores_event_files_and_a_report() {
    let mut job = Job::new();
    job.steps = 60;
    job.held_out = tiny::write_shards(&job.folder().join("held-out"), 1, &[]);
    let run = job.train(&[]);
    let summary = run.summary();
    assert_eq!(summary["steps"], 60);
    assert_eq!(summary["samples"], 60 * 48);
    assert_eq!(summary["zero_shot"]["classes"], 40);
    let top1 = summary["zero_shot"]["top1"].as_f64().unwrap();
    let top5 = summary["zero_shot"]["top5"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&top1) && top5 >= top1, "{summary}");
    assert!(top5 > 0.25, "sixty steps on the same pictures beat chance twice over: {summary}");
    for way in ["image_to_text", "text_to_image"] {
        let recall = summary["retrieval"][way]["R@10"].as_f64().unwrap();
        assert!(recall > 0.25, "{way}: {summary}");
    }
    let report = std::fs::read_to_string(run.folder.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("data:image/png;base64,"));
    for outside in ["src=\"http", "href=\"http", "url(http", "<script src", "<link"] {
        assert!(!report.contains(outside), "the report needs {outside}");
    }
    let events: Vec<u8> = std::fs::read_dir(run.folder.join("tensorboard"))
        .unwrap()
        .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    let tag = b"train/loss";
    let points = events.windows(tag.len()).filter(|window| window == tag).count();
    assert_eq!(points, 60, "one point per step");
}
