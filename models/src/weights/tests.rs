//! Strictness, layout and round trips on a module small enough to write its file by hand. `Toy` has
//! every kind of path: nested, in a Vec, transposed, a bias, a norm, an optional head.

use super::*;
use crate::{TensorProblem, init::NewParameters};
use burn::{
    backend::{Autodiff, Flex},
    nn::{Embedding, Linear},
    tensor::{Tensor, backend::AutodiffBackend},
};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;

mod strict;

#[derive(Module, Debug)]
struct Toy<B: Backend> {
    model: ToyTrunk<B>,
    lm_head: Option<Linear<B>>,
}

#[derive(Module, Debug)]
struct ToyTrunk<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<ToyLayer<B>>,
    norm: burn::nn::LayerNorm<B>,
}

#[derive(Module, Debug)]
struct ToyLayer<B: Backend> {
    q_proj: Linear<B>,
}

impl<B: Backend> Toy<B> {
    fn new(is_tied: bool) -> Self {
        let device = Default::default();
        let mut new = NewParameters::new(0, 1.0, &device);
        let model = ToyTrunk {
            embed_tokens: new.embedding(4, 2),
            layers: (0..2).map(|_| ToyLayer { q_proj: new.linear(2, 3, true) }).collect(),
            norm: burn::nn::LayerNormConfig::new(2).init(&device),
        };
        Self { model, lm_head: (!is_tied).then(|| new.linear(2, 4, false)) }
    }
}

