//! The files of the operator's page.

use ::page::asset;
use ::page::assets::Asset;

pub(super) const OWN: [Asset; 12] = [
    asset!("/", "index.html"),
    asset!("/page.css", "page.css"),
    asset!("/page.js", "page.js"),
    asset!("/overview.js", "overview.js"),
    asset!("/net.js", "net.js"),
    asset!("/phases.js", "phases.js"),
    asset!("/members.js", "members.js"),
    asset!("/load.js", "load.js"),
    asset!("/graph.js", "graph.js"),
    asset!("/format.js", "format.js"),
    asset!("/uplot.js", "uplot/uPlot.iife.min.js"),
    asset!("/uplot.css", "uplot/uPlot.min.css"),
];
