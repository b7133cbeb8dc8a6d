//! From a recipe file to a typed [`Recipe`]: file -> `extends` -> `--set` -> types -> rules.
//!
//! Each layer is flattened to (dotted key, value, where it was written); a later layer replaces an
//! earlier key. `extends` names one recipe or a list of them, of which the later win; a recipe that
//! several extend is laid down once, where it comes first. The flat map is then laid over the
//! default recipe, whose own keys are the list of what exists. So one mechanism serves inheritance,
//! overrides, did-you-mean and messages that name file and line, and a partial `[optim.actor]`
//! keeps the actor's other defaults.
use super::{
    ConfigError, Origin, Problem, Recipe, bounds, check,
    library::{Place, described},
    secrets,
};
use dgpo_core::settings::base;
use dgpo_models::suggest::did_you_mean;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use toml::{Table, Value, de::DeTable};

/// A recipe with where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub recipe: Recipe,
    /// File stem or built-in name: the first half of a run's default name.
    pub name: String,
    /// The files (or built-in recipes) read, the extending one first.
    pub sources: Vec<String>,
    /// Legal, but probably not meant.
    pub warnings: Vec<Problem>,
}

impl Loaded {
    /// `run.name`, or the recipe's name and seed: `tiny-seed0`. What a file may be called and a run
    /// may not ("my recipe.toml") becomes dashes.
    pub fn run_name(&self) -> String {
        match self.recipe.run.name.as_str() {
            "" => {
                let name = self
                    .name
                    .trim_start_matches('.')
                    .replace(|c: char| !(c.is_ascii_alphanumeric() || "._-+".contains(c)), "-");
                format!("{name}-seed{}", self.recipe.run.seed)
            }
            name => name.to_owned(),
        }
    }
}

/// Reads the recipe `source`, a path or the bare name of a built-in recipe, applies `overrides`
/// (`a.b=value`, in order), and checks the rules.
///
/// An override's value is TOML; text that is not (or a number where the key holds text) is taken as
/// a bare string.
///
/// ```
/// let overrides = ["rl.steps=3".to_owned()];
/// let loaded = dgpo_run::config::load("tiny", &overrides).expect("a built-in recipe");
/// assert_eq!(loaded.recipe.rl.steps, 3);
///
/// let error = dgpo_run::config::load("tiny", &["rl.step=3".to_owned()]).unwrap_err();
/// assert!(error.to_string().ends_with("did you mean rl.steps?"), "{error}");
/// ```
///
/// # Errors
/// [`ConfigError`], each variant with the place and a hint; all broken rules at once.
pub fn load(source: &str, overrides: &[String]) -> Result<Loaded, ConfigError> {
    let mut loaded = load_part(source, overrides)?;
    let findings = check::check(&loaded.recipe);
    if !findings.errors.is_empty() {
        return Err(ConfigError::Rules(findings.errors));
    }
    loaded.warnings = findings.warnings;
    Ok(loaded)
}

/// As [`load`], for commands that use a part of the recipe: the rules are not checked.
/// # Errors
/// As [`load`], but for [`ConfigError::Rules`].
pub fn load_part(source: &str, overrides: &[String]) -> Result<Loaded, ConfigError> {
    let place = Place::find(source, None)?;
    let name = place.run_name();
    let mut layers = Vec::new();
    collect_layers(place, &mut Vec::new(), &mut layers)?;
    let mut settings = Settings::new();
    for layer in &mut layers {
        settings.append(&mut layer.settings);
    }
    for argument in overrides {
        settings.append(&mut parse_override(argument)?);
    }
    refuse_secrets(&settings)?;
    let sources = layers.into_iter().rev().map(|layer| layer.place.to_string()).collect();
    Ok(Loaded { recipe: typed(settings)?, name, sources, warnings: Vec::new() })
}

