//! One fixture per kind of mistake; `good.yaml` with the mistake made in it.

use std::path::Path;

use ringmaster_manifest::ModelCatalogue;

use crate::{fixture, parse};

fn assert_mistakes(name: &str, expected: &[&str]) {
    let errors = match parse(&fixture(name)) {
        Ok(_) => panic!("{name} was taken"),
        Err(errors) => errors.to_string(),
    };
    let found: Vec<&str> = errors.lines().collect();
    assert_eq!(found, expected, "{name}");
}

#[test]
fn the_file_that_the_mistakes_are_made_in_is_valid() {
    if let Err(errors) = parse(&fixture("good.yaml")) {
        panic!("{errors}");
    }
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    assert_mistakes(
        "unknown_key.yaml",
        &["job.yaml:21:28: unknown key \"warmup_sample\" in spec.schedule; did you mean \
             \"warmup_samples\"? (known keys: kind, samples, steps, warmup_samples, \
             warmup_steps)"],
    );
}

#[test]
fn a_warm_up_longer_than_the_run_says_how_long_it_may_be() {
    assert_mistakes(
        "warmup_longer_than_run.yaml",
        &["job.yaml:21:44: spec.schedule.warmup_samples is \"20M\": a warm-up of 610 steps \
             (19988480 samples) is longer than the run; expected at most 305 steps (9994240 \
             samples)"],
    );
}

#[test]
fn a_key_in_the_wrong_place_names_its_own() {
    assert_mistakes(
        "key_elsewhere.yaml",
        &["job.yaml:23:69: unknown key \"lr\" in spec.checkpoint; it belongs in \
             spec.optimizer (known keys: uri, every_steps, keep_last, \
             keep_every, when_busy, stop_within)"],
    );
}

#[test]
fn a_flag_of_another_tool_names_the_key_that_means_it() {
    assert_mistakes(
        "key_of_another_tool.yaml",
        &["job.yaml:20:27: unknown key \"wd\" in spec.optimizer; did you mean \
             \"weight_decay\"? (known keys: lr, beta1, beta2, eps, weight_decay, \
             grad_clip_norm)"],
    );
}

#[test]
fn values_of_the_wrong_kind_are_reported_all_at_once() {
    assert_mistakes(
        "wrong_types.yaml",
        &[
            "job.yaml:5:18: metadata.labels.team is 7; expected text, so put it in quotes",
            "job.yaml:7:22: spec.resources.ranks is \"two\"; expected a whole number of at \
             least 1 and at most 65536",
            "job.yaml:15:14: spec.data.aug_cfg.scale is 0.4; expected a list of 2 numbers \
             above 0 and at most 1",
            "job.yaml:20:19: spec.optimizer.lr is \"fast\"; expected a number above 0",
        ],
    );
}

#[test]
fn numbers_out_of_range_say_the_range() {
    assert_mistakes(
        "out_of_range.yaml",
        &[
            "job.yaml:7:22: spec.resources.ranks is 0; expected a whole number of at least 1 and \
             at most 65536",
            "job.yaml:7:67: spec.resources.priority is 3000000000; expected a whole number of \
             at most 2147483647",
            "job.yaml:17:26: spec.data.aug_cfg.color_jitter_prob is 80; expected a number of \
             at least 0 and at most 1",
            "job.yaml:20:19: spec.optimizer.lr is -1; expected a number above 0",
            "job.yaml:20:30: spec.optimizer.beta2 is 1.0; expected a number of at least 0 and \
             below 1",
            "job.yaml:21:58: spec.schedule.samples is 3.5; expected a whole number of at \
             least 1, plain or with K, M, B, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of \
             1024)",
        ],
    );
}

#[test]
fn an_unknown_model_names_the_known_and_the_nearest() {
    assert_mistakes(
        "unknown_model.yaml",
        &["job.yaml:8:17: spec.model.name is \"ViT-B16\"; expected one of the 2 models \
             that `ringmaster models` lists, or one of the folder that RINGMASTER_MODELS names; \
             did you mean ViT-B-16?"],
    );
}

