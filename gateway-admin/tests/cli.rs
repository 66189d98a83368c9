//! The real program, from an empty directory to a revoked meter.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const NET: &str = "abababababababababababababababab";
const HEAD: &str = "0505050505050505050505050505050505050505050505050505050505050505";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs the program with this place as its working directory.
    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gateway-admin"))
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    /// What it prints; it must succeed.
    fn prints(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its error message; it must fail and print nothing else.
    fn refuses(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments} succeeded");
        assert_eq!(output.stdout, b"", "{arguments}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

/// The word after `label` in a text.
fn after<'a>(text: &'a str, label: &str) -> &'a str {
    text.split_once(label)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("no `{label}` in: {text}"))
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn from_an_empty_directory_to_a_revoked_meter() {
    let p = Place::new();
    let made = p.prints("init --dir ca --name Testing");
    let fingerprint = after(&made, "CA fingerprint ");
    contains_all(
        &p.prints("show ca/ca.pem"),
        &["certificate of a CA", "CN=Testing", fingerprint],
    );

    // The provider's key is made on its machine; only the request travels.
    let made = p.prints("request --role provider --out provider");
    let provider = after(&made, "device id ");
    contains_all(
        &p.prints("show provider/request.pem"),
        &["request of a provider", provider],
    );
    p.prints("enrol-provider --dir ca --request provider/request.pem --out for-provider");
    assert!(!p.path("for-provider/key.pem").exists());

    let made = p.prints("request --role meter --out meter");
    let meter = after(&made, "device id ");
    let enrolled = p.prints(&format!(
        "enrol-meter --dir ca --net {NET} --request meter/request.pem \
         --provider for-provider/certificate.pem --household Elm-Street-3 \
         --log-index 12 --log-head {HEAD} --members 7"
    ));
    contains_all(&enrolled, &["enrolled meter", meter, NET]);
    let bundle = format!("ca/enrolled/{meter}");

    contains_all(
        &p.prints(&format!("show {bundle}/certificate.pem")),
        &[
            "certificate of a meter",
            meter,
            NET,
            "yes, by the CA",
            fingerprint,
        ],
    );
    contains_all(
        &p.prints(&format!("show {bundle}/checkpoint.cbor")),
        &[
            "checkpoint",
            NET,
            HEAD,
            "12",
            "7",
            "yes, by the administrator",
        ],
    );
    contains_all(
        &p.prints(&format!("show {bundle}/provider.pem")),
        &["certificate of a provider", provider],
    );
    let list = p.prints("list --dir ca");
    let line = list.lines().find(|line| line.starts_with(meter)).unwrap();
    contains_all(line, &["meter", NET, "valid", "Elm-Street-3"]);

    let revoked = p.prints(&format!("revoke --dir ca {meter}"));
    contains_all(&revoked, &[meter, "ca/revoked.cbor", "list number 1"]);
    contains_all(
        &p.prints("show ca/revoked.cbor"),
        &["revocation list", meter, "yes, by the administrator"],
    );
    let statement = format!("ca/revocations/{meter}.cbor");
    contains_all(
        &revoked,
        &[&statement, "of ca/revocations into revocations/"],
    );
    contains_all(
        &p.prints(&format!("show {statement}")),
        &[
            "revocation of one device",
            meter,
            "yes, by the administrator",
        ],
    );
    let list = p.prints("list --dir ca");
    let line = list.lines().find(|line| line.starts_with(meter)).unwrap();
    contains_all(line, &["revoked"]);
    let again = p.refuses(&format!(
        "enrol-meter --dir ca --net {NET} --request meter/request.pem --out again \
         --provider for-provider/certificate.pem \
         --log-index 12 --log-head {HEAD} --members 7"
    ));
    contains_all(&again, &[meter, "revoked"]);
}

