use super::*;
use dgpo_core::env::search::Passage;
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    thread,
};

/// The server's part in one connection.
enum Reply {
    /// Status line, further header lines if there are any, and body.
    Answer(&'static str, String),
    /// Reads the request and keeps the connection open without a word until the client leaves.
    Silence,
}

/// Serves one connection a reply, then goes away. Returns the address and the request bodies.
fn serve(replies: Vec<Reply>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/retrieve", listener.local_addr().expect("bound"));
    let (sender, bodies) = channel();
    thread::spawn(move || {
        for reply in replies {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = sender.send(read_body(&mut stream));
            match reply {
                Reply::Answer(status, body) => {
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream
                        .write_all(head.as_bytes())
                        .and_then(|()| stream.write_all(body.as_bytes()));
                }
                Reply::Silence => {
                    let _ = stream.read(&mut [0]);
                }
            }
        }
    });
    (url, bodies)
}

/// The body of a request, whose length the head says or whose chunks end with an empty one.
fn read_body(stream: &mut TcpStream) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| {
                line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok()
            });
            match length {
                Some(length) if body.len() >= length => return body.to_owned(),
                None if body.ends_with("0\r\n\r\n") => return body.to_owned(),
                _ => {}
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return text,
        }
    }
}

fn recipe(url: &str, timeout_s: f64, max_retries: usize) -> RetrieverRecipe {
    RetrieverRecipe {
        url: url.to_owned(),
        timeout_s,
        max_retries,
        first_pause_s: 0.001,
        ..RetrieverRecipe::default()
    }
}

fn client(url: &str, timeout_s: f64, max_retries: usize) -> RemoteRetriever {
    RemoteRetriever::new(&recipe(url, timeout_s, max_retries)).expect("a good address")
}

fn queries(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn ok(body: &str) -> Reply {
    Reply::Answer("200 OK", body.to_owned())
}

/// The error of one query against one answer.
fn error_of(body: &str) -> String {
    let (url, _bodies) = serve(vec![ok(body)]);
    let message =
        client(&url, 5.0, 3).results(&queries(&["q"]), 2).remove(0).expect_err(body).to_string();
    assert!(
        message.starts_with(&url) && message.contains("hint: ") && message.contains("attempts: 1"),
        "{message}"
    );
    message
}

#[test]
fn passages_with_scores_are_read_and_the_request_is_the_protocols() {
    let body = r#"{"result": [[{"document": {"id": "7", "contents": "\"A\"\nb"}, "score": 0.5}, {"document": {"id": 8, "contents": "c"}, "score": 0.25}],
        [{"document": {"id": "9", "contents": "d"}, "score": 1}, {"document": {"id": "1", "contents": "e"}, "score": 0.5}]]}"#;
    let (url, bodies) = serve(vec![ok(body)]);
    let found = client(&url, 5.0, 0).results(&queries(&["first \"q\"", "second"]), 2);
    let request: Value = serde_json::from_str(&bodies.recv().expect("asked")).expect("JSON");
    assert_eq!(
        request,
        json!({"queries": ["first \"q\"", "second"], "topk": 2, "return_scores": true})
    );
    let first = found[0].as_ref().expect("found");
    assert_eq!((first[0].passage.contents.as_str(), first[0].score), ("\"A\"\nb", 0.5));
    assert_eq!(first[1].passage.id, "8");
    assert_eq!(found[1].as_ref().expect("found").len(), 2);
}

