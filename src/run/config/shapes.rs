//! The shapes of the networks a recipe names: from config.json where the folder is on this machine,
//! else from the table of published models, so that a plan needs no download.
//!
//! # Source
//! The config.json of each model's page; a test holds the parameters they give equal to the
//! published counts.
use super::{Recipe, RetrieverKind};
use crate::hub;
use dgpo_models::config::{BertConfig, DecoderConfig, Family, RopeScaling};

/// Shapes that a plan counts with, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    pub student: Option<DecoderConfig>,
    pub teacher: Option<DecoderConfig>,
    /// The encoder of the dense retriever.
    pub encoder: Option<BertConfig>,
    /// Passages of the corpus.
    pub n_passages: Option<usize>,
}

impl Shapes {
    /// Finds the shapes of the recipe's networks; passages are counted by whoever reads the corpus.
    /// What cannot be found becomes a note, not an error: a plan can be made anywhere.
    pub fn resolve(recipe: &Recipe) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let model = &recipe.model;
        let student = shape_of(
            "student",
            &model.student,
            DecoderConfig::from_file,
            published_decoder,
            &mut notes,
        );
        let teacher = shape_of(
            "teacher",
            &model.teacher,
            DecoderConfig::from_file,
            published_decoder,
            &mut notes,
        );
        let encoder = match recipe.retriever.kind {
            RetrieverKind::Dense => shape_of(
                "encoder",
                &recipe.retriever.encoder,
                BertConfig::from_file,
                published_encoder,
                &mut notes,
            ),
            _ => None,
        };
        (Self { student, teacher, encoder, n_passages: None }, notes)
    }
}

fn shape_of<C>(
    role: &str,
    name: &str,
    read: impl Fn(&std::path::Path) -> Result<C, dgpo_models::ModelError>,
    published: impl Fn(&str) -> Option<C>,
    notes: &mut Vec<String>,
) -> Option<C> {
    if name.is_empty() {
        return None;
    }
    let folder = name.strip_prefix("random:").unwrap_or(name);
    let why = match hub::resolve(folder) {
        Ok(dir) => match read(&if dir.is_dir() { dir.join("config.json") } else { dir }) {
            Ok(shape) => return Some(shape),
            Err(error) => error.to_string(),
        },
        Err(_) if let Some(shape) = published(folder) => return Some(shape),
        Err(_) => format!("there is no {folder} on this machine"),
    };
    notes.push(format!("the {role}'s shape is unknown, so its memory is not counted: {why}"));
    None
}

/// The shape of a published decoder by its hub name, with or without `@REVISION`: the models of the
/// paper, and what was trained from them under a name this project knows.
pub fn published_decoder(name: &str) -> Option<DecoderConfig> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let (owner, model) = name.split_once('/')?;
    let searcher =
        model.strip_prefix("SearchR1-nq_hotpotqa_train-").filter(|_| owner == "PeterJinGo");
    let size = match (owner, model) {
        ("Qwen", model) => model.strip_suffix("-Instruct").unwrap_or(model),
        ("meta-llama", model) => model.strip_suffix("-Instruct").unwrap_or(model),
        ("omron-sinicx", "Qwen2.5-0.5B-Instruct-kd" | "DGPO-qwen2.5-0.5b") => "Qwen2.5-0.5B",
        ("omron-sinicx", "SearchR1-ppo-qwen2.5-3b-instruct") => "Qwen2.5-3B",
        _ if searcher.is_some_and(|trained| trained.starts_with("qwen2.5-3b-")) => "Qwen2.5-3B",
        _ if searcher.is_some_and(|trained| trained.starts_with("qwen2.5-7b-")) => "Qwen2.5-7B",
        _ => return None,
    };
    match size {
        "Qwen2.5-0.5B" => Some(qwen(24, 896, 4864, (14, 2), 151_936)),
        "Qwen2.5-3B" => Some(qwen(36, 2048, 11_008, (16, 2), 151_936)),
        "Qwen2.5-7B" => {
            Some(DecoderConfig { is_tied: false, ..qwen(28, 3584, 18_944, (28, 4), 152_064) })
        }
        "Llama-3.2-1B" => Some(llama(16, 2048, 8192, 32.0)),
        "Llama-3.1-8B" => Some(DecoderConfig { is_tied: false, ..llama(32, 4096, 14_336, 8.0) }),
        _ => None,
    }
}

