//! Pictures as users have them: of every size.

use ringmaster_tests::job::Job;
use ringmaster_tests::tiny;

/// At 224, 336 and 448 pixels a tenth of ordinary pictures counted as corrupt, because their sides did
/// not divide well, and the job failed. `cargo xtask soak pictures` trains on 2,000 of them.
#[test]
fn pictures_of_any_size_train_with_nothing_replaced() {
    let pictures = std::env::var("RINGMASTER_SOAK_PICTURES");
    let count: usize = pictures.map_or(192, |count| count.parse().unwrap());
    let mut job = Job::new();
    job.train = tiny::write_pictures(&job.folder().join("pictures"), count, 14);
    job.held_out = job.train.clone();
    // Twice through all of them, whatever the order leaves for the next epoch.
    job.steps = (2 * count).div_ceil(48) as u64;
    job.max_corrupt = 0.0;
    for (image_size, patch_size) in [(224, 112), (336, 168), (448, 224)] {
        tiny::write_model_of(job.folder(), image_size, patch_size);
        let summary = job.train(&[]).summary();
        assert_eq!(summary["substituted"], 0, "at {image_size}: {summary}");
        let evaluated = &summary["eval_sets"][0];
        assert_eq!((&evaluated["images"], &evaluated["skipped"]), (&count.into(), &0.into()));
        println!("{count} pictures trained and evaluated at {image_size} pixels, none replaced");
    }
}
