//! Agent episodes as text, made elsewhere or scripted: JSON Lines {id, question, golden_answers,
//! response}.
//!
//! Training on them needs to know who wrote what. The environment wrote the `<information>` blocks
//! with the white space around them and the invalid-action message; everything else is the agent's.
//! For example
//!
//! ```text
//! <think> .. </think>\n<search> q </search>\n\n<information>Doc 1(..) ..</information>\n\n<think> .. </think>\n<answer> a </answer>
//! '---------------- agent ----------------''------------- observation -----------------''---------------- agent ----------------'
//! ```
//!
//! # Source
//! method §1, §3

use super::{DataError, jsonl::RowFields, questions::normalise_question};
use dgpo_core::{
    env::protocol::{INFORMATION_CLOSE, INFORMATION_MARGIN, INFORMATION_OPEN, INVALID_ACTION},
    text::{is_space, strip},
};
use serde::{Deserialize, Serialize};

/// A longer response is no episode: the published context of 4,096 tokens is about 20,000 bytes.
const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// `response` is the whole text after the prompt: agent text and `<information>` observations
/// interleaved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    pub id: String,
    #[serde(default)]
    pub dataset: String,
    /// Ends in exactly one `?`.
    pub question: String,
    pub golden_answers: Vec<String>,
    pub response: String,
}

/// A piece of a trajectory by author. Concatenated in order they are exactly `response`; authors
/// alternate and no piece is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Agent(String),
    Observation(String),
}

impl Piece {
    pub fn text(&self) -> &str {
        match self {
            Self::Agent(text) | Self::Observation(text) => text,
        }
    }
}

impl Trajectory {
    /// Splits the response by author. A block owns all white space before it (the agent's turn
    /// ended with its stop string) and up to two line feeds after it (what the environment writes;
    /// more would be the agent's).
    ///
    /// # Errors
    /// A block that is not closed, or closed without having been opened.
    pub fn pieces(&self) -> Result<Vec<Piece>, DataError> {
        let broken = |why: String| DataError::Episode { id: self.id.clone(), why };
        let (text, mut marks, mut done) = (self.response.as_str(), Marks::default(), 0);
        let mut pieces = Vec::new();
        while let Some((start, end)) = next_observation(text, done, &mut marks).map_err(broken)? {
            push(&mut pieces, Piece::Agent(text[done..start].to_owned()));
            push(&mut pieces, Piece::Observation(text[start..end].to_owned()));
            done = end;
        }
        push(&mut pieces, Piece::Agent(text[done..].to_owned()));
        Ok(pieces)
    }
}

impl Trajectory {
    /// The trajectory of a row; it can be split into pieces.
    ///
    /// # Errors
    /// A row without one of the fields, a blank question, no gold answers, a response that `pieces`
    /// rejects.
    pub(crate) fn of_row(row: &RowFields) -> Result<Self, String> {
        let trajectory = Self {
            id: row.string("id")?,
            dataset: row.optional_string("dataset")?.unwrap_or_default(),
            question: normalise_question(&row.string("question")?)?,
            golden_answers: row.answers("golden_answers")?,
            response: row.string("response")?,
        };
        if trajectory.response.len() > MAX_RESPONSE_BYTES {
            let n_bytes = trajectory.response.len();
            return Err(format!(
                "field `response` has {n_bytes} bytes, more than {MAX_RESPONSE_BYTES}; hint: one \
                 episode a line"
            ));
        }
        if strip(&trajectory.response).is_empty() {
            return Err(
                "field `response` is blank; hint: leave episodes without text out".to_owned()
            );
        }
        trajectory.pieces().map_err(|error| error.to_string())?;
        Ok(trajectory)
    }
}

/// Next place of each mark, so that a text of many blocks is searched once and not once a block.
#[derive(Default)]
struct Marks {
    open: Option<Option<usize>>,
    close: Option<Option<usize>>,
    invalid: Option<Option<usize>>,
}