#[test]
fn batch_norms_want_the_whole_batch_in_one_place() {
    let text = fixture("unknown_model.yaml").replace("ViT-B16", "RN50");
    let name = "RN50".to_owned();
    let config = ModelCatalogue::builtin().get(&name).unwrap().clone();
    let models: ModelCatalogue = [(name, config)].into_iter().collect();
    let parsed = ringmaster_manifest::parse(&text, "job.yaml", Path::new("/jobs"), &models);
    let errors = parsed.unwrap_err().to_string();
    let reason = "RN50 has batch norms, whose statistics are taken over the whole global batch";
    assert!(errors.contains(&format!("spec.resources.ranks is 2: {reason}; expected 1 rank")));
    assert!(errors.contains(&format!("spec.batch.micro_per_rank is 512: {reason}; leave")));
}

#[test]
fn words_outside_a_closed_list_show_the_list() {
    assert_mistakes(
        "unknown_words.yaml",
        &[
            "job.yaml:8:38: spec.model.precision is \"fp16\"; expected one of fp32, amp_bf16, \
             fp64",
            "job.yaml:19:16: spec.loss.kind is \"sigclip\"; expected one of siglip, infonce; \
             did you mean siglip?",
            "job.yaml:28:28: spec.report_to[1] is \"wandb\"; expected tensorboard",
        ],
    );
}

#[test]
fn missing_keys_say_what_belongs_there() {
    assert_mistakes(
        "missing_keys.yaml",
        &[
            "job.yaml:6:1: missing key \"loss\" in spec, which has resources, model, data, \
             optimizer, schedule, batch, checkpoint, eval and 2 more; expected a mapping with the keys \
             kind, init_logit_scale, init_logit_bias, clamp_logit_scale, positives, exchange, \
             ring, sub_chunk, tile_rows, logits_budget",
            "job.yaml:19:3: missing key \"lr\" in spec.optimizer, which has beta2, \
             grad_clip_norm; expected a number above 0",
            "job.yaml:20:3: missing key \"samples\" in spec.schedule, which has kind, \
             warmup_samples; expected the length of \
             the run, as samples (20M) or as steps",
            "job.yaml:26:9: missing key \"name\" in spec.eval.zero_shot[0], which has data; expected letters, \
             digits, dots, dashes and underscores",
        ],
    );
}

#[test]
fn a_batch_need_not_divide_into_lanes_and_ranks_may_be_more() {
    let good = fixture("good.yaml");
    let odd = good.replace("ranks: 2, min_ranks: 1", "ranks: 32").replace("32768", "1000");
    assert_eq!(parse(&odd).unwrap().data.lanes, 16);
}

#[test]
fn sources_of_several_forms_and_names_of_no_form_are_refused_where_they_stand() {
    assert_mistakes(
        "sources_of_several_forms.yaml",
        &[
            "job.yaml:11:27: spec.data.sources[0].data is \"/data/two.csv\"; expected names of one form, as the \
             first, or data.dataset_type, which says the form of all",
            "job.yaml:12:27: spec.data.sources[1].data is \"/data/two.tar\"; expected names of one form, as the \
             first, or data.dataset_type, which says the form of all",
            "job.yaml:13:29: spec.data.sources[2].data is \"synthetic:none\"; expected a number of samples from 1 \
             to 10000000000, as in synthetic:1000000",
            "job.yaml:15:20: spec.data.csv_separator is \"§\"; expected one ASCII character, as in \",\" or \"\\t\"",
            "job.yaml:16:22: spec.data.parquet_img_key is \" ; \"; expected columns, as in image;url",
        ],
    );
}

