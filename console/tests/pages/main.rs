//! The console's pages, asked for as a browser does, on a real Postgres.

mod acting;
mod app;
mod behind_a_proxy;
mod desk;
mod documentation;
mod events;
mod export;
mod hostile;
mod live;
mod outage;
mod overview;
mod problems;
mod record;
mod replaying;
mod resource;
mod sample;
mod signing_in;
mod strangers;
