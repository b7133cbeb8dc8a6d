//! The bill of a run's folder: checkpoints, and the index where one is built there.
//!
//! ```text
//! checkpoint    P·d weights + P·8 Adam moments + P·4 masters (only if d = 2); in PPO the same again for the critic
//! of a phase    as many as `run.keep`, and the one that is being written
//! index         passages · (width · 4 + 8 · retriever.hnsw_m), from 50,000 passages on
//! ```
use super::{ADAM_BYTES, F32_BYTES, MemoryItem, item, kd_phase};
use crate::config::{Recipe, RetrieverKind, Search, check::plays_episodes, shapes::Shapes};
use dgpo_core::settings::{Algorithm, Phase};
use dgpo_models::config::DecoderConfig;

pub(super) fn bill(recipe: &Recipe, shapes: &Shapes) -> Vec<MemoryItem> {
    let mut items = Vec::new();
    if let Some(student) = &shapes.student {
        for phase in recipe.stage.training_phases() {
            let (n, size_bytes) =
                (n_checkpoints(recipe, phase), checkpoint_bytes(recipe, phase, student));
            items.push(item(
                format!("{phase}: {n} checkpoint{}", if n == 1 { "" } else { "s" }),
                n.saturating_mul(size_bytes),
            ));
        }
    }
    let retriever = &recipe.retriever;
    let asks = plays_episodes(recipe) || !recipe.data.test.is_empty();
    let is_built = asks && retriever.kind == RetrieverKind::Dense && retriever.index.is_empty();
    if let (true, Some(encoder), Some(n)) =
        (is_built, &shapes.encoder, shapes.n_passages.filter(|&n| n >= Search::EXACT_BELOW))
    {
        items.push(item(
            format!("index of {n} passages"),
            index_bytes(
                n,
                encoder.hidden_size,
                retriever.search != Search::Exact,
                retriever.hnsw_m,
            ),
        ));
    }
    items
}

/// Bytes of an index folder.
pub fn index_bytes(n_passages: usize, dim: usize, has_graph: bool, hnsw_m: usize) -> usize {
    n_passages * (dim * F32_BYTES + if has_graph { 8 * hnsw_m } else { 0 })
}

/// Number of checkpoints of a phase on disk at once: those kept, and the next one while it is
/// written.
fn n_checkpoints(recipe: &Recipe, phase: Phase) -> usize {
    let steps = match phase {
        Phase::Pretrain => recipe.pretrain.steps,
        Phase::Kd => kd_phase(recipe, &mut Vec::new()).steps,
        Phase::Gkd => recipe.gkd.steps,
        _ => recipe.rl.steps,
    };
    let (every, keep) = (recipe.run.save_every, recipe.run.keep);
    let n_written = if every == 0 { 1 } else { steps.div_ceil(every).max(1) };
    match (steps, keep) {
        (_, 0) => n_written,
        // Not known before the trajectories are read.
        (0, keep) => keep.saturating_add(1),
        (_, keep) => n_written.min(keep.saturating_add(1)),
    }
}

fn checkpoint_bytes(recipe: &Recipe, phase: Phase, shape: &DecoderConfig) -> usize {
    let d = recipe.model.dtype.n_bytes();
    let masters = if d < F32_BYTES { F32_BYTES } else { 0 };
    let n_networks =
        if phase == Phase::Rl && recipe.rl.algorithm == Algorithm::Ppo { 2 } else { 1 };
    n_networks * shape.n_parameters() * (d + masters + ADAM_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Stage, shapes::published_decoder};

    fn of(recipe: &Recipe) -> Vec<usize> {
        let shapes =
            Shapes { student: published_decoder("Qwen/Qwen2.5-0.5B"), ..Shapes::default() };
        bill(recipe, &shapes).iter().map(|item| item.size_bytes).collect()
    }

    #[test]
    fn a_run_in_bf16_keeps_three_checkpoints_of_actor_and_critic_and_writes_a_fourth() {
        let mut recipe = Recipe { stage: Stage::Rl, ..Recipe::default() };
        // 2 + 4 + 8 bytes a parameter, of two networks.
        let one = 2 * 494_032_768 * 14;
        assert_eq!(of(&recipe), [4 * one]);
        recipe.rl.algorithm = Algorithm::Grpo;
        assert_eq!(of(&recipe), [4 * one / 2]);
        (recipe.run.keep, recipe.rl.steps) = (0, 101);
        // Behind steps 50, 100 and 101.
        assert_eq!(of(&recipe), [3 * one / 2]);
    }

    #[test]
    fn wikipedia_at_768_dimensions_takes_the_known_70_gigabytes() {
        // 21 million passages: 64.5 GB of vectors, 5.4 GB of links at M = 32.
        assert_eq!(index_bytes(21_000_000, 768, true, 32), 21_000_000 * (3072 + 256));
    }
}
