//! From the shape that a version stored to the next one's, in JSON: types of the past are not kept.

use serde_json::{Map, Value, json};

/// Brings the JSON of one schema into the shape of the next. What it does not know it leaves alone: whoever reads
/// the result refuses it.
pub(super) type Step = fn(&mut Value);

/// Of `TrainJob`. A step is never edited once released.
pub(super) const TRAIN_JOB: [Step; 3] = [write_out, write_out_stopping, make_sources];

/// From 1 to 2: writes out what versions before a key did not say, with what they did.
fn write_out(job: &mut Value) {
    let side = job.pointer("/model/config/vision_cfg/image_size").cloned();
    let preprocess = openai(side.unwrap_or_else(|| json!(224)));
    if let Some(model) = section(job, "model") {
        for key in ["pretrained", "pretrained_image", "pretrained_text", "tokenizer"] {
            model.entry(key).or_insert(Value::Null);
        }
        let given = model.entry("preprocess").or_insert(Value::Null);
        if given.is_null() {
            *given = preprocess;
        }
    }
    if let Some(loss) = section(job, "loss") {
        loss.entry("positives").or_insert_with(|| json!("pairs"));
    }
    if let Some(checkpoint) = section(job, "checkpoint") {
        checkpoint.entry("keep_every").or_insert(Value::Null);
        checkpoint.entry("when_busy").or_insert_with(|| json!("skip"));
    }
}

/// From 2 to 3: there was no longest time for stopping that a job chose.
fn write_out_stopping(job: &mut Value) {
    if let Some(checkpoint) = section(job, "checkpoint") {
        checkpoint.entry("stop_within").or_insert(Value::Null);
    }
}

/// From 3 to 4: shards became a source, the first of several, and a window in every lane a pool.
fn make_sources(job: &mut Value) {
    let Some(data) = section(job, "data") else { return };
    data.entry("accept_new_data").or_insert(json!(false));
    data.entry("memory").or_insert(Value::Null);
    data.entry("jpeg_scaled_decode").or_insert(json!(false));
    data.entry("dataset_type").or_insert(json!("webdataset"));
    data.entry("csv_separator").or_insert(json!("\t"));
    data.entry("csv_img_key").or_insert(json!("filepath"));
    data.entry("csv_caption_key").or_insert(json!("title"));
    data.entry("parquet_img_key").or_insert(json!(["image", "jpg", "jpeg", "png", "webp", "url"]));
    data.entry("parquet_caption_key").or_insert(json!(["caption", "text", "title", "txt"]));
    if let Some(augmentation) = data.get_mut("aug_cfg").and_then(Value::as_object_mut) {
        augmentation.entry("re_count").or_insert(json!(1));
        augmentation.entry("use_timm").or_insert(json!(false));
    }
    if let Some(train) = data.shift_remove("train") {
        let source = json!({"name": "train", "data": train, "weight": null, "upsample": null});
        data.insert("sources".to_owned(), json!([source]));
    }
    if let Some(window) = data.shift_remove("shuffle_window") {
        let lanes = data.get("lanes").and_then(Value::as_u64).unwrap_or(1);
        let pool = window.as_u64().unwrap_or(1).saturating_mul(lanes);
        data.insert("pool_samples".to_owned(), pool.into());
    }
    // Their length followed from the data set's.
    if data.get("block_samples").is_some_and(Value::is_null) {
        data.insert("block_samples".to_owned(), json!(128));
    }
}

fn section<'j>(job: &'j mut Value, name: &str) -> Option<&'j mut Map<String, Value>> {
    job.get_mut(name)?.as_object_mut()
}

/// How images of this side were prepared before a job said so: as for OpenAI's models.
fn openai(side: Value) -> Value {
    json!({
        "size": side,
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_schema_1_did_not_say_is_written_out_and_what_it_said_stays() {
        let mut job = json!({
            "model": {
                "config": {"vision_cfg": {"image_size": 384}},
                "pretrained": "file:///w.pt",
                "preprocess": null
            },
            "loss": {"positives": "captions"},
            "checkpoint": {}
        });
        write_out(&mut job);
        assert_eq!(job["model"]["pretrained"], "file:///w.pt");
        assert_eq!(
            (&job["model"]["tokenizer"], &job["loss"]["positives"]),
            (&Value::Null, &json!("captions"))
        );
        assert_eq!(job["model"]["preprocess"]["size"], 384);
        assert_eq!(job["checkpoint"], json!({"keep_every": null, "when_busy": "skip"}));
        let mut again = job.clone();
        write_out(&mut again);
        assert_eq!(again, job);
    }

    #[test]
    fn a_job_of_schema_2_stops_for_as_long_as_it_makes_progress() {
        let mut job = json!({"checkpoint": {"when_busy": "wait"}});
        write_out_stopping(&mut job);
        assert_eq!(job["checkpoint"], json!({"when_busy": "wait", "stop_within": null}));
    }

    #[test]
    fn shards_of_schema_3_are_a_source_and_a_window_in_every_lane_a_pool() {
        let mut job = json!({"data": {
            "train": ["/a.tar"], "lanes": 64, "block_samples": null, "shuffle_window": 1024,
            "aug_cfg": {"re_prob": 0.1}
        }});
        make_sources(&mut job);
        let source = json!({"name": "train", "data": ["/a.tar"], "weight": null, "upsample": null});
        let data = json!({
            "lanes": 64, "block_samples": 128, "sources": [source], "pool_samples": 65_536,
            "accept_new_data": false, "memory": null, "jpeg_scaled_decode": false,
            "dataset_type": "webdataset",
            "csv_separator": "\t", "csv_img_key": "filepath", "csv_caption_key": "title",
            "parquet_img_key": ["image", "jpg", "jpeg", "png", "webp", "url"],
            "parquet_caption_key": ["caption", "text", "title", "txt"],
            "aug_cfg": {"re_prob": 0.1, "re_count": 1, "use_timm": false}
        });
        assert_eq!(job["data"], data);
    }

    #[test]
    fn what_is_no_job_is_left_alone() {
        for odd in [json!(null), json!([1]), json!({"model": 7, "loss": [], "checkpoint": "x"})] {
            let mut job = odd.clone();
            TRAIN_JOB.iter().for_each(|step| step(&mut job));
            assert_eq!(job, odd);
        }
    }
}
