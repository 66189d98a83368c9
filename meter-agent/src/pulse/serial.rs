//! A serial port: 8 data bits, no parity, raw. A character of 7 bits with parity has
//! as many bits, so its parity is looked at by whoever reads it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::termios::{
    ControlModes, OptionalActions, QueueSelector, Termios, ioctl_tiocexcl, tcdrain, tcflush,
    tcgetattr, tcsetattr,
};

/// Where udev names serial ports by their adapter.
const BY_ID: &str = "/dev/serial/by-id";

/// Why a port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("serial port {}: {problem}. {advice}", path.display())]
pub struct PortError {
    path: PathBuf,
    problem: String,
    advice: String,
}

/// An open port, ours alone.
#[derive(Debug)]
pub struct Port {
    path: PathBuf,
    file: File,
}

impl Port {
    /// Opens a port and drops what it had received already.
    ///
    /// # Errors
    /// [`PortError`], which says what to do.
    pub fn open(path: &Path, baud: u32) -> Result<Self, PortError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened: OwnedFd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| failed(path, "cannot be opened", error))?;
        let port = Self {
            path: path.to_path_buf(),
            file: File::from(opened),
        };
        let mut settings = tcgetattr(&port.file)
            .map_err(|error| failed(path, "cannot be asked for its settings", error))?;
        // The first keeps everybody out but root, the second who asks, and root with them.
        ioctl_tiocexcl(&port.file)
            .and_then(|()| flock(&port.file, FlockOperation::NonBlockingLockExclusive))
            .map_err(|error| failed(path, "cannot be kept from others", error))?;
        settings.make_raw();
        settings.control_modes -=
            ControlModes::PARENB | ControlModes::CSTOPB | ControlModes::CRTSCTS;
        settings.control_modes |= ControlModes::CREAD | ControlModes::CLOCAL;
        port.apply(settings, baud)?;
        tcflush(&port.file, QueueSelector::IOFlush)
            .map_err(|error| failed(path, "cannot be emptied", error))?;
        Ok(port)
    }

    /// Changes the speed after everything written has left.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn set_baud(&self, baud: u32) -> Result<(), PortError> {
        let settings = tcgetattr(&self.file)
            .map_err(|error| failed(&self.path, "cannot be asked for its settings", error))?;
        self.apply(settings, baud)
    }

    fn apply(&self, mut settings: Termios, baud: u32) -> Result<(), PortError> {
        settings
            .set_speed(baud)
            .and_then(|()| tcsetattr(&self.file, OptionalActions::Drain, &settings))
            .map_err(|error| failed(&self.path, &format!("cannot be set to {baud} baud"), error))
    }

    /// Reads what has come, or comes within `wait`; 0 if nothing has.
    ///
    /// # Errors
    /// [`PortError`]: the adapter was unplugged, for example.
    pub fn read(&self, bytes: &mut [u8], wait: Duration) -> Result<usize, PortError> {
        let lost = |error| failed(&self.path, "cannot be read any more", error);
        if !self.ready(PollFlags::IN, wait).map_err(lost)? {
            return Ok(0);
        }
        match (&self.file).read(bytes) {
            Ok(0) => Err(lost(Errno::NODEV)),
            Ok(count) => Ok(count),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(lost(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
            },
        }
    }

    /// Writes everything and waits until it has left.
    ///
    /// # Errors
    /// [`PortError`]; also if the port takes nothing for 5 s.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), PortError> {
        let lost = |error| failed(&self.path, "cannot be written to", error);
        while !bytes.is_empty() {
            if !self
                .ready(PollFlags::OUT, Duration::from_secs(5))
                .map_err(lost)?
            {
                return Err(lost(Errno::TIMEDOUT));
            }
            match (&self.file).write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Err(lost(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
                },
            }
        }
        tcdrain(&self.file).map_err(lost)
    }

    /// Drops what was received but not read.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn discard_input(&self) -> Result<(), PortError> {
        tcflush(&self.file, QueueSelector::IFlush)
            .map_err(|error| failed(&self.path, "cannot be emptied", error))
    }

    fn ready(&self, what: PollFlags, wait: Duration) -> Result<bool, Errno> {
        let timeout = Timespec::try_from(wait).map_err(|_| Errno::INVAL)?;
        let mut waiting = [PollFd::new(&self.file, what)];
        match poll(&mut waiting, Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn failed(path: &Path, what: &str, error: Errno) -> PortError {
    let advice = match error {
        Errno::ACCESS => "Let the agent's user into the group that owns the port, mostly dialout: \
             usermod -aG dialout USER, or SupplementaryGroups=dialout in the unit"
            .to_owned(),
        Errno::PERM => "The unit does not let the agent use this kind of port: add \
             DeviceAllow=char-ttyXXX rw to it, with the name of the driver in /proc/devices"
            .to_owned(),
        Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::IO => format!(
            "Is the adapter plugged in? {}; names under {BY_ID} stay the same when adapters are \
             plugged elsewhere",
            present(Path::new(BY_ID))
        ),
        // The second is of the lock.
        Errno::BUSY | Errno::WOULDBLOCK => "Another program has it: a running meter-agent, \
             whose `status` tells what it reads, or vzlogger or ser2net; stop that, or let it \
             publish by MQTT and use [channel.mqtt]"
            .to_owned(),
        Errno::NOTTY | Errno::INVAL => {
            "Write the path of a serial port with a usual speed, such as /dev/ttyUSB0 and 9600"
                .to_owned()
        }
        _ => "Check the adapter and the path".to_owned(),
    };
    PortError {
        path: path.to_path_buf(),
        problem: format!("{what}: {}", io::Error::from(error)),
        advice,
    }
}

/// What ports there are, for messages.
fn present(directory: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect();
    names.sort();
    if names.is_empty() {
        "There is no USB serial adapter at present".to_owned()
    } else {
        format!("There are {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn what_is_no_port_is_refused_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Port::open(&directory.path().join("ttyUSB9"), 9600).unwrap_err();
        let told = missing.to_string();
        assert!(
            told.contains("ttyUSB9") && told.contains("plugged in"),
            "{told}"
        );

        let plain = directory.path().join("file");
        std::fs::write(&plain, "").unwrap();
        let told = Port::open(&plain, 9600).unwrap_err().to_string();
        assert!(told.contains("path of a serial port"), "{told}");
    }

    /// Root, which no terminal keeps out, is kept out too.
    #[test]
    fn a_port_is_had_by_one_alone() {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let path = Path::new(name.to_str().unwrap());
        let first = Port::open(path, 9600).unwrap();
        let told = Port::open(path, 9600).unwrap_err().to_string();
        assert!(told.contains("a running meter-agent"), "{told}");
        drop(first);
        Port::open(path, 9600).unwrap();
    }

    #[test]
    fn each_error_has_its_advice() {
        let advice = |error| failed(Path::new("/dev/ttyUSB0"), "x", error).to_string();
        assert!(advice(Errno::ACCESS).contains("dialout"));
        assert!(!advice(Errno::ACCESS).contains("DeviceAllow"));
        assert!(advice(Errno::PERM).contains("DeviceAllow=char-tty"));
        assert!(advice(Errno::BUSY).contains("vzlogger"));
        assert!(advice(Errno::NOENT).contains(BY_ID));
    }

    #[test]
    fn present_ports_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        assert!(present(directory.path()).contains("no USB serial adapter"));
        std::fs::write(directory.path().join("usb-Head_A"), "").unwrap();
        assert!(present(directory.path()).contains("usb-Head_A"));
    }
}
