//! Manifests that people reported elsewhere as crashing a tool or misleading a reader.

use crate::{fixture, parse};

/// Returns `good.yaml` with one text put in place of another.
fn with(from: &str, to: &str) -> String {
    let good = fixture("good.yaml");
    assert_eq!(good.matches(from).count(), 1, "{from}");
    good.replace(from, to)
}

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("it was taken:\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

/// determined PR#2688: `steps × batch` overflowed, and the product was computed by everybody who showed it.
#[test]
fn a_run_of_more_samples_than_can_be_counted_is_refused() {
    let run = |steps: &str| with("warmup_samples: 20M, samples: 3B", &format!("steps: {steps}"));
    assert_eq!(
        refused(&run("1000000000000000000")),
        "job.yaml:21:35: spec.schedule.steps is 1000000000000000000; expected a whole number of at \
         least 1, plain or with K, M, B, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024) and at \
         most 9007199254740992"
    );
    assert_eq!(
        refused(&run("1T")),
        "job.yaml:21:35: spec.schedule.steps is \"1T\": a run has at most 2^53 samples; with \
         batch.global at 32768, expected at most 274877906944 steps"
    );
    let job = parse(&run("274877906944")).unwrap();
    assert_eq!(job.total_samples(), 1 << 53);
    // Next to 2^53 a float rounds into the range.
    assert!(refused(&run("9007199254740993")).contains("at most 9007199254740992"));
    assert!(refused(&run("1e300")).contains("at most 9007199254740992"));
}

/// What the next multiple of a number is may not fit, either.
#[test]
fn the_largest_counts_are_taken_or_refused_everywhere() {
    let text = with(
        "every_steps: 1e3, keep_last: 2",
        "every_steps: 9007199254740991, keep_last: 4294967295, keep_every: 9007199254740992",
    );
    assert!(refused(&text).contains("spec.checkpoint.keep_every is 9007199254740992: "));
    for (from, to) in [
        ("ranks: 2, min", "ranks: 4294967295, min"),
        ("lanes: 16", "lanes: 4294967295"),
        ("global: 32768", "global: 4294967295"),
        ("lanes: 16", "lanes: 16\n    readers: 4294967295"),
    ] {
        let mistakes = refused(&with(from, to));
        assert!(
            mistakes.contains("is 4294967295; expected a whole number of at least 1 and at most ")
        );
    }
    let job = parse(&with("priority: 50", "priority: -2147483648")).unwrap();
    assert_eq!(job.resources.priority, i32::MIN);
}

/// CVE-2026-14257, open_clip#278: a few kilobytes of braces took gigabytes.
#[test]
fn braces_that_stand_for_too_much_are_refused_before_they_are_expanded() {
    let data = "/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar";
    let shards = |text: &str| refused(&with(data, text));
    let braces = "{a,b}".repeat(1500);
    let start: String = braces.chars().take(59).collect();
    assert_eq!(
        shards(&braces),
        format!(
            "job.yaml:10:12: spec.data.train is \"{start}…; expected at most 1000000 shards in all \
             lists together, and with this text there would be more than 1000000000000000"
        )
    );
    let range = shards("{0..9223372036854775807}");
    assert!(
        range.contains("numbers of at most 18 digits in a range, and this one has 19"),
        "{range}"
    );
    let padded = shards(&format!("{{{}..3}}", "0".repeat(100_001)));
    assert!(padded.contains("and this one has 100001"), "{padded}");
    assert!(padded.len() < 300, "{padded}");
    let both = with(data, "/{0..599999}").replace("/data/val/{0..1}.tar", "/{0..599999}");
    assert!(refused(&both).starts_with("job.yaml:27:32: spec.eval.zero_shot[0].data is"));
}

/// moon#1903, serde-yaml#345: "more than one document".
#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let good = fixture("good.yaml");
    assert_eq!(parse(&format!("\u{feff}{good}")).unwrap(), parse(&good).unwrap());
    let wrong = "\u{feff}apiVersion: ringmaster/v2\n";
    let first =
        "job.yaml:1:1: missing key \"kind\" in the file, which has apiVersion; expected TrainJob\n";
    assert!(refused(wrong).starts_with(first), "{}", refused(wrong));
    assert!(refused(wrong).contains("\njob.yaml:1:13: apiVersion is \"ringmaster/v2\""));
}

