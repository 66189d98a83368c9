//! The rounds of a net as a CSV table.

use std::io::Write;

use anyhow::Context;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;

use crate::store::Store;
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

/// Writes one line per round that has a roster: round, start, end, members, included,
/// status (`final`, `pending` or `lost`) and the sum of each channel in mWh (column
/// `<channel>_mwh`), empty unless the round is final. Gives the number of rounds.
///
/// # Errors
/// There is no such net; input/output errors.
pub fn csv(store: &Store, net: NetId, span: Span, output: impl Write) -> anyhow::Result<u64> {
    let summary = store.net(net)?;
    let period = summary.policy.period;
    let (from, to) = span.rounds(period);
    let mut writer = csv::Writer::from_writer(output);
    let heading = ["round", "start", "end", "members", "included", "status"];
    let channels = summary.channels.iter().map(|name| format!("{name}_mwh"));
    writer
        .write_record(heading.map(str::to_owned).into_iter().chain(channels))
        .context("cannot write the table")?;
    let mut rounds = 0;
    store.for_each_round(net, from, to, |row| {
        let mut record = vec![
            row.round.to_string(),
            utc::text(row.round.start(period)),
            utc::text(row.round.end(period)),
            row.members.to_string(),
            row.included.to_string(),
            row.status.as_str().to_owned(),
        ];
        for channel in 0..summary.channels.len() {
            let sum = row.sums.get(channel);
            record.push(sum.map_or_else(String::new, |sum| sum.0.to_string()));
        }
        rounds += 1;
        writer
            .write_record(record)
            .context("cannot write the table")
    })?;
    writer.flush().context("cannot write the table")?;
    Ok(rounds)
}
