//! One browser of one test, told what to do in the words of WebDriver.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use stack::{
    chromium::{self, Driver},
    data_folder::DataFolder,
};
use tokio::time::{Instant, sleep};

use crate::app::{App, SOON};

const AXE: &str = include_str!("axe/axe.min.js");

/// The name that WebDriver gives to the id of an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// What kind of browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Desk,
    /// 375 pixels wide.
    Telephone,
    WithoutScripts,
}

pub(crate) struct Browser {
    client: Client,
    session: String,
    _driver: Driver,
    _base: DataFolder,
}

impl Browser {
    /// `None` where there is no Chromium, which is said.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        if !chromium::is_installed() {
            eprintln!("SKIPPED: there is no Chromium; apt-get install chromium chromium-driver");
            return None;
        }
        let base = DataFolder::temporary().expect("a folder");
        let folder = base.folder("chromium").expect("a folder");
        let driver = Driver::start(&folder).await.expect("the driver starts");
        let mut options = json!({"args": driver.arguments("profile").expect("a folder")});
        match kind {
            Kind::Desk => {}
            Kind::Telephone => {
                let metrics = json!({"width": 375, "height": 800, "pixelRatio": 2.0});
                options["mobileEmulation"] = json!({"deviceMetrics": metrics});
            }
            Kind::WithoutScripts => {
                let refused = "profile.managed_default_content_settings.javascript";
                options["prefs"] = json!({refused: 2});
            }
        }
        let wanted =
            json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let client = Client::new();
        let answer = client.post(format!("{}/session", driver.url()));
        let answer = answer
            .json(&json!({"capabilities": {"alwaysMatch": wanted}}))
            .send()
            .await;
        let answer: Value = answer.expect("an answer").json().await.expect("JSON");
        let id = answer["value"]["sessionId"].as_str();
        let id = id.unwrap_or_else(|| panic!("no browser: {answer}"));
        let browser = Self {
            session: format!("{}/session/{id}", driver.url()),
            client,
            _driver: driver,
            _base: base,
        };
        let patience = 2 * SOON.as_millis() as u64;
        let patience = json!({"script": patience, "pageLoad": patience});
        browser.command("/timeouts", patience).await;
        Some(browser)
    }

    /// One command of WebDriver, and what it gives.
    async fn command(&self, path: &str, body: Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.session));
        let answer = request.json(&body).send().await.expect("an answer");
        let status = answer.status();
        let answer: Value = answer.json().await.expect("JSON");
        assert!(status.is_success(), "{path}: {answer}");
        answer["value"].clone()
    }

    async fn property(&self, path: &str) -> Value {
        answer(self.client.get(format!("{}{path}", self.session))).await["value"].clone()
    }

    /// The path of an element that has to be there, in time.
    async fn find(&self, using: &str, value: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let request = self.client.post(format!("{}/element", self.session));
            let request = request.json(&json!({"using": using, "value": value}));
            let answer = answer(request).await;
            if let Some(id) = answer["value"][ELEMENT].as_str() {
                return format!("/element/{id}");
            }
            if Instant::now() >= deadline {
                let (address, source) = (self.address().await, self.property("/source").await);
                panic!("no {value} at {address}: {source}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn open(&self, app: &App, path: &str) {
        self.command("/url", json!({"url": format!("{}{path}", app.url)}))
            .await;
    }

    pub(crate) async fn address(&self) -> String {
        self.property("/url")
            .await
            .as_str()
            .expect("an address")
            .to_owned()
    }

    pub(crate) async fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// What axe-core finds, each with the first element that has it.
    pub(crate) async fn barriers(&self) -> Vec<String> {
        self.run(AXE).await;
        let script = "const done = arguments[arguments.length - 1];
            axe.run().then(found => done(found.violations.map(
                v => v.id + ': ' + v.nodes[0].html + ' ' + v.nodes[0].failureSummary)));";
        let found = self
            .command("/execute/async", json!({"script": script, "args": []}))
            .await;
        serde_json::from_value(found).expect("a list of texts")
    }

    /// What the browser's own log says of a page. That a page has another status than 200 is no error
    /// of the page.
    pub(crate) async fn errors(&self) -> Vec<String> {
        let log = self.command("/se/log", json!({"type": "browser"})).await;
        let entries = log.as_array().expect("a list").iter();
        let entries = entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned());
        let of_page = |entry: &String| !entry.contains("the server responded with a status of 4");
        entries.filter(of_page).collect()
    }

    pub(crate) async fn click(&self, css: &str) {
        let element = self.find("css selector", css).await;
        self.command(&format!("{element}/click"), json!({})).await;
    }

    pub(crate) async fn follow(&self, link: &str) {
        let element = self.find("link text", link).await;
        self.command(&format!("{element}/click"), json!({})).await;
    }

    /// Types into the field of this name.
    pub(crate) async fn fill(&self, name: &str, value: &str) {
        let element = self
            .find("css selector", &format!("input[name={name}]"))
            .await;
        self.command(&format!("{element}/value"), json!({"text": value}))
            .await;
    }

    /// As [`Browser::fill`], in place of what is there.
    pub(crate) async fn refill(&self, name: &str, value: &str) {
        let element = self
            .find("css selector", &format!("input[name={name}]"))
            .await;
        self.command(&format!("{element}/clear"), json!({})).await;
        self.fill(name, value).await;
    }

    /// Types into the element that has the focus.
    pub(crate) async fn press(&self, keys: &str) {
        let focus = self.property("/element/active").await;
        let id = focus[ELEMENT].as_str().expect("the focus");
        self.command(&format!("/element/{id}/value"), json!({"text": keys}))
            .await;
    }

    /// Presses these keys one after the other, wherever the focus is.
    pub(crate) async fn type_keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("/actions", json!({"actions": [keyboard]}))
            .await;
    }

    /// Presses the tab key until the focus is there, and can be seen.
    pub(crate) async fn tab_to(&self, css: &str) {
        const MOST: usize = 100;
        for _ in 0..MOST {
            self.type_keys("\u{e004}").await;
            let focus = format!(
                "const focus = document.activeElement;
                 return [focus.matches({}), getComputedStyle(focus).outlineStyle, focus.outerHTML];",
                json!(css)
            );
            let focus = self.run(&focus).await;
            if focus[0] == true {
                assert_ne!(focus[1], "none", "{focus}");
                return;
            }
        }
        panic!("the tab key does not lead to {css}");
    }

    pub(crate) async fn text(&self, css: &str) -> String {
        let element = self.find("css selector", css).await;
        let text = self.property(&format!("{element}/text")).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    pub(crate) async fn is_displayed(&self, css: &str) -> bool {
        let element = self.find("css selector", css).await;
        self.property(&format!("{element}/displayed")).await == json!(true)
    }

    /// Waits for a page with this heading.
    pub(crate) async fn until_heading(&self, heading: &str) {
        self.find("xpath", &format!("//h1[normalize-space()='{heading}']"))
            .await;
    }

    /// Waits for this text.
    pub(crate) async fn until_text(&self, text: &str) {
        self.find("xpath", &format!("//*[contains(text(), '{text}')]"))
            .await;
    }

    pub(crate) async fn close(self) {
        let ended = self.client.delete(&self.session).send().await;
        assert!(ended.expect("an answer").status().is_success());
    }
}

async fn answer(request: RequestBuilder) -> Value {
    let answer = request.send().await.expect("an answer");
    answer.json().await.expect("JSON")
}
