//! A chat template: the Jinja program that writes a chat as one text.
//!
//! Rendered as transformers does it: blocks swallow their line (`trim_blocks`, `lstrip_blocks`),
//! strings have Python's methods, `tojson` writes as Python's `json.dumps`, `raise_exception`
//! refuses a chat, `strftime_now` writes the recipe's date and not today's. Its work is bounded,
//! because a template is a program from outside.
//!
//! # Source
//! huggingface/transformers:src/transformers/utils/chat_template_utils.py `_compile_jinja_template`
use super::chat::{ChatError, Message};
use crate::{contained::contained, settings::date::Date, text::strip};
use minijinja::{Environment, Error, ErrorKind, State, Value, syntax::SyntaxConfig, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

const NAME: &str = "chat_template";

/// Instructions, and 64-byte pieces of text, that a rendering may take. Published templates take
/// some hundreds for a short chat.
const FUEL: u64 = 100_000;

/// Size of the stack for a rendering: every instruction can nest a list once more, and nested lists
/// are dropped and written by recursion, so there is room for [`FUEL`] of them. Pages that are not
/// touched take no memory.
const STACK_BYTES: usize = 256 << 20;

/// A compiled template.
#[derive(Clone)]
pub(super) struct Template {
    environment: Environment<'static>,
    /// Path of its file, or its built-in name.
    origin: PathBuf,
    /// `bos_token` and the like, where the tokenizer has them.
    tokens: BTreeMap<String, String>,
    date: String,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("origin", &self.origin)
            .field("date", &self.date)
            .finish_non_exhaustive()
    }
}

impl Template {
    /// # Errors
    /// If the program does not parse; names the line.
    pub(super) fn compile(
        source: &str,
        origin: &Path,
        tokens: BTreeMap<String, String>,
        date: Date,
    ) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let blocks = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(blocks.map_err(|error| refused(origin, &error))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_filter("trim", trim);
        environment.add_function("raise_exception", |why: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.add_function("strftime_now", move |format: String| {
            let unknown = || {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know the format {format:?}"),
                )
            };
            date.format(&format).ok_or_else(unknown)
        });
        let source = without_generation_marks(source);
        let compiled = on_a_large_stack(|| {
            environment.add_template_owned(NAME, source).map_err(|error| refused(origin, &error))
        });
        compiled.unwrap_or_else(|why| Err(broken(origin, why)))?;
        let date = date.format("%d %b %Y").unwrap_or_default();
        Ok(Self { environment, origin: origin.to_owned(), tokens, date })
    }

    /// Path of its file, or its built-in name.
    pub(super) fn origin(&self) -> &Path {
        &self.origin
    }

    /// The chat as text, special tokens written out.
    /// # Errors
    /// If the template refuses the chat, uses something unknown, or exceeds its bound of work.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let mut context: BTreeMap<&str, Value> = self
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        let message = |message: &Message| {
            Value::from_pairs([
                ("role", message.role.as_str()),
                ("content", message.content.as_str()),
            ])
        };
        context.insert("messages", messages.iter().map(message).collect());
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        context.insert("date_string", Value::from(self.date.as_str()));
        for absent in ["tools", "documents"] {
            context.insert(absent, Value::from(()));
        }
        // The values are made and dropped on that stack.
        let rendered = on_a_large_stack(|| {
            let rendered =
                self.environment.get_template(NAME).and_then(|template| template.render(context));
            rendered.map_err(|error| refused(&self.origin, &error))
        });
        rendered.unwrap_or_else(|why| Err(broken(&self.origin, why)))
    }
}

fn refused(origin: &Path, error: &Error) -> ChatError {
    let why = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("it does not come to an end, or writes too much (more than {FUEL} steps)")
        }
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    ChatError::Template { path: origin.to_owned(), line: error.line().unwrap_or(1), why }
}

/// An error of the library.
fn broken(origin: &Path, why: String) -> ChatError {
    ChatError::Template { path: origin.to_owned(), line: 1, why }
}

/// Runs `work` on a stack of [`STACK_BYTES`].
/// # Errors
/// The message of its panic; a thread that could not be started.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || contained(work));
        let thread =
            thread.map_err(|error| format!("there is no memory for its stack ({error})"))?;
        thread.join().unwrap_or_else(|_| Err("it was given up".to_owned()))
    })
}

