//! `gateway-admin`: the command line of the gateway administrator.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dcnet::identity::{DeviceId, Role};
use dcnet::topic::NetId;
use gateway_admin::{
    Applicant, Authority, Bundle, CA_DAYS, CERTIFICATE_FILE, DEFAULT_NAME, DEVICE_DAYS,
    DeviceRequest, Error, Host, InitOptions, KEY_FILE, KeyPair, LogHead, MAX_DAYS, REQUEST_FILE,
    REVOCATIONS_DIRECTORY, Terms, Trust, device_id, show, utc,
};
use manual::Manual;

/// The offline tool of the gateway administrator: decides which devices take part.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a CA and an administrator in a new directory. Never overwrites.
    Init {
        #[command(flatten)]
        at: At,
        /// Name of the CA; every device sees it.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Days the CA and the administrator are valid.
        #[arg(long, default_value_t = CA_DAYS, value_parser = days())]
        days: u32,
    },
    /// On a device: make its key, which never leaves it, and a signing request; or a request of
    /// the key that it has.
    Request {
        /// What the device is.
        #[arg(long)]
        role: Requested,
        /// The key that the device has already, to renew its certificate; without it, a new one
        /// is made.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Directory for request.pem, and for a new key.pem (mode 0600).
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Issue a meter's certificate for one net, with a checkpoint of the net's log.
    EnrolMeter {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        enrol: Enrol,
        /// The net: 32 hexadecimal digits, as `provider-agent net show` prints them.
        #[arg(long)]
        net: NetId,
        /// The provider's certificate.
        #[arg(long, value_name = "FILE")]
        provider: PathBuf,
        #[command(flatten)]
        head: Head,
        /// Whose meter it is; kept in the registry alone, never in the certificate.
        #[arg(long, value_name = "TEXT")]
        household: Option<String>,
    },
    /// Issue a provider agent's certificate.
    EnrolProvider {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        enrol: Enrol,
    },
    /// Issue a broker's certificate with the names it is reached under.
    EnrolBroker {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        enrol: Enrol,
        /// A DNS name or IP address of the broker; may be repeated.
        #[arg(long = "host", value_name = "NAME", required = true, num_args = 1..)]
        hosts: Vec<Host>,
    },
    /// Issue a certificate for reading published aggregates.
    EnrolThirdParty {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        enrol: Enrol,
        /// The one net it may read; without it, every net.
        #[arg(long)]
        net: Option<NetId>,
    },
    /// Say in plain words what a certificate, request, checkpoint, revocation list or statement
    /// holds.
    Show {
        /// The file.
        file: PathBuf,
        /// The CA to verify it against [default: ca.pem beside the file].
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// List the certificates issued, with household labels.
    List {
        #[command(flatten)]
        at: At,
    },
    /// Put devices on the signed revocation list, for ever, and sign a statement about each.
    Revoke {
        #[command(flatten)]
        at: At,
        /// Device ids: 32 hexadecimal digits each.
        #[arg(required = true, value_name = "ID", value_parser = parse_device_id)]
        devices: Vec<DeviceId>,
    },
    /// Write man pages and shell completions.
    #[command(hide = true)]
    Manual(Manual),
}

#[derive(Args)]
struct At {
    /// The administrator's directory.
    #[arg(long = "dir", value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Args)]
struct Enrol {
    /// The device's signing request.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "bundle",
        required_unless_present = "bundle"
    )]
    request: Option<PathBuf>,
    /// For demonstrations: make the key here and write it, with the rest, to this directory.
    #[arg(long, value_name = "OUT")]
    bundle: Option<PathBuf>,
    /// Where to write the enrolment directory [default: DIR/enrolled/ID].
    #[arg(long, value_name = "OUT", conflicts_with = "bundle")]
    out: Option<PathBuf>,
    /// Days the certificate is valid.
    #[arg(long, default_value_t = DEVICE_DAYS, value_parser = days())]
    days: u32,
}

