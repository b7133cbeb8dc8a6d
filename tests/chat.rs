//! Chat templates of model folders, and what transformers makes of the folders that are written
//! here.
use crate::support::{World, copy_folder, repository};
use dgpo_core::{
    settings::ChatTemplate,
    tokenizer::{
        Tokenizer,
        chat::{Chat, Message},
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The first prompt of a run's recorded episodes, as text.
fn first_prompt(world: &World, run: &str) -> String {
    let episodes = world.path(run).join("episodes");
    let mut files: Vec<PathBuf> =
        fs::read_dir(episodes).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text = fs::read_to_string(&files[0]).unwrap();
    let episode: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let prompt = &episode["segments"][0];
    assert_eq!(prompt["author"], "prompt");
    let ids = prompt["ids"].as_array().unwrap().iter();
    let ids: Vec<u32> = ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect();
    Tokenizer::from_path(&world.path("student")).unwrap().decode(&ids)
}

#[test]
fn prompts_are_written_with_the_template_of_the_models_folder_and_the_date_of_the_recipe() {
    let world = World::new();
    let template = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}[{{ m.role }}] {{ \
                    m.content }}<|im_end|>{% endfor %}";
    world.write("talker/chat_template.jinja", template);
    let train = |name: &str, more: &[&str]| {
        let arguments =
            ["--quiet", "train", "--config", "rl.toml", "--name", name, "--set", "rl.steps=1"];
        world.dgpo(&[&arguments, more].concat()).done();
        first_prompt(&world, &format!("runs/{name}"))
    };
    let own = train("own", &["--set", "model.template_date=\"05 Mar 2021\""]);
    assert!(
        own.starts_with("2021-03-05 [user] Answer by searching: ") && own.ends_with("<|im_end|>"),
        "{own}"
    );
    assert_eq!(
        fs::read_to_string(
            world.path("runs/own/checkpoints/rl-step-000001/model/chat_template.jinja")
        )
        .unwrap(),
        template
    );

    let named = train("named", &["--set", "model.chat_template=\"qwen2_5\""]);
    assert!(
        named.starts_with("<|im_start|>system\nYou are Qwen")
            && named.ends_with("<|im_start|>assistant\n"),
        "{named}"
    );
    // What it was trained with is what other tools use.
    let saved = world.path("runs/named/checkpoints/rl-step-000001/model");
    let tokenizer = Tokenizer::from_path(&saved).unwrap();
    let chat = Chat::open(ChatTemplate::Auto, "26 Jul 2024", &[saved], &tokenizer).unwrap();
    assert!(
        chat.render(&[Message::user("q")], true)
            .unwrap()
            .starts_with("<|im_start|>system\nYou are Qwen")
    );
}

#[test]
fn a_folder_whose_template_cannot_be_rendered_is_refused_with_the_line() {
    let world = World::new();
    let mut n_runs = 0;
    let mut train = |setting: &[&str]| {
        n_runs += 1;
        let name = n_runs.to_string();
        let arguments = ["--quiet", "train", "--config", "rl.toml", "--name", &name];
        world.dgpo(&[&arguments, setting].concat())
    };
    for (template, parts) in [
        (
            "{{ bos_token }}\n{% if %}",
            ["chat_template.jinja, line 2 of the chat template", "syntax error"],
        ),
        (
            "{{ messages[0].content }}\n\n{{ raise_exception('no tools') }}",
            ["line 3 of the chat template", "no tools"],
        ),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            ["line 1 of the chat", "does not come to an end"],
        ),
        (
            "<|turn|>{{ messages[0].content }}",
            ["does not know \"<|turn|>\"", "chat_template.jinja"],
        ),
        ("{{ messages[0].text }}", ["chat_template.jinja", "does not write the user's message"]),
    ] {
        world.write("talker/chat_template.jinja", template);
        let ended = train(&[]);
        let code = ended.code.unwrap();
        ended.failed(code, &parts);
        assert!(code == 1 || code == 2, "{code}");
    }
    train(&["--set", "model.chat_template=\"plain\"", "--set", "rl.steps=1"]).done();

    fs::remove_file(world.path("talker/chat_template.jinja")).unwrap();
    fs::remove_file(world.path("talker/tokenizer_config.json")).unwrap();
    let ended = train(&[]);
    let code = ended.code.unwrap();
    ended.failed(code, &["no chat template in ", "talker", "--set model.chat_template=plain"]);
    train(&["--set", "model.template_date=\"2024-07-26\""])
        .failed(2, &["model.template_date", "26 Jul 2024"]);
}

/// Reads {folders, texts, messages} and prints for each folder its class, ids of the texts, end of
/// sequence, and chat.
const TRANSFORMERS: &str = "
import json, sys
import transformers
asked = json.load(sys.stdin)
found = []
for folder in asked['folders']:
    t = transformers.AutoTokenizer.from_pretrained(folder)
    chat = None
    if t.chat_template:
        chat = t.apply_chat_template(asked['messages'], tokenize=False, add_generation_prompt=True)
    ids = [t(text, add_special_tokens=False)['input_ids'] for text in asked['texts']]
    found.append({'class': type(t).__name__, 'ids': ids, 'eos': t.eos_token_id, 'chat': chat})
