//! `browser-test`: reports in headless Chromium, as a person would see them: every section is there, pointing at the map shows a picture,
//! the wheel zooms, dragging pans, colours change from labels to clusters, the console holds no error, and nothing is asked of a network.
//! Looked at are a run with labels, one of a transformer without labels, and the page that compares both, each in light and dark colours.
//!
//! It speaks WebDriver (W3C) with ChromeDriver over the loopback interface, in the few requests that it needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::shell;

/// What to open.
#[derive(Debug, Args)]
pub struct BrowserTestArgs {
    /// Only the report of this finished run with labels [default: those of short runs, trained first].
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// Keep a screenshot of the first page as PNG.
    #[arg(long, value_name = "PNG")]
    screenshot: Option<PathBuf>,
    /// Only in dark colours (and take the screenshot in them).
    #[arg(long)]
    dark: bool,
}

/// A page and what it has to have.
struct Wanted {
    page: PathBuf,
    sections: &'static [&'static str],
    /// Whether it has a map, and whether that can be coloured by labels too.
    map: Option<bool>,
}

/// The sections that a report of a run with labels has.
const LABELLED: &[&str] =
    &["Figures", "Curves", "Map", "Nearest neighbours", "Clusters", "Confusion", "Views", "Machine and cost", "Configuration"];
/// Those of a transformer's run without labels.
const UNLABELLED: &[&str] =
    &["Figures", "Curves", "Map", "Nearest neighbours", "Views", "Attention", "Machine and cost", "Configuration"];
/// Those of a comparison.
const COMPARED: &[&str] = &["Figures", "Curves", "Settings that differ"];

/// Runs it.
///
/// # Errors
/// A browser that can't be had, or a page that is not as it should be.
pub fn run(args: &BrowserTestArgs) -> Result<()> {
    install()?;
    let pages = match &args.report {
        Some(page) => vec![Wanted { page: page.clone(), sections: LABELLED, map: Some(true) }],
        None => train()?,
    };
    let mut screenshot = args.screenshot.as_deref();
    for wanted in pages {
        let page = wanted.page.canonicalize().with_context(|| wanted.page.display().to_string())?;
        for dark in [false, true].into_iter().filter(|&dark| dark || !args.dark) {
            let mut driver = Driver::start()?;
            let outcome = look(&mut driver, &Wanted { page: page.clone(), ..wanted }, dark, screenshot.take());
            driver.stop();
            outcome.with_context(|| format!("{} in {} colours", page.display(), if dark { "dark" } else { "light" }))?;
        }
        println!("{} is as it should be", page.display());
    }
    Ok(())
}

/// Short runs: the demo, and a transformer on a folder of pictures without labels; and the page that compares them.
fn train() -> Result<Vec<Wanted>> {
    let folder = shell::root().join("target/browser-test");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures).with_context(|| pictures.display().to_string())?;
    for i in 0..96_u32 {
        // Stripes of several widths and directions, as binary gray maps.
        let pixel = |p: u32| ((p % 32 * (i % 3) + p / 32 * (i % 5)) * (3 + i % 7) + i) as u8;
        let pixels: Vec<u8> = b"P5 32 32 255\n".iter().copied().chain((0..1024).map(pixel)).collect();
        let path = pictures.join(format!("stripes-{i:02}.pgm"));
        std::fs::write(&path, pixels).with_context(|| path.display().to_string())?;
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let (demo, stripes, compared) = (path("demo"), path("stripes"), path("compared.html"));
    shell::run(&mut shell::twinsight(&["demo", "--epochs", "1", "--out", &demo], &[]))?;
    let vit = ["--encoder", "vit_mini", "--epochs", "2", "--batch", "16", "--out", &stripes, "--on-collapse", "warn"];
    shell::run(&mut shell::twinsight(&[&["train", "--data", &path("pictures")][..], &vit].concat(), &[]))?;
    shell::run(&mut shell::twinsight(&["report", &demo, &stripes, "--out", &compared], &[]))?;
    Ok(vec![
        Wanted { page: folder.join("demo/report.html"), sections: LABELLED, map: Some(true) },
        Wanted { page: folder.join("stripes/report.html"), sections: UNLABELLED, map: Some(false) },
        Wanted { page: compared.into(), sections: COMPARED, map: None },
    ])
}

/// Debian's packages, where a program is missing.
fn install() -> Result<()> {
    let found = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if found("chromium") && found("chromedriver") {
        return Ok(());
    }
    let apt = |args: &[&str]| shell::run(Command::new("apt-get").args(args).stdout(Stdio::null()));
    apt(&["update"])
        .and_then(|()| apt(&["install", "--yes", "--no-install-recommends", "chromium", "chromium-driver"]))
        .context("chromium and chromedriver are missing, and can't be installed by apt-get; install them by hand")
}

