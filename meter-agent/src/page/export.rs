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
use crate::register::RegisterChannel;

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
    table.write_record(std::iter::once("utc".to_owned()).chain(energies).chain(gaps))
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
    use dcnet::units::ImpulsesPerKwh;
    use http_body_util::BodyExt;

    use super::*;
    use crate::history::tests::of_quarter_hours;

    /// More than a piece takes.
    const PIECE_BYTES: usize = 64 * 1024;

    async fn answer(history: &Arc<History>) -> Body {
        let import = RegisterChannel {
            name: "import".to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        };
        let pieces = Pieces::new(Arc::clone(history), vec![import]);
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
}
