//! A password in an address is sent to the server, and stands nowhere else.
use crate::{
    outage::Server,
    support::{Ended, World, files_below},
};

const PASSWORD: &str = "s3cr3t";
/// RFC 7617 of "ann:s3cr3t".
const AUTHORIZATION: &str = "Basic YW5uOnMzY3IzdA==";

/// No file below the world's folder, and nothing that was said, holds the password.
fn assert_is_kept(world: &World, ended: &Ended) {
    let files = files_below(&world.path("."));
    assert!(files.len() > 5);
    let said = [
        (std::path::PathBuf::from("stdout"), ended.stdout.clone().into_bytes()),
        ("stderr".into(), ended.stderr.clone().into_bytes()),
    ];
    for (name, bytes) in files.into_iter().chain(said) {
        let text = String::from_utf8_lossy(&bytes);
        for secret in [PASSWORD, AUTHORIZATION, "ann:"] {
            assert!(!text.contains(secret), "{} holds {secret}", name.display());
        }
    }
}

#[test]
fn a_password_named_by_a_variable_reaches_the_server_again_at_each_resume_and_nothing_else() {
    let (world, server) = (World::new(), Server::start(0..0));
    let address = server.url.replace("http://", &format!("http://ann:{PASSWORD}@"));
    let settings = [
        "retriever.kind=remote",
        "retriever.url=${RETRIEVER_URL}",
        "retriever.max_retries=1",
        "retriever.first_pause_s=0.001",
    ];
    let few = [
        "retriever.max_outage_s=0",
        "rl.steps=2",
        "data.test=[\"questions.jsonl\"]",
        "data.max_test=2",
        "rl.questions_per_step=24",
    ];
    let settings = [&settings[..], &few].concat();
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    let with_password =
        |arguments: &[&str]| Ended::of(world.command(arguments).env("RETRIEVER_URL", &address));
    let train = [&["train", "--config", "rl.toml", "--name", "a", "-vv"][..], &settings].concat();
    server.set(0..usize::MAX);
    let failed = with_password(&train).failed(1, &[&server.url]);
    assert_is_kept(&world, &failed);
    server.set(0..0);
    assert_is_kept(&world, &with_password(&["train", "--resume", "runs/a", "-vv"]).done());
    assert_is_kept(&world, &with_password(&["plan", "--config", "runs/a/recipe.toml"]).done());
    let asked = server.authorizations();
    assert!(
        asked.len() > 1 && asked.iter().all(|authorization| authorization == AUTHORIZATION),
        "{asked:?}"
    );
    let recipe = std::fs::read_to_string(world.path("runs/a/recipe.toml")).unwrap();
    assert!(recipe.contains("url = \"${RETRIEVER_URL}\""), "{recipe}");
    world
        .dgpo(&[
            "train",
            "--config",
            "rl.toml",
            "--set",
            "retriever.kind=remote",
            "--set",
            "retriever.url=${NO_SUCH_URL}",
        ])
        .failed(2, &["NO_SUCH_URL", "is not set", "export NO_SUCH_URL=\"http://"]);
}

#[test]
fn a_password_that_is_written_out_is_refused_and_not_repeated() {
    let world = World::new();
    let url = format!("retriever.url=http://ann:{PASSWORD}@127.0.0.1:1/retrieve");
    let refused = world.dgpo(&[
        "train",
        "--config",
        "rl.toml",
        "--set",
        "retriever.kind=remote",
        "--set",
        &url,
    ]);
    assert_is_kept(&world, &refused.failed(2, &["retriever.url", "${RETRIEVER_URL}"]));
    // Nor where the scheme was forgotten.
    let bare = format!("retriever.url=ann:{PASSWORD}@127.0.0.1:1/retrieve");
    let refused = world.dgpo(&["ask", "Who?", "--config", "rl.toml", "--set", &bare]);
    assert_is_kept(&world, &refused.failed(2, &["retriever.url=***@127.0.0.1:1/retrieve"]));
    // Whatever the key, and where no retriever is asked.
    for key in ["retriever.url", "data.corpus", "model.teacher"] {
        let setting = format!("{key}=https://ann:{PASSWORD}@127.0.0.1/x");
        assert_is_kept(
            &world,
            &world
                .dgpo(&["train", "--config", "rl.toml", "--set", &setting])
                .failed(2, &[key, "a user or a password"]),
        );
    }
    let list = format!("data.train=[\"https://ann:{PASSWORD}@127.0.0.1/x.jsonl\"]");
    assert_is_kept(
        &world,
        &world.dgpo(&["train", "--config", "rl.toml", "--set", &list]).failed(2, &["data.train"]),
    );
    let model = format!("https://ann:{PASSWORD}@127.0.0.1/model");
    assert_is_kept(
        &world,
        &world
            .dgpo(&["eval", "--config", "rl.toml", "--model", &model, "--data", "questions.jsonl"])
            .failed(2, &["https://***@127.0.0.1/model"]),
    );
    let misspelt = format!("retreiver.url=http://ann:{PASSWORD}@127.0.0.1:1/retrieve");
    assert_is_kept(
        &world,
        &world.dgpo(&["train", "--set", &misspelt]).failed(2, &["http://***@127.0.0.1:1/retrieve"]),
    );
}
