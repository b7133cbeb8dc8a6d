//! Progress of a whole run: which of its phases is under way, and about how long the phases behind
//! it will take.
//!
//! The phase under way is measured. A later one is forecast from its share of the work, in tokens
//! as the plan counts them, at the speed of what this process has done so far. What cannot be
//! counted beforehand (an evaluation of capabilities, or of files that cannot be read) is named,
//! not forecast.
use dgpo_core::settings::Phase;
use dgpo_run::{
    config::{
        Recipe,
        plan::{PhasePlan, max_sampled, plan},
        shapes::Shapes,
    },
    data::questions::read_questions,
    hub,
    units::duration,
};
use tracing::subscriber::{NoSubscriber, with_default};

/// Cost of a token, in units of a token that KD trains on: 8 µs in KD, 16 in an update of PPO
/// with its critic, 12 to 18 when it is sampled (docs/benchmarks.md, the tiny world on two cores of
/// an EPYC).
const SAMPLED_COST: f64 = 2.0;
const TRAINED_COST: f64 = 1.0;
const TRAINED_BY_RL_COST: f64 = 2.0;

/// The phases of a run in their order, and what this process has done of them.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// With the work of each, where it is known beforehand.
    phases: Vec<(Phase, Option<f64>)>,
    /// Work and seconds of the phases that this process has finished.
    done_work: f64,
    done_s: f64,
}

/// The phase under way, as far as this process has brought it.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay {
    pub phase: Phase,
    /// Share of its steps that this process did.
    pub share: f64,
    pub elapsed_s: f64,
    /// Until it ends.
    pub eta_s: f64,
}

impl Course {
    /// Of a recipe: phases that have nothing to do are left out.
    pub fn of(recipe: &Recipe) -> Self {
        let planned = plan(recipe, &Shapes::default()).phases;
        let work = |phase: Phase| match phase {
            Phase::Eval => evaluation(recipe),
            _ => planned
                .iter()
                .find(|planned| planned.phase == phase.as_str())
                .map(work)
                .filter(|&work| work > 0.0),
        };
        let has_work = |phase: &Phase| match phase {
            Phase::Demos => recipe.data.trajectories.is_empty(),
            Phase::Eval => !recipe.data.test.is_empty(),
            _ => true,
        };
        let phases = recipe
            .stage
            .phases()
            .iter()
            .copied()
            .filter(has_work)
            .map(|phase| (phase, work(phase)));
        Self { phases: phases.collect(), ..Self::default() }
    }

    fn place(&self, phase: Phase) -> Option<usize> {
        self.phases.iter().position(|(known, _)| *known == phase).filter(|_| self.phases.len() > 1)
    }

    fn work(&self, phase: Phase) -> f64 {
        self.phases
            .iter()
            .find(|(known, _)| *known == phase)
            .and_then(|(_, work)| *work)
            .unwrap_or(0.0)
    }

    /// A phase has ended: its work and time say how long the others will take.
    pub fn end(&mut self, phase: Phase, share: f64, elapsed_s: f64) {
        let work = share * self.work(phase);
        if work > 0.0 {
            self.done_work += work;
            self.done_s += elapsed_s;
        }
    }

    /// ` (phase 2 of 4)`; nothing for a run of a single phase.
    pub fn told_place(&self, phase: Phase) -> String {
        self.place(phase)
            .map_or(String::new(), |at| format!(" (phase {} of {})", at + 1, self.phases.len()))
    }

    /// `phase 2 of 4, run eta 5m12s + eval`; `None` for a run of a single phase.
    pub fn told(&self, now: UnderWay) -> Option<String> {
        let at = self.place(now.phase)?;
        let own = now.share * self.work(now.phase);
        let (work, seconds) = if own > 0.0 {
            (self.done_work + own, self.done_s + now.elapsed_s)
        } else {
            (self.done_work, self.done_s)
        };
        let (mut eta_s, mut unknown) = (now.eta_s, String::new());
        for (phase, ahead) in &self.phases[at + 1..] {
            match ahead {
                Some(ahead) if work > 0.0 => eta_s += ahead * seconds / work,
                _ => unknown += &format!(" + {phase}"),
            }
        }
        Some(format!(
            "phase {} of {}, run eta {}{unknown}",
            at + 1,
            self.phases.len(),
            duration(eta_s)
        ))
    }
}

fn work(planned: &PhasePlan) -> f64 {
    let trained =
        if planned.phase == Phase::Rl.as_str() { TRAINED_BY_RL_COST } else { TRAINED_COST };
    SAMPLED_COST * planned.max_sampled_tokens as f64 + trained * planned.max_trained_tokens as f64
}

