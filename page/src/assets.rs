//! Files of a page, in the program itself: it works without any other source.

use axum::Router;
use axum::http::header;
use axum::routing::get;

/// A file.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Where it is served.
    pub path: &'static str,
    /// What is in it.
    pub content: &'static str,
}

/// An [`Asset`]: the path at which it is served, and its file beside the source that says so.
#[macro_export]
macro_rules! asset {
    ($path:literal, $file:literal) => {
        $crate::assets::Asset {
            path: $path,
            content: include_str!($file),
        }
    };
}

/// Of every page. A page's own style sheet comes after `/base.css`.
const SHARED: [Asset; 5] = [
    asset!("/base.css", "../assets/base.css"),
    asset!("/icon.svg", "../assets/icon.svg"),
    asset!("/dom.js", "../assets/dom.js"),
    asset!("/get.js", "../assets/get.js"),
    asset!("/locale.js", "../assets/locale.js"),
];

impl Asset {
    /// Its media type, by how its path ends; without an ending it is a document.
    fn kind(self) -> &'static str {
        match self.path.rsplit_once('.') {
            Some((_, "js")) => "text/javascript; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "svg")) => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        }
    }
}

/// Routes to the files that every page needs, and to those of one page.
///
/// # Panics
/// Two files have the same path.
pub fn routes<S: Clone + Send + Sync + 'static>(own: &'static [Asset]) -> Router<S> {
    let all = SHARED.iter().chain(own);
    all.fold(Router::new(), |router, asset| {
        let answer = ([(header::CONTENT_TYPE, asset.kind())], asset.content);
        router.route(asset.path, get(async move || answer))
    })
}
