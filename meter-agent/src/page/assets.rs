//! The files of the household's page.

use ::page::assets::Asset;

macro_rules! asset {
    ($path:literal, $file:literal) => {
        Asset {
            path: $path,
            content: include_str!($file),
        }
    };
}

pub(super) const OWN: [Asset; 7] = [
    asset!("/", "index.html"),
    asset!("/page.css", "page.css"),
    asset!("/page.js", "page.js"),
    asset!("/status.js", "status.js"),
    asset!("/history.js", "history.js"),
    asset!("/chart.js", "chart.js"),
    asset!("/format.js", "format.js"),
];
