//! Declarations about chats in the files beside a tokenizer: the template, the named tokens, the
//! tokens that end a text.
use super::{chat::ChatError, declared::CONFIG_FILE};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A template's text and the file it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The declarations of several folders; the first folder that declares something wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) template: Option<Source>,
    /// `bos_token`, `eos_token` and so on.
    pub(super) tokens: BTreeMap<String, String>,
    /// `eos_token_id` of generation_config.json.
    pub(super) eos_ids: Vec<u32>,
}

/// The file whose template takes precedence over all others.
pub const JINJA_FILE: &str = "chat_template.jinja";
const TEMPLATE_FILE: &str = "chat_template.json";
const GENERATION_FILE: &str = "generation_config.json";

/// Published tokenizer_config.json have up to a megabyte (of added tokens).
const MAX_BYTES: u64 = 32 << 20;

impl Declared {
    /// # Errors
    /// A file that exists and cannot be understood.
    pub(super) fn read(folders: &[PathBuf]) -> Result<Self, ChatError> {
        let mut declared = Self::default();
        for folder in folders {
            let config = read_json(&folder.join(CONFIG_FILE))?;
            if declared.template.is_none() {
                declared.template = template(folder, config.as_ref())?;
            }
            for (name, value) in config
                .iter()
                .flat_map(Value::as_object)
                .flatten()
                .filter(|(name, _)| name.ends_with("_token"))
            {
                if let Some(token) = value.as_str().or_else(|| value.get("content")?.as_str()) {
                    declared.tokens.entry(name.clone()).or_insert_with(|| token.to_owned());
                }
            }
            let generation = read_json(&folder.join(GENERATION_FILE))?;
            let ids = generation.as_ref().and_then(|config| config.get("eos_token_id"));
            if let Some(ids) = ids.filter(|_| declared.eos_ids.is_empty()) {
                let list = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
                declared.eos_ids =
                    list.iter().filter_map(|id| id.as_u64()?.try_into().ok()).collect();
            }
        }
        Ok(declared)
    }
}

fn template(folder: &Path, config: Option<&Value>) -> Result<Option<Source>, ChatError> {
    let path = folder.join(JINJA_FILE);
    if let Some(text) = read(&path)? {
        return Ok(Some(Source { path, text }));
    }
    let separate = folder.join(TEMPLATE_FILE);
    let of_separate = read_json(&separate)?;
    for (path, json) in [(folder.join(CONFIG_FILE), config), (separate, of_separate.as_ref())] {
        match json.and_then(|json| json.get("chat_template")) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => return Ok(Some(Source { path, text: text.clone() })),
            Some(Value::Array(named)) => return named_default(path, named).map(Some),
            Some(_) => {
                let why =
                    "chat_template is neither a text nor a list of texts with names".to_owned();
                return Err(ChatError::Read { path, why });
            }
        }
    }
    Ok(None)
}

/// The template called `default` of `[{"name", "template"}]`, or the only one.
fn named_default(path: PathBuf, named: &[Value]) -> Result<Source, ChatError> {
    let part = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let all: Vec<(String, String)> = named
        .iter()
        .filter_map(|entry| Some((part(entry, "name")?, part(entry, "template")?)))
        .collect();
    let default =
        all.iter().find(|(name, _)| name == "default").or(all.first().filter(|_| all.len() == 1));
    match default {
        Some((_, text)) => Ok(Source { text: text.clone(), path }),
        None => Err(ChatError::NoDefault {
            path,
            names: all.into_iter().map(|(name, _)| name).collect(),
        }),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, ChatError> {
    let parsed = read(path)?.map(|text| serde_json::from_str(&text)).transpose();
    parsed.map_err(|error| ChatError::Read { path: path.to_owned(), why: error.to_string() })
}

/// The file's object; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>, ChatError> {
    let failed = |why: String| ChatError::Read { path: path.to_owned(), why };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            Err(failed(format!("it has {} bytes, more than {MAX_BYTES}", metadata.len())))
        }
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(|error| failed(error.to_string())),
    }
}
