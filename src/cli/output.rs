//! stdout is data, stderr is talk. Everything the program says goes through here or through
//! `progress`.
//!
//! Questions, passages, answers, and names of files come from outside and may hold anything: what
//! acts on a terminal instead of being shown is shown ([`visible`]), and in JSON it is escaped.
//! Colour is added behind that.
//!
//! Messages of the library end in `hint: …`; the hint gets a line of its own. `NO_COLOR` and a
//! stderr that is no terminal switch colour off, and no meaning hangs on colour alone.
pub use dgpo_run::config::shell_quoted;
use dgpo_run::{config::secrets::without_users, report::table::acts_on_display};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;
use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// `-q`: talk and warnings are not wanted.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// From here on nothing is said but errors and results.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Writes data to stdout.
/// # Errors
/// If stdout cannot be written, e.g. because the reader of a pipe has gone; see [`is_closed_pipe`].
pub fn data(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(visible(text).as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

/// Writes one JSON value to stdout, indented.
/// # Errors
/// As [`data`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    data(&escaped(&serde_json::to_string_pretty(value)?))
}

/// Writes one JSON value to stdout, in one line.
/// # Errors
/// As [`data`].
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    data(&escaped(&serde_json::to_string(value)?))
}

/// Text in which nothing acts on a terminal but the end of a line and the tabulator: a control
/// picture stands for each character of C0, the number for what has no picture.
pub fn visible(text: &str) -> Cow<'_, str> {
    let acts = |c: char| acts_on_display(c) && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| match c {
        c if !acts(c) => c.to_string(),
        '\0'..' ' => char::from_u32(0x2400 + u32::from(c))
            .map_or(String::new(), |picture| picture.to_string()),
        '\u{7f}' => '\u{2421}'.to_string(),
        c => c.escape_unicode().to_string(),
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// JSON in which the characters that serde_json leaves alone (DEL, C1, directions) are escaped too.
/// They occur inside strings alone, and none is beyond the first plane.
fn escaped(json: &str) -> String {
    let shown = |c: char| {
        if acts_on_display(c) && c != '\n' {
            format!("\\u{:04x}", u32::from(c))
        } else {
            c.to_string()
        }
    };
    json.chars().map(shown).collect()
}

/// Says something to the person in front of it, unless `-q` forbids.
pub fn say(text: &str) {
    if !IS_QUIET.load(Ordering::Relaxed) {
        insist(text);
    }
}

/// Says what `-q` does not silence: errors, and how work that was broken off goes on.
pub fn insist(text: &str) {
    tell("", text);
}

/// A problem that does not stop the program.
pub fn warn(message: &str) {
    if !IS_QUIET.load(Ordering::Relaxed) {
        tell(&painted("33", "warning: "), message);
    }
}

/// `mark` is the program's own and may be coloured, `text` may hold anything.
fn tell(mark: &str, text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "{mark}{}", hints_on_own_lines(&visible(&without_users(text))));
}

/// The reader of stdout has had enough (`dgpo runs list | head -1`): not a failure.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Prints an error as `error: …`, its causes, and its hints.
pub fn error(error: &anyhow::Error) {
    tell(&painted("1;31", "error: "), &describe(error));
}

/// The text of an error: message, causes that the message does not already quote, hints on their
/// own lines.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // A message that quotes its cause may give better advice than the cause itself.
        if !text.contains(without_hint(&cause)) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
    }
    hints_on_own_lines(&text)
}

/// The message without its advice.
pub fn without_hint(text: &str) -> &str {
    let end = ["; hint: ", "\nhint: "].iter().filter_map(|mark| text.find(mark)).min();
    &text[..end.unwrap_or(text.len())]
}

/// `a; hint: b` becomes two lines, with the indentation of the first.
fn hints_on_own_lines(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let indentation = &line[..line.len() - line.trim_start().len()];
        let mut parts = line.split("; hint: ");
        lines.extend(parts.next().map(str::to_owned));
        lines.extend(parts.map(|hint| format!("{indentation}hint: {hint}")));
    }
    lines.join("\n")
}

/// True if stderr takes colour.
pub fn has_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn painted(code: &str, text: &str) -> String {
    if has_colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// 1234567 -> "1,234,567".
pub fn grouped(n: u64) -> String {
    HumanCount(n).to_string()
}

/// 7_904_524_288 -> "7.90 GB" (powers of 1,000).
pub fn bytes(n: u64) -> String {
    DecimalBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn hints_stand_on_their_own_line_with_the_same_indentation() {
        let error = anyhow!("2 problems:\n  rl.steps: is 0; hint: 1 is the smallest\n  x: y");
        assert_eq!(
            describe(&error),
            "2 problems:\n  rl.steps: is 0\n  hint: 1 is the smallest\n  x: y"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let told = anyhow!("no space").context("cannot write x: no space");
        assert_eq!(describe(&told), "cannot write x: no space");
        let untold = anyhow!("no space; hint: make room").context("cannot write x");
        assert_eq!(describe(&untold), "cannot write x\n  because: no space\n  hint: make room");
        let better_told = anyhow!("no space; hint: check free space")
            .context("cannot write x: no space; hint: lower run.keep");
        assert_eq!(describe(&better_told), "cannot write x: no space\nhint: lower run.keep");
    }

    #[test]
    fn every_hint_has_a_line_of_its_own() {
        assert_eq!(hints_on_own_lines("  a; hint: b; hint: c"), "  a\n  hint: b\n  hint: c");
    }

    #[test]
    fn what_acts_on_a_terminal_is_shown_instead() {
        assert_eq!(visible("plain\n\ttext, Zürich"), "plain\n\ttext, Zürich");
        assert_eq!(visible("\u{1b}[2J\u{7}\r\u{7f}"), "␛[2J␇␍␡");
        assert_eq!(visible("\u{9b}31m \u{202e}txt"), "\\u{9b}31m \\u{202e}txt");
        for c in (0..=0x2069).filter_map(char::from_u32) {
            assert!(
                !visible(&c.to_string())
                    .contains(|shown| acts_on_display(shown) && !matches!(shown, '\n' | '\t')),
                "{c:?}"
            );
        }
    }

    #[test]
    fn json_means_the_same_with_everything_escaped() {
        let text = "a\u{1b}[31m\u{7f}\u{9b}\u{202e}\n\"\\ü";
        let json = escaped(&serde_json::to_string_pretty(&[text]).unwrap());
        assert!(!json.contains(|c| acts_on_display(c) && c != '\n'), "{json:?}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
    }
}
