//! `ls`, `describe`, `verify`, `rm`, `copy` and `export`.

use std::fs;

use crate::{JOB_ID, Runs, files, flip};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_list_says_how_each_checkpoint_stands_and_which_one_is_the_latest() {
    let runs = Runs::with(&[(1, 10), (1, 20), (2, 30)]);
    let unfinished = runs.step(2, 40);
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("state.json"), "being written").unwrap();
    fs::write(runs.job().join("rollback-g1.1-to-step-0000000010.g1.1.json"), "{}").unwrap();
    fs::remove_file(runs.step(2, 30).join("model.safetensors")).unwrap();

    let out = runs.checkpoints(&["ls", JOB_ID]).well();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], JOB_ID);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[1])[..4], ["CHECKPOINT", "STEP", "SAMPLES", "RANKS"]);
    let row = |line: usize| {
        let words = words(lines[line]);
        (words[0].clone(), words[1].clone(), words[2].clone(), words[words.len() - 1].clone())
    };
    let expected = |name: &str, step: &str, samples: &str, state: &str| {
        (name.to_owned(), step.to_owned(), samples.to_owned(), state.to_owned())
    };
    assert_eq!(row(2), expected("step-0000000040.g1.2", "40", "–", "unfinished"));
    // latest.json still names it.
    assert_eq!(row(3), expected("step-0000000030.g1.2", "30", "240", "latest"));
    assert!(lines[3].contains("damaged, latest"), "{out}");
    assert_eq!(row(4), expected("step-0000000020.g1.1", "20", "160", "abandoned"));
    assert_eq!(row(5), expected("step-0000000010.g1.1", "10", "80", "complete"));

    let listed = json(&runs.checkpoints(&["ls", "--json", "."]).well());
    assert_eq!((&listed[0]["job"], listed.as_array().unwrap().len()), (&JOB_ID.into(), 1));
    let states: Vec<_> =
        listed[0]["checkpoints"].as_array().unwrap().iter().map(|c| c["state"].clone()).collect();
    assert_eq!(states, ["unfinished", "damaged", "abandoned", "complete"]);
    let reason = listed[0]["checkpoints"][1]["reason"].as_str().unwrap();
    assert!(reason.ends_with("model.safetensors does not exist"), "{reason}");
    assert_eq!(listed[0]["latest"], "step-0000000030.g1.2");
}

#[test]
fn a_folder_of_jobs_lists_jobs_and_links_are_none() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    runs.save("other-xyz567", 3, 7);
    fs::create_dir(runs.root().join("notes")).unwrap();
    std::os::unix::fs::symlink(runs.job(), runs.root().join("latest")).unwrap();
    let out = runs.checkpoints(&["ls", "."]).well();
    let rows: Vec<&str> = out.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{out}");
    assert!(
        rows[0].starts_with(JOB_ID) && rows[0].contains("2 of 2") && rows[0].contains("step 20")
    );
    assert!(rows[1].starts_with("other-xyz567") && rows[1].contains("step 7"));
}

#[test]
fn a_place_without_checkpoints_is_refused_with_what_to_name() {
    let runs = Runs::with(&[(1, 10)]);
    for folder in ["weights", "other/a"] {
        fs::create_dir_all(runs.root().join(folder)).unwrap();
    }
    for file in
        ["a.txt", "weights/m.safetensors", "other/a/x", "other/b", "other/c", "other/d", "other/e"]
    {
        fs::write(runs.root().join(file), "").unwrap();
    }
    for (place, reason) in [
        (
            "nothing",
            "no checkpoint lies there: there is no such folder; name a folder of jobs, a job's folder or",
        ),
        ("a.txt", "no checkpoint lies there: it is a file; name"),
        (
            "weights",
            "it holds plain weights (m.safetensors), which are no checkpoint of a run; name",
        ),
        ("other", "it holds a/, b, c, d and 1 more; name"),
        ("emoji-abc234/step-0000000011.g1.1", "there is no such checkpoint"),
        ("ftp://host/runs", "there is no store for ftp://"),
    ] {
        let err = runs.checkpoints(&["ls", place]).refused(2);
        assert!(err.contains(reason), "{err}");
    }
}

