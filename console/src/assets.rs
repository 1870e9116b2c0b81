//! Styles and scripts, part of the binary, under names that change with their content.

use std::sync::LazyLock;

use actix_web::{HttpResponse, http::header, web};
use sha2::{Digest, Sha256};

use crate::error::PageError;

/// One file.
pub struct Asset {
    /// Its address.
    pub path: String,
    kind: &'static str,
    content: &'static str,
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, content: &'static str) -> Self {
        let hash = hex::encode(&Sha256::digest(content)[..8]);
        Self {
            path: format!("/assets/{stem}.{hash}.{extension}"),
            kind,
            content,
        }
    }
}

/// All files, by what they are for.
pub struct Assets {
    /// How everything looks.
    pub css: Asset,
    /// What scripts add: copying, and saying that a page is not fresh any more.
    pub js: Asset,
    /// Fetches parts of pages again.
    pub htmx: Asset,
    /// For the tab.
    pub icon: Asset,
}

/// The files of this build.
pub static ASSETS: LazyLock<Assets> = LazyLock::new(|| {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    Assets {
        css: Asset::new(
            "console",
            "css",
            "text/css; charset=utf-8",
            include_str!("../assets/console.css"),
        ),
        js: Asset::new(
            "console",
            "js",
            SCRIPT,
            include_str!("../assets/console.js"),
        ),
        htmx: Asset::new("htmx", "js", SCRIPT, include_str!("../assets/htmx.min.js")),
        icon: Asset::new(
            "icon",
            "svg",
            "image/svg+xml",
            include_str!("../assets/icon.svg"),
        ),
    }
});

/// `GET /assets/…`
pub async fn asset(request: actix_web::HttpRequest) -> Result<HttpResponse, PageError> {
    let all = [&ASSETS.css, &ASSETS.js, &ASSETS.htmx, &ASSETS.icon];
    let asset = all.into_iter().find(|asset| asset.path == request.path());
    let asset = asset.ok_or(PageError::NotFound("No such file"))?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, asset.kind))
        .insert_header((header::CACHE_CONTROL, "public, max-age=31536000, immutable"))
        .body(web::Bytes::from_static(asset.content.as_bytes())))
}
