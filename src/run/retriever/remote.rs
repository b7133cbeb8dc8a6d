//! A client of somebody's retrieval server (method §6).
//!
//! ```text
//! POST URL {"queries": [..], "topk": k, "return_scores": true}
//! -> {"result": [[{"document": {"id", "contents"}, "score"}, ..], ..]}      one list a query
//! or {"result": [[{"id", "contents"}, ..], ..]}                            servers that give no scores, in either form
//! ```
//! A server that is away or busy (connection errors, time-outs, 429, 5xx) is asked again,
//! `max_retries` times, with doubling pauses. An answer of the wrong shape is not asked for again:
//! it is an error with the place that is wrong. An empty list of passages says that nothing was
//! found. A batch that stays refused is asked for in parts ([`super::batches`]). Only `http://` is
//! compiled in.
use super::{
    RetrieverError,
    address::Address,
    answer::{self, quote},
    batches::{Refusal, in_batches},
};
use crate::config::RetrieverRecipe;
use dgpo_core::env::search::{Hit, Retriever, SearchError};
use serde_json::json;
use std::{borrow::Cow, io::Read, time::Duration};
use ureq::Agent;

/// A `/retrieve` server.
pub struct RemoteRetriever {
    address: Address,
    agent: Agent,
    max_retries: usize,
    /// Before the first retry; it doubles with each.
    first_pause: Duration,
    batch_queries: usize,
}

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Bytes that are read of an answer that reports a failure.
const MAX_FAILURE_BYTES: u64 = 64 << 10;
/// Characters that a message shows of an address a server redirects to.
const SHOWN_ADDRESS_CHARS: usize = 200;

/// The passages of each query, or what is wrong with them.
type Answer = Vec<Result<Vec<Hit>, String>>;

/// The failure of an attempt, and how many there were.
#[derive(Clone)]
struct Failure {
    status: Option<u16>,
    why: String,
    hint: Cow<'static, str>,
    /// Asking again may help.
    may_pass: bool,
    /// Asking for less may help.
    is_about_the_request: bool,
    attempts: usize,
}

impl Failure {
    /// One that neither passes nor depends on the queries.
    fn lasting(status: u16, why: String, hint: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: Some(status),
            why,
            hint: hint.into(),
            may_pass: false,
            is_about_the_request: false,
            attempts: 1,
        }
    }

    /// An answer that is not what it should be.
    fn wrong_answer(status: u16, why: String, hint: &'static str) -> Self {
        Self { is_about_the_request: true, ..Self::lasting(status, why, hint) }
    }
}

impl Refusal for Failure {
    fn is_about_the_request(&self) -> bool {
        self.is_about_the_request
    }
}

impl RemoteRetriever {
    /// # Errors
    /// If the address is not `http://…`, names a variable that is not set, or the time-out is not a
    /// positive number of seconds.
    pub fn new(recipe: &RetrieverRecipe) -> Result<Self, RetrieverError> {
        let seconds = |key, value: f64, is_legal: fn(&Duration) -> bool, hint| {
            let duration = Duration::try_from_secs_f64(value).ok().filter(is_legal);
            duration.ok_or_else(|| RetrieverError::option(key, value, hint))
        };
        let address = Address::of(&recipe.url)?;
        let timeout = seconds(
            "retriever.timeout_s",
            recipe.timeout_s,
            |d| !d.is_zero(),
            "a positive number of seconds; 30 is usual",
        )?;
        let first_pause = seconds(
            "retriever.first_pause_s",
            recipe.first_pause_s,
            |_| true,
            "a number of seconds; 0.5 is usual",
        )?;
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            // Proxy variables of the environment must not decide what an episode reads.
            .proxy(None)
            .build();
        let (max_retries, batch_queries) = (recipe.max_retries, recipe.batch_queries);
        Ok(Self { address, agent: config.into(), max_retries, first_pause, batch_queries })
    }

