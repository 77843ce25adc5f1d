//! The part of an API server that the driver uses: it stores events, and has
//! objects, such as a Node, that can be read and patched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the test's runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct ApiServer {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Value>,
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Lists, by path.
    pages: BTreeMap<String, Vec<Vec<Value>>>,
    /// Method and path of every request but those about events.
    requests: Vec<String>,
    /// Everything but events is forbidden.
    forbids: bool,
    /// How many of the next patches find the object changed by another writer.
    conflicts: u32,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let server = Self { url, state: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.connection(stream).await });
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object at a path.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state().objects.insert(path.to_owned(), object);
    }

    /// Puts a list at a path, in pages.
    pub(crate) fn put_pages(&self, path: &str, pages: Vec<Vec<Value>>) {
        self.state().pages.insert(path.to_owned(), pages);
    }

    /// The object at a path.
    pub(crate) fn object(&self, path: &str) -> Value {
        self.state().objects.get(path).cloned().unwrap_or_default()
    }

    /// Method and path of the requests so far, events left out.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// From now on the role allows events and nothing else.
    pub(crate) fn forbid(&self, forbids: bool) {
        self.state().forbids = forbids;
    }

    /// The next patches find that another writer was faster.
    pub(crate) fn conflict(&self, patches: u32) {
        self.state().conflicts = patches;
    }

    /// Events so far, and patches of them, oldest first.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    /// Reasons and messages so far, oldest first.
    pub(crate) fn reported(&self) -> Vec<(String, String)> {
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or("").to_owned();
        let state = self.state();
        state.events.iter().map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }

    /// The message of the first event of this reason, if there is one.
    pub(crate) fn message_of(&self, reason: &str) -> Option<String> {
        self.reported().into_iter().find(|(found, _)| found == reason).map(|(_, message)| message)
    }

    fn answer(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let mut state = self.state();
        let body = serde_json::from_slice(body).unwrap_or_default();
        if path.contains("/events") {
            state.events.push(body);
            return (201, json!({}));
        }
        state.requests.push(format!("{method} {path}"));
        let refused = |code: u16, message: &str| (code, json!({"message": message}));
        if state.forbids {
            return refused(403, "the role does not say so");
        }
        let conflicts = state.conflicts;
        let (object, query) = path.split_once('?').unwrap_or((path, ""));
        if let Some(pages) = state.pages.get(object) {
            return (200, page(pages, query));
        }
        let Some(object) = state.objects.get_mut(object) else {
            return refused(404, "no such object");
        };
        if method != "PATCH" {
            return (200, object.clone());
        }
        if conflicts > 0 {
            // A taint before all others: the indexes that were read are wrong now.
            let taints = object["spec"]["taints"].as_array_mut().expect("taints");
            taints.insert(0, json!({"key": format!("faster-{conflicts}"), "effect": "NoSchedule"}));
        }
        let patched = match kind {
            "application/merge-patch+json" => Some(merge(object.clone(), &body)),
            "application/json-patch+json" => apply(object.clone(), &body),
            other => panic!("a patch of kind {other}"),
        };
        let answer = match patched {
            Some(patched) => {
                *object = patched.clone();
                (200, patched)
            }
            None => refused(422, "testing a value failed"),
        };
        state.conflicts = conflicts.saturating_sub(1);
        answer
    }

    async fn connection(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut first = String::new();
            if !matches!(stream.read_line(&mut first).await, Ok(read) if read > 2) {
                return;
            }
            let (mut length, mut kind) = (0, String::new());
            loop {
                let mut line = String::new();
                match stream.read_line(&mut line).await {
                    Ok(read) if read > 2 => {}
                    Ok(2) => break,
                    _ => return,
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                if let Some(value) = lower.strip_prefix("content-type:") {
                    value.trim().clone_into(&mut kind);
                }
            }
            let mut body = vec![0; length];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            let mut words = first.split(' ');
            let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
            let (status, answer) = self.answer(method, path, &kind, &body);
            let answer = answer.to_string();
            let length = answer.len();
            let head = format!("HTTP/1.1 {status} Answered\r\nContent-Length: {length}\r\n\r\n");
            if stream.write_all((head + &answer).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The page of a list that `continue` names; the first one without it.
fn page(pages: &[Vec<Value>], query: &str) -> Value {
    let token = query.split('&').find_map(|pair| pair.strip_prefix("continue="));
    let number: usize = match token {
        None | Some("") => 0,
        // As a client has to send it: a token may have any characters.
        Some(token) => token.strip_prefix("page%2F").expect("encoded").parse().expect("a number"),
    };
    let next =
        if number + 1 < pages.len() { format!("page/{}", number + 1) } else { String::new() };
    json!({"items": pages[number], "metadata": {"continue": next}})
}

/// RFC 7386.
fn merge(mut target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    if !target.is_object() {
        target = json!({});
    }
    let fields = target.as_object_mut().expect("an object");
    for (key, value) in patch {
        match value {
            Value::Null => drop(fields.remove(key)),
            value => {
                let merged = merge(fields.remove(key).unwrap_or_default(), value);
                fields.insert(key.clone(), merged);
            }
        }
    }
    target
}

/// RFC 6902, `test` and `remove` of an item of a list; `None` where a test fails.
fn apply(mut object: Value, steps: &Value) -> Option<Value> {
    for step in steps.as_array().expect("steps") {
        let place = step["path"].as_str().expect("a path");
        match step["op"].as_str().expect("an operation") {
            "test" if object.pointer(place) == Some(&step["value"]) => {}
            "test" => return None,
            "remove" => {
                let (list, at) = place.rsplit_once('/').expect("a list");
                let list = object.pointer_mut(list)?.as_array_mut().expect("a list");
                list.remove(at.parse().expect("a place"));
            }
            other => panic!("operation {other}"),
        }
    }
    Some(object)
}
