//! The chat format of a run: messages as text, and the tokens that end the agent's turn.
//!
//! `model.chat_template = "auto"` takes the template in the model's folder, searched for in
//! transformers' order: `chat_template.jinja`, then `chat_template` of tokenizer_config.json (one
//! text, or several with names, of which `default` is used), then `chat_template.json`. Another
//! name is a built-in format. Tool calls are not part of the protocol.
//!
//! A turn ends at any of: `eos_token` of tokenizer_config.json, `eos_token_id` of
//! generation_config.json, and the special token that the template writes after an assistant's
//! text. (A model's own config.json adds its own, see `Player::eos_ids`.)
use super::{
    Tokenizer, TokenizerError,
    declared::CONFIG_FILE,
    folder::{Declared, Source},
    template::Template,
};
pub use crate::settings::ChatTemplate;
use crate::settings::date::Date;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// Text of the message.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: &str) -> Self {
        Self { role: "user".to_owned(), content: content.to_owned() }
    }
}

/// Errors of a chat that cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ChatError {
    #[error(
        "no chat template in {}: there is no chat_template.jinja, and no chat_template in \
         {CONFIG_FILE}; hint: --set model.chat_template=plain for a model without a chat format, \
         or the model's family: qwen2_5, llama3, llama3_1, llama3_2",
        folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    Missing { folders: Vec<PathBuf> },
    #[error("cannot read {}: {why}; hint: take the file that the model was published with", path.display())]
    Read { path: PathBuf, why: String },
    #[error(
        "{}: several chat templates ({}) and none is called default; hint: leave the one that is \
         meant in {}",
        path.display(),
        names.join(", "),
        path.with_file_name("chat_template.jinja").display()
    )]
    NoDefault { path: PathBuf, names: Vec<String> },
    #[error(
        "{}, line {line} of the chat template: {why}; hint: --set model.chat_template=qwen2_5 \
         takes a built-in format instead (qwen2_5, llama3, llama3_1, llama3_2 or plain)",
        path.display()
    )]
    Template { path: PathBuf, line: usize, why: String },
    #[error(
        "{}: the chat template does not write the user's message as it is given; hint: --set \
         model.chat_template=qwen2_5 takes a built-in format instead (qwen2_5, llama3, llama3_1, \
         llama3_2 or plain)",
        path.display()
    )]
    NoMessage { path: PathBuf },
    #[error(
        "model.template_date \"{0}\" is no date; hint: --set model.template_date=\"26 Jul 2024\" \
         shows the notation"
    )]
    Date(String),
}

/// A chat format, ready to render.
#[derive(Clone, Debug)]
pub struct Chat {
    template: Arc<Template>,
    /// Ids that end an agent's turn, ascending.
    eos_ids: Vec<u32>,
}

/// Placeholder for a message when a template is examined; no template changes a plain word.
const PROBE: &str = "probe";

impl Chat {
    /// A built-in format by itself, without token ids.
    /// # Errors
    /// If the name is `auto`, or the date is not a date.
    pub fn built_in(template: ChatTemplate, date: &str) -> Result<Self, ChatError> {
        let source = template.source().ok_or_else(|| ChatError::Missing { folders: Vec::new() })?;
        let template = Template::compile(
            source,
            Path::new(template.name()),
            Default::default(),
            parse(date)?,
        )?;
        Ok(Self { template: Arc::new(template), eos_ids: Vec::new() })
    }

    /// The format without a template: text as it is.
    pub fn plain() -> Self {
        Self::built_in(ChatTemplate::Plain, "01 Jan 2000").expect("a built-in template compiles")
    }

    /// The format of a model: `template` by name, or the one in its folders, the first that has
    /// one. The folders also name the tokens that end a turn.
    /// # Errors
    /// If there is no template, it cannot be rendered, or it writes special tokens that the
    /// tokenizer does not know as one id.
    pub fn open(
        template: ChatTemplate,
        date: &str,
        folders: &[PathBuf],
        tokenizer: &Tokenizer,
    ) -> Result<Self, TokenizerError> {
        let Declared { template: own, tokens, mut eos_ids } = Declared::read(folders)?;
        let source = match template.source() {
            Some(text) => Source { path: PathBuf::from(template.name()), text: text.to_owned() },
            None => own.ok_or_else(|| ChatError::Missing { folders: folders.to_vec() })?,
        };
        eos_ids.extend(tokens.get("eos_token").and_then(|token| tokenizer.token_id(token)));
        let template = Template::compile(&source.text, &source.path, tokens, parse(date)?)?;
        let mut chat = Self { template: Arc::new(template), eos_ids };
        chat.check(tokenizer)?;
        chat.eos_ids.extend(chat.end_of_turn(tokenizer)?);
        chat.eos_ids.sort_unstable();
        chat.eos_ids.dedup();
        Ok(chat)
    }