#[test]
fn passages_without_scores_are_read() {
    for body in [
        r#"{"result": [[{"id": "7", "contents": "x", "extra": 1}]]}"#,
        r#"{"result": [[{"document": {"id": "7", "contents": "x"}}]]}"#,
        r#"{"result": [[{"document": {"id": "7", "contents": "x"}, "score": null}]]}"#,
        r#"{"result": [[{"document": {"id": "7", "contents": "x"}, "score": "high"}]]}"#,
    ] {
        let (url, _bodies) = serve(vec![ok(body)]);
        let hits = client(&url, 5.0, 0).results(&queries(&["q"]), 3).remove(0).expect("found");
        assert_eq!(
            hits,
            [Hit { passage: Passage { id: "7".to_owned(), contents: "x".to_owned() }, score: 0.0 }],
            "{body}"
        );
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    let good = r#"{"result": [[{"id": "7", "contents": "x"}]]}"#;
    let busy = |status| Reply::Answer(status, "later".to_owned());
    let (url, bodies) =
        serve(vec![busy("500 Internal Server Error"), busy("429 Too Many Requests"), ok(good)]);
    assert!(client(&url, 5.0, 2).results(&queries(&["q"]), 1)[0].is_ok());
    assert_eq!(bodies.iter().count(), 3);
}

#[test]
fn retries_are_bounded_and_the_last_failure_is_told() {
    let busy = || Reply::Answer("503 Service Unavailable", "down for tea".to_owned());
    let (url, _bodies) = serve(vec![busy(), busy()]);
    let found = client(&url, 5.0, 1).results(&queries(&["a", "b"]), 1);
    assert_eq!(found.len(), 2);
    for result in found {
        let error = result.expect_err("down");
        assert!(
            matches!(error, RetrieverError::Remote { status: Some(503), attempts: 2, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("down for tea"), "{error}");
    }
}

#[test]
fn a_wrong_request_is_not_repeated() {
    let (url, _bodies) =
        serve(vec![Reply::Answer("404 Not Found", "<html>no such page</html>".to_owned())]);
    let error = client(&url, 5.0, 5).results(&queries(&["q"]), 1).remove(0).expect_err("404");
    assert!(
        matches!(error, RetrieverError::Remote { status: Some(404), attempts: 1, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("/retrieve route"), "{error}");
}

#[test]
fn answers_of_the_wrong_shape_say_what_is_wrong() {
    for (body, expected) in [
        ("<html><body>Welcome</body></html>", "not JSON"),
        ("[]", "not an object"),
        (r#"{"results": []}"#, "no `result`"),
        (r#"{"result": {}}"#, "`result` is not a list"),
        (r#"{"result": []}"#, "0 results for 1 queries"),
        (r#"{"result": ["x"]}"#, "not a list"),
        (
            r#"{"result": [[{"document": {"id": "1"}, "score": 1}]]}"#,
            "passage 0: `contents` is missing",
        ),
        (
            r#"{"result": [[{"document": {"id": "1", "contents": " "}, "score": 1}]]}"#,
            "`contents` is empty",
        ),
        (r#"{"result": [[{"contents": "x"}]]}"#, "`id` is missing"),
    ] {
        let message = error_of(body);
        assert!(message.contains(expected), "{body}: {message}");
    }
}

#[test]
fn one_bad_result_fails_its_query_alone() {
    let (url, _bodies) =
        serve(vec![ok(r#"{"result": [[{"id": "7", "contents": "x"}], [{"id": "8"}]]}"#)]);
    let found = client(&url, 5.0, 0).results(&queries(&["a", "b"]), 1);
    assert!(found[0].is_ok() && found[1].is_err());
}

#[test]
fn an_empty_list_says_that_nothing_was_found() {
    let (url, _bodies) = serve(vec![ok(r#"{"result": [[], [{"id": "7", "contents": "x"}]]}"#)]);
    let found = client(&url, 5.0, 0).results(&queries(&["a", "b"]), 1);
    assert!(
        found[0].as_ref().expect("an answer").is_empty()
            && found[1].as_ref().expect("an answer").len() == 1
    );
}

#[test]
fn more_passages_than_asked_for_are_cut() {
    let (url, _bodies) = serve(vec![ok(
        r#"{"result": [[{"id": "7", "contents": "x"}, {"id": "8", "contents": "y"}]]}"#,
    )]);
    assert_eq!(
        client(&url, 5.0, 0).results(&queries(&["a"]), 1)[0].as_ref().expect("found").len(),
        1
    );
}

#[test]
fn a_silent_server_runs_into_the_timeout() {
    let (url, _bodies) = serve(vec![Reply::Silence, Reply::Silence]);
    let error = client(&url, 0.1, 1).results(&queries(&["q"]), 1).remove(0).expect_err("silence");
    assert!(matches!(error, RetrieverError::Remote { status: None, attempts: 2, .. }), "{error}");
    assert!(error.to_string().contains("timeout"), "{error}");
}

#[test]
fn a_refused_connection_is_retried_and_then_told() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let url = format!("http://127.0.0.1:{port}/retrieve");
    let error =
        client(&url, 5.0, 2).results(&queries(&["q"]), 1).remove(0).expect_err("nobody there");
    assert!(matches!(error, RetrieverError::Remote { status: None, attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("is the server running"), "{error}");
}

#[test]
fn addresses_and_timeouts_are_checked_before_anything_is_sent() {
    for (url, timeout_s, expected) in [
        ("https://example.org/retrieve", 5.0, "no TLS"),
        ("127.0.0.1:8000/retrieve", 5.0, "http://127.0.0.1:8000/retrieve"),
        ("", 5.0, "retriever.url"),
        ("http://127.0.0.1:8000/retrieve", 0.0, "timeout_s"),
        ("http://127.0.0.1:8000/retrieve", f64::NAN, "timeout_s"),
    ] {
        let message =
            RemoteRetriever::new(&recipe(url, timeout_s, 0)).err().expect(url).to_string();
        assert!(message.contains(expected) && message.contains("hint: "), "{message}");
    }
}

/// A server that answers `status` to a request with an odd query, and a passage a query to all
/// others, until its tests end.
fn serve_but_for(status: &'static str, is_odd: fn(&str) -> bool) -> (String, Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/retrieve", listener.local_addr().expect("bound"));
    let (sender, sizes) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let request: Value = serde_json::from_str(&read_body(&mut stream)).expect("JSON");
            let asked: Vec<&str> = request["queries"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let _ = sender.send(asked.len());
            let passages: Vec<Value> =
                asked.iter().map(|query| json!([{"id": "7", "contents": query}])).collect();
            let (status, body) = match asked.iter().any(|query| is_odd(query)) {
                true => (status, "no such query".to_owned()),
                false => ("200 OK", json!({ "result": passages }).to_string()),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (url, sizes)
}

#[test]
fn a_query_that_the_server_refuses_is_lost_alone_and_every_other_gets_its_own_passages() {
    for status in ["500 Broken", "400 Bad Request", "422 Unprocessable Content"] {
        let (url, sizes) = serve_but_for(status, |query| query == "5");
        let asked: Vec<String> = (0..8).map(|i| i.to_string()).collect();
        let found = client(&url, 5.0, 1).results(&asked, 1);
        for (query, found) in asked.iter().zip(found) {
            match found {
                Ok(hits) => {
                    assert!(query != "5" && &hits[0].passage.contents == query, "{query}: {hits:?}")
                }
                Err(error) => assert!(
                    query == "5" && error.to_string().contains("no such query"),
                    "{query}: {error}"
                ),
            }
        }
        // A batch is asked again where the status may pass; its parts are not.
        let whole = if status.starts_with('5') { vec![8, 8] } else { vec![8] };
        assert_eq!(sizes.try_iter().collect::<Vec<_>>(), [whole, vec![4, 4, 2, 2, 1, 1]].concat());
    }
}

#[test]
fn a_server_that_is_busy_or_has_no_such_route_is_not_asked_for_parts() {
    for status in
        ["503 Service Unavailable", "429 Too Many Requests", "404 Not Found", "401 Unauthorized"]
    {
        let (url, sizes) = serve_but_for(status, |_| true);
        let found = client(&url, 5.0, 0).results(&queries(&["a", "b", "c", "d"]), 1);
        assert!(found.iter().all(Result::is_err));
        assert_eq!(sizes.try_iter().collect::<Vec<_>>(), [4], "{status}");
    }
}

#[test]
fn a_request_holds_no_more_queries_than_the_recipe_allows() {
    let (url, sizes) = serve_but_for("500 Broken", |_| false);
    let recipe = RetrieverRecipe { batch_queries: 3, ..recipe(&url, 5.0, 0) };
    let asked: Vec<String> = (0..7).map(|i| i.to_string()).collect();
    let found = RemoteRetriever::new(&recipe).expect("a good address").results(&asked, 1);
    let contents: Vec<_> =
        found.into_iter().map(|hits| hits.expect("served")[0].passage.contents.clone()).collect();
    assert_eq!((contents, sizes.try_iter().collect::<Vec<_>>()), (asked, vec![3, 3, 1]));
}

#[test]
fn a_redirect_says_where_to_and_is_not_repeated() {
    for (location, expected) in [
        (
            "Location: http://127.0.0.1:9/retrieve",
            "retriever.url = \"http://127.0.0.1:9/retrieve\"",
        ),
        (
            "Location: http://me:pass@10.0.0.1/r/?token=pass",
            "retriever.url = \"http://10.0.0.1/r/\"",
        ),
        ("Location: https://example.org/retrieve", "a redirect to https://example.org/retrieve"),
        ("X: y", "does not say where to"),
    ] {
        let status = format!("307 Temporary Redirect\r\n{location}").leak();
        let (url, _bodies) = serve(vec![Reply::Answer(status, String::new())]);
        let error = client(&url, 5.0, 3).results(&queries(&["q"]), 1).remove(0).expect_err("307");
        assert!(
            matches!(error, RetrieverError::Remote { status: Some(307), attempts: 1, .. }),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains(expected)
                && message.contains("status 307")
                && !message.contains("pass@"),
            "{message}"
        );
        assert!(!message.contains("token"), "{message}");
    }
    assert_eq!(absolute("http://a:1/retrieve/", "/retrieve"), "http://a:1/retrieve");
}

#[test]
fn an_answer_larger_than_what_was_asked_for_is_refused_without_being_asked_for_again() {
    let body = format!(r#"{{"result": [[{{"id": "7", "contents": "{}"}}]]}}"#, "x".repeat(2 << 20));
    let (url, _bodies) = serve(vec![ok(&body)]);
    let error = client(&url, 5.0, 3)
        .results(&queries(&["q"]), 3)
        .remove(0)
        .expect_err("2 MiB for three passages");
    assert!(
        matches!(error, RetrieverError::Remote { status: Some(200), attempts: 1, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("larger than 1245184 bytes for 1 queries with 3 passages each"),
        "{error}"
    );
}

#[test]
fn a_compressed_answer_is_named_as_such() {
    let (url, _bodies) =
        serve(vec![Reply::Answer("200 OK\r\nContent-Encoding: gzip", "\u{1f}noise".to_owned())]);
    let message =
        client(&url, 5.0, 3).results(&queries(&["q"]), 3).remove(0).expect_err("gzip").to_string();
    assert!(
        message.contains("compressed (\"gzip\")") && message.contains("attempts: 1"),
        "{message}"
    );
}
