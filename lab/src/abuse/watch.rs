//! What the broker counts, and what it logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the metrics.
const PATIENCE: Duration = Duration::from_secs(20);

/// The broker's metrics, each with its labels.
///
/// # Errors
/// They are not served.
pub async fn metrics(address: SocketAddr) -> anyhow::Result<BTreeMap<String, f64>> {
    let asking = async {
        let mut tcp = TcpStream::connect(address).await?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        tcp.write_all(request).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, asking).await;
    let answer = answer.context("the broker serves no metrics")??;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "the broker serves no metrics"
    );
    let lines = answer.lines().filter_map(|line| line.rsplit_once(' '));
    let numbers = lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    Ok(numbers.collect())
}

/// The broker's log, read as it grows.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    read: u64,
    /// Panics of the decoder that the broker uses, which end one connection each; by place.
    pub panics: BTreeMap<String, u64>,
}

impl Log {
    /// Nothing of it is read yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            panics: BTreeMap::new(),
        }
    }

    /// Reads on; gives the lines that tell of a mistake of the broker's.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn mistakes(&mut self) -> anyhow::Result<Vec<String>> {
        let mut file = File::open(&self.path).context("cannot open the broker's log")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        // The last line may not be complete.
        let end = new.iter().rposition(|byte| *byte == b'\n');
        new.truncate(end.map_or(0, |end| end + 1));
        self.read += new.len() as u64;
        let text = String::from_utf8_lossy(&new);
        let mut mistakes = Vec::new();
        for line in text.lines() {
            if let Some((_, place)) = line.split_once("panicked at ") {
                match place.split_once("/rumqttd-").map(|(_, place)| place) {
                    Some(place) if place.contains("/src/protocol/") => {
                        *self.panics.entry(place.to_owned()).or_default() += 1;
                    }
                    _ => mistakes.push(line.to_owned()),
                }
            } else if ["ended abnormally", " ERROR ", "cannot accept"]
                .iter()
                .any(|sign| line.contains(sign))
            {
                mistakes.push(line.to_owned());
            }
        }
        Ok(mistakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_panic_of_the_decoder_is_told_from_one_of_the_brokers() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new(file.path().to_owned());
        writeln!(file, "all is well").unwrap();
        let place = "/registry/rumqttd-0.20.0/src/protocol/v5/publish.rs:1:2:";
        writeln!(file, "thread 'x' panicked at {place}").unwrap();
        write!(file, "thread 'x' panicked at broker/src").unwrap();
        assert_eq!(log.mistakes().unwrap(), Vec::<String>::new());
        assert_eq!(log.panics.values().sum::<u64>(), 1);
        writeln!(file, "/gate.rs:3:4:").unwrap();
        assert_eq!(log.mistakes().unwrap().len(), 1);
        assert_eq!(log.mistakes().unwrap().len(), 0, "told once");
    }
}