    /// The chat as text, special tokens written out (Llama's BOS too: encode it without adding
    /// any).
    /// # Errors
    /// If the template refuses the chat.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.template.render(messages, add_generation_prompt)
    }

    /// Ids that end an agent's turn, ascending.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Renders a question once, so that a bad template fails early.
    fn check(&self, tokenizer: &Tokenizer) -> Result<(), TokenizerError> {
        let text = self.render(&[Message::user(PROBE)], true)?;
        let origin = self.template.origin();
        if !text.contains(PROBE) {
            return Err(ChatError::NoMessage { path: origin.to_owned() }.into());
        }
        match control_tokens(&text).find(|token| tokenizer.token_id(token).is_none()) {
            None => Ok(()),
            Some(token) => Err(TokenizerError::Template {
                path: tokenizer.path().to_owned(),
                token: token.to_owned(),
                template: origin.display().to_string(),
            }),
        }
    }

    /// The first special token after an assistant's text; `None` where the template writes none or
    /// refuses such a chat.
    fn end_of_turn(&self, tokenizer: &Tokenizer) -> Result<Option<u32>, TokenizerError> {
        let answer = "the assistant's probe";
        let messages = [
            Message::user(PROBE),
            Message { role: "assistant".to_owned(), content: answer.to_owned() },
        ];
        let Ok(text) = self.render(&messages, false) else { return Ok(None) };
        let Some((_, behind)) = text.rsplit_once(answer) else { return Ok(None) };
        Ok(tokenizer.encode(behind)?.into_iter().find(|&id| tokenizer.has_special(&[id])))
    }
}

fn parse(date: &str) -> Result<Date, ChatError> {
    Date::parse(date).ok_or_else(|| ChatError::Date(date.to_owned()))
}

