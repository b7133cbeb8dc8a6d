//! Every command: its help, its JSON, what it writes.
use crate::support::{ANSWER, Ended, World, repository, tensors};
use std::process::Command;

/// Names listed under "Commands:" of a help text.
pub(crate) fn commands_in(help: &str) -> Vec<String> {
    let listed = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    // Wrapped descriptions are indented further.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

fn help(world: &World, command: &[&str]) -> Ended {
    world.dgpo(&[command, &["--help"]].concat()).done()
}

#[test]
fn help_lists_exactly_the_commands_that_exist() {
    let world = World::new();
    let expected = [
        "train",
        "eval",
        "ask",
        "demos",
        "data",
        "plan",
        "index",
        "model",
        "runs",
        "report",
        "reproduce",
        "doctor",
        "conformance",
        "fuzz",
        "portability",
        "bench",
        "completions",
        "help",
    ];
    assert_eq!(commands_in(&help(&world, &[]).stdout), expected);
    let groups: [(&str, &[&str]); 5] = [
        ("data", &["tiny"]),
        ("index", &["build", "search", "info"]),
        ("model", &["info", "export"]),
        ("runs", &["list", "show", "compare"]),
        ("bench", &["kernels", "step", "rollout"]),
    ];
    for command in expected.into_iter().filter(|command| *command != "help") {
        let ended = help(&world, &[command]);
        assert!(
            ended.stdout.contains("Usage: dgpo ") && ended.stderr.is_empty(),
            "{command}: {ended:?}"
        );
        let inner =
            groups.iter().find(|(group, _)| *group == command).map_or(&[][..], |(_, inner)| inner);
        assert_eq!(commands_in(&ended.stdout), inner, "{command}");
        for name in inner {
            assert!(
                help(&world, &[command, name]).stdout.contains("Usage: dgpo "),
                "{command} {name}"
            );
        }
    }
    assert_eq!(world.dgpo(&["rapport"]).code, Some(2));
}

#[test]
fn help_of_a_command_is_its_own_help() {
    let world = World::new();
    for command in [&["train"][..], &["runs", "show"]] {
        assert_eq!(
            world.dgpo(&[&["help"][..], command].concat()).done().stdout,
            help(&world, command).stdout
        );
    }
}

#[test]
fn version_tells_commit_features_and_backends() {
    let world = World::new();
    // This file is built by the same command as the program.
    let commit = option_env!("DGPO_COMMIT").unwrap_or("unknown");
    let expected = format!("dgpo {}\ncommit {commit}\nfeatures ", env!("CARGO_PKG_VERSION"));
    let told = world.dgpo(&["--version"]).done().stdout;
    assert!(told.starts_with(&expected) && told.contains("\nbackends cpu"), "{told}");
    assert_eq!(
        world.dgpo(&["-V"]).done().stdout,
        format!("dgpo {} (commit {commit})\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn completions_of_every_shell_know_the_commands_and_their_flags() {
    let world = World::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = world.dgpo(&["completions", shell]).done().stdout;
        for word in ["reproduce", "compare", "temperature"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    assert_eq!(world.dgpo(&["completions", "cmd"]).code, Some(2));
}

#[test]
fn control_characters_of_passages_do_not_reach_the_terminal() {
    let world = World::new();
    let question = "Who\u{1b}[2J \u{9b}31m\u{202e}?";
    let asked = world.dgpo(&["ask", question, "--config", "rl.toml"]).done().stdout;
    assert!(asked.contains("Who␛[2J"), "{asked:?}");
    let json = world.dgpo(&["ask", question, "--config", "rl.toml", "--json"]).done().stdout;
    // Errors quote what they were given too.
    let refused = world.dgpo(&["runs", "show", "a\u{1b}[31mb"]).stderr;
    assert!(refused.contains("a␛[31mb"), "{refused:?}");
    // So does clap, which writes its messages itself.
    let misread = world.dgpo(&["train", "--a\u{1b}[31mb\u{202e}c"]);
    assert!(misread.code == Some(2) && misread.stderr.contains("b\\u{202e}c"), "{misread:?}");
    for text in [asked, json, refused, misread.stderr] {
        assert!(
            !text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'),
            "{text:?}"
        );
    }
}

#[test]
fn plan_counts_steps_and_starts_nothing() {
    let world = World::new();
    let planned = world.dgpo(&["plan", "--config", "rl.toml", "--json"]).json();
    assert_eq!(planned["recipe"]["rl"]["questions_per_step"], 48);
    let phases = planned["plan"]["phases"].as_array().unwrap();
    let rl = phases.iter().find(|phase| phase["phase"] == "rl").unwrap();
    // 4 steps of 48 questions, each in two mini-batches of 24.
    assert_eq!([&rl["steps"], &rl["episodes"], &rl["optimizer_steps"]], [4, 192, 8]);
    let dry_run = world.dgpo(&["train", "--config", "rl.toml", "--dry-run", "--json"]).json();
    assert_eq!(dry_run, planned);
    assert!(!world.path("runs").exists());
}

/// The recipe that the README shows, as a user would paste it.
fn recipe_of_the_readme() -> String {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let (_, behind) = readme.split_once("```toml\n").expect("the README shows a recipe");
    behind.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_recipe_of_the_readme_can_be_planned_in_any_folder() {
    let world = World::new();
    world.write("mine.toml", &recipe_of_the_readme());
    let ended = world.dgpo(&["plan", "--config", "mine.toml", "--json"]);
    assert_eq!(ended.code, Some(2), "none of its files is there: {}", ended.stderr);
    let planned: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(planned["sources"], serde_json::json!(["mine.toml", "built-in base"]));
    assert_eq!(planned["recipe"]["data"]["corpus"], "wiki-18.jsonl");
    // What the paper chose and the recipe leaves alone.
    assert_eq!(planned["recipe"]["rl"]["questions_per_step"], 512);
    assert_eq!(
        world.dgpo(&["plan", "--config", "tiny.toml", "--json"]).json()["name"],
        "tiny-seed0"
    );
}

#[test]
fn quiet_leaves_nothing_but_results() {
    let world = World::new();
    let settings = ["--set", "distill.steps=1", "--set", "distill.batch=8"];
    let trained = world
        .dgpo(&[&["-q", "train", "--config", "kd.toml", "--name", "a"][..], &settings].concat())
        .done();
    assert_eq!(trained.stderr, "");
    let failed = world
        .dgpo(&[&["-q", "train", "--config", "kd.toml", "--name", "a"][..], &settings].concat());
    failed.failed(2, &["runs/a exists"]);
}

#[test]
fn the_plan_is_a_recipe_that_plans_the_same() {
    let world = World::new();
    let text = world.dgpo(&["plan", "--config", "rl.toml", "--recipe"]).done().stdout;
    world.write("resolved.toml", &text);
    let recipe = |file| world.dgpo(&["plan", "--config", file, "--json"]).json()["recipe"].clone();
    assert_eq!(recipe("resolved.toml"), recipe("rl.toml"));
}

#[test]
fn doctor_finds_this_machine_sound() {
    let found = World::new().dgpo(&["doctor", "--json"]).json();
    let checks = found["checks"].as_array().unwrap();
    assert!(
        checks.len() >= 5 && checks.iter().all(|check| check["status"] != "failed"),
        "{found:#}"
    );
}

#[test]
fn an_exported_model_has_the_same_tensors() {
    let world = World::new();
    world.dgpo(&["model", "export", "talker", "--out", "copy"]).done();
    assert_eq!(
        tensors(&world.path("copy/model.safetensors")),
        tensors(&world.path("talker/model.safetensors"))
    );
    let [original, copy] =
        ["talker", "copy"].map(|dir| world.dgpo(&["model", "info", dir, "--json"]).json());
    assert_eq!(copy["tensors_sha256"], original["tensors_sha256"]);
    assert_eq!(copy["shape"], original["shape"]);
    // The copy is a whole model: it plays.
    let played =
        world.dgpo(&["ask", "Who?", "--config", "rl.toml", "--model", "copy", "--json"]).json();
    assert_eq!(played, world.dgpo(&["ask", "Who?", "--config", "rl.toml", "--json"]).json());
}

#[test]
fn model_info_counts_the_parameters_of_the_shape() {
    let info = World::new().dgpo(&["model", "info", "talker", "--json"]).json();
    // Embeddings and head 2·976·32; q 32·32+32, k and v 2·(16·32+16), o 32·32; feed-forward
    // 3·64·32; three norms of 32.
    let n_parameters =
        2 * 976 * 32 + (32 * 32 + 32) + 2 * (16 * 32 + 16) + 32 * 32 + 3 * 64 * 32 + 3 * 32;
    assert_eq!(info["n_parameters"], n_parameters);
    assert_eq!(info["size_bytes"], 4 * n_parameters);
}

#[test]
fn a_run_ends_with_a_command_that_can_be_pasted() {
    let world = World::new();
    let settings = [
        "--set",
        "rl.steps=1",
        "--set",
        "data.test=[\"questions.jsonl\"]",
        "--set",
        "data.max_test=3",
    ];
    let trained = world
        .dgpo(&[&["train", "--config", "rl.toml", "--name", "mine"][..], &settings].concat())
        .done();
    let last = trained.stderr.lines().last().unwrap();
    let command = last.strip_prefix("next: ").unwrap_or_else(|| panic!("{}", trained.stderr));
    // The shell reads it, with dgpo in the place of its launcher.
    let asked = command.strip_prefix("cargo xtask ask ").unwrap_or_else(|| panic!("{command}"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" ask {asked} --json"), env!("CARGO_BIN_EXE_dgpo")]);
    world.at_home(&mut shell);
    let asked = Ended::of(&mut shell).json();
    assert!(
        asked["texts"][0]
            .as_str()
            .unwrap()
            .contains(asked["episode"]["question"]["question"].as_str().unwrap())
    );
}

#[test]
fn without_a_backend_the_hint_is_the_same_command_with_it() {
    if cfg!(any(feature = "wgpu", feature = "cuda")) {
        return;
    }
    let refused = World::new().dgpo(&[
        "train",
        "--config",
        "rl.toml",
        "--device",
        "cuda",
        "--set",
        "data.test=[\"q.jsonl\"]",
    ]);
    let command = "cargo xtask --features cuda train --config rl.toml --device cuda --set \
                   'data.test=[\"q.jsonl\"]'";
    refused.failed(2, &["built without cuda", command]);
}

#[test]
fn a_run_says_how_far_all_of_it_is() {
    let world = World::new();
    let settings = [
        "--set",
        "stage=rl_distill",
        "--set",
        "rl.steps=2",
        "--set",
        "distill.steps=2",
        "--set",
        "distill.batch=8",
    ];
    let trajectories =
        ["--set", "data.trajectories=[\"demos.jsonl.gz\"]", "--set", "data.max_train=48"];
    let trained = world
        .dgpo(
            &[&["train", "--config", "rl.toml", "--name", "a"][..], &settings, &trajectories]
                .concat(),
        )
        .done();
    for part in [
        "rl: 2 steps (phase 1 of 2)",
        "phase 1 of 2, run eta ",
        "kd: 2 steps (phase 2 of 2)",
        "phase 2 of 2, run eta 0.0s",
    ] {
        assert!(trained.stderr.contains(part), "no {part:?}: {}", trained.stderr);
    }
}

#[test]
fn runs_show_what_was_run() {
    let world = World::new();
    assert_eq!(world.dgpo(&["runs", "list", "--json"]).json(), serde_json::json!([]));
    world
        .dgpo(&[
            "train",
            "--config",
            "kd.toml",
            "--name",
            "first",
            "--set",
            "distill.steps=2",
            "--set",
            "distill.batch=8",
        ])
        .done();
    let listed = world.dgpo(&["runs", "list", "--json"]).json();
    assert_eq!(
        [&listed[0]["name"], &listed[0]["stage"], &listed[0]["phase"]],
        ["first", "distill", "kd"]
    );
    assert_eq!((&listed[0]["step"], listed.as_array().unwrap().len()), (&2.into(), 1));
    for name in ["first", "runs/first"] {
        let shown = world.dgpo(&["runs", "show", name, "--json"]).json();
        assert_eq!(shown["changed"]["distill.batch"], 8);
        assert_eq!(shown["last_metrics"][0]["step"], 2);
        assert_eq!(shown["checkpoint"], "runs/first/checkpoints/kd-step-000002");
    }
    world.dgpo(&["runs", "show", "firts"]).failed(2, &["firts", "did you mean first?"]);
}

#[test]
fn eval_scores_every_data_set() {
    let world = World::new();
    let files =
        [repository("configs/tiny/tiny-1hop.jsonl"), repository("configs/tiny/tiny-2hop.jsonl")];
    let data: Vec<&str> =
        files.iter().flat_map(|file| ["--data", file.to_str().unwrap()]).collect();
    let rest = ["--limit", "5", "--out", "episodes.jsonl", "--json"];
    let scores = world.dgpo(&[&["eval", "--config", "rl.toml"][..], &data, &rest].concat()).json();
    assert_eq!(scores["n_episodes"], 10);
    let names: Vec<&String> = scores["datasets"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["tiny-1hop", "tiny-2hop"]);
    let em = |name: &str| scores["datasets"][name]["em"].as_f64().unwrap();
    assert_eq!(scores["average_em"].as_f64().unwrap(), (em("tiny-1hop") + em("tiny-2hop")) / 2.0);
    assert_eq!(std::fs::read_to_string(world.path("episodes.jsonl")).unwrap().lines().count(), 10);
}

#[test]
fn ask_shows_the_episode_by_author() {
    let asked = World::new()
        .dgpo(&["ask", "Who wrote it?", "--config", "rl.toml", "--temperature", "1", "--json"])
        .json();
    let segments = asked["episode"]["segments"].as_array().unwrap();
    let texts = asked["texts"].as_array().unwrap();
    assert_eq!(texts.len(), segments.len());
    assert_eq!([&segments[0]["author"], &segments[1]["author"]], ["prompt", "agent"]);
    assert!(texts[0].as_str().unwrap().contains("Who wrote it?"), "{texts:?}");
}

#[test]
fn a_question_whose_search_failed_is_a_failure_with_its_reason() {
    let world = World::new();
    // A port that was free a moment ago: nobody listens.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("retriever.url=http://{address}/retrieve");
    let arguments = [
        "ask",
        "Who?",
        "--config",
        "rl.toml",
        "--temperature",
        "1",
        "--json",
        "--set",
        "retriever.kind=remote",
        "--set",
        &url,
    ];
    let mut n_failed = 0;
    for seed in 0..8 {
        let asked = world.dgpo(
            &[
                &arguments[..],
                &["--set", "retriever.max_retries=0", "--set", &format!("run.seed={seed}")],
            ]
            .concat(),
        );
        let shown: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
        let is_failed = shown["episode"].to_string().contains(&address.to_string());
        assert_eq!(asked.code, Some(i32::from(is_failed)), "{}", asked.stderr);
        assert_eq!(asked.stderr.contains(&address.to_string()), is_failed, "{}", asked.stderr);
        n_failed += usize::from(is_failed);
    }
    assert!(n_failed > 0, "the talker searched in none of the episodes");
}

#[test]
fn demos_keeps_the_correct_episodes() {
    let world = World::new();
    let play = |out: &str, more: &[&str]| {
        let arguments = [
            "demos",
            "--config",
            "rl.toml",
            "--set",
            "model.teacher=talker",
            "--episodes",
            "32",
            "--json",
            "--out",
            out,
        ];
        world.dgpo(&[&arguments[..], more].concat()).json()
    };
    let (stats, all) = (play("correct.jsonl", &[]), play("all.jsonl", &["--all"]));
    assert_eq!(stats, all, "the same seed plays the same episodes");
    let read = |name: &str| dgpo_run::episodes::read_episodes(&world.path(name)).unwrap();
    let (correct, all) = (read("correct.jsonl"), read("all.jsonl"));
    assert_eq!(
        (all.len(), correct.len()),
        (32, all.iter().filter(|episode| episode.is_correct()).count())
    );
    assert!(
        !correct.is_empty()
            && correct.iter().all(|episode| episode.prediction.as_deref() == Some(ANSWER))
    );
    assert_eq!(stats["em"].as_f64().unwrap(), correct.len() as f64 / 32.0);
}
