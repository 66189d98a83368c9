//! The permissions told to people and to other brokers: what a client may do and by
//! which rule, and the same rights as an access control list.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use dcnet::identity::{DeviceId, Role};
use dcnet::topic::{Access, NetId, allowed_filters};

use crate::client::Identity;
use crate::config::Config;
use crate::passwords::{Passwords, check_user_name};
use crate::permission::{Denial, Grant, Permissions};
use crate::rules::{Rule, Rules, device_id};

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

impl Config {
    fn rules(&self) -> anyhow::Result<Rules> {
        match &self.permissions {
            Some(path) => Rules::read(path),
            None => Ok(Rules::default()),
        }
    }

    /// The password file.
    ///
    /// # Errors
    /// If the configuration names none.
    pub fn password_file(&self) -> anyhow::Result<&Path> {
        let path = self.passwords.as_deref();
        path.context("the configuration has no passwords = \"FILE\"")
    }

    /// Whether somebody may publish to and subscribe to a topic or filter, in this
    /// order. Reads the permission file only; no broker need run.
    ///
    /// # Errors
    /// If the name fits nobody or the permission file is wrong.
    pub fn check_acl(&self, asker: &Asker, topic: &str) -> anyhow::Result<[Verdict; 2]> {
        let identity = asker.identity()?;
        let permissions = Permissions::new(&identity, asker.role, asker.net, &self.rules()?);
        let told = |result: Result<Grant<'_>, Denial<'_>>, form: &str| match result {
            Ok(grant) => Verdict::allowed(self.grant(grant, asker.role)),
            Err(denial) => Verdict::denied(self.denial(denial, asker.role, form)),
        };
        Ok([
            told(
                permissions.publish(topic),
                "not a topic of printable ASCII that one can publish to",
            ),
            told(
                permissions.subscribe(topic),
                "not a topic filter of printable ASCII",
            ),
        ])
    }

    fn grant(&self, grant: Grant<'_>, role: Role) -> String {
        match grant {
            Grant::Role(filter) => format!("role {}: {filter}", role.as_str()),
            Grant::Rule(Rule { filter, line }) => {
                let file = self.permission_file();
                match line {
                    Some(line) => format!("{file}, line {line}: {filter}"),
                    None => format!("{file}: {filter}"),
                }
            }
        }
    }

    fn denial(&self, denial: Denial<'_>, role: Role, form: &str) -> String {
        let role = role.as_str();
        match denial {
            Denial::Form => form.to_owned(),
            Denial::Role([]) => format!("role {role}: nothing is allowed"),
            Denial::Role(allowed) => format!("role {role}: only {}", allowed.join(", ")),
            Denial::NoRule => format!("no line of {} covers it", self.permission_file()),
        }
    }

    fn permission_file(&self) -> String {
        match &self.permissions {
            Some(path) => path.display().to_string(),
            None => "the default without a permission file".to_owned(),
        }
    }

    /// Whether the user has a password; `None` for a certificate, or if the file cannot
    /// be read by who asks.
    pub fn has_password(&self, asker: &Asker) -> Option<bool> {
        let Ok(Identity::User(name)) = asker.identity() else {
            return None;
        };
        let passwords = Passwords::read(self.passwords.as_deref()?).ok()?;
        Some(passwords.get(&name).is_some())
    }

    /// An access control list for another broker in which everybody has the rights that
    /// they have here. What this broker reads in certificates has to be told.
    ///
    /// # Errors
    /// If the permission file is wrong.
    pub fn export_acl(&self, format: Format, certified: &Certified) -> anyhow::Result<String> {
        let rules = self.rules()?;
        match format {
            Format::Mosquitto => Ok(mosquitto(&rules, certified)),
        }
    }
}

/// What stands in certificates, of which another broker sees only whose they are.
#[derive(Clone, Debug, Default)]
pub struct Certified {
    /// Ids of providers.
    pub providers: Vec<DeviceId>,
    /// Nets whose meters use the other broker.
    pub nets: Vec<NetId>,
    /// Third parties whose certificates name a net.
    pub third_parties: BTreeMap<DeviceId, NetId>,
}

/// Stands for a meter's id until it becomes the pattern.
const ANY_METER: DeviceId = DeviceId([0xff; 16]);

fn mosquitto(rules: &Rules, certified: &Certified) -> String {
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
    for &id in &certified.providers {
        let _ = writeln!(text, "\n# The provider.\nuser {id}");
        for (word, filter) in rights(Role::Provider, id, None) {
            let _ = writeln!(text, "topic {word} {filter}");
        }
    }
    let unnamed = |id: &&DeviceId| !rules.named().any(|named| named == Identity::Device(**id));
    let unnamed = certified.third_parties.keys().filter(unnamed);
    for identity in rules.named().chain(unnamed.copied().map(Identity::Device)) {
        let (what, name, net) = match &identity {
            Identity::User(name) => ("user", name.to_string(), None),
            Identity::Device(id) => {
                let net = certified.third_parties.get(id).copied();
                let what = match net {
                    Some(_) => "certificate",
                    None => {
                        "certificate. If it names a net, --certificate ID=NET keeps it to that; \
                         here it reads every net"
                    }
                };
                (what, id.to_string(), net)
            }
        };
        let _ = writeln!(text, "\n# Third party, {what}.\nuser {name}");
        for rule in rules.of(&identity) {
            if let Some(filter) = within_net(&rule.filter, net) {
                let _ = writeln!(text, "topic read {filter}");
            }
        }
        // Or the patterns would give it more.
        for filter in ["+/all/#", "+/meter/#"] {
            let _ = writeln!(text, "topic deny {}/{filter}", dcnet::topic::ROOT);
        }
    }
    for &net in &certified.nets {
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

/// The part of a rule's filter that lies in the net that a certificate names, if one does.
fn within_net(filter: &str, net: Option<NetId>) -> Option<String> {
    let Some(net) = net.map(|net| net.to_string()) else {
        return Some(filter.to_owned());
    };
    // Every rule is below `LAW`, which has the net after the root.
    let (named, rest) = filter
        .strip_prefix(dcnet::topic::ROOT)?
        .strip_prefix('/')?
        .split_once('/')?;
    (named == "+" || named == net).then(|| format!("{}/{net}/{rest}", dcnet::topic::ROOT))
}
