//! What the page shows.

use meter_agent::history::{Course, Sample};
use serde_json::{Value, json};

use crate::{is_clean, open, page_of, polls};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_register_round_group_checks_and_alarms_are_shown() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    assert_eq!(
        page.text("#summary-text").await,
        "Taking part in a group of 57"
    );
    let (import, export) = (
        "#channels article:nth-child(1)",
        "#channels article:nth-child(2)",
    );
    assert_eq!(page.text(&format!("{import} .now")).await.trim(), "523 W");
    assert_eq!(
        page.text(&format!("{import} .register")).await,
        "987.654 kWh"
    );
    assert_eq!(page.text(&format!("{export} .now")).await.trim(), "100 W");
    assert_eq!(
        page.text(&format!("{export} .register")).await,
        "54.321 kWh"
    );
    assert!(
        !page.is_shown(".hint").await,
        "the household has set the one, the device says the other itself"
    );

    // The superposition beside the reading that it hides.
    assert!(
        page.text("#picture-interval").await.contains("09:00–09:15"),
        "in Berlin"
    );
    assert_eq!(page.text(".sides .reading").await, "131 Wh");
    let sent = stub.state().status["rounds"][0]["values"][0]["superposition"].clone();
    let digits = page
        .text(".sides code")
        .await
        .replace(char::is_whitespace, "");
    assert_eq!(json!(digits), sent);
    let hides = page.text("#hides").await;
    assert!(
        hides.contains("secrets shared with 47 neighbours"),
        "{hides}"
    );
    let steps = page.text("#steps").await;
    assert!(steps.contains("It has 55 meters. (done)"), "{steps}");
    assert!(
        steps.contains("the sum over 55 households: Import 9.23 kWh, Export 412 Wh."),
        "{steps}"
    );
    assert!(!page.is_shown("#why").await);

    let group = page.text("#group").await.replace('\n', " ");
    assert!(group.contains("Households in the group 57"), "{group}");
    assert!(group.contains("Live neighbours 47 of 48"), "{group}");
    assert!(group.contains("A round every 15 minutes"), "{group}");
    let checks = page.text("#checks").await;
    assert!(
        checks.contains("7 of 7 passed") && checks.contains("8 of 8 passed"),
        "{checks}"
    );
    assert!(
        checks.contains("The sum contains enough meters. (passed)"),
        "{checks}"
    );
    let alarms = page.text("#alarms").await;
    assert!(
        alarms.contains("the tag is wrong") && alarms.contains("joins anew by itself"),
        "{alarms}"
    );
    assert!(
        !page.is_shown("#notes-section").await,
        "the alarm is three days old"
    );

    page.click("#rounds-details summary").await;
    assert_eq!(page.count("#rounds tr").await, 10);
    let rounds = page.text("#rounds").await;
    assert!(
        rounds.contains("Nothing left the house. Reason: the clock is not synchronised."),
        "{rounds}"
    );
    assert!(
        rounds.contains("Sent, but no reveal. Reason: too many of the meters seen lately"),
        "{rounds}"
    );
    let csv = page
        .script("return document.querySelector('[download]').href", vec![])
        .await;
    assert_eq!(csv, json!(format!("{}history.csv", stub.url())));
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_says_what_leaves_the_house_and_why_not() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let states = [
        (
            "first-start",
            "Waiting: nothing new",
            "clock of this device is not set",
            "",
        ),
        (
            "waiting",
            "Waiting: nothing new",
            "The group has 12 members now. This meter waits until it has 30.",
            "",
        ),
        (
            "no-member",
            "Waiting: nothing new",
            "This meter is no member of the group yet.",
            STAYED,
        ),
        (
            "paused",
            "Paused",
            "Nothing new leaves the house at present. You have paused it.",
            STAYED,
        ),
        (
            "no-time",
            "Waiting",
            "The clock of this device is not set by the network yet.",
            STAYED,
        ),
        (
            "clock-jumped",
            "Waiting",
            "The clock of this device has jumped ahead.",
            STAYED,
        ),
        (
            "stopped",
            "Stopped by an alarm",
            "An alarm has stopped this meter for good: the provider signed two different",
            STAYED,
        ),
        (
            "stopped-earlier",
            "Stopped by an alarm",
            "An alarm has stopped this meter for good. Which one is not known here any more",
            STAYED,
        ),
        (
            "leaving",
            "Leaving the group",
            "This meter is leaving the group.",
            STAYED,
        ),
        (
            "long-texts",
            "Waiting: nothing new",
            "This meter does not reach the net (no connection to the broker",
            "does not answer).",
        ),
    ];
    for (sample, summary, why, more) in states {
        stub.state().status = crate::stub::status(sample);
        open(&page, &stub).await;
        page.until_text("#summary-text", summary).await;
        let text = page.text("#why").await;
        assert!(
            text.contains(why) && text.contains(more),
            "{sample}: {text}"
        );
        let rounds = stub.state().status["rounds"].as_array().unwrap().clone();
        let has_left = |round: &Value| round["values"][0]["superposition"].is_string();
        let any_left = rounds.iter().any(has_left);
        assert_eq!(page.is_shown("#picture").await, any_left, "{sample}");
        let checks = stub.state().status["checks"].as_array().unwrap().len();
        assert_eq!(page.is_shown("#no-checks").await, checks == 0, "{sample}");
        assert_eq!(page.is_shown("#next").await, !any_left, "{sample}");
        if any_left && !has_left(&rounds[0]) {
            page.until_text(
                "#picture-interval",
                "What left the house last: the interval 08:45",
            )
            .await;
            assert_eq!(page.text(".sides .reading").await, "142 Wh", "{sample}");
        }
        is_clean(&stub, &page).await;
    }

    stub.state().status = crate::stub::status("first-round");
    open(&page, &stub).await;
    page.until_text("#summary-text", "Taking part").await;
    let text = page.text("#next").await;
    assert_eq!(
        text,
        "Nothing has left the house yet. The first whole interval ends at 09:45."
    );
    assert!(!page.is_shown("#why").await && !page.is_shown("#picture").await);

    // It leaves at a random moment after its end, which is nothing to worry about.
    stub.state().status = crate::stub::status("just-over");
    open(&page, &stub).await;
    let text = page.text("#next").await;
    assert!(
        text.contains("The newest interval, 09:00–09:15, has not left the house yet."),
        "{text}"
    );
    assert!(!page.is_shown("#why").await);
    assert_eq!(page.text(".sides .reading").await, "142 Wh", "of the last");

    // A round in which nothing was sent, before one in which something was.
    let mut status = crate::stub::status("taking-part");
    let refused = status["rounds"][6].clone();
    status["rounds"].as_array_mut().unwrap().insert(0, refused);
    stub.state().status = status;
    open(&page, &stub).await;
    let text = page.text("#why").await;
    assert!(
        text.contains("07:30–07:45, left the house: the clock is not synchronised."),
        "{text}"
    );
    assert_eq!(
        page.text(".sides .reading").await,
        "131 Wh",
        "of the last one that was"
    );

    stub.state().status = crate::stub::status("waiting-for-roster");
    open(&page, &stub).await;
    let steps = page.text("#steps").await;
    assert!(
        steps.contains("The superposition is sent. (done)"),
        "{steps}"
    );
    assert!(steps.contains("the roster. (not yet)"), "{steps}");
    assert!(
        steps.contains("over all households of the roster. (not yet)"),
        "{steps}"
    );

    stub.state().status = crate::stub::status("refused-roster");
    open(&page, &stub).await;
    let steps = page.text("#steps").await;
    assert!(
        steps.contains("refuses to answer. Reason: there was another roster"),
        "{steps}"
    );
    assert!(page.text("#checks").await.contains("(failed)"));

    stub.state().status = crate::stub::status("stopped");
    open(&page, &stub).await;
    assert!(
        page.text("#notes")
            .await
            .contains("1 alarm in the last 24 hours.")
    );
    assert!(page.text("#checks").await.contains("(failed)"));
    assert!(!page.is_shown("#no-alarms").await);
    assert!(!page.is_shown("#pause").await && !page.is_shown("#exit").await);
    is_clean(&stub, &page).await;
}

