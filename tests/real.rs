//! Real data: genuine weights, tokenizers, questions, passages and agent episodes. They lie outside
//! the repository, in the folder `DGPO_DATA_DIR`; without it these tests have nothing to check,
//! unless `DGPO_REQUIRE_DATA=1` demands it.
use crate::support::{World, repository};
use burn::tensor::{DType, Int, Tensor, TensorData};
use dgpo_core::{
    engine::{Engine, EngineOptions, Request},
    rng::{Key, Purpose},
    settings::Sampling,
    testing::test_data,
    tokenizer::Tokenizer,
};
use dgpo_models::{decoder::Decoder, heads::token_log_probs, weights::load_decoder};
use dgpo_run::devices::Cpu;
use serde_json::Value;

/// stories260k and what transformers made of it.
fn stories() -> Option<(Decoder<Cpu>, Tokenizer, Value)> {
    let dir = test_data("weights/stories260k")?;
    let model = load_decoder(&dir, DType::F32, &Default::default()).unwrap();
    let golden = std::fs::read_to_string(test_data("golden/stories260k.json")?).unwrap();
    Some((model, Tokenizer::from_path(&dir).unwrap(), serde_json::from_str(&golden).unwrap()))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_trained_llama_continues_its_story_as_in_transformers() {
    let Some((model, tokenizer, golden)) = stories() else { return };
    let expected = ids(&golden["greedy_new_ids"]);
    let options =
        EngineOptions { max_rows: 1, capacity: 256, stop_strings: Vec::new(), eos_ids: Vec::new() };
    let request = Request {
        row: 0,
        ids: ids(&golden["input_ids"]),
        key: Key::new(0, Purpose::Eval),
        max_new_tokens: expected.len(),
        sampling: Sampling::GREEDY,
    };
    let completions = Engine::new(&model, &tokenizer, options, &Default::default())
        .generate(vec![request])
        .unwrap();
    assert_eq!(completions[0].ids, expected);
}

#[test]
fn a_trained_llama_gives_its_prompt_the_log_probs_of_transformers() {
    let Some((model, _, golden)) = stories() else { return };
    let prompt: Vec<i32> = ids(&golden["input_ids"]).into_iter().map(|id| id as i32).collect();
    let n = prompt.len();
    let device = Default::default();
    let hidden = model.hidden(
        Tensor::<Cpu, 2, Int>::from_data(TensorData::new(prompt.clone(), [1, n]), &device),
        None,
        None,
    );
    let hidden = hidden.narrow(1, 0, n - 1).squeeze_dim::<2>(0);
    let labels =
        Tensor::<Cpu, 1, Int>::from_data(TensorData::new(prompt[1..].to_vec(), [n - 1]), &device);
    let log_probs: Vec<f32> =
        token_log_probs(model.head(hidden), labels, 1.0).log_probs.into_data().into_vec().unwrap();
    let expected = golden["prompt_token_logprobs"].as_array().unwrap();
    assert_eq!(log_probs.len(), expected.len());
    for (found, expected) in log_probs.iter().zip(expected) {
        // The oracles' tolerance for log-probs of f32 models.
        assert!(
            (f64::from(*found) - expected.as_f64().unwrap()).abs() < 1e-4,
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn the_whole_loop_runs_on_real_questions_passages_encoder_and_tokenizer() {
    let Some(folder) = test_data("") else { return };
    let world = World::new();
    let recipe = repository("configs/real-smoke.toml");
    for network in ["student", "teacher"] {
        let shape = std::fs::read_to_string(repository(&format!(
            "configs/real-smoke/{network}/config.json"
        )))
        .unwrap();
        world.write(&format!("{network}/config.json"), &shape);
    }
    let mut command =
        world.command(&["train", "--name", "real", "--json", "--config", recipe.to_str().unwrap()]);
    for set in [
        "model.student=\"random:student\"",
        "model.teacher=\"random:teacher\"",
        "data.max_passages=48",
        "distill.steps=1",
        "rl.steps=1",
    ] {
        command.args(["--set", set]);
    }
    let summary = crate::support::Ended::of(command.env("DGPO_DATA_DIR", folder)).json();
    for model in ["student", "teacher", "kd", "rl"] {
        assert_eq!(summary[model]["n_episodes"], 4, "{model}");
    }
}
