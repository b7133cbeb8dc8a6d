//! Networks and tokenizers: config.json, the headers of the weights, the vocabulary, positions, and
//! whether the device takes them.
use super::{Needs, ProblemList, commands, files::not_found};
use crate::{
    config::Recipe,
    devices::{Cpu, DeviceChoice, DeviceJob, with_device},
    hub,
    models::{self, RANDOM_PREFIX},
    pipeline::setup::Setup,
    retriever::declared::EncoderDeclaration,
};
use burn::tensor::DType;
use dgpo_core::tokenizer::Tokenizer;
use dgpo_models::{
    TrainBackend,
    config::{BertConfig, DecoderConfig, ModelClass},
    weights::check_folder,
};
use std::path::{Path, PathBuf};

const STUDENT: &str = "model.student";
const TEACHER: &str = "model.teacher";
const ENCODER: &str = "retriever.encoder";

pub(super) fn check(needs: &Needs, recipe: &Recipe, device: DeviceChoice, found: &mut ProblemList) {
    let model = &recipe.model;
    let sources =
        [(STUDENT, &model.student, needs.student), (TEACHER, &model.teacher, needs.teacher)];
    let mut decoders = Vec::new();
    for (key, source, _) in sources.into_iter().filter(|(.., is_needed)| *is_needed) {
        let config = folder(key, source, found).and_then(|dir| decoder(key, source, &dir, found));
        decoders.extend(config.map(|config| (key, source.as_str(), config)));
    }
    if needs.student {
        check_tokenizer(recipe, &decoders, needs.teacher, found);
    }
    if needs.encodes(recipe) {
        check_encoder(recipe, found);
    }
    if needs.student {
        let dtype = model.dtype.dtype();
        match with_device(device, Fit { decoders: &decoders, dtype }) {
            Ok(problems) => problems.iter().for_each(|(key, text)| found.error(key, text)),
            Err(error) => found.error("--device", &error),
        }
    } else if let Err(error) = with_device(device, Open) {
        found.error("--device", &error);
    }
}

/// The folder of a model, if it is there.
fn folder(key: &'static str, source: &str, found: &mut ProblemList) -> Option<PathBuf> {
    let name = source.strip_prefix(RANDOM_PREFIX).unwrap_or(source);
    match hub::resolve(name) {
        Ok(dir) => Some(dir),
        Err(error) => {
            not_found(key, source, &error, commands::get_model(name), found);
            None
        }
    }
}

/// The shape of a decoder; whether its weights (but for random ones) are there and fit it is
/// looked at.
fn decoder(
    key: &'static str,
    source: &str,
    dir: &Path,
    found: &mut ProblemList,
) -> Option<DecoderConfig> {
    let config = dir.join("config.json");
    if !source.starts_with(RANDOM_PREFIX) {
        // Nothing is computed, so any device will do.
        match check_folder::<Cpu>(dir, &Default::default()) {
            Ok(ModelClass::Decoder) => {}
            Ok(_) => {
                found.push(
                    key,
                    format!("{source} is no decoder"),
                    format!("`dgpo model info {}` shows what it is", commands::word(source)),
                );
                return None;
            }
            Err(error) => {
                found.error(key, &error);
                // Whatever else does not fit it is told at once, if its shape can be read.
                return DecoderConfig::from_file(&config).ok();
            }
        }
    }
    DecoderConfig::from_file(&config).map_err(|error| found.error(key, &error)).ok()
}

/// The tokenizer of the run, and whether every network reads it.
fn check_tokenizer(
    recipe: &Recipe,
    decoders: &[(&'static str, &str, DecoderConfig)],
    has_teacher: bool,
    found: &mut ProblemList,
) {
    let setup =
        Setup::<Cpu> { recipe: recipe.clone(), device: Default::default(), dtype: DType::F32 };
    let (key, source) = match recipe.model.tokenizer.as_str() {
        "" => (STUDENT, recipe.model.student.as_str()),
        name => ("model.tokenizer", name),
    };
    let name = source.strip_prefix(RANDOM_PREFIX).unwrap_or(source);
    let tokenizer = match hub::resolve(name) {
        Ok(_) => setup.tokenizer().map_err(|error| found.error(key, &error)).ok(),
        Err(error) => {
            not_found(key, source, &error, commands::get_model(name), found);
            None
        }
    };
    for (key, source, config) in decoders {
        if let Err(error) = setup.check_shape(source, config, tokenizer.as_ref()) {
            found.error(key, &error);
        }
    }
    if let (Some(tokenizer), true) = (&tokenizer, has_teacher)
        && decoders.iter().any(|(key, ..)| *key == TEACHER)
        && let Err(error) = setup.check_teacher_tokenizer(tokenizer)
    {
        found.error(TEACHER, &error);
    }
}

fn check_encoder(recipe: &Recipe, found: &mut ProblemList) {
    let source = &recipe.retriever.encoder;
    let Some(dir) = folder(ENCODER, source, found) else { return };
    let is_random = source.starts_with(RANDOM_PREFIX);
    match if is_random {
        Ok(ModelClass::Encoder)
    } else {
        check_folder::<Cpu>(&dir, &Default::default())
    } {
        Ok(ModelClass::Encoder) => {}
        Ok(_) => {
            return found.push(
                ENCODER,
                format!("{source} is no BERT encoder"),
                "hf download intfloat/e5-base-v2",
            );
        }
        Err(error) => return found.error(ENCODER, &error),
    }
    if let Err(error) = EncoderDeclaration::read(&dir) {
        found.error(ENCODER, &error);
    }
    let (config, tokenizer) =
        (BertConfig::from_file(&dir.join("config.json")), Tokenizer::from_path(&dir));
    match (&config, &tokenizer) {
        (Ok(config), Ok(tokenizer)) => {
            if let Err(error) = tokenizer.check_fits(config.vocab_size) {
                found.error(ENCODER, &error);
            }
            let (max_tokens, limit) = (recipe.retriever.max_tokens, config.max_position_embeddings);
            if !(2..=limit).contains(&max_tokens) {
                let message = format!("{max_tokens} tokens, and {source} has {limit} positions");
                found.push(
                    "retriever.max_tokens",
                    message,
                    format!("--set retriever.max_tokens={limit}"),
                );
            }
        }
        (Err(error), _) => found.error(ENCODER, error),
        (_, Err(error)) => found.error(ENCODER, error),
    }
}

/// Opens the device and asks whether it computes in the recipe's float type and holds the largest
/// tensor of each network.
struct Fit<'a> {
    decoders: &'a [(&'static str, &'a str, DecoderConfig)],
    dtype: DType,
}
impl DeviceJob for Fit<'_> {
    type Output = Vec<(&'static str, String)>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let mut problems = Vec::new();
        if let Err(error) = models::check_dtype::<B::InnerBackend>(self.dtype, device) {
            problems.push(("model.dtype", error.to_string()));
        }
        for (key, source, config) in self.decoders {
            if let Err(error) =
                models::check_size::<B::InnerBackend>(source, config, self.dtype, device)
            {
                problems.push((key, error.to_string()));
            }
        }
        problems
    }
}

/// Opens the device alone.
struct Open;
impl DeviceJob for Open {
    type Output = ();
    fn run<B: TrainBackend>(self, _: &B::Device) -> Self::Output {}
}
