//! Declarations of an encoder's folder beside its network: pooling, length of the vectors and
//! prompts, in the files of sentence-transformers.
//!
//! | file | read from it |
//! |---|---|
//! | `modules.json` | Transformer, Pooling, Normalize; any other module is refused by name |
//! | `1_Pooling/config.json` (the folder that modules.json names) | mean or CLS pooling; anything else, and concatenations, are refused by name |
//! | `config_sentence_transformers.json` | `prompts` of queries and passages; `similarity_fn_name` |
//! | `sentence_bert_config.json` | `do_lower_case`, where the tokenizer does not do it |
//!
//! A folder without these files is E5's kind: mean pooling, vectors of unit length, no declared
//! prompts.
//!
//! Vectors have unit length, which makes an inner product a cosine, unless `similarity_fn_name` is
//! "dot" and there is no Normalize module: then they are compared as they are, which exact search
//! can do and a graph cannot. The cosine is what sentence-transformers takes where no similarity is
//! declared, and the published models that were trained for inner products declare "dot". Other
//! similarities are refused by name.
//!
//! # Source
//! sentence-transformers `SentenceTransformer.encode_query`, `encode_document`,
//! `similarity_fn_name`; `models/Pooling.py`.
use super::RetrieverError;
use crate::config::AUTO_PREFIX;
use dgpo_models::bert::{Pooling, SentenceHead};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Component, Path};

/// Declarations of an encoder's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderDeclaration {
    pub head: SentenceHead,
    /// Numbers of a vector, where a pooling file says it.
    pub dim: Option<usize>,
    /// Texts before queries and passages; `None` where the folder declares no prompt at all.
    pub prompts: Option<Prompts>,
    /// True if texts are lower-cased before the tokenizer sees them.
    pub lowercases: bool,
}

/// The texts before queries and passages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    pub query: String,
    pub passage: String,
}

/// Texts before queries and passages where nothing else is said. Source: intfloat/e5-base-v2,
/// method §6.
pub const E5_PREFIXES: (&str, &str) = ("query: ", "passage: ");
/// No declaration is larger.
const MAX_BYTES: u64 = 1 << 20;
/// Remedies.
const FETCH_AGAIN: &str = "fetch the encoder's files again";
const COMPUTED_MODULES: &str =
    "use an encoder of a Transformer, Pooling (mean or CLS) and Normalize";
const MODULES_FILE: &str = "modules.json";
const PROMPTS_FILE: &str = "config_sentence_transformers.json";
const TEXT_FILE: &str = "sentence_bert_config.json";
/// Folder of Pooling by custom.
const POOLING_FOLDER: &str = "1_Pooling";

impl EncoderDeclaration {
    /// Reads the declarations of `folder`.
    /// # Errors
    /// If one of the files is not what it should be, or asks for something that is not computed
    /// here; the message names file and value.
    pub fn read(folder: &Path) -> Result<Self, RetrieverError> {
        let prompts = folder.join(PROMPTS_FILE);
        let prompts_file: PromptsFile = read_json(&prompts)?.unwrap_or_default();
        let alone = folder.join(POOLING_FOLDER).join("config.json");
        let ((pooling, dim), is_normalised) =
            match (read_json::<Vec<ModuleEntry>>(&folder.join(MODULES_FILE))?, read_json(&alone)) {
                (Some(modules), _) => pooling_and_norm(folder, &modules)?,
                (None, config) => match config? {
                    Some(config) => (pooling_of(&alone, &config)?, false),
                    None => ((Pooling::Mean, None), false),
                },
            };
        let is_unit_length = is_unit_length(&prompts, &prompts_file, is_normalised)?;
        let head = SentenceHead { pooling, is_unit_length };
        let text: TextFile = read_json(&folder.join(TEXT_FILE))?.unwrap_or_default();
        let lowercases = text.do_lower_case;
        Ok(Self { head, dim, prompts: prompts_file.prompts(), lowercases })
    }

    /// The texts before queries and passages, for what a recipe says of each.
    pub fn resolve(&self, query_prefix: &str, passage_prefix: &str) -> Prompts {
        let auto = self.automatic();
        let choose =
            |said: &str, auto: String| if said == AUTO_PREFIX { auto } else { said.to_owned() };
        Prompts {
            query: choose(query_prefix, auto.query),
            passage: choose(passage_prefix, auto.passage),
        }
    }

