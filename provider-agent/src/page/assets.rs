//! The files of the page, in the program itself: it works without any other source.

/// A file.
pub(super) struct Asset {
    /// Where it is served.
    pub(super) path: &'static str,
    /// Its media type.
    pub(super) kind: &'static str,
    /// What is in it.
    pub(super) content: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

macro_rules! asset {
    ($path:literal, $kind:expr, $file:literal) => {
        Asset {
            path: $path,
            kind: $kind,
            content: include_str!($file),
        }
    };
}

pub(super) const ALL: [Asset; 15] = [
    asset!("/", "text/html; charset=utf-8", "index.html"),
    asset!("/page.css", STYLE, "page.css"),
    asset!("/icon.svg", "image/svg+xml", "icon.svg"),
    asset!("/page.js", SCRIPT, "page.js"),
    asset!("/overview.js", SCRIPT, "overview.js"),
    asset!("/net.js", SCRIPT, "net.js"),
    asset!("/phases.js", SCRIPT, "phases.js"),
    asset!("/members.js", SCRIPT, "members.js"),
    asset!("/load.js", SCRIPT, "load.js"),
    asset!("/graph.js", SCRIPT, "graph.js"),
    asset!("/format.js", SCRIPT, "format.js"),
    asset!("/dom.js", SCRIPT, "dom.js"),
    asset!("/get.js", SCRIPT, "get.js"),
    asset!("/uplot.js", SCRIPT, "uplot/uPlot.iife.min.js"),
    asset!("/uplot.css", STYLE, "uplot/uPlot.min.css"),
];