#[test]
fn a_description_says_what_is_in_it_and_names_every_tensor_if_asked() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let out = runs.checkpoints(&["describe", JOB_ID]).well();
    for part in [
        "step-0000000020.g1.1",
        "complete, named by latest.json",
        "Generation   g1.1",
        "Step         20 of ",
        "160 samples",
        "siglip",
        "AdamW · lr ",
        "optim-00000-of-00001.safetensors",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert!(!out.contains("exp_avg"), "{out}");
    let step = format!("{JOB_ID}/step-0000000010.g1.1");
    let out = runs.checkpoints(&["describe", "--tensors", &step]).well();
    assert!(
        out.contains("model.safetensors: 1 tensors") && out.contains("exp_avg_sq/w/0"),
        "{out}"
    );
    let all = json(&runs.checkpoints(&["describe", "--json", "--tensors", &step]).well());
    assert_eq!((&all["step"], &all["state_json"]["samples"]), (&10.into(), &80.into()));
    assert_eq!(all["tensors"]["model.safetensors"][0]["shape"], serde_json::json!([1]));
}

#[test]
fn verify_names_the_damaged_object_and_its_bytes_and_fails() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let out = runs.checkpoints(&["verify", JOB_ID]).well();
    assert!(out.starts_with("✓ emoji-abc234/step-0000000020.g1.1: 4 objects, "), "{out}");
    assert_eq!(runs.checkpoints(&["verify", "--all", "."]).well().lines().count(), 2);

    flip(&runs.step(1, 10).join("optim-00000-of-00001.safetensors"));
    runs.checkpoints(&["verify", JOB_ID]).well();
    let said = runs.checkpoints(&["verify", "--all", JOB_ID]);
    assert!(said.out.contains("✗ emoji-abc234/step-0000000010.g1.1:"), "{said:?}");
    assert!(
        said.out.contains("/optim-00000-of-00001.safetensors: checksum of bytes 0.."),
        "{said:?}"
    );
    assert!(said.refused(1).contains("1 of 2 checkpoints are damaged"));

    let said = runs.checkpoints(&["verify", "--all", "--json", JOB_ID]);
    let found = json(&said.out);
    assert_eq!((&found["checkpoints"][0]["good"], said.code), (&true.into(), 1));
    assert_eq!(found["checkpoints"][1]["findings"].as_array().unwrap().len(), 1);
}

#[test]
fn verify_finds_whatever_byte_of_whichever_object_was_changed() {
    let runs = Runs::with(&[(1, 10)]);
    let step = runs.step(1, 10);
    for (name, good) in files(&step) {
        flip(&step.join(&name));
        let said = runs.checkpoints(&["verify", JOB_ID]);
        assert_eq!(said.code, 1, "{name}: {said:?}");
        assert!(said.out.contains(&name), "{name}: {said:?}");
        fs::write(step.join(&name), &good[1..]).unwrap();
        let said = runs.checkpoints(&["verify", JOB_ID]);
        assert_eq!(said.code, 1, "{name}: {said:?}");
        fs::write(step.join(&name), good).unwrap();
    }
    runs.checkpoints(&["verify", JOB_ID]).well();
}

#[test]
fn verify_checks_what_latest_json_names() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    fs::remove_dir_all(runs.step(1, 20)).unwrap();
    let said = runs.checkpoints(&["verify", JOB_ID]);
    assert!(
        said.out.contains("latest.json: it names step-0000000020.g1.1, which does not exist"),
        "{said:?}"
    );
    assert!(said.refused(1).contains("latest.json is not right"));
}

#[test]
fn rm_moves_latest_json_first_and_spares_the_only_one() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let newest = format!("{JOB_ID}/step-0000000020.g1.1");
    let err = runs.checkpoints(&["rm", &newest]).refused(2);
    assert!(err.contains("nobody can be asked") && err.contains("--yes"), "{err}");
    runs.checkpoints(&["rm", "--yes", &newest]).well();
    assert!(!runs.step(1, 20).exists());
    assert_eq!((runs.latest().as_deref(), runs.newest()), (Some("step-0000000010.g1.1"), Some(10)));

    let only = format!("{JOB_ID}/step-0000000010.g1.1");
    let err = runs.checkpoints(&["rm", "--yes", &only]).refused(2);
    assert!(err.contains("the only complete checkpoint of its job"), "{err}");
    runs.checkpoints(&["rm", "--yes", "--force", &only]).well();
    assert_eq!((runs.latest(), runs.newest(), runs.step(1, 10).exists()), (None, None, false));
}

