//! A client of somebody's retrieval server (method §6).
//!
//! ```text
//! POST URL {"queries": [..], "topk": k, "return_scores": true}
//! -> {"result": [[{"document": {"id", "contents"}, "score"}, ..], ..]}      one list a query
//! or {"result": [[{"id", "contents"}, ..], ..]}                            servers that give no scores, in either form
//! ```
//! A server that is away or busy (connection errors, time-outs, 429, 5xx) is asked again, `max_retries` times, with doubling pauses. An
//! answer of the wrong shape is not asked for again: it is an error with the place that is wrong. An empty list of passages is such an
//! error, because an agent trained on empty observations learns not to search.
//! Only `http://` is compiled in.
use super::{
    Hit, Retriever, RetrieverError,
    answer::{self, quote},
};
use serde_json::json;
use std::{borrow::Cow, io::Read, time::Duration};
use ureq::Agent;

/// A `/retrieve` server.
pub struct RemoteRetriever {
    url: String,
    agent: Agent,
    max_retries: usize,
    first_pause: Duration,
}

/// The pause before the first retry; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What is read of an answer that reports a failure.
const MAX_FAILURE_BYTES: u64 = 64 << 10;
/// What a message shows of an address a server redirects to.
const SHOWN_ADDRESS_CHARS: usize = 200;

/// The passages of each query, or what is wrong with them.
type Answer = Vec<Result<Vec<Hit>, String>>;

/// Why one attempt failed.
struct Failure {
    status: Option<u16>,
    why: String,
    hint: Cow<'static, str>,
    may_pass: bool,
}

impl RemoteRetriever {
    /// # Errors
    /// If the address is not `http://…` or the time-out is not a positive number of seconds.
    pub fn new(url: &str, timeout_s: f64, max_retries: usize) -> Result<Self, RetrieverError> {
        Self::with_pause(url, timeout_s, max_retries, FIRST_PAUSE)
    }

    /// As [`RemoteRetriever::new`] with another first pause.
    /// # Errors
    /// As [`RemoteRetriever::new`].
    pub fn with_pause(url: &str, timeout_s: f64, max_retries: usize, first_pause: Duration) -> Result<Self, RetrieverError> {
        let wrong_url = |hint| Err(RetrieverError::option("retriever.url", format!("\"{url}\""), hint));
        if url.starts_with("https://") {
            return wrong_url("this program has no TLS; use http://, or a local proxy or tunnel that ends TLS");
        }
        if !url.starts_with("http://") {
            return wrong_url("the address of a /retrieve server, e.g. http://127.0.0.1:8000/retrieve");
        }
        let timeout = match Duration::try_from_secs_f64(timeout_s) {
            Ok(timeout) if !timeout.is_zero() => timeout,
            _ => return Err(RetrieverError::option("retriever.timeout_s", timeout_s, "a positive number of seconds; 30 is usual")),
        };
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            // Proxy variables of the environment must not decide what an episode reads.
            .proxy(None)
            .build();
        Ok(Self { url: url.to_owned(), agent: config.into(), max_retries, first_pause })
    }