/// A recipe is written into runs, checkpoints and reports, so no text in it may hold a password.
fn refuse_secrets(settings: &Settings) -> Result<(), ConfigError> {
    for (key, (value, origin)) in settings {
        let listed = value.as_array().into_iter().flatten();
        let is_secret = |text: &str| {
            if key == secrets::ADDRESS_KEY {
                secrets::may_hold_user(text)
            } else {
                secrets::without_users(text) != text
            }
        };
        if listed.chain([value]).filter_map(Value::as_str).any(is_secret) {
            let why = "is an address with a user or a password".to_owned();
            let hint = if key == secrets::ADDRESS_KEY {
                secrets::SECRET_HINT
            } else {
                secrets::OTHER_HINT
            };
            return Err(ConfigError::WrongType {
                origin: Box::new(origin.clone()),
                key: key.clone(),
                why,
                hint: hint.to_owned(),
            });
        }
    }
    Ok(())
}

/// The recipe as a complete TOML file, which loads back to an equal recipe.
pub fn to_toml(recipe: &Recipe) -> String {
    toml::to_string_pretty(recipe)
        .expect("a recipe holds only tables, numbers, text and lists of text")
}

/// The recipe in a record, such as a checkpoint's state. Keys that are newer than the record have
/// their defaults; numbers are those that a recipe file may have, and what is beyond TOML's is
/// damage.
/// # Errors
/// If it is not one.
pub fn recorded_recipe<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Recipe>, D::Error> {
    let Some(recorded) = Option::<Table>::deserialize(deserializer)? else { return Ok(None) };
    let mut whole = default_table();
    lay_over(&mut whole, recorded);
    whole.try_into().map(Some).map_err(serde::de::Error::custom)
}

/// The keys in which two recipes differ, with the values of both: (key, left, right).
pub fn differences(left: &Recipe, right: &Recipe) -> Vec<(String, Value, Value)> {
    flat_values(left)
        .into_iter()
        .zip(flat_values(right))
        .filter(|((_, l), (_, r))| l != r)
        .map(|((key, l), (_, r))| (key, l, r))
        .collect()
}

/// Dotted key -> value and where it was written.
type Settings = BTreeMap<String, (Value, Origin)>;

struct Layer {
    place: Place,
    settings: Settings,
}

/// Reads what a recipe extends, recursively, and then the recipe: what is laid down first comes
/// first. `extending` are the recipes on the way to it.
fn collect_layers(
    place: Place,
    extending: &mut Vec<Place>,
    layers: &mut Vec<Layer>,
) -> Result<(), ConfigError> {
    if extending.iter().any(|earlier| earlier.identity() == place.identity()) {
        return Err(ConfigError::Cycle {
            chain: extending.iter().chain([&place]).map(Place::to_string).collect(),
        });
    }
    if layers.iter().any(|layer| layer.place.identity() == place.identity()) {
        return Ok(());
    }
    let mut settings = parse_file(&place.to_string(), &place.text(!extending.is_empty())?)?;
    let bases = settings
        .remove("extends")
        .map_or(Ok(Vec::new()), |(value, origin)| bases_of(value, origin))?;
    extending.push(place);
    for name in bases {
        let base = Place::find(&name, extending.last())?;
        collect_layers(base, extending, layers)?;
    }
    let place = extending.pop().expect("pushed above");
    layers.push(Layer { place, settings });
    Ok(())
}

/// The names behind `extends`.
fn bases_of(value: Value, origin: Origin) -> Result<Vec<String>, ConfigError> {
    let wrong = |found: &str| ConfigError::WrongType {
        origin: Box::new(origin.clone()),
        key: "extends".into(),
        why: format!("expected the name of a recipe or a list of names, found {found}"),
        hint: format!(
            "write extends = \"base\", which is built in, or the path of a recipe; {}",
            described()
        ),
    };
    let name = |value: Value| match value {
        Value::String(name) => Ok(name),
        other => Err(wrong(other.type_str())),
    };
    match value {
        Value::Array(names) => names.into_iter().map(name).collect(),
        value => Ok(vec![name(value)?]),
    }
}