const STAYED: &str = " The newest interval, 09:00–09:15, stayed here.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_known_is_not_shown_as_zero_and_the_household_is_told_of_set_reading() {
    let Some((stub, page)) = page_of("first-start").await else {
        return;
    };
    let (import, export) = (
        "#channels article:nth-child(1)",
        "#channels article:nth-child(2)",
    );
    let line = page.text(import).await;
    assert!(
        line.contains("Counted so far") && line.contains("0.000 kWh"),
        "{line}"
    );
    assert!(line.contains("meter-agent set-reading"), "{line}");
    let device = page.text(export).await;
    assert!(
        device.contains("Meter reading") && device.contains("not known yet"),
        "{device}"
    );
    assert!(device.contains("has not shown its total yet"), "{device}");
    assert!(!device.contains("set-reading"), "{device}");
    assert!(!device.contains("kWh"), "{device}");

    // Nothing is on disk, and there is something to look at all the same.
    page.until_text("#history-days", "No history is stored: up to 8 days")
        .await;
    assert!(
        !page
            .text("#history-days")
            .await
            .contains("8 days of history")
    );
    for _ in 0..9 {
        page.click("#day-before").await;
    }
    page.until_text("#day-date", "Friday 14 November").await;

    stub.state().status = crate::stub::status("taking-part");
    page.until_text("#history-days", "8 days of history on this device")
        .await;
    is_clean(&stub, &page).await;
}