    /// The answer, after as many attempts as it takes and is allowed.
    fn ask(&self, queries: &[String], top_k: usize) -> Result<Answer, RetrieverError> {
        let mut pause = self.first_pause;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failure = match self.ask_once(queries, top_k) {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            if !failure.may_pass || attempts > self.max_retries {
                return Err(self.error(failure.status, failure.why, attempts, &failure.hint));
            }
            tracing::warn!("{}: {}; retry {attempts} of {} in {pause:?}", self.url, failure.why, self.max_retries);
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask_once(&self, queries: &[String], top_k: usize) -> Result<Answer, Failure> {
        let request = json!({ "queries": queries, "topk": top_k, "return_scores": true });
        let unreachable = |error: ureq::Error| Failure {
            status: None,
            why: error.to_string(),
            hint: "is the server running and the address right? retriever.timeout_s and retriever.max_retries say how long to wait".into(),
            may_pass: !matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::RequireHttpsOnly(_)),
        };
        let mut response = self.agent.post(&self.url).send_json(&request).map_err(unreachable)?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (location, encoding) = (header("location"), header("content-encoding"));
        if (300..400).contains(&status) {
            return Err(redirected(&self.url, status, location.as_deref()));
        }
        if !(200..300).contains(&status) {
            let mut body = Vec::new();
            // What cannot be read of a failure's explanation is not explained.
            let _ = response.body_mut().as_reader().take(MAX_FAILURE_BYTES).read_to_end(&mut body);
            let hint = match status {
                404 | 405 => "the address must be that of the /retrieve route",
                429 | 500.. => "the server is overloaded or broken; see its log",
                _ => "the server must accept {\"queries\", \"topk\", \"return_scores\"} by POST",
            };
            return Err(Failure {
                status: Some(status),
                why: format!("status {status}: {}", quote(&String::from_utf8_lossy(&body))),
                hint: hint.into(),
                may_pass: status == 429 || status >= 500,
            });
        }
        let wrong = |why, hint: &'static str| Failure { status: Some(status), why, hint: hint.into(), may_pass: false };
        if let Some(encoding) = encoding.filter(|encoding| !encoding.trim().eq_ignore_ascii_case("identity")) {
            let why = format!("the answer is compressed ({}), which was not asked for", quote(&encoding));
            return Err(wrong(why, "the server must honour a request without Accept-Encoding"));
        }
        let limit = answer::max_bytes(queries.len(), top_k);
        let too_large = || {
            let why = format!("the answer is larger than {limit} bytes for {} queries with {top_k} passages each", queries.len());
            wrong(why, "the server must return passages, not whole documents, and no more of them than topk asks for")
        };
        if response.body().content_length().is_some_and(|n| n > limit) {
            return Err(too_large());
        }
        let body = response.body_mut().with_config().limit(limit).read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => too_large(),
            other => unreachable(other),
        })?;
        answer::read(&String::from_utf8_lossy(&body), queries.len(), top_k).map_err(|why| wrong(why, SHAPE_HINT))
    }

    fn error(&self, status: Option<u16>, why: String, attempts: usize, hint: &str) -> RetrieverError {
        RetrieverError::Remote { url: self.url.clone(), status, why, attempts, hint: hint.to_owned() }
    }
}

const SHAPE_HINT: &str = "the answer must be {\"result\": [[{\"document\": {\"id\", \"contents\"}, \"score\"}, ..], ..]}, one list a query";

/// A redirect is an address to be corrected: following it would turn the POST into a GET or ask a server nobody named.
fn redirected(url: &str, status: u16, location: Option<&str>) -> Failure {
    let failure = |why, hint| Failure { status: Some(status), why, hint, may_pass: false };
    let Some(target) = location.map(|location| absolute(url, location)) else {
        return failure(
            format!("status {status}, a redirect that does not say where to"),
            "the address must be that of the /retrieve route itself".into(),
        );
    };
    let hint = match target.starts_with("http://") {
        true => format!("set retriever.url = \"{target}\" if that is the server you mean; redirects are not followed"),
        false => "redirects are not followed, and only http:// is spoken; use a local proxy or tunnel that ends TLS".to_owned(),
    };
    failure(format!("status {status}, a redirect to {target}"), hint.into())
}

/// The address a `Location` means, without user, password and what follows a `?`: they may be secrets.
fn absolute(url: &str, location: &str) -> String {
    let location = location.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let target = match location.split_once("://") {
        Some(_) => location.to_owned(),
        None if location.starts_with("//") => format!("{scheme}:{location}"),
        None if location.starts_with('/') => format!("{scheme}://{host}{location}"),
        None => format!("{scheme}://{host}/{location}"),
    };
    let without_user = match target.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => target,
    };
    without_user.chars().take(SHOWN_ADDRESS_CHARS).collect()
}

impl Retriever for RemoteRetriever {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, RetrieverError>> {
        if queries.is_empty() {
            return Vec::new();
        }
        match self.ask(queries, top_k) {
            Ok(results) => {
                let wrong = |why| self.error(Some(200), why, 1, SHAPE_HINT);
                results.into_iter().map(|result| result.map_err(wrong)).collect()
            }
            Err(error) => vec![Err(error); queries.len()],
        }
    }

    fn describe(&self) -> String {
        format!("remote: {}", self.url)
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