    fn automatic(&self) -> Prompts {
        match (&self.prompts, self.head.pooling) {
            (Some(prompts), _) => prompts.clone(),
            (None, Pooling::Mean) => {
                Prompts { query: E5_PREFIXES.0.to_owned(), passage: E5_PREFIXES.1.to_owned() }
            }
            // E5 is mean-pooled: its words mean nothing to another family.
            (None, Pooling::Cls) => Prompts { query: String::new(), passage: String::new() },
        }
    }

    /// A warning where a recipe's texts are others than those the folder declares.
    pub fn other_prompts(&self, name: &str, used: &Prompts) -> Option<String> {
        let declared = self.prompts.as_ref().filter(|declared| *declared != used)?;
        Some(format!(
            "{name} declares the prompts {:?} and {:?}, and this recipe uses {:?} and {:?}; hint: \
             retriever.query_prefix = \"auto\" and retriever.passage_prefix = \"auto\" take the \
             declared ones",
            declared.query, declared.passage, used.query, used.passage
        ))
    }
}

/// The files of `folder` that declare something: their names in it, in order.
pub fn declaration_files(folder: &Path) -> Vec<String> {
    let modules = read_json::<Vec<ModuleEntry>>(&folder.join(MODULES_FILE))
        .ok()
        .flatten()
        .unwrap_or_default();
    let is_inside =
        |path: &str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let of_modules = modules
        .into_iter()
        .map(|module| module.path)
        .filter(|path| !path.is_empty() && is_inside(path));
    let configs =
        of_modules.chain([POOLING_FOLDER.to_owned()]).map(|path| format!("{path}/config.json"));
    let mut names: Vec<String> = [MODULES_FILE, PROMPTS_FILE, TEXT_FILE]
        .map(str::to_owned)
        .into_iter()
        .chain(configs)
        .collect();
    names.sort();
    names.dedup();
    names.retain(|name| folder.join(name).is_file());
    names
}

/// Copies what `source` declares beside a network that was made from it.
/// # Errors
/// If a file cannot be read or written.
pub fn copy_declarations(source: &Path, dir: &Path) -> std::io::Result<()> {
    for name in declaration_files(source) {
        let (from, to) = (source.join(&name), dir.join(&name));
        std::fs::create_dir_all(to.parent().unwrap_or(dir))?;
        dgpo_models::files::write_file(&to, std::fs::read(from)?)?;
    }
    Ok(())
}

/// The content of a file, `None` if it is not there.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RetrieverError> {
    let size_bytes = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RetrieverError::io(path, "read", error)),
    };
    let wrong = |why: String| RetrieverError::encoder(path, why, FETCH_AGAIN);
    if size_bytes > MAX_BYTES {
        return Err(wrong(format!("{size_bytes} bytes are too many for such a file")));
    }
    let text = std::fs::read(path).map_err(|source| RetrieverError::io(path, "read", source))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string()))
}