#[test]
fn the_form_of_a_source_is_stated_or_said_by_its_names() {
    let good = fixture("good.yaml");
    let form = |train: &str, stated: &str| {
        let shards = "\"/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar\"";
        assert!(good.contains(shards));
        let written = format!("{train}\n    dataset_type: {stated}");
        let data = parse(&good.replace(shards, &written)).map_err(|e| e.to_string())?.data;
        Ok::<_, String>(data.sources[0].form(data.dataset_type))
    };
    use ringmaster_manifest::spec::DatasetType::*;
    for (train, expected) in [
        ("/d/{0..3}.tar", Webdataset),
        ("/d/odd-name", Webdataset),
        ("s3://bucket/rows.CSV", Csv),
        ("/d/rows.tsv.gz", Csv),
        ("/d/{0..3}.parquet", Parquet),
        ("images/", Folder),
        ("synthetic:1000", Synthetic),
    ] {
        assert_eq!(form(train, "auto"), Ok(expected), "{train}");
    }
    assert_eq!(form("/d/rows", "csv"), Ok(Csv));
    assert_eq!(form("/d/images", "folder"), Ok(Folder));
    let wrong = form("/d/rows", "synthetic").unwrap_err();
    assert!(wrong.contains("expected synthetic:1000000, as data.dataset_type says"), "{wrong}");
}

#[test]
fn sources_that_do_not_fit_together_are_refused_where_they_stand() {
    assert_mistakes(
        "sources_that_do_not_fit.yaml",
        &[
            "job.yaml:12:65: spec.data.sources[1].upsample is 2: weight says which share of a batch it gets; \
             keep one of the two",
            "job.yaml:13:9: spec.data.sources[2].weight is left at its default: 2 of 4 sources have one; \
             expected one for this, too, or for none",
            "job.yaml:13:16: spec.data.sources[2].name is \"one\": another source has this name; expected a \
             name of its own",
            "job.yaml:14:54: spec.data.sources[3].weight is 0; expected a number above 0",
        ],
    );
    assert_mistakes(
        "sources_beside_train.yaml",
        &[
            "job.yaml:10:12: spec.data.train is \"/data/cc12m/{00000..00003}.tar::/data/more/{a,b}.tar\": \
             data.sources says what is read; keep one of the two",
        ],
    );
    assert_mistakes(
        "nothing_to_train_on.yaml",
        &[
            "job.yaml:9:3: missing key \"train\" in spec.data, which has seed, image_key, lanes, aug_cfg; \
             expected the training data, as shards or as a list of sources",
        ],
    );
    assert_mistakes(
        "a_window_and_a_pool.yaml",
        &[
            "job.yaml:15:21: spec.data.shuffle_window is \"1K\": data.pool_samples says the same for all \
             lanes; keep one of the two",
        ],
    );
}

/// "missing key train" stood beside the mistake, and "expected auto" where a number is as good.
#[test]
fn what_is_written_wrong_is_not_told_as_missing_and_words_are_told_with_their_alternatives() {
    let good = fixture("good.yaml");
    let refused = |text: String| parse(&text).unwrap_err().to_string();
    let line = good.lines().find(|line| line.contains("train:")).unwrap();
    for wrong in
        ["    sources: []", "    sources: {name: x}", "    source: [{name: x, data: /b.tar}]"]
    {
        let told = refused(good.replace(line, wrong));
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("spec.data"), "{told}");
    }
    let told = refused(good.replace("lanes: 16", "readers: lots"));
    assert!(told.contains("is \"lots\"; expected auto") && told.contains("whole number"), "{told}");
}

#[test]
fn a_minimum_above_the_wish_is_refused() {
    assert_mistakes(
        "min_ranks_above_ranks.yaml",
        &["job.yaml:7:36: spec.resources.min_ranks is 3: the job wants fewer ranks; \
             expected at most resources.ranks, 2"],
    );
}

