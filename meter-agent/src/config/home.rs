//! Checks what is said of the household's own broker: in `[channel.mqtt]`, and in
//! `[home_assistant]` as a whole.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::file;
use super::validate::Check;
use crate::home_assistant::HomeAssistantOptions;
use crate::home_broker::{HomeBroker, Login, Trust};

const MQTT_PORT: u16 = 1883;
const MQTT_TLS_PORT: u16 = 8883;
/// A name of loopback.
const THIS_MACHINE: &str = "localhost";
/// Longest prefix of a topic, and longest name, in bytes.
const LONGEST: usize = 100;

/// Host and port of the provider's broker, where nothing of the household's own belongs.
pub(super) type ProviderBroker<'a> = (&'a str, u16);

/// The keys of a table that say how to get to the household's broker.
pub(super) struct BrokerKeys {
    pub(super) host: Spanned<String>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) tls: Option<Spanned<bool>>,
    pub(super) ca: Option<PathBuf>,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password_file: Option<Spanned<PathBuf>>,
}

/// The broker that `table` names. If it cannot be used that is among the problems.
pub(super) fn broker(
    check: &mut Check<'_>,
    table: &str,
    given: BrokerKeys,
    base: &Path,
    provider: ProviderBroker<'_>,
) -> HomeBroker {
    let key = |name: &str| format!("{table}.{name}");
    let tls = match (given.tls, given.ca) {
        (Some(tls), Some(_)) if !*tls.get_ref() => {
            let text = "a CA is of no use without TLS; leave one of the two out".to_owned();
            check.problem(Some(tls.span()), &key("tls"), text);
            None
        }
        (_, Some(ca)) => Some(Trust::Ca(base.join(ca))),
        (Some(tls), None) if *tls.get_ref() => Some(Trust::System),
        _ => None,
    };
    let usual = if tls.is_some() {
        MQTT_TLS_PORT
    } else {
        MQTT_PORT
    };
    let port = given.port.map_or(usual, |port| {
        if *port.get_ref() == 0 {
            let text = format!("port 0 does not exist; the usual one is {usual}");
            check.problem(Some(port.span()), &key("port"), text);
        }
        port.into_inner()
    });
    let host = given.host.get_ref();
    check.host(&given.host, &key("host"), "homeassistant.local");
    let (own, providers) = (known_as(host), known_as(provider.0));
    // Only of this machine is it known that another port is another one's.
    if own == providers && (own != THIS_MACHINE || port == provider.1) {
        let text = format!(
            "{host} is the broker of [broker]; nothing of the household's own belongs there, \
             whatever the port: name the household's own broker"
        );
        check.problem(Some(given.host.span()), &key("host"), text);
    }
    let login = match (given.username, given.password_file) {
        (Some(username), Some(file)) => Some(Login {
            username: username.into_inner(),
            password_file: base.join(file.into_inner()),
        }),
        (Some(username), None) => {
            let text = "is missing; write the path of a file with the password".to_owned();
            check.problem(Some(username.span()), &key("password_file"), text);
            None
        }
        (None, Some(file)) => {
            let text = "is missing; write whose password it is".to_owned();
            check.problem(Some(file.span()), &key("username"), text);
            None
        }
        (None, None) => None,
    };
    HomeBroker {
        host: given.host.into_inner(),
        port,
        tls,
        login,
        provider: provider.0.to_owned(),
    }
}

/// The same text for all spellings of a host, as far as they can be told without asking anybody.
fn known_as(host: &str) -> String {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_loopback() => THIS_MACHINE.to_owned(),
        Ok(address) => address.to_string(),
        Err(_) => name,
    }
}

pub(super) fn assistant(
    check: &mut Check<'_>,
    given: file::HomeAssistant,
    base: &Path,
    provider: ProviderBroker<'_>,
) -> HomeAssistantOptions {
    let table = "home_assistant";
    let keys = BrokerKeys {
        host: given.host,
        port: given.port,
        tls: given.tls,
        ca: given.ca,
        username: given.username,
        password_file: given.password_file,
    };
    let seconds = check.within(
        given.every_seconds,
        "home_assistant.every_seconds",
        1..=300,
        10,
    );
    HomeAssistantOptions {
        broker: broker(check, table, keys, base, provider),
        discovery_prefix: prefix(
            check,
            "discovery_prefix",
            given.discovery_prefix,
            "homeassistant",
        ),
        topic_prefix: prefix(check, "topic_prefix", given.topic_prefix, "dcnet"),
        every: Duration::from_secs(u64::from(seconds)),
        name: name(check, given.name),
    }
}

/// The first levels of a topic.
fn prefix(
    check: &mut Check<'_>,
    key: &str,
    given: Option<Spanned<String>>,
    default: &str,
) -> String {
    let Some(given) = given else {
        return default.to_owned();
    };
    let prefix = given.get_ref();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_level = |level: &str| !level.is_empty() && level.chars().all(allowed);
    if prefix.len() > LONGEST || !prefix.split('/').all(is_level) {
        let text = format!(
            "{prefix:?}: write levels of a-z, A-Z, 0-9, -, _ and . with / between them, such as \
             {default}"
        );
        check.problem(Some(given.span()), &format!("home_assistant.{key}"), text);
    }
    given.into_inner()
}

/// What Home Assistant calls the meter.
fn name(check: &mut Check<'_>, given: Option<Spanned<String>>) -> String {
    let Some(given) = given else {
        return "Electricity meter".to_owned();
    };
    let name = given.get_ref();
    if name.trim().is_empty() || name.len() > LONGEST || name.chars().any(char::is_control) {
        let text = format!("{name:?}: write a name of at most {LONGEST} bytes in one line");
        check.problem(Some(given.span()), "home_assistant.name", text);
    }
    given.into_inner()
}
