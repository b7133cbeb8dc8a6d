//! From the names in a recipe to models in memory.
use crate::{
    hub::{self, HubError},
    rng::{Key, Purpose},
    tokenizer::{Tokenizer, TokenizerError},
};
use burn::tensor::DType;
use dgpo_models::{Backend, ModelError, config::DecoderConfig, decoder::Decoder, weights::load_decoder};
use std::path::PathBuf;

/// Weights are drawn, not read: `random:FOLDER` names a folder with a `config.json` alone.
pub const RANDOM_PREFIX: &str = "random:";

/// Why a model named in a recipe could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("model.dtype \"{0}\" is not known; hint: f32, bf16 or f16")]
    Dtype(String),
}

/// The dtype called `name` in a recipe.
/// # Errors
/// If it is none of f32, bf16, f16.
pub fn dtype(name: &str) -> Result<DType, SetupError> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err(SetupError::Dtype(name.to_owned())),
    }
}

/// The local folder behind a model name, with or without the `random:` prefix.
/// # Errors
/// If nothing of that name is found.
pub fn model_dir(source: &str) -> Result<PathBuf, SetupError> {
    Ok(hub::resolve(source.strip_prefix(RANDOM_PREFIX).unwrap_or(source))?)
}

/// Loads (or draws) a decoder.
///
/// # Errors
/// If the folder is not found, the config is not supported, or the weights do not fit it.
pub fn load<B: Backend>(source: &str, seed: u64, dtype: DType, device: &B::Device) -> Result<Decoder<B>, SetupError> {
    let dir = model_dir(source)?;
    if !source.starts_with(RANDOM_PREFIX) {
        return Ok(load_decoder(&dir, dtype, device)?);
    }
    let config = DecoderConfig::from_file(&dir.join("config.json"))?;
    Ok(cast(Decoder::init(&config, Key::new(seed, Purpose::Init).bits(0), device), dtype))
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
    struct Cast(DType);
    impl<B: Backend> burn::module::ModuleMapper<B> for Cast {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<burn::tensor::Tensor<B, D>>,
        ) -> burn::module::Param<burn::tensor::Tensor<B, D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    module.map(&mut Cast(dtype))
}