/// First place of `mark` in `text[from..]`; `known` is what an earlier search, with a smaller
/// `from`, found.
fn find_from(
    text: &str,
    mark: &str,
    from: usize,
    known: &mut Option<Option<usize>>,
) -> Option<usize> {
    match *known {
        Some(found) if found.is_none_or(|at| at >= from) => found,
        _ => *known.insert(text[from..].find(mark).map(|at| from + at)),
    }
}

/// Byte range of the first observation in `text[from..]`.
fn next_observation(
    text: &str,
    from: usize,
    marks: &mut Marks,
) -> Result<Option<(usize, usize)>, String> {
    let open = find_from(text, INFORMATION_OPEN, from, &mut marks.open);
    let close = find_from(text, INFORMATION_CLOSE, from, &mut marks.close);
    let invalid = find_from(text, INVALID_ACTION, from, &mut marks.invalid);
    if let Some(start) = invalid.filter(|&start| {
        open.is_none_or(|open| start < open) && close.is_none_or(|close| start < close)
    }) {
        return Ok(Some((start, start + INVALID_ACTION.len())));
    }
    let open = match (open, close) {
        (None, None) => return Ok(None),
        (Some(open), Some(close)) if open < close => open,
        (Some(open), None) => {
            return Err(format!(
                "the <information> at byte {open} of {} is never closed",
                text.len()
            ));
        }
        (_, Some(close)) => {
            return Err(format!(
                "the </information> at byte {close} of {} closes nothing",
                text.len()
            ));
        }
    };
    let start = from + text[from..open].trim_end_matches(is_space).len();
    let block_end = close.map_or(text.len(), |close| close + INFORMATION_CLOSE.len());
    let margin = text[block_end..]
        .bytes()
        .take(INFORMATION_MARGIN.len())
        .take_while(|&byte| byte == b'\n')
        .count();
    Ok(Some((start, block_end + margin)))
}

