//! What commands print.

use std::fmt::Arguments;
use std::io::{self, Write};

/// A line to standard output.
pub fn line(line: Arguments<'_>) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// A value as JSON that people can read too.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(format_args!("{}", serde_json::to_string_pretty(value)?))
}

/// A named value of one thing.
pub fn field(name: &str, value: impl std::fmt::Display) -> anyhow::Result<()> {
    line(format_args!("{name:<19} {value}"))
}

/// Whether the writer's reader has seen enough, such as `head`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        io.or_else(|| match cause.downcast_ref::<csv::Error>()?.kind() {
            csv::ErrorKind::Io(error) => Some(error.kind()),
            _ => None,
        })
    });
    kind == Some(io::ErrorKind::BrokenPipe)
}
