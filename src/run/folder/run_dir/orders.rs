//! The recipe and the provenance of a run, and their replacement when it goes on with other
//! settings.
use super::{PROVENANCE_FILE, RECIPE_FILE, RunDir, RunDirError, pretty};
use crate::config::{self, Recipe};
use serde_json::Value;

impl RunDir {
    /// The resolved recipe; also what a resumed run uses.
    /// # Errors
    /// If the file is not a recipe any more.
    pub fn recipe(&self) -> Result<Recipe, RunDirError> {
        self.recipe_with(&[])
    }

    /// The recipe with settings (`KEY=VALUE`) laid over it.
    /// # Errors
    /// As [`Self::recipe`]; if a setting is not one.
    pub fn recipe_with(&self, overrides: &[String]) -> Result<Recipe, RunDirError> {
        Ok(config::load(&self.path.join(RECIPE_FILE).to_string_lossy(), overrides)?.recipe)
    }

    /// The provenance of the run ([`crate::folder::provenance::Provenance`]); `Null` where it is
    /// unknown.
    /// # Errors
    /// If the file is damaged.
    pub fn provenance(&self) -> Result<Value, RunDirError> {
        Ok(self.read_json(PROVENANCE_FILE)?.unwrap_or(Value::Null))
    }

    /// Replaces the recipe and the provenance of a run that goes on with other settings. The recipe
    /// is written last, so that its changes are always recorded.
    /// # Errors
    /// If the disk fails.
    pub fn steer(&self, recipe: &Recipe, provenance: &Value) -> Result<(), RunDirError> {
        self.write(PROVENANCE_FILE, pretty(provenance))?;
        self.write(RECIPE_FILE, config::load::to_toml(recipe))
    }
}
