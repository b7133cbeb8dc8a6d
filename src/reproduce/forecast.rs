//! How long will the rows that are left take? As long as they took for another seed, or else as rows of the same kind took for this one.
use super::{
    orderings::mean,
    results::{Outcome, SeedResults},
    rows::Row,
};
use crate::config::{Algorithm, Phase, Recipe};

/// What a row spends most of its time with: its last phase.
fn kind(recipe: &Recipe) -> (Option<Phase>, Algorithm) {
    (recipe.stage.training_phases().last(), recipe.rl.algorithm)
}

/// Seconds that a row did itself, if it was measured.
fn own_wall_s(results: &SeedResults, row: &Row) -> Option<f64> {
    results.rows.get(&row.name()).and_then(Outcome::done).map(|done| done.own_wall_s)
}

/// Seconds of work of the rows from number `next` on; `None` before anything was measured. `here` are the results of this seed so far, `earlier` those of
/// other seeds.
pub fn remaining_s(rows: &[(Row, Recipe)], next: usize, here: &SeedResults, earlier: &[SeedResults]) -> Option<f64> {
    let alike: Vec<&SeedResults> = earlier.iter().filter(|results| results.settings == here.settings).collect();
    let measured: Vec<(&Recipe, f64)> = rows[..next].iter().filter_map(|(row, recipe)| Some((recipe, own_wall_s(here, row)?))).collect();
    let of_row = |(row, recipe): &(Row, Recipe)| {
        let for_others: Vec<f64> = alike.iter().filter_map(|results| own_wall_s(results, row)).collect();
        let of_kind: Vec<f64> = measured.iter().filter(|(known, _)| kind(known) == kind(recipe)).map(|(_, s)| *s).collect();
        let of_any: Vec<f64> = measured.iter().map(|(_, s)| *s).collect();
        [for_others, of_kind, of_any].iter().find(|seconds| !seconds.is_empty()).map(|seconds| mean(seconds))
    };
    rows[next..].iter().map(of_row).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::{results::Done, rows::ROWS};

    fn rows() -> Vec<(Row, Recipe)> {
        let wanted = ["kd", "dgpo", "ppo", "seqkd"];
        ROWS[..4]
            .iter()
            .zip(wanted)
            .map(|(row, method)| {
                assert_eq!(row.method, method);
                (*row, row.recipe(0, &[]).unwrap())
            })
            .collect()
    }

    fn measured(seconds: &[(&str, f64)]) -> SeedResults {
        let done = |s: f64| Outcome::Done(Box::new(Done { own_wall_s: s, ..Done::default() }));
        SeedResults { rows: seconds.iter().map(|(row, s)| (format!("qwen-{row}"), done(*s))).collect(), ..SeedResults::default() }
    }

    #[test]
    fn a_row_takes_as_long_as_those_of_its_kind() {
        let here = measured(&[("kd", 10.0), ("dgpo", 50.0)]);
        // PPO ends with RL as DGPO does, SeqKD with distillation as KD.
        assert_eq!(remaining_s(&rows(), 2, &here, &[]), Some(60.0));
        assert_eq!(remaining_s(&rows(), 1, &here, &[]), Some(10.0 + 10.0 + 10.0));
        assert_eq!(remaining_s(&rows(), 0, &SeedResults::default(), &[]), None);
        assert_eq!(remaining_s(&rows(), 4, &here, &[]), Some(0.0));
    }

    #[test]
    fn another_seed_with_the_same_settings_knows_better() {
        let here = measured(&[("kd", 10.0), ("dgpo", 50.0)]);
        let earlier = measured(&[("ppo", 7.0), ("seqkd", 1.0)]);
        let shrunk = SeedResults { settings: vec!["rl.steps=1".into()], ..measured(&[("ppo", 1000.0)]) };
        assert_eq!(remaining_s(&rows(), 2, &here, &[earlier, shrunk]), Some(8.0));
    }
}
