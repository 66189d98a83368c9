//! `provider-agent backup` and `restore`.

use std::path::Path;

use provider_agent::Config;
use provider_agent::backup::{self, Report, Restore};

use super::output::{json as print_json, line};
use super::progress::Progress;
use super::{At, existing_store};

/// Writes a backup.
pub fn backup(at: &At, file: &Path, json: bool) -> anyhow::Result<()> {
    let store = existing_store(&Config::load(&at.config)?)?;
    let mut progress = Progress::new("copying", "pages");
    let report = backup::backup(&store, file, &mut |done, all| progress.at(done, all))?;
    drop(progress);
    if json {
        return print_json(&report);
    }
    tell(&report)
}

/// Restores one.
pub fn restore(
    at: &At,
    file: &Path,
    replace: bool,
    newest: bool,
    json: bool,
) -> anyhow::Result<()> {
    let config = Config::load(&at.config)?;
    let mut progress = Progress::new("copying", "pages");
    let how = Restore {
        replace,
        is_newest: newest,
    };
    let report = backup::restore(&config, file, how, &mut |done, all| progress.at(done, all))?;
    drop(progress);
    if json {
        return print_json(&report);
    }
    tell(&report)?;
    if let Some(former) = &report.former {
        line(format_args!("the former database is {}", former.display()))?;
    }
    match &report.resume {
        Some(resume) => line(format_args!(
            "rounds that start before {resume} get no roster, and nobody joins, leaves or draws \
             before a later one has a verified sum; if none comes within some rounds, the meters \
             know more than the backup: close those nets and create new ones"
        )),
        None => Ok(()),
    }
}

fn tell(report: &Report) -> anyhow::Result<()> {
    let newest = report
        .newest
        .as_ref()
        .map_or_else(String::new, |newest| format!(", newest record of {newest}"));
    line(format_args!(
        "{}: {} bytes, {} nets{newest}; looked through, not damaged",
        report.file.display(),
        report.bytes,
        report.nets
    ))
}
