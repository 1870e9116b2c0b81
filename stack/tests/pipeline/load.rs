//! A sender that never stops: new events, repetitions, and another try for whatever was refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use stack::sample::{self, DEVELOPMENT_SECRET};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

const SENDERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);

/// What the senders saw.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Ids answered 2xx at least once.
    pub(crate) accepted: BTreeSet<String>,
    /// Other answers, and requests that broke, by their number.
    pub(crate) refused: BTreeMap<String, usize>,
}

impl Ledger {
    fn note(&mut self, id: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.accepted.insert(id.to_owned());
            }
            Err(refusal) => *self.refused.entry(refusal).or_default() += 1,
        }
    }
}

pub(crate) struct Load {
    ledger: Arc<Mutex<Ledger>>,
    senders: JoinSet<()>,
    stop: CancellationToken,
}

impl Load {
    /// Sends to these addresses in turn.
    pub(crate) fn start(urls: Vec<String>) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = CancellationToken::new();
        let mut senders = JoinSet::new();
        for sender in 0..SENDERS {
            senders.spawn(send(
                sender,
                urls.clone(),
                Arc::clone(&ledger),
                stop.clone(),
            ));
        }
        Self {
            ledger,
            senders,
            stop,
        }
    }

    /// How many ids are accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.ledger.lock().expect("no sender panics").accepted.len()
    }

    pub(crate) async fn stop(self) -> Ledger {
        self.stop.cancel();
        self.senders.join_all().await;
        std::mem::take(&mut *self.ledger.lock().expect("no sender panics"))
    }
}

async fn send(
    sender: usize,
    urls: Vec<String>,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
) {
    let mut number = 0;
    let mut attempt = sender;
    while !stop.is_cancelled() {
        let id = format!("msg_{sender}_{number}");
        let body = body(sender, number);
        // Every third event is delivered twice, to different replicas.
        let deliveries = if number % 3 == 0 { 2 } else { 1 };
        let mut done = 0;
        while done < deliveries && !stop.is_cancelled() {
            attempt += 1;
            let url = &urls[attempt % urls.len()];
            let answer = sample::post(url, DEVELOPMENT_SECRET, &id, &body).await;
            let outcome = match answer {
                Ok((status, _)) if status.is_success() => Ok(()),
                Ok((status, _)) => Err(status.to_string()),
                Err(_) => Err("broken".to_owned()),
            };
            done += usize::from(outcome.is_ok());
            ledger.lock().expect("no sender panics").note(&id, outcome);
            sleep(PAUSE).await;
        }
        number += 1;
    }
}

/// Vendors, export jobs and others in turn, one resource for each event.
fn body(sender: usize, number: usize) -> String {
    let resource = format!("{sender}-{number}");
    match number % 3 {
        0 => format!(
            r#"{{"eventType":"v1.vendor.created","data":{{"id":"{resource}","companyId":"c","name":"n","state":"DRAFT"}}}}"#
        ),
        1 => format!(
            r#"{{"eventType":"v1.export-job.created","data":{{"id":"{resource}","companyId":"c","status":"pending"}}}}"#
        ),
        _ => format!(r#"{{"eventType":"v1.other.created","data":{{"id":"{resource}"}}}}"#),
    }
}