#[test]
fn a_length_in_two_units_is_refused() {
    assert_mistakes(
        "both_units.yaml",
        &["job.yaml:21:58: spec.schedule.samples is \"3B\": steps says the same in steps; \
             keep one of the two"],
    );
}

#[test]
fn a_run_shorter_than_one_batch_is_refused() {
    assert_mistakes(
        "run_shorter_than_a_batch.yaml",
        &["job.yaml:21:37: spec.schedule.samples is 1000: the run has no whole step; \
             expected at least batch.global, 32768"],
    );
}

#[test]
fn places_that_cannot_be_read_say_which_can() {
    assert_mistakes(
        "unreadable_places.yaml",
        &[
            "job.yaml:10:13: spec.data.train[0] is \"hdfs://bucket/{0..3}.tar\"; expected a \
             path, or a URL of file, s3, gs, az, http or https",
            "job.yaml:10:41: spec.data.train[1] is \"/data/{0..3.tar\"; expected a closing \
             brace for every opening one, and the { at character 7 has none",
            "job.yaml:23:21: spec.checkpoint.uri is \"~/runs\"; expected a path without ~, \
             which only a shell expands",
        ],
    );
}

#[test]
fn checkpoints_that_could_never_be_kept_waited_for_or_read_are_refused() {
    assert_mistakes(
        "checkpoint_words.yaml",
        &[
            "job.yaml:8:60: spec.model.pretrained is \"ftp://host/clip\"; expected a path, a URL as \
             s3://bucket/runs or https://host/file.safetensors, hf-hub:ORG/NAME, or a tag of OpenCLIP's",
            "job.yaml:24:10: spec.checkpoint.uri is \"s3://…@bucket/runs\"; expected a URL without a \
             name or password before @: a manifest is stored and shown, and credentials come from the \
             environment",
            "job.yaml:26:17: spec.checkpoint.keep_every is 1500.0: checkpoints are written every 1000 \
             steps; expected a multiple of checkpoint.every_steps, as 2000",
            "job.yaml:27:16: spec.checkpoint.when_busy is \"queue\"; expected one of skip, wait",
            "job.yaml:28:18: spec.checkpoint.stop_within is \"soon\"; expected a whole number of \
             seconds of at least 1, plain or with s, m, h, d, as in 90, 10m or 1.5h",
        ],
    );
}

#[test]
fn what_a_tower_does_not_have_or_cannot_be_read_from_is_refused() {
    assert_mistakes(
        "towers.yaml",
        &[
            "job.yaml:8:71: spec.model.pretrained_image is \"~/tower.npz\"; expected a path without ~, \
             which only a shell expands",
            "job.yaml:8:103: spec.model.pretrained_text is \"pipe:cat\"; expected a path or a file:// \
             URL: a manifest runs no commands",
        ],
    );
    let text = fixture("good.yaml").replace("name: ViT-B-16", "name: convnext_base");
    let models = ModelCatalogue::builtin();
    let refused = ringmaster_manifest::parse(&text, "job.yaml", Path::new("/jobs"), &models);
    let refused = refused.unwrap_err().to_string();
    let expected = "spec.model.force_patch_dropout is 0.5; expected 0 for a ConvNeXt";
    assert!(refused.contains(expected), "{refused}");
}

#[test]
fn a_bias_for_a_loss_without_one_is_refused() {
    assert_mistakes(
        "infonce_with_bias.yaml",
        &["job.yaml:19:42: spec.loss.init_logit_bias is -10: infonce has no bias; remove \
             it, or set loss.kind to siglip"],
    );
}

