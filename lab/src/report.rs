//! The report: one JSON object per measured round, in order.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// How a round ended, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its aggregate was published.
    Complete,
    /// Its roster was issued, and reveals are missing.
    Pending,
    /// There is no aggregate and will be none.
    Lost,
}

/// The sums of a round, one per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Energy taken from the grid by all included meters, in mWh.
    pub import: u64,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the round: it covers `[round·period, (round+1)·period)` of UTC.
    pub round: u64,
    /// Row of the load file; null without one.
    pub row: Option<u64>,
    /// Members of the net.
    pub members: u32,
    /// Numbers of the meters in the sum, ascending: columns of the load file. Empty
    /// unless the round is complete.
    pub included: Vec<u32>,
    /// The sums; null unless the round is complete.
    pub sum_mwh: Option<Sums>,
    /// Whether the provider's signature is valid, the published sum is the one that the
    /// provider stored, and it equals the sum over the included meters.
    pub verified: bool,
    /// How the round ended.
    pub status: Status,
    /// Milliseconds from the end of the round to the published aggregate; null if there is none.
    pub latency_ms: Option<u64>,
}

/// A report being written.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    file: File,
}

impl Report {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot write the report {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Adds a line; it is in the file when this returns.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, line: &Line) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write the report {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_documented_form() {
        let complete = Line {
            round: 17,
            row: Some(3),
            members: 5,
            included: vec![1, 2, 4],
            sum_mwh: Some(Sums { import: 1_234_000 }),
            verified: true,
            status: Status::Complete,
            latency_ms: Some(512),
        };
        assert_eq!(
            serde_json::to_string(&complete).unwrap(),
            r#"{"round":17,"row":3,"members":5,"included":[1,2,4],"sum_mwh":{"import":1234000},"verified":true,"status":"complete","latency_ms":512}"#
        );
        let lost = Line {
            row: None,
            included: Vec::new(),
            sum_mwh: None,
            verified: false,
            status: Status::Lost,
            latency_ms: None,
            ..complete
        };
        assert_eq!(
            serde_json::to_string(&lost).unwrap(),
            r#"{"round":17,"row":null,"members":5,"included":[],"sum_mwh":null,"verified":false,"status":"lost","latency_ms":null}"#
        );
    }
}