fn look(driver: &mut Driver, wanted: &Wanted, dark: bool, screenshot: Option<&Path>) -> Result<()> {
    let url = format!("file://{}", wanted.page.display());
    driver.open(dark)?;
    driver.call("POST", "/url", &json!({ "url": url }))?;
    let ready = driver.script("return document.documentElement.dataset.ready || '';")?;
    ensure!(ready == "yes", "the page's script did not come to its end: {ready}; {}", driver.logs("browser")?);
    let headings = driver.script("return [...document.querySelectorAll('section h2')].map(h => h.textContent);")?;
    for section in wanted.sections {
        ensure!(headings.as_array().is_some_and(|h| h.iter().any(|t| t == *section)), "no section {section}: {headings}");
    }
    let empty =
        "return [...document.querySelectorAll('section')].filter(s => s.getBoundingClientRect().height < 40).map(s => s.id);";
    let empty = driver.script(empty)?;
    ensure!(empty == json!([]), "sections that show nothing: {empty}");
    let charts = driver.script("return document.querySelectorAll('#charts canvas').length;")?;
    ensure!(charts.as_u64() >= Some(3), "{charts} charts are drawn");
    let ground = driver.script(
        "const c = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number); \
         return {level: (c[0] + c[1] + c[2]) / 3, dark: matchMedia('(prefers-color-scheme:dark)').matches};",
    )?;
    let is_dark = ground["level"].as_f64().is_some_and(|level| level < 100.0);
    ensure!(ground["dark"] == dark && is_dark == dark, "wanted {} colours: {ground}", if dark { "dark" } else { "light" });
    if let Some(labelled) = wanted.map {
        look_at_map(driver, labelled, screenshot)?;
    }

    let logs = driver.logs("browser")?;
    ensure!(logs.as_array().is_some_and(Vec::is_empty), "the console holds {logs}");
    let asked = driver.logs("performance")?;
    for entry in asked.as_array().into_iter().flatten() {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap_or("{}"))?;
        let request = &message["message"];
        if request["method"] == "Network.requestWillBeSent" {
            let asked = request["params"]["request"]["url"].as_str().unwrap_or_default();
            ensure!(asked == url || asked.starts_with("data:"), "the page asks for {asked}");
        }
    }
    Ok(())
}

/// The map: a picture where the pointer is, zoom, pan, and colours by label and by cluster.
fn look_at_map(driver: &mut Driver, labelled: bool, screenshot: Option<&Path>) -> Result<()> {
    // A real pointer over the map's points, one after the other, until one shows its picture.
    driver.script("document.getElementById('plane').scrollIntoView({block: 'center'}); return 1;")?;
    let place = driver.script(
        "const r = document.getElementById('plane').getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2];",
    )?;
    let (x, y) = (place[0].as_f64().context("no map")?, place[1].as_f64().context("no map")?);
    let (mut seen, mut found) = (Value::Null, (x, y));
    for step in 0..200 {
        let (radius, angle) = (f64::from(step) * 1.2, f64::from(step) * 0.7);
        let (px, py) = ((x + radius * angle.cos()).round(), (y + radius * angle.sin()).round());
        driver.pointer(px, py)?;
        seen = driver.script(
            "const t = document.getElementById('tip'), p = t.querySelector('.thumb'); if (t.style.display !== 'block' || !p) return null; \
             const r = p.getBoundingClientRect(); return {image: t.dataset.image, width: r.width, picture: p.style.backgroundImage.slice(0, 26)};",
        )?;
        if !seen.is_null() {
            found = (px, py);
            break;
        }
    }
    ensure!(seen["width"].as_f64() >= Some(40.0), "no picture where the pointer is: {seen}");
    ensure!(seen["picture"].as_str().is_some_and(|p| p.contains("data:image/png")), "the picture is none: {seen}");
    println!("pointing at image {} shows its picture", seen["image"]);

    // The wheel and dragging change what is drawn; the button shows the whole map again.
    let drawn = "const c = document.getElementById('plane').toDataURL(); let h = 0; \
                 for (let i = 0; i < c.length; i++) h = (h * 31 + c.charCodeAt(i)) | 0; return c.length + ':' + h;";
    let before = driver.script(drawn)?;
    driver.wheel(x, y, -600)?;
    let zoomed = driver.script(drawn)?;
    ensure!(zoomed != before, "the wheel does not zoom");
    driver.drag((x, y), (x + 80.0, y + 40.0))?;
    ensure!(driver.script(drawn)? != zoomed, "dragging does not pan");
    driver.script("document.querySelector('#mapbar button:last-child').click(); return 1;")?;
    ensure!(driver.script(drawn)? == before, "the whole map is not what it was");
    let press = |text: &str| {
        format!(
            "const b = [...document.querySelectorAll('#mapbar button')].find(b => b.textContent === '{text}'); if (!b) return null; \
             b.click(); return [...document.querySelectorAll('#legend > span')].map(s => s.textContent);"
        )
    };
    let clusters = driver.script(&press("by cluster"))?;
    let named = |l: &Value| l.as_array().is_some_and(|l| l.iter().all(|n| n.as_str().is_some_and(|n| n.starts_with("cluster "))));
    ensure!(clusters.is_null() || named(&clusters), "the legend by cluster is {clusters}");
    if labelled {
        ensure!(named(&clusters), "the map has no colours by cluster");
        ensure!(driver.script(drawn)? != before, "colours by cluster are those by label");
        let labels = driver.script(&press("by label"))?;
        ensure!(labels.as_array().is_some_and(|l| !l.is_empty()) && !named(&labels), "the legend by label is {labels}");
        ensure!(driver.script(drawn)? == before, "colours by label are not what they were");
    }
    if let Some(path) = screenshot {
        driver.pointer(found.0 + 1.0, found.1)?;
        let image = driver.call("GET", "/screenshot", &Value::Null)?;
        let text = image.as_str().context("no screenshot")?;
        std::fs::write(path, decode_base64(text)?).with_context(|| path.display().to_string())?;
        println!("screenshot in {}", path.display());
    }
    Ok(())
}

