//! The table of files that are part of the binary: the tiny world and the networks trained for it.

/// Embeds files of `configs/` under their path there.
macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/", $path)))),*]
    };
}

/// (path relative to the table's root, e.g. "tiny/student/config.json"; contents).
pub fn builtin_files() -> &'static [(&'static str, &'static [u8])] {
    embedded![
        "tiny/corpus.jsonl",
        "tiny/train.jsonl",
        "tiny/dev.jsonl",
        "tiny/tiny-1hop.jsonl",
        "tiny/tiny-2hop.jsonl",
        "tiny/encoder/config.json",
        "tiny/encoder/model.safetensors",
        "tiny/encoder/tokenizer.json",
        "tiny/encoder/tokenizer_config.json",
        "tiny/student/config.json",
        "tiny/student/model.safetensors",
        "tiny/student/tokenizer.json",
        "tiny/student/tokenizer_config.json",
        "tiny/student-llama/config.json",
        "tiny/student-llama/model.safetensors",
        "tiny/student-llama/tokenizer.json",
        "tiny/student-llama/tokenizer_config.json",
        "tiny/teacher/config.json",
        "tiny/teacher/model.safetensors",
        "tiny/teacher/tokenizer.json",
        "tiny/teacher/tokenizer_config.json",
    ]
}
