use super::*;
use std::path::PathBuf;

fn oracle(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models"))
        .join(name)
        .join("config.json")
}

/// Parses `base` with `changes` merged in (null removes a field).
fn parse_with<T>(
    base: &str,
    changes: Value,
    parse: impl Fn(&Path) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let mut json: Value = serde_json::from_str(base).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = json.as_object_mut().unwrap().remove(key),
            value => json[key] = value.clone(),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    parse(&path)
}

fn decoder_with(base: &str, changes: Value) -> Result<DecoderConfig, ModelError> {
    parse_with(base, changes, DecoderConfig::from_file)
}

fn decoder_error(changes: Value) -> String {
    decoder_with(LLAMA_3_2_1B, changes).unwrap_err().to_string()
}

fn bert_error(changes: Value) -> String {
    parse_with(E5_SMALL, changes, BertConfig::from_file).unwrap_err().to_string()
}

/// Qwen/Qwen2.5-0.5B-Instruct, as published (transformers 4).
const QWEN2_5_0_5B: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
  "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
}"#;

/// The same model as transformers 5 writes it.
const QWEN2_5_0_5B_V5: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
  "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "layer_types": ["full_attention","full_attention","full_attention","full_attention","full_attention","full_attention",
    "full_attention","full_attention","full_attention","full_attention","full_attention","full_attention","full_attention",
    "full_attention","full_attention","full_attention","full_attention","full_attention","full_attention","full_attention",
    "full_attention","full_attention","full_attention","full_attention"],
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": null, "tie_word_embeddings": true,
  "transformers_version": "5.23.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
}"#;

/// meta-llama/Llama-3.2-1B-Instruct, as published.
const LLAMA_3_2_1B: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
  "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
}"#;

/// HuggingFaceTB/SmolLM2-135M-Instruct, as published.
const SMOLLM2: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true,
  "vocab_size": 49152, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}
}"#;

/// TinyLlama/TinyLlama-1.1B-Chat-v1.0, as published: no rope_theta, no head_dim.
const TINYLLAMA: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
  "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
  "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.35.0", "use_cache": true, "vocab_size": 32000
}"#;

/// intfloat/multilingual-e5-small, as published.
const E5_SMALL: &str = r#"{
  "_name_or_path": "intfloat/multilingual-e5-small", "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
  "classifier_dropout": null, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384,
  "initializer_range": 0.02, "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
  "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
  "position_embedding_type": "absolute", "tokenizer_class": "XLMRobertaTokenizer", "torch_dtype": "float32",
  "transformers_version": "4.30.2", "type_vocab_size": 2, "use_cache": true, "vocab_size": 250037
}"#;

#[test]
fn every_oracle_config_is_read_and_survives_writing() {
    for name in [
        "llama3_tied",
        "llama3_untied_v5cfg",
        "qwen2_teacher",
        "qwen2_tied",
        "qwen2_tied_bf16",
        "qwen2_untied_sharded",
    ] {
        let config = DecoderConfig::from_file(&oracle(name)).unwrap();
        assert_eq!(decoder_with(&config.to_json(), json!({})).unwrap(), config, "{name}");
    }
    let config = BertConfig::from_file(&oracle("bert_e5")).unwrap();
    assert_eq!(parse_with(&config.to_json(), json!({}), BertConfig::from_file).unwrap(), config);
}

#[test]
fn llama3_rope_scaling_is_read_in_both_styles() {
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for name in ["llama3_tied", "llama3_untied_v5cfg"] {
        let config = DecoderConfig::from_file(&oracle(name)).unwrap();
        assert_eq!(
            (config.rope_scaling, config.rope_theta, config.head_dim),
            (scaling, 500_000.0, 16),
            "{name}"
        );
    }
}

#[test]
fn both_styles_of_qwen_are_the_same_model() {
    let config = decoder_with(QWEN2_5_0_5B, json!({})).unwrap();
    assert_eq!(decoder_with(QWEN2_5_0_5B_V5, json!({})).unwrap(), config);
    assert!(config.has_qkv_bias && config.is_tied);
    assert_eq!(
        (config.head_dim, config.rope_theta, config.eos_token_ids),
        (64, 1e6, vec![151_645])
    );
}

#[test]
fn published_parameter_counts_are_met() {
    // From the model cards and `num_parameters()` of transformers.
    for (config, expected) in [
        (QWEN2_5_0_5B, 494_032_768),
        (LLAMA_3_2_1B, 1_235_814_400),
        (SMOLLM2, 134_515_008),
        (TINYLLAMA, 1_100_048_384),
    ] {
        assert_eq!(decoder_with(config, json!({})).unwrap().n_parameters(), expected);
    }
}

#[test]
fn published_llamas_are_read() {
    let llama = decoder_with(LLAMA_3_2_1B, json!({})).unwrap();
    assert_eq!(llama.eos_token_ids, [128_001, 128_008, 128_009]);
    assert!(!llama.has_qkv_bias);
    let tiny = decoder_with(TINYLLAMA, json!({})).unwrap();
    assert_eq!(
        (tiny.rope_theta, tiny.rope_scaling, tiny.is_tied, tiny.head_dim),
        (10_000.0, RopeScaling::None, false, 64)
    );
    assert_eq!(decoder_with(SMOLLM2, json!({})).unwrap().initializer_range, 1.0 / 24.0);
}