#[test]
fn ways_to_compute_a_loss_that_do_not_fit_it_are_refused() {
    assert_mistakes(
        "loss_ways_that_do_not_fit.yaml",
        &[
            "job.yaml:19:34: spec.loss.exchange is \"all_gather\": siglip's text travels round \
             the ring; remove it, or use ring",
            "job.yaml:19:60: spec.loss.ring.group is 3: groups of 3 do not divide 2 ranks; use \
             auto or a divisor",
        ],
    );
    assert_mistakes(
        "infonce_with_many_positives.yaml",
        &["job.yaml:19:36: spec.loss.positives is \"captions\": infonce has one positive per \
             row; use pairs, or set loss.kind to siglip"],
    );
    assert_mistakes(
        "ring_of_a_gathered_loss.yaml",
        &[
            "job.yaml:19:39: spec.loss.ring.group is 2: infonce gathers its text, there is no ring; \
             remove it, or set loss.exchange to ring",
        ],
    );
}

#[test]
fn a_scale_given_instead_of_its_logarithm_is_explained() {
    assert_mistakes(
        "scale_given_instead_of_its_log.yaml",
        &["job.yaml:19:42: spec.loss.init_logit_scale is 10: this is the logarithm of the \
             scale, and it is clamped to [0, ln 100] after each step; expected 0 to 4.605, or \
             set loss.clamp_logit_scale to false"],
    );
}

#[test]
fn a_key_given_twice_names_both_places() {
    assert_mistakes(
        "duplicate_key.yaml",
        &["job.yaml:23:69: spec.checkpoint.uri is given twice, first at line 23, column 16; \
             remove one"],
    );
}

#[test]
fn another_version_or_kind_is_refused() {
    assert_mistakes(
        "wrong_version.yaml",
        &[
            "job.yaml:1:13: apiVersion is \"ringmaster/v2\"; expected ringmaster/v1",
            "job.yaml:2:7: kind is \"TrainingJob\"; expected TrainJob",
        ],
    );
}

#[test]
fn a_name_that_cannot_be_part_of_an_id_is_refused() {
    assert_mistakes(
        "bad_name.yaml",
        &["job.yaml:4:9: metadata.name is \"Emoji_SigLIP\"; expected lower-case letters, \
             digits and dashes, at most 48, with a letter or digit at either end"],
    );
}

#[test]
fn a_range_upside_down_is_shown_the_right_way() {
    assert_mistakes(
        "range_upside_down.yaml",
        &["job.yaml:15:14: spec.data.aug_cfg.scale is [1.0, 0.4]: a range starts at its \
             smaller end; expected [0.4, 1]"],
    );
}

#[test]
fn two_evaluation_sets_of_one_name_are_refused() {
    assert_mistakes(
        "same_set_twice.yaml",
        &["job.yaml:28:16: spec.eval.zero_shot[1].name is \"held-out\": another set has \
             this name, and metrics are kept by name; expected a name of its own"],
    );
}

#[test]
fn an_evaluation_interval_without_sets_is_refused() {
    assert_mistakes(
        "nothing_to_evaluate.yaml",
        &["job.yaml:25:18: spec.eval.every_steps is \"5K\": there is nothing to evaluate; \
             list a set under eval.zero_shot"],
    );
}

#[test]
fn text_that_is_not_yaml_says_where_it_stops_being() {
    assert_mistakes(
        "not_yaml.yaml",
        &["job.yaml:5:9: not valid YAML: while parsing a flow mapping, did not find \
             expected ',' or '}'"],
    );
}

#[test]
fn a_second_document_is_refused() {
    assert_mistakes(
        "two_documents.yaml",
        &["job.yaml:30:1: a second YAML document starts here; a manifest is one document, \
             so put this one in a file of its own"],
    );
}

#[test]
fn an_empty_file_says_how_a_manifest_starts() {
    assert_mistakes(
        "empty.yaml",
        &["job.yaml:1:1: the file holds nothing; a manifest starts with apiVersion: \
             ringmaster/v1 and kind: TrainJob"],
    );
}

#[test]
fn a_file_without_keys_says_which_it_needs() {
    assert_mistakes(
        "not_a_mapping.yaml",
        &["job.yaml:1:1: the file is \"just text\"; expected a mapping with the keys \
             apiVersion, kind, metadata, spec"],
    );
}
