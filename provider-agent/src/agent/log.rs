//! What happens in the nets, as log lines.

use std::collections::BTreeSet;

use dcnet::identity::DeviceId;
use dcnet::provider::ProviderEvent;
use dcnet::topic::Topic;

use super::HANDED_OVER;
use crate::nets::NetEvent;

/// Pairs of sender and reason that are remembered so as to log each refusal once.
const REFUSALS: usize = 4096;

/// Events as log lines; a refusal once per sender and reason.
#[derive(Default)]
pub(super) struct Log {
    refused: BTreeSet<(Option<DeviceId>, String)>,
}

impl Log {
    pub(super) fn write(&mut self, event: &NetEvent) {
        let net = event.net;
        match &event.event {
            ProviderEvent::Joined { meter, members } => {
                tracing::info!(%net, %meter, members, "joined");
            }
            ProviderEvent::Left { meter, members } => {
                tracing::info!(%net, %meter, members, "left by its own exit");
            }
            ProviderEvent::Revoked { meter, members } => {
                tracing::warn!(%net, %meter, members, "revoked by the gateway administrator");
            }
            ProviderEvent::Lapsed { meter } => {
                tracing::info!(%net, %meter, "was away for long: no draw names it until it draws");
            }
            ProviderEvent::KeyChanged { provider } => {
                tracing::warn!(%net, %provider, "{HANDED_OVER}");
            }
            ProviderEvent::Drawn { meter } => tracing::debug!(%net, %meter, "drawn"),
            ProviderEvent::Entered { meter } => tracing::info!(%net, %meter, "entered"),
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } => tracing::debug!(%net, %round, included, dropped, "roster issued"),
            ProviderEvent::NoRoster { round, submissions } => {
                tracing::warn!(%net, %round, submissions, "no roster: too few submissions for what the meters ask for");
            }
            ProviderEvent::Aggregated(published) => tracing::info!(
                %net,
                round = %published.round,
                included = published.included.len(),
                members = published.members,
                latency = ?event.latency.unwrap_or_default(),
                "verified aggregate"
            ),
            ProviderEvent::Pending { round, missing } => {
                tracing::warn!(%net, %round, ?missing, "pending: reveals are missing");
            }
            ProviderEvent::Lost { round, missing } => {
                tracing::warn!(%net, %round, ?missing, "lost");
            }
            ProviderEvent::Refused { topic, reason } => {
                let sender = match topic {
                    Topic::Up { meter, .. } | Topic::UpPair { meter, .. } => Some(*meter),
                    _ => None,
                };
                let new = self.refused.len() < REFUSALS
                    && self.refused.insert((sender, reason.to_string()));
                if new {
                    tracing::warn!(%net, %topic, %reason, "refused; repetitions are not logged");
                } else {
                    tracing::debug!(%net, %topic, %reason, "refused");
                }
            }
            ProviderEvent::Alarm(alarm) => tracing::error!(%net, %alarm, "alarm"),
        }
    }
}
