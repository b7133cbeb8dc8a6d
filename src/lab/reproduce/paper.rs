//! The paper's numbers, as its tables print them: exact match, three digits, each model trained
//! once.
//!
//! # Source
//! Kotoge, Nishimura, Ma: "Can Compact Language Models Search Like Agents? Distillation-Guided
//! Policy Optimization for Preserving Agentic RAG Capabilities", Tables 2, 3, 5 and 6.

/// Data sets of Tables 2 and 6, and their unweighted mean.
pub const DATASETS: [&str; 8] =
    ["NQ", "TriviaQA", "PopQA", "HotpotQA", "2wiki", "MuSiQue", "Bamboogle", "Avg."];

/// A line of Table 2 or 6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Name of our row: a method's recipe, "student" or "teacher".
    pub row: &'static str,
    /// Its name in the paper, without the sizes of its models.
    pub title: &'static str,
    /// By [`DATASETS`].
    pub em: [f64; 8],
}

impl Line {
    pub fn average(&self) -> f64 {
        self.em[7]
    }
}

const fn line(row: &'static str, title: &'static str, em: [f64; 8]) -> Line {
    Line { row, title, em }
}

/// Table 2: Qwen2.5, 3B -> 0.5B.
pub const TABLE_2: [Line; 10] = [
    line("student", "Student", [0.004, 0.006, 0.007, 0.007, 0.015, 0.000, 0.000, 0.006]),
    line("teacher", "Teacher", [0.365, 0.569, 0.393, 0.340, 0.368, 0.135, 0.298, 0.353]),
    line("ppo", "PPO", [0.306, 0.444, 0.379, 0.205, 0.218, 0.041, 0.073, 0.238]),
    line("sft-ppo", "SFT → PPO", [0.338, 0.415, 0.359, 0.296, 0.275, 0.088, 0.250, 0.289]),
    line("gkd", "GKD", [0.266, 0.408, 0.358, 0.216, 0.217, 0.055, 0.161, 0.240]),
    line("seqkd", "SeqKD", [0.331, 0.416, 0.364, 0.283, 0.273, 0.089, 0.169, 0.275]),
    line("kd", "KD", [0.331, 0.431, 0.373, 0.286, 0.284, 0.091, 0.290, 0.298]),
    line("distillm", "DistiLLM", [0.333, 0.442, 0.373, 0.288, 0.270, 0.095, 0.209, 0.287]),
    line("taid", "TAID", [0.325, 0.427, 0.365, 0.290, 0.270, 0.079, 0.218, 0.282]),
    line("dgpo", "DGPO", [0.378, 0.481, 0.402, 0.342, 0.303, 0.120, 0.274, 0.329]),
];

/// Table 6: what DGPO is without one of its parts.
pub const TABLE_6: [Line; 5] = [
    line("dgpo", "DGPO", [0.378, 0.481, 0.402, 0.342, 0.303, 0.120, 0.274, 0.329]),
    line(
        "dgpo-no-kd",
        "(a) w/o cold-start initialization",
        [0.370, 0.465, 0.394, 0.330, 0.299, 0.117, 0.266, 0.320],
    ),
    line(
        "dgpo-uniform-kl",
        "(b) w/o selective KL penalty",
        [0.362, 0.464, 0.394, 0.323, 0.306, 0.114, 0.234, 0.314],
    ),
    line(
        "dgpo-no-teacher",
        "(c) w/o teacher guidance",
        [0.353, 0.455, 0.384, 0.316, 0.287, 0.098, 0.250, 0.306],
    ),
    line(
        "ppo-kd",
        "(d) invert pipeline order",
        [0.320, 0.426, 0.371, 0.287, 0.282, 0.084, 0.234, 0.286],
    ),
];

/// Pairs of Table 3: student <- teacher.
pub const PAIRS: [&str; 3] = ["Qwen2.5 0.5B ← 3B", "Qwen2.5 0.5B ← 7B", "Llama 3 1B ← 8B"];

/// Table 3: averages over the seven data sets, by [`PAIRS`].
pub const TABLE_3: [(&str, &str, [f64; 3]); 5] = [
    ("student", "Student", [0.006, 0.006, 0.039]),
    ("teacher", "Teacher", [0.353, 0.385, 0.438]),
    ("ppo", "PPO", [0.238, 0.238, 0.250]),
    ("kd", "KD", [0.298, 0.280, 0.347]),
    ("dgpo", "DGPO", [0.329, 0.323, 0.389]),
];

/// Source referencing of one model (Table 5): exact match with the gold passages given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Referencing {
    pub row: &'static str,
    pub title: &'static str,
    /// NQ without and with thinking, MuSiQue without and with thinking.
    pub em: [f64; 4],
}

const fn referencing(row: &'static str, title: &'static str, em: [f64; 4]) -> Referencing {
    Referencing { row, title, em }
}

/// Table 5: Qwen2.5, 3B -> 0.5B.
pub const TABLE_5: [Referencing; 5] = [
    referencing("student", "Student", [0.386, 0.034, 0.166, 0.013]),
    referencing("teacher", "Teacher", [0.589, 0.560, 0.413, 0.357]),
    referencing("ppo", "PPO", [0.547, 0.581, 0.258, 0.242]),
    referencing("kd", "KD", [0.540, 0.544, 0.321, 0.256]),
    referencing("dgpo", "DGPO", [0.565, 0.593, 0.312, 0.287]),
];

/// The line of a row in Table 2 or, where it is not there, in Table 6.
pub fn line_of(row: &str) -> Option<&'static Line> {
    TABLE_2.iter().chain(&TABLE_6).find(|line| line.row == row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_their_lines_as_far_as_the_paper_prints_digits() {
        for line in TABLE_2.iter().chain(&TABLE_6) {
            let mean = line.em[..7].iter().sum::<f64>() / 7.0;
            // Seven numbers and their mean, each rounded to 0.0005.
            assert!((mean - line.average()).abs() <= 0.001, "{}: {mean}", line.title);
        }
    }

    #[test]
    fn tables_agree_where_they_say_the_same() {
        assert_eq!(TABLE_6[0].em, line_of("dgpo").expect("a line").em);
        for (row, _, pairs) in TABLE_3 {
            assert_eq!(pairs[0], line_of(row).expect("a line").average(), "{row}");
        }
    }
}
