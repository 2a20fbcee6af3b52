//! Runs that go on from what OpenCLIP saved.

use std::path::{Path, PathBuf};

use ringmaster_tests::job::Job;

/// Made by `tests/parity/training_golden.py`: three steps of OpenCLIP's model and PyTorch's AdamW.
const STEPS: u64 = 3;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/golden").join(name)
}

/// A job of the model that `training-tiny.pt` holds, on one rank, which saves every ten steps.
fn job() -> Job {
    let mut job = Job::new();
    (job.ranks, job.checkpoint_every) = (1, 10);
    let tokenizer = golden("tokenizers/wordpiece");
    let tower = |more: serde_json::Value| {
        let mut tower = serde_json::json!({"layers": 1, "width": 16, "mlp_ratio": 1.0});
        tower.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tower
    };
    let config = serde_json::json!({
        "embed_dim": 16,
        "vision_cfg": tower(serde_json::json!({"head_width": 8, "patch_size": 8, "image_size": 16})),
        "text_cfg": tower(serde_json::json!({
            "context_length": 8, "vocab_size": 500, "heads": 2, "hf_tokenizer_name": tokenizer,
        })),
    });
    std::fs::write(job.folder().join("models/tiny.json"), config.to_string()).unwrap();
    job
}

fn train(job: &Job) -> ringmaster_tests::job::Run {
    job.train(&["--resume", golden("training-tiny.pt").to_str().unwrap()])
}

#[test]
fn a_run_goes_on_from_open_clips_checkpoint_and_later_from_its_own() {
    let first = job();
    let undisturbed = train(&first);
    let steps: Vec<u64> = undisturbed.curve().iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, (STEPS + 1..=20).collect::<Vec<_>>());
    assert!(undisturbed.log().contains("the optimizer is another one now"));
    assert!(undisturbed.log().contains("weight decay is no longer as it was for"));

    // Before it has saved anything, and after: nobody is left to ask for the state.
    for (step, begins) in [(6, "from OpenCLIP's training checkpoint"), (13, "step-0000000010")] {
        let mut job = job();
        let marker = job.folder().join("died");
        let fault = format!("rank=0,step={step},at=after_apply,marker={}", marker.display());
        job.env.insert("RINGMASTER_FAULT".into(), fault);
        let run = train(&job);
        assert!(marker.exists(), "the fault did not strike in step {step}");
        assert!(run.log().matches(begins).count() >= 1, "step {step}: {}", run.log());
        assert_eq!(run.final_state(), undisturbed.final_state(), "after a fault in step {step}");
    }
}

#[test]
fn a_job_begins_with_the_towers_it_names() {
    let first_loss = |model_more: &str, said: &[&str]| {
        let mut job = job();
        job.model_more = model_more.to_owned();
        let run = job.train(&[]);
        for part in said {
            assert!(run.log().contains(part), "{part}: {}", run.log());
        }
        run.curve()[0].1
    };
    let file = golden("training-tiny.pt");
    let [image, text] =
        ["image", "text"].map(|tower| format!(", pretrained_{tower}: \"{}\"", file.display()));
    let both = format!("{image}{text}");
    let towers = ["weights of a tower tower=Image", "weights of a tower tower=Text"];
    let losses = [
        first_loss("", &[]),
        first_loss(&image, &towers[..1]),
        first_loss(&text, &towers[1..]),
        first_loss(&both, &towers),
    ];
    for (index, loss) in losses.iter().enumerate() {
        assert!(losses[..index].iter().all(|other| other != loss), "{losses:?}");
    }
}

#[test]
fn a_training_checkpoint_of_another_loss_or_model_is_refused() {
    let refused = |job: &Job, parts: &[&str]| {
        let file = golden("training-tiny.pt");
        let output = job.train_command(&["--resume", file.to_str().unwrap()]).output().unwrap();
        let said = job.transcript(&output);
        assert!(!output.status.success(), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    let mut other = job();
    other.loss = "infonce";
    refused(&other, &["training-tiny.pt", "which the loss infonce does not have"]);
    refused(&Job::new(), &["training-tiny.pt", "of another shape: the moments of"]);
}
