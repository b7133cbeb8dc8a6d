//! Which recipe is called NAME? A file, or one inside the binary.
//!
//! | name | recipe |
//! |---|---|
//! | `base`, `tiny`, `methods/kd`, `paper/qwen2.5-3b-0.5b` | configs/NAME.toml, as compiled into the binary |
//! | `tiny/kd`: WORLD/METHOD | the world with the method laid over it: `extends = ["tiny", "methods/kd"]` |
//! | `tiny/grpo` | configs/tiny/grpo.toml: where a file says what is special about a method in a world, it stands for the pair |
//! | anything else | the file of that path |
//!
//! A world says with which models, data and sizes; a method says what is done with them, and holds
//! no scale.
use super::ConfigError;
use dgpo_models::suggest::did_you_mean;
use std::{
    borrow::Cow,
    fmt,
    path::{Component, Path, PathBuf},
};

/// Embeds recipes of `configs/` under their names.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../configs/", $name, ".toml")))),*]
    };
}

/// The files inside the binary, by name.
pub const BUILT_IN: &[(&str, &str)] = embedded![
    "base",
    "tiny",
    "tiny-llama",
    "smoke",
    "paper/wikipedia",
    "paper/qwen2.5-3b-0.5b",
    "paper/qwen2.5-7b-0.5b",
    "paper/llama3-8b-1b",
    "tiny/grpo",
    "tiny/dgpo-grpo",
    "tiny/distillm",
    "methods/sft",
    "methods/seqkd",
    "methods/kd",
    "methods/gkd",
    "methods/distillm",
    "methods/taid",
    "methods/ppo",
    "methods/sft-ppo",
    "methods/dgpo",
    "methods/dgpo-grpo",
    "methods/dgpo-no-kd",
    "methods/dgpo-uniform-kl",
    "methods/dgpo-no-teacher",
    "methods/ppo-kd",
    "methods/kd-gkd",
    "methods/grpo",
];

/// Models, data and sizes that a method can be laid over. Each is a whole run by itself, that of
/// DGPO.
pub const WORLDS: [&str; 6] = [
    "tiny",
    "tiny-llama",
    "smoke",
    "paper/qwen2.5-3b-0.5b",
    "paper/qwen2.5-7b-0.5b",
    "paper/llama3-8b-1b",
];

/// The methods: every row of the paper's tables.
pub fn methods() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().filter_map(|(name, _)| name.strip_prefix("methods/"))
}

/// Every name that `--config` and `extends` know without a file.
pub fn names() -> impl Iterator<Item = String> {
    let pairs =
        WORLDS.iter().flat_map(|world| methods().map(move |method| format!("{world}/{method}")));
    BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).chain(pairs)
}

/// List of what there is, in one line.
pub fn described() -> String {
    let methods: Vec<&str> = methods().collect();
    format!(
        "built in are base, {}, and each of these but base with a method, as in tiny/kd: {}",
        WORLDS.join(", "),
        methods.join(", ")
    )
}

/// A recipe file, or a recipe inside the binary.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File(PathBuf),
    BuiltIn { name: String, text: Cow<'static, str> },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn { name, .. } => write!(f, "built-in {name}"),
        }
    }
}

impl Place {
    /// The recipe inside the binary that is called `name`.
    fn built_in(name: &str) -> Option<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Some(Self::BuiltIn { name: name.to_owned(), text: Cow::Borrowed(text) });
        }
        let (world, method) = name.rsplit_once('/')?;
        let is_pair = WORLDS.contains(&world) && methods().any(|known| known == method);
        let text = || format!("extends = [\"{world}\", \"methods/{method}\"]\n");
        is_pair.then(|| Self::BuiltIn { name: name.to_owned(), text: Cow::Owned(text()) })
    }

    /// `name` as written on the command line, or behind `extends` in the recipe `from`: a name of
    /// the table above, else a file (beside the extending one). With `.toml` behind it, it is a
    /// file where there is one, else the built-in recipe of that name.
    /// # Errors
    /// [`ConfigError::UnknownRecipe`] if it looks like a name and is none.
    pub(super) fn find(name: &str, from: Option<&Self>) -> Result<Self, ConfigError> {
        let stem = name.strip_suffix(".toml");
        if let Some(recipe) = Self::built_in(name) {
            return Ok(recipe);
        }
        // A variable or a home folder that is not there stays in the name, and the message shows
        // it.
        let expanded = crate::hub::expand(name);
        let name = expanded.as_deref().unwrap_or(name);
        let path = match from {
            // Inside the binary, paths lead from recipe to recipe.
            Some(Self::BuiltIn { name: extending, .. }) => {
                let inside = normalised(
                    &Path::new(extending)
                        .parent()
                        .unwrap_or(Path::new(""))
                        .join(stem.unwrap_or(name)),
                );
                return Self::built_in(&inside).ok_or_else(|| unknown(name));
            }
            Some(Self::File(file)) => file.parent().unwrap_or(Path::new("")).join(name),
            None => PathBuf::from(name),
        };
        match stem.and_then(Self::built_in) {
            Some(recipe) if !path.exists() => Ok(recipe),
            None if stem.is_none() && !path.exists() && !name.starts_with(['.', '/', '\\']) => {
                Err(unknown(name))
            }
            _ => Ok(Self::File(path)),
        }
    }

    /// The first half of a run's default name: the file's stem, or the name with dashes
    /// ("tiny-kd").
    pub(super) fn run_name(&self) -> String {
        match self {
            Self::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::BuiltIn { name, .. } => name.replace('/', "-"),
        }
    }

    /// The same for two spellings of one path.
    pub(super) fn identity(&self) -> PathBuf {
        match self {
            Self::BuiltIn { name, .. } => PathBuf::from(format!("built-in:{name}")),
            Self::File(path) => path.canonicalize().unwrap_or_else(|_| path.clone()),
        }
    }

    /// # Errors
    /// If the file cannot be read.
    pub(super) fn text(&self, is_extended: bool) -> Result<String, ConfigError> {
        let path = match self {
            Self::BuiltIn { text, .. } => return Ok(text.clone().into_owned()),
            Self::File(path) => path,
        };
        let text = std::fs::read_to_string(path).map_err(|source| {
            let hint = match (built_in_like(path), is_extended) {
                (Some(known), true) => format!("the recipe is built in: extends = \"{known}\""),
                (Some(known), false) => format!("the recipe is built in: --config {known}"),
                (None, true) => {
                    "check `extends`; relative paths start at the folder of the recipe that \
                     extends"
                        .to_owned()
                }
                (None, false) => {
                    "check the path; relative ones start at the current directory".to_owned()
                }
            };
            ConfigError::Read { path: path.clone(), source, hint }
        })?;
        // Some editors begin a file with a byte order mark, which TOML does not know.
        Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
    }
}

