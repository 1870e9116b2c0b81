//! Fault drills: real processes under load are killed, frozen, cut off and starved. In the end a check
//! shows that every event that was answered 2xx is stored, once.

mod audit;
pub mod cluster;
mod event;
pub mod machine;
mod report;
mod schedule;
mod sender;
mod system;

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::audit::Audit;
pub use self::event::{Kind, kind};
pub use self::report::{Recoveries, Report};
use self::schedule::Step;
pub use self::schedule::{Incident, Schedule};
pub use self::sender::{Refusal, Sender, Sent};
pub use self::system::{AnyFault, System};
use crate::progress::Progress;

/// This includes spool rows whose claim expired twice, each time after 60 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(240);

/// Without faults, an event takes less time than this from its answer to its row.
const RECEIVED_WITHIN: Duration = Duration::from_secs(20);

/// The options of a drill.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Determines which events are sent.
    pub seed: u64,
    /// New events a second.
    pub rate: u32,
}

/// The course of an incident.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// When the first fault began.
    pub began_at: DateTime<Utc>,
    /// When the last fault was over.
    pub ended_at: DateTime<Utc>,
    /// How many requests were answered 503 or 408 from the beginning until everything worked again.
    pub refused: usize,
    /// How long after the end everything worked again.
    pub recovery: Duration,
}

/// A system under load, with incidents.
#[derive(Debug)]
pub struct Drill<S> {
    system: S,
    sender: Sender,
    pool: PgPool,
    seed: u64,
    started: Instant,
    progress: Progress,
    /// The times in which ingest had to refuse: neither store could be reached, or ingest itself was frozen
    /// while its deadlines passed.
    excuses: Vec<(Instant, Instant)>,
    report: Report,
}

