//! The port: which pages there are, and how connections live.

use std::{net::SocketAddr, time::Duration};

use actix_web::{
    App, HttpServer,
    dev::Server,
    middleware::from_fn,
    web::{self, FormConfig, QueryConfig},
};
use anyhow::Context;

use crate::{
    access::{Access, guard, sign_in},
    assets,
    config::Config,
    error::PageError,
    metrics::Metrics,
    operations::Operations,
    pages::{self, export::Exports, live::Views, replay::PATH as REPLAY},
    store::Store,
    watch::Watch,
};

/// Pages are for people: a few threads do.
const WORKERS: usize = 2;

/// Longer than an overview waits between two looks.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const HEADERS_DEADLINE: Duration = Duration::from_secs(5);
const MOST_CONNECTIONS: usize = 1_000;
/// Of a form that is posted.
const MOST_FORM_BYTES: usize = 8 * 1024;

/// Where operators act on dead letters.
pub(crate) const ACT: &str = "/dead-letters/{action:dismiss|restore}";

/// What pages need.
#[derive(Clone)]
pub struct Parts {
    /// Postgres.
    pub store: Store,
    /// The figures of the overview.
    pub watch: Watch,
    /// Who may look.
    pub access: Access,
    /// What operators do.
    pub operations: Operations,
    /// What is counted.
    pub metrics: Metrics,
    /// Live views, which end before the console does.
    pub views: Views,
}

/// Binds the port and says where. The server runs when it is awaited or spawned.
pub fn bind(config: &Config, parts: Parts) -> anyhow::Result<(Server, SocketAddr)> {
    let exports = Exports::default();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(parts.store.clone()))
            .app_data(web::Data::new(parts.watch.clone()))
            .app_data(web::Data::new(parts.access.clone()))
            .app_data(web::Data::new(parts.metrics.clone()))
            .app_data(web::Data::new(parts.operations.clone()))
            .app_data(web::Data::new(exports.clone()))
            .app_data(web::Data::new(parts.views.clone()))
            .app_data(QueryConfig::default().error_handler(|_, _| {
                PageError::BadAddress("The address has fields that cannot be read.".to_owned())
                    .into()
            }))
            .app_data(
                FormConfig::default()
                    .limit(MOST_FORM_BYTES)
                    .error_handler(|_, _| {
                        PageError::BadAddress("The form cannot be read.".to_owned()).into()
                    }),
            )
            .wrap(from_fn(guard::check))
            .wrap(from_fn(guard::finish))
            .configure(routes)
    })
    .workers(WORKERS)
    .max_connections(MOST_CONNECTIONS)
    .keep_alive(KEEP_ALIVE)
    .client_request_timeout(HEADERS_DEADLINE)
    .disable_signals()
    .shutdown_timeout(config.process.shutdown_deadline.as_secs().max(2) - 1)
    .bind(config.listen)
    .with_context(|| format!("cannot listen on {} (LISTEN)", config.listen))?;
    let address = server.addrs()[0];
    Ok((server.run(), address))
}

fn routes(app: &mut web::ServiceConfig) {
    app.route("/", web::get().to(pages::overview::page))
        .route("/overview/figures", web::get().to(pages::overview::figures))
        .route("/events", web::get().to(pages::events::page))
        .route("/events/export", web::get().to(pages::export::export))
        .route("/events/live", web::get().to(pages::live::live))
        .route("/event", web::get().to(pages::event::page))
        .route("/event/body", web::get().to(pages::event::body))
        .route("/resource", web::get().to(pages::resource::page))
        .route("/dead-letters", web::get().to(pages::dead_letters::page))
        .route(ACT, web::get().to(pages::act::page))
        .route(ACT, web::post().to(pages::act::act))
        .route(REPLAY, web::get().to(pages::replay::page))
        .route(REPLAY, web::post().to(pages::replay::start))
        .route("/dead-letters/try", web::get().to(pages::replay::page))
        .route("/dead-letters/try", web::post().to(pages::replay::try_them))
        .route("/replays", web::get().to(pages::replays::list))
        .route("/replays/{id}", web::get().to(pages::replays::page))
        .route(
            "/replays/{id}/progress",
            web::get().to(pages::replays::progress),
        )
        .route("/replays/{id}/stop", web::post().to(pages::replays::stop))
        .route("/receipts", web::get().to(pages::receipts::page))
        .route("/record", web::get().to(pages::record::page))
        .route("/find", web::get().to(pages::find::find))
        .route("/sign-in", web::get().to(sign_in::form))
        .route("/sign-in", web::post().to(sign_in::sign_in))
        .route("/sign-out", web::post().to(sign_in::sign_out))
        .route("/assets/{file}", web::get().to(assets::asset))
        .default_service(web::to(async || {
            Err::<actix_web::HttpResponse, _>(PageError::NotFound("There is no such page."))
        }));
}
