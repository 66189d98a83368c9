//! GPIO lines of a Raspberry Pi through `rppal`.
//!
//! All lines share one poller: polls of single pins block each other, and one that
//! waits for another pin overwrites the events of this one. Interrupts with a callback
//! are no alternative, because their errors stay silent until they are stopped.

use std::time::Duration;

use ::rppal::gpio::{Error, Gpio, InputPin, Trigger};
use rustix::io::Errno;

use super::edge::Edge;
use super::line::{Bias, EdgeReader, Line, LineOptions, LineSource, start};
use super::{Channel, PulseError};

/// One line to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiLine {
    /// Whose pulses it carries.
    pub channel: Channel,
    /// The BCM number of the pin: 17 for GPIO17, which is pin 11 of the header.
    pub gpio: u8,
    /// Level, bias, debounce, limits.
    pub options: LineOptions,
}

/// Opens all lines of this process and starts to read their edges. The sources are
/// in the order of `lines`.
///
/// # Errors
/// [`PulseError::Gpio`] on a machine that is no Raspberry Pi, without permission, or if a
/// pin does not exist or belongs to somebody else.
pub fn open(lines: &[PiLine]) -> Result<Vec<LineSource>, PulseError> {
    let (mut pins, mut opened) = (Vec::new(), Vec::new());
    let Some(first) = lines.first() else {
        return Ok(Vec::new());
    };
    let gpio = Gpio::new().map_err(|error| failed(first.gpio, &error))?;
    for line in lines {
        let failed = |error| failed(line.gpio, &error);
        let pin = gpio.get(line.gpio).map_err(failed)?;
        let mut pin = match line.options.bias {
            Bias::Disabled => pin.into_input(),
            Bias::PullUp => pin.into_input_pullup(),
            Bias::PullDown => pin.into_input_pulldown(),
        };
        let debounce = line.options.debounce;
        pin.set_interrupt(Trigger::Both, (!debounce.is_zero()).then_some(debounce))
            .map_err(failed)?;
        opened.push(Line {
            channel: line.channel,
            name: format!("GPIO{}", line.gpio),
            limits: line.options.limits,
            active: pin.is_low() == line.options.active_low,
        });
        pins.push((pin, line.options.active_low));
    }
    start(Reader { gpio, pins }, opened)
}

fn failed(gpio: u8, error: &Error) -> PulseError {
    let name = format!("GPIO{gpio}");
    let errno = match error {
        Error::Io(cause) => Errno::from_io_error(cause),
        _ => None,
    };
    let held = match errno {
        // This library does not tell who it is.
        Some(Errno::BUSY) => holder(&name),
        _ => None,
    };
    let held = held.map_or_else(String::new, |holder| {
        format!(": it is held by \"{holder}\"")
    });
    let advice = match error {
        Error::UnknownModel => {
            "rppal works on a Raspberry Pi only: on other boards use \
             the source gpiocdev, for a trial replay or simulated"
        }
        Error::PermissionDenied(_) => {
            "Put the user of the agent into the group gpio, and let it open \
             /dev/gpiomem* and /dev/gpiochip*"
        }
        Error::PinUsed(_) => "Two channels name the same line: give each its own",
        Error::PinNotAvailable(_) => {
            "This Pi has no such line: write the BCM number, which is not the number on the header"
        }
        Error::Io(_) if errno == Some(Errno::BUSY) => {
            "Stop the program that holds the line; `gpioinfo` (package gpiod) shows which one it is"
        }
        Error::Io(_) if errno == Some(Errno::INVAL) => {
            "This kernel may not know the debounce that is asked for: try debounce_ms = 0"
        }
        _ => "Restart the agent; if it happens again look into the kernel log",
    };
    PulseError::Gpio {
        line: name,
        problem: format!("{}{held}", error.to_string().trim_end_matches('.')),
        advice,
    }
}

/// The program that holds a line, as the kernel's character device tells it.
#[cfg(feature = "gpiocdev")]
fn holder(name: &str) -> Option<String> {
    super::gpiocdev::holder(&super::line::LineName::Name(name.to_owned()))
}

#[cfg(not(feature = "gpiocdev"))]
fn holder(_: &str) -> Option<String> {
    None
}

struct Reader {
    gpio: Gpio,
    pins: Vec<(InputPin, bool)>,
}

impl EdgeReader for Reader {
    fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError> {
        let pins: Vec<&InputPin> = self.pins.iter().map(|(pin, _)| pin).collect();
        let event = self
            .gpio
            .poll_interrupts(&pins, false, Some(wait))
            .map_err(|error| failed(pins.first().map_or(0, |pin| pin.pin()), &error))?;
        Ok(event.and_then(|(found, event)| {
            let index = self
                .pins
                .iter()
                .position(|(pin, _)| pin.pin() == found.pin())?;
            let (_, active_low) = self.pins.get(index)?;
            let edge = Edge {
                at: event.timestamp,
                active: (event.trigger == Trigger::FallingEdge) == *active_low,
                sequence: Some(event.seqno),
            };
            Some((index, edge))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_line_is_said_to_be_held() {
        let told = |errno: Errno| failed(17, &Error::Io(errno.into())).to_string();
        assert!(told(Errno::BUSY).contains("Stop the program that holds the line"));
        assert!(told(Errno::INVAL).contains("debounce_ms = 0"));
        for errno in [Errno::INVAL, Errno::NODEV] {
            assert!(!told(errno).contains("held") && !told(errno).contains("Stop"));
        }
    }
}
