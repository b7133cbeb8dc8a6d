//! How an episode is played: its instruction, its limits, how its tokens are drawn.
use serde::{Deserialize, Serialize};

/// The user message of the published data (method §9), with its wording and its newline: a
/// checkpoint trained on it expects it.
pub const PAPER_INSTRUCTION: &str = "Answer the given question. You must conduct reasoning inside \
                                     <think> and </think> first every time you get new \
                                     information. After reasoning, if you find you lack some \
                                     knowledge, you can call a search engine by <search> query \
                                     </search> and it will return the top searched results between \
                                     <information> and </information>. You can search as many \
                                     times as your want. If you find no further external knowledge \
                                     needed, you can directly provide the answer inside <answer> \
                                     and </answer>, without detailed illustrations. For example, \
                                     <answer> Beijing </answer>. Question: {question}\n";

/// The episode and its limits (method §1). Lengths are tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodeRecipe {
    /// The user message; `{question}` is replaced. Default: the published text (method §9).
    pub instruction: String,
    /// Turns in which a search is executed; one more turn follows without search. Default: paper,
    /// 4.
    pub max_turns: usize,
    /// Tokens the agent may write in one turn. Default: paper, 500.
    pub max_response_length: usize,
    /// Tokens of an observation; the rest is cut. Default: 500, the published script's.
    pub max_obs_length: usize,
    /// What is cut of a longer one: `passages` (the closing tag stays) or `reference` (the tag goes
    /// first). Default: own choice, `passages`.
    pub cut_observations: ObservationCut,
    /// Special tokens that are spelled in passages, questions or trajectories (`<|im_end|>`) are
    /// control tokens there too, as in the published code. Default: own choice, `false`: they are
    /// ordinary text, so that no passage can end the user's turn.
    pub special_tokens_in_text: bool,
    /// Tokens of the prompt; a longer one ends the episode as `prompt_too_long`. Default: 2,048,
    /// the published script's.
    pub max_start_length: usize,
    /// Tokens of prompt and response together; an episode that would pass it is closed as
    /// `truncated_length`. Default: paper, 4,096. Raising it costs KV-cache and activation memory
    /// in proportion.
    pub max_prompt_length: usize,
    /// Sampling temperature of training episodes. Default: paper, 1. Raising it explores more; 0
    /// would be greedy.
    pub temperature: f64,
    /// Keep the most likely tokens up to this probability; 1 = all. Default: paper, 1.
    pub top_p: f64,
    /// Keep this many most likely tokens; 0 = all. Default: 0.
    pub top_k: usize,
    /// Rows decoded together. Default: 256. Raising it uses the machine better; KV-cache memory
    /// grows in proportion, results do not change.
    pub max_rows: usize,
}

impl EpisodeRecipe {
    /// How training episodes are sampled.
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

impl Default for EpisodeRecipe {
    fn default() -> Self {
        Self {
            instruction: PAPER_INSTRUCTION.into(),
            max_turns: 4,
            max_response_length: 500,
            max_obs_length: 500,
            cut_observations: ObservationCut::Passages,
            special_tokens_in_text: false,
            max_start_length: 2048,
            max_prompt_length: 4096,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_rows: 256,
        }
    }
}

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