/// Appends a piece: empty ones vanish, and two of one author become one.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), &piece) {
        (_, piece) if piece.text().is_empty() => {}
        (Some(Piece::Agent(last)), Piece::Agent(text))
        | (Some(Piece::Observation(last)), Piece::Observation(text)) => last.push_str(text),
        _ => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*, sample::select};

    fn trajectory(response: &str) -> Trajectory {
        Trajectory {
            id: "ep7".into(),
            dataset: String::new(),
            question: "who?".into(),
            golden_answers: vec!["A".into()],
            response: response.into(),
        }
    }

    fn agent(text: &str) -> Piece {
        Piece::Agent(text.to_owned())
    }
    fn observation(text: &str) -> Piece {
        Piece::Observation(text.to_owned())
    }

    #[test]
    fn a_block_takes_the_white_space_around_it() {
        let pieces = trajectory(
            "<search> q </search>\n\n<information>Doc 1(Title: T) t</information>\n\n<answer> a \
             </answer>",
        )
        .pieces()
        .unwrap();
        assert_eq!(
            pieces,
            [
                agent("<search> q </search>"),
                observation("\n\n<information>Doc 1(Title: T) t</information>\n\n"),
                agent("<answer> a </answer>")
            ]
        );
    }

    #[test]
    fn line_feeds_beyond_the_environments_two_are_the_agents() {
        let pieces = trajectory("s\n\n<information></information>\n\n\n<think>").pieces().unwrap();
        assert_eq!(
            pieces,
            [agent("s"), observation("\n\n<information></information>\n\n"), agent("\n<think>")]
        );
    }

    #[test]
    fn the_invalid_action_message_is_the_environments() {
        let pieces =
            trajectory(&format!("no tag{INVALID_ACTION}<answer>a</answer>")).pieces().unwrap();
        assert_eq!(
            pieces,
            [agent("no tag"), observation(INVALID_ACTION), agent("<answer>a</answer>")]
        );
    }

    #[test]
    fn a_block_that_is_not_closed_or_not_opened_is_an_error_that_names_the_episode() {
        for response in [
            "a<information>b",
            "a</information>b",
            "<information>a</information>b</information>",
            "</information><information>",
        ] {
            let error = trajectory(response).pieces().unwrap_err().to_string();
            assert!(error.starts_with("episode ep7: "), "{error}");
        }
    }

    /// Texts that trajectories are made of, tags without their other half among them where they
    /// belong to no block.
    const PARTS: &[&str] = &[
        "<information>x</information>",
        "\n\n",
        "\n",
        " ",
        "<think>é</think>",
        INVALID_ACTION,
        "<search>",
        "中",
        "</search>",
    ];

    proptest! {
        #[test]
        fn pieces_of_any_mixture_concatenate_to_the_response_and_alternate(
            parts in vec(select(PARTS), 0..9)
        ) {
            let response = parts.concat();
            let pieces = trajectory(&response).pieces().unwrap();
            prop_assert_eq!(pieces.iter().map(Piece::text).collect::<String>(), response);
            prop_assert!(pieces.iter().all(|piece| !piece.text().is_empty()));
            let is_agent = |piece: &Piece| matches!(piece, Piece::Agent(_));
            prop_assert!(pieces.windows(2).all(|pair| is_agent(&pair[0]) != is_agent(&pair[1])));
        }
    }

    fn read(path: &std::path::Path) -> Result<Vec<Trajectory>, DataError> {
        let mut trajectories = Vec::new();
        crate::data::jsonl::for_each_row(path, |row| {
            trajectories.push(Trajectory::of_row(row)?);
            Ok(())
        })?;
        Ok(trajectories)
    }

    #[test]
    fn a_response_beyond_all_measure_is_refused_and_one_of_many_blocks_is_split() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tgo.jsonl");
        let block = "a<information>b</information>";
        let write = |n: usize| {
            std::fs::write(&path, serde_json::to_string(&trajectory(&block.repeat(n))).unwrap())
                .unwrap()
        };
        let n_most = MAX_RESPONSE_BYTES / block.len();
        write(n_most);
        assert_eq!(read(&path).unwrap()[0].pieces().unwrap().len(), 2 * n_most);
        write(n_most + 1);
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("tgo.jsonl:1: field `response` has") && error.contains("hint: "),
            "{error}"
        );
    }

    #[test]
    fn a_bad_row_is_reported_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tgo.jsonl");
        let row = |response: &str| serde_json::to_string(&trajectory(response)).unwrap();
        std::fs::write(&path, format!("{}\n{}\n", row("<answer>a</answer>"), row("<information>")))
            .unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("tgo.jsonl:2: episode ep7: ") && error.contains("never closed"),
            "{error}"
        );
    }

    #[test]
    fn all_real_episodes_split_by_author() {
        let Some(path) = dgpo_core::testing::test_data("trajectories/r1_searcher_tgo.jsonl.gz")
        else {
            return;
        };
        let trajectories = read(&path).unwrap();
        assert_eq!(trajectories.len(), 1750);
        let mut n_observations = 0;
        for trajectory in &trajectories {
            let pieces = trajectory.pieces().unwrap();
            assert_eq!(pieces.iter().map(Piece::text).collect::<String>(), trajectory.response);
            for (idx, piece) in pieces.iter().enumerate() {
                match piece {
                    Piece::Agent(text) if idx + 1 == pieces.len() => {
                        assert!(text.ends_with("</answer>"), "{}", trajectory.id)
                    }
                    Piece::Agent(text) => assert!(text.ends_with("</search>"), "{}", trajectory.id),
                    Piece::Observation(text) => {
                        n_observations += 1;
                        assert!(
                            text.starts_with("\n\n<information>Doc 1(")
                                && text.ends_with("</information>\n\n"),
                            "{}",
                            trajectory.id
                        );
                    }
                }
            }
        }
        // Counted in the file with grep: as many opening tags.
        assert_eq!(n_observations, 4162);
    }
}
