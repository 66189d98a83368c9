//! What the gateway administrator and the provider do to the membership: revocations, another
//! key, and entries that the provider's machine would not write.

use ciborium::Value;
use dcnet::cbor;
use dcnet::identity::{DeviceId, DeviceKey, Role};
use dcnet::membership::EntryKind;
use dcnet::output::Input;
use dcnet::provider::{ProviderCommand, ProviderEvent};
use dcnet::revocation::{RevocationList, sign_revocation};

use super::Network;
use crate::world::at;

impl Network {
    /// The gateway administrator revokes a meter, and the provider gets to know.
    pub fn revoke(&mut self, meter: usize) {
        let issue = || self.world.authority.issue(Role::Administrator, None);
        let (key, administrator) = self.administrator.clone().unwrap_or_else(issue);
        let (device, utc) = (self.meters[meter].id(), at(self.now).utc);
        self.revocations.push(sign_revocation(&key, device, utc));
        let old = self.world.provider.revoked.iter();
        let old = old.flat_map(|list| list.devices().copied());
        let revoked: Vec<DeviceId> = old.chain([device]).collect();
        let number = u64::try_from(revoked.len()).unwrap();
        self.world.provider.revoked = Some(RevocationList::new(number, revoked));
        self.administrator = Some((key, administrator));
        self.tell_revocations();
    }

    /// What the provider's agent reads from its files, now and at every start.
    pub(super) fn tell_revocations(&mut self) {
        let list = self.world.provider.revoked.clone();
        if let (Some(list), Some((_, administrator))) = (list, self.administrator.clone()) {
            self.input_provider(Input::Command(ProviderCommand::Revoked {
                list,
                administrator,
                revocations: self.revocations.clone(),
            }));
        }
    }

    /// The provider hands over to a new key, with a restart.
    pub fn change_provider_key(&mut self) {
        let successor = self.world.authority.issue(Role::Provider, None);
        self.world.provider.successor = Some(successor.clone());
        self.restart_provider();
        self.input_provider(Input::Tick);
        let config = &mut self.world.provider;
        self.old_keys.push(config.key.clone());
        (config.key, config.certificate) = successor;
        config.successor = None;
    }

    /// The provider's key that signs with the log at an entry; a provider that lies keeps
    /// its old ones.
    pub fn provider_key_at(&self, index: u64) -> &DeviceKey {
        let in_force = self.provider.membership().provider_key_at(index);
        let mut old = self.old_keys.iter();
        let old = old.find(|key| key.public() == *in_force);
        old.unwrap_or(&self.world.provider.key)
    }

    /// Writes an entry into the log that the provider's machine would not write, and starts
    /// that again with it; false if the log's rules refuse the entry.
    pub fn force_entry(&mut self, kind: EntryKind, body: Value) -> bool {
        let mut log = self.provider.membership().clone();
        let key = self.provider_key_at(log.head().index);
        let entry = log.sign_next(key, kind, body, at(self.now).utc);
        let fits = log.append(&entry).is_ok();
        if fits {
            self.saved_net.entries.push(entry);
            self.restart_provider();
        }
        fits
    }

    /// Marks a meter as lapsed although it is here; false if the log's rules refuse that.
    pub fn lapse(&mut self, meter: usize) -> bool {
        let log = self.provider.membership();
        let place = log.active(&self.meters[meter].id());
        let join = place.and_then(|place| log.hash_at(log.member(place)?.joined));
        let body = |join: [u8; 32]| cbor::array([cbor::bytes(&join)]);
        let done = join.is_some_and(|join| self.force_entry(EntryKind::Lapsed, body(join)));
        if done {
            let meter = self.meters[meter].id();
            self.provider_events.push(ProviderEvent::Lapsed { meter });
        }
        done
    }
}
