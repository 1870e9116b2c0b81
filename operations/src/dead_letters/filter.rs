//! Which dead letters a command is about.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};
use shared::Family;
use sqlx::{Postgres, QueryBuilder};
use worker::problem::Kind;

use crate::{duration, family};

/// Whether they still have to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has dismissed them.
    Open,
    /// Somebody has.
    Dismissed,
}

/// The filters that all commands share; what is given has to be met all together.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which dead letters")]
pub struct Filter {
    /// Only events of this family: export-job, vendor or other
    #[arg(long, value_parser = family::parse)]
    pub family: Option<Family>,

    /// Only problems of this kind (not-an-event, wrong-data, refused, stopped-worker, conflict,
    /// unidentified, distrusted, foreign-company, company-change or misrouted), or, if it is none of these,
    /// problems with this text in them
    // An empty one, as of a script's unset variable, would be no filter at all.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub problem: Option<String>,

    /// Only events of this type, such as v1.vendor.created
    #[arg(long = "type", value_parser = NonEmptyStringValueParser::new())]
    pub event_type: Option<String>,

    /// Only events of this company
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub company: Option<String>,

    /// Only those stored longer ago than this, such as 2h
    #[arg(long, value_parser = duration::parse)]
    pub older_than: Option<Duration>,

    /// Only those stored since then, such as 30m
    #[arg(long, value_parser = duration::parse)]
    pub newer_than: Option<Duration>,

    /// Only this webhook id; may be repeated
    #[arg(long = "id", value_name = "WEBHOOK_ID")]
    pub ids: Vec<String>,
}

impl Filter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        let Self {
            family,
            problem,
            event_type,
            company,
            older_than,
            newer_than,
            ids,
        } = self;
        family.is_none()
            && problem.is_none()
            && event_type.is_none()
            && company.is_none()
            && older_than.is_none()
            && newer_than.is_none()
            && ids.is_empty()
    }

    /// What was given, for the record of who did what.
    pub fn describe(&self) -> Value {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
        json!({
            "family": self.family.map(Family::name),
            "problem": self.problem,
            "type": self.event_type,
            "company": self.company,
            "older_than_s": seconds(self.older_than),
            "newer_than_s": seconds(self.newer_than),
            "ids": (!self.ids.is_empty()).then_some(&self.ids),
        })
    }

    /// Appends the filter to a query on `events`, as its `where`.
    pub fn push(&self, state: State, query: &mut QueryBuilder<Postgres>) {
        query.push(" where problem is not null and dismissed_at is");
        query.push(match state {
            State::Open => " null",
            State::Dismissed => " not null",
        });
        if let Some(family) = self.family {
            family::push(family, query);
        }
        if let Some(problem) = &self.problem {
            push_problem(problem, query);
        }
        if let Some(event_type) = &self.event_type {
            query.push(" and event_type = ").push_bind(event_type);
        }
        if let Some(company) = &self.company {
            query.push(" and company_id = ").push_bind(company);
        }
        // By Postgres' clock, which has set these times.
        if let Some(age) = self.older_than {
            query.push(" and stored_at < now() - make_interval(secs => ");
            query.push_bind(age.as_secs_f64()).push(")");
        }
        if let Some(age) = self.newer_than {
            query.push(" and stored_at > now() - make_interval(secs => ");
            query.push_bind(age.as_secs_f64()).push(")");
        }
        if !self.ids.is_empty() {
            query.push(" and webhook_id = any(");
            query.push_bind(&self.ids).push(")");
        }
    }
}

fn push_problem(problem: &str, query: &mut QueryBuilder<Postgres>) {
    let Some(kind) = Kind::named(problem) else {
        query.push(" and position(lower(");
        query.push_bind(problem.to_owned());
        query.push(") in lower(problem)) > 0");
        return;
    };
    kind.push_condition(query);
}
