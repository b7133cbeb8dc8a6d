//! Settings whose meaning lies in a layer further right: a recipe names them, the layer implements
//! them.
use serde::{Deserialize, Serialize};

/// How a request draws its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 = greedy: the token of highest probability, the lowest id among equals.
    pub temperature: f64,
    /// Share of the probability mass that may be drawn; 1 = off.
    pub top_p: f64,
    /// Number of tokens that may be drawn; 0 = off.
    pub top_k: usize,
}

impl Sampling {
    /// The most probable token at every step.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0 };
}

/// What of an observation is cut where it has more than `episode.max_obs_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationCut {
    /// The passages: `</information>` stays behind what is left of them.
    #[default]
    Passages,
    /// Whatever stands last, the closing tag first.
    Reference,
}
