//! Reading the fixtures of tests/oracles/models.
use burn::{
    backend::{Autodiff, Flex},
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{DType, Tensor, backend::AutodiffBackend},
};
use dgpo_models::{
    Backend,
    config::DecoderConfig,
    decoder::Decoder,
    weights::{load_decoder, parameter_names},
};
use safetensors::{Dtype, SafeTensors};
use std::{collections::BTreeMap, path::PathBuf};

/// One folder of tests/oracles/models.
pub(crate) struct Oracle {
    pub config: DecoderConfig,
    pub json: serde_json::Value,
    reference: Vec<u8>,
    dir: PathBuf,
}

impl Oracle {
    pub(crate) fn open(name: &str) -> Self {
        let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracles/models"))
            .join(name);
        let read = |file: &str| std::fs::read(dir.join(file)).unwrap();
        Self {
            config: DecoderConfig::from_file(&dir.join("config.json")).unwrap(),
            json: serde_json::from_slice(&read("reference.json")).unwrap(),
            reference: read("reference.safetensors"),
            dir,
        }
    }

    /// In f32, whatever the files hold.
    pub(crate) fn decoder<B: Backend>(&self) -> Decoder<B> {
        load_decoder(&self.dir, DType::F32, &Default::default()).unwrap()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = String> {
        self.tensors().names().into_iter().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    pub(crate) fn shape(&self, key: &str) -> Vec<usize> {
        self.tensors().tensor(key).unwrap().shape().to_vec()
    }

    pub(crate) fn floats(&self, key: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor(key).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        view.data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    pub(crate) fn ints(&self, key: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let view = tensors.tensor(key).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        view.data()
            .chunks_exact(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.reference).unwrap()
    }
}

/// The model with all parameters in another dtype.
pub(crate) fn cast<B: Backend>(model: Decoder<B>, dtype: DType) -> Decoder<B> {
    struct Cast(DType);
    impl<B: Backend> ModuleMapper<B> for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    model.map(&mut Cast(dtype))
}

/// The gradient of every parameter that has one, by Hugging Face name and in Hugging Face layout.
pub(crate) fn gradients(
    model: &Decoder<Autodiff<Flex>>,
    grads: &<Autodiff<Flex> as AutodiffBackend>::Gradients,
) -> BTreeMap<String, Vec<f32>> {
    struct Collector<'a> {
        grads: &'a <Autodiff<Flex> as AutodiffBackend>::Gradients,
        names: BTreeMap<ParamId, String>,
        out: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor<Autodiff<Flex>> for Collector<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<Flex>, D>>) {
            if let Some(grad) = param.val().grad(self.grads) {
                let name = self.names[&param.id].clone();
                // `Linear` keeps its matrix as [in, out], Hugging Face as [out, in].
                let is_transposed = D == 2 && name != "model.embed_tokens.weight";
                self.out
                    .insert(name, f32s(if is_transposed { grad.swap_dims(0, 1) } else { grad }));
            }
        }
    }
    let mut collector = Collector {
        grads,
        names: parameter_names(model).into_iter().collect(),
        out: BTreeMap::new(),
    };
    model.visit(&mut collector);
    collector.out
}

pub(crate) fn f32s<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

pub(crate) fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "{what} [{i}]: {got} instead of {want}");
    }
}
