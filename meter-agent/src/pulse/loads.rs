//! Load files: CSV of energy per interval, plain or compressed with gzip.
//!
//! The first line names the columns. In every other line the first column is a
//! timestamp, which is not interpreted, and each further column is the energy of one
//! household in that interval in Wh, with at most three decimals.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dcnet::units::{MilliwattHours, READING_LIMIT};
use flate2::bufread::MultiGzDecoder;

use super::PulseError;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A load file in memory. Clones are cheap and share it.
#[derive(Clone, Debug)]
pub struct Loads {
    path: PathBuf,
    columns: Arc<[Column]>,
    rows: usize,
}

#[derive(Debug)]
struct Column {
    name: String,
    energies: Arc<[MilliwattHours]>,
}

impl Loads {
    /// Reads a whole load file; `.gz` is recognised by its content.
    ///
    /// # Errors
    /// [`PulseError::LoadFile`], [`PulseError::LoadRow`] with the line, or
    /// [`PulseError::LoadRange`] if it has no column or no row of energies.
    pub fn read(path: &Path) -> Result<Self, PulseError> {
        let failed = |cause| PulseError::LoadFile {
            path: path.to_path_buf(),
            cause,
        };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let gzip = file.fill_buf().map_err(failed)?.starts_with(&GZIP_MAGIC);
        if gzip {
            Self::parse(path, MultiGzDecoder::new(file))
        } else {
            Self::parse(path, file)
        }
    }

    /// Reads CSV from `input`; `path` is for error messages.
    ///
    /// # Errors
    /// As [`Loads::read`].
    pub fn parse(path: &Path, input: impl Read) -> Result<Self, PulseError> {
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(input);
        let heading = reader.headers().map_err(|e| csv_error(path, e))?.clone();
        let mut columns: Vec<(String, Vec<MilliwattHours>)> = heading
            .iter()
            .skip(1)
            .map(|name| (name.to_owned(), Vec::new()))
            .collect();
        let mut record = csv::StringRecord::new();
        let mut rows = 0;
        while reader
            .read_record(&mut record)
            .map_err(|e| csv_error(path, e))?
        {
            let line = record.position().map_or(0, csv::Position::line);
            let bad = |problem| PulseError::LoadRow {
                path: path.to_path_buf(),
                line,
                problem,
            };
            if record.get(0).is_none_or(str::is_empty) {
                return Err(bad("the first column must be a timestamp".to_owned()));
            }
            for ((name, energies), text) in columns.iter_mut().zip(record.iter().skip(1)) {
                let energy = watt_hours(text).ok_or_else(|| {
                    bad(format!(
                        "column {name:?} holds {text:?}; expected energy in Wh, such as 230 or \
                         230.125, not negative and below {} Wh",
                        READING_LIMIT / 1000
                    ))
                })?;
                energies.push(energy);
            }
            rows += 1;
        }
        if columns.is_empty() || rows == 0 {
            return Err(PulseError::LoadRange {
                path: path.to_path_buf(),
                problem: "no energies: expected a heading, and lines of a timestamp and at \
                          least one column of Wh"
                    .to_owned(),
            });
        }
        Ok(Self {
            path: path.to_path_buf(),
            columns: columns
                .into_iter()
                .map(|(name, energies)| Column {
                    name,
                    energies: energies.into(),
                })
                .collect(),
            rows,
        })
    }

    /// How many columns of energies there are; they are numbered from 1.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// How many rows of energies there are; they are numbered from 0.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The name of a column in the heading.
    pub fn name(&self, column: usize) -> Option<&str> {
        self.column(column).map(|c| c.name.as_str())
    }

    /// One household from `start_row` on. `column` counts from 1 (0 is the timestamp).
    ///
    /// # Errors
    /// [`PulseError::LoadRange`] if the file has no such column or row.
    pub fn energies(&self, column: usize, start_row: usize) -> Result<Energies, PulseError> {
        let out_of_range = |problem| PulseError::LoadRange {
            path: self.path.clone(),
            problem,
        };
        let found = self.column(column).ok_or_else(|| {
            out_of_range(format!(
                "there is no column {column}; columns of energy are 1 to {} (0 is the timestamp)",
                self.columns()
            ))
        })?;
        if start_row >= self.rows {
            return Err(out_of_range(format!(
                "there is no row {start_row}; rows are 0 to {}",
                self.rows.saturating_sub(1)
            )));
        }
        Ok(Energies {
            all: Arc::clone(&found.energies),
            start_row,
        })
    }

    fn column(&self, column: usize) -> Option<&Column> {
        self.columns.get(column.checked_sub(1)?)
    }
}

/// The energies of one household, from a first row on; never empty.
#[derive(Clone, Debug)]
pub struct Energies {
    all: Arc<[MilliwattHours]>,
    start_row: usize,
}