    /// The answer, after as many attempts as it takes and is allowed. A part of a batch has had the
    /// batch's: it is asked again only where the server is away.
    fn ask(&self, queries: &[String], top_k: usize, is_whole: bool) -> Result<Answer, Failure> {
        let mut pause = self.first_pause;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failure = match self.ask_once(queries, top_k) {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    Failure { attempts, why: self.address.masked(&failure.why), ..failure }
                }
            };
            let is_worth_it = failure.may_pass && (is_whole || !failure.is_about_the_request);
            if !is_worth_it || attempts > self.max_retries {
                return Err(failure);
            }
            tracing::warn!(
                "{}: {}; retry {attempts} of {} in {pause:?}",
                self.address.shown,
                failure.why,
                self.max_retries
            );
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask_once(&self, queries: &[String], top_k: usize) -> Result<Answer, Failure> {
        let request = json!({ "queries": queries, "topk": top_k, "return_scores": true });
        let unreachable = |error: ureq::Error| {
            Failure {
                status: None,
                // What follows a `?` in the address is for the server alone.
                why: error.to_string().replace(&self.address.url, &self.address.shown),
                hint: "is the server running and the address right? retriever.timeout_s and \
                       retriever.max_retries say how long to wait"
                    .into(),
                may_pass: !matches!(
                    error,
                    ureq::Error::BadUri(_)
                        | ureq::Error::Http(_)
                        | ureq::Error::RequireHttpsOnly(_)
                ),
                is_about_the_request: false,
                attempts: 1,
            }
        };
        let mut post = self.agent.post(&self.address.url);
        if let Some(authorization) = &self.address.authorization {
            post = post.header("authorization", authorization);
        }
        let mut response = post.send_json(&request).map_err(unreachable)?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (location, encoding) = (header("location"), header("content-encoding"));
        if (300..400).contains(&status) {
            return Err(redirected(&self.address.url, status, location.as_deref()));
        }
        if !(200..300).contains(&status) {
            let mut body = Vec::new();
            // What cannot be read of a failure's explanation is not explained.
            let _ = response.body_mut().as_reader().take(MAX_FAILURE_BYTES).read_to_end(&mut body);
            return Err(refused(status, &String::from_utf8_lossy(&body)));
        }
        if let Some(encoding) =
            encoding.filter(|encoding| !encoding.trim().eq_ignore_ascii_case("identity"))
        {
            let why =
                format!("the answer is compressed ({}), which was not asked for", quote(&encoding));
            return Err(Failure::lasting(
                status,
                why,
                "the server must honour a request without Accept-Encoding",
            ));
        }
        let limit = answer::max_bytes(queries.len(), top_k);
        let too_large = || {
            let why = format!(
                "the answer is larger than {limit} bytes for {} queries with {top_k} passages each",
                queries.len()
            );
            let hint = "the server must return passages, not whole documents, and no more of them \
                        than topk asks for";
            Failure::wrong_answer(status, why, hint)
        };
        if response.body().content_length().is_some_and(|n| n > limit) {
            return Err(too_large());
        }
        let body =
            response.body_mut().with_config().limit(limit).read_to_vec().map_err(|error| {
                match error {
                    ureq::Error::BodyExceedsLimit(_) => too_large(),
                    other => unreachable(other),
                }
            })?;
        answer::read(&String::from_utf8_lossy(&body), queries.len(), top_k)
            .map_err(|why| Failure::wrong_answer(status, why, SHAPE_HINT))
    }

    fn error(&self, failure: Failure) -> RetrieverError {
        let Failure { status, why, hint, attempts, .. } = failure;
        RetrieverError::Remote {
            url: self.address.shown.clone(),
            status,
            why,
            attempts,
            hint: hint.into_owned(),
        }
    }
}

const SHAPE_HINT: &str = "the answer must be \
                          {\"result\": [[{\"document\": {\"id\", \"contents\"}, \"score\"}, ..], ..]}, \
                          one list a query";

/// The failure that a status reports.
fn refused(status: u16, body: &str) -> Failure {
    let hint = match status {
        401 | 403 => "the server wants another user or password in retriever.url",
        404 | 405 => "the address must be that of the /retrieve route",
        429 | 500.. => "the server is overloaded or broken; see its log",
        _ => "the server must accept {\"queries\", \"topk\", \"return_scores\"} by POST",
    };
    Failure {
        may_pass: status == 429 || status >= 500,
        // Gateways say the others of a server that is away or busy.
        is_about_the_request: matches!(status, 400 | 413 | 414 | 422 | 431)
            || (status >= 500 && !matches!(status, 502..=504)),
        ..Failure::lasting(status, format!("status {status}: {}", quote(body)), hint)
    }
}

/// A redirect is an address to be corrected: following it would turn the POST into a GET or ask a
/// server nobody named.
fn redirected(url: &str, status: u16, location: Option<&str>) -> Failure {
    let Some(target) = location.map(|location| absolute(url, location)) else {
        let why = format!("status {status}, a redirect that does not say where to");
        return Failure::lasting(
            status,
            why,
            "the address must be that of the /retrieve route itself",
        );
    };
    let hint = match target.starts_with("http://") {
        true => format!(
            "set retriever.url = \"{target}\" if that is the server you mean; redirects are not \
             followed"
        ),
        false => "redirects are not followed, and only http:// is spoken; use a local proxy or \
                  tunnel that ends TLS"
            .to_owned(),
    };
    Failure::lasting(status, format!("status {status}, a redirect to {target}"), hint)
}

/// The address a `Location` means, without user, password and what follows a `?`: they may be
/// secrets.
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

impl RemoteRetriever {
    /// As [`Retriever::search`], with the whole error.
    fn results(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, RetrieverError>> {
        let answers = in_batches(queries, self.batch_queries, |queries, is_whole| {
            self.ask(queries, top_k, is_whole)
        });
        let hits = |answer: Result<Result<Vec<Hit>, String>, Failure>| {
            answer?.map_err(|why| Failure::wrong_answer(200, why, SHAPE_HINT))
        };
        answers
            .into_iter()
            .map(|answer| hits(answer).map_err(|failure| self.error(failure)))
            .collect()
    }
}

impl Retriever for RemoteRetriever {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        let results = self.results(queries, top_k).into_iter();
        results.map(|result| result.map_err(SearchError::from)).collect()
    }

    fn describe(&self) -> String {
        format!("remote: {}", self.address.shown)
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
