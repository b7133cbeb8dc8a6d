//! Does a recipe test on questions that it trains on? Asked before a run, a plan and an evaluation.
use crate::{
    config::Recipe,
    data::{
        overlap::{Overlap, overlap},
        questions::read_questions,
    },
    episodes::given::read_given,
    hub,
};
use dgpo_core::question::Question;

/// Test questions of a recipe that are also among those of `data.train` and `data.trajectories`. A
/// file that cannot be read has no questions here: whoever needs it says so.
pub fn overlap_of(recipe: &Recipe) -> Option<Overlap> {
    let data = &recipe.data;
    if data.test.is_empty() || (data.train.is_empty() && data.trajectories.is_empty()) {
        return None;
    }
    let mut train = questions(&data.train, data.max_train);
    for name in &data.trajectories {
        let given = hub::resolve(name).ok().and_then(|path| read_given(&path).ok());
        train.extend(given.unwrap_or_default().iter().map(|given| given.question()));
    }
    overlap(&train, &questions(&data.test, data.max_test))
}

/// At most `max` questions of each file; 0 = all.
fn questions(names: &[String], max: usize) -> Vec<Question> {
    let max = if max == 0 { usize::MAX } else { max };
    let of_file = |name: &String| read_questions(&hub::resolve(name).ok()?).ok();
    names.iter().filter_map(of_file).flat_map(|questions| questions.into_iter().take(max)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_questions_and_those_of_trajectories_are_compared_as_far_as_they_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, lines: &[&str]| {
            let path = folder.path().join(name);
            std::fs::write(&path, lines.join("\n")).unwrap();
            path.display().to_string()
        };
        let question = |id: u32, text: &str| {
            format!(
                r#"{{"id": {id}, "dataset": "d", "question": "{text}", "golden_answers": ["A"]}}"#
            )
        };
        let (who, when, why) = (question(1, "who?"), question(2, "when?"), question(3, "why?"));
        let given = why.replace('}', r#", "response": "<answer> A </answer>"}"#);
        let mut recipe = Recipe::default();
        recipe.data.train = vec![write("train.jsonl", &[&who, &when]), "no/such/file".to_owned()];
        recipe.data.trajectories = vec![write("given.jsonl", &[&given])];
        recipe.data.test = vec![write("test.jsonl", &[&when, &why, &who])];
        assert_eq!(overlap_of(&recipe).map(|found| found.n_same_id), Some(3));
        (recipe.data.max_train, recipe.data.max_test) = (1, 2);
        assert_eq!(overlap_of(&recipe).map(|found| found.n_same_id), Some(1));
        recipe.data.trajectories.clear();
        assert_eq!(overlap_of(&recipe), None);
    }
}