#[test]
fn rm_deletes_no_job_and_nothing_that_may_be_being_written() {
    let runs = Runs::with(&[(1, 10)]);
    let err = runs.checkpoints(&["rm", "--yes", JOB_ID]).refused(2);
    assert!(err.contains("a job's folder, which holds only step 10"), "{err}");
    for (step, code) in [(30, 2), (5, 0)] {
        let folder = runs.step(1, step);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("state.json"), "{").unwrap();
        let said = runs.checkpoints(&["rm", "--yes", folder.to_str().unwrap()]);
        assert_eq!((said.code, folder.exists()), (code, code == 2), "{said:?}");
    }
}

#[test]
fn a_copy_is_the_same_and_going_on_with_a_broken_one_keeps_what_is_good() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let there = runs.root().join("elsewhere").join(JOB_ID);
    let to = there.to_str().unwrap();
    let out = runs.checkpoints(&["copy", JOB_ID, to]).well();
    assert!(out.starts_with("copied and verified elsewhere/emoji-abc234/step-0000000020"), "{out}");
    let copy = there.join("step-0000000020.g1.1");
    assert_eq!(files(&copy), files(&runs.step(1, 20)));
    runs.checkpoints(&["verify", to]).well();

    // Broken off before its manifest, with one object damaged: the good ones stay.
    fs::remove_file(copy.join("MANIFEST.json")).unwrap();
    flip(&copy.join("model.safetensors"));
    let out = runs.checkpoints(&["copy", JOB_ID, to]).well();
    assert!(out.trim_end().ends_with("(2 objects lay there already)"), "{out}");
    assert_eq!(files(&copy), files(&runs.step(1, 20)));
    let out = runs.checkpoints(&["copy", JOB_ID, to]).well();
    assert!(out.trim_end().ends_with("(it lay there already)"), "{out}");

    // All of them; what the older one brings does not take latest.json back.
    assert_eq!(runs.checkpoints(&["copy", "--all", JOB_ID, to]).well().lines().count(), 2);
    let text = fs::read_to_string(there.join("latest.json")).unwrap();
    assert!(text.contains("step-0000000020.g1.1"), "{text}");
}

#[test]
fn what_does_not_verify_is_not_copied_and_leaves_no_checkpoint() {
    let runs = Runs::with(&[(1, 10)]);
    flip(&runs.step(1, 10).join("model.safetensors"));
    let there = runs.root().join("elsewhere");
    let said = runs.checkpoints(&["copy", JOB_ID, there.to_str().unwrap()]);
    assert!(said.err.contains("model.safetensors is damaged: checksum of bytes 0.."), "{said:?}");
    assert_eq!(said.code, 1);
    let copy = there.join("step-0000000010.g1.1");
    assert!(!copy.join("MANIFEST.json").exists() && !there.join("latest.json").exists());
    let names: Vec<String> = files(&copy).into_iter().map(|(name, _)| name).collect();
    assert!(!names.iter().any(|name| name.starts_with("model")), "{names:?}");
}

#[test]
fn a_copy_goes_to_a_jobs_folder_and_nowhere_else() {
    let runs = Runs::with(&[(1, 10)]);
    let step = format!("{JOB_ID}/step-0000000010.g1.1");
    for (from, to, reason) in [
        (JOB_ID, ".", "a folder of jobs; name a job's folder in it"),
        (JOB_ID, JOB_ID, "the checkpoint lies there; name another folder"),
        (JOB_ID, step.as_str(), "a checkpoint's own folder; name the job's folder above it"),
        (".", "elsewhere", "a folder of 1 jobs; name one of them, as emoji-abc234"),
    ] {
        let err = runs.checkpoints(&["copy", from, to]).refused(2);
        assert!(err.contains(reason), "{err}");
    }
}

