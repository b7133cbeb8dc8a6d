//! Environment variables, questions, trajectories, passages, and the index or server that the
//! retriever asks.
use super::{super::asked::AskedBy, Needs, ProblemList, commands};
use crate::{
    config::{Recipe, RetrieverKind, RetrieverRecipe, Search},
    data::{
        corpus::Corpus,
        head::{CORPUS_BYTES, QUESTION_BYTES, check_file, estimated_rows},
        questions::read_questions,
    },
    devices::DeviceChoice,
    episodes::given::read_given,
    hub::{self, HubError},
    models::RANDOM_PREFIX,
    retriever::{
        address::Address,
        declared::EncoderDeclaration,
        encoder::fingerprint_of,
        encoder_options,
        index::{IndexMeta, VECTORS_FILE},
    },
};
use std::path::{Path, PathBuf};

/// Each variable that a name uses and that is not set, once.
pub(super) fn check_variables(needs: &Needs, recipe: &Recipe, found: &mut ProblemList) {
    let (data, model, retriever) = (&recipe.data, &recipe.model, &recipe.retriever);
    let lists = [
        ("data.train", &data.train, needs.train),
        ("data.test", &data.test, needs.test),
        ("data.trajectories", &data.trajectories, needs.trajectories),
    ];
    let single = [
        ("model.student", &model.student, needs.student),
        ("model.teacher", &model.teacher, needs.teacher),
        ("model.tokenizer", &model.tokenizer, needs.student),
        ("data.corpus", &data.corpus, needs.passages(recipe)),
        ("retriever.encoder", &retriever.encoder, needs.encodes(recipe)),
        (
            "retriever.index",
            &retriever.index,
            needs.retriever && retriever.kind == RetrieverKind::Dense,
        ),
        (
            "retriever.url",
            &retriever.url,
            needs.retriever && retriever.kind == RetrieverKind::Remote,
        ),
    ];
    let lists = lists
        .into_iter()
        .filter(|(.., is_needed)| *is_needed)
        .flat_map(|(key, names, _)| names.iter().map(move |name| (key, name)));
    let single =
        single.into_iter().filter(|(.., is_needed)| *is_needed).map(|(key, name, _)| (key, name));
    let mut unset: Vec<(String, &'static str, Vec<&'static str>)> = Vec::new();
    for (key, name) in single.chain(lists) {
        match hub::expand(name) {
            Err(HubError::Unset { variable, .. }) => {
                match unset.iter_mut().find(|(known, ..)| *known == variable) {
                    Some((_, _, keys)) => keys.push(key),
                    None => unset.push((variable, key, vec![key])),
                }
            }
            Err(error) => found.error(key, &error),
            // What a recipe writes out was checked with it; what variables hold is seen here.
            Ok(_) if key == "retriever.url" => {
                if let Err(error) = Address::of(name) {
                    found.error(key, &error);
                }
            }
            Ok(_) => {}
        }
    }
    for (variable, key, mut keys) in unset {
        keys.dedup();
        let message = format!(
            "the environment variable {variable} is not set or empty, and {} with it",
            keys.join(", ")
        );
        let example = match key {
            "retriever.url" => "http://127.0.0.1:8000/retrieve".to_owned(),
            _ if variable == "HOME" => "/home/$(id -un)".to_owned(),
            _ => format!("$HOME/{}", variable.to_lowercase()),
        };
        found.push(key, message, format!("export {variable}=\"{example}\""));
    }
}

