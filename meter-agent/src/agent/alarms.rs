//! Keeps the alarms on disk as they come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::status::{AlarmFile, Recorder};

/// Between two writes: others can cause many alarms, and a memory card shall not pay for each.
const PACE: Duration = Duration::from_secs(10);

/// The alarms of a recorder and their file.
#[derive(Debug)]
pub(super) struct KeptAlarms {
    file: Arc<AlarmFile>,
    recorder: Arc<Recorder>,
    is_changed: bool,
    next: Instant,
    failed: bool,
}

impl KeptAlarms {
    /// The file holds what the recorder began with.
    pub(super) fn new(file: Arc<AlarmFile>, recorder: Arc<Recorder>) -> Self {
        Self {
            file,
            recorder,
            is_changed: false,
            next: Instant::now(),
            failed: false,
        }
    }

    /// There is a new one.
    pub(super) fn changed(&mut self) {
        self.is_changed = true;
    }

    /// Waits until they are to be written: at once, but not too often.
    pub(super) async fn due(&self) {
        match self.is_changed {
            true => tokio::time::sleep_until(self.next).await,
            false => std::future::pending().await,
        }
    }

    /// Writes them. What cannot be written is told once and tried again.
    pub(super) async fn write(&mut self) {
        let (file, recorder) = (Arc::clone(&self.file), Arc::clone(&self.recorder));
        let writing = tokio::task::spawn_blocking(move || file.keep(&recorder));
        self.next = Instant::now() + PACE;
        match writing.await {
            Ok(Ok(())) => (self.is_changed, self.failed) = (false, false),
            Ok(Err(error)) if !self.failed => {
                tracing::warn!("alarms would be forgotten by a restart: {error:#}; trying again");
                self.failed = true;
            }
            // Told already, or the runtime is being shut down.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Writes what is not written yet: nothing comes any more.
    pub(super) async fn finish(mut self) {
        if self.is_changed {
            self.write().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use dcnet::alarm::Alarm;
    use dcnet::meter::MeterEvent;
    use dcnet::time::Timestamp;

    use super::*;

    #[tokio::test]
    async fn alarms_are_written_at_once_and_a_flood_of_them_at_a_pace() {
        let directory = tempfile::tempdir().unwrap();
        let kept = || AlarmFile::open(directory.path()).1.len();
        let (file, alarms) = AlarmFile::open(directory.path());
        let recorder = Arc::new(Recorder::new(alarms));
        let mut alarms = KeptAlarms::new(Arc::new(file), Arc::clone(&recorder));
        let raise = |alarms: &mut KeptAlarms| {
            let alarm = MeterEvent::Alarm(Alarm::DrawAbandoned);
            recorder.event(&alarm, Timestamp(7));
            alarms.changed();
        };
        raise(&mut alarms);
        let begun = Instant::now();
        assert!(alarms.next <= begun, "at once");
        alarms.due().await;
        alarms.write().await;
        assert_eq!(kept(), 1);
        raise(&mut alarms);
        raise(&mut alarms);
        assert!(alarms.next >= begun + PACE);
        alarms.next = begun;
        alarms.due().await;
        alarms.write().await;
        assert_eq!(kept(), 3);
        raise(&mut alarms);
        alarms.finish().await;
        assert_eq!(kept(), 4);
    }
}
