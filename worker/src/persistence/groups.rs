//! Stores events in groups, and makes the groups smaller after failures.
//!
//! A group that fails is judged ([`crate::judge`]), and then retried, divided, or put behind the
//! other groups. So the healthy events are stored first, and an offender that needs several
//! attempts does not delay them. While Postgres itself fails, the whole batch waits.

use std::{collections::VecDeque, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Abandoned, Hold, Persistence};
use crate::{
    due_rows::LEASE,
    judge::{Class, History, Rehearsal, Size, Verdict, judge},
    problem,
    record::Record,
    spool_writer::{Claims, Deferral},
    store::Timeouts,
    work::Work,
};

/// How long a batch is held while Postgres is down. RabbitMQ closes a channel whose messages stay
/// unacknowledged for 30 minutes; the messages should return to the queue long before that.
const HOLD_LIMIT: Duration = Duration::from_secs(600);

/// The pause between two tries of an event that may be at fault.
const NEXT_TRY: Duration = Duration::from_millis(200);

/// After a success, a group needs no rehearsal of its own for this time.
const SUCCESS_VALID_FOR: Duration = Duration::from_secs(1);

/// The number of groups into which a batch with a slow event is divided.
const SCATTERED_GROUPS: usize = 32;

/// What to do with one event. All tasks of a group are of one kind.
#[derive(Clone, Copy)]
pub(crate) enum Task<'t> {
    /// Store it.
    Store(&'t Work, &'t Record),
    /// Spool it without parsing it, to be handled alone.
    Isolate(&'t Work),
    /// Spool it for later.
    Defer(Deferral<'t>),
}

/// Why an event was not stored.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Postgres refused it, for this reason.
    Refused(String),
    /// Another session has locked a row that it changes.
    Locked,
}

/// Events that share a transaction.
struct Group<'t> {
    tasks: Vec<Task<'t>>,
    history: History,
    /// Whether the group is a part of a batch with slow events.
    scattered: bool,
    /// When to rehearse and then try it again.
    rehearse_at: Option<Instant>,
}

impl<'t> Group<'t> {
    fn new(tasks: Vec<Task<'t>>) -> Self {
        Self {
            tasks,
            history: History::default(),
            scattered: false,
            rehearse_at: None,
        }
    }

    fn size(&self) -> Size {
        match self.tasks.len() {
            1 => Size::One,
            _ => Size::Many,
        }
    }

    fn timeouts(&self) -> Timeouts {
        match self.tasks[..] {
            [Task::Store(work, _)] if work.attempts > 0 => Timeouts::Long,
            _ if self.scattered => Timeouts::Shortest,
            _ => Timeouts::Short,
        }
    }

    fn halves(mut self) -> [Self; 2] {
        let second = self.tasks.split_off(self.tasks.len() / 2);
        [Self::new(self.tasks), Self::new(second)]
    }

    /// Divides into small groups, few of which contain a slow event; a small group is divided into
    /// single events. Halving would cost a timeout each time.
    fn scattered(mut self) -> impl Iterator<Item = Self> {
        let size = (self.tasks.len() / SCATTERED_GROUPS).max(1);
        std::iter::from_fn(move || {
            let next = self.tasks.len().checked_sub(1)? / size * size;
            Some(Self {
                scattered: true,
                ..Self::new(self.tasks.split_off(next))
            })
        })
    }
}

pub(crate) struct BatchRun<'r> {
    persistence: &'r Persistence,
    claims: &'r Claims<'r>,
    abandon: &'r CancellationToken,
    delays: Box<dyn Iterator<Item = Duration> + Send + Sync>,
    hold: Option<(Hold<'r>, Instant)>,
    claims_renewed_at: Instant,
    last_success_at: Option<Instant>,
    rehearsal_error: String,
}

/// The groups still to do, and the events that could not be stored.
struct Progress<'t> {
    groups: VecDeque<Group<'t>>,
    failures: Vec<(Task<'t>, Failure)>,
}

impl<'r> BatchRun<'r> {
    pub(crate) fn new(
        persistence: &'r Persistence,
        claims: &'r Claims<'r>,
        abandon: &'r CancellationToken,
    ) -> Self {
        Self {
            persistence,
            claims,
            abandon,
            delays: Box::new(shared::broker::reconnect_delays()),
            hold: None,
            claims_renewed_at: Instant::now(),
            last_success_at: None,
            rehearsal_error: String::new(),
        }
    }

