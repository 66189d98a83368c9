//! A page in a headless Chromium, driven through chromedriver.

use std::env::{split_paths, var_os};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use url::Url;

/// Longer than anything takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A browser with one page; ends when dropped.
pub struct Browser {
    client: Client,
    _driver: Driver,
}

/// The chromedriver and its Chromium, which are one process group.
struct Driver {
    child: Child,
    // Home and profile, so that nothing of the user's is read or written.
    home: TempDir,
}

/// Colours that the user prefers.
#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

impl Browser {
    /// Starts a browser in Berlin that speaks British English; without its programs, prints
    /// which one is missing.
    pub async fn start() -> Option<Self> {
        let Some(chromium) = find("chromium").or_else(|| find("google-chrome")) else {
            eprintln!("skipped: chromium is not installed");
            return None;
        };
        let Some(chromedriver) = find("chromedriver") else {
            eprintln!("skipped: chromedriver is not installed");
            return None;
        };
        let (driver, port) = tokio::task::spawn_blocking(move || Driver::start(&chromedriver))
            .await
            .unwrap();
        let profile = format!(
            "--user-data-dir={}",
            driver.home.path().join("profile").display()
        );
        let capabilities = json!({
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": chromium, "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars", profile,
            ]},
        });
        let capabilities: Map<String, Value> = capabilities.as_object().unwrap().clone();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        let browser = Self {
            client,
            _driver: driver,
        };
        let zone = json!({"timezoneId": "Europe/Berlin"});
        browser
            .devtools("Emulation.setTimezoneOverride", zone)
            .await;
        let locale = json!({"locale": "en-GB"});
        browser
            .devtools("Emulation.setLocaleOverride", locale)
            .await;
        Some(browser)
    }

    /// Loads a page.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// The size of the page in CSS pixels, and its colours.
    pub async fn view(&self, width: u32, height: u32, scheme: Scheme) {
        let is_phone = width < 500;
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
        let scheme = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The text of the first element of a selector, with plain spaces.
    pub async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).innerText";
        let text = self.script(script, vec![json!(css)]).await;
        text.as_str().unwrap().replace('\u{a0}', " ")
    }

    /// Whether the first element of a selector is there and displayed.
    pub async fn is_shown(&self, css: &str) -> bool {
        let script = "return document.querySelector(arguments[0])?.checkVisibility() ?? false";
        self.script(script, vec![json!(css)]).await == json!(true)
    }

    /// How many elements a selector finds.
    pub async fn count(&self, css: &str) -> u64 {
        let script = "return document.querySelectorAll(arguments[0]).length";
        self.script(script, vec![json!(css)])
            .await
            .as_u64()
            .unwrap()
    }

    /// Waits until an element is displayed and has a part in its text.
    pub async fn until_text(&self, css: &str, part: &str) {
        let script = "const found = document.querySelector(arguments[0]);
            return (found?.checkVisibility() ?? false)
                && found.innerText.replaceAll('\\u00a0', ' ').includes(arguments[1])";
        let what = format!("{css} has {part:?}");
        self.until(&what, script, vec![json!(css), json!(part)])
            .await;
    }

    /// Waits until an element is not displayed.
    pub async fn until_hidden(&self, css: &str) {
        let script = "return !(document.querySelector(arguments[0])?.checkVisibility() ?? false)";
        self.until(&format!("{css} is hidden"), script, vec![json!(css)])
            .await;
    }

    /// Waits until a script returns true.
    pub async fn until(&self, what: &str, script: &str, arguments: Vec<Value>) {
        let waiting = async {
            while self.script(script, arguments.clone()).await != json!(true) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let page = self.text("body").await;
            panic!("not within {DEADLINE:?}: {what}; the page says: {page}");
        }
    }

    /// Clicks an element as a user does: it has to be in reach.
    pub async fn click(&self, css: &str) {
        self.element(css).await.click().await.unwrap();
    }

    /// Types into an element, also keys of [`fantoccini::key::Key`].
    pub async fn keys(&self, css: &str, keys: &str) {
        self.element(css).await.send_keys(keys).await.unwrap();
    }

    async fn element(&self, css: &str) -> Element {
        let found = self.client.find(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// What a script returns; `arguments` are its arguments.
    pub async fn script(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.client.execute(script, arguments).await.unwrap()
    }

    /// Saves a picture of the page in `target/tmp` and returns its path. Makes the window as
    /// high as the page, so that the picture has all of it.
    pub async fn screenshot(&self, name: &str) -> PathBuf {
        self.screenshot_to(name, "html").await
    }

    /// As [`Self::screenshot`], down to the end of an element and a margin.
    pub async fn screenshot_to(&self, name: &str, css: &str) -> PathBuf {
        let script =
            "const { bottom } = document.querySelector(arguments[0]).getBoundingClientRect();
            const whole = document.documentElement.scrollHeight;
            return [innerWidth, Math.min(whole, Math.ceil(bottom + scrollY) + 8)]";
        let size = self.script(script, vec![json!(css)]).await;
        let size = json!({
            "width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": false,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        std::fs::write(&picture, self.client.screenshot().await.unwrap()).unwrap();
        picture
    }

    /// Asks the DevTools protocol.
    pub async fn devtools(&self, method: &str, parameters: Value) -> Value {
        let body = json!({"cmd": method, "params": parameters});
        self.ask("goog/cdp/execute", body).await
    }

    /// What the console and the browser say of the page since the last time: errors, warnings
    /// and violations of its policy.
    pub async fn log(&self) -> Vec<String> {
        let entries = self.ask("se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().unwrap().iter();
        entries
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn ask(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Ask { path, body }).await.unwrap()
    }
}

/// A command of chromedriver's own.
#[derive(Debug)]
struct Ask {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Ask {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        let session = session.unwrap_or_default();
        base.join(&format!("session/{session}/{}", self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

impl Driver {
    /// Starts a chromedriver on a port that it chooses, which is returned. It chooses by IPv4, and
    /// ends if somebody has the same port by IPv6.
    fn start(program: &Path) -> (Self, u16) {
        (0..5)
            .find_map(|_| Self::try_start(program))
            .expect("chromedriver names its port")
    }

    fn try_start(program: &Path) -> Option<(Self, u16)> {
        let home = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .arg("--port=0")
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .env("XDG_CACHE_HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut driver = Self { child, home };
        let mut lines = BufReader::new(driver.child.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        // It may write on, and must not fail for want of a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Some((driver, port?))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
        // Chromium's last files may still come into being.
        for _ in 0..100 {
            if std::fs::remove_dir_all(self.home.path()).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A program in the search path.
fn find(program: &str) -> Option<PathBuf> {
    let path = var_os("PATH")?;
    let mut places = split_paths(&path).map(|place| place.join(program));
    places.find(|place| place.is_file())
}
