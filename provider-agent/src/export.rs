//! The rounds of a net as a table.

mod parquet;

use std::io::Write;

use anyhow::Context;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;

use crate::store::{NetSummary, RoundRow, Store};
use crate::utc;

/// Which rounds: those that start in `from..to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first moment; open if `None`.
    pub from: Option<Timestamp>,
    /// The first moment after; open if `None`.
    pub to: Option<Timestamp>,
}

impl Span {
    fn rounds(self, period: Period) -> (Round, Round) {
        // The first round that starts at or after a moment.
        let first = |at: Timestamp| {
            let round = period.round_at(at);
            if round.start(period) < at {
                round.next()
            } else {
                round
            }
        };
        (
            self.from.map_or(Round(0), first),
            self.to.map_or(Round(u64::MAX), first),
        )
    }
}

/// Forms of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values with a heading.
    Csv,
    /// Apache Parquet with typed columns.
    Parquet,
}

/// Writes one row per round that has a roster: round, start, end, members, included,
/// status (`final`, `pending` or `lost`) and the sum of each channel in mWh (column
/// `<channel>_mwh`), empty unless the round is final. Gives the number of rounds;
/// `progress` is told how many are done, and of how many.
///
/// # Errors
/// There is no such net; input/output errors.
pub fn write(
    store: &Store,
    net: NetId,
    span: Span,
    format: Format,
    output: impl Write + Send,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<u64> {
    let summary = store.net(net)?;
    let (from, to) = span.rounds(summary.policy.period);
    let all = store.count_rounds(net, from, to)?;
    let mut done = 0;
    let mut table: Box<dyn Table + '_> = match format {
        Format::Csv => Box::new(Csv::begin(&summary, output)?),
        Format::Parquet => Box::new(parquet::Writer::begin(&summary, output)?),
    };
    store.for_each_round(net, from, to, |row| {
        table.row(row)?;
        done += 1;
        progress(done, all);
        Ok(())
    })?;
    table.end()?;
    Ok(done)
}

/// What a table is written by.
trait Table {
    fn row(&mut self, row: RoundRow) -> anyhow::Result<()>;
    fn end(self: Box<Self>) -> anyhow::Result<()>;
}

struct Csv<W: Write> {
    writer: csv::Writer<W>,
    period: Period,
    channels: usize,
}

impl<W: Write> Csv<W> {
    fn begin(summary: &NetSummary, output: W) -> anyhow::Result<Self> {
        let mut writer = csv::Writer::from_writer(output);
        let heading = ["round", "start", "end", "members", "included", "status"];
        let channels = summary.channels.iter().map(|name| format!("{name}_mwh"));
        writer
            .write_record(heading.map(str::to_owned).into_iter().chain(channels))
            .context(CANNOT_WRITE)?;
        Ok(Self {
            writer,
            period: summary.policy.period,
            channels: summary.channels.len(),
        })
    }
}

impl<W: Write> Table for Csv<W> {
    fn row(&mut self, row: RoundRow) -> anyhow::Result<()> {
        let mut record = vec![
            row.round.to_string(),
            utc::text(row.round.start(self.period)),
            utc::text(row.round.end(self.period)),
            row.members.to_string(),
            row.included.to_string(),
            row.status.as_str().to_owned(),
        ];
        for channel in 0..self.channels {
            let sum = row.sums.get(channel);
            record.push(sum.map_or_else(String::new, |sum| sum.0.to_string()));
        }
        self.writer.write_record(record).context(CANNOT_WRITE)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<()> {
        self.writer.flush().context(CANNOT_WRITE)
    }
}

const CANNOT_WRITE: &str = "cannot write the table";