fn unknown(name: &str) -> ConfigError {
    let names: Vec<String> = names().collect();
    let guess = did_you_mean(name, names.iter().map(String::as_str))
        .map_or_else(String::new, |n| format!("did you mean {n}? "));
    let hint = format!("{guess}{}; a file is named by its path, e.g. ./{name}.toml", described());
    ConfigError::UnknownRecipe { name: name.to_owned(), hint }
}

/// A path inside the table of names, without `.` and `..`.
fn normalised(path: &Path) -> String {
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            _ => {}
        }
    }
    parts.join("/")
}

/// The built-in recipe that a path which leads nowhere ends with: "configs/tiny/kd.toml" ->
/// "tiny/kd".
fn built_in_like(path: &Path) -> Option<String> {
    let path = normalised(&path.with_extension(""));
    let starts = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
    starts
        .map(|start| &path[start..])
        .find(|tail| Place::built_in(tail).is_some())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load, plan, shapes::Shapes};

    #[test]
    fn every_method_of_the_paper_is_there_for_every_world() {
        assert_eq!(methods().count(), 16);
        for name in names().filter(|name| WORLDS.iter().any(|world| name.starts_with(world))) {
            let loaded = load(&name, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
            let plan = plan::plan(&loaded.recipe, &Shapes::default());
            assert!(
                !plan.phases.is_empty() && loaded.warnings.is_empty(),
                "{name}: {:?}",
                loaded.warnings
            );
        }
    }

    #[test]
    fn every_file_of_the_methods_and_worlds_is_in_the_binary() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        for folder in ["methods", "paper"] {
            for entry in std::fs::read_dir(configs.join(folder)).unwrap() {
                let name = format!(
                    "{folder}/{}",
                    entry.unwrap().path().file_stem().unwrap().to_string_lossy()
                );
                assert!(BUILT_IN.iter().any(|(known, _)| *known == name), "{name}");
            }
        }
    }

    #[test]
    fn a_world_alone_is_its_dgpo() {
        for world in WORLDS {
            let [alone, dgpo] = [world.to_owned(), format!("{world}/dgpo")]
                .map(|name| load(&name, &[]).unwrap().recipe);
            assert_eq!(alone, dgpo, "{world}");
        }
    }

    #[test]
    fn a_pair_is_found_from_the_command_line_and_from_files_and_names_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "extends = \"paper/qwen2.5-3b-0.5b/kd-gkd\"\nrun.seed = 3\n")
            .unwrap();
        let loaded = load(&path.to_string_lossy(), &[]).unwrap();
        assert_eq!(loaded.sources[1], "built-in paper/qwen2.5-3b-0.5b/kd-gkd");
        assert_eq!(
            load("paper/qwen2.5-3b-0.5b/kd-gkd", &[]).unwrap().run_name(),
            "paper-qwen2.5-3b-0.5b-kd-gkd-seed0"
        );
        // What is special about a method in a world wins over both.
        let rl = load("tiny/grpo", &[]).unwrap().recipe.rl;
        assert_eq!((rl.episodes_per_question, rl.questions_per_step, rl.mini_batch), (5, 20, 50));
    }

    #[test]
    fn a_method_is_laid_over_a_file_of_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("world.toml"),
            "extends = \"tiny\"\nrl.steps = 7\nkl.mode = \"none\"\n",
        )
        .unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "extends = [\"world.toml\", \"methods/dgpo-uniform-kl\"]\n").unwrap();
        let loaded = load(&path.to_string_lossy(), &[]).unwrap();
        assert_eq!(
            (loaded.recipe.rl.steps, loaded.recipe.kl.mode),
            (7, dgpo_core::settings::KlMode::Uniform)
        );
    }

    #[test]
    fn a_slip_in_a_name_gets_the_nearest_one() {
        for (slip, meant) in [
            ("tiny/kdd", "tiny/kd"),
            ("paper/qwen2.5-3b-0.5/dgpo", "paper/qwen2.5-3b-0.5b/dgpo"),
            ("methods/dpgo", "methods/dgpo"),
        ] {
            let error = load(slip, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean {meant}?")), "{error}");
        }
        let error = load("configs/tiny/kd.toml", &[]).unwrap_err().to_string();
        assert!(error.contains("--config tiny/kd"), "{error}");
    }
}
