//! Replays many dead letters at a limited rate. Poison messages come last, and locked dead letters are tried
//! once more at the end.

use std::{collections::VecDeque, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    BATCH,
    attempt::Attempt,
    outcome::{Outcome, Replayed},
};
use crate::lock_holders::{FIRST_LOCK_WAIT, LAST_LOCK_WAIT};

/// The program that replays.
pub trait Host {
    /// Called before each batch, and while one is halved. `false` ends the replay.
    fn may_continue(&mut self) -> impl Future<Output = anyhow::Result<bool>> + Send;

    /// Replays a poison message, which could stop this process like the workers, or leaves it.
    fn dangerous(
        &mut self,
        webhook_id: String,
    ) -> impl Future<Output = anyhow::Result<Replayed>> + Send;

    /// Called with the final outcomes of some dead letters.
    fn finished(
        &mut self,
        replayed: Vec<Replayed>,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Called before so many dead letters that were locked are tried again.
    fn retrying(&mut self, locked: usize) -> anyhow::Result<()>;
}

/// The ids of the dead letters to replay, in their order.
#[derive(Debug, Default)]
pub struct Letters {
    ordinary: VecDeque<String>,
    /// Poison messages come last, so that they cannot stop the others.
    dangerous: VecDeque<String>,
}

impl Letters {
    /// Takes each id with whether it is a poison message.
    pub fn new(letters: impl IntoIterator<Item = (String, bool)>) -> Self {
        let mut this = Self::default();
        for (id, is_poison) in letters {
            this.push(id, !is_poison);
        }
        this
    }

    /// These were taken and not tried to the end.
    fn put_back(&mut self, ids: Vec<String>) {
        for id in ids.into_iter().rev() {
            self.ordinary.push_front(id);
        }
    }

    fn push(&mut self, id: String, is_ordinary: bool) {
        match is_ordinary {
            true => self.ordinary.push_back(id),
            false => self.dangerous.push_back(id),
        }
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        self.ordinary.len() + self.dangerous.len()
    }

    /// Whether there are no ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one of them is a poison message.
    pub fn has_dangerous(&self) -> bool {
        !self.dangerous.is_empty()
    }
}

/// A replay of many dead letters.
pub struct Replay<'a, H> {
    /// How each batch is replayed.
    pub attempt: &'a Attempt,
    /// The limit of events per second.
    pub rate: u32,
    /// The program that replays.
    pub host: &'a mut H,
}

impl<H: Host> Replay<'_, H> {
    /// Replays all until `stop`, and tries those that were locked once more at the end. Returns how many
    /// are left.
    pub async fn all(
        &mut self,
        mut letters: Letters,
        stop: &CancellationToken,
    ) -> anyhow::Result<usize> {
        let mut locked = Letters::default();
        self.round(&mut letters, stop, Some(&mut locked)).await?;
        if letters.is_empty() && !locked.is_empty() {
            self.host.retrying(locked.len())?;
            self.round(&mut locked, stop, None).await?;
        }
        Ok(letters.len() + locked.len())
    }

    /// Replays these until `stop`, and removes them from `letters`. Those that are locked are moved to
    /// `later`, if given.
    async fn round(
        &mut self,
        letters: &mut Letters,
        stop: &CancellationToken,
        mut later: Option<&mut Letters>,
    ) -> anyhow::Result<()> {
        let lock_wait = match later {
            Some(_) => FIRST_LOCK_WAIT,
            None => LAST_LOCK_WAIT,
        };
        let mut next = Instant::now();
        while !letters.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(next) => {}
            }
            if !self.host.may_continue().await? {
                break;
            }
            let mut step = self.step(letters, lock_wait).await;
            if let Some(later) = &mut later {
                let is_locked = |one: &mut Replayed| one.outcome == Outcome::Locked;
                for one in step.replayed.extract_if(.., is_locked) {
                    later.push(one.webhook_id, step.is_ordinary);
                }
            }
            self.host.finished(step.replayed).await?;
            step.ended?;
            let pause = Duration::from_secs_f64(step.took as f64 / f64::from(self.rate));
            next = next.max(Instant::now() - pause) + pause;
        }
        Ok(())
    }

    /// Replays the next batch, or if there is none, the next poison message.
    async fn step(&mut self, letters: &mut Letters, lock_wait: Duration) -> Step {
        let size = BATCH.min(self.rate as usize).min(letters.ordinary.len());
        let batch: Vec<String> = letters.ordinary.drain(..size).collect();
        let mut replayed = Vec::new();
        let ended = match letters.dangerous.pop_front_if(|_| batch.is_empty()) {
            Some(id) => self.host.dangerous(id).await.map(|one| replayed.push(one)),
            None => (self.attempt)
                .batch(batch, lock_wait, self.host, &mut replayed)
                .await
                .map(|left| letters.put_back(left)),
        };
        Step {
            took: size.max(1),
            is_ordinary: size > 0,
            replayed,
            ended,
        }
    }
}

/// The result of one step.
struct Step {
    took: usize,
    is_ordinary: bool,
    replayed: Vec<Replayed>,
    /// An error does not undo what was done before it.
    ended: anyhow::Result<()>,
}
