//! Agent episodes as text, made elsewhere or scripted: JSON Lines {id, question, golden_answers, response}.
use super::DataError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `response` is the whole text after the prompt: agent text and `<information>` observations interleaved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    pub id: String,
    #[serde(default)]
    pub dataset: String,
    pub question: String,
    pub golden_answers: Vec<String>,
    pub response: String,
}

/// A piece of a trajectory by author. Concatenated in order they are exactly `response`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Agent(String),
    Observation(String),
}

impl Trajectory {
    /// Observations are the environment's text: `\n\n<information>..</information>\n\n` with the white space around it, and the invalid-action message.
    pub fn pieces(&self) -> Vec<Piece> {
        todo!()
    }
}
pub fn read_trajectories(_path: &Path) -> Result<Vec<Trajectory>, DataError> {
    todo!()
}
