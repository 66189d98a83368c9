//! `provider-agent export`.

use std::io::{self, BufWriter, IsTerminal};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use provider_agent::export::{self, Format, Span};
use provider_agent::{Config, utc};

use super::progress::Progress;
use super::{At, existing_store};

/// What is exported.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    at: At,
    /// The net: 32 hexadecimal digits
    #[arg(long)]
    net: NetId,
    /// Form of the table
    #[arg(long, default_value = "csv")]
    format: Form,
    /// Rounds that start at or after this: 2026-01-31 or 2026-01-31T18:00:00Z
    #[arg(long, value_name = "MOMENT", value_parser = utc::parse)]
    from: Option<Timestamp>,
    /// Rounds that start before this
    #[arg(long, value_name = "MOMENT", value_parser = utc::parse)]
    to: Option<Timestamp>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Csv,
    Parquet,
}

/// Writes the table to standard output.
pub fn run(export: Export) -> anyhow::Result<()> {
    let format = match export.format {
        Form::Csv => Format::Csv,
        Form::Parquet => Format::Parquet,
    };
    ensure!(
        format == Format::Csv || !io::stdout().is_terminal(),
        "Parquet is nothing for a terminal; write it into a file: … > rounds.parquet"
    );
    let store = existing_store(&Config::load(&export.at.config)?)?;
    let span = Span {
        from: export.from,
        to: export.to,
    };
    let mut progress = Progress::new("exporting", "rounds");
    let output = BufWriter::new(io::stdout());
    let mut told = |done, all| progress.at(done, all);
    export::write(&store, export.net, span, format, output, &mut told).map(|_| ())
}
