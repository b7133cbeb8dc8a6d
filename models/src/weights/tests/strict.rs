//! Refusals: configs, indexes and dtypes that do not fit the weights. Each error names
//! everything at once.

use super::*;

/// A copy of an oracle model with its config.json changed.
fn with_config(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(oracle(name)).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("reference") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
    dir
}

/// The error of loading a folder, which must be the one of checking it.
fn load_error(dir: &Path) -> String {
    let error = match ModelClass::of(&dir.join("config.json")).unwrap() {
        ModelClass::Encoder => load_bert::<Flex>(dir, DType::F32, &Default::default()).err(),
        _ => load_decoder::<Flex>(dir, DType::F32, &Default::default()).err(),
    };
    let error = error.expect("it does not load").to_string();
    assert_eq!(check_folder::<Flex>(dir, &Default::default()).unwrap_err().to_string(), error);
    error
}

#[test]
fn an_absurd_number_of_layers_is_refused_before_anything_is_built() {
    for name in ["qwen2_tied", "bert_e5"] {
        let error = load_error(
            with_config(name, |config| config["num_hidden_layers"] = 3_000_000_000u64.into())
                .path(),
        );
        assert!(
            error.contains(
                "\"num_hidden_layers\" is 3000000000; hint: it must be a whole number from 1 to"
            ),
            "{error}"
        );
        let error = load_error(
            with_config(name, |config| config["num_hidden_layers"] = 9_000.into()).path(),
        );
        assert!(
            error.contains("too few layers") && error.contains("num_hidden_layers is 9000"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_is_checked_without_loading_it() {
    for (name, class) in [
        ("qwen2_tied", ModelClass::Decoder),
        ("qwen2_untied_sharded", ModelClass::Decoder),
        ("bert_e5", ModelClass::Encoder),
    ] {
        assert_eq!(check_folder::<Flex>(&oracle(name), &Default::default()).unwrap(), class);
    }
    let decoder =
        load_decoder::<Flex>(&oracle("qwen2_tied"), DType::F32, &Default::default()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    save_critic(&Critic::from_decoder(&decoder, 1), saved.path(), None).unwrap();
    assert_eq!(
        check_folder::<Flex>(saved.path(), &Default::default()).unwrap(),
        ModelClass::Critic
    );
    let untied = with_config("qwen2_tied", |config| config["tie_word_embeddings"] = false.into());
    assert!(load_error(untied.path()).contains("missing: lm_head.weight"));
    let wider = with_config("qwen2_tied", |config| config["vocab_size"] = 1_000_000.into());
    assert!(load_error(wider.path()).contains("wrong shape: model.embed_tokens.weight"));
}

#[test]
fn a_config_may_begin_with_a_byte_order_mark() {
    let dir = with_config("qwen2_untied_sharded", |_| {});
    for name in ["config.json", "model.safetensors.index.json"] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name), format!("\u{feff}{text}")).unwrap();
    }
    load_decoder::<Flex>(dir.path(), DType::F32, &Default::default()).unwrap();
}

#[test]
fn weights_too_large_for_half_precision_are_named_and_counted() {
    let mut tensors = tied_tensors();
    tensors[2].2[1] = 1e6;
    tensors[6].2.fill(-70_000.0);
    let dir = folder(&tensors);
    let expected = "\n  model.layers.0.q_proj.bias: 1 finite value(s) would become infinite\n  \
                    model.norm.bias: 2 finite value";
    let error = load::<Flex>(dir.path(), true, DType::F16).unwrap_err().to_string();
    assert!(error.contains(expected) && error.contains("hint: bf16"), "{error}");
    let toy = load::<Flex>(dir.path(), true, DType::F32).unwrap();
    let saved = tempfile::tempdir().unwrap();
    let error = save_module(&toy, saved.path(), Some(DType::F16), &DECODER, SHARD_SIZE_BYTES)
        .unwrap_err()
        .to_string();
    assert!(error.contains(expected) && error.contains("hint: bf16"), "{error}");
    assert_eq!(fs::read_dir(saved.path()).unwrap().count(), 0, "nothing is written");
    load::<Flex>(dir.path(), true, DType::BF16).unwrap();
    save_module(&toy, saved.path(), Some(DType::BF16), &DECODER, SHARD_SIZE_BYTES).unwrap();
}

#[test]
fn an_index_must_agree_with_its_shards_in_both_directions() {
    let dir = with_config("qwen2_untied_sharded", |_| {});
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let head = map["lm_head.weight"].clone();
    let other = map.values().find(|&shard| *shard != head).unwrap().clone();
    map["lm_head.weight"] = other;
    map.remove("model.norm.weight").unwrap();
    map.insert("model.extra.weight".to_owned(), head);
    fs::write(&path, index.to_string()).unwrap();
    let error = load_error(dir.path());
    assert!(
        error.contains("3 problems") && error.contains("lm_head.weight is placed in"),
        "{error}"
    );
    assert!(
        error.contains("model.extra.weight is placed in")
            && error.contains("which has no such tensor"),
        "{error}"
    );
    assert!(
        error.contains("model.norm.weight lies in") && error.contains("not in the index"),
        "{error}"
    );
}

#[test]
fn a_missing_head_is_explained_by_the_tying_that_config_json_does_not_state() {
    let unsaid = with_config("qwen2_tied", |config| {
        _ = config.as_object_mut().unwrap().remove("tie_word_embeddings")
    });
    let error = load_error(unsaid.path());
    assert!(
        error.contains("missing: lm_head.weight")
            && error.contains("where config.json does not say, it is false"),
        "{error}"
    );
    assert!(error.contains("hint: set \"tie_word_embeddings\" to true in config.json"), "{error}");
    assert_eq!(error.matches("hint: ").count(), 1, "{error}");
}

#[test]
fn a_prefix_of_all_names_is_one_problem() {
    for prefix in ["module.", "base_model.model."] {
        let renamed = tied_tensors().into_iter().map(|(name, shape, values)| {
            let name: &'static str = format!("{prefix}{name}").leak();
            (name, shape, values)
        });
        let tensors: Tensors = renamed.collect();
        let error =
            load::<Flex>(folder(&tensors).path(), true, DType::F32).unwrap_err().to_string();
        // The first part of a prefix is told; what is behind it shows when that is gone.
        let first = prefix.split_inclusive('.').next().unwrap();
        assert!(
            error
                .contains(&format!("(1 problems):\n  all {} names carry `{first}`", tensors.len())),
            "{error}"
        );
        assert_eq!(error.matches("hint: ").count(), 1, "{error}");
    }
}

#[test]
fn a_gguf_file_or_a_folder_of_them_is_told_from_a_model_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("Model-Q4_K_M.gguf");
    fs::write(&file, "GGUF").unwrap();
    for (path, what) in [
        (&*file, "it is a GGUF file, not a model folder"),
        (dir.path(), "it holds GGUF files and no config.json"),
    ] {
        let error = check_folder::<Flex>(path, &Default::default()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("hint: GGUF is not read"), "{error}");
    }
    let weights = dir.path().join("model.safetensors");
    fs::write(&weights, "").unwrap();
    let error = check_folder::<Flex>(&weights, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("it is a file, not a model folder"), "{error}");
}
