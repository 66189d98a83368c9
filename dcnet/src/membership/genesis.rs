//! The first entry of a log: what a net is called, its rules, channels and provider.

use ciborium::Value;

use super::entry::{self, Entry, EntryError, EntryKind};
use super::policy::{self, Policy};
use super::{MAX_CHANNELS, MAX_ENTRY};
use crate::cbor::{self, Fields};
use crate::frame::{FrameError, Unverified};
use crate::identity::{CaCertificate, Certificate, DeviceKey, MAX_CERTIFICATE, Role};
use crate::time::Timestamp;
use crate::topic::NetId;

/// The first entry of a log.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// The net: first 16 bytes of SHA-256 of the entry's payload.
    pub net: NetId,
    /// What people call the net.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Names of its channels, for instance `import`.
    pub channels: Vec<String>,
    /// The provider that signs the log.
    pub provider: Certificate,
}

/// What a new net is made from.
#[derive(Clone, Debug)]
pub struct NewNet {
    /// What people call the net; 1 to 64 bytes.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Names of its channels; 1 to 16, each 1 to 32 bytes, all different.
    pub channels: Vec<String>,
    /// 16 random bytes that make the net's id unique.
    pub salt: [u8; 16],
}

impl NewNet {
    /// Signs the Genesis of the net.
    pub fn sign(
        &self,
        key: &DeviceKey,
        provider: &Certificate,
        ca: &CaCertificate,
        at: Timestamp,
    ) -> Vec<u8> {
        let body = cbor::array([
            cbor::text(&self.name),
            cbor::bytes(&self.salt),
            policy::write(&self.policy),
            cbor::array(self.channels.iter().map(|name| cbor::text(name))),
            cbor::bytes(provider.der()),
            cbor::bytes(&ca.fingerprint()),
        ]);
        entry::sign(key, NetId([0; 16]), 0, None, EntryKind::Genesis, body, at)
    }
}

impl Genesis {
    /// Verifies a Genesis: signed by the provider that it names, whose certificate the
    /// CA issued. Returns the hash of the entry, too.
    ///
    /// # Errors
    /// [`EntryError`].
    pub(super) fn verify(input: &[u8], ca: &CaCertificate) -> Result<(Self, [u8; 32]), EntryError> {
        if input.len() > MAX_ENTRY {
            return Err(FrameError::TooLong.into());
        }
        let frame = Unverified::parse(input)?;
        if frame.claimed().net != NetId([0; 16]) {
            return Err(FrameError::Net.into());
        }
        let at = frame.claimed().timestamp;
        // Who may have signed it is written inside, so it is read before it is believed.
        let claimed = Body::read(frame.claimed_data().clone())?;
        let provider = Certificate::verify(&claimed.provider, ca, at)?;
        if provider.role() != Role::Provider {
            return Err(EntryError::Trust("provider"));
        }
        let entry = Entry::read(frame.verify(provider.key())?, NetId([0; 16]), |_| true)?;
        if claimed.fingerprint != ca.fingerprint() {
            return Err(EntryError::Trust("CA"));
        }
        let mut net = [0; 16];
        net.copy_from_slice(entry.hash.split_at(16).0);
        let genesis = Self {
            net: NetId(net),
            name: claimed.name,
            policy: claimed.policy,
            channels: claimed.channels,
            provider,
        };
        Ok((genesis, entry.hash))
    }
}

/// What a Genesis says, before its signature is verified.
struct Body {
    name: String,
    policy: Policy,
    channels: Vec<String>,
    provider: Vec<u8>,
    fingerprint: [u8; 32],
}

impl Body {
    fn read(data: Value) -> Result<Self, EntryError> {
        let mut entry = Fields::of(data, "entry")?;
        let index = entry.uint("index", u64::MAX)?;
        let previous = entry.fixed_or_null::<32>("previous")?;
        let kind = entry.uint("kind", u64::MAX)?;
        if (index, previous, kind) != (0, None, EntryKind::Genesis as u64) {
            return Err(EntryError::Rule("the first entry is no Genesis"));
        }
        let mut fields = Fields::of(entry.item("body")?, "genesis")?;
        entry.end()?;
        let name = fields.text("name", 64)?;
        fields.fixed::<16>("salt")?;
        let policy = policy::read(fields.item("policy")?)?;
        let mut channels = Vec::new();
        for item in fields.array("channels", MAX_CHANNELS)? {
            let Value::Text(channel) = item else {
                return Err(FrameError::Field("channel").into());
            };
            if channel.is_empty() || channel.len() > 32 || channels.contains(&channel) {
                return Err(FrameError::Bound("channel").into());
            }
            channels.push(channel);
        }
        if channels.is_empty() {
            return Err(FrameError::Bound("channels").into());
        }
        let provider = fields.bytes("provider certificate", MAX_CERTIFICATE)?;
        let fingerprint = fields.fixed("CA fingerprint")?;
        fields.end()?;
        Ok(Self {
            name,
            policy,
            channels,
            provider,
            fingerprint,
        })
    }
}
