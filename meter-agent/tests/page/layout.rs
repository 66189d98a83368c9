//! How the page looks: on a phone and on a desk, light and dark, in each state.

use serde_json::{Value, json};

use crate::browser::{Browser, Scheme};
use crate::{is_clean, open, page_of, polls};

const SAMPLES: [&str; 16] = [
    "taking-part",
    "first-start",
    "waiting",
    "no-member",
    "first-round",
    "just-over",
    "waiting-for-roster",
    "refused-roster",
    "paused",
    "no-time",
    "clock-jumped",
    "stopped",
    "stopped-earlier",
    "leaving",
    "certificate-ends",
    "long-texts",
];

const CHECKS: &str = include_str!("checks.js");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_fits_and_can_be_read() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    for sample in SAMPLES {
        stub.state().status = crate::stub::status(sample);
        for (width, height, device) in [(360, 780, "phone"), (1200, 900, "desk")] {
            for scheme in [Scheme::Light, Scheme::Dark] {
                page.view(width, height, scheme).await;
                open(&page, &stub).await;
                let name = format!("{sample}-{device}-{scheme:?}").to_lowercase();
                assert_eq!(page.script(CHECKS, vec![]).await, json!([]), "{name}");
                page.screenshot(&name).await;
                let opened =
                    "for (const each of document.querySelectorAll('details')) each.open = true";
                page.script(opened, vec![]).await;
                page.until_text("#day-charts tbody", "–").await;
                assert_eq!(
                    page.script(CHECKS, vec![]).await,
                    json!([]),
                    "{name}, all open"
                );
            }
        }
    }
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialogs_and_the_lost_connection_fit_and_can_be_read() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    for scheme in [Scheme::Light, Scheme::Dark] {
        page.view(360, 640, scheme).await;
        open(&page, &stub).await;
        for (opener, dialog) in [("#exit", "#exit-dialog"), ("#delete", "#delete-dialog")] {
            page.click(opener).await;
            if dialog == "#exit-dialog" {
                page.click("#exit-dialog [type=submit]").await;
                page.until_text("#exit-error", "These are not").await;
            }
            assert_eq!(
                page.script(CHECKS, vec![]).await,
                json!([]),
                "{dialog} {scheme:?}"
            );
            page.click(&format!("{dialog} .cancel")).await;
            page.until_hidden(dialog).await;
        }
        stub.state().is_away = true;
        page.until_text("#no-connection", "No connection").await;
        assert_eq!(
            page.script(CHECKS, vec![]).await,
            json!([]),
            "no connection, {scheme:?}"
        );
        let name = format!("no-connection-phone-{scheme:?}").to_lowercase();
        page.screenshot(&name).await;
        stub.state().is_away = false;
        page.until_hidden("#no-connection").await;
    }
}

/// `docs/household-page.png`, which the README shows, is this picture.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_of_the_readme_ends_with_a_section() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    page.view(848, 900, Scheme::Light).await;
    open(&page, &stub).await;
    let section = "section[aria-labelledby=leaves-title]";
    let picture = page.screenshot_to("household-page", section).await;
    println!("see {}", picture.display());
    let below = "const [section, next] = [document.querySelector(arguments[0]),
            document.querySelector('section[aria-labelledby=day-title]')];
        return [section, next].map((each) => each.getBoundingClientRect())
            .every((box, place) => (place === 0 ? box.bottom <= innerHeight : box.top >= innerHeight))";
    let is_whole = page.script(below, vec![json!(section)]).await;
    assert_eq!(is_whole, json!(true));
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_to_press_has_a_name() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let tree = page
        .devtools("Accessibility.getFullAXTree", json!({}))
        .await;
    let mut names = Vec::new();
    for node in tree["nodes"].as_array().unwrap() {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        let is_named = [
            "button",
            "link",
            "textbox",
            "image",
            "region",
            "table",
            "DisclosureTriangle",
        ];
        if node["ignored"] == json!(false) && is_named.contains(&role) {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert_ne!(name, "", "{node}");
            names.push(name.to_owned());
        }
    }
    let has = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!(
        has("Chart of Import"),
        2,
        "of the day and of the week: {names:?}"
    );
    assert_eq!(
        (has("Pause"), has("What leaves the house")),
        (2, 1),
        "{names:?}"
    );
    is_clean(&stub, &page).await;
}

/// What the other tests rely on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_noticed() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    is_clean(&stub, &page).await;
    page.script(
        "document.body.setAttribute('style', 'width: 9999px')",
        vec![],
    )
    .await;
    let log = page.log().await;
    assert!(
        log.iter()
            .any(|line| line.contains("Content Security Policy")),
        "{log:?}"
    );
    polls(&stub, 1).await;

    let break_it = "const made = document.createElement('button');
        made.textContent = 'x';
        made.style.cssText = 'color: #888; background: #777; width: 2000px; max-width: none; min-height: 5px';
        document.querySelector('main').append(made, document.createElement('h6'));";
    page.script(break_it, vec![]).await;
    let wrong = page.script(CHECKS, vec![]).await.to_string();
    for part in [
        "sideways",
        "beyond the window",
        "only 2000 x",
        "contrast of only",
        "heading after",
    ] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
}

/// Runs axe-core too where the environment variable `AXE` names its file `axe.min.js`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axe_finds_nothing() {
    let Some(axe) = std::env::var_os("AXE") else {
        eprintln!("skipped: AXE does not name a file axe.min.js of axe-core");
        return;
    };
    let axe = std::fs::read_to_string(axe).unwrap();
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    for sample in SAMPLES {
        stub.state().status = crate::stub::status(sample);
        for scheme in [Scheme::Light, Scheme::Dark] {
            page.view(360, 780, scheme).await;
            open(&page, &stub).await;
            assert_eq!(
                violations(&page, &axe).await,
                json!([]),
                "{sample} {scheme:?}"
            );
        }
    }
}

async fn violations(page: &Browser, axe: &str) -> Value {
    page.script(axe, vec![]).await;
    let run = "return axe.run().then(({ violations }) => violations.map(
        ({ id, nodes }) => [id, nodes.map((node) => node.html.slice(0, 120))]))";
    page.script(run, vec![]).await
}
