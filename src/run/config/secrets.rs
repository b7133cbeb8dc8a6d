//! Users and passwords in addresses: where they may stand, and how a text is shown without them.
//!
//! A recipe is written into the run's folder, into checkpoints and reports. So an address with a
//! user or a password stands in it by the name of an environment variable alone, `url =
//! "${RETRIEVER_URL}"`: the name is kept, and its value is read when the address is used, again in
//! every process that resumes.

/// Mask in place of user and password.
const HIDDEN: &str = "***";
/// Ends a scheme's name.
const SCHEME_END: &str = "://";

/// The one key whose address is sent a user and a password.
pub const ADDRESS_KEY: &str = "retriever.url";
/// Advice for an address that nothing is sent to.
pub const OTHER_HINT: &str = "recipes are written into the runs' folders, and nothing is fetched \
                              from an address: name a file or a folder";
/// Advice for an address that must not be written down.
pub const SECRET_HINT: &str = "recipes are written into the runs' folders; export \
                               RETRIEVER_URL=http://USER:PASSWORD@HOST/retrieve and give \
                               retriever.url = \"${RETRIEVER_URL}\", which is kept as it stands \
                               and read again at every start";

/// True if an address holds a user or a password that is not the value of a variable:
/// `http://${USER}:${PASSWORD}@host` does not.
///
/// `@` can stand for nothing else in front of a host, and one in a path can be written `%40`, so
/// any counts.
pub fn may_hold_user(address: &str) -> bool {
    let Some((before, _)) = address.rsplit_once('@') else { return false };
    let mut rest = before.split_once(SCHEME_END).map_or(before, |(_, user)| user);
    while let Some(end) = rest.strip_prefix("${").and_then(|variable| variable.find('}')) {
        rest = rest["${".len() + end + 1..].trim_start_matches(':');
    }
    !rest.is_empty()
}

/// An address, with or without its scheme, without user and password: `http://***@host/path`.
pub fn address_without_user(address: &str) -> String {
    let (scheme, rest) = address
        .find(SCHEME_END)
        .map_or(("", address), |at| address.split_at(at + SCHEME_END.len()));
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}{HIDDEN}@{host}"),
        None => address.to_owned(),
    }
}

/// A text in which every address is shown without user and password: `http://***@host/path`, and
/// `***@host/path` of one whose scheme was forgotten.
pub fn without_users(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME_END) {
        let (before, behind) = rest.split_at(at + SCHEME_END.len());
        let end = behind.find(is_end).unwrap_or(behind.len());
        shown.push_str(&without_bare_users(before));
        // A password may hold a `/` or an `@` that should have been written otherwise: the last one
        // counts.
        let user_end = behind[..end].rfind('@');
        if user_end.is_some() {
            shown.push_str(HIDDEN);
        }
        rest = &behind[user_end.unwrap_or(0)..];
    }
    shown + &without_bare_users(rest)
}

/// Characters that no address holds unescaped.
fn is_end(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')
}

/// `user:password@host` -> `***@host` in a text without schemes. A name alone in front of an `@` is
/// somebody's mail address, or a revision's.
fn without_bare_users(text: &str) -> String {
    let shown = |word: &str| match word.rsplit_once('@') {
        Some((user, host)) if user.contains(':') && !host.is_empty() => format!("{HIDDEN}@{host}"),
        _ => word.to_owned(),
    };
    let is_border = |c: char| is_end(c) || c == '=';
    text.split_inclusive(is_border)
        .map(|word| match word.char_indices().next_back() {
            Some((at, last)) if is_border(last) => shown(&word[..at]) + &word[at..],
            _ => shown(word),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_password_are_known_unless_they_are_variables() {
        for written in [
            "http://ann:s3cret@host/",
            "ann:s3cret@host",
            "http://ann:${PASSWORD}@host/",
            "http://${A}:x@host",
            "http://ann@host",
        ] {
            assert!(may_hold_user(written), "{written}");
        }
        for written in [
            "http://host:8000/retrieve",
            "${RETRIEVER_URL}",
            "http://${USER}:${PASSWORD}@host/",
            "http://${USER}@host/",
        ] {
            assert!(!may_hold_user(written), "{written}");
        }
    }

    #[test]
    fn users_and_passwords_are_hidden_wherever_an_address_stands() {
        for (text, expected) in [
            ("http://ann:s3cret@host:8000/retrieve", "http://***@host:8000/retrieve"),
            ("--set retriever.url=http://ann:s3cret@host", "--set retriever.url=http://***@host"),
            ("url = \"http://ann:s3/cr@et@host/x\" # at 5", "url = \"http://***@host/x\" # at 5"),
            ("http://a:b@c and https://d:e@f", "http://***@c and https://***@f"),
            ("--set retriever.url=ann:s3/cr@et@host:80/x", "--set retriever.url=***@host:80/x"),
            ("url = \"ann:s3cret@host\" # at 5", "url = \"***@host\" # at 5"),
            ("owner/name@v1 http://host/a: ann:x@b", "owner/name@v1 http://host/a: ***@b"),
            ("http://host/retrieve: ask ann@host", "http://host/retrieve: ask ann@host"),
            ("http://", "http://"),
        ] {
            assert_eq!(without_users(text), expected);
        }
    }
}
