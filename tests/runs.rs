//! Whole runs: the built-in recipe, the same run twice, and a retrieval server that fails for some
//! queries.
use crate::support::{ANSWER, VOCAB_SIZE, World, at_line, config_json, files_below, metrics_of};
use dgpo_core::rollout::Status;
use dgpo_run::episodes::read_episodes;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

#[test]
fn the_built_in_smoke_recipe_leaves_a_summary_of_all_four_models() {
    let world = World::new();
    let printed = world.dgpo(&["train", "--config", "smoke", "--name", "smoke", "--json"]).json();
    let summary: Value =
        serde_json::from_slice(&std::fs::read(world.path("runs/smoke/summary.json")).unwrap())
            .unwrap();
    assert_eq!(printed, summary);
    for model in ["student", "teacher", "kd", "rl"] {
        let em = summary[model]["em"]
            .as_f64()
            .unwrap_or_else(|| panic!("no exact match of {model} in {summary:#}"));
        assert!((0.0..=1.0).contains(&em));
    }
    assert_eq!(summary["seed"], 0);
    assert!(summary["wall_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_same_recipe_and_seed_give_the_same_weights() {
    let world = World::new();
    let train = |name: &str, seed: &str| {
        let arguments =
            ["train", "--config", "rl.toml", "--name", name, "--set", "rl.steps=2", "--set", seed];
        world.dgpo(&arguments).done();
        files_below(&world.path(&format!("runs/{name}/checkpoints/rl-step-000002/model")))
    };
    let first = train("first", "run.seed=7");
    assert_eq!(train("second", "run.seed=7"), first);
    assert_ne!(train("third", "run.seed=8"), first);
}

#[test]
fn two_processes_cannot_work_on_one_run_and_a_killed_one_blocks_nobody() {
    let world = World::new();
    let arguments = ["train", "--config", "kd.toml", "--name", "a", "--set", "distill.steps=20"];
    let mut refused = None;
    at_line(
        &mut world.command(&arguments),
        "checkpoint runs/a/checkpoints/kd-step-000001",
        |child| {
            refused = Some((world.dgpo(&["train", "--resume", "runs/a"]), child.id()));
            child.kill().unwrap();
        },
    );
    let (refused, pid) = refused.unwrap();
    refused.failed(2, &[&format!("another process ({pid}) works on the run runs/a")]);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    let steps: Vec<u64> = metrics_of(&world.path("runs/a"))
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=20).collect::<Vec<u64>>());
}

#[test]
fn a_run_shows_its_last_step_and_its_last_evaluation() {
    let world = World::new();
    let settings =
        ["rl.steps=3", "eval.every=2", "data.test=[\"questions.jsonl\"]", "data.max_test=2"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    let mut command =
        world.command(&[&["train", "--config", "rl.toml", "--name", "a"][..], &settings].concat());
    // Killed between the evaluation and the next step: its line is the last one of the phase.
    at_line(&mut command, "rl 2: exact match", |child| child.kill().unwrap());
    let shown = world.dgpo(&["runs", "show", "a", "--json"]).json();
    assert!(shown["last_metrics"][0]["rollout/reward"].is_number(), "{shown:#}");
    assert_eq!(
        (&shown["last_eval"]["step"], shown["last_eval"]["eval/em"].is_number()),
        (&2.into(), true)
    );
    let text = world.dgpo(&["runs", "show", "a"]).done().stdout;
    assert!(
        text.contains("\nlast of rl\n") && text.contains("\nlast evaluation in rl\n"),
        "{text}"
    );
}

/// A `/retrieve` server on loopback that has a passage for the query "lawyer", and a damaged one
/// for any other. It lives as long as the tests.
fn serve_one_query() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(&mut stream.unwrap());
        }
    });
    format!("http://{address}/retrieve")
}

fn answer(stream: &mut TcpStream) {
    let request = read_json(stream);
    let passage =
        json!({ "document": { "id": "7", "contents": "\"Title\"\nA lawyer." }, "score": 0.5 });
    let result_of =
        |query: &Value| if query == ANSWER { json!([passage]) } else { json!([{ "id": "8" }]) };
    let results: Vec<Value> =
        request["queries"].as_array().unwrap().iter().map(result_of).collect();
    let body = json!({ "result": results }).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
}

/// The object in a request's body, however the body is framed.
fn read_json(stream: &mut TcpStream) -> Value {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n_read = stream.read(&mut buffer).unwrap();
        assert!(n_read > 0, "the request ended early");
        bytes.extend_from_slice(&buffer[..n_read]);
        let text = String::from_utf8_lossy(&bytes);
        let object = text
            .find('{')
            .zip(text.rfind('}'))
            .and_then(|(start, end)| serde_json::from_str(text.get(start..=end)?).ok());
        if let Some(object) = object {
            return object;
        }
    }
}

