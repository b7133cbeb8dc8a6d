//! `dgpo plan`: what a run would do, what it costs, and what is missing for it. Also `dgpo train
//! --dry-run`.
use super::{
    Ended,
    args::{DeviceArgs, RecipeArgs},
    output,
};
use dgpo_run::{
    config::{
        Loaded,
        load::to_toml,
        plan::{MemoryItem, RunPlan, plan},
        shapes::Shapes,
    },
    devices::DeviceChoice,
    pipeline::{
        cut_share::cut_share_of,
        overlap::overlap_of,
        preflight::{Missing, PlannedWork, missing, n_passages},
    },
};
use serde_json::json;

/// Show what a run would do, the memory and disk space it needs, and everything that is missing for
/// it; starts nothing.
///
/// The shapes of the published models are built in: the bill needs no download. Exit code 2 where
/// something is missing; each thing is named with the command that gets it. With --recipe every
/// setting is printed instead, as a recipe that can be used.
///
/// Example: dgpo plan --config configs/tiny.toml --set rl.steps=50
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print nothing but the resolved recipe: every setting, as TOML that --config reads.
    #[arg(long = "recipe", conflicts_with = "json")]
    is_recipe: bool,
    /// Print one JSON object instead: the plan, the resolved recipe and what is missing.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let loaded = args.recipe.load()?;
    if args.is_recipe {
        output::data(&to_toml(&loaded.recipe))?;
        return Ok(Ended::Done);
    }
    show(&loaded, args.device.device, args.json)
}

/// Prints the plan of a loaded recipe.
/// # Errors
/// If something is missing that the run would read; if stdout cannot be written.
pub fn show(loaded: &Loaded, device: DeviceChoice, as_json: bool) -> anyhow::Result<Ended> {
    let (mut shapes, notes) = Shapes::resolve(&loaded.recipe);
    shapes.n_passages = n_passages(&loaded.recipe);
    let mut plan = plan(&loaded.recipe, &shapes);
    plan.notes.extend(notes);
    let observations = cut_share_of(&loaded.recipe);
    plan.notes.extend(observations.iter().map(ToString::to_string));
    plan.notes.extend(overlap_of(&loaded.recipe).map(|overlap| overlap.to_string()));
    let missing = missing(PlannedWork::Train(None), &loaded.recipe, device);
    if as_json {
        output::json(&json!({
            "name": loaded.run_name(),
            "sources": loaded.sources,
            "plan": plan,
            "observations": observations,
            "missing": missing,
            "warnings": loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "recipe": loaded.recipe,
        }))?;
    } else {
        output::data(&describe(loaded, &plan))?;
    }
    Missing::none(missing)?;
    Ok(Ended::Done)
}

fn describe(loaded: &Loaded, plan: &RunPlan) -> String {
    let mut text = format!("runs/{}, from {}\n", loaded.run_name(), loaded.sources.join(" < "));
    for phase in &plan.phases {
        let at_most = if phase.is_bound { "at most " } else { "" };
        let counted = [
            ("steps", phase.steps),
            ("episodes", phase.episodes),
            ("optimizer steps", phase.optimizer_steps),
        ];
        let known = counted
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(what, n)| format!("{at_most}{} {what}", count(*n)));
        text += &format!("\n{}: {}", phase.phase, known.collect::<Vec<_>>().join(", "));
        if phase.max_sampled_tokens > 0 {
            text +=
                &format!(", at most {} tokens sampled", output::grouped(phase.max_sampled_tokens));
        }
        if phase.max_trained_tokens > 0 {
            text += &format!(
                ", at most {} tokens trained on",
                output::grouped(phase.max_trained_tokens)
            );
        }
    }
    for phase in &plan.memory {
        text += &bill(&format!("memory of {}, without activations", phase.phase), &phase.items);
    }
    if !plan.disk.is_empty() {
        text += &bill("disk space of the run's folder", &plan.disk);
    }
    if !plan.notes.is_empty() {
        text += "\n";
    }
    for note in &plan.notes {
        text += &format!("\nnote: {note}");
    }
    text + "\n\nevery setting: the same command with --recipe\n"
}

/// A sum and what it consists of.
fn bill(title: &str, items: &[MemoryItem]) -> String {
    let size = |size_bytes: usize| output::bytes(size_bytes as u64);
    let total: usize = items.iter().map(|item| item.size_bytes).fold(0, usize::saturating_add);
    let lines: String = items
        .iter()
        .map(|item| format!("\n  {:>10}  {}", size(item.size_bytes), item.what))
        .collect();
    format!("\n\n{title}: {}{lines}", size(total))
}

fn count(n: usize) -> String {
    output::grouped(n as u64)
}
