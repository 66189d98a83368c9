//! MQTT topics of the protocol and who may use them. The broker's gate, the
//! agents and an ACL for a foreign broker are all derived from this module.

use std::fmt;
use std::str::FromStr;

use crate::identity::{DeviceId, Role};

/// First levels of every topic: protocol identifier and version.
pub const ROOT: &str = "dcnet/1";

/// A DC-net: the first 16 bytes of SHA-256 of its Genesis entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetId(pub [u8; 16]);

impl fmt::Display for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetId({self})")
    }
}

impl FromStr for NetId {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        id(text).map(NetId)
    }
}

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }
        impl $name {
            /// All kinds, in topic order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The topic level.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// What a meter sends up to the provider, besides handshakes.
    Up {
        /// Registration (notification 1).
        Register = "register",
        /// "Has entered" (notification 2).
        Entered = "entered",
        /// Signed exit (notification 3).
        Exit = "exit",
        /// Draw request and its opening.
        Draw = "draw",
        /// Submission (notification 5).
        Submission = "submission",
        /// Reveal (notification 4).
        Reveal = "reveal",
        /// Asks for log entries it has missed.
        Log = "log",
        /// Asks for rosters it has missed.
        Roster = "roster",
        /// Backlog of reading commitments.
        Commitments = "commitments",
        /// Bill.
        Bill = "bill",
        /// Online/offline, last will.
        Status = "status",
    }
}

kinds! {
    /// What the provider sends to one meter, besides handshakes.
    Inbox {
        /// Log entries the meter asked for.
        Log = "log",
        /// Rosters the meter asked for.
        Roster = "roster",
        /// Aggregates the meter asked for.
        Aggregate = "aggregate",
    }
}

kinds! {
    /// What the provider sends to every meter of the net.
    All {
        /// New log entries.
        Log = "log",
        /// Rosters.
        Roster = "roster",
        /// Aggregates.
        Aggregate = "aggregate",
    }
}

kinds! {
    /// What third parties with permission may read; retained.
    Public {
        /// The newest aggregate as JSON.
        Aggregate = "aggregate",
        /// The newest aggregate as the provider's signed CBOR frame.
        AggregateCbor = "aggregate/cbor",
        /// State of the net as JSON.
        Status = "status",
        /// The net as a device of Home Assistant: MQTT discovery, with the prefix
        /// `dcnet/1/{net}/public/homeassistant`.
        HomeAssistant = "homeassistant/device/aggregate/config",
    }
}

/// A topic of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// `dcnet/1/{net}/meter/{id}/up/{kind}`
    Up {
        /// The net.
        net: NetId,
        /// The sending meter.
        meter: DeviceId,
        /// What is sent.
        kind: Up,
    },
    /// `dcnet/1/{net}/meter/{id}/up/pair/{peer}`: a meter's half of a handshake.
    UpPair {
        /// The net.
        net: NetId,
        /// The sending meter.
        meter: DeviceId,
        /// The other end of the pair.
        peer: DeviceId,
    },
    /// `dcnet/1/{net}/meter/{id}/inbox/{kind}`
    Inbox {
        /// The net.
        net: NetId,
        /// The receiving meter.
        meter: DeviceId,
        /// What is sent.
        kind: Inbox,
    },
    /// `dcnet/1/{net}/meter/{id}/inbox/pair/{peer}`: the relayed half of a handshake.
    InboxPair {
        /// The net.
        net: NetId,
        /// The receiving meter.
        meter: DeviceId,
        /// The other end of the pair, who sent it.
        peer: DeviceId,
    },
    /// `dcnet/1/{net}/all/{kind}`
    All {
        /// The net.
        net: NetId,
        /// What is sent.
        kind: All,
    },
    /// `dcnet/1/{net}/public/{kind}`
    Public {
        /// The net.
        net: NetId,
        /// What is published.
        kind: Public,
    },
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { net, meter, kind } => {
                write!(f, "{ROOT}/{net}/meter/{meter}/up/{}", kind.as_str())
            }
            Self::UpPair { net, meter, peer } => {
                write!(f, "{ROOT}/{net}/meter/{meter}/up/pair/{peer}")
            }
            Self::Inbox { net, meter, kind } => {
                write!(f, "{ROOT}/{net}/meter/{meter}/inbox/{}", kind.as_str())
            }
            Self::InboxPair { net, meter, peer } => {
                write!(f, "{ROOT}/{net}/meter/{meter}/inbox/pair/{peer}")
            }
            Self::All { net, kind } => write!(f, "{ROOT}/{net}/all/{}", kind.as_str()),
            Self::Public { net, kind } => write!(f, "{ROOT}/{net}/public/{}", kind.as_str()),
        }
    }
}

/// Why a text is no topic of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not one of the forms that [`Topic`] lists.
    #[error("not a topic of {ROOT}")]
    Form,
    /// An identifier is not 32 lower-case hexadecimal digits.
    #[error("an identifier is not 32 lower-case hexadecimal digits")]
    Identifier,
}

