//! From an id to the event or the resource that has it.

use actix_web::{HttpResponse, http::header, web};
use serde::Deserialize;

use crate::{error::PageError, store::Store, text};

#[derive(Deserialize)]
pub(crate) struct Query {
    #[serde(default)]
    id: String,
}

/// `GET /find?id=…`: to the event of this id, or the resource, or else to what the receipts know.
pub(crate) async fn find(
    query: web::Query<Query>,
    store: web::Data<Store>,
) -> Result<HttpResponse, PageError> {
    let id = query.id.trim();
    let is_resource: bool = store
        .look(async |connection| {
            sqlx::query_scalar(
                "select not exists (select from events where webhook_id = $1)
                    and (exists (select from export_jobs where id = $1)
                         or exists (select from vendors where id = $1))",
            )
            .bind(id)
            .fetch_one(connection)
            .await
        })
        .await?;
    let path = if is_resource { "/resource" } else { "/event" };
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, text::href(path, &[("id", id)])))
        .finish())
}
