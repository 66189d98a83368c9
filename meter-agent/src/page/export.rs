//! The household's own data as CSV, to take along.

use std::io;
use std::sync::Arc;

use ::page::{Failure, off_the_runtime};
use anyhow::Context;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dcnet::units::MilliwattHours;
use http_body_util::channel::Channel;
use hyper::body::Bytes;

use super::Household;
use crate::energy::Kwh;
use crate::history::{Course, History};
use crate::register::{RegisterChannel, SetReading};
use crate::status::{CheckState, Status, StepView};

/// Moments of the register's course in one piece of an answer: some 20 KiB.
const PIECE: usize = 500;
/// Pieces that are made before whoever reads has taken those before.
const AHEAD: usize = 1;

/// The register's course.
pub(super) async fn history(State(household): State<Household>) -> Result<Response, Failure> {
    let channels = household.view.channels().to_vec();
    in_pieces(Pieces::new(household.history, channels)).await
}

/// It may be the course of ten years, so it is read only as fast as it is taken.
async fn in_pieces(mut pieces: Pieces) -> Result<Response, Failure> {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(AHEAD);
    // What is wrong from the beginning is an answer of its own.
    let (mut pieces, mut piece) = off_the_runtime(move || {
        let piece = pieces.next()?;
        Ok((pieces, piece))
    })
    .await?;
    tokio::spawn(async move {
        while let Some(bytes) = piece {
            // Whoever has hung up wants no more.
            if sender.send_data(bytes).await.is_err() {
                return;
            }
            let next = off_the_runtime(move || {
                let piece = pieces.next()?;
                Ok((pieces, piece))
            });
            (pieces, piece) = match next.await {
                Ok(next) => next,
                // Broken off, so that nobody takes half of it for the whole.
                Err(failure) => return sender.abort(io::Error::other(failure.1)),
            };
        }
    });
    Ok(table("meter.csv", Body::new(body)))
}

/// What the meter reads: what was set, and what it is now.
pub(super) async fn readings(State(household): State<Household>) -> Result<Response, Failure> {
    let view = household.view.clone();
    let set = off_the_runtime(move || Ok(view.set_readings()?)).await?;
    let channels = household.view.channels();
    let status = household.view.status(household.history.days());
    Ok(table("readings.csv", readings_of(&set, channels, &status)?))
}

/// The last rounds.
pub(super) async fn rounds(State(household): State<Household>) -> Result<Response, Failure> {
    let status = household.view.status(household.history.days());
    Ok(table("rounds.csv", rounds_of(&status)?))
}

/// The alarms that are kept.
pub(super) async fn alarms(State(household): State<Household>) -> Result<Response, Failure> {
    let status = household.view.status(household.history.days());
    Ok(table("alarms.csv", alarms_of(&status)?))
}

/// A CSV file to be saved under a name.
fn table(name: &str, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ),
    ];
    (headers, body.into()).into_response()
}

/// The register's course in pieces, the first one with the heading.
struct Pieces {
    history: Arc<History>,
    channels: Vec<RegisterChannel>,
    /// Where the next piece begins, in milliseconds since 1970; none after the last one.
    from: Option<u64>,
    is_first: bool,
}

impl Pieces {
    fn new(history: Arc<History>, channels: Vec<RegisterChannel>) -> Self {
        Self {
            history,
            channels,
            from: Some(0),
            is_first: true,
        }
    }

    fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let Some(from) = self.from else {
            return Ok(None);
        };
        let (course, rest) = self
            .history
            .course(&self.channels, from..=u64::MAX, PIECE)?;
        self.from = rest;
        let mut table = csv::Writer::from_writer(Vec::new());
        if std::mem::take(&mut self.is_first) {
            heading(&mut table, &course)?;
        }
        rows(&mut table, &course)?;
        Ok(Some(table.into_inner()?.into()))
    }
}

fn heading(table: &mut csv::Writer<Vec<u8>>, course: &Course) -> csv::Result<()> {
    let names = &course.channels;
    let energies = names.iter().map(|name| format!("{name}_kwh"));
    let gaps = names.iter().map(|name| format!("{name}_gap_before"));
    table.write_record(
        std::iter::once("utc".to_owned())
            .chain(energies)
            .chain(gaps),
    )
}

fn rows(table: &mut csv::Writer<Vec<u8>>, course: &Course) -> anyhow::Result<()> {
    for sample in &course.samples {
        table.write_field(utc(sample.at_ms)?)?;
        for energy in &sample.energy_mwh {
            table.write_field(kwh(*energy))?;
        }
        for (energy, is_break) in sample.energy_mwh.iter().zip(&sample.is_break) {
            table.write_field(match energy {
                Some(_) => yes_or_no(*is_break),
                None => "",
            })?;
        }
        table.write_record(None::<&[u8]>)?;
    }
    Ok(())
}

