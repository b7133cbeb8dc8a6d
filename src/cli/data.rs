//! `dgpo data tiny`: the files of the built-in world, made anew from a seed.
use super::{Context, Ended, args::RecipeArgs, output};
use clap::Subcommand;
use dgpo_lab::tiny::{WORLD_SEED, demonstrations::write_demonstrations, export};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::Recipe,
    devices::{DeviceChoice, DeviceJob, with_device},
    events::Stop,
    pipeline::setup::setup_of,
};
use std::path::PathBuf;

/// Make data sets.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write the tiny world: passages, questions, tokenizer, network shapes, and, where its encoder
    /// is trained, demonstrations.
    ///
    /// Example: dgpo data tiny configs/tiny
    Tiny(TinyArgs),
}

#[derive(clap::Args, Debug)]
struct TinyArgs {
    /// Folder to write into. If it holds encoder/model.safetensors, the demonstrations are played
    /// and written too.
    #[arg(value_parser = super::args::path)]
    dir: PathBuf,
    /// Seed of the world.
    #[arg(long, value_name = "N", default_value_t = WORLD_SEED)]
    seed: u64,
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// Plays the scripts against the real retriever.
struct Demonstrate {
    recipe: Recipe,
    dir: PathBuf,
    seed: u64,
}
impl DeviceJob for Demonstrate {
    type Output = anyhow::Result<String>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let top_k = self.recipe.retriever.top_k;
        let setup = setup_of::<B>(self.recipe, device)?;
        let retriever = setup.retriever(&self.dir, &Stop::default())?;
        let counts = write_demonstrations(&self.dir, self.seed, retriever.as_ref(), top_k)?;
        Ok(format!(
            "demonstrations of {} of {} training questions",
            counts.n_scripts, counts.n_questions
        ))
    }
}

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Ended> {
    let Command::Tiny(args) = args.command;
    export::write(&args.dir, args.seed)?;
    let mut said = format!("the world of seed {} is in {}", args.seed, args.dir.display());
    if args.dir.join("encoder/model.safetensors").is_file() {
        let mut recipe = args.recipe.load()?.recipe;
        recipe.data.corpus = args.dir.join("corpus.jsonl").display().to_string();
        recipe.retriever.encoder = args.dir.join("encoder").display().to_string();
        let job = Demonstrate { recipe, dir: args.dir, seed: args.seed };
        said += &format!("; {}", with_device(DeviceChoice::Cpu, job)??);
    } else {
        said += "; hint: train its encoder with `dgpo train --config configs/tiny/encoder.toml`, \
                 then run this again for the demonstrations";
    }
    if !context.is_quiet {
        output::say(&said);
    }
    Ok(Ended::Done)
}
