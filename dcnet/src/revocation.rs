//! The gateway administrator's revocations: a signed, numbered list of devices, by
//! which the broker refuses connections and meters make no new pair keys; and a
//! statement for one device, which stands in the membership log.

use std::collections::BTreeSet;

use ciborium::Value;

use crate::cbor::{self, Fields};
use crate::frame::{self, Frame, FrameError, Notification};
use crate::identity::{Certificate, DeviceId, DeviceKey, Role};
use crate::time::Timestamp;
use crate::topic::NetId;

/// Longest list: its frame stays below 64 KiB.
pub const MAX_REVOKED: usize = 3600;

/// A list of revoked devices; a higher number replaces a lower one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    number: u64,
    revoked: BTreeSet<DeviceId>,
}

impl RevocationList {
    /// A list; at most [`MAX_REVOKED`] devices can be signed.
    pub fn new(number: u64, revoked: Vec<DeviceId>) -> Self {
        Self {
            number,
            revoked: revoked.into_iter().collect(),
        }
    }

    /// Signs it with the administrator's key.
    pub fn sign(&self, key: &DeviceKey, at: Timestamp) -> Vec<u8> {
        frame::sign(
            key,
            NetId([0; 16]),
            at,
            Notification::Revocations,
            self.data(),
        )
    }

    /// Verifies a list of this administrator; ids must be strictly ascending.
    ///
    /// # Errors
    /// [`FrameError`], of kind [`FrameError::Sender`] if the certificate is not an administrator's.
    pub fn verify(input: &[u8], administrator: &Certificate) -> Result<Self, FrameError> {
        if administrator.role() != Role::Administrator {
            return Err(FrameError::Sender);
        }
        let frame = Frame::verify(input, administrator.key())?;
        Self::read(frame.open(NetId([0; 16]), Notification::Revocations)?)
    }

    /// The list without a signature, as a meter stores it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&self.data())
    }

    /// Reads [`Self::to_bytes`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        Self::read(Fields::of(cbor::decode(bytes)?, "revocations")?)
    }

    fn data(&self) -> Value {
        let ids = self.revoked.iter().map(|id| cbor::bytes(&id.0));
        cbor::array([cbor::uint(self.number), cbor::array(ids)])
    }

    fn read(mut fields: Fields) -> Result<Self, FrameError> {
        let number = fields.uint("number", u64::MAX)?;
        let mut revoked = BTreeSet::new();
        for item in fields.array("revoked", MAX_REVOKED)? {
            let Value::Bytes(bytes) = item else {
                return Err(FrameError::Field("revoked"));
            };
            let id = DeviceId(bytes.try_into().map_err(|_| FrameError::Bound("revoked"))?);
            if revoked.last().is_some_and(|last| *last >= id) {
                return Err(FrameError::Bound("revoked"));
            }
            revoked.insert(id);
        }
        fields.end()?;
        Ok(Self { number, revoked })
    }

    /// The number of the list.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it takes the place of the list in force: of none always, else only with a
    /// higher number.
    pub fn replaces(&self, in_force: Option<&Self>) -> bool {
        in_force.is_none_or(|old| self.number > old.number)
    }

    /// Whether a device is revoked.
    pub fn contains(&self, id: &DeviceId) -> bool {
        self.revoked.contains(id)
    }

    /// The revoked devices in ascending order.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.revoked.iter()
    }
}

/// Signs the revocation of one device with the administrator's key.
pub fn sign_revocation(key: &DeviceKey, device: DeviceId, at: Timestamp) -> Vec<u8> {
    let data = cbor::array([cbor::bytes(&device.0)]);
    frame::sign(key, NetId([0; 16]), at, Notification::Revocation, data)
}

/// Verifies the revocation of one device by this administrator.
///
/// # Errors
/// [`FrameError`], of kind [`FrameError::Sender`] if the certificate is not an administrator's.
pub fn verify_revocation(
    input: &[u8],
    administrator: &Certificate,
) -> Result<DeviceId, FrameError> {
    if administrator.role() != Role::Administrator {
        return Err(FrameError::Sender);
    }
    let frame = Frame::verify(input, administrator.key())?;
    let mut fields = frame.open(NetId([0; 16]), Notification::Revocation)?;
    let device = DeviceId(fields.fixed("device")?);
    fields.end()?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_higher_number_replaces_the_list_in_force() {
        let list = |number, devices: &[u8]| {
            RevocationList::new(number, devices.iter().map(|d| DeviceId([*d; 16])).collect())
        };
        let in_force = list(2, &[1, 2]);
        assert!(list(0, &[]).replaces(None));
        assert!(list(3, &[]).replaces(Some(&in_force)));
        assert!(!list(2, &[1, 2, 3]).replaces(Some(&in_force)));
        assert!(!list(1, &[1, 2, 3]).replaces(Some(&in_force)));
    }
}
