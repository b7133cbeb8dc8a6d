//! Next step after a run: one command that can be pasted as it is.
use super::output;
use dgpo_run::{
    config::Recipe,
    devices::DeviceChoice,
    folder::{
        checkpoint,
        run_dir::{RECIPE_FILE, RunDir},
        state::MODEL_DIR,
    },
};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
};

/// Bytes of a line of episodes at most; a longer one is not worth a suggestion.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Asks the trained model one of its test questions, with the settings of the run; of a run without
/// questions or a trained student, what it recorded.
pub(super) fn command(run: &RunDir, recipe: &Recipe, device: DeviceChoice) -> String {
    let quoted = |path: &std::path::Path| output::shell_quoted(&path.display().to_string());
    ask(run, recipe).map_or_else(
        || format!("cargo xtask runs show {}", quoted(run.path())),
        |(question, model)| {
            let (features, device) = device.launcher_flags();
            let (recipe, model) = (quoted(&run.path().join(RECIPE_FILE)), quoted(&model));
            format!(
                "cargo xtask {features}ask {device}{} --config {recipe} --model {model}",
                output::shell_quoted(&question)
            )
        },
    )
}

/// A question that the model of the last training phase was evaluated on, and the model's folder.
fn ask(run: &RunDir, recipe: &Recipe) -> Option<(String, std::path::PathBuf)> {
    let trained = recipe.stage.training_phases().last()?;
    let newest = checkpoint::list_checkpoints(run.path(), recipe.stage).ok()?.pop()?;
    let episodes = File::open(run.episodes_dir().join(format!("eval-{trained}.jsonl"))).ok()?;
    let mut line = String::new();
    BufReader::new(episodes.take(MAX_LINE_BYTES)).read_line(&mut line).ok()?;
    let episode: Value = serde_json::from_str(&line).ok()?;
    let question = episode.pointer("/question/question")?.as_str()?;
    // A leading dash would be taken for a flag, and control characters are not typed.
    let is_plain = !question.starts_with('-') && !question.contains(char::is_control);
    is_plain.then(|| (question.to_owned(), newest.path.join(MODEL_DIR)))
}
