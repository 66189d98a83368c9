//! Optical heads on serial ports: a thread for each port reads it, finds telegrams, and
//! opens the port again when it was gone. Several channels share one head, such as import and
//! export of one meter.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dcnet::units::{ImpulsesPerKwh, MilliwattHours};
use link::back_off::{BackOff, Waits};

use super::d0::{self, D0Telegrams, Framing};
use super::input::{Fault, Readings, TotalSource};
use super::obis::Obis;
use super::serial::{Port, PortError};
use super::sml::SmlTelegrams;
use super::total::{TotalOptions, Totals};
use super::{Channel, PulseError};

/// How long one attempt to read waits; the thread notices so soon that nobody listens.
const WAIT: Duration = Duration::from_millis(200);
/// Between attempts to open a lost port again.
const RETRY: BackOff = BackOff {
    min: Duration::from_millis(250),
    max: Duration::from_secs(30),
};
/// A head that is silent for so long is told of. In between requests that of the requests counts.
const SILENCE: Duration = Duration::from_secs(60);
/// What to look at when nothing comes from a head.
const ADVICE: &str = "look at the position of the optical head, at `baud`, and whether this meter \
                      speaks this protocol";
/// The longest answer to a request: 32 KiB at 300 baud take a quarter of an hour, a usual
/// one of 1 KiB 35 s.
const ANSWER: Duration = Duration::from_secs(180);
/// A meter wants 200 to 1500 ms between its message and ours (IEC 62056-21, section 6.3.14).
const REACTION: Duration = Duration::from_millis(250);

/// A head, and what a channel hears by it.
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

/// A channel and the head it is read by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadChannel {
    /// Whose total.
    pub channel: Channel,
    /// The resolution.
    pub constant: ImpulsesPerKwh,
    /// The head. Those of one port have to agree on speed and protocol.
    pub options: OpticalOptions,
}

/// Starts to read the heads of all channels, in their order. They need not be there yet.
///
/// # Errors
/// [`PulseError::Input`] if there can be no further thread.
pub fn open(channels: &[HeadChannel]) -> Result<Vec<TotalSource>, PulseError> {
    let mut heads: Vec<Head> = Vec::new();
    let mut sources = Vec::with_capacity(channels.len());
    for of in channels {
        let options = &of.options;
        let codes: Vec<String> = options.codes.iter().map(Obis::to_string).collect();
        let name = format!("{} {}", options.port.display(), codes.join("+"));
        let totals = Totals::new(of.channel, of.constant, options.total);
        let (source, readings) = TotalSource::new(&name, ADVICE, totals);
        sources.push(source);
        let codes = options.codes.clone();
        let telegrams: Box<dyn Telegrams> = match options.protocol {
            Protocol::Sml => Box::new(SmlTelegrams::new(codes)),
            Protocol::D0 { framing, .. } => Box::new(D0Telegrams::new(codes, framing)),
        };
        let listener = Listener {
            telegrams,
            readings,
            answered: false,
        };
        match heads.iter_mut().find(|head| head.port == options.port) {
            Some(head) => head.listeners.push(listener),
            None => heads.push(Head {
                name: options.port.display().to_string(),
                port: options.port.clone(),
                baud: options.baud,
                protocol: options.protocol,
                listeners: vec![listener],
            }),
        }
    }
    for head in heads {
        let name = head.name.clone();
        thread::Builder::new()
            .name("optical-head".to_owned())
            .spawn(move || head.run())
            .map_err(|error| PulseError::Input {
                input: name,
                problem: format!("cannot start a thread: {error}"),
                advice: "Raise the limit of tasks for this service",
            })?;
    }
    Ok(sources)
}

/// One channel's part of what a head hears.
struct Listener {
    telegrams: Box<dyn Telegrams>,
    readings: Readings,
    /// Whether the present request has got a total or a fault.
    answered: bool,
}

struct Head {
    name: String,
    port: PathBuf,
    baud: u32,
    protocol: Protocol,
    /// At least one.
    listeners: Vec<Listener>,
}

/// What a few bytes were to the listeners.
#[derive(Default)]
struct Heard {
    total: bool,
    offer: Option<u8>,
}

