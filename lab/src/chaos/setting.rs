//! What is there before the first process: certificates, a net, configurations, and what every
//! household uses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, bail};
use chacha20::rand_core::Rng;
use dcnet::identity::{DeviceId, PublicKey};
use dcnet::membership::{HARD_FLOOR, Policy};
use dcnet::time::{Period, Round};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use gateway_admin::Authority;
use meter_agent::clock::utc_timestamp;
use tempfile::TempDir;

use super::disk::Disk;
use super::fault::{Station, random};
use super::process::{Process, Role};
use crate::fleet::{CHANNEL, state_directory};
use crate::policy;
use crate::system::{self, Enrolled, HOST, provider_state};
use crate::truth::CONSTANT;

/// Rows of the load file; then it begins again. Odd, so that short cycles of rounds do not repeat.
const ROWS: usize = 997;
/// Most of a household in a round, in Wh.
const MOST: u64 = 3000;
/// The least share of the members lately seen that is asked for: processes are away more
/// often than households.
const PRESENCE_PERCENT: u32 = 50;
/// Room for the state of a meter, in MiB.
const METER_DISK: u32 = 16;
/// Room for the provider's database, in MiB.
const PROVIDER_DISK: u32 = 64;

/// What every household uses in every round.
#[derive(Clone, Debug)]
pub struct Consumption {
    first: Round,
    /// Wh, per row and meter.
    rows: Vec<Vec<u64>>,
}

impl Consumption {
    /// Drawn from a seed; the first row is that of round `first`.
    pub fn draw(seed: u64, meters: u32, first: Round) -> Self {
        let mut rng = random(seed, b'c');
        let mut row = || (0..meters).map(|_| 1 + rng.next_u64() % MOST).collect();
        Self {
            first,
            rows: (0..ROWS).map(|_| row()).collect(),
        }
    }

    /// As a load file; meter I replays column I.
    fn csv(&self) -> String {
        let mut text = "row".to_owned();
        for number in 1..=self.rows.first().map_or(0, Vec::len) {
            let _ = write!(text, ",meter {number}");
        }
        for (index, row) in self.rows.iter().enumerate() {
            let _ = write!(text, "\n{index}");
            for watt_hours in row {
                let _ = write!(text, ",{watt_hours}");
            }
        }
        text.push('\n');
        text
    }

    /// What some meters use together in a round; `None` before the first one, or if there is no
    /// such meter.
    pub fn sum(
        &self,
        round: Round,
        meters: impl IntoIterator<Item = u32>,
    ) -> Option<MilliwattHours> {
        let rows = u64::try_from(self.rows.len()).ok()?;
        let index = round.0.checked_sub(self.first.0)? % rows;
        let row = self.rows.get(usize::try_from(index).ok()?)?;
        meters
            .into_iter()
            .try_fold(MilliwattHours(0), |sum, meter| {
                let watt_hours = row.get(usize::try_from(meter.checked_sub(1)?).ok()?)?;
                sum.checked_add(MilliwattHours(watt_hours * 1000))
            })
    }
}

/// Everything that a run needs, but nothing that runs.
#[derive(Debug)]
pub struct Setting {
    /// The net.
    pub net: NetId,
    /// The provider's key.
    pub provider_key: PublicKey,
    /// Number of each meter, from 1.
    pub meters: BTreeMap<DeviceId, u32>,
    /// What they use.
    pub consumption: Consumption,
    /// The port of the broker.
    pub port: u16,
    /// The processes.
    pub processes: BTreeMap<Station, Process>,
    /// The disks that can be filled; none if this process may not mount any.
    pub disks: BTreeMap<Station, Disk>,
    /// Where everything is; dropped after processes and disks.
    pub directory: TempDir,
}

impl Setting {
    /// Makes certificates, net, load file and configurations in a new directory.
    ///
    /// # Errors
    /// Whatever cannot be made.
    pub fn make(meters: u32, period: Period, seed: u64) -> anyhow::Result<Self> {
        let directory = system::directory()?;
        let root = directory.path().to_owned();
        let disks = mount(&root, meters)?;
        let authority = Authority::init(&root.join("authority"))?;
        let port = free_port()?;
        let provider = provider_agent::Config {
            minimum_presence_percent: PRESENCE_PERCENT,
            ..system::provider_config(&root, port)
        };
        let Enrolled {
            net,
            provider_key,
            meters: numbers,
        } = system::enrol(&authority, &root, &provider, meters, rules(meters, period))?;
        let first = period.round_at(utc_timestamp());
        let consumption = Consumption::draw(seed, meters, first);
        let loads = root.join("loads.csv");
        write(&loads, &consumption.csv())?;

        let mut processes = BTreeMap::new();
        let mut add = |station: Station, role, configuration: String| {
            let name = station.to_string().replace(' ', "-");
            let config = root.join(format!("{name}.toml"));
            write(&config, &configuration)?;
            let log = root.join(format!("{name}.log"));
            processes.insert(station, Process::new(role, config, log));
            anyhow::Ok(())
        };
        let broker = broker_configuration(&authority, &root, port)?;
        add(Station::Broker, Role::Broker, broker)?;
        let provider = provider_configuration(&provider)?;
        add(Station::Provider, Role::Provider, provider)?;
        let begin = i64::try_from(first.start(period).as_millis())?;
        let begin = jiff::Timestamp::from_millisecond(begin)?;
        for number in 1..=meters {
            let meter = meter_configuration(&root, number, port, period, begin)?;
            add(Station::Meter(number), Role::Meter, meter)?;
        }
        Ok(Self {
            net,
            provider_key,
            meters: numbers,
            consumption,
            port,
            processes,
            disks,
            directory,
        })
    }
}