#[derive(Args)]
struct Head {
    /// Index of the newest entry of the net's log.
    #[arg(long, value_name = "N")]
    log_index: Option<u64>,
    /// Hash of that entry: 64 hexadecimal digits.
    #[arg(long, value_name = "HEX", value_parser = parse_hash)]
    log_head: Option<[u8; 32]>,
    /// Members of the net as of that entry.
    #[arg(long, value_name = "M")]
    members: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Requested {
    Meter,
    Provider,
    Broker,
    ThirdParty,
}

impl From<Requested> for Role {
    fn from(role: Requested) -> Self {
        match role {
            Requested::Meter => Self::Meter,
            Requested::Provider => Self::Provider,
            Requested::Broker => Self::Broker,
            Requested::ThirdParty => Self::ThirdParty,
        }
    }
}

fn days() -> clap::builder::RangedU64ValueParser<u32> {
    clap::builder::RangedU64ValueParser::new().range(1..=u64::from(MAX_DAYS))
}

fn parse_device_id(text: &str) -> Result<DeviceId, &'static str> {
    device_id(text).ok_or("a device id has 32 hexadecimal digits")
}

fn parse_hash(text: &str) -> Result<[u8; 32], &'static str> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).map_err(|_| "a log head has 64 hexadecimal digits")?;
    Ok(hash)
}

impl Head {
    fn required(&self, net: NetId) -> Result<LogHead> {
        match (self.log_index, self.log_head, self.members) {
            (Some(index), Some(hash), Some(members)) => Ok(LogHead {
                index,
                hash,
                members,
            }),
            _ => bail!(
                "a meter is enrolled with a checkpoint of its net's log, so that no provider can \
                 show it a log of its own making. Ask the provider for the head of the log:\n\
                 \n    provider-agent net show {net}\n\n\
                 check that it continues the log you know, then pass what it prints as \
                 --log-index N --log-head HEX --members M"
            ),
        }
    }
}

impl Enrol {
    /// Who is to be enrolled and where the result goes; refuses a directory in which
    /// files would have to be overwritten before anything is issued.
    fn prepare(&self, at: &At) -> Result<(Applicant, PathBuf)> {
        let (applicant, out) = match (&self.request, &self.bundle) {
            (Some(file), _) => {
                let request = DeviceRequest::read(file)
                    .with_context(|| format!("cannot use {}", file.display()))?;
                let enrolled = at.directory.join("enrolled");
                let default = enrolled.join(request.id().to_string());
                let out = self.out.clone().unwrap_or(default);
                (Applicant::from(request), out)
            }
            (None, Some(out)) => {
                gateway_admin::refuse_existing(out, [KEY_FILE])?;
                (Applicant::from(KeyPair::generate()?), out.clone())
            }
            (None, None) => bail!("either --request FILE or --bundle OUT is needed"),
        };
        gateway_admin::refuse_existing(&out, [CERTIFICATE_FILE]).context(
            "nothing was issued; to renew a certificate, give another directory with --out",
        )?;
        Ok((applicant, out))
    }

    fn terms(&self) -> Terms {
        Terms::default().days(self.days)
    }
}