fn readings_of(
    set: &[SetReading],
    channels: &[RegisterChannel],
    status: &Status,
) -> anyhow::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "utc",
        "channel",
        "what",
        "reading_kwh",
        "counted_kwh",
        "pulses",
    ])?;
    for entry in set {
        let channel = channels.iter().find(|known| known.name == entry.channel);
        let counted = channel.and_then(|channel| channel.constant.energy(entry.pulses));
        table.write_record([
            entry.utc.clone(),
            entry.channel.clone(),
            "set".to_owned(),
            kwh(Some(entry.reading.0)),
            kwh(counted.map(|counted| counted.0)),
            entry.pulses.0.to_string(),
        ])?;
    }
    for channel in &status.channels {
        table.write_record([
            utc(status.utc_ms)?,
            channel.name.clone(),
            "now".to_owned(),
            kwh(channel.reading_mwh),
            kwh(channel.energy_mwh),
            channel.pulses.to_string(),
        ])?;
    }
    Ok(table.into_inner()?)
}

fn rounds_of(status: &Status) -> anyhow::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "round",
        "begin",
        "end",
        "channel",
        "reading_kwh",
        "superposition",
        "submission",
        "submission_reason",
        "reveal",
        "reveal_reason",
        "neighbours_drawn",
        "neighbours_required",
        "neighbours_used",
        "neighbours_in_sum",
        "meters_in_sum",
        "sum_kwh",
    ])?;
    for round in status.rounds.iter().rev() {
        for (place, value) in round.values.iter().enumerate() {
            let sum = round.sums_mwh.as_ref().and_then(|sums| sums.get(place));
            let reason = |step: &StepView| step.reason.clone().unwrap_or_default();
            table.write_record([
                round.round.to_string(),
                utc(round.from_ms)?,
                utc(round.until_ms)?,
                value.channel.clone(),
                kwh(value.reading_mwh),
                value.superposition.clone().unwrap_or_default(),
                became(&round.submission).to_owned(),
                reason(&round.submission),
                became(&round.reveal).to_owned(),
                reason(&round.reveal),
                number(round.drawn),
                number(round.required),
                number(round.used),
                number(round.full),
                number(round.included),
                kwh(sum.copied()),
            ])?;
        }
    }
    Ok(table.into_inner()?)
}

fn alarms_of(status: &Status) -> anyhow::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["utc", "alarm", "what_to_do", "stopped_the_meter"])?;
    for alarm in status.alarms.iter().rev() {
        table.write_record([
            &*utc(alarm.utc_ms)?,
            &alarm.text,
            &alarm.advice,
            yes_or_no(alarm.is_final),
        ])?;
    }
    Ok(table.into_inner()?)
}

fn became(step: &StepView) -> &'static str {
    match step.state {
        CheckState::Open => "pending",
        CheckState::Passed => "sent",
        CheckState::Failed => "not sent",
    }
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// A moment in milliseconds since 1970, by ISO 8601.
fn utc(at_ms: u64) -> anyhow::Result<String> {
    let at = i64::try_from(at_ms).ok();
    let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    Ok(at.context("a time beyond the year 9999")?.to_string())
}

/// An energy in mWh as kWh; nothing if nobody knows it.
fn kwh(energy: Option<u64>) -> String {
    energy.map_or_else(String::new, |energy| {
        Kwh::from(MilliwattHours(energy)).to_string()
    })
}

fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dcnet::units::{ImpulsesPerKwh, Pulses};
    use http_body_util::BodyExt;

    use super::*;
    use crate::history::tests::of_quarter_hours;
    use crate::status::samples;

    /// More than a piece takes.
    const PIECE_BYTES: usize = 64 * 1024;

    fn import() -> Vec<RegisterChannel> {
        vec![RegisterChannel {
            name: "import".to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        }]
    }

    async fn answer(history: &Arc<History>) -> Body {
        let pieces = Pieces::new(Arc::clone(history), import());
        in_pieces(pieces).await.unwrap().into_body()
    }

    async fn next(body: &mut Body) -> Option<String> {
        let piece = body.frame().await?.unwrap().into_data().unwrap();
        Some(String::from_utf8(piece.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_course_of_a_year_comes_in_small_pieces_and_whole() {
        let quarters = 365 * 96;
        let mut body = answer(&Arc::new(of_quarter_hours(quarters))).await;
        let (mut table, mut pieces) = (String::new(), 0);
        while let Some(piece) = next(&mut body).await {
            assert!(piece.len() < PIECE_BYTES, "{}", piece.len());
            table += &piece;
            pieces += 1;
        }
        assert!(pieces > 60, "{pieces}");
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 1 + usize::try_from(quarters).unwrap());
        assert_eq!(lines[0], "utc,import_kwh,import_gap_before");
        assert_eq!(lines[1], "1970-01-01T00:15:00Z,0.001,yes");
        assert_eq!(lines[96], "1970-01-02T00:00:00Z,0.096,no");
        assert!(lines[1..].is_sorted(), "in the order of time");
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_taken() {
        let history = Arc::new(of_quarter_hours(365 * 96));
        let mut body = answer(&history).await;
        let first = next(&mut body).await.unwrap();
        // Whatever was not read by now is gone.
        history.delete().unwrap();
        let mut moments = first.lines().count() - 1;
        while let Some(piece) = next(&mut body).await {
            moments += piece.lines().count();
        }
        assert!((PIECE..=4 * PIECE).contains(&moments), "{moments}");
    }

    #[tokio::test]
    async fn a_history_without_anything_has_its_heading() {
        let mut body = answer(&Arc::new(of_quarter_hours(0))).await;
        let heading = Some("utc,import_kwh,import_gap_before\n".to_owned());
        assert_eq!(next(&mut body).await, heading);
        assert_eq!(next(&mut body).await, None);
    }

    /// The rows of a table by the names of its columns.
    fn read(table: &[u8]) -> Vec<BTreeMap<String, String>> {
        let mut table = csv::Reader::from_reader(table);
        table.deserialize().map(Result::unwrap).collect()
    }

    /// Some columns of a row.
    fn of<'a>(row: &'a BTreeMap<String, String>, names: &[&str]) -> Vec<&'a str> {
        names.iter().map(|name| row[*name].as_str()).collect()
    }

    #[test]
    fn a_round_says_what_was_read_what_left_and_what_became_of_it() {
        let status = samples::named("taking-part");
        let rows = read(&rounds_of(&status).unwrap());
        assert_eq!(rows.len(), 20, "ten rounds of two channels");
        let newest = &rows[18];
        let begin = ["begin", "end", "channel", "reading_kwh", "sum_kwh"];
        let expected = [
            "2025-11-22T08:00:00Z",
            "2025-11-22T08:15:00Z",
            "import",
            "0.131",
            "9.231567",
        ];
        assert_eq!(of(newest, &begin), expected);
        let shown = status.rounds[0].values[0].superposition.as_ref().unwrap();
        assert_eq!(newest["superposition"], *shown);
        let steps = ["submission", "submission_reason", "reveal", "reveal_reason"];
        assert_eq!(of(newest, &steps), ["sent", "", "sent", ""]);
        let counts = ["neighbours_drawn", "neighbours_required", "meters_in_sum"];
        assert_eq!(of(newest, &counts), ["48", "29", "55"]);
        let too_few = "too many of the meters seen lately were missing";
        assert_eq!(of(&rows[10], &steps), ["sent", "", "not sent", too_few]);
        let clock = "the clock is not synchronised";
        assert_eq!(of(&rows[6], &steps), ["not sent", clock, "pending", ""]);
        assert_eq!(of(&rows[6], &["superposition", "sum_kwh"]), ["", ""]);
        let open = read(&rounds_of(&samples::named("just-over")).unwrap());
        assert_eq!(open[18]["submission"], "pending");
        assert_eq!(
            read(&rounds_of(&samples::named("first-start")).unwrap()),
            []
        );
    }

    #[test]
    fn an_alarm_says_what_to_do_and_whether_it_has_stopped_the_meter() {
        let status = samples::named("stopped");
        let rows = read(&alarms_of(&status).unwrap());
        let [older, newest] = &rows[..] else {
            panic!("{rows:#?}");
        };
        let names = ["utc", "stopped_the_meter"];
        assert_eq!(of(older, &names), ["2025-11-19T08:26:40Z", "no"]);
        assert_eq!(of(newest, &names), ["2025-11-22T08:06:40Z", "yes"]);
        assert_eq!(newest["alarm"], status.alarms[0].text);
        assert_eq!(newest["what_to_do"], status.alarms[0].advice);
    }

    #[test]
    fn readings_are_those_that_were_set_and_what_is_shown_now() {
        let set = |channel: &str| SetReading {
            utc: "2025-01-01T00:00:00Z".to_owned(),
            channel: channel.to_owned(),
            reading: MilliwattHours(900_000_000),
            pulses: Pulses(35_802),
        };
        let status = samples::named("taking-part");
        let table = readings_of(&[set("import"), set("gone")], &import(), &status);
        let rows = read(&table.unwrap());
        let names = ["channel", "what", "reading_kwh", "counted_kwh", "pulses"];
        let expected = [
            ["import", "set", "900", "35.802", "35802"],
            ["gone", "set", "900", "", "35802"],
            ["import", "now", "987.654", "123.456", "123456"],
            ["export", "now", "54.321", "54.321", "54321"],
        ];
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(expected) {
            assert_eq!(of(row, &names), expected);
        }
        assert_eq!(rows[0]["utc"], "2025-01-01T00:00:00Z");
        assert_eq!(rows[2]["utc"], "2025-11-22T08:26:40Z");
        let unknown = readings_of(&[], &[], &samples::named("first-start")).unwrap();
        let unknown = read(&unknown);
        assert_eq!(of(&unknown[0], &names[1..4]), ["now", "", "0"]);
        assert_eq!(of(&unknown[1], &names[1..4]), ["now", "", ""]);
    }
}
