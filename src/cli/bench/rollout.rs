//! `dgpo bench rollout`: tokens a second of the engine.
use super::{Measuring, budget, check_dtype, larger_shape};
use crate::cli::{Ended, UsageError, args::at_least_one, output, table::table};
use dgpo_core::tokenizer::Tokenizer;
use dgpo_kernels::suite::probes::Budget;
use dgpo_lab::bench::{
    rollout::{self, RolloutFigure, RolloutShape},
    step::{SEED, tiny},
};
use dgpo_models::{TrainBackend, config::DecoderConfig, decoder::Decoder};
use dgpo_run::{
    config::FloatType,
    devices::{DeviceChoice, DeviceJob, with_device},
    models,
};
use serde_json::json;

/// One token comes out of the prefill; a decode step needs another.
const LEAST_TOKENS: usize = 2;

/// Tokens a second of the engine: prefill and decode over the KV cache, of the tiny shape and of
/// Qwen2.5-0.5B's with random weights.
///
/// Every row has a prompt of the same length and draws the same number of tokens.
///
/// Example: dgpo bench rollout --device cuda --dtype bf16 --batch 64,256
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    measuring: Measuring,
    /// Rows decoded together; several numbers are measured one after the other.
    #[arg(long, default_value = "64,256", value_delimiter = ',', value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Layers of the larger shape, of 24; 0 leaves the shape out. Default: 24, and 2 on the CPU.
    #[arg(long)]
    layers: Option<usize>,
    /// Tokens of each prompt.
    #[arg(long, default_value = "128", value_parser = at_least_one)]
    prompt: usize,
    /// Tokens that each row draws, from 2 on.
    #[arg(long, default_value = "64", value_parser = at_least_one)]
    tokens: usize,
    /// Time for each figure, in seconds; at least one rollout, at most 20.
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    time: f64,
}

struct TimeRollouts<'a> {
    shapes: Vec<(String, DecoderConfig)>,
    tokenizer: &'a Tokenizer,
    choice: DeviceChoice,
    dtype: FloatType,
    budget: Budget,
    args: &'a Args,
}

impl DeviceJob for TimeRollouts<'_> {
    type Output = anyhow::Result<Vec<RolloutFigure>>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { shapes, tokenizer, choice, dtype, budget, args } = self;
        let dtype = check_dtype::<B::InnerBackend>(choice, dtype, device)?;
        let mut figures = Vec::new();
        for (name, config) in &shapes {
            let model = models::cast(Decoder::<B::InnerBackend>::init(config, SEED, device), dtype);
            for &n_rows in &args.batch {
                let batch = RolloutShape { n_rows, n_prompt: args.prompt, n_tokens: args.tokens };
                tracing::info!("{name}, {n_rows} rows");
                figures.push(rollout::run(name, &model, tokenizer, batch, budget, device)?);
            }
        }
        Ok(figures)
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let Measuring { dtype, .. } = args.measuring;
    let (choice, budget) = (args.measuring.choice(), budget(args.time)?);
    if args.tokens < LEAST_TOKENS {
        return Err(UsageError(format!(
            "--tokens {} has no decode step; hint: {LEAST_TOKENS} is the smallest",
            args.tokens
        ))
        .into());
    }
    let mut shapes = vec![("tiny".to_owned(), tiny()?)];
    shapes.extend(larger_shape(args.layers, choice));
    let tokenizer = rollout::tokenizer()?;
    let job = TimeRollouts { shapes, tokenizer: &tokenizer, choice, dtype, budget, args };
    let figures = with_device(choice, job)??;
    args.measuring.show(json!({ "figures": figures }), "", || figures_table(&figures))
}

fn figures_table(figures: &[RolloutFigure]) -> String {
    let headers = [
        "model",
        "parameters",
        "rows",
        "prompt",
        "drawn",
        "prefill ms",
        "decode step ms, best",
        "median",
        "tokens/s",
        "rollouts timed",
    ];
    let rows = figures.iter().map(|f| {
        vec![
            f.model.clone(),
            output::grouped(f.n_parameters as u64),
            f.n_rows.to_string(),
            f.n_prompt.to_string(),
            f.n_tokens.to_string(),
            format!("{:.1}", f.prefill_ms),
            format!("{:.2}", f.decode_step_best_ms),
            format!("{:.2}", f.decode_step_median_ms),
            output::grouped(f.tokens_per_s as u64),
            f.n_runs.to_string(),
        ]
    });
    table(&headers, &rows.collect::<Vec<_>>())
}
