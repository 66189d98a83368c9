//! The permissions told to people and to other brokers: what a client may do and by
//! which rule, and the same rights as an access control list.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use dcnet::identity::{DeviceId, Role};
use dcnet::topic::{Access, NetId, allowed_filters, filter_within};

use crate::client::Identity;
use crate::config::Settings;
use crate::passwords::{Passwords, check_user_name};
use crate::permission::{NOBODY, is_filter, is_topic};
use crate::rules::{Rules, device_id};

/// Whose permissions are asked for.
#[derive(Clone, Debug)]
pub struct Asker {
    /// A user's name, or the id of a certificate: 32 lower-case hexadecimal digits.
    pub name: String,
    /// The role of the certificate; users are third parties.
    pub role: Role,
    /// The net that the certificate names; meters have one.
    pub net: Option<NetId>,
}

/// Whether something is allowed, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allowed or denied.
    pub allowed: bool,
    /// The rule with its place, or what is missing.
    pub why: String,
}

impl Verdict {
    fn denied(why: impl Into<String>) -> Self {
        Self {
            allowed: false,
            why: why.into(),
        }
    }

    fn allowed(why: impl Into<String>) -> Self {
        Self {
            allowed: true,
            why: why.into(),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.allowed { "allowed" } else { "denied" };
        write!(f, "{word}: {}", self.why)
    }
}

/// The form of an exported list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `acl_file` of mosquitto 2 (mosquitto.conf(5)).
    Mosquitto,
}

impl Asker {
    fn identity(&self) -> anyhow::Result<Identity> {
        if let Some(id) = device_id(&self.name) {
            ensure!(
                self.role != Role::Meter || self.net.is_some(),
                "a meter's certificate names a net; tell which with --net"
            );
            return Ok(Identity::Device(id));
        }
        check_user_name(&self.name)?;
        ensure!(
            self.role == Role::ThirdParty,
            "a {} is named by the id of its certificate, not by {:?}",
            self.role.as_str(),
            self.name
        );
        Ok(Identity::User(self.name.as_str().into()))
    }
}

impl Settings {
    fn rules(&self) -> anyhow::Result<Rules> {
        match &self.services.permissions {
            Some(path) => Rules::read(path),
            None => Ok(Rules::default()),
        }
    }

    /// The password file.
    ///
    /// # Errors
    /// If the configuration names none.
    pub fn password_file(&self) -> anyhow::Result<&Path> {
        let path = self.services.passwords.as_deref();
        path.context("the configuration has no passwords = \"FILE\"")
    }

    /// Whether somebody may publish to and subscribe to a topic or filter, in this
    /// order. Reads the permission file only; no broker need run.
    ///
    /// # Errors
    /// If the name fits nobody or the permission file is wrong.
    pub fn check_acl(&self, asker: &Asker, topic: &str) -> anyhow::Result<[Verdict; 2]> {
        let identity = asker.identity()?;
        let rules = self.rules()?;
        let law = |access| law(&identity, asker, access);
        let publish = if !is_topic(topic) {
            Verdict::denied("not a topic of printable ASCII that one can publish to")
        } else {
            by_law(topic, asker.role, &law(Access::Publish))
        };
        let subscribe = if !is_filter(topic) {
            Verdict::denied("not a topic filter of printable ASCII")
        } else {
            let lawful = by_law(topic, asker.role, &law(Access::Subscribe));
            match asker.role {
                Role::ThirdParty if lawful.allowed => self.by_rules(topic, &rules, &identity),
                _ => lawful,
            }
        };
        Ok([publish, subscribe])
    }

    fn by_rules(&self, filter: &str, rules: &Rules, identity: &Identity) -> Verdict {
        let file = match &self.services.permissions {
            Some(path) => path.display().to_string(),
            None => "the default without a permission file".to_owned(),
        };
        let covers = |allowed: &str| filter_within(filter, allowed);
        match rules.of(identity).find(|rule| covers(&rule.filter)) {
            Some(rule) => Verdict::allowed(match rule.line {
                Some(line) => format!("{file}, line {line}: {}", rule.filter),
                None => format!("{file}: {}", rule.filter),
            }),
            None => Verdict::denied(format!("no line of {file} covers it")),
        }
    }

