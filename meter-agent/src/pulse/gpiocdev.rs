//! GPIO lines through the kernel's character device, on any Linux board.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::gpiocdev::Request;
use ::gpiocdev::line::{self, EdgeDetection, EdgeKind, EventClock, Value};

use super::edge::Edge;
use super::line::{Bias, EdgeReader, Line, LineName, LineOptions, LineSource, start};
use super::{Channel, PulseError};

const NO_CHIP: &str = "This machine has no GPIO chip, or none that this user may open: check \
                       `ls -l /dev/gpiochip*` and that the user is in the group of these files";
const NO_LINE: &str = "List chips and lines with `gpioinfo` (package gpiod) and write the name \
                       of the line, or the label of its chip and the offset";
const BUSY: &str = "Stop the program that holds the line; `gpioinfo` shows which one it is";
const RESTART: &str = "Restart the agent; if it happens again look into the kernel log";

/// Opens a line and starts to read its edges.
///
/// # Errors
/// [`PulseError::Gpio`] if there is no such chip or line, no permission, or somebody else has it.
pub fn open(
    channel: Channel,
    name: &LineName,
    options: &LineOptions,
) -> Result<LineSource, PulseError> {
    let (chip, offset) = find(name)?;
    let mut builder = Request::builder();
    builder
        .on_chip(chip.as_path())
        .with_line(offset)
        .with_consumer("meter-agent")
        .as_input()
        .with_edge_detection(EdgeDetection::BothEdges)
        .with_event_clock(EventClock::Monotonic)
        .with_bias(match options.bias {
            Bias::Disabled => line::Bias::Disabled,
            Bias::PullUp => line::Bias::PullUp,
            Bias::PullDown => line::Bias::PullDown,
        })
        .with_kernel_event_buffer_size(1024);
    if options.active_low {
        builder.as_active_low();
    }
    if !options.debounce.is_zero() {
        builder.with_debounce_period(options.debounce);
    }
    let request = builder
        .request()
        .map_err(|e| refused(name, &e, holder(&chip, offset).as_deref()))?;
    let value = request.value(offset).map_err(|e| failed(name, &e, BUSY))?;
    let line = Line {
        channel,
        name: name.to_string(),
        limits: options.limits,
        active: value == Value::Active,
    };
    let reader = Reader {
        name: name.clone(),
        request,
    };
    start(reader, vec![line])?.pop().ok_or(PulseError::Gpio {
        line: name.to_string(),
        problem: "its reader did not start".to_owned(),
        advice: RESTART,
    })
}

fn find(name: &LineName) -> Result<(PathBuf, u32), PulseError> {
    let chips = ::gpiocdev::chip::chips().map_err(|e| failed(name, &e, NO_CHIP))?;
    if chips.is_empty() {
        return Err(failed(name, &::gpiocdev::Error::NoGpioChips(), NO_CHIP));
    }
    let found = match name {
        LineName::Name(name) => {
            ::gpiocdev::find_named_line(name).map(|found| (found.chip, found.info.offset))
        }
        LineName::Offset { chip, offset } => chips.into_iter().find_map(|path| {
            let info = ::gpiocdev::Chip::from_path(&path).ok()?.info().ok()?;
            (info.label == *chip && *offset < info.num_lines).then_some((path, *offset))
        }),
    };
    found.ok_or_else(|| PulseError::Gpio {
        line: name.to_string(),
        problem: "there is no such line".to_owned(),
        advice: NO_LINE,
    })
}

/// The program that holds a line, as it named itself to the kernel.
fn holder(chip: &Path, offset: u32) -> Option<String> {
    let info = ::gpiocdev::Chip::from_path(chip).ok()?.line_info(offset);
    let info = info.ok().filter(|info| info.used)?;
    (!info.consumer.is_empty()).then_some(info.consumer)
}

fn refused(name: &LineName, error: &::gpiocdev::Error, holder: Option<&str>) -> PulseError {
    let error = error.to_string();
    let error = error.trim_end_matches('.');
    PulseError::Gpio {
        line: name.to_string(),
        problem: match holder {
            Some(holder) => format!("{error}: it is held by \"{holder}\""),
            None => error.to_owned(),
        },
        advice: BUSY,
    }
}

fn failed(name: &LineName, error: &::gpiocdev::Error, advice: &'static str) -> PulseError {
    PulseError::Gpio {
        line: name.to_string(),
        problem: error.to_string().trim_end_matches('.').to_owned(),
        advice,
    }
}

struct Reader {
    name: LineName,
    request: Request,
}

impl EdgeReader for Reader {
    fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError> {
        let failed = |e| failed(&self.name, &e, RESTART);
        if !self.request.wait_edge_event(wait).map_err(failed)? {
            return Ok(None);
        }
        let event = self.request.read_edge_event().map_err(failed)?;
        Ok(Some((
            0,
            Edge {
                at: Duration::from_nanos(event.timestamp_ns),
                // The kernel reports logical edges: rising means becoming active.
                active: event.kind == EdgeKind::Rising,
                // The kernel begins with 1; the older interface leaves it at 0.
                sequence: Some(event.line_seqno).filter(|number| *number > 0),
            },
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_line_names_its_holder_if_the_kernel_does() {
        let name = LineName::Name("GPIO17".to_owned());
        let error = ::gpiocdev::Error::NoGpioChips();
        let text = refused(&name, &error, Some("heating")).to_string();
        assert!(text.contains("GPIO17") && text.contains("held by \"heating\""));
        let text = refused(&name, &error, None).to_string();
        assert!(text.contains("GPIO17") && !text.contains("held"));
    }
}
