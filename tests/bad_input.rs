//! Broken input: the error says what, where and what to do, the exit code is 1 or 2, and nothing
//! that was there is lost.
use crate::support::{
    Ended, World, at_line, config_json, copy_folder, files_below, names_in, repository, tensors,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// Evaluates a (damaged) model on two questions.
fn evaluate(world: &World, model: &str) -> Ended {
    let arguments = [
        "--quiet",
        "eval",
        "--config",
        "rl.toml",
        "--model",
        model,
        "--data",
        "questions.jsonl",
        "--limit",
        "2",
    ];
    world.dgpo(&arguments)
}

/// Trains by rl.toml with one setting changed.
fn train_with(world: &World, setting: &str) -> Ended {
    world.dgpo(&["train", "--config", "rl.toml", "--name", "new", "--set", setting])
}

/// Replaces fields of a model's config.json.
fn change_config(model: &Path, change: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn missing_weights_name_the_file() {
    let world = World::new();
    fs::remove_file(world.copy_of_talker("broken").join("model.safetensors")).unwrap();
    evaluate(&world, "broken").failed(2, &["broken/model.safetensors", "cannot read"]);
}

#[test]
fn a_file_that_is_no_safetensors_is_named() {
    let world = World::new();
    fs::write(
        world.copy_of_talker("broken").join("model.safetensors"),
        "<html>404 not found, sorry</html>",
    )
    .unwrap();
    evaluate(&world, "broken").failed(2, &["broken/model.safetensors", "not a safetensors file"]);
}

#[test]
fn truncated_weights_say_how_much_is_there() {
    let world = World::new();
    let path = world.copy_of_talker("broken").join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (whole, half) = (bytes.len().to_string(), (bytes.len() / 2).to_string());
    evaluate(&world, "broken").failed(2, &["broken/model.safetensors", &whole, &half]);
}

#[test]
fn weights_of_another_shape_are_all_listed() {
    let world = World::new();
    change_config(&world.copy_of_talker("broken"), |config| {
        config["intermediate_size"] = json!(48)
    });
    let tensor = |name: &str| format!("model.layers.0.mlp.{name}_proj.weight");
    evaluate(&world, "broken").failed(
        2,
        &["broken", &tensor("gate"), &tensor("up"), &tensor("down"), "[64, 32]", "[48, 32]"],
    );
}

#[test]
fn an_unknown_field_of_config_json_is_named() {
    let world = World::new();
    change_config(&world.copy_of_talker("broken"), |config| {
        config["attention_sink_size"] = json!(4)
    });
    evaluate(&world, "broken")
        .failed(2, &["broken/config.json", "unknown field \"attention_sink_size\""]);
}

#[test]
fn a_config_json_that_is_no_json_is_named_with_the_line() {
    let world = World::new();
    fs::write(world.copy_of_talker("broken").join("config.json"), "{\n  \"model_type\": \n")
        .unwrap();
    evaluate(&world, "broken").failed(2, &["broken/config.json, line 3"]);
}

#[test]
fn a_tokenizer_larger_than_the_models_vocabulary_is_refused() {
    let world = World::new();
    world.copy_of_talker("broken");
    world.write("broken/config.json", &config_json(1, 500, true).to_string());
    evaluate(&world, "random:broken").failed(2, &["tokenizer", "975 tokens", "500"]);
}

#[test]
fn a_malformed_question_is_named_by_file_and_line() {
    let world = World::new();
    let good = fs::read_to_string(world.path("questions.jsonl")).unwrap();
    world.write("questions.jsonl", &format!("{good}{{\"id\": \"x\", \"question\":\n"));
    world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["questions.jsonl:41: "]);
}

#[test]
fn a_malformed_passage_is_named_by_file_and_line() {
    let world = World::new();
    let good = fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    world.write("corpus.jsonl", &format!("{good}{{\"id\": \"x\", \"contnets\": \"a\"}}\n"));
    world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["corpus.jsonl:31: ", "contents"]);
}