pub(super) fn check(needs: &Needs, recipe: &Recipe, device: DeviceChoice, found: &mut ProblemList) {
    let data = &recipe.data;
    let questions = |path: &Path| check_file(path, QUESTION_BYTES, read_questions);
    if needs.train {
        for (_, path) in located("data.train", &data.train, found) {
            told("data.train", questions(&path), found);
        }
    }
    if needs.test {
        let mut asked = AskedBy::default();
        for (name, path) in located("data.test", &data.test, found) {
            let Some(mut of_file) = told("data.test", questions(&path), found) else { continue };
            if data.max_test > 0 {
                of_file.truncate(data.max_test);
            }
            if let Err(twice) = asked.once_each(name, &of_file) {
                found.error("data.test", &twice);
            }
        }
    }
    if needs.trajectories {
        for (_, path) in located("data.trajectories", &data.trajectories, found) {
            let read = check_file(&path, QUESTION_BYTES, read_given);
            told("data.trajectories", read, found);
        }
    }
    let mut corpus = None;
    if needs.passages(recipe) {
        for (_, path) in located("data.corpus", std::slice::from_ref(&data.corpus), found) {
            let limited = |path: &Path| match data.max_passages {
                0 => Corpus::open(path),
                n => Corpus::open(path)?.first(n),
            };
            corpus = told("data.corpus", check_file(&path, CORPUS_BYTES, limited), found);
        }
    }
    if needs.retriever
        && recipe.retriever.kind == RetrieverKind::Dense
        && !recipe.retriever.index.is_empty()
    {
        check_index(recipe, device, corpus.as_ref(), found);
    }
}

/// Content of a file that was read whole; an error is told.
fn told<T>(
    key: &'static str,
    read: Result<Option<T>, crate::data::DataError>,
    found: &mut ProblemList,
) -> Option<T> {
    read.unwrap_or_else(|error| {
        found.error(key, &error);
        None
    })
}

/// The data files of `names` that are there; each of the others becomes a problem with the command
/// that fetches it.
fn located<'a>(
    key: &'static str,
    names: &'a [String],
    found: &mut ProblemList,
) -> Vec<(&'a str, PathBuf)> {
    let mut paths = Vec::new();
    for name in names {
        match hub::resolve(name) {
            Ok(path) if path.is_dir() => {
                let hint = format!(
                    "`{}` shows the files in it: name one",
                    commands::look(&path.join("x").display().to_string())
                );
                found.push(key, format!("{name} is a folder, and a file is read"), hint);
            }
            Ok(path) => paths.push((name.as_str(), path)),
            Err(error) => {
                let command = commands::get_data(name);
                not_found(key, name, &error, command, found);
            }
        }
    }
    paths
}

/// Tells a name that leads to nothing.
pub(super) fn not_found(
    key: &'static str,
    name: &str,
    error: &HubError,
    command: Option<String>,
    found: &mut ProblemList,
) {
    let message = match error {
        HubError::NotFound { looked, .. } => {
            // A model is no data set.
            let other = if key.starts_with("data.") { "models--" } else { "datasets--" };
            let looked = looked
                .iter()
                .map(|path| path.display().to_string())
                .filter(|path| !path.contains(other));
            let looked: Vec<String> =
                looked.map(|path| path.trim_end_matches('/').to_owned()).collect();
            format!("cannot find {name}; looked at {}", looked.join(", "))
        }
        HubError::Unset { variable, .. } => {
            format!("{name} can only be looked for when {variable} is set")
        }
        other => return found.error(key, other),
    };
    let path = name.strip_prefix(RANDOM_PREFIX).unwrap_or(name);
    let path = hub::expand(path).unwrap_or_else(|_| path.to_owned());
    let look = || {
        format!(
            "`{}` shows what is there; relative paths start at the current directory",
            commands::look(&path)
        )
    };
    match (command, error) {
        (Some(command), _) => found.push(key, message, command),
        // The variable has a problem of its own, with all that can be said.
        (None, HubError::Unset { .. }) => {}
        (None, _) => found.push(key, message, look()),
    }
}

