//! Settings of an episode: its instruction, its limits, how its tokens are drawn.
use serde::{Deserialize, Serialize};

/// The episode and its limits (method §1). Lengths are tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeRecipe {
    /// The user message; `{question}` is replaced. The published data have the default's wording
    /// and newline (method §9); a checkpoint trained on them expects both.
    pub instruction: String,
    /// Turns in which a search is executed; one more turn follows without search.
    pub max_turns: usize,
    /// Tokens the agent may write in one turn.
    pub max_response_length: usize,
    /// Tokens of an observation; the rest is cut.
    pub max_obs_length: usize,
    /// Part of a longer one that is cut: `passages` (the closing tag stays) or `reference` (the tag
    /// goes first).
    pub cut_observations: ObservationCut,
    /// Special tokens that are spelled in passages, questions or trajectories (`<|im_end|>`) are
    /// control tokens there too, as in the published code. Otherwise they are ordinary text, so
    /// that no passage can end the user's turn.
    pub special_tokens_in_text: bool,
    /// Tokens of the prompt; a longer one ends the episode as `prompt_too_long`.
    pub max_start_length: usize,
    /// Tokens of prompt and response together; an episode that would pass it is closed as
    /// `truncated_length`. Raising it costs KV-cache and activation memory in proportion.
    pub max_prompt_length: usize,
    /// Sampling temperature of training episodes. Raising it explores more; 0 would be greedy.
    pub temperature: f64,
    /// Keep the most likely tokens up to this probability; 1 = all.
    pub top_p: f64,
    /// Keep this many most likely tokens; 0 = all.
    pub top_k: usize,
    /// Rows decoded together. Raising it uses the machine better; KV-cache memory grows in
    /// proportion, results do not change.
    pub max_rows: usize,
}

impl EpisodeRecipe {
    /// Sampling of training episodes.
    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_p: self.top_p, top_k: self.top_k }
    }

    /// The longest episode the limits of single parts allow: prompt, `max_turns` turns with an
    /// observation each, one last turn. `max_prompt_length` may cut it shorter.
    pub fn longest_episode(&self) -> usize {
        self.max_start_length
            + self.max_turns * (self.max_response_length + self.max_obs_length)
            + self.max_response_length
    }
}

/// Sampling of a request's tokens.
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

/// Part of an observation that is cut where it has more than `episode.max_obs_length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationCut {
    /// The passages: `</information>` stays behind what is left of them.
    Passages,
    /// Whatever stands last, the closing tag first.
    Reference,
}