print(json.dumps({'version': transformers.__version__, 'found': found}))
";

#[test]
fn transformers_reads_the_tokenizers_written_here_as_they_are_read_here() {
    // `1`, or the Python that has the package.
    let Some(python) = std::env::var_os("DGPO_TRANSFORMERS")
        .map(|value| if value == "1" { PathBuf::from("python3") } else { value.into() })
    else {
        dgpo_core::testing::skipped(
            "DGPO_TRANSFORMERS=1 reads tokenizers and chat templates back with the Python \
             package transformers",
        );
        return;
    };
    let world = World::new();
    // A checkpoint of a folder with a tokenizer and nothing beside it.
    fs::remove_file(world.path("student/tokenizer_config.json")).unwrap();
    world
        .dgpo(&[
            "--quiet",
            "train",
            "--config",
            "kd.toml",
            "--name",
            "a",
            "--set",
            "distill.steps=1",
            "--set",
            "model.chat_template=\"qwen2_5\"",
        ])
        .done();
    let saved = world.path("runs/a/checkpoints/kd-step-000001/model");
    let exported = world.path("exported");
    let [from, to] = [&saved, &exported].map(|path| path.display().to_string());
    world.dgpo(&["--quiet", "model", "export", &from, "--out", &to]).done();
    let tiny = |name: &str| {
        let to = world.path(&format!("tiny-{name}"));
        copy_folder(&repository(&format!("configs/tiny/{name}")), &to);
        to
    };
    let folders =
        [tiny("student"), tiny("student-llama"), tiny("teacher"), tiny("encoder"), saved, exported];
    let texts = texts();
    let messages = json!([{"role": "user", "content": "Answer by searching: who?\n"}]);
    let asked = json!({"folders": folders, "texts": texts, "messages": messages});
    let mut child = Command::new(python)
        .args(["-c", TRANSFORMERS])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut n_of_qwens_class = 0;
    for (folder, found) in folders.iter().zip(answer["found"].as_array().unwrap()) {
        let tokenizer = Tokenizer::from_path(folder).unwrap();
        for (text, ids) in texts.iter().zip(found["ids"].as_array().unwrap()) {
            assert_eq!(
                &json!(tokenizer.encode(text).unwrap()),
                ids,
                "{}: {text:?}",
                folder.display()
            );
        }
        n_of_qwens_class += usize::from(found["class"] == "Qwen2Tokenizer");
        if !folder.ends_with("tiny-encoder") {
            assert_eq!(
                found["eos"],
                json!(tokenizer.token_id("<|im_end|>")),
                "{}",
                folder.display()
            );
            let chat = Chat::open(
                ChatTemplate::Auto,
                "26 Jul 2024",
                std::slice::from_ref(folder),
                &tokenizer,
            )
            .unwrap();
            let rendered =
                chat.render(&[Message::user("Answer by searching: who?\n")], true).unwrap();
            assert_eq!(found["chat"], json!(rendered), "{}", folder.display());
        }
    }
    // The class that reads a tokenizer in its own way, which is what is tested here.
    assert!(n_of_qwens_class >= 3, "{answer}");
}

/// Lines of the world, and texts that tokenizers like to take apart in different ways.
fn texts() -> Vec<String> {
    let lines = |path: &str| {
        fs::read_to_string(repository(path))
            .unwrap()
            .lines()
            .take(100)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut texts =
        [lines("configs/tiny/corpus.jsonl"), lines("configs/tiny/tiny-2hop.jsonl")].concat();
    let parts = [
        "a",
        "Bb",
        "7",
        "42",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "é",
        "e\u{301}",
        "中文",
        "'s",
        "'LL",
        ".",
        "\"",
        "!?\n",
        "<think>",
        " </search>",
    ];
    for i in 0..parts.len() {
        for j in 0..parts.len() {
            texts.push(format!("{}{}{}", parts[i], parts[j], parts[(i * 7 + j * 3) % parts.len()]));
        }
    }
    texts
}

#[test]
fn every_tokenizer_of_the_built_in_world_says_what_ends_a_text_and_how_a_chat_is_written() {
    for name in ["student", "student-llama", "teacher"] {
        let folder = repository(&format!("configs/tiny/{name}"));
        let tokenizer = Tokenizer::from_path(&folder).unwrap();
        let chat = Chat::open(ChatTemplate::Auto, "26 Jul 2024", &[folder], &tokenizer).unwrap();
        assert_eq!(chat.eos_ids(), [tokenizer.token_id("<|im_end|>").unwrap()], "{name}");
    }
    let normaliser = |path: &Path| {
        serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()["normalizer"]["type"]
            .clone()
    };
    assert_eq!(normaliser(&repository("configs/tiny/student/tokenizer.json")), "NFC");
}
