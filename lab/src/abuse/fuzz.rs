//! The fuzzer: cases from the grammar, played as a meter, as a user (also over WebSocket), and
//! as somebody unknown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::dice::Dice;
use super::grammar::{Author, Grammar, Names, cut, mutate};
use super::setting::{PASSWORD, Target, USER};
use super::tally::{Case, Fate, Tally};
use super::websocket;
use crate::device::{Device, NET};
use crate::raw::packet::{PINGREQ, connect, connect_as};
use crate::raw::{Raw, tcp};

/// How long it is waited for the broker's reaction to a case that need not have one.
const REACTION: Duration = Duration::from_millis(30);
/// For a write that the broker need not take.
const WRITE: Duration = Duration::from_secs(2);

/// A fuzzer and what it has.
#[derive(Clone)]
pub struct Fuzzer {
    /// Whom it writes as.
    pub author: Author,
    /// Its meter, if it is one.
    pub device: Option<Device>,
    /// What it attacks.
    pub target: Arc<Target>,
    /// Where it reports.
    pub tally: Arc<Tally>,
    /// Where its choices come from.
    pub seed: u64,
    /// Its client identifier, if it may choose one; tells fuzzers of a kind apart.
    pub name: &'static str,
}

/// How a case ended.
enum Outcome {
    /// The broker refused or ended it.
    Ended,
    /// It goes on.
    Open,
    /// It had to be served and was not.
    Wronged(String),
}

impl Fuzzer {
    fn label(&self) -> &'static str {
        match self.author {
            Author::Meter => "fuzzed packets of a meter",
            Author::User => "fuzzed packets of a user",
            Author::Stranger => "fuzzed packets before CONNECT",
        }
    }

    fn names(&self, dice: &mut Dice) -> Names {
        match &self.device {
            Some(device) => Names {
                client: device.id.to_string(),
                publish: device.topic("up/"),
                subscribe: device.topic("inbox/"),
                login: None,
            },
            None => Names {
                client: self.name.to_owned(),
                publish: String::new(),
                subscribe: format!("dcnet/1/{NET}/public/"),
                // A password is dear to check, for attackers too.
                login: dice.chance(5).then_some((USER, PASSWORD)),
            },
        }
    }

    /// Plays cases for ever.
    pub async fn run(self) {
        for number in 0.. {
            let outcome = self.case(number).await;
            let fate = match outcome {
                Ok(Outcome::Open) => Fate::Borne,
                Ok(Outcome::Ended) | Err(_) => Fate::Ended,
                Ok(Outcome::Wronged(how)) => {
                    self.tally.fault(format!("{} {number}: {how}", self.name));
                    Fate::Ended
                }
            };
            self.tally.count(self.label(), fate);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn case(&self, number: u64) -> io::Result<Outcome> {
        let mut dice = Dice::new(self.seed, self.name, number);
        let version = dice.pick(&[4, 5]);
        let names = self.names(&mut dice);
        let odd = dice.pick(&[0, 3, 10, 30]);
        let polite = self.author != Author::Stranger && dice.chance(10);
        let mut grammar = Grammar {
            dice: &mut dice,
            version,
            names: &names,
            odd,
        };
        let (mut packets, pings) = match self.author {
            Author::Stranger => (grammar.beginning(), 0),
            _ if polite => grammar.polite(),
            _ => (grammar.sequence(), 0),
        };
        if !polite {
            mutate(&mut packets, &mut dice);
        }
        let writes = cut(&packets.concat(), &mut dice);
        let name = format!("seed {}, {} {number}, MQTT {version}", self.seed, self.name);
        let Some(mut raw) = self.enter(version, &mut dice).await? else {
            return Ok(Outcome::Ended);
        };
        let case = Case { name, writes };
        self.tally.play(case.clone());
        for write in &case.writes {
            if let Err(error) = raw.send_within(write, WRITE).await {
                return Ok(match polite {
                    true => Outcome::Wronged(format!(
                        "a valid packet not taken: {error}; {}",
                        case.line()
                    )),
                    false => Outcome::Ended,
                });
            }
            if case.writes.len() > 1 {
                tokio::task::yield_now().await;
            }
        }
        if polite {
            return Ok(match pongs(&mut raw, pings).await {
                Ok(()) => Outcome::Open,
                Err(error) => Outcome::Wronged(format!(
                    "valid packets, and {error} instead of {pings} PINGRESP; {}",
                    case.line()
                )),
            });
        }
        Ok(match raw.ended_within(REACTION).await {
            true => Outcome::Ended,
            false => Outcome::Open,
        })
    }

    /// A connection for a case, after CONNECT unless that is part of it; `None` if it was refused.
    async fn enter(&self, version: u8, dice: &mut Dice) -> io::Result<Option<Raw>> {
        let (target, source) = (&self.target, dice.source());
        let (mut raw, hello) = match (&self.author, &self.device) {
            (Author::Meter, Some(device)) => {
                let raw = Raw::tls(tcp(source, target.agents).await?, &device.tls).await?;
                (raw, connect(version, &device.id.to_string()))
            }
            (Author::Stranger, _) => {
                let tcp = tcp(source, target.third_parties).await?;
                return Raw::tls(tcp, &target.stranger).await.map(Some);
            }
            _ => {
                let raw = if dice.chance(50) {
                    let tcp = tcp(source, target.websocket).await?;
                    websocket::open(tcp, &target.stranger).await?
                } else {
                    let tcp = tcp(source, target.third_parties).await?;
                    Raw::tls(tcp, &target.stranger).await?
                };
                (raw, connect_as(version, self.name, USER, PASSWORD))
            }
        };
        raw.send(&hello).await?;
        let (first, body) = raw.expect().await?;
        Ok((first == 0x20 && body.get(1) == Some(&0)).then_some(raw))
    }
}

async fn pongs(raw: &mut Raw, mut wanted: usize) -> io::Result<()> {
    while wanted > 0 {
        if raw.expect().await?.0 == 0xd0 {
            wanted -= 1;
        }
    }
    // Nothing but the end of the connection would be wrong now.
    raw.send(&PINGREQ).await?;
    match timeout(crate::raw::PATIENCE, raw.packet()).await? {
        Ok(Some(_)) => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
