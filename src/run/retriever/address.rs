//! The address of a retrieval server: what is sent to it, and what of it may be seen.
//!
//! `http://user:password@host:8000/retrieve` sends user and password as `Authorization: Basic ...`
//! (RFC 7617). They stand in no message and no file, and neither does what follows a `?`; the
//! recipe names an environment variable instead ([`crate::config::secrets`]).
use super::RetrieverError;
use crate::{
    config::secrets::{ADDRESS_KEY, SECRET_HINT, address_without_user, may_hold_user},
    hub,
};

/// A server's address, ready to be used.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Without user and password.
    pub url: String,
    /// The value of an `Authorization` header.
    pub authorization: Option<String>,
    /// For people: without user, password and query string.
    pub shown: String,
    /// Forms of user and password that a server may quote, longest first.
    secrets: Vec<String>,
}

impl Address {
    /// Reads `retriever.url`; `${NAME}` in it is replaced by that environment variable.
    /// # Errors
    /// If the variable is not set, the address is not `http://...`, or a user or password is
    /// written out.
    pub fn of(written: &str) -> Result<Self, RetrieverError> {
        if may_hold_user(written) {
            return Err(RetrieverError::option(
                ADDRESS_KEY,
                "an address with a user or a password",
                SECRET_HINT,
            ));
        }
        Self::parse(&hub::expand(written)?)
    }

    fn parse(address: &str) -> Result<Self, RetrieverError> {
        let wrong = |hint| {
            Err(RetrieverError::option(
                ADDRESS_KEY,
                format!("\"{}\"", address_without_user(address)),
                hint,
            ))
        };
        if address.starts_with("https://") {
            return wrong(
                "this program has no TLS; use http://, or a local proxy or tunnel that ends TLS",
            );
        }
        let Some(behind) = address.strip_prefix("http://") else {
            return wrong("the address of a /retrieve server, e.g. http://127.0.0.1:8000/retrieve");
        };
        let host_end = behind.find(['/', '?', '#']).unwrap_or(behind.len());
        let (user, host) = match behind[..host_end].rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, &behind[..host_end]),
        };
        let rest = &behind[host_end..];
        let path_end = rest.find(['?', '#']).unwrap_or(rest.len());
        if rest[..path_end].contains('@') || (host.is_empty() && user.is_some()) {
            return wrong(
                "write a `/` or an `@` of a password as %2F or %40, and name the host after it",
            );
        }
        if host.is_empty() {
            return wrong("name the server's host, e.g. http://127.0.0.1:8000/retrieve");
        }
        let mut secrets = Vec::new();
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let credentials = [&decoded(name)[..], b":", &decoded(password)].concat();
            let encoded = base64(&credentials);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            secrets.extend([
                user.to_owned(),
                text(&credentials),
                encoded.clone(),
                password.to_owned(),
                text(&decoded(password)),
            ]);
            format!("Basic {encoded}")
        });
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Ok(Self {
            url: format!("http://{host}{rest}"),
            authorization,
            shown: format!("http://{host}{}", &rest[..path_end]),
            secrets,
        })
    }

    /// Words of a server, without the user and password that it may quote.
    pub fn masked(&self, said: &str) -> String {
        self.secrets.iter().fold(said.to_owned(), |said, secret| said.replace(secret, "***"))
    }
}

/// `%41` -> `A`; what is no such triple stays.
fn decoded(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|&byte| char::from(byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*group.get(i).unwrap_or(&0)));
        let digit = move |i: usize| {
            if i > group.len() {
                '='
            } else {
                char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63])
            }
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_sent_and_never_shown() {
        // RFC 7617, section 2.
        let address = Address::parse("http://Aladdin:open%20sesame@host:8000/retrieve?key=k")
            .expect("an address");
        assert_eq!(address.authorization.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!(address.url, "http://host:8000/retrieve?key=k");
        assert_eq!(address.shown, "http://host:8000/retrieve");
        assert_eq!(Address::parse("http://host/a").expect("an address").authorization, None);
    }

    #[test]
    fn what_a_server_quotes_of_user_and_password_is_not_repeated() {
        let address = Address::parse("http://ann:open%20sesame@host/").expect("an address");
        for said in [
            "no user ann:open sesame",
            "ann:open%20sesame is wrong",
            "open sesame?",
            "Basic YW5uOm9wZW4gc2VzYW1l",
        ] {
            let masked = address.masked(said);
            assert!(
                masked.contains("***") && !masked.contains("sesame") && !masked.contains("YW5u"),
                "{masked}"
            );
        }
        assert_eq!(
            Address::parse("http://host/").expect("an address").masked("as it was"),
            "as it was"
        );
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn an_address_with_its_password_written_out_is_refused_without_showing_it() {
        for written in [
            "http://ann:s3cret@host/retrieve",
            "ann:s3cret@host/retrieve",
            "https://ann:s3cret@host/",
        ] {
            let message = Address::of(written).err().expect("refused").to_string();
            assert!(
                message.contains("${RETRIEVER_URL}")
                    && message.contains("hint: ")
                    && !message.contains("s3cret"),
                "{message}"
            );
        }
        for expanded in
            ["https://ann:s3cret@host/", "http://ann:s3/cret@host/", "ftp://ann:s3cret@host"]
        {
            let message = Address::parse(expanded).err().expect("refused").to_string();
            assert!(message.contains("retriever.url") && !message.contains("s3"), "{message}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let message =
            Address::of("${DGPO_TEST_NO_SUCH_VARIABLE}").err().expect("unset").to_string();
        assert!(message.contains("DGPO_TEST_NO_SUCH_VARIABLE"), "{message}");
    }
}