#[test]
fn episodes_whose_search_failed_are_counted_and_not_trained_on() {
    let world = World::new();
    let url = format!("retriever.url={}", serve_one_query());
    let settings = ["retriever.kind=remote", &url, "rl.steps=1", "retriever.max_lost_share=1"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let ended = world
        .dgpo(&[&["train", "--config", "rl.toml", "--name", "a"][..], &settings].concat())
        .done();
    let episodes = read_episodes(&world.path("runs/a/episodes/rl-step-000001.jsonl")).unwrap();
    let failed =
        episodes.iter().filter(|episode| matches!(episode.status, Status::RetrieverFailed(_)));
    let trained: Vec<_> = episodes.iter().filter(|episode| episode.is_trainable()).collect();
    let (n_failed, n_wrong) =
        (failed.count(), trained.iter().filter(|episode| !episode.is_correct()).count());
    assert!(
        n_failed > 0 && n_wrong > 0 && n_wrong < trained.len(),
        "{n_failed} failed, {n_wrong} of {} wrong",
        trained.len()
    );
    let metrics = &metrics_of(&world.path("runs/a"))[0];
    let value = |name: &str| metrics[name].as_f64().unwrap();
    assert_eq!(value("rollout/retriever_failed"), n_failed as f64 / episodes.len() as f64);
    let n_searched = episodes.iter().filter(|episode| episode.has_searched()).count();
    assert_eq!(value("rollout/lost_share"), n_failed as f64 / n_searched as f64);
    assert!(n_failed < n_searched && ended.stderr.contains("  lost 0."), "{}", ended.stderr);
    // The penalty falls on the wrong episodes among those in the batch: failed ones are in neither
    // count.
    assert_eq!(value("kl/selected_episodes"), n_wrong as f64 / trained.len() as f64);
    assert_eq!(value("charts/skipped_updates"), 0.0);
}

#[test]
fn a_guard_stops_a_run_that_goes_on_losing_searches() {
    let world = World::new();
    let url = format!("retriever.url={}", serve_one_query());
    let settings = ["retriever.kind=remote", &url, "retriever.max_lost_share=1", "guards.window=2"]
        .map(|setting| ["--set", setting])
        .concat();
    let arguments = [&["train", "--config", "rl.toml", "--name", "a"][..], &settings].concat();
    let told = [
        "rl step 2: lost searches",
        "retriever.max_lost_share",
        "guards.max_lost_share is the threshold",
    ];
    world.dgpo(&arguments).failed(3, &told);
}

#[test]
fn a_server_that_is_away_leaves_no_episode_with_an_empty_observation() {
    let world = World::new();
    // A port that was free a moment ago: nobody listens.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("retriever.url=http://{address}/retrieve");
    let settings = [
        "retriever.kind=remote",
        &url,
        "retriever.max_retries=0",
        "rl.steps=1",
        "retriever.max_lost_share=1",
    ];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    world.dgpo(&[&["train", "--config", "rl.toml", "--name", "a"][..], &settings].concat()).done();
    let episodes = read_episodes(&world.path("runs/a/episodes/rl-step-000001.jsonl")).unwrap();
    assert!(episodes.iter().all(|episode| episode.searches.is_empty()));
    assert!(episodes.iter().any(|episode| matches!(&episode.status, Status::RetrieverFailed(why) if why.contains(&address.to_string()))));
}

#[test]
fn a_student_padded_further_than_its_teacher_is_trained_on_what_both_know() {
    let world = World::new();
    world.write("student/config.json", &config_json(1, VOCAB_SIZE + 64, true).to_string());
    for estimator in ["k1", "full"] {
        let estimator_setting = format!("kl.estimator={estimator}");
        let settings = [
            "--set",
            "model.student=random:student",
            "--set",
            "rl.steps=1",
            "--set",
            &estimator_setting,
        ];
        world
            .dgpo(&[&["train", "--config", "rl.toml", "--name", estimator][..], &settings].concat())
            .done();
        let kl =
            metrics_of(&world.path(&format!("runs/{estimator}")))[0]["kl/mean"].as_f64().unwrap();
        assert!(kl.is_finite());
        let episodes =
            read_episodes(&world.path(&format!("runs/{estimator}/episodes/rl-step-000001.jsonl")))
                .unwrap();
        let ids =
            episodes.iter().flat_map(|episode| &episode.segments).flat_map(|segment| segment.ids());
        assert!(
            ids.copied().max().unwrap() < VOCAB_SIZE as u32,
            "an id that the teacher does not have was drawn"
        );
    }
}
