//! What a principal may publish and subscribe to, and which topics and filters
//! are sane at all. Everything not allowed here is denied.

use dcnet::identity::{DeviceId, Role};
use dcnet::topic::{Access, NetId, allowed_filters, filter_within};

use crate::client::{Client, Identity};
use crate::rules::{Rule, Rules};

/// Longest topic or filter, in bytes.
pub(crate) const MAX_TOPIC: usize = 256;

/// Users are no devices; no filter of third parties contains an id.
const NOBODY: DeviceId = DeviceId([0; 16]);

/// What a client may use, by its certificate or as a user.
#[derive(Debug)]
pub(crate) struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// For third parties: the rules of the permission file, one of which a subscription must
    /// be within as well. Nothing in that file gives more than a certificate does.
    rules: Option<Vec<Rule>>,
}

/// What allows something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant<'a> {
    /// The role, by this filter.
    Role(&'a str),
    /// A rule of the permission file.
    Rule(&'a Rule),
}

/// Why something is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial<'a> {
    /// No sane topic, or filter.
    Form,
    /// The role allows these filters only.
    Role(&'a [String]),
    /// No rule of the permission file covers it.
    NoRule,
}

impl Permissions {
    /// Of a client whose certificate or password was verified.
    pub(crate) fn of(client: &Client, rules: &Rules) -> Self {
        let net = match client {
            Client::Device(certificate) => certificate.net(),
            Client::User(_) => None,
        };
        Self::new(&client.identity(), client.role(), net, rules)
    }

    /// For agents what their role gives; for third parties what `rules` give within that,
    /// too. `net` is the one that the certificate names.
    pub(crate) fn new(identity: &Identity, role: Role, net: Option<NetId>, rules: &Rules) -> Self {
        let id = match identity {
            Identity::Device(id) => *id,
            Identity::User(_) => NOBODY,
        };
        Self {
            publish: allowed_filters(role, id, net, Access::Publish),
            subscribe: allowed_filters(role, id, net, Access::Subscribe),
            rules: (role == Role::ThirdParty).then(|| rules.of(identity).cloned().collect()),
        }
    }

    /// Whether and by what the holder may publish to a topic.
    pub(crate) fn publish(&self, topic: &str) -> Result<Grant<'_>, Denial<'_>> {
        if !is_topic(topic) {
            return Err(Denial::Form);
        }
        by_role(topic, &self.publish)
    }

    /// Whether and by what the holder may read all that a filter matches.
    pub(crate) fn subscribe(&self, filter: &str) -> Result<Grant<'_>, Denial<'_>> {
        if !is_filter(filter) {
            return Err(Denial::Form);
        }
        let lawful = by_role(filter, &self.subscribe)?;
        let Some(rules) = &self.rules else {
            return Ok(lawful);
        };
        let rule = rules
            .iter()
            .find(|rule| filter_within(filter, &rule.filter));
        rule.map(Grant::Rule).ok_or(Denial::NoRule)
    }

    /// As [`Self::publish`].
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        self.publish(topic).is_ok()
    }

    /// As [`Self::subscribe`].
    pub(crate) fn may_subscribe(&self, filter: &str) -> bool {
        self.subscribe(filter).is_ok()
    }
}

fn by_role<'a>(filter: &str, allowed: &'a [String]) -> Result<Grant<'a>, Denial<'a>> {
    let covers = |allowed: &&String| filter_within(filter, allowed);
    match allowed.iter().find(covers) {
        Some(allowed) => Ok(Grant::Role(allowed)),
        None => Err(Denial::Role(allowed)),
    }
}

/// Printable ASCII without a leading `$`: rumqttd slices topics by bytes, and
/// `$` is for brokers' own topics and shared subscriptions.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_TOPIC
        && !text.starts_with('$')
        && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// A topic name (MQTT 3.1.1, section 4.7) of printable ASCII.
pub(crate) fn is_topic(text: &str) -> bool {
    is_plain(text) && !text.contains(['+', '#'])
}

/// A topic filter (MQTT 3.1.1, section 4.7) of printable ASCII, not shared.
pub(crate) fn is_filter(text: &str) -> bool {
    let mut levels = text.split('/').peekable();
    let mut valid = is_plain(text);
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        valid &= match level {
            "+" => true,
            "#" => last,
            level => !level.contains(['+', '#']),
        };
    }
    valid
}

/// Whether `topic` is matched by `filter`; both must be sane.
pub(crate) fn matches(topic: &str, filter: &str) -> bool {
    filter_within(topic, filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_topics_are_no_topics() {
        for topic in [
            "",
            "é/a",
            "a/é",
            "a/\u{0}",
            "a\n",
            "$SYS/x",
            "$share/g/a",
            "a/+/b",
            "a/#",
            &"a".repeat(257),
        ] {
            assert!(!is_topic(topic), "{topic:?}");
        }
        assert!(is_topic("dcnet/1/x"));
        assert!(is_topic("/"));
    }

    #[test]
    fn filters_follow_the_standard() {
        for (filter, valid) in [
            ("a/+/b", true),
            ("a/#", true),
            ("#", true),
            ("+", true),
            ("a/#/b", false),
            ("a#", false),
            ("a+/b", false),
            ("$share/g/a", false),
            ("", false),
            ("ä/#", false),
        ] {
            assert_eq!(is_filter(filter), valid, "{filter}");
        }
    }
}