fn parse_file(source: &str, text: &str) -> Result<Settings, ConfigError> {
    let origin_at = |offset: usize| {
        let line = text[..offset.min(text.len())].matches('\n').count() + 1;
        Origin {
            source: source.to_owned(),
            line: Some(line),
            excerpt: text.lines().nth(line - 1).unwrap_or_default().to_owned(),
        }
    };
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        origin: Box::new(origin_at(error.span().map_or(0, |span| span.start))),
        why: error.message().to_owned(),
    };
    let spans = DeTable::parse(text).map_err(syntax)?;
    let values: Table = toml::from_str(text).map_err(syntax)?;
    let mut settings = Settings::new();
    flatten(&values, Some(spans.get_ref()), "", &origin_at, &mut settings);
    Ok(settings)
}

fn parse_override(argument: &str) -> Result<Settings, ConfigError> {
    let wrong =
        |why: &str| ConfigError::Override { argument: argument.to_owned(), why: why.to_owned() };
    let (key, text) = argument.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    let (key, text) = (key.trim(), text.trim());
    if key.is_empty() {
        return Err(wrong("there is no key before `=`"));
    }
    let origin =
        |_| Origin { source: format!("--set {argument}"), line: None, excerpt: String::new() };
    let mut settings = Settings::new();
    let is_text = default_values().get(key).is_some_and(Value::is_str);
    match toml::from_str::<Table>(&format!("value = {text}")).map(|mut table| table.remove("value"))
    {
        Ok(Some(Value::Table(table))) => flatten(&table, None, key, &origin, &mut settings),
        Ok(Some(value)) if !is_text || value.is_str() => {
            settings.insert(key.to_owned(), (value, origin(0)));
        }
        // Text that starts like a TOML value and is not one is a slip, not a bare string.
        Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
            return Err(wrong(error.message()));
        }
        _ => {
            settings.insert(key.to_owned(), (Value::String(text.to_owned()), origin(0)));
        }
    }
    Ok(settings)
}

/// Appends the leaves of a table under `prefix`; `spans` is the same table with source positions.
fn flatten(
    values: &Table,
    spans: Option<&DeTable<'_>>,
    prefix: &str,
    origin_at: &dyn Fn(usize) -> Origin,
    out: &mut Settings,
) {
    for (key, value) in values {
        let span = spans.and_then(|spans| spans.iter().find(|(name, _)| name.get_ref() == key));
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) if !table.is_empty() => {
                flatten(
                    table,
                    span.and_then(|(_, value)| value.get_ref().as_table()),
                    &dotted,
                    origin_at,
                    out,
                );
            }
            _ => {
                out.insert(
                    dotted,
                    (value.clone(), origin_at(span.map_or(0, |(name, _)| name.span().start))),
                );
            }
        }
    }
}

/// Every key a recipe has, with the recipe's value.
fn flat_values(recipe: &Recipe) -> BTreeMap<String, Value> {
    let nowhere = |_| Origin { source: String::new(), line: None, excerpt: String::new() };
    let mut settings = Settings::new();
    flatten(&table_of(recipe), None, "", &nowhere, &mut settings);
    settings.into_iter().map(|(key, (value, _))| (key, value)).collect()
}

fn table_of(recipe: &Recipe) -> Table {
    Table::try_from(recipe).expect("a recipe holds only tables, numbers, text and lists of text")
}

fn default_table() -> Table {
    base("")
}

/// Replaces the values of `table` by those of `upper`, table by table.
fn lay_over(table: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(upper)) => lay_over(inner, upper),
            (_, value) => _ = table.insert(key, value),
        }
    }
}

fn default_values() -> BTreeMap<String, Value> {
    flat_values(&Recipe::default())
}