#[test]
fn a_run_that_failed_on_its_data_leaves_nothing_and_its_name_is_free() {
    let world = World::new();
    let good = fs::read_to_string(world.path("questions.jsonl")).unwrap();
    world.write("questions.jsonl", "not json\n");
    let arguments = ["train", "--config", "rl.toml", "--name", "new", "--set", "rl.steps=1"];
    let failed = world.dgpo(&arguments).failed(2, &["questions.jsonl:1: ", "nothing was started"]);
    assert!(!failed.stderr.contains("--resume"), "{}", failed.stderr);
    assert!(!world.path("runs").exists());
    world.write("questions.jsonl", &good);
    world.dgpo(&arguments).done();
}

#[test]
fn an_empty_corpus_is_an_error() {
    let world = World::new();
    world.write("corpus.jsonl", "\n");
    world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["corpus.jsonl", "no passages"]);
}

#[test]
fn an_unknown_key_of_a_recipe_is_named_with_file_line_and_the_key_that_was_meant() {
    let world = World::new();
    world.write("typo.toml", "extends = \"rl.toml\"\n[rl]\nmini_bach = 8\n");
    world
        .dgpo(&["train", "--config", "typo.toml"])
        .failed(2, &["typo.toml:3", "mini_bach", "did you mean rl.mini_batch?"]);
    assert!(!world.path("runs").exists(), "nothing was started");
}

#[test]
fn an_unknown_key_of_set_is_named_with_the_key_that_was_meant() {
    train_with(&World::new(), "rl.stepz=3").failed(2, &["rl.stepz", "did you mean rl.steps?"]);
}

#[test]
fn impossible_batch_arithmetic_hints_at_the_nearest_legal_value() {
    let world = World::new();
    train_with(&world, "rl.questions_per_step=500")
        .failed(2, &["questions_per_step (500)", "mini_batch (24)", "504 is the nearest"]);
    assert!(!world.path("runs").exists(), "nothing was started");
}

#[test]
fn a_run_directory_that_exists_is_not_touched() {
    let world = World::new();
    world.dgpo(&["train", "--config", "rl.toml", "--name", "new", "--set", "rl.steps=1"]).done();
    let before = files_below(&world.path("runs/new"));
    world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["runs/new exists", "--resume runs/new", "--name"]);
    assert_eq!(files_below(&world.path("runs/new")), before);
}

#[test]
fn a_name_under_which_no_run_could_be_opened_again_is_refused() {
    let world = World::new();
    for name in ["a b", "run→1", "a\nb", "", ".hidden", "a/b", "..", "it's"] {
        world.dgpo(&["train", "--config", "rl.toml", "--name", name]).failed(2, &["--name"]);
    }
    assert!(!world.path("runs").exists(), "nothing was started");
}

#[test]
fn a_folder_in_runs_that_is_no_run_is_left_alone() {
    let world = World::new();
    fs::create_dir_all(world.path("runs/new/checkpoints")).unwrap();
    let refused = world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["runs/new", "holds no recipe.toml"]);
    assert!(!refused.stderr.contains("--resume"), "{}", refused.stderr);
    world
        .dgpo(&["train", "--resume", "runs/new"])
        .failed(2, &["runs/new is not a run", "holds no recipe.toml"]);
}

#[test]
fn a_temperature_or_count_that_means_nothing_is_refused() {
    let world = World::new();
    for temperature in ["nan", "-1", "inf"] {
        world
            .dgpo(&["ask", "Who?", "--config", "rl.toml", "--temperature", temperature])
            .failed(2, &["--temperature", "from 0 on"]);
    }
    world
        .dgpo(&["index", "info", "indexes/a", "--n-queries", "0"])
        .failed(2, &["--n-queries", "1 is the smallest"]);
    world.dgpo(&["eval", "--config", "rl.toml", "--limit", "0"]).failed(2, &["--limit"]);
}

#[test]
fn a_file_that_cannot_be_written_is_not_said_to_be_unreadable() {
    let world = World::new();
    world.write("file", "");
    world.dgpo(&["data", "tiny", "file/inside"]).failed(1, &["cannot write file/inside"]);
}

