use proptest::prelude::*;

use super::*;

const TELEGRAM: &str = "/EBZ5DD3BZ06ETA_107\r\n\r\n1-0:0.0.0*255(1EBZ0100000123)\r\n\
    1-0:1.8.0*255(000123.4567*kWh)\r\n1-0:2.8.0*255(7*Wh)\r\n!\r\n";
const TOTAL: MilliwattHours = MilliwattHours(123_456_700);

fn events(telegrams: &mut D0Telegrams, bytes: &[u8]) -> Vec<Event> {
    bytes
        .iter()
        .filter_map(|byte| telegrams.push(*byte))
        .filter(|event| !matches!(event, Event::Identified(_)))
        .collect()
}

fn import(framing: Framing) -> D0Telegrams {
    D0Telegrams::new(vec![Obis::IMPORT], framing)
}

fn read(text: &str) -> Vec<Event> {
    let framing = Framing::SevenEven;
    events(&mut import(framing), &framing.encode(text.as_bytes()))
}

fn fault(text: &str) -> &'static str {
    match &read(text)[..] {
        [Event::Fault(fault)] => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_telegram_is_found_in_both_framings() {
    for framing in [Framing::SevenEven, Framing::Eight] {
        let bytes = framing.encode(TELEGRAM.as_bytes());
        let found = events(&mut import(framing), &bytes);
        assert_eq!(found, [Event::Total(TOTAL)]);
    }
}

#[test]
fn telegrams_are_found_between_noise() {
    let text = format!("000*kWh)\r\n!\r\n{TELEGRAM}\r\n{TELEGRAM}");
    assert_eq!(read(&text), [Event::Total(TOTAL), Event::Total(TOTAL)]);
    let noise = format!("/x/{TELEGRAM}");
    assert_eq!(read(&noise), [Event::Total(TOTAL)], "a stray slash");
}

#[test]
fn a_telegram_that_was_cut_off_does_not_spoil_the_next() {
    for cut in 1..TELEGRAM.len() - 1 {
        let found = read(&format!("{}{TELEGRAM}", &TELEGRAM[..cut]));
        let whole = found.iter().filter(|e| **e == Event::Total(TOTAL)).count();
        assert_eq!(whole, 1, "cut at {cut}: {found:?}");
    }
}

#[test]
fn a_changed_bit_is_noticed_by_parity() {
    let bytes = Framing::SevenEven.encode(TELEGRAM.as_bytes());
    for position in 1..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << bit;
            let found = events(&mut import(Framing::SevenEven), &damaged);
            assert!(!found.contains(&Event::Total(TOTAL)), "{position} {bit}");
        }
    }
}

#[test]
fn a_checksum_must_match() {
    let block = "1-0:1.8.0*255(000123.4567*kWh)\r\n!\r\n\x03";
    let sum = block.bytes().fold(0, |sum, byte| sum ^ byte);
    let text = |sum: u8| format!("/EMH5x\r\n\x02{block}{}", char::from(sum));
    assert_eq!(read(&text(sum)), [Event::Total(TOTAL)]);
    assert_eq!(fault(&text(sum ^ 1)), "checksum of a telegram");
    let without = format!("/EMH5x\r\n\x02{}", block.replace('\x03', "/"));
    assert_eq!(fault(&without), "checksum of a telegram");
}

#[test]
fn several_tariffs_are_added_up() {
    let codes = ["1.8.1", "1.8.2"].map(|code| code.parse().unwrap());
    let mut telegrams = D0Telegrams::new(codes.to_vec(), Framing::Eight);
    let text = "/ABC5\r\n1.8.1(1.5*kWh)1.8.2(0.25*kWh)(1)\r\n1.8.1*01(0.1*kWh)\r\n!\r\n";
    let found = events(&mut telegrams, text.as_bytes());
    assert_eq!(found, [Event::Total(MilliwattHours(1_750_000))]);
}

#[test]
fn faults_say_what_is_wrong() {
    let telegram = |line: &str| format!("/ABC5type\r\n{line}\r\n!\r\n");
    assert_eq!(fault(&telegram("1.8.0(1.5*MWh)")), "value is no energy");
    assert_eq!(fault(&telegram("1.8.0(1.5)")), "value is no energy");
    assert_eq!(fault(&telegram("1.8.0(-1*kWh)")), "value is no energy");
    assert_eq!(
        fault(&telegram("1.8.0(1*kWh)1.8.0(2*kWh)")),
        "value is no energy"
    );
    assert_eq!(fault(&telegram("1.8.0(1*kWh")), "line of a telegram");
    assert_eq!(fault(&telegram("1.8.0)1*kWh(")), "line of a telegram");
    assert_eq!(fault("/12345\r\n"), "identification of a telegram");
    assert_eq!(
        fault(&format!("/ABC5\r\n{}", "x".repeat(300))),
        "telegram too long"
    );
    for line in [
        "1.8.0(7654321*MWh)",
        "1.8.0(7654321)",
        "1.8.0(-7654321*kWh)",
    ] {
        let found = read(&telegram(line));
        let said = format!("{found:?}");
        assert!(
            said.contains("1.8.0") && !said.contains("7654321"),
            "{said}"
        );
    }
    let missing = read(&telegram("1.8.1(1*kWh)\r\n2.8.0(1*kWh)\r\n16.7.0(1*W)"));
    let [Event::Fault(missing)] = &missing[..] else {
        panic!("{missing:?}");
    };
    assert!(missing.detail.contains("no 1.8.0; it has 1.8.1, 2.8.0;"));
}

#[test]
fn our_own_request_is_no_telegram() {
    let text = format!("/?!\r\n{TELEGRAM}");
    assert_eq!(read(&text), [Event::Total(TOTAL)]);
}

#[test]
fn speeds_follow_the_standard() {
    let of = |offer| speed(offer).map(|speed| (speed.baud, speed.acknowledgement));
    assert_eq!(of(b'0'), Some((300, Some(b"\x06000\r\n".to_vec()))));
    assert_eq!(of(b'5'), Some((9600, Some(b"\x06050\r\n".to_vec()))));
    assert_eq!(of(b'6'), Some((19_200, Some(b"\x06060\r\n".to_vec()))));
    assert_eq!(of(b'A'), Some((600, None)));
    assert_eq!(of(b'F'), Some((19_200, None)));
    assert_eq!(of(b'x'), None);
}

proptest! {
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        text in "[/!()*:.0-9A-Za-z\\r\\n\u{2}\u{3}]{0,400}",
    ) {
        for framing in [Framing::SevenEven, Framing::Eight] {
            events(&mut import(framing), &bytes);
            events(&mut import(framing), &framing.encode(text.as_bytes()));
            let begun = format!("/ABC5\r\n{text}");
            events(&mut import(framing), &framing.encode(begun.as_bytes()));
        }
    }
}
