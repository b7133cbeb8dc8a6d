//! Scripts of a perfect agent of the tiny world.
//!
//! A script plays one question: think, search, read, and after the last hop answer. Its
//! observations come from the caller's retriever, so they hold what the trained agent will see,
//! wrong passages included. Where the gold passage is not among the results the script searches
//! once more in other words, as an agent should, and gives the question up if that fails too: a
//! demonstration never answers what it has not read.
//!
//! The wording is short and regular, because a small model has to learn it, and it names a fact
//! before it uses it: the second query copies a name from the thought beside it rather than from
//! the passages further away.
//!
//! A second kind of script ([`reading`]) has nothing to find: the gold passages stand right behind
//! the prompt, as in ARCap's source referencing. It is what gives the networks of the tiny world
//! the reading that a pretrained model brings along.
//!
//! A one-hop script, with OBSERVATION for `\n\n<information>…</information>\n\n`:
//! ```text
//! <think> I need the director of Avel Kelimo. </think> <search> Avel Kelimo director </search>OBSERVATION<think> The director is Lani Voros. </think> <answer> Lani Voros </answer>
//! ```
use super::questions::{Hop, TinyQuestion};
use dgpo_run::data::trajectories::Trajectory;

/// Result of a search.
#[derive(Clone, Debug, Default)]
pub struct ScriptedObservation {
    pub passage_ids: Vec<String>,
    /// The protocol's text around and of the passages.
    pub text: String,
}

/// The episode that answers the question, or `None` where the retriever did not find a gold
/// passage.
/// # Errors
/// Those of `look_up`.
pub fn script<E>(
    question: &TinyQuestion,
    look_up: &mut dyn FnMut(&str) -> Result<ScriptedObservation, E>,
) -> Result<Option<Trajectory>, E> {
    let mut response = String::new();
    let mut learned = String::new();
    for hop in &question.hops {
        let mut thought =
            format!("{learned}I need the {} of {}.", hop.relation.noun(), hop.subject);
        let mut is_found = false;
        for query in queries(hop) {
            response.push_str(&format!("<think> {thought} </think> <search> {query} </search>"));
            let observation = look_up(&query)?;
            response.push_str(&observation.text);
            is_found = observation.passage_ids.contains(&hop.passage_idx.to_string());
            if is_found {
                break;
            }
            thought = "It is not there. I search again.".to_owned();
        }
        if !is_found {
            return Ok(None);
        }
        learned = format!("The {} is {}. ", hop.relation.noun(), hop.value);
    }
    response.push_str(&format!(
        "<think> {learned}</think> <answer> {} </answer>",
        question.question.golden_answers[0]
    ));
    Ok(Some(trajectory(question, response)))
}

/// The question answered from its gold passages: `given` is the protocol's text around and of them.
/// With thinking the facts are named first, as behind a search; without, the answer comes at once.
pub fn reading(question: &TinyQuestion, given: &str, is_thinking: bool) -> Trajectory {
    let answer = format!(" <answer> {} </answer>", question.question.golden_answers[0]);
    let facts: String = question
        .hops
        .iter()
        .map(|hop| format!("The {} is {}. ", hop.relation.noun(), hop.value))
        .collect();
    let response = if is_thinking {
        format!("{given}<think> {facts}</think>{answer}")
    } else {
        format!("{given}{answer}")
    };
    trajectory(question, response)
}

fn trajectory(TinyQuestion { question, .. }: &TinyQuestion, response: String) -> Trajectory {
    Trajectory {
        id: question.id.clone(),
        dataset: question.dataset.clone(),
        question: question.question.clone(),
        golden_answers: question.golden_answers.clone(),
        response,
    }
}

/// Query to search for, and one to try if that misses.
pub fn queries(hop: &Hop) -> [String; 2] {
    let (subject, noun) = (&hop.subject, hop.relation.noun());
    [format!("{subject} {noun}"), format!("the {noun} of {subject}")]
}

#[cfg(test)]
mod tests {
    use super::{
        super::{questions::split, world::World},
        *,
    };
    use std::convert::Infallible;

    fn two_hop_question() -> TinyQuestion {
        let split = split(&World::generate(0), 0);
        split
            .train
            .into_iter()
            .find(|q| q.hops.len() == 2)
            .expect("the world asks two-hop questions")
    }

    /// A retriever that misses the first `n_misses` times, then finds everything.
    fn play(question: &TinyQuestion, n_misses: usize) -> (Option<Trajectory>, Vec<String>) {
        let mut seen = Vec::new();
        let gold: Vec<String> =
            question.hops.iter().map(|hop| hop.passage_idx.to_string()).collect();
        let trajectory = script(question, &mut |query| {
            seen.push(query.to_owned());
            let passage_ids =
                if seen.len() > n_misses { gold.clone() } else { vec!["none".to_owned()] };
            Ok::<_, Infallible>(ScriptedObservation { passage_ids, text: "[OBS]".to_owned() })
        });
        (trajectory.unwrap_or_else(|never| match never {}), seen)
    }

    #[test]
    fn a_script_searches_once_a_hop_and_ends_in_the_answer() {
        let question = two_hop_question();
        let (trajectory, queries) = play(&question, 0);
        let response = trajectory.expect("found at once").response;
        assert_eq!(queries.len(), 2);
        assert!(
            queries[1].starts_with(&question.hops[0].value),
            "the second query starts from what the first one found"
        );
        assert_eq!(response.matches("[OBS]<think> ").count(), 2);
        assert!(
            response
                .ends_with(&format!("<answer> {} </answer>", question.question.golden_answers[0]))
        );
    }

    #[test]
    fn a_reading_answers_from_what_is_given() {
        let question = two_hop_question();
        let [first, second] = [0, 1].map(|at| question.hops[at].value.clone());
        let nouns = [0, 1].map(|at| question.hops[at].relation.noun());
        assert_eq!(
            reading(&question, "[OBS]", false).response,
            format!("[OBS] <answer> {second} </answer>")
        );
        let thought =
            format!("<think> The {} is {first}. The {} is {second}. </think>", nouns[0], nouns[1]);
        assert_eq!(
            reading(&question, "[OBS]", true).response,
            format!("[OBS]{thought} <answer> {second} </answer>")
        );
    }

    #[test]
    fn a_missed_search_is_repeated_in_other_words_and_two_misses_give_the_question_up() {
        let question = two_hop_question();
        let (trajectory, queries) = play(&question, 1);
        assert!(trajectory.is_some_and(|t| t.response.contains("I search again.")));
        assert_eq!(queries.len(), 3);
        assert_ne!(queries[0], queries[1]);
        assert!(play(&question, 2).0.is_none());
    }
}
