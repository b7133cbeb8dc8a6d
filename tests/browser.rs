//! Headless Chromium, driven over the DevTools protocol through two named pipes: JSON messages that
//! end in a zero byte.
//!
//! No WebSocket and no port: `--remote-debugging-pipe` reads commands from file descriptor 3 and
//! writes answers to 4. A page that hangs is a failed test after [`PATIENCE`].
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
/// Names under which distributions install it.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    commands: File,
    answers: Receiver<Value>,
    session: String,
    n_sent: u64,
    /// Everything the page and the browser reported since the start.
    pub events: Vec<Value>,
    _folder: TempDir,
}

impl Browser {
    /// `None`, with a word, where there is no Chromium and `DGPO_REQUIRE_CHROMIUM` does not ask for
    /// one.
    pub(crate) fn start() -> Option<Self> {
        let is_there = |name: &&str| {
            Command::new(name)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok()
        };
        let Some(name) = NAMES.into_iter().find(is_there) else {
            assert!(
                std::env::var_os("DGPO_REQUIRE_CHROMIUM").is_none(),
                "DGPO_REQUIRE_CHROMIUM is set and none of {NAMES:?} can be started"
            );
            dgpo_core::testing::skipped(
                "no Chromium; install the package chromium, or set \
                 DGPO_REQUIRE_CHROMIUM=1 to make this a failure",
            );
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|pipe| folder.path().join(pipe));
        assert!(Command::new("mkfifo").args([&to, &from]).status().unwrap().success());
        // The shell opens the pipes in the order in which they are opened below, and becomes the
        // browser.
        let script = r#"exec 3<"$1" 4>"$2"; exec "$3" --headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage \
            --user-data-dir="$4" --remote-debugging-pipe about:blank"#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .args([&to, &from])
            .arg(name)
            .arg(folder.path().join("profile"));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = File::create(&to).unwrap();
        let answers = read_messages(File::open(&from).unwrap());
        let mut browser = Self {
            child,
            commands,
            answers,
            session: String::new(),
            n_sent: 0,
            events: Vec::new(),
            _folder: folder,
        };
        let target =
            browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached =
            browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Sends a command and waits for its answer; events that come meanwhile are kept.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.n_sent += 1;
        let mut message = json!({"id": self.n_sent, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.next(method);
            if answer["id"] == self.n_sent {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn next(&self, waiting_for: &str) -> Value {
        self.answers
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|e| panic!("the browser says nothing to {waiting_for}: {e}"))
    }

    /// Opens a file and waits until it is loaded.
    pub(crate) fn open(&mut self, path: &Path) {
        let n_before = self.events.len();
        self.call("Page.navigate", json!({"url": format!("file://{}", path.display())}));
        while !self.events[n_before..].iter().any(|event| event["method"] == "Page.loadEventFired")
        {
            let event = self.next("Page.navigate");
            self.events.push(event);
        }
        // Charts are drawn in the frames after loading.
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => \
             setTimeout(done, 50))))",
        );
    }

    /// The value of an expression in the page; promises are waited for.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Presses a key where the focus is.
    pub(crate) fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({"type": kind, "key": key, "code": key}));
        }
    }

    /// Makes the page as wide as a screen, in the colours that the system would ask for.
    pub(crate) fn screen(&mut self, width: u32, height: u32, scheme: &str) {
        let is_phone = width < 600;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => \
             setTimeout(done, 50))))",
        );
    }

    /// What the screen shows, as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        from_base64(shot["data"].as_str().unwrap())
    }

    /// Errors of the page: exceptions, console errors, and what the browser itself complained
    /// about.
    pub(crate) fn errors(&self) -> Vec<&Value> {
        let is_error = |event: &&Value| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => ["error", "warning", "assert"]
                .contains(&event["params"]["type"].as_str().unwrap_or_default()),
            "Log.entryAdded" => event["params"]["entry"]["level"] == "error",
            _ => false,
        };
        self.events.iter().filter(is_error).collect()
    }

    /// Addresses that were asked for.
    pub(crate) fn requests(&self) -> Vec<&str> {
        let sent =
            self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages as they come, on a thread, so that waiting for one can end.
fn read_messages(pipe: File) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        loop {
            let mut message = Vec::new();
            if reader.read_until(0, &mut message).unwrap_or(0) == 0 {
                return;
            }
            message.pop();
            if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |c: &u8| DIGITS.iter().position(|known| known == c).unwrap() as u32;
    let text = text.trim_end_matches('=').as_bytes();
    let group = |four: &[u8]| {
        let bits = four.iter().fold(0, |bits, c| (bits << 6) | digit(c)) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    text.chunks(4).flat_map(group).collect()
}

/// Width and height of a PNG.
pub(crate) fn png_size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// Puts a screenshot where `DGPO_SCREENSHOTS` names a folder.
pub(crate) fn keep_screenshot(name: &str, png: &[u8]) {
    if let Some(folder) = std::env::var_os("DGPO_SCREENSHOTS") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(Path::new(&folder).join(name), png).unwrap();
    }
}
