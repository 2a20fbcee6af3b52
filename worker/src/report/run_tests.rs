//! Tests of the run folder: what is there after a run, and after a run with a recovery.

use super::*;
use crate::eval::{Choice, Picture, Prediction, Ranks, Retrieval};

const MANIFEST: &str = "\
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny}
spec:
  resources: {ranks: 2}
  model: {name: ViT-B-32}
  data: {train: [/data/a.tar], lanes: 8}
  loss: {kind: siglip}
  optimizer: {lr: 1.0e-3}
  schedule: {kind: cosine, warmup_steps: 2, steps: 40}
  batch: {global: 64}
  checkpoint: {uri: /data/checkpoints}
  eval: {zero_shot: [{name: twemoji, data: [/data/held-out.tar]}]}
  report_to: [tensorboard]
";

fn job() -> TrainJob {
    let models = ringmaster_manifest::ModelCatalogue::builtin();
    match ringmaster_manifest::parse(MANIFEST, "tiny.yaml", Path::new("/data"), &models) {
        Ok(job) => job,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

fn open(runs_dir: &Path, job: &TrainJob, counter: u32) -> Run {
    Run::open(Options {
        runs_dir,
        job_id: "tiny-abc234",
        generation: Generation::new(1, counter),
        job,
        world_size: 2,
        versions: [("libtorch".to_owned(), "2.11.0".to_owned())].into(),
    })
    .unwrap()
}

fn metrics(step: u64, loss: f64) -> StepMetrics {
    StepMetrics {
        step,
        total_steps: 40,
        samples: step * 64,
        loss,
        logit_scale: 10.0,
        logit_bias: Some(-10.0),
        lr: 1e-3 * step as f64 / 40.0,
        grad_norm: 2.0 / step as f64,
        samples_per_second: 900.0,
        ..StepMetrics::default()
    }
}

fn scores() -> Scores {
    let ranks = Ranks { r1: 0.15, r5: 0.35, r10: 0.46, mean_rank: 101.25, median_rank: 14.0 };
    let prediction = Prediction {
        index: 3,
        caption: "red apple".to_owned(),
        place: 2,
        top: vec![Choice { caption: "cherries".to_owned(), similarity: 0.3 }],
        picture: Some(Picture { media_type: "image/png", bytes: vec![1, 2, 3] }),
    };
    Scores {
        name: "twemoji".to_owned(),
        images: 1858,
        skipped: 0,
        classes: 1820,
        top1: 0.15,
        top5: 0.35,
        retrieval: Retrieval { image_to_text: ranks.clone(), text_to_image: ranks },
        predictions: vec![prediction],
    }
}

fn ending() -> Ending {
    Ending {
        finished: true,
        steps: 40,
        samples: 40 * 64,
        resumed_samples: 0,
        training_seconds: Some(4.0),
        substituted: 0,
        damaged_shards: 0,
        checkpoint: Some("file:///data/checkpoints/tiny-abc234/step-0000000040.g1.2".to_owned()),
    }
}

#[test]
fn a_finished_run_has_every_file_and_latest_points_at_it() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut run = open(runs.path(), &job, 1);
    for step in 1..=40 {
        run.step(&metrics(step, 4.0 / step as f64)).unwrap();
    }
    run.eval(40, 40 * 64, &scores()).unwrap();
    let summary = run.finish(&ending()).unwrap();
    assert_eq!((summary.samples_per_second, summary.recoveries), (640.0, 0));
    assert_eq!(summary.final_loss, Some(0.1));

    let folder = runs.path().join("latest");
    let text = fs::read_to_string(folder.join("summary.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["zero_shot"]["classes"], 1820);
    assert_eq!(value["retrieval"]["text_to_image"]["R@10"], 0.46);
    assert_eq!(value["retrieval"]["image_to_text"]["median_rank"], 14.0);
    assert_eq!(value["world_size"], 2);

    let lines = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 41);
    assert!(lines.contains("\"val/twemoji-zeroshot-val-top1\":0.15"), "{lines}");
    assert!(lines.contains("\"val/image_to_text_R@5\":0.35"), "{lines}");
    assert_eq!(fs::read_dir(folder.join("tensorboard")).unwrap().count(), 1);

    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    for part in ["red apple", "cherries", "data:image/png;base64,AQID", "2.11.0", "ViT-B-32"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("http"), "the page must not need the network");
}

#[test]
fn a_resumed_run_is_as_fast_as_its_own_samples_make_it() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut run = open(runs.path(), &job, 1);
    run.step(&metrics(40, 1.0)).unwrap();
    let summary = run.finish(&Ending { resumed_samples: 30 * 64, ..ending() }).unwrap();
    assert_eq!((summary.samples, summary.samples_per_second), (40 * 64, 160.0));
    let text = summary.to_text();
    assert!(text.starts_with("40 steps, 2560 samples, 640 of them here in 4 s (160.0"), "{text}");
    let page = fs::read_to_string(runs.path().join("latest/report.html")).unwrap();
    assert!(page.contains("2,560 samples, 640 in this run"), "{page}");
}

/// A job that was paused over night seemed to have trained for as long.
#[test]
fn the_time_in_which_a_job_was_stopped_is_no_training_time() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut run = open(runs.path(), &job, 1);
    run.step(&metrics(20, 1.0)).unwrap();
    let stopped = Ending { finished: false, steps: 20, training_seconds: None, ..ending() };
    run.finish(&stopped).unwrap();

    // Started 1,000 s ago, stopped 900 s ago.
    let path = runs.path().join("tiny-abc234/job.json");
    let mut record = read_record(&path).unwrap();
    (record.started, record.stopped) = (now() - 1000.0, Some(now() - 900.0));
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    let run = open(runs.path(), &job, 2);
    let ending = Ending { training_seconds: None, samples: 1280, ..ending() };
    let summary = run.finish(&ending).unwrap();
    assert!((100.0..200.0).contains(&summary.training_seconds), "{}", summary.training_seconds);
    assert!((6.4..=12.8).contains(&summary.samples_per_second), "{}", summary.samples_per_second);
}

