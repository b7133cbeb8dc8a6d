//! Forecast of the rows that are left. As long as they took for another seed, or else as
//! rows of the same kind took for this one.
use super::{
    orderings::mean,
    results::{Outcome, SeedResults},
    rows::TableRow,
};
use dgpo_core::settings::{Algorithm, Phase};
use dgpo_run::config::Recipe;

/// Phase that takes most of a row's time: its last.
fn kind(recipe: &Recipe) -> (Option<Phase>, Algorithm) {
    (recipe.stage.training_phases().last(), recipe.rl.algorithm)
}

/// Seconds that a row did itself, if it was measured.
fn own_wall_s(results: &SeedResults, row: &TableRow) -> Option<f64> {
    results.rows.get(&row.name()).and_then(Outcome::done).map(|done| done.own_wall_s)
}

/// Time that the rows that are left will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Seconds of work of those rows of which something is known.
    pub known_s: f64,
    /// Number of the others: no row of their kind was measured yet.
    pub n_unknown: usize,
}

/// For the rows from number `next` on. `here` are the results of this seed so far, `earlier` those
/// of other seeds.
pub fn forecast(
    rows: &[(TableRow, Recipe)],
    next: usize,
    here: &SeedResults,
    earlier: &[SeedResults],
) -> Forecast {
    let alike: Vec<&SeedResults> =
        earlier.iter().filter(|results| results.settings == here.settings).collect();
    let measured: Vec<(&Recipe, f64)> = rows[..next]
        .iter()
        .filter_map(|(row, recipe)| Some((recipe, own_wall_s(here, row)?)))
        .collect();
    let of_row = |(row, recipe): &(TableRow, Recipe)| {
        let for_others: Vec<f64> =
            alike.iter().filter_map(|results| own_wall_s(results, row)).collect();
        let of_kind: Vec<f64> = measured
            .iter()
            .filter(|(known, _)| kind(known) == kind(recipe))
            .map(|(_, s)| *s)
            .collect();
        [for_others, of_kind]
            .iter()
            .find(|seconds| !seconds.is_empty())
            .map(|seconds| mean(seconds))
    };
    let left: Vec<Option<f64>> = rows[next..].iter().map(of_row).collect();
    Forecast {
        known_s: left.iter().flatten().sum(),
        n_unknown: left.iter().filter(|seconds| seconds.is_none()).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::{results::Done, rows::ROWS};

    fn rows() -> Vec<(TableRow, Recipe)> {
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
        SeedResults {
            rows: seconds.iter().map(|(row, s)| (format!("qwen-{row}"), done(*s))).collect(),
            ..SeedResults::default()
        }
    }

    #[test]
    fn a_row_takes_as_long_as_those_of_its_kind() {
        let here = measured(&[("kd", 10.0), ("dgpo", 50.0)]);
        // PPO ends with RL as DGPO does, SeqKD with distillation as KD.
        assert_eq!(forecast(&rows(), 2, &here, &[]), Forecast { known_s: 60.0, n_unknown: 0 });
        assert_eq!(forecast(&rows(), 4, &here, &[]), Forecast { known_s: 0.0, n_unknown: 0 });
    }

    #[test]
    fn rows_of_a_kind_that_was_never_measured_are_counted_and_not_guessed() {
        assert_eq!(
            forecast(&rows(), 1, &measured(&[("kd", 10.0)]), &[]),
            Forecast { known_s: 10.0, n_unknown: 2 }
        );
        assert_eq!(
            forecast(&rows(), 0, &SeedResults::default(), &[]),
            Forecast { known_s: 0.0, n_unknown: 4 }
        );
    }

    #[test]
    fn another_seed_with_the_same_settings_knows_better() {
        let here = measured(&[("kd", 10.0), ("dgpo", 50.0)]);
        let earlier = measured(&[("ppo", 7.0), ("seqkd", 1.0)]);
        let shrunk =
            SeedResults { settings: vec!["rl.steps=1".into()], ..measured(&[("ppo", 1000.0)]) };
        assert_eq!(
            forecast(&rows(), 2, &here, &[earlier, shrunk]),
            Forecast { known_s: 8.0, n_unknown: 0 }
        );
    }
}