/// The index that the recipe names: what it was built from, and whether its files have the sizes
/// they were written with. Their content is compared when it is opened.
fn check_index(
    recipe: &Recipe,
    device: DeviceChoice,
    corpus: Option<&Corpus>,
    found: &mut ProblemList,
) {
    const KEY: &str = "retriever.index";
    let (name, build) = (&recipe.retriever.index, || commands::build_index(recipe, device));
    let Ok(dir) = hub::expand(name) else {
        return found.push(
            KEY,
            format!("{name} can only be looked for when its variable is set"),
            build(),
        );
    };
    let dir = Path::new(&dir);
    if !dir.exists() {
        return found.push(KEY, format!("there is no index {}", dir.display()), build());
    }
    let meta = match IndexMeta::read(dir) {
        Ok(meta) => meta,
        Err(error) => {
            let error = error.rebuilt_with(|dir| {
                let index = dir.display().to_string();
                let mut recipe = recipe.clone();
                recipe.retriever.index = index;
                commands::build_index(&recipe, device)
            });
            return found.error(KEY, &error);
        }
    };
    let RetrieverRecipe { search, query_prefix, passage_prefix, max_tokens, .. } =
        &recipe.retriever;
    let encoder = &meta.encoder;
    if encoder.max_tokens != *max_tokens {
        let message = format!(
            "{} was built with {} tokens a text, and the recipe says {max_tokens}",
            dir.display(),
            encoder.max_tokens
        );
        found.push(
            "retriever.max_tokens",
            message,
            format!("--set retriever.max_tokens={}", encoder.max_tokens),
        );
    }
    // An encoder that is missing, or declares what cannot be read, has a problem of its own.
    let folder = hub::resolve(&recipe.retriever.encoder).ok();
    let declared = folder.as_ref().and_then(|folder| EncoderDeclaration::read(folder).ok());
    let n_before = found.problems.len();
    if let Some(declared) = declared.as_ref().filter(|declared| declared.head != encoder.head) {
        let message = format!(
            "{} was built with {}, and the encoder's folder declares {}",
            dir.display(),
            encoder.head,
            declared.head
        );
        found.push(KEY, message, build());
    }
    let prompts = declared.map(|declared| declared.resolve(query_prefix, passage_prefix));
    if prompts.is_some_and(|used| {
        [&used.query, &used.passage] != [&encoder.query_prefix, &encoder.passage_prefix]
    }) {
        let set = |key: &str, value: &str| {
            commands::word(&format!("retriever.{key}={}", toml::Value::String(value.to_owned())))
        };
        let hint = format!(
            "--set {} --set {}",
            set("query_prefix", &encoder.query_prefix),
            set("passage_prefix", &encoder.passage_prefix)
        );
        found.push(
            "retriever.query_prefix",
            format!("{} was built with other prefixes than the recipe's", dir.display()),
            hint,
        );
    }
    let is_text_the_same = found.problems.len() == n_before && encoder.max_tokens == *max_tokens;
    if let Some(folder) = folder.filter(|_| is_text_the_same)
        && fingerprint_of(&folder, encoder_options(&recipe.retriever))
            .is_ok_and(|fingerprint| fingerprint != encoder.fingerprint)
    {
        let message = format!(
            "{} was built with {}, whose weights or tokenizer are others than those of {}",
            dir.display(),
            encoder.name,
            recipe.retriever.encoder
        );
        found.push(KEY, message, build() + " --force");
    }
    if let Some(error) = corpus.and_then(|corpus| meta.check_corpus(dir, corpus).err()) {
        found.error(KEY, &error);
    }
    if *search == Search::Hnsw && meta.graph.is_none() {
        found.push(
            "retriever.search",
            format!("\"hnsw\" needs a graph, and {} has none", dir.display()),
            build(),
        );
    }
    let vectors_bytes = (meta.n_passages as u64)
        .saturating_mul(encoder.dim as u64)
        .saturating_mul(size_of::<f32>() as u64);
    let graph = meta.graph.as_ref().map(|graph| graph.files.sizes(dir));
    let files = [(dir.join(VECTORS_FILE), vectors_bytes)];
    for (file, n_bytes) in files.into_iter().chain(graph.into_iter().flatten()) {
        let message = match std::fs::metadata(&file) {
            Ok(metadata) if metadata.len() == n_bytes => continue,
            Ok(metadata) => {
                let there = metadata.len();
                format!("{} has {there} bytes, and {n_bytes} were written", file.display())
            }
            Err(error) => format!("cannot read {}: {error}", file.display()),
        };
        found.push(KEY, message, build() + " --force");
    }
}

/// About how many passages the recipe's corpus has, where that can be seen without reading it.
pub fn n_passages(recipe: &Recipe) -> Option<usize> {
    if recipe.data.corpus.is_empty() {
        return None;
    }
    let n = estimated_rows(&hub::resolve(&recipe.data.corpus).ok()?)?;
    Some(if recipe.data.max_passages == 0 { n } else { n.min(recipe.data.max_passages) })
}

/// True if an index of this recipe's corpus gets a graph.
pub(super) fn has_graph(recipe: &Recipe, n_passages: usize) -> bool {
    recipe.retriever.search.uses_graph(n_passages)
}