/// Lays the settings over the default recipe.
fn typed(settings: Settings) -> Result<Recipe, ConfigError> {
    let known = default_values();
    let defaults = default_table();
    let mut whole = defaults.clone();
    for (key, (value, origin)) in settings {
        let Some(default) = known.get(&key) else {
            // An empty table of a known name says nothing and does no harm.
            let is_table = known
                .keys()
                .any(|k| k.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')));
            if is_table && matches!(&value, Value::Table(_)) {
                continue;
            }
            let hint = if is_table {
                format!("{key} is a table: [{key}]")
            } else {
                key_hint(&key, &known)
            };
            return Err(ConfigError::UnknownKey { origin: Box::new(origin), key, hint });
        };
        set(&mut whole, &key, value.clone());
        let bounded = bounds::check(&key, &value);
        // Alone over the defaults, a value that has the wrong type betrays itself with its place.
        let mut alone = defaults.clone();
        set(&mut alone, &key, value);
        if let Err(error) = alone.try_into::<Recipe>() {
            let (hint, why) = (type_hint(default, error.message()), error.message().to_owned());
            return Err(ConfigError::WrongType { origin: Box::new(origin), key, why, hint });
        }
        if let Err((why, hint)) = bounded {
            return Err(ConfigError::WrongType { origin: Box::new(origin), key, why, hint });
        }
    }
    Ok(whole
        .try_into()
        .expect("each value alone fitted its field, and no type looks at two fields"))
}

fn set(table: &mut Table, dotted: &str, value: Value) {
    match dotted.split_once('.') {
        None => {
            table.insert(dotted.to_owned(), value);
        }
        Some((first, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                set(inner, rest, value);
            }
        }
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Guess at an unknown key: the same name in another table, a similar name in the same
/// table, or anything similar.
fn key_hint(key: &str, known: &BTreeMap<String, Value>) -> String {
    let elsewhere: Vec<&str> =
        known.keys().map(String::as_str).filter(|k| last(k) == last(key)).take(3).collect();
    if !elsewhere.is_empty() {
        return format!("did you mean {}?", elsewhere.join(" or "));
    }
    let table = key.rsplit_once('.').map_or("", |(table, _)| table);
    let siblings: Vec<&str> = known
        .keys()
        .filter(|k| k.rsplit_once('.').map_or("", |(t, _)| t) == table)
        .map(|k| last(k))
        .collect();
    if let Some(sibling) = did_you_mean(last(key), siblings.iter().copied()) {
        let dot = if table.is_empty() { "" } else { "." };
        return format!("did you mean {table}{dot}{sibling}?");
    }
    if let Some(guess) = did_you_mean(key, known.keys().map(String::as_str)) {
        return format!("did you mean {guess}?");
    }
    match siblings.is_empty() {
        true => "`dgpo plan --recipe` prints every key".to_owned(),
        false => format!(
            "{} has {}",
            if table.is_empty() { "the recipe" } else { table },
            siblings.join(", ")
        ),
    }
}

fn type_hint(default: &Value, why: &str) -> String {
    // serde lists the names of an enum in backticks: `found`, expected one of `a`, `b`.
    let names: Vec<&str> = why.split('`').skip(1).step_by(2).collect();
    match (default, names.as_slice()) {
        (Value::String(_), [found, names @ ..]) if !names.is_empty() => {
            match did_you_mean(found, names.iter().copied()) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => format!("one of {}", names.join(", ")),
            }
        }
        (Value::String(_), _) => "write text in quotation marks".to_owned(),
        (Value::Integer(n), _) => format!("a whole number from 0 on, such as {n}"),
        (Value::Float(x), _) => format!("a number such as {x}"),
        (Value::Boolean(_), _) => "true or false".to_owned(),
        (Value::Array(_), _) => "a list such as [\"a.jsonl\", \"b.jsonl\"]".to_owned(),
        _ => "`dgpo plan --recipe` prints the default".to_owned(),
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
pub(super) mod tests;
