//! An optical head on a serial port: a thread reads it, finds telegrams, and opens the
//! port again when it was gone.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dcnet::units::{ImpulsesPerKwh, MilliwattHours};

use super::d0::{self, D0Telegrams, Framing};
use super::input::{Fault, Readings, TotalSource};
use super::obis::Obis;
use super::serial::{Port, PortError};
use super::sml::SmlTelegrams;
use super::total::{TotalOptions, Totals};
use super::{Channel, PulseError};

/// How long one attempt to read waits; the thread notices so soon that nobody listens.
const WAIT: Duration = Duration::from_millis(200);
/// Before the first attempt to open a lost port again, and the longest time between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A head that is silent for so long is told of. In between requests that of the requests counts.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest answer to a request: 32 KiB at 300 baud take a quarter of an hour, a usual
/// one of 1 KiB 35 s.
const ANSWER: Duration = Duration::from_secs(180);
/// A meter wants 200 to 1500 ms between its message and ours (IEC 62056-21, section 6.3.14).
const REACTION: Duration = Duration::from_millis(250);

/// A head, and what it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpticalOptions {
    /// The serial port.
    pub port: PathBuf,
    /// Its speed; with requests that of the request.
    pub baud: u32,
    /// What is added up to the total.
    pub codes: Vec<Obis>,
    /// The language.
    pub protocol: Protocol,
    /// How the total is taken.
    pub total: TotalOptions,
}

/// How a meter speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SML, sent unasked.
    Sml,
    /// IEC 62056-21 in plain text ("D0").
    D0 {
        /// How characters are framed.
        framing: Framing,
        /// How often the meter is asked; `None` for one that sends unasked.
        request_every: Option<Duration>,
    },
}

/// What bytes add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A telegram with this total.
    Total(MilliwattHours),
    /// Something of no use.
    Fault(Fault),
    /// A meter has answered to a request, and offers the speed of this character.
    Identified(u8),
}

/// Finds telegrams in a stream of bytes. No bytes make it panic.
pub trait Telegrams: Send + 'static {
    /// Takes one byte.
    fn push(&mut self, byte: u8) -> Option<Event>;

    /// Forgets what was begun.
    fn reset(&mut self);
}

/// The sum of the values `found` of `codes`; a fault names those that are missing, and the
/// energies among the `others`.
pub(super) fn sum(
    codes: &[Obis],
    found: &[Option<MilliwattHours>],
    others: &[Obis],
) -> Result<MilliwattHours, Fault> {
    let mut total = MilliwattHours(0);
    for (code, energy) in codes.iter().zip(found) {
        let Some(energy) = energy else {
            let energies: Vec<String> = others
                .iter()
                .filter(|other| other.is_energy())
                .map(Obis::to_string)
                .collect();
            let has = if energies.is_empty() {
                "no other energy".to_owned()
            } else {
                energies.join(", ")
            };
            return Err(Fault::new(
                "value not in the telegram",
                format!("a telegram has no {code}; it has {has}; correct `obis`"),
            ));
        };
        total = total.checked_add(*energy).ok_or_else(|| {
            Fault::new("value is no energy", "the sum of the values is too large")
        })?;
    }
    Ok(total)
}

/// Starts to read a head. It need not be there yet.
///
/// # Errors
/// [`PulseError::Input`] if there can be no further thread.
pub fn open(
    channel: Channel,
    constant: ImpulsesPerKwh,
    options: &OpticalOptions,
) -> Result<TotalSource, PulseError> {
    let name = options.port.display().to_string();
    let totals = Totals::new(channel, constant, options.total);
    let (source, readings) = TotalSource::new(&name, totals);
    let options = options.clone();
    thread::Builder::new()
        .name("optical-head".to_owned())
        .spawn(move || Head { options, readings }.run())
        .map_err(|error| PulseError::Input {
            input: name,
            problem: format!("cannot start a thread: {error}"),
            advice: "Raise the limit of tasks for this service",
        })?;
    Ok(source)
}

struct Head {
    options: OpticalOptions,
    readings: Readings,
}