/// `{% generation %}` marks the assistant's tokens for transformers' masks and writes nothing. It
/// is replaced by a block that is always taken, on the same line and with the same white space.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at + 2);
        text.push_str(before);
        rest = block;
        let sign_len = usize::from(block.starts_with(['-', '+']));
        let word = block[sign_len..].trim_start();
        for (mark, read_as) in [("generation", "if true"), ("endgeneration", "endif")] {
            let behind = word.strip_prefix(mark).filter(|behind| {
                behind.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            });
            if let Some(behind) = behind {
                text.push_str(&block[..sign_len]);
                text.push(' ');
                text.push_str(read_as);
                rest = behind;
            }
        }
    }
    text + rest
}

/// Python's `str.strip`, whose white space is a little more than Rust's.
fn trim(text: &str, characters: Option<&str>) -> String {
    match characters {
        None => strip(text).to_owned(),
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=None, sort_keys=False)`.
fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    let is_sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let written = match is_sorted {
        // serde_json's own objects are sorted.
        Some(true) => json(&serde_json::to_value(value).map_err(failed)?, indent),
        _ => json(value, indent),
    }
    .map_err(failed)?;
    state.consume_fuel(written.len() as u64 / 64)?;
    let text = String::from_utf8_lossy(&written).into_owned();
    if !is_ascii.unwrap_or(false) {
        return Ok(text);
    }
    let mut escaped = String::new();
    for c in text.chars() {
        match c.is_ascii() {
            true => escaped.push(c),
            false => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| escaped += &format!("\\u{unit:04x}")),
        }
    }
    Ok(escaped)
}

fn json(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<Vec<u8>> {
    let mut written = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut written, PythonFormatter))?,
        Some(n) => {
            let indent = " ".repeat(n.min(64));
            value.serialize(&mut Serializer::with_formatter(
                &mut written,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))?;
        }
    }
    Ok(written)
}

/// Formatter that writes a space after commas and colons.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        if is_first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        if is_first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(source: &str) -> Result<Template, ChatError> {
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")]
            .map(|(name, token)| (name.to_owned(), token.to_owned()));
        let date = Date::parse("26 Jul 2024").expect("a date");
        Template::compile(source, Path::new("folder/chat_template.jinja"), tokens.into(), date)
    }

    fn rendered(source: &str) -> String {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let messages = [message("user", " naïve <b>\t"), message("assistant", "a</think>b")];
        compiled(source)
            .and_then(|template| template.render(&messages, true))
            .unwrap_or_else(|error| format!("error: {error}"))
    }

    #[test]
    fn the_parts_of_published_templates_render_as_with_transformers() {
        // Output of transformers 5.24.0 with jinja2 3.1.6: apply_chat_template of a tokenizer with
        // these two tokens and a given date_string; strftime_now was set to a fixed day.
        let cases = [
            ("{{ bos_token }}{{ unk_token }}{{ eos_token }}", "<s></s>"),
            (
                "{% for m in messages %}\n    {{- m['role'] }}:{{ m.content.strip() \
                 }}|\n{% endfor %}",
                "user:naïve <b>|\nassistant:a</think>b|\n",
            ),
            ("{% if tools %}a{% elif not documents is none %}b{% else %}c{% endif %}", "c"),
            ("{% if not tools is defined %}a{% elif tools is none %}b{% endif %}", "b"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
                 {% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{{ messages[1].content.split('</think>')[-1] }}{{ messages[::-1][0].role[:4] }}",
                "bassi",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index0 \
                 }}{% break %}{% endfor %}",
                "1",
            ),
            ("{{ messages[0] | tojson }}", "{\"role\": \"user\", \"content\": \" naïve <b>\\t\"}"),
            (
                "{{ [1, 'é'] | tojson(indent=2) }}{{ 'é' | tojson(ensure_ascii=true) }}",
                "[\n  1,\n  \"é\"\n]\"\\u00e9\"",
            ),
            (
                "{{ {'b': 1.5, 'a': [true, none, {}]} | tojson }}",
                "{\"b\": 1.5, \"a\": [true, null, {}]}",
            ),
            (
                "{{ {'b': 1.5, 'a': [true, {}, []]} | tojson(indent=4, sort_keys=true) }}",
                "{\n    \"a\": [\n        true,\n        {},\n        []\n    ],\n    \"b\": 1.5\n}",
            ),
            (
                "{{ {'b': 1, 'a': \"x'y\"} }}{{ [1, 'x', none, true] }}",
                "{'b': 1, 'a': \"x'y\"}[1, 'x', None, True]",
            ),
            ("{{ strftime_now('%B %d, %Y') }}|{{ date_string }}", "July 26, 2024|26 Jul 2024"),
            (
                "{%- for m in messages %}\n{% generation %}\n{{ m.role \
                 }}\n{%- endgeneration -%}\n{% endfor %}",
                "userassistant",
            ),
            (
                "{% macro say(x) %}<{{ x | trim }}>{% endmacro %}{{ say(messages[0].content) }}{{ \
                 messages[0].none_such }}",
                "<naïve <b>>",
            ),
            (
                "{{ messages[0].content is string and messages is iterable and messages[0] is \
                 mapping }}",
                "True",
            ),
            (
                "{{ messages[1].content.startswith('a') and 'think' in messages[1].content }}{{ \
                 'x'.upper() ~ 1 }}",
                "TrueX1",
            ),
            (
                "{{ true }} {{ none }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 5 % 3 }}",
                "True None 1.0 3 3.5 2",
            ),
            ("{{ 'a{% b %}' }}{% raw %}{{ x }}{% endraw %}", "a{% b %}{{ x }}"),
            (
                "{{ messages[0].content.strip('\\t') }}|{{ \
                 messages[1].content.lstrip('a').rstrip('b') }}",
                " naïve <b>|</think>",
            ),
            (
                "{{ messages | map(attribute='role') | join(',') }}|{{ messages[0].get('x', 'd') \
                 }}",
                "user,assistant|d",
            ),
            (
                "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=user;content= naïve <b>\t;",
            ),
            (
                "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ \
                 messages[1:] | length }}",
                "11",
            ),
            (
                "a\n  {# comment #}\nb\n  {% if true %}\nc\n  {% endif %}\nd {{ 1 }}\n\n",
                "a\nb\nc\nd 1\n",
            ),
            ("{% set x %}<{{ messages[0].role }}>{% endset %}{{ x }}{{ x | length }}", "<user>6"),
            (
                "{% for m in messages if m.role == 'user' %}{{ m.role }}{{ loop.last \
                 }}{% else %}none{% endfor %}",
                "userTrue",
            ),
            (
                "{{ messages[0].content | replace('n', 'N') | upper }}{{ \
                 messages[0].content.replace('b', 'c', 1) }}",
                " NAÏVE <B>\t naïve <c>\t",
            ),
            (
                "{{ '' | default('d', true) }}{{ undefined_thing | default('e') }}{{ 'a' 'b' }}",
                "deab",
            ),
            (
                "{{ dict(a=1).a }}{{ messages[5] is defined }}{{ messages[0].tool_calls is not \
                 defined }}",
                "1FalseTrue",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(rendered(source), expected, "{source}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_rendered_is_named_with_its_line() {
        for (source, line, why) in [
            ("{{ bos_token }}\n{% if %}", 2, "syntax error"),
            ("\n\n{% unknown_block %}", 3, "unknown"),
            ("a\n{{ raise_exception('roles must alternate') }}", 2, "roles must alternate"),
            ("{{ messages | no_such_filter }}", 1, "no_such_filter"),
            ("\n{{ strftime_now('%Q') }}", 2, "%Q"),
        ] {
            let error = rendered(source);
            assert!(
                error.contains(&format!(
                    "folder/chat_template.jinja, line {line} of the chat template: "
                )),
                "{error}"
            );
            assert!(
                error.contains(why) && error.contains("hint: --set model.chat_template="),
                "{error}"
            );
        }
    }

    #[test]
    fn a_template_that_does_not_come_to_an_end_is_stopped() {
        let counted = "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}{% endfor %}";
        let doubled = "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        let written = "{% set ns = namespace(x='x') %}{% for a in range(50000) %}{{ messages | \
                       tojson(indent=64) }}{% endfor %}";
        let called = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        for source in [counted, doubled, written, called] {
            let error = rendered(source);
            assert!(
                error.contains("does not come to an end") || error.contains("recursion limit"),
                "{error}"
            );
        }
    }
}
