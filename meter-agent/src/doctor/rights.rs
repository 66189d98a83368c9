//! Whether the service's user may do what whoever calls the doctor may, who is root mostly.

use std::path::{Path, PathBuf};

use super::Verdict;
use crate::accounts::{ALL, READ, READ_WRITE, User};
use crate::config::{Config, SourceConfig};
use crate::home_broker::{HomeBroker, Trust};

/// The user of the unit.
const USER: &str = "meter-agent";
/// Groups that the unit puts it into.
const GROUPS: [&str; 2] = ["gpio", "dialout"];

/// What a configuration names, by what the service needs of it.
pub(super) fn look(path: &Path, config: &Config, say: &mut impl FnMut(Verdict, String)) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Some(user) = User::find(USER, &GROUPS) else {
        say(
            Verdict::Note,
            format!(
                "there is no user {USER} here, so what the service may do was not looked at: root \
                 may do more"
            ),
        );
        return;
    };
    let refused = refused(&user, &needed(path, config));
    if refused.is_empty() {
        say(
            Verdict::Good,
            format!("the user {USER} may use the files and devices that are there"),
        );
    }
    for problem in refused {
        say(Verdict::Problem, problem);
    }
}

/// Something the service uses, and how.
type Need = (PathBuf, u32);

fn needed(path: &Path, config: &Config) -> Vec<Need> {
    let mut needed = vec![(path.to_path_buf(), READ)];
    let key = config.identity.key();
    // The key is root's, and the service manager hands a copy over.
    let identity = config
        .identity
        .all()
        .into_iter()
        .filter(|file| *file != key);
    needed.extend(identity.map(|file| (file, READ)));
    needed.push((config.identity.revoked(), READ));
    needed.push((config.state_directory.clone(), ALL));
    needed.push((config.register_directory(), ALL));
    for directory in [&config.state_directory, &config.register_directory()] {
        let files = files(directory, "");
        needed.extend(files.into_iter().map(|file| (file, READ_WRITE)));
    }
    for channel in &config.channels {
        match &channel.source {
            SourceConfig::Rppal { .. } => {
                let devices = [files("/dev", "gpiomem"), files("/dev", "gpiochip")].concat();
                needed.extend(devices.into_iter().map(|device| (device, READ_WRITE)));
            }
            SourceConfig::Gpiocdev { .. } => {
                let chips = files("/dev", "gpiochip");
                needed.extend(chips.into_iter().map(|chip| (chip, READ_WRITE)));
            }
            SourceConfig::Optical(head) => needed.push((head.port.clone(), READ_WRITE)),
            SourceConfig::Replay(replay) => needed.push((replay.file.clone(), READ)),
            SourceConfig::Mqtt(topic) => needed.extend(of_broker(&topic.broker)),
            SourceConfig::Simulated { .. } => {}
        }
    }
    let assistant = config.home_assistant.iter();
    needed.extend(assistant.flat_map(|options| of_broker(&options.broker)));
    needed
}

fn of_broker(broker: &HomeBroker) -> Vec<Need> {
    let password = broker.login.as_ref().map(|login| &login.password_file);
    let ca = match &broker.tls {
        Some(Trust::Ca(ca)) => Some(ca),
        _ => None,
    };
    let files = password.into_iter().chain(ca);
    files.map(|file| (file.clone(), READ)).collect()
}

/// What is in a directory, other than directories, under names that begin so.
fn files(directory: impl AsRef<Path>, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .filter(|path| !path.is_dir())
        .collect()
}

/// What is there and kept from the user.
fn refused(user: &User, needed: &[Need]) -> Vec<String> {
    let mut refused = Vec::new();
    for (path, bits) in needed {
        // What is not there is told elsewhere, where it matters.
        let Ok(Some(why)) = user.is_kept_from(path, *bits) else {
            continue;
        };
        let (use_of, path) = (if *bits == READ { "read" } else { "write" }, path.display());
        let text = format!(
            "the user {USER} of the service may not {use_of} {path}: {why}; change that with \
             chown, chgrp or chmod, of a device with a udev rule"
        );
        if !refused.contains(&text) {
            refused.push(text);
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// As Raspberry Pi OS and the package lay it out.
    #[test]
    fn what_root_made_in_the_state_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let text = "state_directory = \"state\"\n[broker]\nhost = \"localhost\"\n[identity]\n\
                    directory = \"identity\"\n[[channel]]\nname = \"import\"\n\
                    impulses_per_kwh = 1000\n[channel.simulated]\nseed = 1\n";
        let path = directory.path().join("meter-agent.toml");
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        let register = config.register_directory();
        std::fs::create_dir_all(&register).unwrap();
        let log = register.join("readings.log");
        std::fs::write(&log, "").unwrap();
        std::fs::set_permissions(&log, PermissionsExt::from_mode(0o600)).unwrap();
        for place in [&config.state_directory, &register] {
            if let Err(error) = chown(place, Some(4711), Some(4711)) {
                eprintln!("skipped: only root can give a directory away: {error}");
                return;
            }
        }
        let user = User::of(4711, &[4711]);
        let told = refused(&user, &needed(&path, &config));
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(
            told.contains("may not write") && told.contains("readings.log"),
            "{told}"
        );
        chown(&log, Some(4711), Some(4711)).unwrap();
        assert_eq!(refused(&user, &needed(&path, &config)), [""; 0]);
    }
}