impl<S: System> Drill<S> {
    /// Puts the system under load.
    ///
    /// # Errors
    /// When one of the system's addresses is invalid.
    pub fn start(system: S, settings: Settings, progress: Progress) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&system.database_url())?;
        let sender = Sender::start(settings.seed, settings.rate, &system.webhook_urls())?;
        Ok(Self {
            system,
            sender,
            pool,
            seed: settings.seed,
            started: Instant::now(),
            progress,
            excuses: Vec::new(),
            report: Report::default(),
        })
    }

    /// Runs incidents of the schedule for this long, except faults that this machine cannot simulate.
    ///
    /// # Errors
    /// When a store does not come up again.
    pub async fn run(&mut self, schedule: Schedule<S::Fault>, during: Duration) -> Result<()> {
        let end = Instant::now() + during;
        for incident in schedule {
            if Instant::now() + incident.after > end {
                break;
            }
            self.incident(&incident).await?;
            if !self.report.failures.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Runs one incident and waits until everything works again; the report shows if that took too long.
    ///
    /// # Errors
    /// As [`Drill::run`].
    pub async fn incident(&mut self, incident: &Incident<S::Fault>) -> Result<Course> {
        sleep(incident.after).await;
        let (began, began_at) = (Instant::now(), Utc::now());
        let refused = self.sender.refusals();
        let faults: Vec<S::Fault> = incident
            .faults
            .iter()
            .map(|(fault, ..)| *fault)
            .filter(|fault| self.system.can(*fault))
            .collect();
        for (time, step) in incident.steps() {
            sleep_until(began + time).await;
            match step {
                Step::Begin(fault) | Step::End(fault) if !self.system.can(fault) => {}
                Step::Begin(fault) => self
                    .system
                    .begin(fault, faults.len() == 1)
                    .await
                    .with_context(|| format!("cannot begin {fault}"))?,
                Step::End(fault) => self
                    .system
                    .end(fault)
                    .await
                    .with_context(|| format!("cannot end {fault}"))?,
            }
            self.look_at_memory();
        }
        let (ended, ended_at) = (Instant::now(), Utc::now());
        let well_again = timeout(S::RECOVERED_WITHIN, self.recovered()).await.is_ok();
        let course = Course {
            began_at,
            ended_at,
            refused: self.sender.refusals() - refused,
            recovery: ended.elapsed(),
        };
        let second = began.duration_since(self.started).as_secs();
        let line = format!(
            "{second:>5} s  {incident}; {} refused; {} after {:.1} s",
            course.refused,
            if well_again { "well again" } else { "NOT well" },
            course.recovery.as_secs_f64()
        );
        self.progress.say(&line);
        let failures = self.system.failures();
        for failure in &failures {
            self.progress.say(failure);
        }
        self.report.failures.extend(failures);
        if !well_again {
            self.report.failures.push(line);
        }
        for fault in &faults {
            let recoveries = self.report.recoveries.entry(fault.to_string()).or_default();
            recoveries.incidents += 1;
            recoveries.longest = recoveries.longest.max(course.recovery);
        }
        if self.system.must_refuse(&faults) {
            self.excuses.push((began, Instant::now()));
        }
        Ok(course)
    }

    /// Waits until the queues and the spool are empty, and returns the numbers of the events that were
    /// answered 2xx before and are not stored.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn lost(&self) -> Result<Vec<u64>> {
        let mut lost = self.sender.accepted_numbers();
        let end = Instant::now() + RECEIVED_WITHIN;
        loop {
            let stored = audit::stored(&self.pool, self.seed).await?;
            let before = lost.len();
            lost.retain(|number| !stored.contains(number));
            // Events on their way become fewer, lost events do not.
            if lost.len() == before && Instant::now() > end || lost.is_empty() {
                lost.sort_unstable();
                return Ok(lost);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Sends these again until each is accepted or a duplicate.
    pub async fn send_again(&self, numbers: &[u64]) {
        self.sender.send_again(numbers).await;
    }

    /// Stops sending, waits until all events are stored, and compares.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn finish(self) -> Result<Report> {
        let step = self.progress.step("letting everything come to rest");
        let deadline = Instant::now() + DRAINED_WITHIN;
        let sent = self.sender.finish(S::RECOVERED_WITHIN).await;
        let closed = self.system.close().await;
        let audit = audit::audit(&self.system, &self.pool, self.seed, deadline).await?;
        let mut report = self.report;
        match closed {
            Ok(notes) => report.notes = notes,
            Err(error) => report.failures.push(format!("{error:#}")),
        }
        report.missing = sent
            .accepted
            .iter()
            .filter(|number| !audit.stored.contains(number))
            .copied()
            .collect();
        report.needless_refusals = sent
            .refusals
            .iter()
            .filter(|refusal| {
                !self
                    .excuses
                    .iter()
                    .any(|(began, ended)| refusal.answered >= *began && refusal.sent <= *ended)
            })
            .count();
        report.without_retry_after = sent.refusals.iter().filter(|r| r.lacks_retry_after).count();
        report.slowest_refusal = sent
            .refusals
            .iter()
            .map(|refusal| refusal.answered - refusal.sent)
            .max()
            .unwrap_or_default();
        report.failures.extend(self.system.failures());
        report.failures.dedup();
        report.seed = self.seed;
        report.sent = sent;
        report.audit = audit;
        report.took = self.started.elapsed();
        step.done("everything has come to rest");
        Ok(report)
    }

    /// A direct connection to the database, as its owner.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Every service is ready, and new events of every kind pass through each replica and are stored.
    async fn recovered(&self) {
        while self.system.ready(S::RECOVERED_WITHIN).await.is_err() {
            sleep(Duration::from_millis(200)).await;
        }
        let canaries = self.sender.canaries().await;
        audit::until_stored(&self.pool, &canaries).await;
    }

    fn look_at_memory(&mut self) {
        for process in self.system.services() {
            let most = self
                .report
                .memory_mib
                .entry(process.name().to_owned())
                .or_default();
            *most = (*most).max(process.peak_memory_mib().unwrap_or_default());
        }
    }
}