/// Text that is spelled like a control token: `<|` WORD `|>`.
fn control_tokens(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("<|").filter_map(|(start, _)| {
        let len = text[start..].find("|>")? + 2;
        let token = &text[start..start + len];
        (!token.contains(char::is_whitespace)).then_some(token)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::byte_level_tokenizer;
    use std::fs;

    #[derive(Deserialize)]
    struct Oracle {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        family: ChatTemplate,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        date_string: String,
        text: String,
    }

    fn oracle() -> Vec<Case> {
        let oracle = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracles/text/chat_templates.json"
        ));
        serde_json::from_str::<Oracle>(oracle).expect("the oracle").cases
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("written");
        }
        folder
    }

    const DATE: &str = "26 Jul 2024";

    fn open(template: ChatTemplate, files: &[(&str, &str)]) -> Result<Chat, String> {
        let folder = folder(files);
        Chat::open(template, DATE, &[folder.path().to_owned()], &byte_level_tokenizer())
            .map_err(|error| error.to_string())
    }

    fn prompt_of(files: &[(&str, &str)]) -> String {
        open(ChatTemplate::Auto, files)
            .and_then(|chat| chat.render(&[Message::user("q")], true).map_err(|e| e.to_string()))
            .expect("renders")
    }

    #[test]
    fn every_recorded_chat_is_rendered_exactly() {
        let cases = oracle();
        assert_eq!(cases.len(), 32);
        for Case { family, messages, add_generation_prompt, date_string, text } in cases {
            let chat = Chat::built_in(family, &date_string).expect("a built-in format");
            assert_eq!(chat.render(&messages, add_generation_prompt).expect("renders"), text);
        }
    }

    #[test]
    fn the_plain_template_is_the_text_itself() {
        assert_eq!(
            Chat::plain()
                .render(&[Message::user(" q\n"), Message::user("r")], true)
                .expect("renders"),
            " q\n\nr"
        );
    }

    #[test]
    fn the_real_qwen_template_renders_every_recorded_chat_as_the_built_in_format() {
        let Some(dir) = crate::testing::test_data("tokenizers/qwen2.5") else { return };
        let tokenizer = Tokenizer::from_path(&dir).expect("loads");
        let chat = Chat::open(ChatTemplate::Auto, DATE, &[dir], &tokenizer).expect("opens");
        for case in oracle().into_iter().filter(|case| case.family == ChatTemplate::Qwen25) {
            assert_eq!(
                chat.render(&case.messages, case.add_generation_prompt).expect("renders"),
                case.text
            );
        }
        assert_eq!(chat.eos_ids(), [tokenizer.token_id("<|im_end|>").expect("known")]);
    }

    #[test]
    fn the_real_smollm_template_is_rendered() {
        let Some(dir) = crate::testing::test_data("tokenizers/smollm2") else { return };
        let tokenizer = Tokenizer::from_path(&dir).expect("loads");
        let chat = Chat::open(ChatTemplate::Auto, DATE, &[dir], &tokenizer).expect("opens");
        let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained \
                        by Hugging \
                        Face<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(chat.render(&[Message::user("who?")], true).expect("renders"), expected);
        assert_eq!(chat.eos_ids(), [tokenizer.token_id("<|im_end|>").expect("known")]);
    }

    #[test]
    fn a_template_is_found_in_each_of_its_places() {
        let config = |template: &str| format!("{{\"chat_template\": {template}}}");
        let named = r#"[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d {{ messages[0].content }}"}]"#;
        let text = r#""c {{ messages[0].content }}""#;
        assert_eq!(prompt_of(&[(CONFIG_FILE, &config(text))]), "c q");
        assert_eq!(prompt_of(&[(CONFIG_FILE, &config(named))]), "d q");
        assert_eq!(prompt_of(&[("chat_template.json", &config(text))]), "c q");
        let jinja = "{# a file of its own wins #}j {{ messages[0].content }}\n";
        assert_eq!(
            prompt_of(&[("chat_template.jinja", jinja), (CONFIG_FILE, &config(text))]),
            "j q"
        );
        let other = r#"[{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]"#;
        let error =
            open(ChatTemplate::Auto, &[(CONFIG_FILE, &config(other))]).expect_err("no default");
        assert!(error.contains("a, b") && error.contains("hint: "), "{error}");
    }

    #[test]
    fn a_folder_without_a_template_is_an_error_under_auto_alone() {
        let error = open(ChatTemplate::Auto, &[(CONFIG_FILE, "{\"eos_token\": \"<|im_end|>\"}")])
            .expect_err("no template");
        assert!(
            error.contains("no chat template in ")
                && error.contains("hint: --set model.chat_template=plain"),
            "{error}"
        );
        assert!(open(ChatTemplate::Plain, &[]).is_ok());
        for (file, text) in [
            (CONFIG_FILE, "{"),
            (CONFIG_FILE, "{\"chat_template\": 7}"),
            ("generation_config.json", "["),
        ] {
            let error = open(ChatTemplate::Plain, &[(file, text)]).expect_err("a broken file");
            assert!(error.contains(file) && error.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn a_turn_ends_where_template_tokenizer_and_generation_config_say() {
        let tokenizer = byte_level_tokenizer();
        let end = tokenizer.token_id("<|im_end|>").expect("known");
        let ends = |files: &[(&str, &str)]| {
            open(ChatTemplate::Auto, files).expect("opens").eos_ids().to_vec()
        };
        let template = "{% for m in messages %}{{ m.content }} \n<|im_end|>{% endfor %}";
        assert_eq!(ends(&[("chat_template.jinja", template)]), [end]);
        let silent = "{% for m in messages %}{{ m.content }}{% endfor %}";
        assert!(ends(&[("chat_template.jinja", silent)]).is_empty());
        assert_eq!(
            ends(&[
                ("chat_template.jinja", silent),
                (CONFIG_FILE, r#"{"eos_token": {"content": "<|im_end|>"}}"#)
            ]),
            [end]
        );
        let mut all = [end, 7, 9];
        all.sort_unstable();
        assert_eq!(
            ends(&[
                ("chat_template.jinja", template),
                ("generation_config.json", r#"{"eos_token_id": [7, 9]}"#)
            ]),
            all
        );
    }

    #[test]
    fn a_control_token_that_the_tokenizer_lacks_is_named() {
        let error = open(ChatTemplate::Llama3, &[]).expect_err("another family");
        assert!(
            error.contains("<|begin_of_text|>")
                && error.contains("hint: --set model.chat_template"),
            "{error}"
        );
        let error = open(
            ChatTemplate::Auto,
            &[("chat_template.jinja", "<|turn|>{{ messages[0].content }}")],
        )
        .expect_err("unknown");
        assert!(error.contains("\"<|turn|>\"") && error.contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn a_template_that_leaves_out_the_message_is_refused() {
        let error = open(
            ChatTemplate::Auto,
            &[(
                "chat_template.jinja",
                "{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
            )],
        );
        assert!(error.expect_err("no message").contains("does not write the user's message"));
    }
}