#[test]
fn a_corpus_that_is_cut_off_is_to_be_fetched_again() {
    let world = World::new();
    let packed = fs::read(world.path("demos.jsonl.gz")).unwrap();
    fs::write(world.path("corpus.jsonl"), &packed[..packed.len() / 2]).unwrap();
    world
        .dgpo(&["train", "--config", "rl.toml", "--name", "new"])
        .failed(2, &["corpus.jsonl", "cut off", "download or copy it again"]);
}

#[test]
fn an_index_built_with_another_encoder_is_refused() {
    let world = World::new();
    copy_folder(&repository("configs/tiny/encoder"), &world.path("encoder"));
    world
        .dgpo(&[
            "index",
            "build",
            "--corpus",
            "corpus.jsonl",
            "--encoder",
            "encoder",
            "--out",
            "indexes/a",
            "--config",
            "tiny",
        ])
        .done();
    // The same name and shape, other weights.
    let path = world.path("encoder/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&0.25f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    world
        .dgpo(&["index", "search", "indexes/a", "where?"])
        .failed(1, &["indexes/a", "was built with encoder", "index build"]);
    let dense = [
        "retriever.kind=dense",
        "retriever.index=indexes/a",
        "retriever.encoder=encoder",
        "retriever.search=exact",
    ];
    let settings: Vec<&str> = dense.iter().flat_map(|setting| ["--set", *setting]).collect();
    let before = files_below(&world.path("indexes/a"));
    world
        .dgpo(&[&["train", "--config", "rl.toml", "--name", "new"][..], &settings].concat())
        .failed(2, &["indexes/a", "encoder", "nothing was started"]);
    assert_eq!(files_below(&world.path("indexes/a")), before);
    assert!(!world.path("runs/new").exists(), "it is found before the start");
}

#[test]
fn an_index_of_another_corpus_is_refused() {
    let world = World::new();
    let encoder = repository("configs/tiny/encoder");
    let build = [
        "index",
        "build",
        "--corpus",
        "corpus.jsonl",
        "--out",
        "indexes/a",
        "--config",
        "tiny",
        "--encoder",
    ];
    world.dgpo(&[&build[..], &[encoder.to_str().unwrap()]].concat()).done();
    let corpus = fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    world.write("corpus.jsonl", &corpus.replace("works as", "worked as"));
    world
        .dgpo(&["index", "search", "indexes/a", "where?"])
        .failed(1, &["indexes/a", "was built from corpus"]);
}

#[test]
fn an_unknown_device_is_refused_with_the_known_ones() {
    let world = World::new();
    let refused = world.dgpo(&["train", "--config", "rl.toml", "--device", "tpu"]);
    refused.failed(2, &["tpu", "cpu, wgpu, wgpu:N, cuda or cuda:N"]);
    assert!(!world.path("runs").exists());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_this_binary_was_built_without_leaves_no_run_behind() {
    let world = World::new();
    world
        .dgpo(&["train", "--config", "rl.toml", "--device", "cuda"])
        .failed(2, &["built without cuda", "--features cuda"]);
    assert!(!world.path("runs").exists());
}

#[test]
fn resuming_a_folder_that_is_no_run_is_refused() {
    let world = World::new();
    world
        .dgpo(&["train", "--resume", "student"])
        .failed(2, &["student is not a run", "dgpo runs list"]);
    world
        .dgpo(&["train", "--resume", "runs/none"])
        .failed(2, &["runs/none is not a run", "there is no such folder"]);
}

#[test]
fn an_environment_variable_that_is_not_set_is_named() {
    let refused = train_with(&World::new(), "data.train=[\"${DGPO_TEST_UNSET}/q.jsonl\"]");
    refused.failed(2, &["DGPO_TEST_UNSET", "is not set", "export DGPO_TEST_UNSET"]);
}

#[test]
fn a_model_that_is_nowhere_lists_the_places_looked_at() {
    let world = World::new();
    train_with(&world, "model.student=nobody/nothing")
        .failed(2, &["nobody/nothing", "looked at", "models--nobody--nothing"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_still_resumes() {
    let world = World::new();
    let arguments = ["train", "--config", "kd.toml", "--name", "new", "--set", "distill.batch=8"];
    world.dgpo(&[&arguments[..], &["--set", "distill.steps=3"]].concat()).done();
    let newest = world.path("runs/new/checkpoints/kd-step-000003");
    fs::write(newest.join("model/model.safetensors"), b"torn").unwrap();
    world
        .dgpo(&["train", "--resume", "runs/new"])
        .failed(1, &["kd-step-000003/model/model.safetensors"]);
    fs::remove_dir_all(&newest).unwrap();
    world.dgpo(&["train", "--resume", "runs/new"]).done();
    assert!(!tensors(&newest.join("model/model.safetensors")).is_empty());
}

/// A run killed behind its second checkpoint, and the name of its newest one.
fn killed_run(recipe: &str, phase: &str) -> (World, String) {
    let world = World::new();
    let mut command = world.command(&[
        "train",
        "--config",
        recipe,
        "--name",
        "new",
        "--set",
        "distill.steps=50",
        "--set",
        "rl.steps=50",
    ]);
    at_line(
        &mut command,
        &format!("checkpoint runs/new/checkpoints/{phase}-step-000002"),
        |child| child.kill().unwrap(),
    );
    let newest = names_in(&world.path("runs/new/checkpoints"))
        .into_iter()
        .rfind(|name| !name.starts_with(".tmp-"))
        .unwrap();
    (world, newest)
}

#[test]
fn a_truncated_optimizer_is_no_reason_to_download_anything() {
    let (world, newest) = killed_run("kd.toml", "kd");
    let path = world.path(&format!("runs/new/checkpoints/{newest}/optimizer.safetensors"));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let folder = format!("remove the folder runs/new/checkpoints/{newest}");
    let refused = world
        .dgpo(&["train", "--resume", "runs/new"])
        .failed(1, &["optimizer.safetensors", &folder, "the checkpoint before it"]);
    assert!(!refused.stderr.contains("download"), "{}", refused.stderr);
}

#[test]
fn a_missing_critic_optimizer_is_damage_of_the_checkpoint() {
    let (world, newest) = killed_run("rl.toml", "rl");
    fs::remove_file(
        world.path(&format!("runs/new/checkpoints/{newest}/critic_optimizer.safetensors")),
    )
    .unwrap();
    let folder = format!("remove the folder runs/new/checkpoints/{newest}");
    let refused = world
        .dgpo(&["train", "--resume", "runs/new"])
        .failed(1, &["critic_optimizer.safetensors", &folder]);
    assert!(!refused.stderr.contains("permissions"), "{}", refused.stderr);
}

#[test]
fn a_full_disk_while_checkpointing_loses_nothing() {
    let world = World::new();
    let settings = ["--set", "distill.steps=20", "--set", "distill.batch=16"];
    let arguments = [&["train", "--config", "kd.toml", "--name", "full"][..], &settings].concat();
    let line = "checkpoint runs/full/checkpoints/kd-step-000001";
    at_line(&mut world.command(&arguments), line, |child| child.kill().unwrap());
    let checkpoints = world.path("runs/full/checkpoints");
    let before = |names: &[String]| {
        names.iter().map(|name| files_below(&checkpoints.join(name))).collect::<Vec<_>>()
    };
    let names: Vec<String> =
        names_in(&checkpoints).into_iter().filter(|name| !name.starts_with(".tmp-")).collect();
    let contents = before(&names);
    assert!(!names.contains(&"kd-step-000020".to_owned()), "the process was killed too late");

    // No file may grow beyond 32 blocks (of 512 or 1,024 bytes); writing on fails as on a full
    // disk. The model alone has 125 kB.
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        "trap '' XFSZ; ulimit -f 32; exec \"$0\" train --resume runs/full",
        env!("CARGO_BIN_EXE_dgpo"),
    ]);
    world.at_home(&mut limited);
    let full = Ended::of(&mut limited).failed(
        1,
        &["cannot write the checkpoint", "kd-step-0000", "--resume runs/full", "free space"],
    );
    assert_eq!(full.stderr.matches("hint: ").count(), 1, "{}", full.stderr);
    assert_eq!(names_in(&checkpoints), names, "no leftovers");
    assert_eq!(before(&names), contents, "earlier checkpoints are intact");

    world.dgpo(&["train", "--resume", "runs/full"]).done();
    assert!(names_in(&checkpoints).contains(&"kd-step-000020".to_owned()));
}