/// (name, shape, values); element i of each tensor is 100 * tensor + i.
type Tensors = Vec<(&'static str, Vec<usize>, Vec<f32>)>;

fn tied_tensors() -> Tensors {
    let shapes: [(&str, Vec<usize>); 7] = [
        ("model.embed_tokens.weight", vec![4, 2]),
        ("model.layers.0.q_proj.weight", vec![3, 2]),
        ("model.layers.0.q_proj.bias", vec![3]),
        ("model.layers.1.q_proj.weight", vec![3, 2]),
        ("model.layers.1.q_proj.bias", vec![3]),
        ("model.norm.weight", vec![2]),
        ("model.norm.bias", vec![2]),
    ];
    let values = |i: usize, shape: &[usize]| {
        (0..shape.iter().product()).map(|j: usize| (100 * i + j) as f32).collect()
    };
    shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| (name, shape.clone(), values(i, &shape)))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn folder(tensors: &Tensors) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

fn load<B: Backend>(dir: &Path, is_tied: bool, dtype: DType) -> Result<Toy<B>, ModelError> {
    load_into(Toy::new(is_tied), &Checkpoint::open(dir)?, &DECODER, dtype)
}

fn problems(tensors: &Tensors) -> Vec<TensorProblem> {
    match load::<Flex>(folder(tensors).path(), true, DType::F32).unwrap_err() {
        ModelError::Tensors { problems, .. } => problems,
        other => panic!("{other}"),
    }
}

fn open_error(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string()
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap()
}

#[test]
fn parameter_names_are_those_of_hugging_face() {
    let names: Vec<String> = parameter_names::<Flex, _>(&Toy::<Flex>::new(false))
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    let mut expected: Vec<&str> = tied_tensors().iter().map(|(name, _, _)| *name).collect();
    expected.push("lm_head.weight");
    assert_eq!(names, expected);
}

#[test]
fn a_linear_weight_is_transposed_and_an_embedding_is_not() {
    let toy = load::<Flex>(folder(&tied_tensors()).path(), true, DType::F32).unwrap();
    assert_eq!(
        values(toy.model.embed_tokens.weight.val()),
        (0..8).map(|i| i as f32).collect::<Vec<_>>()
    );
    // [3, 2] row-major 100..106 read by columns.
    assert_eq!(
        values(toy.model.layers[0].q_proj.weight.val()),
        [100.0, 102.0, 104.0, 101.0, 103.0, 105.0]
    );
    assert_eq!(toy.model.layers[0].q_proj.weight.val().dims(), [2, 3]);
    assert_eq!(values(toy.model.norm.beta.unwrap().val()), [600.0, 601.0]);
}

#[test]
fn ids_and_gradients_survive_loading() {
    type Train = Autodiff<Flex>;
    let dir = folder(&tied_tensors());
    let toy = Toy::<Train>::new(true);
    let before = parameter_names::<Train, _>(&toy);
    let loaded =
        load_into(toy, &Checkpoint::open(dir.path()).unwrap(), &DECODER, DType::F32).unwrap();
    assert_eq!(parameter_names::<Train, _>(&loaded), before);
    let weight = loaded.model.layers[1].q_proj.weight.val();
    assert!(weight.is_require_grad());
    let grads = weight.clone().mul_scalar(3.0).sum().backward();
    let grad: Tensor<<Train as AutodiffBackend>::InnerBackend, 2> = weight.grad(&grads).unwrap();
    assert_eq!(values(grad), [3.0; 6]);
}

#[test]
fn every_problem_is_listed_at_once() {
    let mut tensors = tied_tensors();
    tensors.remove(6);
    tensors[1].1 = vec![2, 3];
    tensors.push(("model.layers.2.q_proj.bias", vec![1], vec![0.0]));
    let expected = [
        TensorProblem::Shape {
            name: "model.layers.0.q_proj.weight".into(),
            found: vec![2, 3],
            expected: vec![3, 2],
        },
        TensorProblem::Missing { name: "model.norm.bias".into(), shape: vec![2] },
        TensorProblem::Extra { name: "model.layers.2.q_proj.bias".into(), shape: vec![1] },
    ];
    assert_eq!(problems(&tensors), expected);
    let error = load::<Flex>(folder(&tensors).path(), true, DType::F32).unwrap_err().to_string();
    assert!(
        error.contains("3 problems") && error.contains("\n  missing: model.norm.bias [2]"),
        "{error}"
    );
}

#[test]
fn an_integer_weight_is_an_unreadable_dtype() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = [0u8; 8];
    let view = TensorView::new(Dtype::I64, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([("a", view)], None, &dir.path().join("x.safetensors")).unwrap();
    let error = load_tensors(&dir.path().join("x.safetensors")).unwrap_err().to_string();
    assert!(error.contains("unreadable dtype: a is I64"), "{error}");
}

#[test]
fn names_without_the_model_prefix_are_understood() {
    let mut tensors = tied_tensors();
    for (name, _, _) in &mut tensors {
        *name = name.strip_prefix("model.").unwrap();
    }
    let toy = load::<Flex>(folder(&tensors).path(), true, DType::F32).unwrap();
    assert_eq!(
        values(toy.model.layers[1].q_proj.bias.as_ref().unwrap().val()),
        [400.0, 401.0, 402.0]
    );
}

#[test]
fn rotary_tables_are_ignored() {
    let mut tensors = tied_tensors();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq", vec![2], vec![1.0, 0.1]));
    load::<Flex>(folder(&tensors).path(), true, DType::F32).unwrap();
}

#[test]
fn a_tied_head_in_the_file_must_be_the_embedding() {
    let mut tensors = tied_tensors();
    tensors.push(("lm_head.weight", vec![4, 2], tensors[0].2.clone()));
    load::<Flex>(folder(&tensors).path(), true, DType::F32).unwrap();
    tensors[7].2[3] += 1.0;
    let expected = TensorProblem::HeadNotTied {
        name: "lm_head.weight".into(),
        embedding: "model.embed_tokens.weight".into(),
    };
    assert_eq!(problems(&tensors), [expected]);
    // Untied, the same file is what is asked for; without the head it is not.
    load::<Flex>(folder(&tensors).path(), false, DType::F32).unwrap();
    tensors.pop();
    let error = load::<Flex>(folder(&tensors).path(), false, DType::F32).unwrap_err().to_string();
    assert!(error.contains("missing: lm_head.weight [4, 2]"), "{error}");
}

#[test]
fn a_truncated_file_names_both_lengths() {
    let dir = folder(&tied_tensors());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let error = open_error(dir.path());
    let expected = format!(
        "the header says {} bytes, the file has {}; hint: download it again",
        bytes.len(),
        bytes.len() - 10
    );
    assert!(error.contains(&expected) && error.contains("model.safetensors"), "{error}");
    fs::write(&path, &bytes[..100]).unwrap();
    assert!(open_error(dir.path()).contains("the file has 100 in all"));
    fs::write(&path, &bytes[..3]).unwrap();
    assert!(open_error(dir.path()).contains("only 3 bytes"));
}

#[test]
fn a_corrupt_header_is_not_believed() {
    let dir = folder(&tied_tensors());
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[9] = b'!';
    fs::write(&path, &bytes).unwrap();
    assert!(open_error(dir.path()).contains("the header is malformed"));
    bytes[..8].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    assert!(open_error(dir.path()).contains("not a safetensors file"));
}

#[test]
fn a_git_lfs_pointer_has_its_own_hint() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("model.safetensors"),
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    )
    .unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("git-lfs pointer") && error.contains("git lfs pull"), "{error}");
}

