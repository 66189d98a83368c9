//! Disks that forget, and a broker that restarts.

use dcnet::output::Input;

use super::{Happening, Network, Saved};

/// A meter's disk that will lose all that one step stored, although the step's messages
/// went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LyingDisk {
    /// The meter.
    pub meter: usize,
    /// Steps that store something and are kept before that.
    pub after: usize,
}

impl Network {
    /// The disk as it is before a step that it may lose.
    pub(super) fn before_step(&self, meter: usize) -> Option<Saved> {
        let lying = self.lying.filter(|lying| lying.meter == meter);
        lying.map(|_| self.saved[meter].clone())
    }

    pub(super) fn after_step(&mut self, meter: usize, before: Option<Saved>, stored: bool) {
        let (Some(before), Some(lying)) = (before.filter(|_| stored), &mut self.lying) else {
            return;
        };
        if lying.after > 0 {
            lying.after -= 1;
            return;
        }
        self.lying = None;
        self.restore_disk(meter, before);
    }

    /// A meter's disk is an older image again, and the meter starts from that.
    ///
    /// # Panics
    /// If there is no such meter, or it cannot start from the image.
    pub fn restore_disk(&mut self, meter: usize, image: Saved) {
        self.saved[meter] = image;
        self.disks[meter] += 1;
        self.restart_meter(meter);
    }

    /// The broker dies: nobody is connected, and everything under way is lost.
    pub fn stop_broker(&mut self) {
        self.queue
            .retain(|next| !matches!(next.0.happening, Happening::Deliver(..)));
        for meter in 0..self.meters.len() {
            self.set_online(meter, false);
        }
        if self.provider_online {
            self.provider_online = false;
            self.input_provider(Input::Disconnected);
        }
    }

    /// The provider connects to the broker again; each meter does so for itself.
    pub fn connect_provider(&mut self) {
        if !self.provider_online {
            self.provider_online = true;
            self.input_provider(Input::Connected);
        }
    }
}