fn qwen(
    n_layers: usize,
    width: usize,
    feed_forward: usize,
    (heads, kv_heads): (usize, usize),
    vocab_size: usize,
) -> DecoderConfig {
    DecoderConfig {
        family: Family::Qwen2,
        vocab_size,
        hidden_size: width,
        intermediate_size: feed_forward,
        num_hidden_layers: n_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: width / heads,
        max_position_embeddings: 32_768,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        is_tied: true,
        has_qkv_bias: true,
        initializer_range: 0.02,
        bos_token_id: Some(151_643),
        eos_token_ids: vec![151_645],
    }
}

fn llama(n_layers: usize, width: usize, feed_forward: usize, rope_factor: f64) -> DecoderConfig {
    let original_max_position_embeddings = 8192;
    DecoderConfig {
        family: Family::Llama,
        num_key_value_heads: 8,
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: rope_factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        },
        has_qkv_bias: false,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001, 128_008, 128_009],
        ..qwen(n_layers, width, feed_forward, (32, 8), 128_256)
    }
}

/// The shape of a published encoder by its hub name.
pub fn published_encoder(name: &str) -> Option<BertConfig> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    (name == "intfloat/e5-base-v2").then_some(BertConfig {
        vocab_size: 30_522,
        hidden_size: 768,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        intermediate_size: 3072,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        initializer_range: 0.02,
        pad_token_id: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_decoders_have_the_published_numbers_of_parameters() {
        // As the safetensors of each model's page count them.
        for (name, n_parameters) in [
            ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
            ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
            ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
            ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
            ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ] {
            assert_eq!(published_decoder(name).unwrap().n_parameters(), n_parameters, "{name}");
        }
    }

    #[test]
    fn e5_has_its_published_parameters_but_for_the_pooler_that_is_never_read() {
        // A dense layer of 768 to 768 with its bias.
        let pooler = 768 * 768 + 768;
        assert_eq!(
            published_encoder("intfloat/e5-base-v2").unwrap().n_parameters() + pooler,
            109_482_240
        );
    }

    #[test]
    fn what_was_trained_from_a_published_model_has_its_shape() {
        let base = |name: &str| published_decoder(name).unwrap();
        for (trained, from) in [
            ("omron-sinicx/DGPO-qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
            ("omron-sinicx/Qwen2.5-0.5B-Instruct-kd", "Qwen/Qwen2.5-0.5B"),
            ("omron-sinicx/SearchR1-ppo-qwen2.5-3b-instruct", "Qwen/Qwen2.5-3B-Instruct"),
            ("PeterJinGo/SearchR1-nq_hotpotqa_train-qwen2.5-7b-em-ppo", "Qwen/Qwen2.5-7B"),
            ("Qwen/Qwen2.5-3B@main", "Qwen/Qwen2.5-3B-Instruct"),
        ] {
            assert_eq!(base(trained), base(from), "{trained}");
        }
        for unknown in
            ["Qwen/Qwen2.5-14B-Instruct", "somebody/Qwen2.5-3B-Instruct", "Qwen2.5-3B", ""]
        {
            assert!(published_decoder(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn every_model_of_the_papers_recipes_is_known_without_a_download() {
        for world in super::super::library::WORLDS {
            let recipe = super::super::load(world, &[]).unwrap().recipe;
            if world.starts_with("paper/") {
                assert!(published_decoder(&recipe.model.student).is_some(), "{world}");
                assert!(published_decoder(&recipe.model.teacher).is_some(), "{world}");
                assert!(published_encoder(&recipe.retriever.encoder).is_some(), "{world}");
            }
        }
    }
}