    /// Whether the user has a password; `None` for a certificate, or if the file cannot
    /// be read by who asks.
    pub fn has_password(&self, asker: &Asker) -> Option<bool> {
        let Ok(Identity::User(name)) = asker.identity() else {
            return None;
        };
        let passwords = Passwords::read(self.services.passwords.as_deref()?).ok()?;
        Some(passwords.get(&name).is_some())
    }

    /// An access control list for another broker in which everybody has the rights that
    /// they have here. `providers` and `nets` are named because the list must do without
    /// certificates.
    ///
    /// # Errors
    /// If the permission file is wrong.
    pub fn export_acl(
        &self,
        format: Format,
        providers: &[DeviceId],
        nets: &[NetId],
    ) -> anyhow::Result<String> {
        let rules = self.rules()?;
        match format {
            Format::Mosquitto => Ok(mosquitto(&rules, providers, nets)),
        }
    }
}

/// What the role gives; for third parties the most that a rule can give.
fn law(identity: &Identity, asker: &Asker, access: Access) -> Vec<String> {
    match *identity {
        Identity::Device(id) => allowed_filters(asker.role, id, asker.net, access),
        Identity::User(_) => allowed_filters(Role::ThirdParty, NOBODY, None, access),
    }
}

fn by_law(topic: &str, role: Role, law: &[String]) -> Verdict {
    let role = role.as_str();
    match law.iter().find(|allowed| filter_within(topic, allowed)) {
        Some(filter) => Verdict::allowed(format!("role {role}: {filter}")),
        None if law.is_empty() => Verdict::denied(format!("role {role}: nothing is allowed")),
        None => Verdict::denied(format!("role {role}: only {}", law.join(", "))),
    }
}

/// Stands for a meter's id until it becomes the pattern.
const ANY_METER: DeviceId = DeviceId([0xff; 16]);

fn mosquitto(rules: &Rules, providers: &[DeviceId], nets: &[NetId]) -> String {
    let mut text = String::from(
        "# Made by `broker export-acl --format mosquitto`; change the permission file instead.\n\
         # It needs these lines in mosquitto.conf, or anybody could be anybody:\n\
         #   require_certificate true\n\
         #   use_identity_as_username true\n\
         #   allow_anonymous false\n\
         # mosquitto acknowledges every SUBSCRIBE and withholds the messages instead.\n\
         # It cannot tell a meter's certificate from a third party's: everybody who is not\n\
         # named below has a meter's rights, under its own id, in the nets named here.\n",
    );
    let rights = |role, id, net| {
        let lines = |access, word: &'static str| {
            allowed_filters(role, id, net, access)
                .into_iter()
                .map(move |filter| (word, filter))
        };
        lines(Access::Publish, "write").chain(lines(Access::Subscribe, "read"))
    };
    // Writing to a String cannot fail.
    for &id in providers {
        let _ = writeln!(text, "\n# The provider.\nuser {id}");
        for (word, filter) in rights(Role::Provider, id, None) {
            let _ = writeln!(text, "topic {word} {filter}");
        }
    }
    for identity in rules.named() {
        let (what, name) = match &identity {
            Identity::User(name) => ("user", name.to_string()),
            Identity::Device(id) => ("certificate", id.to_string()),
        };
        let _ = writeln!(text, "\n# Third party, {what}.\nuser {name}");
        for rule in rules.of(&identity) {
            let _ = writeln!(text, "topic read {}", rule.filter);
        }
        // Or the patterns would give it more.
        for filter in ["+/all/#", "+/meter/#"] {
            let _ = writeln!(text, "topic deny {}/{filter}", dcnet::topic::ROOT);
        }
    }
    for &net in nets {
        let _ = writeln!(
            text,
            "\n# Meters of the net {net}; %u is the name in the certificate."
        );
        for (word, filter) in rights(Role::Meter, ANY_METER, Some(net)) {
            let filter = filter.replace(&ANY_METER.to_string(), "%u");
            let _ = writeln!(text, "pattern {word} {filter}");
        }
    }
    text
}
