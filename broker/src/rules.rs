//! What third parties may read: the rules of the permission file, each with its line.
//!
//! A rule gives, nothing takes away: a third party may subscribe to what `[all]` or
//! its own table names. Only public topics can be given ([`LAW`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use dcnet::identity::DeviceId;
use dcnet::topic::filter_within;
use serde::Deserialize;
use toml::Spanned;

use crate::client::Identity;
use crate::passwords::check_user_name;
use crate::permission::is_filter;

/// The most that third parties can be given, and what they have without a
/// permission file: the public topics of every net.
pub(crate) const LAW: &str = "dcnet/1/+/public/#";

/// Longer than any sensible file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    all: Entry,
    #[serde(default)]
    user: BTreeMap<Spanned<String>, Entry>,
    #[serde(default)]
    certificate: BTreeMap<Spanned<String>, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    subscribe: Vec<Spanned<String>>,
}

/// A filter that may be subscribed to, with everything it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) filter: String,
    /// Where it stands; the first line is 1. The rule without a file has none.
    pub(crate) line: Option<usize>,
}

/// The rules in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    all: Vec<Rule>,
    users: BTreeMap<String, Vec<Rule>>,
    certificates: BTreeMap<DeviceId, Vec<Rule>>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            all: vec![Rule {
                filter: LAW.to_owned(),
                line: None,
            }],
            users: BTreeMap::new(),
            certificates: BTreeMap::new(),
        }
    }
}

impl Rules {
    /// Reads a permission file.
    ///
    /// # Errors
    /// If it cannot be read, or a line is wrong.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let place = || format!("permissions {}", path.display());
        let length = fs::metadata(path).with_context(place)?.len();
        ensure!(length <= MAX_FILE, "{} is over {MAX_FILE} bytes", place());
        let text = fs::read_to_string(path).with_context(place)?;
        Self::parse(&text).with_context(place)
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        let mut users = BTreeMap::new();
        for (name, entry) in file.user {
            let line = line_of(text, name.span().start);
            check_user_name(name.get_ref()).with_context(|| format!("line {line}"))?;
            users.insert(name.into_inner(), rules(text, entry)?);
        }
        let mut certificates = BTreeMap::new();
        for (name, entry) in file.certificate {
            let line = line_of(text, name.span().start);
            let Some(id) = device_id(name.get_ref()) else {
                bail!(
                    "line {line}: a certificate is named by the 32 lower-case hexadecimal digits \
                     of its id, not by {:?}",
                    name.get_ref()
                );
            };
            certificates.insert(id, rules(text, entry)?);
        }
        Ok(Self {
            all: rules(text, file.all)?,
            users,
            certificates,
        })
    }

    /// The rules for a third party: its own before those for all.
    pub(crate) fn of(&self, identity: &Identity) -> impl Iterator<Item = &Rule> {
        let own = match identity {
            Identity::User(name) => self.users.get(&**name),
            Identity::Device(id) => self.certificates.get(id),
        };
        own.into_iter().flatten().chain(&self.all)
    }

    /// Everybody whom the file names.
    pub(crate) fn named(&self) -> impl Iterator<Item = Identity> {
        let users = self
            .users
            .keys()
            .map(|name| Identity::User(name[..].into()));
        let certificates = self.certificates.keys().copied().map(Identity::Device);
        users.chain(certificates)
    }
}

/// A certificate's id in its usual text form.
pub(crate) fn device_id(text: &str) -> Option<DeviceId> {
    let mut id = [0; 16];
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut id).is_ok()).then_some(DeviceId(id))
}

fn rules(text: &str, entry: Entry) -> anyhow::Result<Vec<Rule>> {
    let rule = |filter: Spanned<String>| {
        let line = line_of(text, filter.span().start);
        let filter = filter.into_inner();
        ensure!(
            is_filter(&filter),
            "line {line}: {filter:?} is no topic filter"
        );
        ensure!(
            filter_within(&filter, LAW),
            "line {line}: {filter:?} is more than {LAW:?}, and third parties can be given nothing else"
        );
        Ok(Rule {
            filter,
            line: Some(line),
        })
    };
    entry.subscribe.into_iter().map(rule).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(rules: &Rules, identity: &Identity) -> Vec<(String, Option<usize>)> {
        let rules = rules.of(identity);
        rules.map(|r| (r.filter.clone(), r.line)).collect()
    }

    #[test]
    fn own_rules_and_those_for_all_apply_with_their_lines() {
        let text = "[all]\nsubscribe = [\n  \"dcnet/1/+/public/status\",\n]\n\
                    [user.dashboard]\nsubscribe = [\"dcnet/1/+/public/aggregate\"]\n\
                    [certificate.0101010101010101010101010101010101010101]\n";
        let error = format!("{:#}", Rules::parse(text).unwrap_err());
        assert!(error.contains("line 7") && error.contains("32"), "{error}");
        let rules = Rules::parse(&text[..text.rfind('[').unwrap()]).unwrap();
        let all = ("dcnet/1/+/public/status".to_owned(), Some(3));
        let own = ("dcnet/1/+/public/aggregate".to_owned(), Some(6));
        let user = |name: &str| Identity::User(name.into());
        assert_eq!(filters(&rules, &user("dashboard")), [own, all.clone()]);
        assert_eq!(filters(&rules, &user("other")), [all]);
    }

    #[test]
    fn an_empty_file_gives_nothing_and_no_file_the_public_topics() {
        let anyone = Identity::Device(DeviceId([1; 16]));
        assert!(filters(&Rules::parse("").unwrap(), &anyone).is_empty());
        assert_eq!(
            filters(&Rules::default(), &anyone),
            [(LAW.to_owned(), None)]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("[all]\nsubscribe = [\"#\"]", "line 2: \"#\" is more than"),
            ("[all]\nsubscribe = [\"dcnet/1/+/all/#\"]", "is more than"),
            (
                "[all]\nsubscribe = [\"a+/b\"]",
                "line 2: \"a+/b\" is no topic filter",
            ),
            ("[all]\npublish = [\"x\"]", "publish"),
            ("[user.\"a b\"]\n", "line 1"),
            ("[everybody]\n", "everybody"),
        ] {
            let error = format!("{:#}", Rules::parse(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