#[test]
fn a_folder_without_safetensors_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open_error(dir.path()).contains("must hold model.safetensors"));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(open_error(dir.path()).contains("convert pytorch_model.bin"));
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    save_module(&Toy::<Flex>::new(true), dir.path(), None, &DECODER, 40).unwrap();
    let shard = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("model-00002"));
    let shard = shard.last().unwrap();
    fs::remove_file(dir.path().join(&shard)).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains(&shard) && error.contains("download the missing files"), "{error}");
}

#[test]
fn an_index_that_leaves_the_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "../secret.safetensors"}}"#,
    )
    .unwrap();
    assert!(open_error(dir.path()).contains("file names of this folder"));
}

#[test]
fn saving_and_loading_is_the_identity_in_f32() {
    let dir = folder(&tied_tensors());
    let toy = load::<Flex>(dir.path(), true, DType::F32).unwrap();
    let saved = tempfile::tempdir().unwrap();
    save_module(&toy, saved.path(), None, &DECODER, SHARD_SIZE_BYTES).unwrap();
    let bytes = fs::read(saved.path().join("model.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 7);
    for (name, shape, values) in tied_tensors() {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(
            (tensor.shape(), tensor.data()),
            (shape.as_slice(), bytemuck::cast_slice(&values)),
            "{name}"
        );
    }
}

#[test]
fn equal_models_give_equal_bytes() {
    let save = || {
        let dir = tempfile::tempdir().unwrap();
        save_module(
            &Toy::<Flex>::new(false),
            dir.path(),
            Some(DType::BF16),
            &DECODER,
            SHARD_SIZE_BYTES,
        )
        .unwrap();
        fs::read(dir.path().join("model.safetensors")).unwrap()
    };
    assert_eq!(save(), save());
}

#[test]
fn a_bf16_save_rounds_each_element_to_nearest_even() {
    let toy = Toy::<Flex>::new(true);
    let dir = tempfile::tempdir().unwrap();
    save_module(&toy, dir.path(), Some(DType::BF16), &DECODER, SHARD_SIZE_BYTES).unwrap();
    let loaded = load::<Flex>(dir.path(), true, DType::F32).unwrap();
    let rounded: Vec<f32> = values(toy.model.layers[0].q_proj.weight.val())
        .iter()
        .map(|x| bf16::from_f32(*x).to_f32())
        .collect();
    assert_eq!(values(loaded.model.layers[0].q_proj.weight.val()), rounded);
    // A parameter's dtype is the one asked for, whatever the file's.
    assert_eq!(loaded.model.norm.gamma.val().dtype(), DType::F32);
    assert_eq!(
        load::<Flex>(dir.path(), true, DType::BF16).unwrap().model.norm.gamma.val().dtype(),
        DType::BF16
    );
}

#[test]
fn shards_hold_the_same_model_and_replace_an_older_save() {
    let toy = Toy::<Flex>::new(false);
    let dir = tempfile::tempdir().unwrap();
    save_module(&toy, dir.path(), None, &DECODER, SHARD_SIZE_BYTES).unwrap();
    save_module(&toy, dir.path(), None, &DECODER, 40).unwrap();
    assert!(!dir.path().join("model.safetensors").exists());
    let index: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap(),
    )
    .unwrap();
    let n_parameters: usize = parameter_names::<Flex, _>(&toy).len();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), n_parameters);
    // 8 + 2 (6 + 3) + 2 + 2 + 8 elements of 4 bytes.
    assert_eq!(index["metadata"]["total_size"], 4 * 38);
    let loaded = load::<Flex>(dir.path(), false, DType::F32).unwrap();
    assert_eq!(
        values(loaded.model.layers[1].q_proj.weight.val()),
        values(toy.model.layers[1].q_proj.weight.val())
    );
    assert_eq!(
        values(loaded.lm_head.unwrap().weight.val()),
        values(toy.lm_head.clone().unwrap().weight.val())
    );
    // Back to one file: no shard stays behind.
    save_module(&toy, dir.path(), None, &DECODER, SHARD_SIZE_BYTES).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn named_arrays_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimizer.safetensors");
    let tensors = vec![
        NamedTensor {
            name: "a.exp_avg".into(),
            shape: vec![2, 3],
            values: vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5, f32::MAX, 1e-40],
        },
        NamedTensor { name: "b".into(), shape: vec![0], values: vec![] },
        NamedTensor { name: "c".into(), shape: vec![], values: vec![7.0] },
    ];
    save_tensors(&path, &tensors).unwrap();
    assert_eq!(load_tensors(&path).unwrap(), tensors);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays behind");
}

