//! The public port: listening, connection limits and connection timeouts. The routes are in
//! [`endpoint`].

use std::{
    future::ready,
    net::{SocketAddr, TcpListener},
    num::NonZero,
    time::Duration,
};

use actix_http::{HttpService, error::DispatchError};
use actix_server::Server;
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::{App, dev::AppConfig, rt::net::TcpStream, web};
use anyhow::Context;
use tokio::net::TcpSocket;

use crate::{
    batcher::BatcherHandle,
    client_stream::ClientStream,
    config::Config,
    endpoint::{self, Endpoint},
    metrics::Metrics,
};

/// From a connection's first byte to the end of its headers.
const HEADERS_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client may take to read the last answer before its connection is closed.
const DISCONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// The listen backlog: connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// Bounds for the number of open connections; the file limit decides between them.
const MIN_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS: usize = 20_000;

/// File descriptors kept free for everything else: connections to the stores, logs, the private
/// port.
const RESERVED_FILES: u64 = 256;

/// The usual default limit, assumed if the real one cannot be read.
const MIN_FILES: u64 = 1_024;

/// Binds the port and returns its address. The server runs when it is awaited or spawned.
pub fn bind(
    config: &Config,
    endpoint: Endpoint,
    batcher: BatcherHandle,
    metrics: Metrics,
) -> anyhow::Result<(Server, SocketAddr)> {
    let listener = listen(config.listen)
        .with_context(|| format!("cannot listen on {} (LISTEN)", config.listen))?;
    let address = listener.local_addr()?;
    let endpoint = web::Data::new(endpoint);
    let keep_alive = config.keep_alive;
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(max_connections() / workers)
        .disable_signals()
        // One second less than our own deadline, so that a hanging client does not make us miss it.
        .shutdown_timeout(config.process.shutdown_deadline.as_secs().max(2) - 1);
    let stopping = builder.graceful_shutdown_signal();
    let server = builder.listen("public", listener, move || {
        let app = App::new()
            .app_data(endpoint.clone())
            .app_data(web::Data::new(batcher.submitter()))
            .configure(endpoint::routes);
        let (metrics, stopping) = (metrics.clone(), stopping.clone());
        let http = HttpService::build()
            // Closes idle connections at shutdown, so that the shutdown does not wait for them.
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(keep_alive)
            .client_request_timeout(HEADERS_DEADLINE)
            .client_disconnect_timeout(DISCONNECT_DEADLINE)
            .local_addr(address)
            .h1(map_config(app, |_| AppConfig::default()));
        fn_service(move |stream: TcpStream| {
            let peer = stream.peer_addr().ok();
            ready(Ok::<_, DispatchError>((
                ClientStream::new(stream, metrics.clone()),
                peer,
            )))
        })
        .and_then(http)
    })?;
    Ok((server.run(), address))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // After a restart, connections of the old process may still be in TIME_WAIT on this port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn max_connections() -> usize {
    let file_limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(MIN_FILES);
    usize::try_from(file_limit.saturating_sub(RESERVED_FILES))
        .unwrap_or(usize::MAX)
        .clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}