/// The work of the evaluation at the end: student, teacher and what each phase trained, on every
/// test question.
fn evaluation(recipe: &Recipe) -> Option<f64> {
    // What there is to say of the files is said when they are read for use.
    let n_questions = with_default(NoSubscriber::default(), || n_test_questions(recipe))
        .filter(|_| !recipe.eval.arcap)?;
    let n_models =
        1 + usize::from(!recipe.model.teacher.is_empty()) + recipe.stage.training_phases().count();
    Some(SAMPLED_COST * max_sampled(recipe, n_models * n_questions) as f64)
        .filter(|&work| work > 0.0)
}

/// `None` where a file cannot be read.
fn n_test_questions(recipe: &Recipe) -> Option<usize> {
    let max = if recipe.data.max_test == 0 { usize::MAX } else { recipe.data.max_test };
    let of_file =
        |name: &String| Some(read_questions(&hub::resolve(name).ok()?).ok()?.len().min(max));
    recipe.data.test.iter().map(of_file).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course() -> Course {
        let phases = vec![
            (Phase::Demos, Some(10.0)),
            (Phase::Kd, Some(20.0)),
            (Phase::Rl, Some(100.0)),
            (Phase::Eval, None),
        ];
        Course { phases, ..Course::default() }
    }

    #[test]
    fn what_is_ahead_is_forecast_from_what_was_done() {
        let mut course = course();
        // 10 units in 5 s; then half of the next phase's 20 in 7 s: 0.6 s a unit, and 100 units of
        // RL ahead.
        course.end(Phase::Demos, 1.0, 5.0);
        let now = UnderWay { phase: Phase::Kd, share: 0.5, elapsed_s: 7.0, eta_s: 7.0 };
        assert_eq!(course.told(now).as_deref(), Some("phase 2 of 4, run eta 1m07s + eval"));
        assert_eq!(course.told_place(Phase::Kd), " (phase 2 of 4)");
    }

    #[test]
    fn the_last_phase_is_measured_alone() {
        let now = UnderWay { phase: Phase::Eval, share: 0.5, elapsed_s: 3.0, eta_s: 3.0 };
        assert_eq!(course().told(now).as_deref(), Some("phase 4 of 4, run eta 3.0s"));
    }

    #[test]
    fn the_evaluation_is_counted_from_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.jsonl");
        let line = |i: usize| {
            format!(
                "{{\"id\": \"{i}\", \"question\": \"Who?\", \"golden_answers\": [\"A. B.\"]}}\n"
            )
        };
        std::fs::write(&path, (0..7).map(line).collect::<String>()).unwrap();
        let mut recipe = Recipe::default();
        recipe.data.test = vec![path.display().to_string()];
        recipe.model.teacher = "t".to_owned();
        (recipe.data.max_test, recipe.episode.max_turns, recipe.episode.max_response_length) =
            (5, 3, 10);
        // Student, teacher, KD and RL; four turns of 10 tokens on five questions, each token twice
        // the cost of a trained one.
        assert_eq!(evaluation(&recipe), Some(4.0 * 5.0 * 40.0 * 2.0));
        recipe.data.test.push("nowhere.jsonl".to_owned());
        assert_eq!(evaluation(&recipe), None);
    }

    #[test]
    fn a_run_of_a_single_phase_says_nothing_twice() {
        let single = Course { phases: vec![(Phase::Rl, Some(1.0))], ..Course::default() };
        assert_eq!(
            single.told(UnderWay { phase: Phase::Rl, share: 0.5, elapsed_s: 3.0, eta_s: 3.0 }),
            None
        );
        assert_eq!(single.told_place(Phase::Rl), "");
    }

    #[test]
    fn the_phases_of_a_recipe_are_those_that_have_something_to_do() {
        let mut recipe = Recipe::default();
        recipe.data.trajectories = vec!["t.jsonl".into()];
        let phases = |recipe: &Recipe| {
            Course::of(recipe).phases.iter().map(|(phase, _)| *phase).collect::<Vec<_>>()
        };
        assert_eq!(phases(&recipe), [Phase::Kd, Phase::Rl]);
        (recipe.data.trajectories, recipe.data.test) = (Vec::new(), vec!["q.jsonl".into()]);
        assert_eq!(phases(&recipe), [Phase::Demos, Phase::Kd, Phase::Rl, Phase::Eval]);
    }
}