#[test]
fn a_stopped_run_says_so_and_has_a_report() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut run = open(runs.path(), &job, 1);
    run.step(&metrics(7, 1.0)).unwrap();
    let ending = Ending { finished: false, steps: 7, samples: 7 * 64, ..ending() };
    let summary = run.finish(&ending).unwrap();
    assert_eq!((summary.finished, summary.steps, summary.zero_shot), (false, 7, None));
    assert!(runs.path().join("latest/report.html").is_file());
}

#[test]
fn a_recovered_run_keeps_earlier_lines_and_counts_the_recovery() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut first = open(runs.path(), &job, 1);
    for step in 1..=5 {
        first.step(&metrics(step, 9.0)).unwrap();
    }
    drop(first);
    let path = runs.path().join("tiny-abc234/metrics.jsonl");
    let torn = OpenOptions::new().append(true).open(&path).unwrap().write(b"{\"step\": 6, \"sa");
    assert!(torn.is_ok());

    let mut second = open(runs.path(), &job, 2);
    for step in 4..=8 {
        second.step(&metrics(step, 1.0)).unwrap();
    }
    let summary = second.finish(&ending()).unwrap();
    assert_eq!(summary.recoveries, 1);
    let losses = Records::read(&path).unwrap().series("train/loss");
    let expected = [9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    assert_eq!(losses.iter().map(|point| point.1).collect::<Vec<_>>(), expected);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 11);
    let page = fs::read_to_string(runs.path().join("latest/report.html")).unwrap();
    assert!(page.contains("↻ a rank was lost"), "the recovery is marked");
}

#[test]
fn a_process_that_was_taken_for_lost_writes_nothing_beside_its_successor() {
    let runs = tempfile::tempdir().unwrap();
    let job = job();
    let mut cut_off = open(runs.path(), &job, 1);
    cut_off.step(&metrics(1, 3.0)).unwrap();
    let mut successor = open(runs.path(), &job, 2);
    successor.step(&metrics(2, 2.0)).unwrap();
    let late = cut_off.step(&metrics(2, 2.0)).unwrap_err();
    assert!(matches!(late, Error::Superseded { .. }), "{late}");
    assert!(matches!(cut_off.finish(&ending()), Err(Error::Superseded { .. })));
    successor.step(&metrics(3, 1.0)).unwrap();
    assert_eq!(successor.last_logged_step().unwrap(), 3);
    let text = fs::read_to_string(successor.folder().join("metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
}