fn deliver(bundle: &Bundle, out: &Path) -> Result<()> {
    bundle.write(out).with_context(|| {
        format!(
            "the certificate of {} is in the registry but could not be delivered; \
             enrol the device again into another directory",
            bundle.id()
        )
    })?;
    let certificate = &bundle.certificate;
    println!("enrolled {} {}", certificate.role().as_str(), bundle.id());
    if let Some(net) = certificate.net() {
        println!("in net {net}");
    }
    println!("valid until {}", utc(certificate.not_after()));
    println!("wrote {}: {}", out.display(), bundle.file_names().join(" "));
    if bundle.key().is_none() {
        println!("copy these files to the device, beside its {KEY_FILE}");
    }
    Ok(())
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { at, name, days } => {
            let authority = Authority::init_with(&at.directory, &InitOptions { name, days })?;
            let fingerprint = hex::encode(authority.ca().fingerprint());
            println!("made a CA in {}", at.directory.display());
            println!("CA fingerprint {fingerprint}");
            println!("administrator {}", authority.administrator().id());
            println!("keep the directory offline, and a copy of it in another safe place");
        }
        Command::Request { role, key, out } => {
            let request = match &key {
                Some(key) => DeviceRequest::of_key(key, &out, role.into())?,
                None => DeviceRequest::create(&out, role.into())?,
            };
            println!("device id {}", request.id());
            let file = out.join(REQUEST_FILE);
            println!("give {} to the gateway administrator", file.display());
            let key = key.unwrap_or_else(|| out.join(KEY_FILE));
            println!("keep {} on this device", key.display());
        }
        Command::EnrolMeter {
            at,
            enrol,
            net,
            provider,
            head,
            household,
        } => {
            let head = head.required(net)?;
            let authority = Authority::open(&at.directory)?;
            let provider = authority.read_certificate(&provider)?;
            let (applicant, out) = enrol.prepare(&at)?;
            let terms = Terms {
                household,
                ..enrol.terms()
            };
            deliver(
                &authority.enrol_meter(applicant, net, &provider, head, &terms)?,
                &out,
            )?;
        }
        Command::EnrolProvider { at, enrol } => {
            let authority = Authority::open(&at.directory)?;
            let (applicant, out) = enrol.prepare(&at)?;
            deliver(&authority.enrol_provider(applicant, &enrol.terms())?, &out)?;
        }
        Command::EnrolBroker { at, enrol, hosts } => {
            let authority = Authority::open(&at.directory)?;
            let (applicant, out) = enrol.prepare(&at)?;
            deliver(
                &authority.enrol_broker(applicant, &hosts, &enrol.terms())?,
                &out,
            )?;
        }
        Command::EnrolThirdParty { at, enrol, net } => {
            let authority = Authority::open(&at.directory)?;
            let (applicant, out) = enrol.prepare(&at)?;
            deliver(
                &authority.enrol_third_party(applicant, net, &enrol.terms())?,
                &out,
            )?;
        }
        Command::Show { file, ca } => {
            let trust = Trust::find(&file, ca.as_deref())?;
            print!("{}", show(&file, &trust)?);
        }
        Command::List { at } => list(&Authority::open(&at.directory)?)?,
        Command::Manual(manual) => manual
            .write(Cli::command())
            .context("cannot write the manual")?,
        Command::Revoke { at, devices } => revoke(&Authority::open(&at.directory)?, &devices)?,
    }
    Ok(())
}

fn list(authority: &Authority) -> Result<()> {
    let revoked = authority.revocations()?;
    for entry in authority.issued()? {
        let net = entry.net.map_or("-".to_owned(), |net| net.to_string());
        let state = if revoked.contains(&entry.device) {
            "revoked"
        } else {
            "valid"
        };
        println!(
            "{} {:<13} {net:<32} {} to {} {state:<7} {}",
            entry.device,
            entry.role.as_str(),
            utc(entry.issued),
            utc(entry.expires),
            entry.household.as_deref().unwrap_or("-").escape_debug(),
        );
    }
    Ok(())
}

fn revoke(authority: &Authority, devices: &[DeviceId]) -> Result<()> {
    let revocation = authority.revoke(devices)?;
    if revocation.added.is_empty() {
        println!("nothing to do: already revoked");
    }
    for device in &revocation.added {
        println!("revoked {device}");
    }
    let path = authority.revoked_path();
    println!(
        "{} is list number {} of {} devices",
        path.display(),
        revocation.list.number(),
        revocation.list.devices().count()
    );
    println!(
        "copy it over revoked.cbor in the enrolment directories of the broker, which then refuses \
         these devices, of the provider, and of every meter"
    );
    for path in &revocation.statements {
        println!("signed {}", path.display());
    }
    println!(
        "copy the files of {} into revocations/ in the provider's enrolment directory: by them it \
         writes the revocations into the log of its nets",
        path.with_file_name(REVOCATIONS_DIRECTORY).display()
    );
    Ok(())
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-admin: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn explain(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    match error.downcast_ref::<Error>() {
        Some(Error::Role { found, .. }) => {
            format!("{text}: use `gateway-admin enrol-{}`", found.as_str())
        }
        _ => text,
    }
}