fn id(text: &str) -> Result<[u8; 16], TopicError> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(TopicError::Identifier);
    }
    let mut out = [0; 16];
    hex::decode_to_slice(text, &mut out).map_err(|_| TopicError::Identifier)?;
    Ok(out)
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let rest = text
            .strip_prefix(ROOT)
            .and_then(|r| r.strip_prefix('/'))
            .ok_or(TopicError::Form)?;
        let (net, rest) = rest.split_once('/').ok_or(TopicError::Form)?;
        let net = NetId(id(net)?);
        if let Some(kind) = rest.strip_prefix("all/") {
            return All::parse(kind)
                .map(|kind| Self::All { net, kind })
                .ok_or(TopicError::Form);
        }
        if let Some(kind) = rest.strip_prefix("public/") {
            return Public::parse(kind)
                .map(|kind| Self::Public { net, kind })
                .ok_or(TopicError::Form);
        }
        let rest = rest.strip_prefix("meter/").ok_or(TopicError::Form)?;
        let (meter, rest) = rest.split_once('/').ok_or(TopicError::Form)?;
        let meter = DeviceId(id(meter)?);
        if let Some(kind) = rest.strip_prefix("up/") {
            return match kind.strip_prefix("pair/") {
                Some(peer) => Ok(Self::UpPair {
                    net,
                    meter,
                    peer: DeviceId(id(peer)?),
                }),
                None => Up::parse(kind)
                    .map(|kind| Self::Up { net, meter, kind })
                    .ok_or(TopicError::Form),
            };
        }
        let kind = rest.strip_prefix("inbox/").ok_or(TopicError::Form)?;
        match kind.strip_prefix("pair/") {
            Some(peer) => Ok(Self::InboxPair {
                net,
                meter,
                peer: DeviceId(id(peer)?),
            }),
            None => Inbox::parse(kind)
                .map(|kind| Self::Inbox { net, meter, kind })
                .ok_or(TopicError::Form),
        }
    }
}

impl Topic {
    /// The net a topic belongs to.
    pub fn net(&self) -> NetId {
        match *self {
            Self::Up { net, .. }
            | Self::UpPair { net, .. }
            | Self::Inbox { net, .. }
            | Self::InboxPair { net, .. }
            | Self::All { net, .. }
            | Self::Public { net, .. } => net,
        }
    }
}

/// Which direction a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Publish to a topic.
    Publish,
    /// Subscribe to a filter.
    Subscribe,
}

/// Topic filters (MQTT 3.1.1, section 4.7) that an identity may use in one
/// direction; everything else is denied. `net` is the net named in the
/// certificate: meters have exactly one, third parties one or none (all nets).
pub fn allowed_filters(
    role: Role,
    id: DeviceId,
    net: Option<NetId>,
    access: Access,
) -> Vec<String> {
    let net = net.map_or_else(|| "+".to_owned(), |net| net.to_string());
    let own = format!("{ROOT}/{net}/meter/{id}");
    match (role, access) {
        (Role::Meter, Access::Publish) if net != "+" => vec![format!("{own}/up/#")],
        (Role::Meter, Access::Subscribe) if net != "+" => vec![
            format!("{own}/inbox/#"),
            format!("{ROOT}/{net}/all/#"),
            format!("{ROOT}/{net}/public/#"),
        ],
        (Role::Provider, Access::Publish) => vec![
            format!("{ROOT}/+/meter/+/inbox/#"),
            format!("{ROOT}/+/all/#"),
            format!("{ROOT}/+/public/#"),
        ],
        (Role::Provider, Access::Subscribe) => {
            vec![
                format!("{ROOT}/+/meter/+/up/#"),
                format!("{ROOT}/+/public/#"),
            ]
        }
        (Role::ThirdParty, Access::Subscribe) => vec![format!("{ROOT}/{net}/public/#")],
        _ => Vec::new(),
    }
}

