//! Why a model could not be read, written or built.
//!
//! One enum for the crate. Every variant names the file; a message says what happened, where, and
//! what to do (`hint:`).

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Everything that can go wrong between a folder on disk and a model on a device.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ModelError {
    #[error("cannot read {}: {source}; hint: {hint}", path.display())]
    Read { path: PathBuf, source: io::Error, hint: &'static str },

    #[error("cannot write {}: {source}; hint: check free space and permissions", path.display())]
    Write { path: PathBuf, source: io::Error },

    #[error("{}, line {line}, column {column}: {message}; hint: the file is not whole JSON; fetch \
             it again", path.display())]
    Json { path: PathBuf, line: usize, column: usize, message: String },

    #[error("{}: \"{field}\" is missing; hint: every model of this type needs it", path.display())]
    MissingField { path: PathBuf, field: String },

    #[error("{}: \"{field}\" is {value}; hint: it must be {expected}", path.display())]
    BadField { path: PathBuf, field: String, value: String, expected: String },

    /// The field is understood, and this value would change the mathematics in a way that is not
    /// implemented.
    #[error("{}: \"{field}\": {value} is not supported; hint: {hint}", path.display())]
    Unsupported { path: PathBuf, field: String, value: String, hint: &'static str },

    #[error("{}: unknown field \"{field}\"{}", path.display(), DidYouMean(suggestion.as_deref()))]
    UnknownField { path: PathBuf, field: String, suggestion: Option<String> },

    #[error("{}: {message}{}", path.display(), Unless(message, "; hint: use the config.json that \
                                                                came with the model"))]
    Inconsistent { path: PathBuf, message: String },

    #[error("{}: {message}; hint: {hint}", path.display())]
    Corrupt { path: PathBuf, message: String, hint: &'static str },

    /// Every difference between the tensors of a checkpoint and the parameters of the model, at
    /// once.
    #[error(
        "{}: the tensors do not fit the model ({} problems):{}\nhint: {}",
        path.display(), problems.len(), Lines(problems), hint_of(problems)
    )]
    Tensors { path: PathBuf, problems: Vec<TensorProblem> },

    /// Finite weights that would become infinite in a narrower dtype: (tensor, how many of its
    /// values).
    #[error("{}: {dtype} cannot hold every weight:{}\nhint: {hint}", path.display(), Overflows(tensors))]
    Overflow {
        path: PathBuf,
        dtype: &'static str,
        tensors: Vec<(String, usize)>,
        hint: &'static str,
    },

    #[error(
        "tensor \"{name}\" cannot be stored as {dtype}; hint: float32, bfloat16 and float16 can"
    )]
    StorageDtype { name: String, dtype: String },
}

impl ModelError {
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    pub(crate) fn json(path: &Path, error: &serde_json::Error) -> Self {
        // serde_json appends its own "at line L column C", which the variant's message already
        // says.
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or_default().to_owned();
        Self::Json { path: path.to_owned(), line: error.line(), column: error.column(), message }
    }
}

/// One tensor that keeps a checkpoint from fitting a model. Shapes are in the file's layout
/// (`Linear.weight` is [out, in]).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum TensorProblem {
    /// The model has this parameter, the file does not.
    Missing {
        name: String,
        shape: Vec<usize>,
    },
    /// The file has this tensor, the model does not.
    Extra {
        name: String,
        shape: Vec<usize>,
    },
    Shape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    Dtype {
        name: String,
        dtype: String,
    },
    /// The config asks for more layers than the file has tensors: nothing else is worth comparing.
    Layers {
        found: usize,
        expected: usize,
    },
    /// `tie_word_embeddings` is true, yet the file holds an output head of its own.
    HeadNotTied {
        name: String,
        embedding: String,
    },
    /// `tie_word_embeddings` is false or absent, yet the file holds no output head.
    HeadMissing {
        name: String,
        shape: Vec<usize>,
    },
    /// Every tensor of the file would be known without this in front of its name; nothing else is
    /// worth comparing.
    Prefix {
        prefix: String,
        n_tensors: usize,
    },
}

/// Advice about a list of problems: one piece of advice, that of the first problem which has
/// its own.
fn hint_of(problems: &[TensorProblem]) -> String {
    let own = problems.iter().find_map(|problem| match problem {
        TensorProblem::Dtype { .. } => Some("F32, F16 and BF16 are read".to_owned()),
        TensorProblem::HeadNotTied { .. } => Some(
            "set \"tie_word_embeddings\" to false in config.json if the model was trained untied"
                .to_owned(),
        ),
        TensorProblem::HeadMissing { .. } => Some(
            "set \"tie_word_embeddings\" to true in config.json if the output head is the \
             embedding matrix"
                .to_owned(),
        ),
        TensorProblem::Prefix { prefix, .. } => Some(format!(
            "a wrapper was saved with the model (DDP, torch.compile, an adapter); save the model \
             inside it, or take {prefix:?} off every name"
        )),
        _ => None,
    });
    own.unwrap_or_else(|| "config.json and the weights must come from the same model".to_owned())
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, shape } => write!(f, "missing: {name} {shape:?}"),
            Self::Extra { name, shape } => write!(f, "not part of the model: {name} {shape:?}"),
            Self::Shape { name, found, expected } => {
                write!(f, "wrong shape: {name} is {found:?}, the config asks for {expected:?}")
            }
            Self::Dtype { name, dtype } => write!(f, "unreadable dtype: {name} is {dtype}"),
            Self::Layers { found, expected } => {
                write!(f, "too few layers: the file has {found}, num_hidden_layers is {expected}")
            }
            Self::HeadNotTied { name, embedding } => {
                write!(
                    f,
                    "{name} differs from {embedding}, but the config says \"tie_word_embeddings\": \
                     true"
                )
            }
            Self::HeadMissing { name, shape } => write!(
                f,
                "missing: {name} {shape:?}, which only a model with \"tie_word_embeddings\": true \
                 does without; where config.json does not say, it is false"
            ),
            Self::Prefix { prefix, n_tensors } => {
                write!(f, "all {n_tensors} names carry `{prefix}`")
            }
        }
    }
}

/// General advice, unless the message gives better.
struct Unless<'a>(&'a str, &'static str);
impl fmt::Display for Unless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.contains("hint: ") { "" } else { self.1 })
    }
}

/// ": did you mean ...?" or what else to do.
struct DidYouMean<'a>(Option<&'a str>);
impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; hint: did you mean \"{name}\"?"),
            None => write!(
                f,
                "; hint: a field that is not understood may change what the model computes; remove \
                 it if it is harmless"
            ),
        }
    }
}

struct Overflows<'a>(&'a [(String, usize)]);
impl fmt::Display for Overflows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, n)| {
            write!(f, "\n  {name}: {n} finite value(s) would become infinite")
        })
    }
}

struct Lines<'a>(&'a [TensorProblem]);
impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
