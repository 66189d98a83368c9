//! What a principal may publish and subscribe to, and which topics and filters
//! are sane at all. Everything not allowed here is denied.

use dcnet::identity::{DeviceId, Role};
use dcnet::topic::{Access, allowed_filters, filter_within};

use crate::client::Client;
use crate::rules::Rules;

/// Longest topic or filter, in bytes.
pub(crate) const MAX_TOPIC: usize = 256;

/// Users are no devices; no filter of third parties contains an id.
pub(crate) const NOBODY: DeviceId = DeviceId([0; 16]);

/// What a client may use, by its certificate or as a user.
#[derive(Debug)]
pub(crate) struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// Filters that a third party's subscriptions must be within as well: nothing
    /// in the permission file gives more than a certificate does.
    law: Option<Vec<String>>,
}

impl Permissions {
    /// For agents what their role gives; for third parties what `rules` give
    /// within that, too.
    pub(crate) fn of(client: &Client, rules: &Rules) -> Self {
        let law = |access| match client {
            Client::Device(certificate) => allowed_filters(
                certificate.role(),
                certificate.id(),
                certificate.net(),
                access,
            ),
            Client::User(_) => allowed_filters(Role::ThirdParty, NOBODY, None, access),
        };
        let publish = law(Access::Publish);
        let subscribe = law(Access::Subscribe);
        match client.role() {
            Role::ThirdParty => {
                let identity = client.identity();
                let rules = rules.of(&identity);
                Self {
                    publish,
                    subscribe: rules.map(|rule| rule.filter.clone()).collect(),
                    law: Some(subscribe),
                }
            }
            _ => Self {
                publish,
                subscribe,
                law: None,
            },
        }
    }

    /// Whether `topic` is a sane topic that the holder may publish to.
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        is_topic(topic) && within(topic, &self.publish)
    }

    /// Whether `filter` is a valid filter that matches nothing but what the
    /// holder may read.
    pub(crate) fn may_subscribe(&self, filter: &str) -> bool {
        let lawful = self.law.as_ref().is_none_or(|law| within(filter, law));
        is_filter(filter) && lawful && within(filter, &self.subscribe)
    }
}

fn within(filter: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|allowed| filter_within(filter, allowed))
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
