//! The gateway administrator's signed view of a membership log. A joiner refuses
//! a log that does not contain its checkpoint, so a provider cannot show it a
//! world of its own (`docs/protocol.md`, "Identities").

use crate::cbor;
use crate::frame::{self, Frame, FrameError, Notification};
use crate::identity::{Certificate, DeviceKey, Role};
use crate::time::Timestamp;
use crate::topic::NetId;

/// A statement that a net's log had `head` at `index` and that many members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The net.
    pub net: NetId,
    /// Index of the entry in the log; Genesis is 0.
    pub index: u64,
    /// Hash of that entry.
    pub head: [u8; 32],
    /// Members as of that entry.
    pub members: u32,
}

impl Checkpoint {
    /// Signs it with the administrator's key.
    pub fn sign(&self, key: &DeviceKey, at: Timestamp) -> Vec<u8> {
        let data = cbor::array([
            cbor::uint(self.index),
            cbor::bytes(&self.head),
            cbor::uint(self.members),
        ]);
        frame::sign(key, self.net, at, Notification::Checkpoint, data)
    }

    /// Verifies a checkpoint of this administrator.
    ///
    /// # Errors
    /// [`FrameError`], of kind [`FrameError::Sender`] if the certificate is not an administrator's.
    pub fn verify(input: &[u8], administrator: &Certificate) -> Result<Self, FrameError> {
        if administrator.role() != Role::Administrator {
            return Err(FrameError::Sender);
        }
        let frame = Frame::verify(input, administrator.key())?;
        let net = frame.header().net;
        let mut fields = frame.open(net, Notification::Checkpoint)?;
        let checkpoint = Self {
            net,
            index: fields.uint("index", u64::MAX)?,
            head: fields.fixed("head")?,
            members: fields.u32("members")?,
        };
        fields.end()?;
        Ok(checkpoint)
    }
}