#[test]
fn an_unsupported_value_is_named() {
    for (changes, parts) in [
        (json!({"model_type": "mistral"}), ["\"model_type\"", "\"mistral\""]),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            ["\"rope_scaling.rope_type\"", "\"yarn\""],
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), ["rope_type", "\"linear\""]),
        (
            json!({"rope_scaling": null, "rope_theta": null, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}),
            ["\"rope_parameters.rope_type\"", "\"dynamic\""],
        ),
        (json!({"use_sliding_window": true}), ["\"use_sliding_window\"", "true"]),
        (json!({"hidden_act": "gelu"}), ["\"hidden_act\"", "\"gelu\""]),
        (json!({"mlp_bias": true}), ["\"mlp_bias\"", "true"]),
        (json!({"attention_bias": true}), ["\"attention_bias\"", "true"]),
        (json!({"quantization_config": {"bits": 4}}), ["\"quantization_config\"", "bits"]),
        (json!({"layer_types": ["sliding_attention"]}), ["\"layer_types\"", "sliding_attention"]),
        (json!({"partial_rotary_factor": 0.5}), ["\"partial_rotary_factor\"", "0.5"]),
    ] {
        let message = decoder_error(changes);
        assert!(
            parts.iter().all(|part| message.contains(part)) && message.contains("hint:"),
            "{message}"
        );
    }
}

#[test]
fn bert_variants_are_refused_by_name() {
    for (changes, part) in [
        (json!({"model_type": "xlm-roberta"}), "\"xlm-roberta\""),
        (json!({"position_embedding_type": "relative_key"}), "\"relative_key\""),
        (json!({"hidden_act": "gelu_new"}), "\"gelu_new\""),
        (json!({"is_decoder": true}), "\"is_decoder\""),
    ] {
        let message = bert_error(changes);
        assert!(message.contains(part) && message.contains("hint:"), "{message}");
    }
}

#[test]
fn an_unknown_field_is_an_error_with_the_nearest_name() {
    let message = decoder_error(json!({"num_key_value_head": 8}));
    assert!(
        message.contains(
            "unknown field \"num_key_value_head\"; hint: did you mean \"num_key_value_heads\"?"
        ),
        "{message}"
    );
    let message = decoder_error(json!({"logit_softcapping_of_gemma": 30.0}));
    assert!(
        message.contains("\"logit_softcapping_of_gemma\"") && !message.contains("did you mean"),
        "{message}"
    );
    let message = decoder_error(
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 1, "high_freq_facto": 3}}),
    );
    assert!(message.contains("rope_scaling.high_freq_facto"), "{message}");
}

#[test]
fn a_missing_or_malformed_field_is_named() {
    let message = decoder_error(json!({"hidden_size": null}));
    assert!(message.contains("\"hidden_size\" is missing"), "{message}");
    let message = decoder_error(json!({"vocab_size": "many"}));
    assert!(message.contains("\"vocab_size\" is \"many\""), "{message}");
    let message = decoder_error(json!({"intermediate_size": 0}));
    assert!(
        message.contains(
            "\"intermediate_size\" is 0; hint: it must be a whole number from 1 to 1048576"
        ),
        "{message}"
    );
    let message =
        decoder_with(QWEN2_5_0_5B, json!({"num_key_value_heads": null})).unwrap_err().to_string();
    assert!(message.contains("num_key_value_heads"), "{message}");
}

#[test]
fn contradictions_are_found() {
    for (changes, part) in [
        (json!({"num_key_value_heads": 5}), "not a multiple of num_key_value_heads (5)"),
        (json!({"head_dim": 63}), "head_dim (63) is odd"),
        (
            json!({"head_dim": null, "num_attention_heads": 24}),
            "hidden_size (2048) is not a multiple",
        ),
        (json!({"eos_token_id": 128_256}), "token id 128256"),
        (
            json!({"rope_parameters": {"rope_type": "default"}}),
            "both rope_scaling and rope_parameters",
        ),
        (
            json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 7.0}}),
            "rope_theta is 500000 and",
        ),
    ] {
        let message = decoder_error(changes);
        assert!(message.contains(part), "{message}");
    }
    let message = bert_error(json!({"num_attention_heads": 7}));
    assert!(message.contains("not a multiple of num_attention_heads (7)"), "{message}");
}

#[test]
fn a_syntax_error_carries_its_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, "{\n  \"model_type\": \"llama\",\n  \"vocab_size\" 3\n}").unwrap();
    let message = DecoderConfig::from_file(&path).unwrap_err().to_string();
    assert!(message.contains("config.json, line 3, column 16: expected `:`"), "{message}");
}

#[test]
fn a_missing_file_is_named_with_a_hint() {
    let message =
        DecoderConfig::from_file(Path::new("nowhere/config.json")).unwrap_err().to_string();
    assert!(message.contains("nowhere/config.json") && message.contains("hint:"), "{message}");
}

#[test]
fn a_window_is_refused_only_where_a_layer_would_use_it() {
    let with = |changes: Value| decoder_with(QWEN2_5_0_5B, changes);
    let plain = with(json!({})).unwrap();
    // 24 layers: the first windowed one is behind the last.
    for max_window_layers in [24, 28] {
        let config =
            with(json!({"use_sliding_window": true, "max_window_layers": max_window_layers}))
                .unwrap();
        assert_eq!(config, plain);
    }
    // Absent, it is 28.
    assert_eq!(
        with(json!({"use_sliding_window": true, "max_window_layers": null})).unwrap(),
        plain
    );
    let all_full = json!({"use_sliding_window": true, "layer_types": vec!["full_attention"; 24]});
    assert_eq!(with(all_full).unwrap(), plain);
    let without_window =
        QWEN2_5_0_5B.replace("\"sliding_window\": 32768", "\"sliding_window\": null");
    assert_eq!(decoder_with(&without_window, json!({"use_sliding_window": true})).unwrap(), plain);
    let error =
        with(json!({"use_sliding_window": true, "max_window_layers": 23})).unwrap_err().to_string();
    assert!(error.contains("\"use_sliding_window\": true is not supported"), "{error}");
    assert!(with(json!({"use_sliding_window": 1})).is_err());
}
