//! What `check-config` looks at beyond the configuration file itself.

use std::path::Path;

use secrets::permissions::require_private_file;

use super::{Config, SourceConfig};
use crate::page::access::Access;
use crate::pulse::PulseError;
use crate::pulse::loads::Loads;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The agent would not start, or not be safe.
    pub problems: Vec<String>,
    /// Worth knowing; not wrong as such.
    pub notes: Vec<String>,
}

/// Checks a configuration file and the files it names, as far as they exist. Opens no
/// GPIO line, serial port or connection, so that it can be run beside a running agent.
pub fn check(path: &Path) -> Report {
    let mut report = Report::default();
    match Config::load(path) {
        Ok(config) => {
            identity(&config, &mut report);
            state(&config, &mut report);
            sources(&config, &mut report);
            home_assistant(&config, &mut report);
            page(&config, &mut report);
        }
        Err(error) => report.problems.push(error.to_string()),
    }
    report
}

fn identity(config: &Config, report: &mut Report) {
    for path in config.identity.all() {
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                report.notes.push(format!(
                    "{} does not exist yet; the gateway administrator's enrolment makes it",
                    path.display()
                ))
            }
            Err(error) => report
                .problems
                .push(format!("{} cannot be read: {error}", path.display())),
            Ok(_) if path == config.identity.key() => {
                let refused = require_private_file(&path, "a private key").err();
                report
                    .problems
                    .extend(refused.map(|error| format!("{error:#}")));
            }
            Ok(_) => {}
        }
    }
}

fn state(config: &Config, report: &mut Report) {
    let directory = &config.state_directory;
    match std::fs::metadata(directory) {
        Ok(metadata) if !metadata.is_dir() => report
            .problems
            .push(format!("{} is no directory", directory.display())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => report.notes.push(format!(
            "{} does not exist yet; the agent makes it",
            directory.display()
        )),
        Err(error) => report
            .problems
            .push(format!("{} cannot be read: {error}", directory.display())),
    }
}

fn page(config: &Config, report: &mut Report) {
    let refused = config.page.listen.map(|listen| {
        Access::of(listen, &config.state_directory)
            .err()
            .map(|error| format!("page: {error:#}"))
    });
    report.notes.extend(refused.flatten());
}

fn sources(config: &Config, report: &mut Report) {
    let rppal = cfg!(any(
        feature = "rppal",
        all(
            target_os = "linux",
            any(target_arch = "arm", target_arch = "aarch64")
        )
    ));
    for channel in &config.channels {
        let problem = match &channel.source {
            SourceConfig::Rppal { .. } if !rppal => Some(PulseError::NotBuilt("rppal")),
            SourceConfig::Gpiocdev { .. } if !cfg!(feature = "gpiocdev") => {
                Some(PulseError::NotBuilt("gpiocdev"))
            }
            SourceConfig::Replay(replay) => Loads::read(&replay.file)
                .and_then(|loads| loads.energies(replay.column, replay.start_row))
                .err(),
            SourceConfig::Mqtt(topic) => {
                let refused = topic.broker.prepare().err();
                report
                    .problems
                    .extend(refused.map(|error| format!("channel {:?}: {error:#}", channel.name)));
                None
            }
            SourceConfig::Optical(head) if !head.port.exists() => {
                report.notes.push(format!(
                    "channel {:?}: {} does not exist at present; the agent waits for it",
                    channel.name,
                    head.port.display()
                ));
                None
            }
            _ => None,
        };
        report
            .problems
            .extend(problem.map(|problem| format!("channel {:?}: {problem}", channel.name)));
    }
}

/// Only notes: whatever is wrong there keeps nothing from being counted.
fn home_assistant(config: &Config, report: &mut Report) {
    if let Some(options) = &config.home_assistant {
        let refused = options.broker.prepare().err();
        report.notes.extend(refused.map(|error| {
            format!("[home_assistant]: {error:#}; until then Home Assistant is shown nothing")
        }));
    }
}