#[test]
fn a_certificate_is_renewed_for_the_key_that_the_device_has() {
    let p = Place::new();
    p.prints("init --dir ca");
    p.prints("enrol-provider --dir ca --bundle provider");
    let enrol = format!(
        "enrol-meter --dir ca --net {NET} --provider provider/certificate.pem \
         --log-index 0 --log-head {HEAD} --members 0"
    );
    // Its request is lost, or there never was one.
    p.prints(&format!("{enrol} --bundle meter --days 7"));
    let before = p.prints("show meter/certificate.pem");
    let key = fs::read(p.path("meter/key.pem")).unwrap();
    let made = p.prints("request --role meter --key meter/key.pem --out renewal");
    assert_eq!(after(&made, "device id "), after(&before, "device id"));
    contains_all(&made, &["renewal/request.pem", "keep meter/key.pem"]);
    assert!(!p.path("renewal/key.pem").exists());
    p.prints(&format!(
        "{enrol} --request renewal/request.pem --out renewed"
    ));
    let renewed = p.prints("show renewed/certificate.pem");
    assert_eq!(after(&renewed, "device id"), after(&before, "device id"));
    let validity = |text: &str| {
        let mut lines = text.lines().map(str::trim_start);
        lines
            .find(|line| line.starts_with("valid"))
            .unwrap()
            .to_owned()
    };
    assert_ne!(
        validity(&renewed),
        validity(&before),
        "ten years, not a week"
    );
    assert!(!p.path("renewed/key.pem").exists());
    assert_eq!(fs::read(p.path("meter/key.pem")).unwrap(), key);

    let again = "request --role meter --key meter/key.pem --out renewal";
    contains_all(&p.refuses(again), &["request.pem", "never overwritten"]);
    let missing = "request --role meter --key nowhere.pem --out x";
    contains_all(&p.refuses(missing), &["nowhere.pem"]);
    assert!(!p.path("x").exists());
}

#[test]
fn bundles_for_demonstrations_hold_the_key() {
    let p = Place::new();
    p.prints("init --dir ca");
    p.prints("enrol-provider --dir ca --bundle provider");
    p.prints("enrol-broker --dir ca --bundle broker --host localhost --host 127.0.0.1");
    p.prints(&format!(
        "enrol-third-party --dir ca --bundle reader --net {NET}"
    ));
    p.prints("enrol-third-party --dir ca --bundle reader-of-all --days 7");
    p.prints(&format!(
        "enrol-meter --dir ca --bundle meter --net {NET} --provider provider/certificate.pem \
         --log-index 0 --log-head {HEAD} --members 0"
    ));
    for device in ["provider", "broker", "reader", "reader-of-all", "meter"] {
        let key = p.path(device).join("key.pem");
        assert_eq!(mode(&key), 0o600, "{device}");
        let of_key = p.prints(&format!("show {device}/key.pem"));
        let of_certificate = p.prints(&format!("show {device}/certificate.pem"));
        assert_eq!(
            after(&of_key, "device id"),
            after(&of_certificate, "device id")
        );
        let secret = fs::read_to_string(&key).unwrap();
        assert!(!of_key.contains(secret.lines().nth(1).unwrap()));
    }
    contains_all(
        &p.prints("show broker/certificate.pem"),
        &["certificate of a broker", "localhost", "127.0.0.1"],
    );
    contains_all(
        &p.prints("show reader/certificate.pem"),
        &["certificate of a third-party", NET],
    );
    assert!(
        !p.prints("show reader-of-all/certificate.pem")
            .contains("  net")
    );
}

#[test]
fn a_meter_without_a_log_head_is_told_how_to_get_one() {
    let p = Place::new();
    p.prints("init --dir ca");
    p.prints("enrol-provider --dir ca --bundle provider");
    for given in ["", "--log-index 3", "--log-index 3 --members 2"] {
        let error = p.refuses(&format!(
            "enrol-meter --dir ca --bundle meter --net {NET} \
             --provider provider/certificate.pem {given}"
        ));
        contains_all(&error, &[&format!("provider-agent net show {NET}")]);
    }
    assert!(!p.path("meter").exists());
    assert_eq!(p.prints("list --dir ca").lines().count(), 2);
}