/// serde-yaml#202, libyaml#168: unknown key "<<", and missing key "lr".
#[test]
fn merge_keys_take_over_keys_and_mistakes_stand_where_they_are_written() {
    let sets = "- {name: held-out, data: \"/data/val/{0..1}.tar\"}";
    let merged = with(
        sets,
        "- &first {name: held-out, data: /data/val/0.tar}\n      - {<<: *first, name: other}",
    );
    let job = parse(&merged).unwrap();
    let all: Vec<_> = job.eval.zero_shot.iter().map(|set| (&*set.name, &*set.data[0])).collect();
    assert_eq!(all, [("held-out", "/data/val/0.tar"), ("other", "/data/val/0.tar")]);

    let wrong = merged.replace("data: /data/val/0.tar}", "data: /data/val/0.tar, wieght: 1}");
    let places: Vec<String> =
        refused(&wrong).lines().map(|line| line.chars().take(44).collect()).collect();
    let place = "job.yaml:27:56: unknown key \"wieght\" in spec";
    assert_eq!(places, [place, place], "both sets have it, and it is written once");
    assert_eq!(
        refused(&with("{lr: 1.0e-3, beta2: 0.98,", "{<<: 3, lr: 1.0e-3,")),
        "job.yaml:20:19: spec.optimizer.<< is a single value; expected a mapping, or a list of mappings, \
         whose keys are taken over, as in \"<<: *defaults\""
    );
}

#[test]
fn every_number_is_written_by_one_rule() {
    let job = |from: &str, to: &str| parse(&with(from, to)).unwrap();
    assert_eq!(job("global: 32768", "global: 32_768").batch.global, 32_768);
    assert_eq!(job("global: 32768", "global: 32Ki").batch.global, 32_768);
    assert_eq!(job("global: 32768", "global: 32.768e3").batch.global, 32_768);
    assert_eq!(job("seed: 7", "seed: 1_000").data.seed, 1000);
    assert_eq!(job("priority: 50", "priority: -1_000").resources.priority, -1000);
    assert_eq!(job("lr: 1.0e-3", "lr: 0.001_5").optimizer.lr, 0.0015);
    assert_eq!(job("samples: 3B", "steps: 1_024").schedule.total_steps, 1024);
    assert_eq!(
        refused(&with("global: 32768", "global: 32_")),
        "job.yaml:22:19: spec.batch.global is \"32_\"; expected a whole number of at least 1 and at most \
         16777216"
    );
    // Octal to YAML 1.1, text to YAML 1.2.
    assert!(
        refused(&with("samples: 3B", "steps: 0100")).contains("spec.schedule.steps is \"0100\"")
    );
}

/// serde_yaml says "invalid type: integer `…` as u128", blames the YAML and names no field.
#[test]
fn a_number_beyond_64_bits_is_refused_by_its_field() {
    assert_eq!(
        refused(&with("seed: 7", "seed: 18446744073709551616")),
        "job.yaml:11:11: spec.data.seed is 18446744073709551616; expected a number that fits 64 bits, or \
         text in quotes"
    );
}

/// genblaze#75: validate and submit took such URLs and the database kept them; the rank refused.
#[test]
fn passwords_and_signatures_in_urls_are_refused_and_not_repeated() {
    let (data, uri) =
        ("\"/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar\"", "\"file:///runs\"");
    let (set, name) = ("\"/data/val/{0..1}.tar\"", "name: emoji-siglip");
    for url in [
        "https://user:hunter2@host/a.tar",
        "https://hunter2@host/a.tar",
        "https://host/{0..3}.tar?X-Amz-Signature=hunter2&X-Amz-Expires=60",
        "https://account.blob.core.windows.net/c/a.tar?sv=2024&sig=hunter2",
        "s3://AKIA:hunter2@bucket/a.tar",
        "s3://AKIA:hun/ter2hunter2@bucket/a.tar",
        "hdfs://user:hunter2@host/a",
    ] {
        let quoted = format!("\"{url}\"");
        for text in [
            with(data, &quoted),
            with(data, &format!("[/a.tar, {quoted}]")),
            with(data, &format!("\"/a.tar::{url}\"")),
            with(uri, &quoted),
            with(set, &quoted),
            with("name: ViT-B-16,", &format!("name: ViT-B-16, pretrained: {quoted},")),
            with("name: ViT-B-16,", &format!("name: ViT-B-16, pretrained_image: {quoted},")),
            with("name: ViT-B-16,", &format!("name: ViT-B-16, tokenizer: {quoted},")),
            // Where no URL belongs, it is not repeated, either.
            with(name, &format!("name: {quoted}")),
            with(name, &format!("{quoted}: 1")),
            with("kind: cosine", &format!("kind: {quoted}")),
            with("lr: 1.0e-3", &format!("lr: {quoted}")),
            with("seed: 7", &format!("seed: {quoted} 7")),
        ] {
            let mistakes = refused(&text);
            assert!(!mistakes.contains("hunter2"), "{mistakes}");
        }
    }
    assert_eq!(
        refused(&with(data, "https://user:hunter2@host/a.tar")),
        "job.yaml:10:12: spec.data.train is \"https://…@host/a.tar\"; expected a URL without a name or \
         password before @: a manifest is stored and shown, and credentials come from the environment"
    );
}