#[test]
fn a_failed_save_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no-such-folder").join("x.safetensors");
    let error = save_tensors(&path, &[]).unwrap_err().to_string();
    assert!(error.contains("x.safetensors") && error.contains("hint:"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn oracle(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models")).join(name)
}

/// Name -> (dtype, shape, bytes) of every tensor of a folder.
fn stored(dir: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let mut tensors = Vec::new();
    visit_tensors(dir, |t| {
        tensors.push((t.name.to_owned(), t.dtype.to_owned(), t.shape.to_vec(), t.bytes.to_vec()))
    })
    .unwrap();
    tensors
}

#[test]
fn every_oracle_decoder_survives_loading_and_saving_bit_for_bit() {
    for (name, dtype) in [
        ("llama3_tied", DType::F32),
        ("llama3_untied_v5cfg", DType::F32),
        ("qwen2_teacher", DType::F32),
        ("qwen2_tied", DType::F32),
        ("qwen2_tied_bf16", DType::BF16),
        ("qwen2_untied_sharded", DType::F32),
    ] {
        let model = load_decoder::<Flex>(&oracle(name), dtype, &Default::default()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        save_decoder(&model, saved.path(), None).unwrap();
        assert_eq!(stored(saved.path()), stored(&oracle(name)), "{name}");
        assert_eq!(
            DecoderConfig::from_file(&saved.path().join("config.json")).unwrap(),
            model.config(),
            "{name}"
        );
        let n_stored: usize = stored(saved.path())
            .iter()
            .map(|(_, _, shape, _)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(n_stored, model.config().n_parameters(), "{name}");
    }
}

#[test]
fn a_bf16_checkpoint_becomes_f32_exactly_and_back() {
    let source = oracle("qwen2_tied_bf16");
    let model = load_decoder::<Flex>(&source, DType::F32, &Default::default()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    save_decoder(&model, saved.path(), Some(DType::BF16)).unwrap();
    assert_eq!(stored(saved.path()), stored(&source));
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(saved.path().join("config.json")).unwrap())
            .unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
}

#[test]
fn a_critic_is_stored_as_a_token_classifier_without_the_output_head() {
    for name in ["qwen2_tied", "llama3_untied_v5cfg"] {
        let decoder = load_decoder::<Flex>(&oracle(name), DType::F32, &Default::default()).unwrap();
        let critic = Critic::from_decoder(&decoder, 1);
        let saved = tempfile::tempdir().unwrap();
        save_critic(&critic, saved.path(), None).unwrap();
        let tensors = stored(saved.path());
        let trunk: Vec<_> =
            tensors.iter().filter(|(name, ..)| !name.starts_with("score.")).cloned().collect();
        let expected: Vec<_> = stored(&oracle(name))
            .into_iter()
            .filter(|(name, ..)| name != "lm_head.weight")
            .collect();
        assert_eq!(trunk, expected, "{name}");
        let head: Vec<_> = tensors
            .iter()
            .filter(|(name, ..)| name.starts_with("score."))
            .map(|(name, _, shape, _)| (name.as_str(), shape.clone()))
            .collect();
        assert_eq!(
            head,
            [("score.bias", vec![1]), ("score.weight", vec![1, critic.trunk.config().hidden_size])]
        );
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(saved.path().join("config.json")).unwrap())
                .unwrap();
        let class = config["architectures"][0].as_str().unwrap();
        assert!(
            class.ends_with("ForTokenClassification")
                && config["id2label"].as_object().unwrap().len() == 1,
            "{config}"
        );
        let loaded = load_critic::<Flex>(saved.path(), DType::F32, &Default::default()).unwrap();
        assert_eq!(values(loaded.score.weight.val()), values(critic.score.weight.val()));
        // A policy is not a critic: its file has no value head.
        let error = load_critic::<Flex>(&oracle(name), DType::F32, &Default::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("missing: score.weight"), "{error}");
    }
}

#[test]
fn side_files_are_copied_and_the_original_config_only_onto_its_own_model() {
    let oracle = oracle("qwen2_tied");
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::copy(oracle.join("config.json"), source.path().join("config.json")).unwrap();
    fs::write(source.path().join("tokenizer.json"), "{}").unwrap();
    let config = DecoderConfig::from_file(&oracle.join("config.json")).unwrap();
    fs::write(target.path().join("config.json"), config.to_json()).unwrap();
    assert_eq!(copy_side_files(source.path(), target.path()).unwrap().len(), 2);
    let read = |dir: &Path| fs::read(dir.join("config.json")).unwrap();
    assert_eq!(read(target.path()), read(source.path()));
    // A critic of that decoder has the same numbers and another class.
    fs::write(
        target.path().join("config.json"),
        config.json_for("ForTokenClassification", DType::F32),
    )
    .unwrap();
    assert_eq!(copy_side_files(source.path(), target.path()).unwrap().len(), 1);
    let other = DecoderConfig { num_hidden_layers: 1, ..config };
    fs::write(target.path().join("config.json"), other.to_json()).unwrap();
    assert_eq!(
        copy_side_files(source.path(), target.path()).unwrap(),
        [target.path().join("tokenizer.json")]
    );
    assert_eq!(DecoderConfig::from_file(&target.path().join("config.json")).unwrap(), other);
}

#[test]
fn a_copied_config_names_the_type_of_the_weights_beside_it_and_is_otherwise_the_original() {
    for (name, key, dtype, stored) in [
        ("qwen2_tied_bf16", "torch_dtype", DType::F32, "float32"),
        ("qwen2_tied", "torch_dtype", DType::BF16, "bfloat16"),
        ("llama3_untied_v5cfg", "dtype", DType::F16, "float16"),
    ] {
        let model = load_decoder::<Flex>(&oracle(name), DType::F32, &Default::default()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        save_decoder(&model, saved.path(), Some(dtype)).unwrap();
        copy_side_files(&oracle(name), saved.path()).unwrap();
        let read = |dir: &Path| fs::read_to_string(dir.join("config.json")).unwrap();
        let original: serde_json::Value = serde_json::from_str(&read(&oracle(name))).unwrap();
        let named = original[key].as_str().unwrap();
        let expected = read(&oracle(name))
            .replace(&format!("\"{key}\": \"{named}\""), &format!("\"{key}\": \"{stored}\""));
        assert_ne!(named, stored, "{name}");
        assert_eq!(read(saved.path()), expected, "{name}");
        assert_eq!(
            DecoderConfig::from_file(&saved.path().join("config.json")).unwrap(),
            model.config(),
            "{name}"
        );
    }
}

#[test]
fn a_bert_checkpoint_survives_with_or_without_its_prefix() {
    let oracle = oracle("bert_e5");
    let model = load_bert::<Flex>(&oracle, DType::F32, &Default::default()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    save_bert(&model, saved.path(), None).unwrap();
    let original = load_tensors(&oracle.join("model.safetensors")).unwrap();
    let path = saved.path().join("model.safetensors");
    let mut written = load_tensors(&path).unwrap();
    // The pooler is not part of the encoder.
    let expected: Vec<NamedTensor> =
        original.into_iter().filter(|tensor| !tensor.name.starts_with("pooler.")).collect();
    assert_eq!(written, expected);
    assert_eq!(BertConfig::from_file(&saved.path().join("config.json")).unwrap(), model.config());
    for tensor in &mut written {
        tensor.name = format!("bert.{}", tensor.name);
    }
    written.push(NamedTensor {
        name: "bert.embeddings.position_ids".into(),
        shape: vec![1],
        values: vec![0.0],
    });
    written.push(NamedTensor {
        name: "bert.pooler.dense.bias".into(),
        shape: vec![1],
        values: vec![0.0],
    });
    save_tensors(&path, &written).unwrap();
    load_bert::<Flex>(saved.path(), DType::F32, &Default::default()).unwrap();
}
