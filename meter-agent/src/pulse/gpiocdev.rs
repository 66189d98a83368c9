//! GPIO lines through the kernel's character device, on any Linux board.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::gpiocdev::line::{self, EdgeDetection, EdgeKind, EventClock, Value};
use ::gpiocdev::{Chip, Error, Request};
use gpiocdev_uapi as uapi;
use rustix::io::Errno;

use super::edge::Edge;
use super::line::{Bias, EdgeReader, Line, LineName, LineOptions, LineSource, start};
use super::{Channel, PulseError};
use crate::accounts;

const NO_CHIP: &str = "This machine has no GPIO chip: check `ls -l /dev/gpiochip*`";
const NO_LINE: &str = "List chips and lines with `gpioinfo` (package gpiod) and write the name \
                       of the line, or the label of its chip and the offset";
const NO_RIGHT: &str = "Let the agent's user into the group of this file: usermod -aG GROUP USER, \
                        or SupplementaryGroups= in the unit";
const NO_DEVICE_ALLOW: &str = "The unit does not let the agent use this device: add \
                               DeviceAllow=char-gpiochip rw to it";
const BUSY: &str = "Stop the program that holds the line; `gpioinfo` (package gpiod) shows which one \
                    it is";
const UNSUPPORTED: &str = "This chip may not know the resistor or the debounce that is asked for: try \
                           bias = \"disabled\" with a resistor outside, and debounce_ms = 0";
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
        .map_err(|e| refused(name, &e, holder(name).as_deref()))?;
    let value = request
        .value(offset)
        .map_err(|e| failed(name, &e, RESTART))?;
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

/// The chip and the offset of a line.
fn find(name: &LineName) -> Result<(PathBuf, u32), PulseError> {
    let chips = ::gpiocdev::chip::chips().map_err(|e| failed(name, &e, NO_CHIP))?;
    if chips.is_empty() {
        return Err(failed(name, &Error::NoGpioChips(), NO_CHIP));
    }
    search(name, chips, |chip| offset_on(name, chip))
}

/// The first chip on which `offset_on` finds the line. One that cannot be opened may have been
/// the one.
fn search(
    name: &LineName,
    chips: Vec<PathBuf>,
    offset_on: impl Fn(&Path) -> Result<Option<u32>, Error>,
) -> Result<(PathBuf, u32), PulseError> {
    let mut closed = None;
    for chip in chips {
        match offset_on(&chip) {
            Ok(Some(offset)) => return Ok((chip, offset)),
            Ok(None) => {}
            Err(error) => closed = closed.or(Some((chip, error))),
        }
    }
    Err(match closed {
        Some((chip, error)) => PulseError::Gpio {
            line: name.to_string(),
            problem: format!(
                "{}{} cannot be opened: {}",
                chip.display(),
                group_of(&chip),
                plain(&error)
            ),
            advice: match errno(&error) {
                Some(Errno::ACCESS) => NO_RIGHT,
                Some(Errno::PERM) => NO_DEVICE_ALLOW,
                _ => NO_LINE,
            },
        },
        None => PulseError::Gpio {
            line: name.to_string(),
            problem: "there is no such line".to_owned(),
            advice: NO_LINE,
        },
    })
}

/// The offset of the line on a chip; `None` if it has no such line.
fn offset_on(name: &LineName, chip: &Path) -> Result<Option<u32>, Error> {
    let chip = Chip::from_path(chip)?;
    let info = chip.info()?;
    match name {
        LineName::Name(name) => {
            let mut lines = chip.line_info_iter()?.filter_map(Result::ok);
            Ok(lines
                .find(|line| line.name == *name)
                .map(|line| line.offset))
        }
        LineName::Offset { chip, offset } => {
            Ok((info.label == *chip && *offset < info.num_lines).then_some(*offset))
        }
    }
}

/// The group of a file, as the rest of a sentence.
fn group_of(path: &Path) -> String {
    let group = path
        .metadata()
        .map(|metadata| accounts::group_name(metadata.gid()));
    group.map_or_else(|_| String::new(), |group| format!(" (group {group})"))
}

