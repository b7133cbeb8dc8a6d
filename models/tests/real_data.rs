//! Genuine published weights against embeddings that transformers computed from them.
//!
//! The data is not part of the repository: `DGPO_DATA_DIR` and `DGPO_MINILM_DIR` name folders.
//! Without them the tests say that they are skipped, unless `DGPO_REQUIRE_DATA=1` asks for them.

use burn::{
    backend::Flex,
    tensor::{DType, Int, Tensor, TensorData},
};
use dgpo_models::weights::{load_bert, save_bert};
use serde_json::Value;
use std::{io::Write, path::PathBuf};

fn data_dir() -> Option<PathBuf> {
    folder("DGPO_DATA_DIR")
}

/// The folder that an environment variable names.
fn folder(variable: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(variable).map(PathBuf::from);
    let is_required = std::env::var_os("DGPO_REQUIRE_DATA").is_some_and(|value| value == "1");
    assert!(dir.is_some() || !is_required, "DGPO_REQUIRE_DATA=1, but {variable} is not set");
    if dir.is_none() {
        // Past the capture of test output, which hides what a passing test prints.
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        _ = writeln!(std::io::stderr(), "skipped: {test}: {variable} names no folder");
    }
    dir
}

/// (ids and mask `[B, T]` right-padded with the id 1, embeddings `[B, D]`)
type Golden = (Tensor<Flex, 2, Int>, Tensor<Flex, 2, Int>, Vec<Vec<f32>>);

/// Recording of transformers for one of the encoders.
fn golden(dir: &std::path::Path, encoder: &str) -> Golden {
    let json: Value = serde_json::from_str(
        &std::fs::read_to_string(dir.join(format!("golden/{encoder}.json"))).unwrap(),
    )
    .unwrap();
    let items = json["items"].as_array().unwrap();
    let ids: Vec<Vec<i64>> = items
        .iter()
        .map(|item| serde_json::from_value(item["input_ids"].clone()).unwrap())
        .collect();
    let embeddings = items
        .iter()
        .map(|item| serde_json::from_value(item["embedding"].clone()).unwrap())
        .collect();
    let n_tokens = ids.iter().map(Vec::len).max().unwrap();
    let pad = |of: &dyn Fn(&Vec<i64>, usize) -> i64| {
        let values: Vec<i64> = ids
            .iter()
            .flat_map(|row| (0..n_tokens).map(|t| of(row, t)).collect::<Vec<_>>())
            .collect();
        Tensor::from_data(TensorData::new(values, [ids.len(), n_tokens]), &Default::default())
    };
    (
        pad(&|row, t| row.get(t).copied().unwrap_or(1)),
        pad(&|row, t| i64::from(t < row.len())),
        embeddings,
    )
}

#[test]
fn multilingual_e5_small_embeds_as_in_transformers() {
    let Some(dir) = data_dir() else { return };
    let (ids, mask, expected) = golden(&dir, "e5");
    let model = load_bert::<Flex>(
        &dir.join("weights/multilingual-e5-small"),
        DType::F32,
        &Default::default(),
    )
    .unwrap();
    let found: Vec<f32> = model.embed(ids, mask).into_data().to_vec().unwrap();
    for (found, expected) in found.chunks(expected[0].len()).zip(&expected) {
        // An evaluation of these f16 weights in f64 differs from the golden numbers by up to
        // 3.9e-5, so those came from the weights before they were rounded to f16: that rounding,
        // not f32, sets the tolerance (entries are near 0.05).
        let difference =
            found.iter().zip(expected).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
        assert!(difference < 1e-4, "{difference}");
    }
}

/// Its weights come from a Python package that `.ci/run` fetches; `DGPO_MINILM_DIR` names the
/// unpacked folder.
#[test]
fn all_minilm_l6_v2_embeds_as_in_transformers() {
    let (Some(dir), Some(weights)) = (data_dir(), folder("DGPO_MINILM_DIR")) else { return };
    let (ids, mask, expected) = golden(&dir, "minilm");
    let model = load_bert::<Flex>(&weights, DType::F32, &Default::default()).unwrap();
    let found: Vec<f32> = model.embed(ids, mask).into_data().to_vec().unwrap();
    for (found, expected) in found.chunks(expected[0].len()).zip(&expected) {
        // Genuine f32 weights: what is left is f32 rounding over six layers and the seven digits of
        // the recording.
        let difference =
            found.iter().zip(expected).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
        assert!(difference < 5e-6, "{difference}");
    }
}

#[test]
fn a_genuine_checkpoint_survives_saving_bit_for_bit() {
    let Some(dir) = data_dir() else { return };
    let source = dir.join("weights/multilingual-e5-small");
    let model = load_bert::<Flex>(&source, DType::F16, &Default::default()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    save_bert(&model, saved.path(), None).unwrap();
    let tensors = |dir: &std::path::Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let (before, after) = (tensors(&source), tensors(saved.path()));
    let (before, after) = (
        safetensors::SafeTensors::deserialize(&before).unwrap(),
        safetensors::SafeTensors::deserialize(&after).unwrap(),
    );
    assert_eq!(before.len(), after.len());
    for (name, tensor) in before.tensors() {
        assert_eq!(after.tensor(&name).unwrap().data(), tensor.data(), "{name}");
    }
}
