//! The tiny world's demonstrations: every training question played by script against the real
//! retriever.
//!
//! This is the step between the encoder and the teacher. World, vocabulary and network shapes come
//! from a seed alone ([`crate::tiny::export`]); demonstrations also need what the trained
//! encoder finds, so that a model trained on them has seen the mistakes it will meet.
use crate::tiny::{ScriptedObservation, World, questions::split, reading, script};
use dgpo_core::env::{
    protocol::search_observation,
    search::{Retriever, SearchError},
};
use dgpo_models::files::replace_file;
use dgpo_run::data::{DataError, trajectories::Trajectory};
use flate2::{Compression, GzBuilder};
use std::{io::Write, path::Path};

/// Files of demonstrations: questions of one hop and of two played to their end, and questions
/// answered from given gold passages, at once and with thinking. The base student sees a few of the
/// first for their format and learns to read from the third; the teacher learns them all.
const DEMONSTRATION_FILES: [&str; 4] =
    ["demos-1hop.jsonl.gz", "demos-2hop.jsonl.gz", "reading.jsonl.gz", "reading-thinking.jsonl.gz"];

/// Errors of making demonstrations.
#[derive(Debug, thiserror::Error)]
pub enum DemonstrationError {
    #[error(transparent)]
    Retriever(#[from] SearchError),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Counts of the demonstrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demonstrated {
    pub n_questions: usize,
    /// Questions whose gold passages the retriever found; the others have no demonstration.
    pub n_scripts: usize,
}

/// Plays the training questions of a world and writes the demonstrations into `dir`.
/// # Errors
/// If a search fails or a file cannot be written.
pub fn write_demonstrations(
    dir: &Path,
    seed: u64,
    retriever: &dyn Retriever,
    top_k: usize,
) -> Result<Demonstrated, DemonstrationError> {
    let demonstrations = demonstrations(seed, retriever, top_k)?;
    for (name, rows) in DEMONSTRATION_FILES.iter().zip(&demonstrations.files) {
        let path = dir.join(name);
        let written = std::fs::create_dir_all(dir).and_then(|()| {
            replace_file(&path, |unfinished| {
                // The header has neither name nor time, so that the same rows give the same bytes.
                let mut file = GzBuilder::new().write(unfinished, Compression::best());
                for row in rows {
                    writeln!(file, "{}", serde_json::to_string(row)?)?;
                }
                file.finish().map(drop)
            })
        });
        written.map_err(|source| DataError::Write { path, source })?;
    }
    Ok(demonstrations.counts)
}

struct Demonstrations {
    /// One list for each of [`DEMONSTRATION_FILES`].
    files: [Vec<Trajectory>; 4],
    counts: Demonstrated,
}

fn demonstrations(
    seed: u64,
    retriever: &dyn Retriever,
    top_k: usize,
) -> Result<Demonstrations, SearchError> {
    let world = World::generate(seed);
    let questions = split(&world, seed).train;
    let mut look_up = |query: &str| -> Result<ScriptedObservation, SearchError> {
        let results = retriever.search(&[query.to_owned()], top_k);
        let hits = results.into_iter().next().expect("a retriever gives one result a query")?;
        let passages: Vec<_> = hits.into_iter().map(|hit| hit.passage).collect();
        let passage_ids = passages.iter().map(|passage| passage.id.clone()).collect();
        Ok(ScriptedObservation { passage_ids, text: search_observation(&passages) })
    };
    let [mut one_hop, mut two_hops, mut read, mut read_thinking] = [const { Vec::new() }; 4];
    for question in &questions {
        if let Some(trajectory) = script(question, &mut look_up)? {
            if question.hops.len() == 1 {
                one_hop.push(trajectory)
            } else {
                two_hops.push(trajectory)
            }
        }
        let gold: Vec<_> =
            question.hops.iter().map(|hop| world.passages()[hop.passage_idx].clone()).collect();
        let given = search_observation(&gold);
        read.push(reading(question, &given, false));
        read_thinking.push(reading(question, &given, true));
    }
    let counts =
        Demonstrated { n_questions: questions.len(), n_scripts: one_hop.len() + two_hops.len() };
    Ok(Demonstrations { files: [one_hop, two_hops, read, read_thinking], counts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::env::{
        protocol::{Action, parse_action},
        search::{Hit, Passage},
    };
    use dgpo_run::data::trajectories::Piece;

    /// Finds the passage whose title begins the query, or else the first passage.
    struct ByTitle(Vec<Passage>);
    impl Retriever for ByTitle {
        fn search(&self, queries: &[String], _top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
            let find = |query: &String| {
                let passage = self
                    .0
                    .iter()
                    .find(|p| query.starts_with(p.title().trim_matches('"')))
                    .unwrap_or(&self.0[0]);
                Ok(vec![Hit { passage: passage.clone(), score: 1.0 }])
            };
            queries.iter().map(find).collect()
        }
        fn describe(&self) -> String {
            "by title".to_owned()
        }
    }

    #[test]
    fn a_demonstration_is_an_episode_of_the_protocol() {
        let retriever = ByTitle(World::generate(0).passages().to_vec());
        let demos = demonstrations(0, &retriever, 3).expect("searches succeed");
        assert_eq!(demos.counts, Demonstrated { n_questions: 1240, n_scripts: 1240 });
        for trajectory in demos.files.iter().flatten() {
            let pieces = trajectory.pieces().expect("well-formed");
            for (i, piece) in pieces.iter().enumerate() {
                let Piece::Agent(text) = piece else { continue };
                match parse_action(text) {
                    Action::Search(_) => {
                        assert!(matches!(pieces.get(i + 1), Some(Piece::Observation(_))))
                    }
                    Action::Answer(answer) => {
                        assert_eq!((&answer, i), (&trajectory.golden_answers[0], pieces.len() - 1))
                    }
                    Action::Invalid => panic!("{text:?} holds no action"),
                }
            }
        }
    }
}
