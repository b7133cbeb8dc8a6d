use super::*;

const MODULES: [&str; 3] = [
    r#"{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}"#,
    r#"{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}"#,
    r#"{"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}"#,
];

fn modules(entries: &[&str]) -> String {
    format!("[{}]", entries.join(","))
}

fn read(files: &[(&str, &str)]) -> Result<EncoderDeclaration, RetrieverError> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    EncoderDeclaration::read(folder.path())
}

/// The declarations of a folder with this Pooling config, these modules and this
/// config_sentence_transformers.json.
fn head(pooling: &str, entries: &[&str], more: &str) -> SentenceHead {
    let modules = modules(entries);
    let files = [
        ("modules.json", &*modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", more),
    ];
    read(&files).expect("readable").head
}

#[test]
fn pooling_and_normalisation_are_what_the_folder_says() {
    use Pooling::{Cls, Mean};
    let flags = |cls: bool, mean: bool| {
        format!("{{\"pooling_mode_cls_token\": {cls}, \"pooling_mode_mean_tokens\": {mean}}}")
    };
    let (both, cls, mean) = (3, flags(true, false), flags(false, true));
    for (pooling, n_modules, similarity, expected) in [
        (&mean, both, "null", (Mean, true)),
        (&mean, 2, "null", (Mean, true)),
        (&mean, 2, "\"cosine\"", (Mean, true)),
        (&mean, 2, "\"dot\"", (Mean, false)),
        (&cls, both, "\"dot\"", (Cls, true)),
        (&cls, both, "\"euclidean\"", (Cls, true)),
        (&cls, 2, "\"dot\"", (Cls, false)),
        (&cls, 2, "null", (Cls, true)),
        (&"{\"pooling_mode\": \"cls\"}".to_owned(), both, "null", (Cls, true)),
        (&"{}".to_owned(), both, "null", (Mean, true)),
    ] {
        let similarity = format!("{{\"similarity_fn_name\": {similarity}}}");
        let found = head(pooling, &MODULES[..n_modules], &similarity);
        assert_eq!(
            (found.pooling, found.is_unit_length),
            expected,
            "{pooling}, {n_modules} modules, {similarity}"
        );
    }
    assert_eq!(read(&[]).expect("nothing declared"), EncoderDeclaration::default());
    assert_eq!(read(&[("1_Pooling/config.json", &cls)]).expect("readable").head.pooling, Cls);
}

#[test]
fn what_is_not_computed_is_refused_by_name_and_file() {
    let dense = r#"{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}"#;
    let inside = r#"{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}"#;
    let mean = r#"{"pooling_mode_mean_tokens": true}"#;
    let (all, with_dense) = (modules(&MODULES), modules(&[MODULES[0], MODULES[1], dense]));
    let (in_folder, unpooled) = (modules(&[inside, MODULES[1]]), modules(&MODULES[..1]));
    for (modules, pooling, expected) in [
        (
            &all,
            r#"{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false}"#,
            ["1_Pooling/config.json", "\"max\""],
        ),
        (
            &all,
            r#"{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}"#,
            ["1_Pooling/config.json", "\"lasttoken\""],
        ),
        (
            &all,
            r#"{"pooling_mode": "weightedmean"}"#,
            ["1_Pooling/config.json", "\"weightedmean\""],
        ),
        (&all, r#"{"pooling_mode_cls_token": true}"#, ["1_Pooling/config.json", "\"cls + mean\""]),
        (&all, r#"{"pooling_mode_mean_tokens": false}"#, ["1_Pooling/config.json", "\"\""]),
        (
            &all,
            r#"{"pooling_mode_mean_tokens": true, "include_prompt": false}"#,
            ["1_Pooling/config.json", "include_prompt"],
        ),
        (&all, "7", ["1_Pooling/config.json", "invalid type"]),
        (&with_dense, mean, ["modules.json", "models.Dense\" in \"2_Dense\""]),
        (&in_folder, mean, ["modules.json", "0_Transformer"]),
        (&unpooled, mean, ["modules.json", "no Pooling"]),
    ] {
        let message = read(&[("modules.json", modules), ("1_Pooling/config.json", pooling)])
            .expect_err(pooling)
            .to_string();
        assert!(
            expected.iter().all(|part| message.contains(part)) && message.contains("hint: "),
            "{message}"
        );
    }
    for (similarity, entries) in [("manhattan", &all), ("euclidean", &modules(&MODULES[..2]))] {
        let more = format!("{{\"similarity_fn_name\": \"{similarity}\"}}");
        let files = [
            ("modules.json", &**entries),
            ("1_Pooling/config.json", mean),
            ("config_sentence_transformers.json", &*more),
        ];
        let message = read(&files).expect_err(similarity).to_string();
        assert!(
            message.contains("config_sentence_transformers.json") && message.contains(similarity),
            "{message}"
        );
    }
    let message = read(&[("modules.json", &all)]).expect_err("no pooling file").to_string();
    assert!(message.contains("1_Pooling") && message.contains("is missing"), "{message}");
}

#[test]
fn what_a_folder_declares_goes_with_the_network_trained_from_it() {
    let (source, copy) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let away = r#"{"path": "../elsewhere", "type": "sentence_transformers.models.Dense"}"#;
    let files = [
        ("modules.json", modules(&[MODULES[0], MODULES[1], away])),
        ("1_Pooling/config.json", "{}".to_owned()),
        (
            "config_sentence_transformers.json",
            r#"{"prompts": {"query": "Represent: "}}"#.to_owned(),
        ),
        ("README.md", "text".to_owned()),
    ];
    for (name, text) in &files {
        let path = source.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    assert_eq!(
        declaration_files(source.path()),
        ["1_Pooling/config.json", "config_sentence_transformers.json", "modules.json"]
    );
    copy_declarations(source.path(), copy.path()).expect("copied");
    for (name, text) in &files[..3] {
        assert_eq!(&std::fs::read_to_string(copy.path().join(name)).expect("copied"), text);
    }
    assert_eq!(declaration_files(copy.path()).len(), 3);
}

#[test]
fn declared_prompts_are_taken_where_the_recipe_leaves_the_choice() {
    let declared =
        |text: &str| read(&[("config_sentence_transformers.json", text)]).expect("readable");
    let prompts = |query: &str, passage: &str| Prompts {
        query: query.to_owned(),
        passage: passage.to_owned(),
    };
    for (text, expected) in [
        (r#"{"prompts": {"query": "Represent: "}}"#, prompts("Represent: ", "")),
        (r#"{"prompts": {"query": "q ", "document": "d ", "passage": "p "}}"#, prompts("q ", "d ")),
        (r#"{"prompts": {"any": "x "}, "default_prompt_name": "any"}"#, prompts("x ", "x ")),
        // None declared, in the two ways in which that is written.
        (r#"{"__version__": {}}"#, prompts("query: ", "passage: ")),
        (
            r#"{"prompts": {"query": "", "document": ""}, "default_prompt_name": null}"#,
            prompts("query: ", "passage: "),
        ),
    ] {
        assert_eq!(declared(text).resolve("auto", "auto"), expected, "{text}");
    }
    let mixedbread = declared(r#"{"prompts": {"query": "Represent: "}}"#);
    let used = mixedbread.resolve("query: ", "auto");
    assert_eq!(used, prompts("query: ", ""));
    let warning = mixedbread
        .other_prompts("owner/name", &used)
        .expect("another prompt than the declared one");
    assert!(
        warning.contains("owner/name")
            && warning.contains("\"Represent: \"")
            && warning.contains("hint: "),
        "{warning}"
    );
    assert_eq!(mixedbread.other_prompts("owner/name", &mixedbread.resolve("auto", "auto")), None);
    let cls = EncoderDeclaration {
        head: SentenceHead { pooling: Pooling::Cls, is_unit_length: true },
        ..EncoderDeclaration::default()
    };
    assert_eq!(cls.resolve("auto", "auto"), prompts("", ""));
}