/// The program that holds a line, as it named itself to the kernel.
pub(super) fn holder(name: &LineName) -> Option<String> {
    let (chip, offset) = find(name).ok()?;
    let info = Chip::from_path(&chip).ok()?.line_info(offset);
    let info = info.ok().filter(|info| info.used)?;
    (!info.consumer.is_empty()).then_some(info.consumer)
}

fn refused(name: &LineName, error: &Error, holder: Option<&str>) -> PulseError {
    let advice = match errno(error) {
        Some(Errno::BUSY) => BUSY,
        Some(Errno::INVAL | Errno::OPNOTSUPP) => UNSUPPORTED,
        Some(Errno::ACCESS) => NO_RIGHT,
        Some(Errno::PERM) => NO_DEVICE_ALLOW,
        _ => RESTART,
    };
    let error = plain(error);
    PulseError::Gpio {
        line: name.to_string(),
        problem: match holder {
            Some(holder) => format!("{error}: it is held by \"{holder}\""),
            None => error,
        },
        advice,
    }
}

fn failed(name: &LineName, error: &Error, advice: &'static str) -> PulseError {
    PulseError::Gpio {
        line: name.to_string(),
        problem: plain(error),
        advice,
    }
}

/// As part of a sentence.
fn plain(error: &Error) -> String {
    error.to_string().trim_end_matches('.').to_owned()
}

/// What the kernel said, if it was the kernel.
fn errno(error: &Error) -> Option<Errno> {
    let (Error::Os(errno) | Error::Uapi(_, uapi::Error::Os(errno))) = error else {
        return None;
    };
    Some(Errno::from_raw_os_error(errno.0))
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

    fn os(errno: Errno) -> Error {
        std::io::Error::from(errno).into()
    }

    #[test]
    fn a_refused_line_names_its_holder_if_the_kernel_does() {
        let name = LineName::Name("GPIO17".to_owned());
        let text = refused(&name, &os(Errno::BUSY), Some("heating")).to_string();
        assert!(text.contains("GPIO17") && text.contains("held by \"heating\""));
        assert!(text.contains("Stop the program"), "{text}");
        let text = refused(&name, &os(Errno::BUSY), None).to_string();
        assert!(text.contains("GPIO17") && !text.contains("held"));
    }

    #[test]
    fn a_refused_line_has_the_advice_that_its_error_asks_for() {
        let name = LineName::Name("GPIO17".to_owned());
        for (errno, advice) in [
            (Errno::INVAL, "debounce_ms = 0"),
            (Errno::OPNOTSUPP, "bias"),
            (Errno::ACCESS, "group"),
            (Errno::PERM, "DeviceAllow=char-gpiochip"),
            (Errno::NODEV, "kernel log"),
        ] {
            let text = refused(&name, &os(errno), None).to_string();
            assert!(text.contains(advice), "{text}");
            assert!(!text.contains("Stop the program"), "{text}");
        }
    }

    /// Two chips, of which the first cannot be opened.
    #[test]
    fn a_chip_that_cannot_be_opened_is_told_unless_another_one_has_the_line() {
        let name = LineName::Name("GPIO17".to_owned());
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("0"), directory.path().join("1"));
        std::fs::write(&first, "").unwrap();
        let look = |errno: Errno, line: Option<u32>| {
            let chips = vec![first.clone(), second.clone()];
            search(&name, chips, |chip| match chip == first {
                true => Err(os(errno)),
                false => Ok(line),
            })
        };
        let text = look(Errno::ACCESS, None).unwrap_err().to_string();
        let group = accounts::group_name(first.metadata().unwrap().gid());
        assert!(
            text.contains(&format!("/0 (group {group}) cannot be opened")),
            "{text}"
        );
        assert!(text.contains("usermod -aG"), "{text}");
        let text = look(Errno::PERM, None).unwrap_err().to_string();
        assert!(text.contains("DeviceAllow=char-gpiochip"), "{text}");
        assert_eq!(look(Errno::ACCESS, Some(17)).unwrap(), (second.clone(), 17));
        let all_open = search(&name, vec![second.clone()], |_| Ok(None));
        let text = all_open.unwrap_err().to_string();
        assert!(text.contains("there is no such line"), "{text}");
    }
}
