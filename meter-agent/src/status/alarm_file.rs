//! The file of the alarms, so that a meter that has stopped for good still says why after a
//! restart. It is for the household alone: nothing is decided by it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use secrets::kept::{self, KeptFile};

use super::{AlarmView, Recorder};
use crate::erase;

const NAME: &str = "alarms.json";

/// Where the newest alarms are kept.
#[derive(Debug)]
pub struct AlarmFile {
    file: KeptFile,
    /// Held from the question which alarms there are until they are written, so that older ones
    /// never come after newer ones.
    writing: Mutex<()>,
}

impl AlarmFile {
    /// The file of a state directory, and the alarms in it, newest first. One that cannot be
    /// read is told in the log and put aside: a meter counts and takes part with or without it.
    pub fn open(directory: &Path) -> (Self, Vec<AlarmView>) {
        let (file, alarms) = KeptFile::open(directory.join(NAME));
        let alarms = alarms.unwrap_or_else(|error| {
            tracing::warn!(
                "the alarms of before this start are not shown: {error:#}. The log has them \
                 (journalctl -u meter-agent)"
            );
            Vec::new()
        });
        let writing = Mutex::default();
        (Self { file, writing }, alarms)
    }

    /// Keeps the alarms of a recorder instead of what was there; durable when it returns.
    ///
    /// # Errors
    /// It cannot be written; what was there before is then still there.
    pub fn keep(&self, recorder: &Recorder) -> anyhow::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write(&recorder.alarms())
    }

    /// As [`Self::keep`], once the recorder has forgotten what it may; what was there is
    /// overwritten, and what was put aside as damaged too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&self, recorder: &Recorder) -> anyhow::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.forget();
        erase::replace(self.file.path(), &kept::text(&recorder.alarms())?)?;
        let damaged = self.file.damaged();
        erase::erase(&damaged).with_context(|| format!("cannot erase {}", damaged.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use dcnet::alarm::Alarm;
    use dcnet::time::Timestamp;

    use super::*;

    fn alarms() -> Vec<AlarmView> {
        let alarms = [Alarm::Revoked, Alarm::ClockJump { seconds: 9000 }];
        let alarms = alarms.iter().zip([Timestamp(2000), Timestamp(1000)]);
        alarms.map(|(alarm, at)| AlarmView::of(alarm, at)).collect()
    }

    fn recorder(alarms: &[AlarmView]) -> Recorder {
        Recorder::new(alarms.to_vec())
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (file, none) = AlarmFile::open(directory.path());
        assert_eq!(none, []);
        file.keep(&recorder(&alarms()[1..])).unwrap();
        file.keep(&recorder(&alarms())).unwrap();
        let (_, kept) = AlarmFile::open(directory.path());
        assert_eq!(kept, alarms());
        assert!(kept[0].is_final && !kept[1].is_final);
        let mode = directory
            .path()
            .join(NAME)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_a_new_one_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let (file, _) = AlarmFile::open(directory.path());
        file.keep(&recorder(&alarms())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"\xff\xff", b"{}", b"[{}]"] {
            file.keep(&recorder(&alarms())).unwrap();
            std::fs::write(&path, damaged).unwrap();
            let (file, kept) = AlarmFile::open(directory.path());
            assert_eq!(kept, [], "{damaged:?}");
            let aside = directory.path().join("alarms.json.damaged");
            assert_eq!(std::fs::read(aside).unwrap(), damaged);
            file.keep(&recorder(&alarms())).unwrap();
            assert_eq!(AlarmFile::open(directory.path()).1, alarms());
        }
    }

    #[test]
    fn what_is_forgotten_is_on_the_disk_no_more_and_what_stopped_the_meter_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (file, _) = AlarmFile::open(directory.path());
        let recorder = recorder(&alarms());
        file.keep(&recorder).unwrap();
        std::fs::write(file.file.damaged(), "of before").unwrap();
        file.forget(&recorder).unwrap();
        assert_eq!(recorder.alarms(), alarms()[..1]);
        assert_eq!(AlarmFile::open(directory.path()).1, alarms()[..1]);
        assert!(!file.file.damaged().exists());
        file.keep(&recorder).unwrap();
        assert_eq!(AlarmFile::open(directory.path()).1, alarms()[..1]);
    }
}