#[test]
fn nothing_is_overwritten() {
    let p = Place::new();
    p.prints("init --dir ca");
    let key = fs::read(p.path("ca/ca.key.pem")).unwrap();
    contains_all(&p.refuses("init --dir ca"), &["never overwritten"]);
    assert_eq!(fs::read(p.path("ca/ca.key.pem")).unwrap(), key);

    p.prints("request --role meter --out meter");
    let key = fs::read(p.path("meter/key.pem")).unwrap();
    contains_all(
        &p.refuses("request --role meter --out meter"),
        &["meter/key.pem", "never overwritten"],
    );
    assert_eq!(fs::read(p.path("meter/key.pem")).unwrap(), key);

    p.prints("enrol-provider --dir ca --bundle provider");
    let issued = p.prints("list --dir ca");
    contains_all(
        &p.refuses("enrol-provider --dir ca --bundle provider"),
        &["never overwritten"],
    );
    // Refused before anything was issued.
    assert_eq!(p.prints("list --dir ca"), issued);
}

#[test]
fn keys_that_others_can_read_are_refused_with_the_remedy() {
    let p = Place::new();
    p.prints("init --dir ca");
    for name in ["ca/ca.key.pem", "ca/administrator.key.pem"] {
        fs::set_permissions(p.path(name), Permissions::from_mode(0o644)).unwrap();
        contains_all(&p.refuses("list --dir ca"), &[&format!("chmod 600 {name}")]);
        contains_all(&p.refuses(&format!("show {name}")), &["chmod 600"]);
        fs::set_permissions(p.path(name), Permissions::from_mode(0o600)).unwrap();
    }
    p.prints("list --dir ca");
    fs::set_permissions(p.path("ca"), Permissions::from_mode(0o775)).unwrap();
    contains_all(&p.refuses("list --dir ca"), &["chmod go-w ca"]);
}

#[test]
fn mistakes_are_named() {
    let p = Place::new();
    contains_all(&p.refuses("list --dir ca"), &["ca/ca.key.pem"]);
    p.prints("init --dir ca");
    p.prints("request --role broker --out broker");
    contains_all(
        &p.refuses("enrol-provider --dir ca --request broker/request.pem"),
        &["broker where provider is needed", "enrol-broker"],
    );
    contains_all(
        &p.refuses("enrol-provider --dir ca --request ca/ca.pem"),
        &["ca/ca.pem", "BEGIN CERTIFICATE REQUEST"],
    );
    p.refuses("enrol-broker --dir ca --request broker/request.pem");
    contains_all(
        &p.refuses("enrol-broker --dir ca --request broker/request.pem --host *.example"),
        &["*.example"],
    );
    p.refuses("enrol-third-party --dir ca --bundle x --net ABAB");
    p.refuses("enrol-provider --dir ca --bundle x --days 0");
    p.refuses("request --role administrator --out x");
    contains_all(
        &p.refuses(&format!("revoke --dir ca {NET}")),
        &[NET, "not in the registry"],
    );
    p.refuses("revoke --dir ca 12");
    p.refuses("revoke --dir ca");
    fs::write(p.path("junk"), [0, 1, 2, 0xff]).unwrap();
    contains_all(&p.refuses("show junk"), &["junk is not"]);
    contains_all(&p.refuses("show absent"), &["absent"]);
    assert!(!p.path("x").exists());
}

#[test]
fn a_certificate_of_another_ca_is_shown_as_such() {
    let p = Place::new();
    p.prints("init --dir ca");
    p.prints("init --dir other");
    p.prints("enrol-provider --dir other --bundle provider");
    let shown = p.prints("show provider/certificate.pem --ca ca/ca.pem");
    contains_all(&shown, &["verified", "NO: ", "not issued by this CA"]);
    let list = p.prints("show other/revoked.cbor --ca other/ca.pem");
    contains_all(&list, &["yes, by the administrator"]);
    fs::copy(p.path("other/revoked.cbor"), p.path("ca/theirs.cbor")).unwrap();
    contains_all(&p.prints("show ca/theirs.cbor"), &["NO: "]);
    fs::create_dir(p.path("alone")).unwrap();
    fs::copy(p.path("ca/revoked.cbor"), p.path("alone/revoked.cbor")).unwrap();
    contains_all(&p.prints("show alone/revoked.cbor"), &["not checked"]);
}
