//! A street whose daemons and their libraries log everything they can: no secret and no reading is
//! in it, neither with the households nor with the provider or the broker.

mod street;

use std::collections::{BTreeMap, BTreeSet};

use dcnet::cbor::{self, Fields};
use dcnet::identity::DeviceId;
use dcnet::time::Round;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use street::{Street, present_round};

/// How bytes come to stand in a log.
fn forms(bytes: &[u8]) -> [String; 4] {
    let listed: Vec<String> = bytes.iter().map(u8::to_string).collect();
    [
        hex::encode(bytes),
        hex::encode_upper(bytes),
        listed.join(", "),
        bytes.escape_ascii().to_string(),
    ]
}

fn stands_in(log: &str, bytes: &[u8]) -> bool {
    forms(bytes).iter().any(|form| log.contains(form))
}

/// The secrets that a household has stored: self-mask, blinding, and the key of each pair.
fn stored_secrets(street: &Street, id: &DeviceId) -> Vec<Vec<u8>> {
    let of = |name: &str| street.records(id, name).into_values();
    let fields = |bytes: Vec<u8>| Fields::of(cbor::decode(&bytes).unwrap(), "record").unwrap();
    let mut secrets = Vec::new();
    for mut device in of("device").map(fields) {
        secrets.push(device.fixed::<32>("mask").unwrap().to_vec());
        device.item("day").unwrap();
        secrets.push(device.fixed::<32>("blinding").unwrap().to_vec());
    }
    for mut edge in of("edge/").map(fields) {
        for name in ["lower", "higher", "origin", "stage"] {
            edge.item(name).unwrap();
        }
        let mut stage = Fields::of(edge.item("established").unwrap(), "established").unwrap();
        stage.item("day").unwrap();
        secrets.push(stage.fixed::<32>("key").unwrap().to_vec());
    }
    secrets
}

/// Numbers of five digits and more. Whole thousands of seconds and bytes stand in logs, too, so
/// round readings are left out.
fn numbers(log: &str) -> BTreeSet<u64> {
    let numbers = log.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_');
    let numbers = numbers.filter(|number| number.len() >= 5);
    numbers.filter_map(|number| number.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_everything_has_no_secret_and_no_reading_in_it() {
    let mut street = Street::that_logs_everything().await;
    let first = present_round();
    let households: Vec<DeviceId> = (0..5).map(|_| street.join()).collect();
    street.sums_over(&street.all(), 2, Round(0)).await;
    let lost = households[2];
    street.kill(&lost);
    street.start(&lost);
    street.sums_over(&street.all(), 2, present_round()).await;
    let mut totals = Vec::new();
    for id in &households {
        let counted = |status: &serde_json::Value| !status["channels"][0]["pulses"].is_null();
        let status = street.until_status(id, "its register", counted).await;
        totals.push(status["channels"][0]["pulses"].as_u64().unwrap() * 1000);
    }
    for id in &households {
        street.stop(id).await;
    }
    street.stop_provider().await;

    let mut logs = BTreeMap::from([
        ("provider".to_owned(), street.provider_said()),
        ("broker".to_owned(), street.broker_said()),
    ]);
    for (index, id) in households.iter().enumerate() {
        logs.insert(format!("household {index}"), street.said(id));
    }
    let secrets: Vec<Vec<u8>> = households
        .iter()
        .flat_map(|id| stored_secrets(&street, id))
        .collect();
    assert_eq!(secrets.len(), 5 * (2 + 4));
    let mut readings: BTreeSet<u64> = totals.into_iter().collect();
    for round in first.0..=present_round().0 {
        readings.extend(
            households
                .iter()
                .map(|id| street.consumed(id, Round(round))),
        );
    }
    readings.retain(|reading| reading % 5000 != 0);
    for (who, log) in &logs {
        for level in ["TRACE", "DEBUG", "INFO"] {
            assert!(log.contains(level), "{who} logs nothing of {level}");
        }
        for secret in &secrets {
            for part in [&secret[..12], &secret[20..]] {
                assert!(!stands_in(log, part), "{who}: a secret of a meter");
            }
        }
        for file in street.private_keys() {
            let pem = std::fs::read_to_string(&file).unwrap();
            let text = pem.lines().find(|line| !line.starts_with("--")).unwrap();
            assert!(!log.contains(text), "{who}: {}", file.display());
            let key = PrivateKeyDer::from_pem_file(&file).unwrap();
            // PKCS #8 of Ed25519 ends with the key.
            let key = key.secret_der();
            let key = &key[key.len() - 32..];
            for part in [&key[..12], &key[20..]] {
                assert!(!stands_in(log, part), "{who}: {}", file.display());
            }
        }
        let said: Vec<u64> = numbers(log).intersection(&readings).copied().collect();
        assert!(said.is_empty(), "{who} logs readings: {said:?}");
    }
    // What may be known is found in these forms.
    assert!(numbers("now=735174, round 5.").contains(&735_174));
    let known = |log: &str| households.iter().all(|id| stands_in(log, &id.0));
    assert!(known(&logs["provider"]) && known(&logs["broker"]));
}
