//! Reading the fixtures of tests/oracles/models, and walking over a model's parameters by their Hugging Face names.
use burn::{
    backend::{Autodiff, Flex},
    module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Tensor, TensorData, backend::AutodiffBackend},
};
use dgpo_models::{
    Backend,
    config::{DecoderConfig, Family, RopeScaling},
    decoder::Decoder,
};
use safetensors::{Dtype, SafeTensors};
use std::{collections::BTreeMap, path::PathBuf};

/// One folder of tests/oracles/models.
pub struct Oracle {
    pub config: DecoderConfig,
    pub json: serde_json::Value,
    reference: Vec<u8>,
    weights: Vec<Vec<u8>>,
}

impl Oracle {
    pub fn open(name: &str) -> Self {
        let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models")).join(name);
        let read = |file: &str| std::fs::read(dir.join(file)).unwrap();
        let mut weight_files: Vec<PathBuf> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().ends_with(".safetensors") && !path.ends_with("reference.safetensors"))
            .collect();
        weight_files.sort();
        Self {
            config: config(&serde_json::from_slice(&read("config.json")).unwrap()),
            json: serde_json::from_slice(&read("reference.json")).unwrap(),
            reference: read("reference.safetensors"),
            weights: weight_files.iter().map(|path| std::fs::read(path).unwrap()).collect(),
        }
    }

    pub fn decoder<B: Backend>(&self) -> Decoder<B> {
        let mut weights = BTreeMap::new();
        for file in &self.weights {
            for (name, view) in SafeTensors::deserialize(file).unwrap().iter() {
                weights.insert(name.to_owned(), (floats(view.dtype(), view.data()), view.shape().to_vec()));
            }
        }
        let mut loader = Loader { weights, path: Path::default() };
        let model = Decoder::init(&self.config, 0, &Default::default()).map(&mut loader);
        assert!(loader.weights.is_empty(), "left over: {:?}", loader.weights.keys());
        model
    }

    pub fn keys(&self) -> impl Iterator<Item = String> {
        self.tensors().names().into_iter().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    pub fn shape(&self, key: &str) -> Vec<usize> {
        self.tensors().tensor(key).unwrap().shape().to_vec()
    }

    pub fn floats(&self, key: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor(key).unwrap();
        floats(view.dtype(), view.data())
    }

    pub fn ints(&self, key: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let view = tensors.tensor(key).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.reference).unwrap()
    }
}

fn floats(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|bytes| half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32()).collect(),
        other => panic!("{other:?} does not occur in the fixtures"),
    }
}

/// Only what the fixtures hold; the crate's own reader is tested elsewhere.
fn config(json: &serde_json::Value) -> DecoderConfig {
    let int = |key: &str| json[key].as_u64().unwrap() as usize;
    let parameters = &json["rope_parameters"];
    let scaling = if parameters.is_object() { parameters } else { &json["rope_scaling"] };
    let number = |key: &str| scaling[key].as_f64().unwrap();
    let is_qwen = json["model_type"] == "qwen2";
    DecoderConfig {
        family: if is_qwen { Family::Qwen2 } else { Family::Llama },
        vocab_size: int("vocab_size"),
        hidden_size: int("hidden_size"),
        intermediate_size: int("intermediate_size"),
        num_hidden_layers: int("num_hidden_layers"),
        num_attention_heads: int("num_attention_heads"),
        num_key_value_heads: int("num_key_value_heads"),
        head_dim: json["head_dim"].as_u64().map_or(int("hidden_size") / int("num_attention_heads"), |d| d as usize),
        max_position_embeddings: int("max_position_embeddings"),
        rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: json["rope_theta"].as_f64().or(parameters["rope_theta"].as_f64()).unwrap(),
        rope_scaling: if scaling["rope_type"] == "llama3" {
            RopeScaling::Llama3 {
                factor: number("factor"),
                low_freq_factor: number("low_freq_factor"),
                high_freq_factor: number("high_freq_factor"),
                original_max_position_embeddings: number("original_max_position_embeddings") as usize,
            }
        } else {
            RopeScaling::None
        },
        is_tied: json["tie_word_embeddings"].as_bool().unwrap(),
        has_qkv_bias: is_qwen,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

#[derive(Default)]
struct Path {
    parts: Vec<String>,
    containers: Vec<String>,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.parts.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.parts.pop();
        self.containers.pop();
    }

    fn name(&self) -> String {
        self.parts.join(".")
    }

    /// `Linear` keeps its matrix as [in, out], Hugging Face as [out, in].
    fn is_transposed(&self, n_dims: usize) -> bool {
        n_dims == 2 && self.containers.last().is_some_and(|container| container.ends_with("Linear"))
    }
}

struct Loader {
    weights: BTreeMap<String, (Vec<f32>, Vec<usize>)>,
    path: Path,
}

impl<B: Backend> ModuleMapper<B> for Loader {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.name();
        let (values, shape) = self.weights.remove(&name).unwrap_or_else(|| panic!("{name} is not in the file"));
        let tensor = Tensor::<B, D>::from_data(TensorData::new(values, shape), &Default::default());
        let tensor = if self.path.is_transposed(D) { tensor.swap_dims(0, 1) } else { tensor };
        assert_eq!(tensor.dims(), param.val().dims(), "{name}");
        Param::from_tensor(tensor)
    }
}

/// The model with all parameters in another dtype.
pub fn cast<B: Backend>(model: Decoder<B>, dtype: DType) -> Decoder<B> {
    struct Cast(DType);
    impl<B: Backend> ModuleMapper<B> for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    model.map(&mut Cast(dtype))
}

/// The gradient of every parameter that has one, by Hugging Face name and in Hugging Face layout.
pub fn gradients(model: &Decoder<Autodiff<Flex>>, grads: &<Autodiff<Flex> as AutodiffBackend>::Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collector<'a> {
        grads: &'a <Autodiff<Flex> as AutodiffBackend>::Gradients,
        path: Path,
        out: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor<Autodiff<Flex>> for Collector<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<Flex>, D>>) {
            if let Some(grad) = param.val().grad(self.grads) {
                let grad = if self.path.is_transposed(D) { grad.swap_dims(0, 1) } else { grad };
                self.out.insert(self.path.name(), f32s(grad));
            }
        }
    }
    let mut collector = Collector { grads, path: Path::default(), out: BTreeMap::new() };
    model.visit(&mut collector);
    // The copy for inference must be of the same shape and keep the configuration.
    assert_eq!(model.valid().config(), model.config());
    collector.out
}

pub fn f32s<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "{what} [{i}]: {got} instead of {want}");
    }
}
