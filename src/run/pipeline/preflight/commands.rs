//! The commands that get what is missing, to be pasted as they are.
use crate::{
    config::{Recipe, RetrieverRecipe, shell_quoted},
    devices::DeviceChoice,
};
use std::path::Path;

/// `text` as one word of a shell's command line; `${NAME}` stays a variable.
pub(crate) fn word(text: &str) -> String {
    match text.contains("${") {
        true => {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('`', "\\`"))
        }
        false => shell_quoted(text),
    }
}

/// The command that fetches the model `name`, if it is a hub name.
pub(super) fn get_model(name: &str) -> Option<String> {
    let (repository, revision, _) = hub_name(name).filter(|(_, _, inside)| inside.is_empty())?;
    // Meta's models are given to those who have accepted the licence on their page.
    let login = if repository.starts_with("meta-llama/") { "hf auth login && " } else { "" };
    Some(format!(
        "{login}hf download {}{}",
        word(&repository),
        revision.map_or(String::new(), |r| format!(" --revision {}", word(&r)))
    ))
}

/// The command that fetches the data file `name`: out of a data set of the hub, or one of the
/// paper's files under its own name.
pub(super) fn get_data(name: &str) -> Option<String> {
    if let Some((repository, revision, inside)) =
        hub_name(name).filter(|(_, _, inside)| !inside.is_empty())
    {
        let revision = revision.map_or(String::new(), |r| format!(" --revision {}", word(&r)));
        if !is_flashrag_file(name) || repository == FLASHRAG {
            return Some(format!(
                "hf download {} {}{revision} --repo-type dataset",
                word(&repository),
                word(inside)
            ));
        }
    }
    let (folder, file) = name.rsplit_once('/').unwrap_or((".", name));
    if file == "wiki-18.jsonl" {
        let packed = word(&format!("{folder}/wiki-18.jsonl.gz"));
        let to = word(folder);
        return Some(format!(
            "hf download PeterJinGo/wiki-18-corpus wiki-18.jsonl.gz --repo-type dataset \
             --local-dir {to} && gunzip {packed}"
        ));
    }
    if !is_flashrag_file(name) {
        return None;
    }
    let (parent, dataset) = folder.rsplit_once('/').unwrap_or((".", folder));
    Some(format!(
        "hf download {FLASHRAG} {dataset}/{file} --repo-type dataset --local-dir {}",
        word(parent)
    ))
}

const FLASHRAG: &str = "RUC-NLPIR/FlashRAG_datasets";

/// True if a path ends as a question file of the paper does: `nq/train.jsonl`.
fn is_flashrag_file(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let (file, dataset) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is_dataset =
        ["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
            .contains(&dataset);
    is_dataset && ["train.jsonl", "dev.jsonl", "test.jsonl"].contains(&file)
}

/// ("owner/name", revision, "path/inside") of `owner/name[@revision][/path/inside]`; None where it
/// cannot be a hub name, as of a path with a suffix in the second place.
fn hub_name(name: &str) -> Option<(String, Option<String>, &str)> {
    let is_part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['$', '~', ':', ' '])
    };
    if !name.split('/').all(is_part) {
        return None;
    }
    let (owner, rest) = name.split_once('/')?;
    let (repository, inside) = rest.split_once('/').unwrap_or((rest, ""));
    let (repository, revision) = repository
        .split_once('@')
        .map_or((repository, None), |(name, at)| (name, Some(at.to_owned())));
    let is_file = [".jsonl", ".json", ".gz", ".parquet", ".toml", ".safetensors"]
        .iter()
        .any(|suffix| repository.ends_with(suffix));
    (!is_file).then(|| (format!("{owner}/{repository}"), revision, inside))
}

/// The command that shows what is there instead: the nearest folder of a path that exists.
pub(super) fn look(path: &str) -> String {
    let there = Path::new(path).ancestors().skip(1).find(|folder| folder.is_dir());
    format!("ls {}", word(&there.map_or(".".to_owned(), |folder| folder.display().to_string())))
}

