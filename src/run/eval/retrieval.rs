//! Does a search find what the question needs? Hit ratios of each way of searching, on the
//! questions themselves as queries.
use crate::retriever::measure::FoundPassages;
use dgpo_core::{
    env::{is_hit, is_hit_normalised},
    question::Question,
};
use serde::Serialize;
use std::collections::HashSet;

/// `supporting_kind` of gold passages that come from the data set itself.
pub const ANNOTATED: &str = "annotated";

/// Frequency with which the first `top_k` passages of one way of searching hold what one data set
/// asks for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HitRatios {
    pub dataset: String,
    /// "exact", "hnsw" or "bm25".
    pub search: &'static str,
    pub top_k: usize,
    pub n_questions: usize,
    /// Questions that count for `answer`: not those answered by yes or no alone, because "no"
    /// stands in nearly every passage.
    pub n_answers: usize,
    /// Share of those with a gold answer in one of the passages, letter by letter (method §8).
    pub answer: Option<f64>,
    /// As `answer`, both sides normalised as for the score.
    pub answer_normalised: Option<f64>,
    /// Questions whose gold passages are annotated and lie in the corpus.
    pub n_annotated: usize,
    /// Share of those with at least one gold passage found, and with all of them.
    pub any_gold_passage: Option<f64>,
    pub all_gold_passages: Option<f64>,
}

/// Keeps of every question's annotated gold passages those that lie in the corpus; guesses of
/// whoever made the file are dropped.
pub fn keep_annotated(questions: &mut [Question], in_corpus: &HashSet<String>) {
    for question in questions {
        let is_annotated = question.supporting_kind == ANNOTATED;
        question.supporting.retain(|passage| {
            is_annotated && passage.pid.as_ref().is_some_and(|id| in_corpus.contains(id))
        });
    }
}

/// Ids of all gold passages that the data sets name.
pub fn annotated_ids(questions: &[Question]) -> HashSet<&str> {
    let annotated = questions.iter().filter(|question| question.supporting_kind == ANNOTATED);
    annotated
        .flat_map(|question| &question.supporting)
        .filter_map(|passage| passage.pid.as_deref())
        .collect()
}

/// Hit ratios for each data set (in the order of their first question) and each way of searching.
/// `found` holds one list a question, and the questions' `supporting` passages are those of
/// [`keep_annotated`].
pub fn hit_ratios(questions: &[Question], found: &[FoundPassages]) -> Vec<HitRatios> {
    let mut datasets: Vec<&str> = Vec::new();
    for question in questions {
        if !datasets.contains(&question.dataset.as_str()) {
            datasets.push(&question.dataset);
        }
    }
    datasets
        .iter()
        .flat_map(|dataset| found.iter().map(|found| of_dataset(dataset, questions, found)))
        .collect()
}

fn of_dataset(dataset: &str, questions: &[Question], found: &FoundPassages) -> HitRatios {
    let [mut n_questions, mut n_answers, mut answers, mut answers_normalised] = [0; 4];
    let [mut n_annotated, mut any_gold, mut all_gold] = [0; 3];
    for (question, passages) in
        questions.iter().zip(&found.passages).filter(|(question, _)| question.dataset == dataset)
    {
        n_questions += 1;
        if !is_yes_or_no(&question.golden_answers) {
            n_answers += 1;
            answers += usize::from(is_hit(passages, &question.golden_answers));
            answers_normalised +=
                usize::from(is_hit_normalised(passages, &question.golden_answers));
        }
        let gold: Vec<&String> =
            question.supporting.iter().filter_map(|passage| passage.pid.as_ref()).collect();
        if !gold.is_empty() {
            let is_found = |id: &&&String| passages.iter().any(|passage| passage.id == ***id);
            let n_found = gold.iter().filter(is_found).count();
            n_annotated += 1;
            any_gold += usize::from(n_found > 0);
            all_gold += usize::from(n_found == gold.len());
        }
    }
    let share = |hits: usize, of: usize| (of > 0).then(|| hits as f64 / of as f64);
    HitRatios {
        dataset: dataset.to_owned(),
        search: found.search,
        top_k: found.top_k,
        n_questions,
        n_answers,
        answer: share(answers, n_answers),
        answer_normalised: share(answers_normalised, n_answers),
        n_annotated,
        any_gold_passage: share(any_gold, n_annotated),
        all_gold_passages: share(all_gold, n_annotated),
    }
}

fn is_yes_or_no(golden_answers: &[String]) -> bool {
    golden_answers.iter().all(|gold| matches!(gold.trim().to_lowercase().as_str(), "yes" | "no"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::{env::search::Passage, question::Supporting};

    fn question(dataset: &str, golds: &[&str], pids: &[&str]) -> Question {
        let supporting = |pid: &&str| Supporting {
            title: String::new(),
            text: String::new(),
            pid: Some((*pid).to_owned()),
        };
        Question {
            id: "q".to_owned(),
            dataset: dataset.to_owned(),
            question: "who?".to_owned(),
            golden_answers: golds.iter().map(|gold| (*gold).to_owned()).collect(),
            supporting: pids.iter().map(supporting).collect(),
            supporting_kind: "annotated".to_owned(),
        }
    }

    #[test]
    fn counts_answers_and_gold_passages_of_each_data_set() {
        let passage = |id: &str, text: &str| Passage {
            id: id.to_owned(),
            contents: format!("\"T\"\n{text}"),
        };
        let questions = [
            question("b", &["Ada"], &["1", "2"]),
            question("b", &["the U.S.A."], &["3"]),
            question("b", &["no"], &["9"]),
            question("a", &["Bob"], &[]),
        ];
        let passages = vec![
            vec![passage("1", "Ada was here."), passage("7", "x")],
            vec![passage("3", "From USA.")],
            vec![passage("4", "north")],
            vec![passage("5", "Ada")],
        ];
        let found = [FoundPassages { search: "exact", top_k: 2, passages }];
        let [b, a] = hit_ratios(&questions, &found).try_into().expect("two data sets");
        assert_eq!((b.dataset.as_str(), b.n_questions, b.n_answers, b.n_annotated), ("b", 3, 2, 3));
        assert_eq!((b.answer, b.answer_normalised), (Some(0.5), Some(1.0)));
        assert_eq!((b.any_gold_passage, b.all_gold_passages), (Some(2.0 / 3.0), Some(1.0 / 3.0)));
        assert_eq!((a.answer, a.n_annotated, a.any_gold_passage), (Some(0.0), 0, None));
    }

    #[test]
    fn gold_passages_are_annotated_and_in_the_corpus() {
        let guessed = Question {
            supporting_kind: "retrieved_contains_answer".to_owned(),
            ..question("a", &["x"], &["1"])
        };
        let mut questions = [guessed, question("a", &["x"], &["1", "2"])];
        assert_eq!(annotated_ids(&questions), HashSet::from(["1", "2"]));
        keep_annotated(&mut questions, &HashSet::from(["1".to_owned()]));
        assert_eq!(questions.map(|question| question.supporting.len()), [0, 1]);
    }
}
