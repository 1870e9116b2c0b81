//! What is around every page: title, menu, who is signed in.

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use askama::Template;

use crate::{
    access::{Access, User},
    assets::{ASSETS, Assets},
    error::PageError,
    text,
};

/// The parts of the console, as in the menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Section {
    Overview,
    Events,
    DeadLetters,
    Replays,
    Receipts,
    Record,
    /// A page that the menu does not have.
    None,
}

/// What is around a page.
pub struct Frame {
    /// For the tab.
    pub title: String,
    /// Which part it belongs to.
    pub section: Section,
    /// Who is signed in, unless everybody on this machine may look.
    pub user: Option<String>,
    /// Whether signing out is the console's affair.
    pub can_sign_out: bool,
    /// Styles and scripts.
    pub assets: &'static Assets,
    is_within: bool,
}

impl Frame {
    /// The frame of a page with this title.
    pub fn new(request: &HttpRequest, title: &str, section: Section) -> Self {
        let user = request
            .extensions()
            .get::<User>()
            .map(|user| user.name.clone());
        let access = request.app_data::<web::Data<Access>>();
        let needs_no_user = access.is_some_and(|access| matches!(***access, Access::Loopback(_)));
        let can_sign_out = access.is_some_and(|access| matches!(***access, Access::SignedIn(_)));
        Self {
            title: text::plain(title),
            section,
            can_sign_out,
            is_within: user.is_some() || needs_no_user,
            user,
            assets: &ASSETS,
        }
    }

    /// Whether the menu is of use: not to one who has to sign in.
    pub fn is_within(&self) -> bool {
        self.is_within
    }

    /// The menu: where, what, and whether this is where one is.
    pub fn menu(&self) -> [(&'static str, &'static str, bool); 6] {
        [
            ("/", "Overview", Section::Overview),
            ("/events", "Events", Section::Events),
            ("/dead-letters", "Dead letters", Section::DeadLetters),
            ("/replays", "Replays", Section::Replays),
            ("/receipts", "Receipts", Section::Receipts),
            ("/record", "Record", Section::Record),
        ]
        .map(|(href, name, section)| (href, name, section == self.section))
    }
}

/// A page as an answer.
pub fn html(page: &impl Template) -> Result<HttpResponse, PageError> {
    let html = page.render()?;
    Ok(HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body(html))
}
