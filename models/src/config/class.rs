//! Which kind of model a folder holds.
use super::fields::Fields;
use crate::ModelError;
use serde_json::Value;
use std::path::Path;

/// The kind of model in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelClass {
    /// A causal language model.
    Decoder,
    /// A decoder's trunk under a scalar head (transformers' `*ForTokenClassification`).
    Critic,
    /// A BERT encoder of texts.
    Encoder,
}

impl ModelClass {
    /// Decided by `model_type` and `architectures` of a config.json alone; everything else is the
    /// business of the config's reader.
    /// # Errors
    /// If the file cannot be read or is not JSON.
    pub fn of(path: &Path) -> Result<Self, ModelError> {
        let mut fields = Fields::read(path)?;
        let is_classifier = |name: &Value| {
            name.as_str().is_some_and(|name| name.ends_with("ForTokenClassification"))
        };
        let architectures = fields.take("architectures");
        Ok(match fields.take("model_type").as_ref().and_then(Value::as_str) {
            Some("bert") => Self::Encoder,
            _ if architectures
                .as_ref()
                .and_then(Value::as_array)
                .is_some_and(|names| names.iter().any(is_classifier)) =>
            {
                Self::Critic
            }
            _ => Self::Decoder,
        })
    }
}