/// A device shows its first total, is read for an hour, and again after ten hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_device_counted_unseen_is_no_power() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    // 22:00 in Berlin, the evening before.
    let evening = 1_763_758_800_000_u64;
    let sample = |minute: u64, total: u64, is_break| Sample {
        at_ms: evening + minute * 60_000,
        energy_mwh: vec![None, Some(total)],
        is_break: vec![false, is_break],
    };
    // 12 345 kWh at first; 100 W for an hour, and 5 kWh in the night.
    let mut samples = vec![sample(2, 12_345_000_000, true)];
    for quarter in 1..=4 {
        let total = 12_345_000_000 + (quarter * 15 - 2) * 100_000 / 60;
        samples.push(sample(quarter * 15, total, false));
    }
    samples.push(sample(640, 12_350_000_000, true));
    let channels = vec!["import".to_owned(), "export".to_owned()];
    stub.state().course = Some(Course { channels, samples });
    stub.state().status["channels"][1]["energy_mwh"] = json!(12_350_010_000_u64);
    open(&page, &stub).await;
    let day = "#day-charts > :nth-child(2)";
    let unseen = "Between Fri 21, 23:00 and Sat 22, 08:40 the meter moved on by 4.90 kWh; when in that time is not known.";
    let text = page.text(&format!("{day} .chart-text")).await;
    assert!(
        text.starts_with("10 Wh fed into the grid.") && text.ends_with(unseen),
        "{text}"
    );
    assert!(text.contains("Nobody counted in 00:00–08:40."), "{text}");
    let axis = "return document.querySelector(arguments[0] + ' svg').textContent";
    let axis = page.script(axis, vec![json!(day)]).await;
    let axis = axis.as_str().unwrap();
    assert!(
        axis.contains('W') && !axis.contains("kW"),
        "a spike: {axis}"
    );
    page.click("#day-before").await;
    page.until_text("#day-date", "Yesterday").await;
    let text = page.text(&format!("{day} .chart-text")).await;
    assert!(
        text.starts_with("97 Wh fed into the grid. Most in 22:15–22:30: 100 W on average.")
            && text.ends_with(unseen),
        "{text}"
    );
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn charts_show_the_power_and_a_gap_as_a_gap() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    // Of today in Berlin, 00:00 to 09:26:40, 04:00 to 05:30 was not counted.
    let import = "#day-charts > :nth-child(1)";
    assert_eq!(page.count(&format!("{import} rect.gap")).await, 1);
    assert_eq!(page.count(&format!("{import} rect.bar")).await, 38 - 6);
    let script = "const box = (css) => document.querySelector(arguments[0] + css).getBoundingClientRect();
        const gap = box(' rect.gap');
        const [before, after] = [box(' rect.bar:nth-of-type(17)'), box(' rect.bar:nth-of-type(18)')];
        return before.right <= gap.left && gap.left - before.right < 2
            && gap.right <= after.left + 0.01 && after.left - gap.right < 2";
    assert_eq!(
        page.script(script, vec![json!(import)]).await,
        json!(true),
        "between its neighbours"
    );
    let high = "const high = [...document.querySelectorAll(arguments[0] + ' rect.bar')]
            .map((bar) => bar.getBoundingClientRect().height);
        return Math.max(...high) / Math.min(...high)";
    let ratio = page
        .script(high, vec![json!(import)])
        .await
        .as_f64()
        .unwrap();
    assert!(
        (ratio - 4.0).abs() < 0.01,
        "800 W are 4 times 200 W: {ratio}"
    );

    // 200 W for 6:56:40 and 800 W for an hour.
    let text = page.text(&format!("{import} .chart-text")).await;
    assert!(
        text.contains("2.19 kWh drawn from the grid. Most in 07:00–07:15: 800 W on average."),
        "{text}"
    );
    assert!(
        text.ends_with(
            "Nobody counted in 04:00–05:30. Between Sat 22, 04:00 and Sat 22, 05:30 the meter \
             moved on by 300 Wh; when in that time is not known."
        ),
        "{text}"
    );
    let text = page.text("#day-charts > :nth-child(2) .chart-text").await;
    assert!(text.contains("794 Wh fed into the grid."), "{text}");
    page.click(&format!("{import} summary")).await;
    page.until_text(&format!("{import} tbody"), "03:45").await;
    let table = page.text(&format!("{import} tbody")).await;
    assert!(table.contains("03:45–04:00\t50 Wh\t200 W"), "{table}");
    assert!(table.contains("04:00–04:15\tnobody counted"), "{table}");
    assert!(
        table.contains("09:15–09:30\t39 Wh\t200 W"),
        "the part that is over: {table}"
    );
    assert!(!table.contains("09:30–"), "{table}");

    let week = "#week-charts > :nth-child(1)";
    assert_eq!(
        page.count(&format!("{week} rect.bar")).await,
        6 * 24 + 10 - 1
    );
    let text = page.text(&format!("{week} .chart-text")).await;
    assert!(
        text.contains("Nobody counted in Sat 22, 04:00 to Sat 22, 05:30."),
        "{text}"
    );

    // Days before today, and no further than the agent keeps them.
    page.click("#day-before").await;
    page.until_text("#day-date", "Yesterday, Friday 21 November")
        .await;
    assert_eq!(page.count(&format!("{import} rect.bar")).await, 96);
    assert_eq!(page.count(&format!("{import} rect.gap")).await, 0);
    page.click("#day-after").await;
    page.until_text("#day-date", "Today").await;
    page.click("#day-after").await;
    for _ in 0..9 {
        page.click("#day-before").await;
    }
    page.until_text("#day-date", "Friday 14 November").await;
    polls(&stub, 2).await;
    assert_eq!(page.text("#day-date").await, "Friday 14 November");
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_on_which_clocks_change_has_25_hours() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let script = "const { course, gaps } = await import('/history.js');
        const range = { from: Date.parse('2025-10-26T00:00+02:00'), until: Date.parse('2025-10-27T00:00+01:00'), width: 900000 };
        const at = (minutes, total, isBreak = false) => ({ at_ms: range.from + minutes * 60000, energy_mwh: [total], is_break: [isBreak] });
        const { bins: made, jumps } = course([at(-10, 0), at(5, 15000), at(20, 15000), at(50, 99000), at(65, null), at(80, 1), at(90, 0), at(95, 500), at(96, 700, true)], 0, range, 20 * 60000);
        const minutes = (ms) => (ms - range.from) / 60000;
        return [made.length, made.slice(0, 7).map((bin) => [bin.mwh, bin.counted / 60000]), gaps(made, range.from + 100 * 60000).map((gap) => gap.map(minutes)),
            jumps.map(({ from, until, mwh }) => [minutes(from), minutes(until), mwh])]";
    let script = format!("return (async () => {{ {script} }})()");
    let found = page.script(&script, vec![]).await;
    let bins = json!([[5000, 15], [0, 5], [0, 0], [0, 0], [0, 0], [0, 0], [500, 5]]);
    // 20 to 50 is too long, 50 to 80 has an unknown total, and 80 to 90 goes back.
    let jumps = json!([[20, 50, 84000], [95, 96, 200]]);
    assert_eq!(found, json!([100, bins, [[20, 90], [95, 100]], jumps]));
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_reads_nothing_out_and_takes_no_focus_away() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    page.click("#channels summary").await;
    let watch = "window.said = [];
        const watcher = new MutationObserver((changes) => window.said.push(...changes.map((change) => change.target.outerHTML ?? change.target.data)));
        for (const region of document.querySelectorAll('[aria-live], [role=status], [role=alert]'))
            watcher.observe(region, { subtree: true, childList: true, characterData: true, attributes: true });";
    page.script(watch, vec![]).await;
    stub.state().status["channels"][0]["power"]["milliwatts"] = json!(1_234_000);
    stub.state().status["channels"][0]["pulses"] = json!(123_457);
    page.until_text(".watts", "1,234 W").await;
    polls(&stub, 2).await;
    assert_eq!(page.script("return window.said", vec![]).await, json!([]));
    assert!(
        page.text(".counted").await.contains("123,457 pulses"),
        "still open"
    );
    let focus = "return document.activeElement === document.querySelector('#channels summary')";
    assert_eq!(page.script(focus, vec![]).await, json!(true));
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_is_told_with_what_to_do() {
    let Some((stub, page)) = page_of("certificate-ends").await else {
        return;
    };
    let notes = page.text("#notes").await;
    assert!(
        notes.contains("A certificate of this meter ends on ")
            && notes.contains("Ask the gateway administrator for a new one."),
        "{notes}"
    );
    let about = page.text("#certificate").await;
    assert!(about.starts_with("valid until "), "{about}");
    stub.state().status["certificate_end_ms"] = json!(crate::stub::NOW_MS - 86_400_000);
    page.until_text("#notes", "A certificate of this meter ended on ")
        .await;
    page.until_text("#certificate", "ended on ").await;
    stub.state().status["is_renewal_due"] = json!(false);
    page.until_hidden("#notes-section").await;
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_long_ago_is_shown_with_its_year() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    stub.state().status["shown_days"] = json!(3660);
    for channel in 0..2 {
        stub.state().status["channels"][channel]["energy_mwh"] = json!(9_000_000_000_u64);
    }
    polls(&stub, 2).await;
    let click =
        "for (let day = 0; day < 120; day += 1) document.getElementById('day-before').click()";
    page.script(click, vec![]).await;
    page.until_text("#day-date", "25 July 2025").await;
    assert_eq!(page.count("#day-charts rect.bar").await, 2 * 96);
    is_clean(&stub, &page).await;
}