/// Whether every topic that `filter` matches is also matched by `allowed`
/// (both MQTT topic filters; a plain topic is a filter that matches itself).
pub fn filter_within(filter: &str, allowed: &str) -> bool {
    let mut inner = filter.split('/');
    let mut outer = allowed.split('/');
    loop {
        match (inner.next(), outer.next()) {
            // "a/#" also matches "a" itself (MQTT 3.1.1, 4.7.1.2).
            (_, Some("#")) => return true,
            (Some("#"), _) => return false,
            (Some("+"), Some(o)) if o != "+" => return false,
            (Some(_), Some("+")) => {}
            (Some(i), Some(o)) if i == o => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetId = NetId([0xab; 16]);
    const A: DeviceId = DeviceId([1; 16]);
    const B: DeviceId = DeviceId([2; 16]);

    fn every_topic() -> Vec<Topic> {
        let mut all = vec![
            Topic::UpPair {
                net: NET,
                meter: A,
                peer: B,
            },
            Topic::InboxPair {
                net: NET,
                meter: A,
                peer: B,
            },
        ];
        all.extend(Up::ALL.iter().map(|&kind| Topic::Up {
            net: NET,
            meter: A,
            kind,
        }));
        all.extend(Inbox::ALL.iter().map(|&kind| Topic::Inbox {
            net: NET,
            meter: A,
            kind,
        }));
        all.extend(All::ALL.iter().map(|&kind| Topic::All { net: NET, kind }));
        all.extend(
            Public::ALL
                .iter()
                .map(|&kind| Topic::Public { net: NET, kind }),
        );
        all
    }

    #[test]
    fn every_topic_survives_its_text() {
        for topic in every_topic() {
            assert_eq!(topic.to_string().parse(), Ok(topic));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let net = NET.to_string();
        for text in [
            "",
            "dcnet/1",
            "dcnet/2/x/all/log",
            &format!("dcnet/1/{net}/all/log/x"),
            &format!("dcnet/1/{net}/meter/{A}/up"),
            &format!("dcnet/1/{net}/meter/{A}/up/pair/{B}/x"),
            &format!("dcnet/1/{}/all/log", net.to_uppercase()),
            &format!("dcnet/1/{net}x/all/log"),
        ] {
            assert!(text.parse::<Topic>().is_err(), "{text}");
        }
    }

    fn may(role: Role, net: Option<NetId>, access: Access, filter: &str) -> bool {
        allowed_filters(role, A, net, access)
            .iter()
            .any(|a| filter_within(filter, a))
    }

    #[test]
    fn a_meter_reaches_only_its_own_topics() {
        let meter = |access, filter: &str| may(Role::Meter, Some(NET), access, filter);
        assert!(meter(
            Access::Publish,
            &Topic::Up {
                net: NET,
                meter: A,
                kind: Up::Reveal
            }
            .to_string()
        ));
        assert!(meter(
            Access::Publish,
            &Topic::UpPair {
                net: NET,
                meter: A,
                peer: B
            }
            .to_string()
        ));
        assert!(!meter(
            Access::Publish,
            &Topic::Up {
                net: NET,
                meter: B,
                kind: Up::Reveal
            }
            .to_string()
        ));
        assert!(!meter(
            Access::Publish,
            &Topic::All {
                net: NET,
                kind: All::Roster
            }
            .to_string()
        ));
        assert!(meter(
            Access::Subscribe,
            &format!("dcnet/1/{NET}/meter/{A}/inbox/#")
        ));
        assert!(!meter(
            Access::Subscribe,
            &format!("dcnet/1/{NET}/meter/{B}/inbox/#")
        ));
        assert!(!meter(
            Access::Subscribe,
            &format!("dcnet/1/{NET}/meter/+/inbox/#")
        ));
        assert!(!meter(
            Access::Subscribe,
            &format!("dcnet/1/{NET}/meter/{A}/up/#")
        ));
        assert!(!meter(Access::Subscribe, "#"));
        assert!(!may(
            Role::Meter,
            None,
            Access::Subscribe,
            &format!("dcnet/1/{NET}/all/#")
        ));
    }

    #[test]
    fn a_third_party_reads_public_topics_and_writes_nothing() {
        let public = Topic::Public {
            net: NET,
            kind: Public::Aggregate,
        }
        .to_string();
        assert!(may(Role::ThirdParty, Some(NET), Access::Subscribe, &public));
        assert!(may(Role::ThirdParty, None, Access::Subscribe, &public));
        assert!(!may(
            Role::ThirdParty,
            Some(NetId([0; 16])),
            Access::Subscribe,
            &public
        ));
        assert!(!may(Role::ThirdParty, Some(NET), Access::Publish, &public));
        assert!(!may(
            Role::ThirdParty,
            None,
            Access::Subscribe,
            &format!("dcnet/1/{NET}/all/#")
        ));
        assert!(!may(
            Role::ThirdParty,
            None,
            Access::Subscribe,
            "dcnet/1/+/meter/+/up/#"
        ));
    }

    #[test]
    fn filters_are_compared_by_what_they_match() {
        for (filter, allowed, within) in [
            ("a/b", "a/b", true),
            ("a/b", "a/+", true),
            ("a/+", "a/b", false),
            ("a/+", "a/+", true),
            ("a/#", "a/+", false),
            ("a/#", "a/#", true),
            ("a", "a/#", true),
            ("a/b/c", "a/#", true),
            ("a/b/c", "a/+", false),
            ("#", "a/#", false),
            ("+/b", "a/b", false),
            ("a/b", "a/b/c", false),
            ("a/+/c", "a/#", true),
            ("", "#", true),
            ("a/", "a", false),
        ] {
            assert_eq!(
                filter_within(filter, allowed),
                within,
                "{filter} within {allowed}"
            );
        }
    }
}
