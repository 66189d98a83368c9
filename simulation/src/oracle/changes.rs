//! What happens to the membership of a net while the oracle watches.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::meter::MeterCommand;
use dcnet::output::Input;
use dcnet::provider::ProviderEvent;

use super::account::Account;
use super::scenario::Dice;
use super::trace::Trace;
use crate::network::Saved;

/// Fewest members that changes leave, so that rounds go on.
const FEWEST: usize = 6;

/// A change of the membership, or of the provider's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// An honest meter leaves.
    Exit,
    /// All corrupted meters leave, as far as enough members stay.
    ExitOfCorrupted,
    /// A third of all members leaves at once: others have lost half of their draw, or more than
    /// their floor, and draw again.
    Exodus,
    /// The gateway administrator revokes a meter.
    Revocation,
    /// The provider marks a meter as lapsed that takes part.
    FalseLapse,
    /// A meter loses its state: it leaves and joins anew.
    LostState,
    /// The provider hands over to another key.
    KeyChange,
}

/// What may happen under an honest provider. Whom it lapses, it does of itself.
pub const HONEST: [Change; 6] = [
    Change::Exit,
    Change::ExitOfCorrupted,
    Change::Exodus,
    Change::Revocation,
    Change::LostState,
    Change::KeyChange,
];

/// What may happen under a hostile one.
pub const ALL: [Change; 7] = [
    Change::Exit,
    Change::ExitOfCorrupted,
    Change::Exodus,
    Change::Revocation,
    Change::FalseLapse,
    Change::LostState,
    Change::KeyChange,
];

impl Change {
    /// Lets it happen; false if there is nobody to whom it can.
    pub(super) fn happen(
        self,
        trace: &mut Trace,
        corrupted: &BTreeSet<usize>,
        dice: &mut Dice,
    ) -> bool {
        trace.record();
        let here = members(trace);
        let spare = here.len().saturating_sub(FEWEST);
        let honest: Vec<usize> = here.difference(corrupted).copied().collect();
        let any: Vec<usize> = here.iter().copied().collect();
        let one = |from: &[usize], dice: &mut Dice| {
            let place = dice.size(u64::try_from(from.len()).unwrap_or(1));
            from.get(place).copied()
        };
        let done = match self {
            Self::Exit => leave(trace, one(&honest, dice).into_iter().take(spare)),
            Self::ExitOfCorrupted => {
                let gone: Vec<usize> = here.intersection(corrupted).copied().collect();
                leave(trace, gone.into_iter().take(spare))
            }
            Self::Exodus => {
                let third = dice.meters(any.len() / 3, any.len());
                let gone = third
                    .into_iter()
                    .filter_map(|place| any.get(place).copied());
                leave(trace, gone.take(spare))
            }
            Self::Revocation => one(&any, dice).filter(|_| spare > 0).is_some_and(|meter| {
                trace.network.revoke(meter);
                true
            }),
            Self::FalseLapse => one(&honest, dice).is_some_and(|meter| trace.network.lapse(meter)),
            Self::LostState => one(&any, dice).is_some_and(|meter| {
                trace.roll_back(meter, Saved::default());
                true
            }),
            Self::KeyChange => {
                trace.network.change_provider_key();
                true
            }
        };
        trace.record();
        done
    }
}

fn members(trace: &Trace) -> BTreeSet<usize> {
    let log = trace.network.provider.membership();
    let meters = trace.network.meters.iter().enumerate();
    let here = meters.filter(|(_, meter)| log.active(&meter.id()).is_some());
    here.map(|(meter, _)| meter).collect()
}

fn leave(trace: &mut Trace, meters: impl Iterator<Item = usize>) -> bool {
    let mut any = false;
    for meter in meters {
        let command = Input::Command(MeterCommand::Leave);
        trace.network.input_meter(meter, command);
        any = true;
    }
    any
}

/// How often what happened, by the log and by what meters answered.
pub(super) fn count(trace: &Trace, account: &Account) -> BTreeMap<&'static str, usize> {
    let network = &trace.network;
    let events = |is: fn(&ProviderEvent) -> bool| {
        let events = network.provider_events.iter();
        events.filter(|event| is(event)).count()
    };
    let log = network.provider.membership();
    let draws = (0..).zip(log.members()).map(|(place, _)| {
        let draws = log.graph().draws(place).len();
        draws.saturating_sub(1)
    });
    let places = log.members().iter();
    let answers = account.answers.iter();
    BTreeMap::from([
        ("exits", events(|e| matches!(e, ProviderEvent::Left { .. }))),
        (
            "revocations",
            events(|e| matches!(e, ProviderEvent::Revoked { .. })),
        ),
        (
            "lapses",
            events(|e| matches!(e, ProviderEvent::Lapsed { .. })),
        ),
        (
            "key changes",
            events(|e| matches!(e, ProviderEvent::KeyChanged { .. })),
        ),
        (
            "new memberships",
            places.filter(|place| place.earlier.is_some()).count(),
        ),
        ("redraws", draws.sum()),
        (
            "answers with fewer than were drawn",
            answers.filter(|answer| answer.departed > 0).count(),
        ),
    ])
}
