//! What the operator was told, kept over a restart of the agent. It is shown and nothing else.

use std::path::Path;

use secrets::kept::KeptFile;

use super::alarms::Told;
use super::live::Live;

const NAME: &str = "alarms.json";

/// Where the newest alarms and warnings are kept.
#[derive(Debug)]
pub struct KeptAlarms {
    file: KeptFile,
    newest: Vec<Told>,
}

impl KeptAlarms {
    /// Those of a state directory. A file that cannot be read is told in the log.
    pub fn open(directory: &Path) -> Self {
        let (file, told) = KeptFile::open(directory.join(NAME));
        let newest = told.unwrap_or_else(|error| {
            tracing::warn!(
                "the page does not show the alarms of before this start: {error:#}. The log has them \
                 (journalctl -u provider-agent)"
            );
            Vec::new()
        });
        Self { file, newest }
    }

    /// A page's state that begins with them.
    pub fn live(&self) -> Live {
        Live::after(self.newest.clone())
    }

    /// Writes what is told, as it comes, until `stop` is done, and then once more.
    pub async fn follow(mut self, live: Live, stop: impl Future<Output = ()>) {
        let mut changes = live.changes();
        tokio::pin!(stop);
        let mut is_told = false;
        loop {
            let is_last = tokio::select! {
                // The page's state outlives this.
                _ = changes.changed() => false,
                () = &mut stop => true,
            };
            let newest = live.alarms();
            if newest != self.newest {
                let writing = tokio::task::spawn_blocking(move || {
                    let written = self.file.write(&newest);
                    (self.file, newest, written)
                });
                // Cancelled only when the runtime is being shut down.
                let Ok((file, newest, written)) = writing.await else {
                    return;
                };
                if let (Err(error), false) = (&written, is_told) {
                    tracing::warn!("alarms are not kept for the next start: {error:#}");
                }
                is_told = written.is_err();
                // What could not be written is tried again with the next one that comes.
                self = Self { file, newest };
            }
            if is_last {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dcnet::alarm::Alarm;
    use dcnet::identity::DeviceId;
    use dcnet::provider::ProviderEvent;
    use dcnet::time::Timestamp;
    use dcnet::topic::NetId;

    use super::*;
    use crate::nets::NetEvent;

    fn equivocation(by: u8) -> Told {
        let (meter, what) = (DeviceId([by; 16]), "reveal");
        let told = Told::about(&NetEvent {
            net: NetId([7; 16]),
            at: Timestamp(1_769_882_400_000),
            latency: None,
            event: ProviderEvent::Alarm(Alarm::Equivocation { meter, what }),
        });
        told.unwrap()
    }

    #[tokio::test]
    async fn what_was_told_is_shown_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let kept = KeptAlarms::open(directory.path());
        assert_eq!(kept.live().alarms(), []);
        let told = vec![equivocation(2), equivocation(1)];
        // It stops at once, and still writes.
        let stop = std::future::ready(());
        kept.follow(Live::after(told.clone()), stop).await;
        assert_eq!(KeptAlarms::open(directory.path()).live().alarms(), told);
    }

    #[tokio::test]
    async fn a_damaged_file_keeps_nothing_from_running() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), "[{").unwrap();
        let kept = KeptAlarms::open(directory.path());
        assert_eq!(kept.live().alarms(), []);
        let told = vec![equivocation(1)];
        kept.follow(Live::after(told.clone()), std::future::ready(()))
            .await;
        assert_eq!(KeptAlarms::open(directory.path()).live().alarms(), told);
    }
}