#[test]
fn an_export_is_the_model_and_replaces_nothing_unasked() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let out = runs.checkpoints(&["export", JOB_ID, "model.safetensors"]).well();
    assert!(out.starts_with("wrote model.safetensors (step 20, verified): "), "{out}");
    let file = runs.root().join("model.safetensors");
    let model = |step| fs::read(runs.step(1, step).join("model.safetensors")).unwrap();
    assert_eq!(fs::read(&file).unwrap(), model(20));

    let older = format!("{JOB_ID}/step-0000000010.g1.1");
    let err = runs.checkpoints(&["export", &older, "model.safetensors"]).refused(2);
    assert!(err.contains("it exists; name another file, or pass --force"), "{err}");
    runs.checkpoints(&["export", "--force", &older, "model.safetensors"]).well();
    assert_eq!(fs::read(&file).unwrap(), model(10));
    let err = runs.checkpoints(&["export", JOB_ID, "model.pt"]).refused(2);
    assert!(err.contains("only safetensors files are written"), "{err}");

    flip(&runs.step(1, 20).join("model.safetensors"));
    let said = runs.checkpoints(&["export", "--force", JOB_ID, "model.safetensors"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(fs::read(&file).unwrap(), model(10), "the good one stays");
    assert_eq!(files(runs.root()).len(), 1, "nothing half-written stays");
}

/// `m~v1.safetensors` became `m%7Ev1.safetensors`, and the other was reported.
#[test]
fn an_export_writes_the_very_file_that_was_named_and_says_so() {
    let runs = Runs::with(&[(1, 10)]);
    for name in [
        "m~v1.safetensors",
        "a b.safetensors",
        "50%.safetensors",
        "a%20b.safetensors",
        "what?.safetensors",
        "#1.safetensors",
        "x [best] {1}.safetensors",
        "größe.safetensors",
        "sub/..a/m.safetensors",
        "..safetensors",
    ] {
        let out = runs.checkpoints(&["export", JOB_ID, name]).well();
        assert!(out.starts_with(&format!("wrote {name} (step 10, verified): ")), "{out}");
        let file = runs.root().join(name);
        assert!(file.is_file(), "{name}");
        fs::remove_file(file).unwrap();
        assert_eq!(files(runs.root()).len(), 0, "{name} and nothing else was written");
    }
    let url = format!("file://{}/a%20%231.safetensors", runs.root().display());
    let out = runs.checkpoints(&["export", JOB_ID, &url]).well();
    assert!(out.starts_with("wrote a #1.safetensors (step 10, verified): "), "{out}");
    assert!(runs.root().join("a #1.safetensors").is_file());
    let cut = format!("file://{}/a#1.safetensors", runs.root().display());
    let err = runs.checkpoints(&["export", JOB_ID, &cut]).refused(2);
    assert!(err.contains("? and # end the path of a URL; write %3F and %23 for them"), "{err}");
    fs::create_dir(runs.root().join("f.safetensors")).unwrap();
    let err = runs.checkpoints(&["export", "--force", JOB_ID, "f.safetensors"]).refused(2);
    assert!(err.contains("it is a folder; name a file in it"), "{err}");
}

#[test]
fn a_jobs_folder_may_have_any_name() {
    let runs = Runs::with(&[(1, 10), (1, 20)]);
    let names =
        ["old~1", "a b", "50%", "a%20b", "what?", "#1", "x [best] {1}", "größe", "C|", "..a", "-x"];
    for name in names {
        let to = format!("runs/{name}");
        let out = runs.checkpoints(&["copy", JOB_ID, &to]).well();
        assert!(out.starts_with(&format!("copied and verified runs/{name}/step-")), "{out}");
        assert!(runs.root().join(&to).join("step-0000000020.g1.1/MANIFEST.json").is_file());
    }
    let out = runs.checkpoints(&["ls", "runs"]).well();
    for name in names {
        assert!(out.contains(&format!("runs/{name} ")), "{name} in {out}");
        let path = runs.root().join("runs").join(name);
        let said = runs.checkpoints(&["verify", path.to_str().unwrap()]).well();
        assert!(said.starts_with(&format!("✓ runs/{name}/step-0000000020.g1.1")), "{said}");
    }
    let listed = json(&runs.checkpoints(&["ls", "--json", "runs"]).well());
    let urls = listed.as_array().unwrap().iter().map(|job| job["url"].as_str().unwrap());
    for url in urls {
        runs.checkpoints(&["describe", url]).well();
        let step = format!("{url}/step-0000000020.g1.1");
        runs.checkpoints(&["rm", "--yes", "--force", &step]).well();
    }
    for name in names {
        assert!(
            !runs.root().join("runs").join(name).join("step-0000000020.g1.1").exists(),
            "{name}"
        );
    }
}
