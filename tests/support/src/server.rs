//! A web server on this machine that does to its clients what a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Result;

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What it gets.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers beside `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
    /// Bytes of the content after which the server hangs up.
    pub cut: Option<usize>,
}

/// A server, until the program ends.
pub struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Request {
    /// The first byte that is asked for; `None` for all of them.
    pub fn first_byte(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

impl Answer {
    /// An answer without content.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    /// The content of a file, or the part of it that was asked for.
    pub fn file(request: &Request, content: &[u8]) -> Self {
        match request.first_byte() {
            None => Self { body: content.to_vec(), ..Self::status(200) },
            Some(from) if from >= content.len() => Self::status(416),
            Some(from) => {
                let place = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                Self { body: content[from..].to_vec(), ..Self::status(206) }.with("Content-Range", &place)
            }
        }
    }

    /// The same with a header more.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Server {
    /// Starts a server that answers as `answer` says, each connection by a thread of its own.
    ///
    /// # Errors
    /// No free port.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                // A client that hangs up first is part of some tests.
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Ok(Self { address, asked })
    }

    /// Its address, without a path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it was asked for since this was called last.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default()
    }
}

/// Answers one request and hangs up; `None` where the client did.
fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(String::from);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let request = Request { method, target, headers };
    log.lock().ok()?.push(request.clone());
    let Answer { status, headers, body, cut } = answer(&request);
    let mut head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    let sent = if request.method == "HEAD" { &[][..] } else { &body[..cut.unwrap_or(body.len()).min(body.len())] };
    let mut stream = stream;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).and_then(|()| stream.write_all(sent)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_that_were_asked_for() {
        let request = |range: &str| Request {
            method: "GET".into(),
            target: "/x".into(),
            headers: [("range".to_string(), range.to_string())].into(),
        };
        let part = Answer::file(&request("bytes=2-"), b"0123");
        assert_eq!((part.status, part.body.as_slice(), part.headers[0].1.as_str()), (206, &b"23"[..], "bytes 2-3/4"));
        assert_eq!(Answer::file(&request("bytes=4-"), b"0123").status, 416);
        assert_eq!(Answer::file(&request("nonsense"), b"0123").body, b"0123");
    }
}