impl Head {
    /// Ends when nobody wants readings any more.
    fn run(mut self) {
        let mut waits = Waits::new(RETRY);
        let mut told = String::new();
        while !self.is_closed() {
            let begun = Instant::now();
            let lost = match Port::open(&self.port, self.baud) {
                Ok(port) => {
                    tracing::info!(input = self.name, "the optical head is open");
                    self.trouble(None);
                    self.reset();
                    match self.listen(&port) {
                        Ok(()) => return,
                        Err(lost) => lost,
                    }
                }
                Err(error) => error,
            };
            if waits.was_good_for(begun.elapsed()) {
                told.clear();
            }
            let text = lost.to_string();
            self.trouble(Some(&text));
            if text != told {
                tracing::error!(input = self.name, "{text}; trying again");
                told = text;
            }
            self.pause(waits.next_wait());
        }
    }

    fn is_closed(&self) -> bool {
        self.listeners
            .iter()
            .all(|listener| listener.readings.is_closed())
    }

    fn trouble(&self, trouble: Option<&str>) {
        for listener in &self.listeners {
            listener.readings.trouble(trouble);
        }
    }

    fn reset(&mut self) {
        for listener in &mut self.listeners {
            listener.telegrams.reset();
            listener.answered = false;
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Heard {
        let mut heard = Heard::default();
        for listener in &mut self.listeners {
            for byte in bytes {
                match listener.telegrams.push(*byte) {
                    Some(Event::Total(energy)) => {
                        listener.readings.reading(energy);
                        (heard.total, listener.answered) = (true, true);
                    }
                    Some(Event::Fault(fault)) => {
                        listener.readings.fault(&fault);
                        listener.answered = true;
                    }
                    Some(Event::Identified(offer)) => heard.offer = Some(offer),
                    None => {}
                }
            }
        }
        heard
    }

    fn listen(&mut self, port: &Port) -> Result<(), PortError> {
        match self.protocol {
            Protocol::D0 {
                framing,
                request_every: Some(every),
            } => {
                let mut next = Instant::now();
                while !self.is_closed() {
                    self.ask(port, framing)?;
                    next = (next + every).max(Instant::now());
                    self.pause(next.saturating_duration_since(Instant::now()));
                }
                Ok(())
            }
            Protocol::Sml | Protocol::D0 { .. } => self.overhear(port),
        }
    }

    /// Reads a meter that sends unasked.
    fn overhear(&mut self, port: &Port) -> Result<(), PortError> {
        let mut last = Instant::now();
        let mut silent = false;
        let mut bytes = [0; 512];
        while !self.is_closed() {
            let count = port.read(&mut bytes, WAIT)?;
            if self.hear(bytes.get(..count).unwrap_or_default()).total {
                if silent {
                    tracing::info!(input = self.name, "telegrams come again");
                }
                (last, silent) = (Instant::now(), false);
            }
            if !silent && last.elapsed() > SILENCE {
                silent = true;
                tracing::warn!(input = self.name, "no telegram for a minute; {ADVICE}");
            }
        }
        Ok(())
    }

    /// Asks a meter once and reads its answer.
    fn ask(&mut self, port: &Port, framing: Framing) -> Result<(), PortError> {
        port.set_baud(self.baud)?;
        port.discard_input()?;
        self.reset();
        port.write(&framing.encode(d0::REQUEST))?;
        let begun = Instant::now();
        let mut bytes = [0; 512];
        while begun.elapsed() < ANSWER && !self.is_closed() {
            let count = port.read(&mut bytes, WAIT)?;
            let heard = self.hear(bytes.get(..count).unwrap_or_default());
            if let Some(offer) = heard.offer {
                self.agree(port, framing, offer)?;
            }
            if self.listeners.iter().all(|listener| listener.answered) {
                return Ok(());
            }
        }
        for listener in self.listeners.iter().filter(|listener| !listener.answered) {
            listener.readings.fault(&Fault::new(
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
            let sending = bits * 1000 / u64::from(self.baud.max(1));
            thread::sleep(Duration::from_millis(sending));
        }
        port.set_baud(speed.baud)
    }

    /// Sleeps, but ends early when nobody listens any more.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_closed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(WAIT));
        }
    }
}
