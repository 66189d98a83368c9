//! The total energy in the payload of an MQTT message: a plain number, or one in a JSON document.

use std::borrow::Cow;
use std::collections::HashMap;
use std::str::FromStr;

use dcnet::units::MilliwattHours;
use serde_json::value::RawValue;

use super::input::Fault;
use crate::energy::{self, EnergyUnit};

/// Where in a JSON document a value stands: a JSON pointer (RFC 6901) such as `/ENERGY/Total`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// A text that is no JSON pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JSON pointer; write it as /ENERGY/Total, with ~0 for ~ and ~1 for / in a name")]
pub struct NoPointer;

impl FromStr for Pointer {
    type Err = NoPointer;

    fn from_str(text: &str) -> Result<Self, NoPointer> {
        let names = text.strip_prefix('/').ok_or(NoPointer)?;
        let name = |name: &str| {
            let unescaped = name.replace("~1", "/").replace("~0", "~");
            let escapes = name.matches("~0").count() + name.matches("~1").count();
            (name.matches('~').count() == escapes).then_some(unescaped)
        };
        let names: Option<Vec<String>> = names.split('/').map(name).collect();
        names.map(Self).ok_or(NoPointer)
    }
}

/// The total in a payload; without a pointer it is a plain number.
///
/// # Errors
/// [`Fault`].
pub fn total(
    payload: &[u8],
    pointer: Option<&Pointer>,
    unit: EnergyUnit,
) -> Result<MilliwattHours, Fault> {
    let text = std::str::from_utf8(payload)
        .map_err(|_| Fault::new("payload is no text", "a payload is not UTF-8"))?;
    let Some(pointer) = pointer else {
        return number(text.trim(), unit);
    };
    let no_json = |error: serde_json::Error| {
        Fault::new(
            "payload is no JSON",
            format!("a payload is no JSON ({error}); leave `pointer` out for plain numbers"),
        )
    };
    let mut value: &RawValue = serde_json::from_str(text).map_err(no_json)?;
    for name in &pointer.0 {
        value = member(value, name).map_err(no_json)?.ok_or_else(|| {
            Fault::new(
                "no such member",
                format!("a payload has no {name:?} where `pointer` says"),
            )
        })?;
    }
    let text = value.get();
    if text.starts_with('"') {
        let text: String = serde_json::from_str(text).map_err(no_json)?;
        return number(text.trim(), unit);
    }
    number(text, unit)
}

/// The text of a member, untouched: its digits must not go through a floating-point number.
fn member<'a>(value: &'a RawValue, name: &str) -> serde_json::Result<Option<&'a RawValue>> {
    let text = value.get();
    if text.starts_with('{') {
        let members: HashMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(text)?;
        return Ok(members.get(name).copied());
    }
    let index = name
        .parse::<usize>()
        .ok()
        .filter(|index| index.to_string() == name);
    match index {
        Some(index) if text.starts_with('[') => {
            let items: Vec<&'a RawValue> = serde_json::from_str(text)?;
            Ok(items.get(index).copied())
        }
        _ => Ok(None),
    }
}

fn number(text: &str, unit: EnergyUnit) -> Result<MilliwattHours, Fault> {
    energy::parse(text, unit).map_err(|error| {
        Fault::new(
            "value is no energy",
            format!("the value in a payload is {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(payload: &str, pointer: Option<&str>) -> Result<u64, &'static str> {
        let pointer = pointer.map(|pointer| pointer.parse::<Pointer>().unwrap());
        total(
            payload.as_bytes(),
            pointer.as_ref(),
            EnergyUnit::KilowattHours,
        )
        .map(|energy| energy.0)
        .map_err(|fault| fault.kind)
    }

    #[test]
    fn payloads_of_common_devices() {
        let tasmota = r#"{"Time":"2026-01-31T18:00:00","ENERGY":{"TotalStartTime":
            "2024-05-01T09:12:44","Total":1234.567,"Yesterday":3.141,"Today":0.815,
            "Power": 74,"Voltage":232},"Switch":["ON", 0.1]}"#;
        assert_eq!(read(tasmota, Some("/ENERGY/Total")), Ok(1_234_567_000));
        assert_eq!(read(tasmota, Some("/Switch/1")), Ok(100_000));
        assert_eq!(read("12345.678\n", None), Ok(12_345_678_000), "ESPHome");
        let vzlogger = r#" { "timestamp": 1700000000123, "value": 9007199254740.993 } "#;
        assert_eq!(
            read(vzlogger, Some("/value")),
            Ok(9_007_199_254_740_993_000),
            "beyond what a double holds"
        );
        assert_eq!(read(r#"{"a":"17.5"}"#, Some("/a")), Ok(17_500_000));
        assert_eq!(
            read(r#"{"a/b":{"m~n":1e-3}}"#, Some("/a~1b/m~0n")),
            Ok(1_000)
        );
        assert_eq!(read(r#"{"\u0061":2}"#, Some("/a")), Ok(2_000_000));
    }

    #[test]
    fn other_payloads_are_faults_of_their_kind() {
        for (payload, pointer, kind) in [
            ("unavailable", None, "value is no energy"),
            ("-0.1", None, "value is no energy"),
            ("", None, "value is no energy"),
            (r#"{"a":null}"#, Some("/a"), "value is no energy"),
            (r#"{"a":{}}"#, Some("/a"), "value is no energy"),
            (r#"{"a":1}"#, Some("/b"), "no such member"),
            (r#"{"a":1}"#, Some("/a/b"), "no such member"),
            ("[1]", Some("/00"), "no such member"),
            ("[1]", Some("/1"), "no such member"),
            (r#"{"a":"#, Some("/a"), "payload is no JSON"),
            ("12", Some("/a"), "no such member"),
        ] {
            assert_eq!(read(payload, pointer), Err(kind), "{payload}");
        }
        assert_eq!(
            total(&[0xff], None, EnergyUnit::WattHours)
                .unwrap_err()
                .kind,
            "payload is no text"
        );
    }

    #[test]
    fn what_a_fault_says_has_nothing_of_the_payload() {
        let pointer: Pointer = "/ENERGY/Total".parse().unwrap();
        for payload in [
            "7654321.0 kWh",
            "-7654321",
            r#"{"ENERGY":{"Total":"7654321 kWh"}}"#,
            r#"{"ENERGY":{"Total":7654321e9999}}"#,
            r#"{"ENERGY":{"Total":[7654321]}}"#,
            r#"{"ENERGY":{"Total":7654321.}}"#,
            r#"{"ENERGY":7654321}"#,
            r#"{"ENERGY":{"Total":"\ud8007654321"}}"#,
        ] {
            for pointer in [None, Some(&pointer)] {
                let fault = total(payload.as_bytes(), pointer, EnergyUnit::KilowattHours);
                let said = fault.unwrap_err().detail;
                assert!(!said.contains("7654321"), "{payload}: {said}");
            }
        }
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for text in ["", "ENERGY/Total", "/a~", "/a~2"] {
            assert_eq!(text.parse::<Pointer>(), Err(NoPointer), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes: Vec<u8>, json in r#"[{}\[\]",:0-9ae.\\ ]{0,40}"#) {
            let pointer: Pointer = "/a/0".parse().unwrap();
            for payload in [&bytes[..], json.as_bytes()] {
                let _ = total(payload, Some(&pointer), EnergyUnit::WattHours);
                let _ = total(payload, None, EnergyUnit::WattHours);
            }
        }
    }
}
