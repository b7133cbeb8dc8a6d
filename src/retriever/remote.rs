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
use super::{Hit, Retriever, RetrieverError};
use crate::data::corpus::Passage;
use serde_json::{Value, json};
use std::time::Duration;
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
/// An answer is no larger: 512 queries with ten passages of 1 kB are 5 MB.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
/// How much of a wrong answer an error quotes.
const QUOTED_CHARS: usize = 120;

/// Why one attempt failed.
struct Failure {
    status: Option<u16>,
    why: String,
    hint: &'static str,
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

    /// The answer's `result` list, after as many attempts as it takes and is allowed.
    fn ask(&self, queries: &[String], top_k: usize) -> Result<Vec<Value>, RetrieverError> {
        let mut pause = self.first_pause;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failure = match self.ask_once(queries, top_k) {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            if !failure.may_pass || attempts > self.max_retries {
                return Err(self.error(failure.status, failure.why, attempts, failure.hint));
            }
            tracing::warn!("{}: {}; retry {attempts} of {} in {pause:?}", self.url, failure.why, self.max_retries);
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask_once(&self, queries: &[String], top_k: usize) -> Result<Vec<Value>, Failure> {
        let request = json!({ "queries": queries, "topk": top_k, "return_scores": true });
        let unreachable = |error: ureq::Error| Failure {
            status: None,
            why: error.to_string(),
            hint: "is the server running and the address right? retriever.timeout_s and retriever.max_retries say how long to wait",
            may_pass: !matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::RequireHttpsOnly(_)),
        };
        let mut response = self.agent.post(&self.url).send_json(&request).map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(unreachable)?;
        let text = String::from_utf8_lossy(&body);
        if !(200..300).contains(&status) {
            return Err(Failure {
                status: Some(status),
                why: format!("status {status}: {}", quote(&text)),
                hint: match status {
                    404 | 405 => "the address must be that of the /retrieve route",
                    429 | 500.. => "the server is overloaded or broken; see its log",
                    _ => "the server must accept {\"queries\", \"topk\", \"return_scores\"} by POST",
                },
                may_pass: status == 429 || status >= 500,
            });
        }
        result_list(&text, queries.len()).map_err(|why| Failure { status: Some(status), why, hint: SHAPE_HINT, may_pass: false })
    }

    fn error(&self, status: Option<u16>, why: String, attempts: usize, hint: &str) -> RetrieverError {
        RetrieverError::Remote { url: self.url.clone(), status, why, attempts, hint: hint.to_owned() }
    }
}

const SHAPE_HINT: &str = "the answer must be {\"result\": [[{\"document\": {\"id\", \"contents\"}, \"score\"}, ..], ..]}, one list a query";

fn quote(text: &str) -> String {
    let start: String = text.trim().chars().take(QUOTED_CHARS).collect();
    format!("\"{start}{}\"", if text.trim().chars().nth(QUOTED_CHARS).is_some() { "…" } else { "" })
}

/// The list under `result`, one entry a query.
fn result_list(text: &str, n_queries: usize) -> Result<Vec<Value>, String> {
    let answer: Value = serde_json::from_str(text).map_err(|error| format!("the answer is not JSON ({error}): {}", quote(text)))?;
    match answer {
        Value::Object(mut fields) => match fields.remove("result") {
            Some(Value::Array(result)) if result.len() == n_queries => Ok(result),
            Some(Value::Array(result)) => Err(format!("{} results for {n_queries} queries", result.len())),
            Some(_) => Err("`result` is not a list".to_owned()),
            None => Err(format!("the answer has no `result`: {}", quote(text))),
        },
        _ => Err(format!("the answer is not an object: {}", quote(text))),
    }
}

/// The passages of one query, at most `top_k`.
fn hits(result: &Value, top_k: usize) -> Result<Vec<Hit>, String> {
    let list = result.as_array().ok_or("the result of a query is not a list")?;
    if list.is_empty() {
        return Err("no passages for a query".to_owned());
    }
    list.iter().take(top_k).enumerate().map(|(rank, entry)| hit(entry).map_err(|why| format!("passage {rank}: {why}"))).collect()
}

fn hit(entry: &Value) -> Result<Hit, String> {
    let (document, score) = match entry.get("document") {
        // An episode never sees the score, so one that is missing or no number is no reason to lose the passage.
        Some(document) => (document, entry.get("score").and_then(Value::as_f64).unwrap_or(0.0) as f32),
        None => (entry, 0.0),
    };
    let contents = document.get("contents").and_then(Value::as_str).ok_or("`contents` is missing or not a text")?;
    if contents.trim().is_empty() {
        return Err("`contents` is empty".to_owned());
    }
    // Servers disagree whether an id is a number or a text.
    let id = match document.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => return Err("`id` is missing or neither text nor number".to_owned()),
    };
    Ok(Hit { passage: Passage { id, contents: contents.to_owned() }, score })
}

impl Retriever for RemoteRetriever {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, RetrieverError>> {
        if queries.is_empty() {
            return Vec::new();
        }
        match self.ask(queries, top_k) {
            Ok(results) => {
                let wrong = |why| self.error(Some(200), why, 1, SHAPE_HINT);
                results.iter().map(|result| hits(result, top_k).map_err(wrong)).collect()
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