/// A ChromeDriver with at most one session.
struct Driver {
    child: Child,
    port: u16,
    session: String,
}

impl Driver {
    fn start() -> Result<Self> {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("chromedriver can't be started")?;
        let out = child.stdout.take().context("chromedriver prints nothing")?;
        let mut lines = BufReader::new(out).lines();
        let port = loop {
            let line = lines.next().context("chromedriver ended before it said its port")??;
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().context(line.clone())?;
            }
        };
        // What it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, port, session: String::new() })
    }

    fn open(&mut self, dark: bool) -> Result<()> {
        let mut arguments =
            vec!["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000", "--disable-gpu"];
        if dark {
            arguments.push("--force-dark-mode");
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let found = self.request("POST", "/session", &wanted)?;
        self.session = format!("/session/{}", found["sessionId"].as_str().context("no session")?);
        Ok(())
    }

    fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.request(method, &format!("{}{path}", self.session), body)
    }

    fn script(&mut self, text: &str) -> Result<Value> {
        self.call("POST", "/execute/sync", &json!({"script": text, "args": []}))
    }

    fn logs(&mut self, kind: &str) -> Result<Value> {
        self.call("POST", "/se/log", &json!({ "type": kind }))
    }

    fn pointer(&mut self, x: f64, y: f64) -> Result<()> {
        let to = json!({"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"});
        let mouse = json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [to]});
        self.call("POST", "/actions", &json!({ "actions": [mouse] })).map(drop)
    }

    fn drag(&mut self, from: (f64, f64), to: (f64, f64)) -> Result<()> {
        let to_place = |(x, y): (f64, f64)| json!({"type": "pointerMove", "duration": 0, "x": x.round(), "y": y.round(), "origin": "viewport"});
        let actions = json!([
            to_place(from), {"type": "pointerDown", "button": 0}, to_place(to), {"type": "pointerUp", "button": 0}
        ]);
        let mouse = json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        self.call("POST", "/actions", &json!({ "actions": [mouse] })).map(drop)
    }

    fn wheel(&mut self, x: f64, y: f64, by: i32) -> Result<()> {
        let turn = json!({"type": "scroll", "x": x.round() as i64, "y": y.round() as i64, "deltaX": 0, "deltaY": by, "duration": 0, "origin": "viewport"});
        self.call("POST", "/actions", &json!({"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]})).map(drop)
    }

    /// One request; `value` of the answer.
    fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("chromedriver does not answer")?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut length = None;
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "chromedriver ended within an answer to {method} {path}");
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut text = vec![0; length.context("an answer without its length")?];
        reader.read_exact(&mut text)?;
        let answer: Value = serde_json::from_slice(&text)?;
        let value = &answer["value"];
        if let Some(error) = value["error"].as_str() {
            bail!("{method} {path}: {error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value.clone())
    }

    fn stop(mut self) {
        if !self.session.is_empty() {
            // The browser ends with its session; what can't be ended here ends with the driver.
            let _ = self.call("DELETE", "", &Value::Null);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let value = |c: u8| -> Result<u32> {
        Ok(match c {
            b'A'..=b'Z' => u32::from(c - b'A'),
            b'a'..=b'z' => u32::from(c - b'a') + 26,
            b'0'..=b'9' => u32::from(c - b'0') + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{:?} is no base64", char::from(c)),
        })
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'=') {
        bits = bits << 6 | value(c)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() -> Result<()> {
        assert_eq!(decode_base64("aGVsbG8gd29ybGQ=")?, b"hello world");
        assert!(decode_base64("a*").is_err());
        Ok(())
    }
}
