use super::*;

fn parse(text: &str) -> Result<ModelConfig, String> {
    ModelConfig::from_json(text).map_err(|error| error.to_string())
}

fn refused(vision: &str, text: &str) -> String {
    let text = format!(r#"{{"embed_dim": 8, "vision_cfg": {{{vision}}}, "text_cfg": {{{text}}}}}"#);
    parse(&text).unwrap_err()
}

#[test]
fn keys_that_ask_for_nothing_special_are_taken() {
    let config = parse(
        r#"{"model_cfg": {"embed_dim": 8, "nonscalar_logit_scale": false,
            "vision_cfg": {"patch_size": null, "layers": [3, 4, 6, 3], "width": 64,
                           "image_size": [224, 224], "qk_norm": false, "act_kwargs": {}},
            "text_cfg": {"embed_cls": false, "text_arch": "clip", "norm_kwargs": {"eps": 1e-6}}},
            "preprocess_cfg": {"size": [224, 224]}}"#,
    )
    .unwrap();
    assert_eq!(config.vision_cfg.layers, Layers::Stages([3, 4, 6, 3]));
    assert!(config.has_batch_norm());
    assert_eq!(config.text_cfg.norm_kwargs, Some(NormKwargs { eps: 1e-6 }));
}

#[test]
fn what_is_not_supported_is_named_with_its_value() {
    let expected = "vision_cfg.qk_norm is true; custom attention blocks are not supported; leave \
                    the key out, or use a model without it";
    assert_eq!(refused(r#""qk_norm": true"#, ""), expected);
    let coca = parse(r#"{"embed_dim": 8, "multimodal_cfg": {}, "vision_cfg": {}, "text_cfg": {}}"#);
    assert!(coca.unwrap_err().contains("CoCa models are not supported yet"));
    assert!(refused("", r#""embed_cls": true"#).contains("text_cfg.embed_cls is true; CoCa"));
    assert!(refused(r#""attentional_pool": "parallel""#, "").contains("CoCa's pooling"));
    let naflex = refused(r#""timm_model_name": "naflexvit_base_patch16_siglip""#, "");
    assert!(naflex.contains("NaFlex is not supported yet; expected one of vit_"), "{naflex}");
    assert!(refused(r#""width": 65"#, "").contains("expected a multiple of vision_cfg.head_width"));
    assert!(refused(r#""depth": 2"#, "").starts_with("vision_cfg: unknown field `depth`"));
    assert!(refused(r#""image_size": [224, 336]"#, "").contains("only square images"));
    let roberta = refused("", r#""hf_model_name": "bert-base-uncased""#);
    assert!(roberta.contains("expected roberta-base"), "{roberta}");
}

#[test]
fn what_is_written_is_read_as_the_same_and_holds_no_defaults() {
    for (name, text) in [
        ("plain", r#"{"embed_dim": 8, "vision_cfg": {"layers": 3}, "text_cfg": {"heads": 4}}"#),
        (
            "siglip",
            r#"{"embed_dim": 768, "init_logit_bias": -10, "custom_text": true,
                "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224",
                               "timm_pool": "map", "timm_proj": "none"},
                "text_cfg": {"context_length": 64, "vocab_size": 32000, "proj_bias": true,
                             "tokenizer_kwargs": {"clean": "canonicalize"}}}"#,
        ),
    ] {
        let config = parse(text).unwrap();
        let written = config.to_json();
        assert_eq!(parse(&written.to_string()).unwrap(), config, "{name}");
        assert!(written["vision_cfg"].as_object().unwrap().len() <= 3, "{name}: {written}");
    }
}

#[test]
fn sizes_are_those_of_open_clips_tables() {
    // Millions of parameters and GFLOPs, of docs/model_profile.csv; RN50's image tower is counted
    // there with its batch norms.
    let image = |text: &str| parse(text).unwrap().image_size();
    let b32 = r#"{"embed_dim": 512, "vision_cfg": {"patch_size": 32}, "text_cfg": {}}"#;
    let config = parse(b32).unwrap();
    assert_eq!(config.parameters(), 151_277_313);
    assert_eq!((image(b32).flops as f64 / 1e7).round() / 100.0, 8.82);
    assert_eq!((config.text_size().flops as f64 / 1e7).round() / 100.0, 5.96);
}

/// `width × 32` overflowed for a width that nobody trains, and a run of 10^18 layers was counted one by one.
#[test]
fn no_number_of_a_configuration_overflows_or_is_counted_for_ever() {
    const EXTREMES: [i64; 9] =
        [i64::MIN, -1, 0, 1, 1 << 12, 1 << 24, 1 << 40, i64::MAX / 2, i64::MAX];
    let numbers = |config: &serde_json::Value| -> Vec<String> {
        let sections = [
            ("", config),
            ("/vision_cfg", &config["vision_cfg"]),
            ("/text_cfg", &config["text_cfg"]),
        ];
        let keys = |(place, section): (&str, &serde_json::Value)| -> Vec<String> {
            let fields = section.as_object().unwrap().iter();
            fields
                .filter(|(_, value)| value.is_number() || value.is_array() || value.is_null())
                .map(|(key, _)| format!("{place}/{key}"))
                .collect()
        };
        sections.into_iter().flat_map(keys).collect()
    };
    for text in [
        r#"{"embed_dim": 512, "vision_cfg": {"attentional_pool": true}, "text_cfg": {}}"#,
        r#"{"embed_dim": 1024, "vision_cfg": {"layers": [3, 4, 6, 3], "width": 64}, "text_cfg": {}}"#,
        r#"{"embed_dim": 768, "vision_cfg": {"timm_model_name": "convnext_base"}, "text_cfg": {}}"#,
        r#"{"embed_dim": 768, "vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta-base"}}"#,
    ] {
        let config = serde_json::to_value(parse(text).unwrap()).unwrap();
        for place in numbers(&config) {
            for extreme in EXTREMES {
                for value in [
                    serde_json::json!(extreme),
                    serde_json::json!([extreme, extreme, extreme, extreme]),
                ] {
                    let mut changed = config.clone();
                    *changed.pointer_mut(&place).unwrap() = value;
                    if let Ok(config) = parse(&changed.to_string()) {
                        assert!(config.parameters() > 0, "{place} = {extreme}");
                        assert!(config.text_size().flops > 0 && config.image_size().flops > 0);
                    }
                }
            }
        }
    }
}
