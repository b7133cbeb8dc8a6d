//! `dgpo plan`: the resolved recipe and what a run with it would do. Also `dgpo train --dry-run`.
//!
//! The text output is a valid recipe: the arithmetic stands in comments below it.
use super::{Outcome, args::RecipeArgs, output};
use crate::{
    config::{
        Loaded,
        load::to_toml,
        plan::{Plan, Shapes, plan},
    },
    pipeline::{cut_share::cut_share_of, overlap::overlap_of},
};
use serde_json::json;

/// Show the resolved recipe, the steps and tokens of a run, and the memory it needs; starts nothing.
///
/// Example: dgpo plan --config configs/tiny.toml --set rl.steps=50
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    show(&args.recipe.load()?, args.json)?;
    Ok(Outcome::Done)
}

/// Prints the plan of a loaded recipe.
/// # Errors
/// If stdout cannot be written.
pub fn show(loaded: &Loaded, as_json: bool) -> anyhow::Result<()> {
    let (shapes, notes) = Shapes::resolve(&loaded.recipe);
    let mut plan = plan(&loaded.recipe, &shapes);
    plan.notes.extend(notes);
    let observations = cut_share_of(&loaded.recipe);
    plan.notes.extend(observations.iter().map(ToString::to_string));
    plan.notes.extend(overlap_of(&loaded.recipe).map(|overlap| overlap.to_string()));
    if as_json {
        return output::json(&json!({
            "name": loaded.run_name(),
            "sources": loaded.sources,
            "recipe": loaded.recipe,
            "plan": plan,
            "observations": observations,
            "warnings": loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }));
    }
    let comments: String = describe(loaded, &plan).lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
    output::data(&format!("{}\n{comments}", to_toml(&loaded.recipe)))
}

fn describe(loaded: &Loaded, plan: &Plan) -> String {
    let mut text = format!("runs/{}, from {}\n", loaded.run_name(), loaded.sources.join(" < "));
    for phase in &plan.phases {
        let at_most = if phase.is_bound { "at most " } else { "" };
        let counted = [("steps", phase.steps), ("episodes", phase.episodes), ("optimizer steps", phase.optimizer_steps)];
        let known = counted.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{at_most}{} {what}", count(*n)));
        text += &format!("\n{}: {}", phase.phase, known.collect::<Vec<_>>().join(", "));
        if phase.max_sampled_tokens > 0 {
            text += &format!(", at most {} tokens sampled", output::grouped(phase.max_sampled_tokens));
        }
        if phase.max_trained_tokens > 0 {
            text += &format!(", at most {} tokens trained on", output::grouped(phase.max_trained_tokens));
        }
    }
    for phase in &plan.memory {
        text += &format!("\n\nmemory of {}, without activations: {}", phase.phase, output::bytes(phase.total_bytes as u64));
        for item in &phase.items {
            text += &format!("\n  {:>10}  {}", output::bytes(item.size_bytes as u64), item.what);
        }
    }
    if !plan.notes.is_empty() {
        text += "\n";
    }
    for note in &plan.notes {
        text += &format!("\nnote: {note}");
    }
    text
}

fn count(n: usize) -> String {
    output::grouped(n as u64)
}
