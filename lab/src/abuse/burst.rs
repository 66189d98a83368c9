//! Many connections that are opened at once, from many addresses, and held: sessions of third
//! parties that wait for something to be published.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::setting::{SESSIONS, Target};
use crate::device::NET;
use crate::raw::packet::{connect_with, subscribe};
use crate::raw::{Raw, tcp};

/// Handshakes at a time.
const CONNECTING: usize = 64;
/// Of these connections, from one address.
const PER_ADDRESS: usize = 500;

/// The topic that all of them wait on.
pub fn topic() -> String {
    format!("dcnet/1/{NET}/public/all-clear")
}

/// The connections.
pub struct Burst {
    held: Vec<Raw>,
}

impl Burst {
    /// Opens so many; an error is one of them that was not let in.
    ///
    /// # Errors
    /// One is refused.
    pub async fn open(target: &Arc<Target>, connections: usize) -> io::Result<Self> {
        let turns = Arc::new(Semaphore::new(CONNECTING));
        let mut opening = JoinSet::new();
        for number in 0..connections {
            let (target, turns) = (Arc::clone(target), Arc::clone(&turns));
            opening.spawn(async move {
                let _turn = turns.acquire().await.map_err(io::Error::other)?;
                open(&target, number).await
            });
        }
        let mut held = Vec::with_capacity(connections);
        while let Some(opened) = opening.join_next().await {
            held.push(opened.map_err(io::Error::other)??);
        }
        Ok(Self { held })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Waits for the message that was published to all; to how many it came in time.
    pub async fn served(&mut self, patience: Duration) -> usize {
        let mut served = 0;
        let end = tokio::time::Instant::now() + patience;
        for raw in &mut self.held {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            // What is already there is taken even if the time is up.
            let left = left.max(Duration::from_millis(1));
            let packet = timeout(left, raw.packet()).await;
            served += usize::from(matches!(packet, Ok(Ok(Some((0x30 | 0x32, _))))));
        }
        served
    }
}

async fn open(target: &Target, number: usize) -> io::Result<Raw> {
    let address = number / PER_ADDRESS;
    let source = Ipv4Addr::new(127, 17, (address / 250) as u8, 1 + (address % 250) as u8);
    let device = &target.readers[number / SESSIONS];
    let mut raw = Raw::tls(tcp(source, target.agents).await?, &device.tls).await?;
    // Without keep-alive: nothing goes to and fro while they wait.
    raw.send(&connect_with(4, 2, 0, &format!("burst {number}"), &[]))
        .await?;
    let (_, connack) = raw.expect().await?;
    raw.send(&subscribe(4, 1, &topic(), 1)).await?;
    let (_, suback) = raw.expect().await?;
    match (connack.as_slice(), suback.as_slice()) {
        ([_, 0], [_, _, 1]) => Ok(raw),
        _ => Err(io::Error::other("a connection of the burst is refused")),
    }
}
