//! From the names in a recipe to models in memory.
use crate::config::FloatType;
use crate::hub::{self, HubError};
use burn::tensor::DType;
use dgpo_core::{
    rng::{Key, Purpose},
    tokenizer::{Tokenizer, TokenizerError},
};
use dgpo_models::{
    Backend, ModelError, config::DecoderConfig, decoder::Decoder, weights::load_decoder,
};
use std::path::PathBuf;

/// Prefix of models whose weights are drawn, not read: `random:FOLDER` names a folder with a
/// `config.json` alone.
pub const RANDOM_PREFIX: &str = "random:";

/// Errors of setting up a model that a recipe names.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(
        "{model}: its weights have a tensor of {bytes} bytes, and the device holds tensors up to \
         {max}; hint: a smaller model or float type, another device, or --device cpu"
    )]
    TensorTooLarge { model: String, bytes: u64, max: u64 },
    #[error(
        "the device does not compute in {wanted}, but in {computed}; hint: --set \
         model.dtype={first}"
    )]
    DtypeOfDevice { wanted: &'static str, computed: String, first: &'static str },
}

/// The float types that a device computes in, by their names in a recipe.
pub fn dtypes_of<B: Backend>(device: &B::Device) -> Vec<&'static str> {
    let types = FloatType::ALL.iter().filter(|choice| B::supports_dtype(device, choice.dtype()));
    types.map(|choice| choice.as_str()).collect()
}

/// Checks that a device computes in a type; otherwise the first matrix product would fail.
/// # Errors
/// If it does not; the error names the types that it computes in.
pub fn check_dtype<B: Backend>(dtype: DType, device: &B::Device) -> Result<(), SetupError> {
    if B::supports_dtype(device, dtype) {
        return Ok(());
    }
    let computed = dtypes_of::<B>(device);
    Err(SetupError::DtypeOfDevice {
        wanted: dtype.name(),
        first: computed.first().copied().unwrap_or("f32"),
        computed: computed.join(" and "),
    })
}

/// The local folder of a model name, with or without the `random:` prefix.
/// # Errors
/// If nothing of that name is found.
pub fn model_dir(source: &str) -> Result<PathBuf, SetupError> {
    Ok(hub::resolve(source.strip_prefix(RANDOM_PREFIX).unwrap_or(source))?)
}

/// Loads (or draws) a decoder.
///
/// # Errors
/// If the folder is not found, the config is not supported, the weights do not fit it, or the
/// device cannot hold one of them.
pub fn load<B: Backend>(
    source: &str,
    seed: u64,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>, SetupError> {
    let dir = model_dir(source)?;
    let config = DecoderConfig::from_file(&dir.join("config.json"))?;
    check_size::<B>(source, &config, dtype, device)?;
    if !source.starts_with(RANDOM_PREFIX) {
        return Ok(load_decoder(&dir, dtype, device)?);
    }
    Ok(cast(Decoder::init(&config, Key::new(seed, Purpose::Init).bits(0), device), dtype))
}

/// Checks that the device holds the largest tensor of a network.
/// # Errors
/// If it does not.
pub fn check_size<B: Backend>(
    source: &str,
    config: &DecoderConfig,
    dtype: DType,
    device: &B::Device,
) -> Result<(), SetupError> {
    let bytes = (config.hidden_size
        * config.vocab_size.max(config.intermediate_size)
        * dtype.size()) as u64;
    match B::max_tensor_bytes(device).filter(|&max| bytes > max) {
        Some(max) => Err(SetupError::TensorTooLarge { model: source.to_owned(), bytes, max }),
        None => Ok(()),
    }
}

/// The tokenizer of a run: the named one, or the student's own.
/// # Errors
/// If there is none or it does not load.
pub fn load_tokenizer(name: &str, student: &str) -> Result<Tokenizer, SetupError> {
    let dir = if name.is_empty() { model_dir(student)? } else { hub::resolve(name)? };
    Ok(Tokenizer::from_path(&dir)?)
}

/// Converts every float parameter of a module.
pub fn cast<B: Backend, M: burn::module::Module<B>>(module: M, dtype: DType) -> M {
    struct ToDtype(DType);
    impl<B: Backend> burn::module::ModuleMapper<B> for ToDtype {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<burn::tensor::Tensor<B, D>>,
        ) -> burn::module::Param<burn::tensor::Tensor<B, D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    module.map(&mut ToDtype(dtype))
}