impl Energies {
    /// Energies from a list; `None` if it is empty or one is not below 2⁴⁰ mWh.
    pub fn new(energies: Vec<MilliwattHours>) -> Option<Self> {
        let fits = energies.iter().all(|energy| energy.0 < READING_LIMIT);
        (fits && !energies.is_empty()).then(|| Self {
            all: energies.into(),
            start_row: 0,
        })
    }

    /// The rows, the start row first.
    pub fn rows(&self) -> &[MilliwattHours] {
        self.all.get(self.start_row..).unwrap_or_default()
    }
}

fn csv_error(path: &Path, error: csv::Error) -> PulseError {
    let line = error.position().map_or(0, csv::Position::line);
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("{len} columns, but the heading has {expected_len}"),
        csv::ErrorKind::Utf8 { err, .. } => format!("not UTF-8 text: {err}"),
        _ => {
            return PulseError::LoadFile {
                path: path.to_path_buf(),
                cause: error.into(),
            };
        }
    };
    PulseError::LoadRow {
        path: path.to_path_buf(),
        line,
        problem,
    }
}

/// Reads decimal Wh without a detour over floating point.
fn watt_hours(text: &str) -> Option<MilliwattHours> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return None;
    }
    let thousandths: u64 = format!("{decimals:0<3}").parse().ok()?;
    let mwh = whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(thousandths)?;
    (mwh < READING_LIMIT).then_some(MilliwattHours(mwh))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str = "timestamp,a,b\n2018-10-28T23:00:00Z,30,1.5\n2018-10-28T23:30:00Z,680,0\n";

    fn parse(text: &str) -> Result<Loads, PulseError> {
        Loads::parse(Path::new("loads.csv"), text.as_bytes())
    }

    #[test]
    fn plain_and_compressed_files_read_alike() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain.csv");
        std::fs::write(&plain, TEXT).unwrap();
        let packed = directory.path().join("packed.csv.gz");
        let mut encoder = flate2::write::GzEncoder::new(
            File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        encoder.write_all(TEXT.as_bytes()).unwrap();
        encoder.finish().unwrap();
        for path in [plain, packed] {
            let loads = Loads::read(&path).unwrap();
            assert_eq!((loads.columns(), loads.rows()), (2, 2));
            assert_eq!(loads.name(2), Some("b"));
            let energies = loads.energies(2, 0).unwrap();
            assert_eq!(energies.rows(), [MilliwattHours(1500), MilliwattHours(0)]);
            let energies = loads.energies(1, 1).unwrap();
            assert_eq!(energies.rows(), [MilliwattHours(680_000)]);
        }
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("timestamp,a\nx,1\nx,-1\n", 3, "\"-1\""),
            ("timestamp,a\nx,1\nx,2\nx,\n", 4, "\"\""),
            ("timestamp,a\nx,NaN\n", 2, "NaN"),
            ("timestamp,a\nx,1.2345\n", 2, "1.2345"),
            ("timestamp,a\nx,1e3\n", 2, "1e3"),
            ("timestamp,a\nx,1099511628\n", 2, "1099511628"),
            ("timestamp,a\nx,1\nx,1,2\n", 3, "3 columns"),
            ("timestamp,a\n,1\n", 2, "timestamp"),
        ];
        for (text, expected, about) in cases {
            match parse(text) {
                Err(PulseError::LoadRow { line, problem, .. }) => {
                    assert_eq!(line, expected, "{text:?}");
                    assert!(problem.contains(about), "{problem}");
                }
                other => panic!("{text:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn a_file_without_energies_is_refused() {
        for text in ["", "timestamp\n", "timestamp,a\n", "timestamp\nx\n"] {
            assert!(
                matches!(parse(text), Err(PulseError::LoadRange { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn broken_gzip_and_foreign_bytes_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.csv.gz");
        std::fs::write(&path, [0x1f, 0x8b, 8, 0, 1, 2, 3]).unwrap();
        assert!(matches!(
            Loads::read(&path),
            Err(PulseError::LoadFile { .. })
        ));
        std::fs::write(&path, b"timestamp,a\nx,\xff\n").unwrap();
        assert!(matches!(
            Loads::read(&path),
            Err(PulseError::LoadRow { line: 2, .. })
        ));
        let missing = directory.path().join("missing");
        assert!(matches!(
            Loads::read(&missing),
            Err(PulseError::LoadFile { .. })
        ));
    }

    #[test]
    fn columns_and_rows_out_of_range_are_refused() {
        let loads = parse(TEXT).unwrap();
        assert!(
            loads
                .energies(0, 0)
                .unwrap_err()
                .to_string()
                .contains("1 to 2")
        );
        assert!(loads.energies(3, 0).is_err());
        assert!(
            loads
                .energies(1, 2)
                .unwrap_err()
                .to_string()
                .contains("0 to 1")
        );
    }
}