impl Head {
    /// Ends when nobody wants readings any more.
    fn run(self) {
        let codes = self.options.codes.clone();
        let mut telegrams: Box<dyn Telegrams> = match self.options.protocol {
            Protocol::Sml => Box::new(SmlTelegrams::new(codes)),
            Protocol::D0 { framing, .. } => Box::new(D0Telegrams::new(codes, framing)),
        };
        let (shortest, longest) = RETRY;
        let mut retry = shortest;
        let mut told = String::new();
        while !self.readings.is_closed() {
            let lost = match Port::open(&self.options.port, self.options.baud) {
                Ok(port) => {
                    tracing::info!(input = self.readings.name(), "the optical head is open");
                    (retry, told) = (shortest, String::new());
                    telegrams.reset();
                    match self.listen(&port, telegrams.as_mut()) {
                        Ok(()) => return,
                        Err(lost) => lost,
                    }
                }
                Err(error) => error,
            };
            let text = lost.to_string();
            if text != told {
                tracing::error!(input = self.readings.name(), "{text}; trying again");
                told = text;
            }
            self.pause(retry);
            retry = (retry * 2).min(longest);
        }
    }

    fn listen(&self, port: &Port, telegrams: &mut dyn Telegrams) -> Result<(), PortError> {
        match self.options.protocol {
            Protocol::D0 {
                framing,
                request_every: Some(every),
            } => {
                let mut next = Instant::now();
                while !self.readings.is_closed() {
                    self.ask(port, telegrams, framing)?;
                    next = (next + every).max(Instant::now());
                    self.pause(next.saturating_duration_since(Instant::now()));
                }
                Ok(())
            }
            Protocol::Sml | Protocol::D0 { .. } => self.overhear(port, telegrams),
        }
    }

    /// Reads a meter that sends unasked.
    fn overhear(&self, port: &Port, telegrams: &mut dyn Telegrams) -> Result<(), PortError> {
        let mut heard = Instant::now();
        let mut silent = false;
        let mut bytes = [0; 512];
        while !self.readings.is_closed() {
            let count = port.read(&mut bytes, WAIT)?;
            for byte in bytes.iter().take(count) {
                match telegrams.push(*byte) {
                    Some(Event::Total(energy)) => {
                        if silent {
                            tracing::info!(input = self.readings.name(), "telegrams come again");
                        }
                        (heard, silent) = (Instant::now(), false);
                        self.readings.reading(energy);
                    }
                    Some(Event::Fault(fault)) => self.readings.fault(&fault),
                    Some(Event::Identified(_)) | None => {}
                }
            }
            if !silent && heard.elapsed() > SILENCE {
                silent = true;
                tracing::warn!(
                    input = self.readings.name(),
                    "no telegram for a minute; look at the position of the optical head, at `baud`, \
                     and whether this meter speaks this protocol"
                );
            }
        }
        Ok(())
    }

    /// Asks a meter once and reads its answer.
    fn ask(
        &self,
        port: &Port,
        telegrams: &mut dyn Telegrams,
        framing: Framing,
    ) -> Result<(), PortError> {
        port.set_baud(self.options.baud)?;
        port.discard_input()?;
        telegrams.reset();
        port.write(&framing.encode(d0::REQUEST))?;
        let begun = Instant::now();
        let mut bytes = [0; 512];
        while begun.elapsed() < ANSWER && !self.readings.is_closed() {
            let count = port.read(&mut bytes, WAIT)?;
            for byte in bytes.iter().take(count) {
                match telegrams.push(*byte) {
                    Some(Event::Total(energy)) => {
                        self.readings.reading(energy);
                        return Ok(());
                    }
                    Some(Event::Fault(fault)) => {
                        self.readings.fault(&fault);
                        return Ok(());
                    }
                    Some(Event::Identified(offer)) => self.agree(port, framing, offer)?,
                    None => {}
                }
            }
        }
        if !self.readings.is_closed() {
            self.readings.fault(&Fault::new(
                "no answer",
                "the meter did not answer to a request; look at the position of the optical head, \
                 or write mode = \"push\" for a meter that sends unasked",
            ));
        }
        Ok(())
    }

    /// Takes up the speed that the meter offers.
    fn agree(&self, port: &Port, framing: Framing, offer: u8) -> Result<(), PortError> {
        let Some(speed) = d0::speed(offer) else {
            return Ok(());
        };
        if let Some(acknowledgement) = speed.acknowledgement {
            thread::sleep(REACTION);
            port.write(&framing.encode(&acknowledgement))?;
            // An adapter may hold bytes that the system thinks have left.
            let bits = u64::try_from(acknowledgement.len() * 10).unwrap_or(0);
            let sending = bits * 1000 / u64::from(self.options.baud.max(1));
            thread::sleep(Duration::from_millis(sending));
        }
        port.set_baud(speed.baud)
    }

    /// Sleeps, but ends early when nobody listens any more.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.readings.is_closed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(WAIT));
        }
    }
}