/// The command that builds the index of a recipe, with the settings that decide its content.
pub(super) fn build_index(recipe: &Recipe, device: DeviceChoice) -> String {
    let RetrieverRecipe { encoder, index, .. } = &recipe.retriever;
    let (features, device) = device.launcher_flags();
    let named = |flag: &str, value: &str| format!("--{flag} {}", word(value));
    let mut command = format!("cargo xtask {features}index build --out {}", word(index));
    command +=
        &format!(" {device}{} {}", named("corpus", &recipe.data.corpus), named("encoder", encoder));
    for (key, value) in set_apart(&recipe.retriever) {
        command += &format!(" --set {}", word(&format!("retriever.{key}={value}")));
    }
    command
}

/// The settings of an index that are not the defaults.
fn set_apart(recipe: &RetrieverRecipe) -> Vec<(&'static str, String)> {
    let values = |recipe: &RetrieverRecipe| {
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        [
            ("search", text(recipe.search.as_str())),
            ("hnsw_m", recipe.hnsw_m.to_string()),
            ("hnsw_ef_construction", recipe.hnsw_ef_construction.to_string()),
            ("query_prefix", text(&recipe.query_prefix)),
            ("passage_prefix", text(&recipe.passage_prefix)),
            ("max_tokens", recipe.max_tokens.to_string()),
        ]
    };
    values(recipe)
        .into_iter()
        .zip(values(&RetrieverRecipe::default()))
        .filter(|(here, default)| here != default)
        .map(|(here, _)| here)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Search;

    #[test]
    fn a_model_of_the_hub_is_fetched_by_its_name_and_revision() {
        assert_eq!(
            get_model("Qwen/Qwen2.5-0.5B-Instruct").unwrap(),
            "hf download Qwen/Qwen2.5-0.5B-Instruct"
        );
        assert_eq!(get_model("o/n@v1.0").unwrap(), "hf download o/n --revision v1.0");
        assert!(
            get_model("meta-llama/Llama-3.2-1B")
                .unwrap()
                .starts_with("hf auth login && hf download ")
        );
        for path in ["student", "/models/q", "../a/b", "runs/a/model", "${HOME}/q", "a b/c"] {
            assert_eq!(get_model(path), None, "{path}");
        }
    }

    #[test]
    fn data_is_fetched_out_of_its_data_set_to_where_the_recipe_looks_for_it() {
        let known = [
            (
                "RUC-NLPIR/FlashRAG_datasets/nq/train.jsonl",
                "hf download RUC-NLPIR/FlashRAG_datasets nq/train.jsonl --repo-type dataset",
            ),
            (
                "nq/train.jsonl",
                "hf download RUC-NLPIR/FlashRAG_datasets nq/train.jsonl --repo-type dataset \
                 --local-dir .",
            ),
            (
                "my/data/nq/test.jsonl",
                "hf download RUC-NLPIR/FlashRAG_datasets nq/test.jsonl --repo-type dataset \
                 --local-dir my/data",
            ),
            ("owner/set/train.parquet", "hf download owner/set train.parquet --repo-type dataset"),
            (
                "${D}/wiki-18.jsonl",
                "hf download PeterJinGo/wiki-18-corpus wiki-18.jsonl.gz --repo-type dataset \
                 --local-dir \"${D}\" && gunzip \"${D}/wiki-18.jsonl.gz\"",
            ),
        ];
        for (name, command) in known {
            assert_eq!(get_data(name).as_deref(), Some(command));
        }
        for path in ["train.jsonl", "data/train.jsonl", "/abs/questions.jsonl"] {
            assert_eq!(get_data(path), None, "{path}");
        }
    }

    #[test]
    fn an_index_is_built_with_the_settings_that_differ() {
        let mut recipe = Recipe::default();
        (recipe.data.corpus, recipe.retriever.index) = ("${D}/w.jsonl".into(), "my index".into());
        assert_eq!(
            build_index(&recipe, DeviceChoice::Cpu),
            "cargo xtask index build --out 'my index' --corpus \"${D}/w.jsonl\" --encoder \
             intfloat/e5-base-v2"
        );
        (recipe.retriever.search, recipe.retriever.query_prefix) = (Search::Hnsw, String::new());
        let command = build_index(&recipe, DeviceChoice::Cuda(0));
        assert!(
            command.starts_with(
                "cargo xtask --features cuda index build --out 'my index' --device cuda:0 \
                 --corpus "
            ),
            "{command}"
        );
        assert!(
            command.ends_with(
                " --set 'retriever.search=\"hnsw\"' --set 'retriever.query_prefix=\"\"'"
            ),
            "{command}"
        );
    }
}