/// What arrives over the wire is held against the same rules: not every client is our own.
#[test]
fn a_job_with_a_password_or_numbers_that_no_manifest_gives_is_refused_over_the_wire() {
    let job = parse(&fixture("good.yaml")).unwrap();
    let refused = |change: &dyn Fn(&mut ringmaster_manifest::spec::TrainJob)| {
        let mut job = job.clone();
        change(&mut job);
        let sent = ringmaster_manifest::to_json(&job);
        ringmaster_manifest::from_validated_json(&sent).unwrap_err().to_string()
    };
    let secret =
        refused(&|job| job.data.sources[0].data.push("https://u:hunter2@host/a.tar".to_owned()));
    assert!(secret.starts_with("spec.data.train: expected URLs without names"), "{secret}");
    assert!(!secret.contains("hunter2"));
    let ranks = refused(&|job| job.resources.ranks = u32::MAX);
    assert_eq!(
        ranks,
        "spec.resources.ranks: expected a whole number from 1 to 65536, not 4294967295"
    );
    assert!(refused(&|job| job.schedule.total_steps = u64::MAX).contains("at most 2^53 samples"));
    assert!(refused(&|job| job.checkpoint.keep_every = Some(u64::MAX)).contains("keep_every"));
    assert!(refused(&|job| job.model.config.vision_cfg.patch_size = 0).contains("patch_size"));
}

#[test]
fn a_slash_too_many_in_a_stores_url_is_refused_with_the_right_one() {
    let uri = with("file:///runs", "s3://bucket//folder");
    assert_eq!(
        refused(&uri),
        "job.yaml:23:21: spec.checkpoint.uri is \"s3://bucket//folder\"; expected a URL without empty \
         parts between slashes, as in s3://bucket/folder"
    );
}

#[test]
fn braces_without_quotes_in_a_flow_mapping_are_told_from_other_errors() {
    let data = "  data:\n    train: \"/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar\"\n    seed: 7\n";
    let hint = "; a text with { needs quotes here, as in \"/data/{000..127}.tar\"";
    let start = fixture("good.yaml");
    let start = start.split(data).next().unwrap();
    for line in [
        "  data: {train: /nope/{0..3}.tar, seed: 0}\n",
        "  data: {train: [/nope/{0..3}.tar], seed: 0}\n",
        "  data: {train: {0..3}.tar, seed: 0}\n",
        "  data:\n    train: {0..3}.tar\n",
    ] {
        let mistakes = refused(&format!("{start}{line}  loss: {{kind: siglip}}\n"));
        assert!(
            mistakes.contains("not valid YAML") && mistakes.ends_with(hint),
            "{line}{mistakes}"
        );
    }
    for line in
        ["  data: {train: '/nope/{0..3}.tar' seed: 0}\n", "  data: [/a.tar\n", "  data: {a: 1}}\n"]
    {
        let mistakes = refused(&format!("{start}{line}  loss: {{kind: siglip}}\n"));
        assert!(
            mistakes.contains("not valid YAML") && !mistakes.contains(hint),
            "{line}{mistakes}"
        );
    }
}

#[test]
fn a_missing_key_says_what_is_there_and_an_empty_one_that_it_is_empty() {
    assert_eq!(
        refused(&with("{lr: 1.0e-3, beta2: 0.98, grad_clip_norm: 1.0}", "{lr: }")),
        "job.yaml:20:15: spec.optimizer.lr is empty; expected a number above 0"
    );
    assert_eq!(
        refused(&with("{lr: 1.0e-3, beta2: 0.98, grad_clip_norm: 1.0}", "{}")),
        "job.yaml:20:3: missing key \"lr\" in spec.optimizer, which is empty; expected a number above 0"
    );
    assert_eq!(
        refused(&with("/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar", "")),
        "job.yaml:10:12: spec.data.train is \"\"; expected text that is not empty"
    );
    let long = "a".repeat(60);
    let mistakes = refused(&with("name: emoji-siglip", &format!("name: {long}")));
    assert!(mistakes.ends_with("; it has 60 characters"), "{mistakes}");
}

#[test]
fn of_very_many_mistakes_the_first_hundred_are_told_and_the_others_counted() {
    let keys: String = (0..40_000).map(|n| format!("  unknown{n}: 1\n")).collect();
    let mistakes = refused(&fixture("good.yaml").replace("spec:\n", &format!("spec:\n{keys}")));
    assert_eq!(mistakes.lines().count(), 101);
    assert!(mistakes.ends_with("\nand 39900 more mistakes"), "{mistakes:.300}");
}