    /// Completes all tasks that can be completed, and waits while Postgres is down. Returns the
    /// others.
    pub(crate) async fn complete<'t>(
        &mut self,
        tasks: Vec<Task<'t>>,
    ) -> Result<Vec<(Task<'t>, Failure)>, Abandoned> {
        let mut progress = Progress {
            groups: VecDeque::from([Group::new(tasks)]),
            failures: Vec::new(),
        };
        while let Some(mut group) = progress.groups.pop_front() {
            if group.tasks.is_empty() {
                continue;
            }
            self.renew_claims(LEASE / 3).await;
            if let Some(at) = group.rehearse_at.take() {
                self.wait_until(at).await?;
                match self.rehearse(&group).await {
                    Ok(rehearsal) => group.history.rehearsal = Some(rehearsal),
                    Err(reason) => {
                        group.rehearse_at = Some(Instant::now());
                        progress.groups.push_front(group);
                        self.hold(reason).await?;
                        continue;
                    }
                }
                if group.history.rehearsal == Some(Rehearsal::Failed) {
                    group.history.confirmed = 0;
                    group.rehearse_at = Some(Instant::now());
                    progress.groups.push_front(group);
                    self.hold(self.rehearsal_error.clone()).await?;
                    continue;
                }
            }
            match self
                .persistence
                .attempt(&group.tasks, group.timeouts())
                .await
            {
                Ok(()) => self.note_success(),
                Err(error) => {
                    group.history.failed();
                    self.failed(group, &error, &mut progress).await?;
                }
            }
        }
        Ok(progress.failures)
    }

    /// Carries out the verdict on a failed group.
    async fn failed<'t>(
        &mut self,
        mut group: Group<'t>,
        error: &shared::database::TransactionError,
        progress: &mut Progress<'t>,
    ) -> Result<(), Abandoned> {
        let class = Class::of(error);
        loop {
            match judge(class, group.size(), &group.history) {
                // One event may take long, so the others go first.
                Verdict::Retry if group.size() == Size::One => progress.groups.push_back(group),
                Verdict::Retry => progress.groups.push_front(group),
                Verdict::Rehearse => {
                    let rehearsal = self.rehearse_group(&group).await;
                    group.history.rehearsal = Some(rehearsal);
                    continue;
                }
                Verdict::FindLocked => {
                    group.history.locks_known = true;
                    let is_locked = self.persistence.locked(&group.tasks).await;
                    if !is_locked.contains(&true) {
                        continue;
                    }
                    let mut free = Vec::new();
                    for (task, is_locked) in group.tasks.into_iter().zip(is_locked) {
                        if is_locked {
                            progress.failures.push((task, Failure::Locked));
                        } else {
                            free.push(task);
                        }
                    }
                    progress.groups.push_front(Group::new(free));
                }
                Verdict::Halve => progress.groups.extend(group.halves()),
                Verdict::Scatter => progress.groups.extend(group.scattered()),
                Verdict::RehearseLater => {
                    group.rehearse_at = Some(Instant::now() + NEXT_TRY);
                    progress.groups.push_back(group);
                }
                Verdict::Hold => {
                    progress.groups.push_front(group);
                    self.hold(problem::refusal(error)).await?;
                }
                Verdict::Defer => progress
                    .failures
                    .extend(group.tasks.into_iter().map(|task| (task, Failure::Locked))),
                Verdict::Blame => progress.failures.extend(
                    group
                        .tasks
                        .into_iter()
                        .map(|task| (task, Failure::Refused(problem::refusal(error)))),
                ),
            }
            return Ok(());
        }
    }

    /// Rehearses for a group. A recent success counts as a rehearsal.
    async fn rehearse_group(&mut self, group: &Group<'_>) -> Rehearsal {
        let succeeded_recently = self
            .last_success_at
            .is_some_and(|at| at.elapsed() < SUCCESS_VALID_FOR);
        if succeeded_recently && group.size() == Size::Many {
            return Rehearsal::Passed;
        }
        self.rehearse(group).await.unwrap_or(Rehearsal::Failed)
    }

    /// Returns an error if Postgres is down.
    async fn rehearse(&mut self, group: &Group<'_>) -> Result<Rehearsal, String> {
        match self.persistence.rehearse(&group.tasks).await {
            Ok(()) => {
                self.last_success_at = Some(Instant::now());
                Ok(Rehearsal::Passed)
            }
            Err(error) if Class::of(&error) == Class::Away => Err(error.to_string()),
            Err(error) => {
                self.rehearsal_error = format!(
                    "a harmless event cannot be stored either: {}",
                    problem::refusal(&error)
                );
                Ok(Rehearsal::Failed)
            }
        }
    }

    fn note_success(&mut self) {
        self.last_success_at = Some(Instant::now());
        if self.hold.take().is_some() {
            self.delays = Box::new(shared::broker::reconnect_delays());
            info!(family = %self.persistence.family(), "postgres is back; going on");
        }
    }

    async fn hold(&mut self, reason: String) -> Result<(), Abandoned> {
        let since = match &self.hold {
            Some((_, since)) => *since,
            None => {
                warn!(
                    family = %self.persistence.family(),
                    error = reason,
                    "postgres cannot store events now; holding them"
                );
                let since = Instant::now();
                self.hold = Some((Hold::new(self.persistence), since));
                since
            }
        };
        self.persistence.note_reason(reason);
        if since.elapsed() > HOLD_LIMIT {
            return self.give_up().await;
        }
        self.renew_claims(Duration::ZERO).await;
        let delay = self.delays.next().unwrap_or(LEASE);
        tokio::select! {
            () = self.abandon.cancelled() => self.give_up().await,
            () = sleep(delay) => Ok(()),
        }
    }

    async fn wait_until(&mut self, at: Instant) -> Result<(), Abandoned> {
        tokio::select! {
            () = self.abandon.cancelled() => self.give_up().await,
            () = sleep_until(at) => Ok(()),
        }
    }

    async fn give_up(&self) -> Result<(), Abandoned> {
        self.claims.release().await;
        Err(Abandoned)
    }

    async fn renew_claims(&mut self, after: Duration) {
        if self.claims_renewed_at.elapsed() >= after {
            self.claims.renew().await;
            self.claims_renewed_at = Instant::now();
        }
    }
}
