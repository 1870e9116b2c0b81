//! What operators change of dead letters, under an account of its own.
//!
//! Each action opens a connection and closes it: actions are rare, and the account then has none at
//! rest. Replays are started here, and [`runner`] runs them.

pub mod replays;
pub mod runner;

use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest, web};
use anyhow::Context;
use operations::{
    Run,
    database::{self, Connection},
    dead_letters::{Change, Filter},
};
use serde_json::Value;
use shared::{Program, database::DatabaseUrl};
use tokio::sync::{Notify, Semaphore};

use crate::{
    access::{Access, Role, User},
    error::PageError,
};

/// Rows of one transaction: few enough to hold no lock for long.
const BATCH: usize = 1_000;

/// Actions at once, each with a connection; the others wait.
const MOST_AT_ONCE: usize = 4;

/// Changes dead letters.
#[derive(Clone)]
pub struct Operations {
    /// `None` where nobody can act.
    url: Option<DatabaseUrl>,
    places: Arc<Semaphore>,
    /// Wakes the runner.
    news: Arc<Notify>,
}

/// What the one who asks can do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Look.
    Viewer,
    /// Act, if the console had an account for it.
    WithoutAccount,
    /// Act.
    Operator,
}

/// How many an action has changed, and why not all of them.
#[derive(Debug)]
pub struct Changed {
    /// They stay changed.
    pub rows: usize,
    /// What ended it early.
    pub error: Option<anyhow::Error>,
}

impl Operations {
    /// With the account's database, which is connected to when somebody acts.
    pub fn new(url: Option<DatabaseUrl>) -> Self {
        Self {
            url,
            places: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            news: Arc::default(),
        }
    }

    /// What the one who asks can do here.
    pub fn standing(&self, request: &HttpRequest) -> Standing {
        match (role(request), &self.url) {
            (Role::Viewer, _) => Standing::Viewer,
            (Role::Operator, None) => Standing::WithoutAccount,
            (Role::Operator, Some(_)) => Standing::Operator,
        }
    }

    /// Refuses all who cannot act.
    ///
    /// # Errors
    /// With why they cannot.
    pub fn check(&self, request: &HttpRequest) -> Result<(), PageError> {
        match self.standing(request) {
            Standing::Viewer => Err(PageError::NotOperator),
            Standing::WithoutAccount => Err(PageError::NoOperatorAccount),
            Standing::Operator => Ok(()),
        }
    }

    /// Changes these. `filter` says how they were chosen, for the record.
    pub async fn change(
        &self,
        change: Change<'_>,
        ids: &[String],
        filter: Value,
        person: Option<&str>,
    ) -> Changed {
        let mut rows = 0;
        let done = self.change_all(change, ids, filter, person, &mut rows);
        let error = done.await.err();
        Changed { rows, error }
    }

    async fn change_all(
        &self,
        change: Change<'_>,
        ids: &[String],
        filter: Value,
        person: Option<&str>,
        changed: &mut usize,
    ) -> anyhow::Result<()> {
        let _place = self.places.acquire().await?;
        let mut connection = self.connect().await?;
        Run::check(&mut connection).await?;
        let run = Run::new(change.action(), filter, person);
        // Without an id a filter would let everything through; no chunk is empty.
        for ids in ids.chunks(BATCH) {
            let filter = Filter {
                ids: ids.to_vec(),
                ..Filter::default()
            };
            *changed += change.batch(&mut connection, &filter, &run).await?.len();
        }
        connection.close().await;
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let url = self.url.as_ref().context("there is no account for it")?;
        Ok(database::connect_as(url, Program::ConsoleOperator.name()).await?)
    }
}

/// Who acts, where that is known.
pub fn person(request: &HttpRequest) -> Option<String> {
    let extensions = request.extensions();
    extensions.get::<User>().map(|user| user.name.clone())
}

fn role(request: &HttpRequest) -> Role {
    if let Some(user) = request.extensions().get::<User>() {
        return user.role;
    }
    match request
        .app_data::<web::Data<Access>>()
        .map(|access| &***access)
    {
        Some(Access::Loopback(role)) => *role,
        Some(Access::SignedIn(_) | Access::Proxy(_)) | None => Role::Viewer,
    }
}