/// The smallest group that the protocol allows, so that sums go on while some are away.
fn rules(meters: u32, period: Period) -> Policy {
    Policy {
        minimum_group: HARD_FLOOR + 1,
        ..policy::net(meters, period)
    }
}

/// All disks or none.
fn mount(root: &Path, meters: u32) -> anyhow::Result<BTreeMap<Station, Disk>> {
    let meter = |number| {
        (
            Station::Meter(number),
            state_directory(root, number),
            METER_DISK,
        )
    };
    let provider = (Station::Provider, provider_state(root), PROVIDER_DISK);
    let mut disks = BTreeMap::new();
    for (station, directory, size) in (1..=meters).map(meter).chain([provider]) {
        match Disk::mount(&directory, size)? {
            Some(disk) => disks.insert(station, disk),
            None => return Ok(BTreeMap::new()),
        };
    }
    Ok(disks)
}

/// A port that nobody listens on, and that no outgoing connection gets by itself, so that it is
/// still free when the broker comes back.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let [port] = free_ports()?;
    Ok(port)
}

/// Several of them.
pub(crate) fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let lowest = ephemeral
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    let end: u16 = lowest.unwrap_or(32_768).max(12_000);
    let begin = end - 10_000;
    // Runs at the same time begin at different ones.
    let offset = u16::try_from(std::process::id() * 37 % 10_000)?;
    let ports = (begin + offset..end).chain(begin..begin + offset);
    let free = ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    let free: Vec<u16> = free.take(COUNT).collect();
    let free = <[u16; COUNT]>::try_from(free).ok();
    free.with_context(|| format!("too few ports from {begin} to {end} are free"))
}

pub(crate) fn broker_configuration(
    authority: &Authority,
    root: &Path,
    port: u16,
) -> anyhow::Result<String> {
    let directory = system::enrol_broker(authority, root)?;
    let file = |name| quoted(&directory.join(name));
    Ok(format!(
        "listen = [\"127.0.0.1:{port}\"]\nca = {}\ncertificate = {}\nkey = {}\nrevocations = {}\n\
         administrator = {}\nstate = {}\n",
        file(gateway_admin::CA_FILE)?,
        file(gateway_admin::CERTIFICATE_FILE)?,
        file(gateway_admin::KEY_FILE)?,
        quoted(&authority.revoked_path())?,
        file(gateway_admin::ADMINISTRATOR_FILE)?,
        quoted(&root.join("broker-state"))?,
    ))
}

pub(crate) fn provider_configuration(config: &provider_agent::Config) -> anyhow::Result<String> {
    Ok(format!(
        "state_directory = {}\nminimum_presence_percent = {}\n[broker]\nhost = \"{}\"\nport = {}\n\
         [identity]\ndirectory = {}\n[clock]\nassume_synchronised = {}\n",
        quoted(&config.state_directory)?,
        config.minimum_presence_percent,
        config.broker.host,
        config.broker.port,
        quoted(&config.identity.directory)?,
        config.clock.assume_synchronised,
    ))
}

fn meter_configuration(
    root: &Path,
    number: u32,
    port: u16,
    period: Period,
    begin: jiff::Timestamp,
) -> anyhow::Result<String> {
    let state = quoted(&state_directory(root, number))?;
    let identity = quoted(&system::meter_identity(root, number))?;
    let loads = quoted(&root.join("loads.csv"))?;
    let (group, seconds) = (HARD_FLOOR + 1, period.as_secs());
    let exclusions = policy::EXCLUSIONS_PER_DAY;
    Ok(format!(
        r#"state_directory = {state}
[broker]
host = "{HOST}"
port = {port}
[identity]
directory = {identity}
[clock]
assume_synchronised = true
[floors]
minimum_group = {group}
minimum_neighbours = {HARD_FLOOR}
minimum_presence_percent = {PRESENCE_PERCENT}
minimum_period = {seconds}
max_exclusions_per_day = {exclusions}
max_exclusions_per_month_percent = 100
[page]
enabled = false
[[channel]]
name = "{CHANNEL}"
impulses_per_kwh = {CONSTANT}
[channel.replay]
file = {loads}
column = {number}
period = {seconds}
after_last_row = "wrap"
begin = {begin}
"#
    ))
}

/// A path as a string of TOML.
pub(crate) fn quoted(path: &Path) -> anyhow::Result<String> {
    match path.to_str() {
        Some(text) if !text.contains(['\'', '\n']) => Ok(format!("'{text}'")),
        _ => bail!(
            "{} cannot be written in a configuration; set TMPDIR to another place",
            path.display()
        ),
    }
}

pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_follows_from_seed_and_round() {
        let first = Round(1000);
        let rounds = i64::try_from(ROWS).unwrap();
        let consumption = Consumption::draw(7, 5, first);
        let sum = |round, meters: &[u32]| consumption.sum(Round(round), meters.iter().copied());
        assert_eq!(
            sum(1003, &[1, 5]),
            Consumption::draw(7, 5, first).sum(Round(1003), [1, 5])
        );
        assert_eq!(
            sum(1003, &[2]),
            sum(1003 + rounds.unsigned_abs(), &[2]),
            "it begins again"
        );
        let alone = |meter| sum(1003, &[meter]).unwrap().0;
        assert_eq!(sum(1003, &[1, 2]).unwrap().0, alone(1) + alone(2));
        assert_eq!(sum(999, &[1]), None);
        assert_eq!(sum(1003, &[0]), None);
        assert_eq!(sum(1003, &[6]), None);
    }
}
