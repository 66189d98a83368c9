//! What the register has to know of the net: the length of its rounds and its channels.

use std::sync::OnceLock;

use dcnet::reading::Boundary;
use dcnet::time::Period;
use tokio::sync::watch;

use crate::register::RegisterChannel;

/// The net as far as it is known. A net never changes its rounds or channels, so it
/// becomes known once.
#[derive(Debug)]
pub(super) struct NetView {
    own: Vec<String>,
    /// For every channel of the net, in its order: the place among our own.
    places: OnceLock<Vec<usize>>,
    period: watch::Sender<Option<Period>>,
}

impl NetView {
    pub(super) fn new(own: &[RegisterChannel]) -> Self {
        Self {
            own: own.iter().map(|channel| channel.name.clone()).collect(),
            places: OnceLock::new(),
            period: watch::Sender::new(None),
        }
    }

    /// The length of a round, once it is known.
    pub(super) fn period(&self) -> watch::Receiver<Option<Period>> {
        self.period.subscribe()
    }

    /// The rules of the net are known. Without each of its channels there is nothing
    /// to submit: then the register counts on, but no boundary is handed to the meter.
    pub(super) fn open(&self, period: Period, channels: &[String]) {
        if self.places.get().is_some() {
            return;
        }
        match places(channels, &self.own) {
            Ok(places) => {
                // In this order: there is no boundary before the period is known.
                let _ = self.places.set(places);
                self.period.send_replace(Some(period));
            }
            Err(missing) => tracing::error!(
                "the net has the channel {missing:?}, but this meter is configured with {} only: \
                 it takes no part; add a [[channel]] with name = {missing:?} and start again",
                self.own.join(", ")
            ),
        }
    }

    /// The boundary with the net's channels in the net's order; `None` while they are not known.
    pub(super) fn ordered(&self, boundary: &Boundary) -> Option<Boundary> {
        let values = &boundary.channels;
        let channels = self.places.get()?.iter();
        Some(Boundary {
            at: boundary.at,
            channels: channels
                .map(|place| values.get(*place).copied())
                .collect::<Option<_>>()?,
        })
    }
}

/// Where each of `wanted` stands in `own`, or the first that does not.
fn places<'a>(wanted: &'a [String], own: &[String]) -> Result<Vec<usize>, &'a str> {
    wanted
        .iter()
        .map(|name| {
            own.iter()
                .position(|other| other == name)
                .ok_or(name.as_str())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use dcnet::time::Timestamp;
    use dcnet::units::{ImpulsesPerKwh, MilliwattHours};

    use super::*;

    fn view(own: &[&str]) -> NetView {
        let constant = ImpulsesPerKwh::new(1000).unwrap();
        let channels: Vec<_> = own
            .iter()
            .map(|name| RegisterChannel {
                name: (*name).to_owned(),
                constant,
            })
            .collect();
        NetView::new(&channels)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn boundary(values: &[u64]) -> Boundary {
        Boundary {
            at: Timestamp(2000),
            channels: values.iter().copied().map(MilliwattHours).collect(),
        }
    }

    #[test]
    fn channels_are_matched_by_name_and_others_left_out() {
        let view = view(&["heat", "import", "export"]);
        assert_eq!(view.ordered(&boundary(&[1, 2, 3])), None, "not known yet");
        let period = Period::from_secs(2).unwrap();
        view.open(period, &names(&["export", "import"]));
        assert_eq!(view.ordered(&boundary(&[1, 2, 3])), Some(boundary(&[3, 2])));
        assert_eq!(*view.period().borrow(), Some(period));
        view.open(Period::from_secs(4).unwrap(), &names(&["import"]));
        assert_eq!(*view.period().borrow(), Some(period), "known once");
    }

    #[test]
    fn without_a_channel_of_the_net_there_are_no_boundaries() {
        let view = view(&["import"]);
        view.open(Period::from_secs(2).unwrap(), &names(&["import", "export"]));
        assert_eq!(*view.period().borrow(), None);
        assert_eq!(view.ordered(&boundary(&[1])), None);
        assert_eq!(places(&names(&["a", "b"]), &names(&["a"])), Err("b"));
    }
}
