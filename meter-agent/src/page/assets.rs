//! The files of the household's page.

use ::page::asset;
use ::page::assets::Asset;

pub(super) const OWN: [Asset; 7] = [
    asset!("/", "index.html"),
    asset!("/page.css", "page.css"),
    asset!("/page.js", "page.js"),
    asset!("/status.js", "status.js"),
    asset!("/history.js", "history.js"),
    asset!("/chart.js", "chart.js"),
    asset!("/format.js", "format.js"),
];