#[derive(Deserialize)]
struct ModuleEntry {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// True if vectors get unit length, by the declared similarity.
fn is_unit_length(
    path: &Path,
    prompts: &PromptsFile,
    is_normalised: bool,
) -> Result<bool, RetrieverError> {
    match prompts.similarity_fn_name.as_deref() {
        None | Some("cosine") => Ok(true),
        Some("dot" | "dot_product") => Ok(is_normalised),
        // Of unit vectors, the nearest is the one of the largest cosine.
        Some("euclidean") if is_normalised => Ok(true),
        Some(other) => {
            let why = format!(
                "its similarity_fn_name is {other:?}, and only cosine and dot are computed here"
            );
            Err(RetrieverError::encoder(path, why, "use an encoder for cosine or dot"))
        }
    }
}

/// Pooling and size of the vectors that the modules make of the last layer's states; true if there
/// is a Normalize module.
fn pooling_and_norm(
    folder: &Path,
    modules: &[ModuleEntry],
) -> Result<((Pooling, Option<usize>), bool), RetrieverError> {
    let file = folder.join(MODULES_FILE);
    let (mut pooled, mut is_normalised) = (None, false);
    for (at, module) in modules.iter().enumerate() {
        match (module.kind.rsplit('.').next().unwrap_or_default(), at) {
            ("Transformer", 0) if module.path.is_empty() => {}
            ("Transformer", 0) => {
                let why = format!(
                    "the network lies in {:?}, and is looked for beside this file",
                    module.path
                );
                let hint = "move its files there and let \"path\" of the first module be \"\"";
                return Err(RetrieverError::encoder(&file, why, hint));
            }
            ("Pooling", 1) => {
                let path = folder.join(&module.path).join("config.json");
                let Some(pooling) = read_json(&path)? else {
                    let why = format!("{} is missing", path.display());
                    return Err(RetrieverError::encoder(&file, why, FETCH_AGAIN));
                };
                pooled = Some(pooling_of(&path, &pooling)?);
            }
            ("Normalize", 2) => is_normalised = true,
            _ => {
                let why = format!(
                    "module {at}, {:?} in {:?}, is not computed here",
                    module.kind, module.path
                );
                return Err(RetrieverError::encoder(&file, why, COMPUTED_MODULES));
            }
        }
    }
    let none = "no Pooling module, so a text has no vector";
    let pooled = pooled.ok_or_else(|| RetrieverError::encoder(&file, none, COMPUTED_MODULES))?;
    Ok((pooled, is_normalised))
}

/// Pooling and size of `1_Pooling/config.json`, whose form is one `pooling_mode_…` flag a kind, or
/// (newer) their names in `pooling_mode`.
fn pooling_of<'c>(
    path: &Path,
    config: &'c Map<String, Value>,
) -> Result<(Pooling, Option<usize>), RetrieverError> {
    let mut modes: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => {
            modes.iter().map(|mode| mode.as_str().unwrap_or("?")).collect()
        }
        _ => Vec::new(),
    };
    if modes.is_empty() {
        let is_set = |(key, value): (&'c String, &Value)| {
            key.strip_prefix("pooling_mode_").filter(|_| *value == Value::Bool(true))
        };
        modes = config.iter().filter_map(is_set).collect();
        // The one flag that is true where it is not written.
        if !config.contains_key("pooling_mode_mean_tokens") {
            modes.push("mean_tokens");
        }
    }
    for mode in &mut modes {
        *mode = mode.strip_suffix("_tokens").or(mode.strip_suffix("_token")).unwrap_or(mode);
    }
    let pooling = match modes.as_slice() {
        ["mean"] => Pooling::Mean,
        ["cls"] => Pooling::Cls,
        others => {
            let why = format!(
                "its pooling is {:?}, and only mean and cls are computed here",
                others.join(" + ")
            );
            return Err(RetrieverError::encoder(
                path,
                why,
                "use an encoder with mean or CLS pooling",
            ));
        }
    };
    if pooling == Pooling::Mean && config.get("include_prompt") == Some(&Value::Bool(false)) {
        let why = "include_prompt = false, a mean that leaves the prompt out, is not computed here";
        return Err(RetrieverError::encoder(
            path,
            why,
            "use an encoder whose mean includes the prompt",
        ));
    }
    let dim = config
        .get("word_embedding_dimension")
        .or(config.get("embedding_dimension"))
        .and_then(Value::as_u64);
    Ok((pooling, dim.and_then(|dim| usize::try_from(dim).ok())))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PromptsFile {
    prompts: Option<Map<String, Value>>,
    default_prompt_name: Option<String>,
    similarity_fn_name: Option<String>,
}

impl PromptsFile {
    /// The prompts, if any is not empty: sentence-transformers writes empty ones for models that
    /// have none.
    fn prompts(&self) -> Option<Prompts> {
        let declared = self.prompts.as_ref()?;
        let named = |name: &str| declared.get(name).and_then(Value::as_str);
        if declared.values().all(|prompt| prompt.as_str().is_none_or(str::is_empty)) {
            return None;
        }
        let default = self.default_prompt_name.as_deref().and_then(named).unwrap_or_default();
        let passage = ["document", "passage", "corpus"].into_iter().find_map(named);
        Some(Prompts {
            query: named("query").unwrap_or(default).to_owned(),
            passage: passage.unwrap_or(default).to_owned(),
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TextFile {
    do_lower_case: bool,
}

#[cfg(test)]
mod tests;
