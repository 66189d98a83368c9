//! The table as Apache Parquet.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use dcnet::time::{Period, Timestamp};
use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use super::{CANNOT_WRITE, Table};
use crate::store::{NetSummary, RoundRow};

/// Rounds in one row group: a year of quarter hours is four of them.
const GROUP: usize = 10_000;

/// Writes the table; a row group is held in memory.
pub(super) struct Writer<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    period: Period,
    channels: usize,
    rows: Vec<RoundRow>,
}

impl<W: Write + Send> Writer<W> {
    pub(super) fn begin(summary: &NetSummary, output: W) -> anyhow::Result<Self> {
        let schema = schema(&summary.channels).context(CANNOT_WRITE)?;
        let about = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("provider-agent ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![
                about("net", summary.net.to_string()),
                about("name", summary.name.clone()),
                about("period_s", summary.policy.period.as_secs().to_string()),
            ]))
            .build();
        let writer = SerializedFileWriter::new(output, Arc::new(schema), Arc::new(properties))
            .context(CANNOT_WRITE)?;
        Ok(Self {
            writer,
            period: summary.policy.period,
            channels: summary.channels.len(),
            rows: Vec::new(),
        })
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut group = self.writer.next_row_group().context(CANNOT_WRITE)?;
        let millis = |at: Timestamp| i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        let each = |value: &dyn Fn(&RoundRow) -> i64| rows.iter().map(value).collect::<Vec<i64>>();
        let round = each(&|row| i64::try_from(row.round.0).unwrap_or(i64::MAX));
        numbers(&mut group, &round, None)?;
        numbers(
            &mut group,
            &each(&|row| millis(row.round.start(self.period))),
            None,
        )?;
        numbers(
            &mut group,
            &each(&|row| millis(row.round.end(self.period))),
            None,
        )?;
        for count in [|row: &RoundRow| row.members, |row: &RoundRow| row.included] {
            // Unsigned in the schema; the bits are the same.
            let counts: Vec<i32> = rows.iter().map(|row| count(row).cast_signed()).collect();
            column(&mut group, |column| {
                column.typed::<Int32Type>().write_batch(&counts, None, None)
            })?;
        }
        let statuses: Vec<ByteArray> = rows
            .iter()
            .map(|row| ByteArray::from(row.status.as_str()))
            .collect();
        column(&mut group, |column| {
            column
                .typed::<ByteArrayType>()
                .write_batch(&statuses, None, None)
        })?;
        for channel in 0..self.channels {
            let sums = rows.iter().map(|row| row.sums.get(channel));
            let there: Vec<i16> = sums.clone().map(|sum| i16::from(sum.is_some())).collect();
            let sums: Vec<i64> = sums
                .flatten()
                .map(|sum| i64::try_from(sum.0).unwrap_or(i64::MAX))
                .collect();
            numbers(&mut group, &sums, Some(&there))?;
        }
        group.close().context(CANNOT_WRITE)?;
        Ok(())
    }
}

impl<W: Write + Send> Table for Writer<W> {
    fn row(&mut self, row: RoundRow) -> anyhow::Result<()> {
        self.rows.push(row);
        if self.rows.len() >= GROUP {
            self.flush()?;
        }
        Ok(())
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<()> {
        if !self.rows.is_empty() {
            self.flush()?;
        }
        self.writer.close().context(CANNOT_WRITE)?;
        Ok(())
    }
}

type ColumnWriter<'a> = parquet::file::writer::SerializedColumnWriter<'a>;

fn column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    write: impl FnOnce(&mut ColumnWriter<'_>) -> parquet::errors::Result<usize>,
) -> anyhow::Result<()> {
    let mut column = group
        .next_column()
        .context(CANNOT_WRITE)?
        .context("the table has more columns than its schema")?;
    write(&mut column).context(CANNOT_WRITE)?;
    column.close().context(CANNOT_WRITE)
}

/// A column of 64-bit numbers; `there` says of each row whether it has one.
fn numbers<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[i64],
    there: Option<&[i16]>,
) -> anyhow::Result<()> {
    column(group, |column| {
        column.typed::<Int64Type>().write_batch(values, there, None)
    })
}

fn schema(channels: &[String]) -> parquet::errors::Result<Type> {
    let field = |name: &str, physical, meaning, repetition| {
        Type::primitive_type_builder(name, physical)
            .with_converted_type(meaning)
            .with_repetition(repetition)
            .build()
            .map(Arc::new)
    };
    let required = Repetition::REQUIRED;
    let mut fields = vec![
        field("round", Physical::INT64, ConvertedType::INT_64, required)?,
        field(
            "start",
            Physical::INT64,
            ConvertedType::TIMESTAMP_MILLIS,
            required,
        )?,
        field(
            "end",
            Physical::INT64,
            ConvertedType::TIMESTAMP_MILLIS,
            required,
        )?,
        field("members", Physical::INT32, ConvertedType::UINT_32, required)?,
        field(
            "included",
            Physical::INT32,
            ConvertedType::UINT_32,
            required,
        )?,
        field(
            "status",
            Physical::BYTE_ARRAY,
            ConvertedType::UTF8,
            required,
        )?,
    ];
    for channel in channels {
        let name = format!("{channel}_mwh");
        let (physical, meaning) = (Physical::INT64, ConvertedType::INT_64);
        fields.push(field(&name, physical, meaning, Repetition::OPTIONAL)?);
    }
    Type::group_type_builder("rounds")
        .with_fields(fields)
        .build()
}
