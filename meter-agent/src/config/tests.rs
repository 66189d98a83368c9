use super::*;

const GOOD: &str = r#"
state_directory = "state"
[broker]
host = "broker.example.net"
[identity]
directory = "/etc/identity"
[[channel]]
name = "import"
impulses_per_kwh = 1000
[channel.simulated]
seed = 7
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/base/meter-agent.toml"), |_| None)
}

#[test]
fn a_short_file_gets_the_documented_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.broker_port, 8883);
    assert_eq!(config.state_directory, Path::new("/base/state"));
    assert_eq!(config.identity.key(), Path::new("/etc/identity/key.pem"));
    let floors = config.floors;
    assert_eq!((floors.minimum_group, floors.minimum_neighbours), (30, 3));
    assert_eq!(floors.minimum_presence_percent, 80);
    assert_eq!(floors.minimum_period.as_secs(), 900);
    assert_eq!(floors.max_exclusions_per_day, 5);
}

#[test]
fn systemd_directories_stand_in_for_missing_ones() {
    let text = GOOD
        .replace("state_directory = \"state\"", "")
        .replace("directory = \"/etc/identity\"", "");
    let config = Config::parse(&text, Path::new("x.toml"), |name| {
        Some(PathBuf::from(format!("/run/{name}")))
    })
    .unwrap();
    assert_eq!(config.state_directory, Path::new("/run/STATE_DIRECTORY"));
    assert_eq!(
        config.identity.directory,
        Path::new("/run/CREDENTIALS_DIRECTORY")
    );
    let error = parse(&text).unwrap_err().to_string();
    assert!(error.contains("state_directory") && error.contains("identity.directory"));
}

#[test]
fn errors_of_form_name_file_line_and_key() {
    let cases = [
        (GOOD.replace("seed = 7", "sead = 7"), 11, "sead"),
        (GOOD.replace("seed = 7", "seed = \"x\""), 11, "seed"),
        (GOOD.replace("host =", "hots ="), 4, "hots"),
        (format!("colour = 1\n{GOOD}"), 1, "colour"),
        (GOOD.replace("= 1000", "= = 1000"), 9, "impulses_per_kwh"),
        (GOOD.replace("= 1000", "= -5"), 9, "impulses_per_kwh"),
    ];
    for (text, line, key) in cases {
        let error = parse(&text).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.problems().len(), 1, "{shown}");
        assert_eq!(error.problems()[0].line, Some(line), "{shown}");
        assert!(
            shown.starts_with(&format!("/base/meter-agent.toml:{line}: ")),
            "{shown}"
        );
        assert!(shown.contains(key), "{shown}");
    }
}

#[test]
fn everything_wrong_in_values_is_told_at_once() {
    let text = r#"
state_directory = "state"
[broker]
host = "http://broker"
port = 0
[identity]
directory = "id"
[floors]
minimum_group = 2
minimum_neighbours = 1
minimum_presence_percent = 101
minimum_period = 7
[[channel]]
name = "Import!"
impulses_per_kwh = 0
[channel.simulated]
seed = 1
speed = 0
[[channel]]
name = "export"
impulses_per_kwh = 1000
[[channel]]
name = "export"
impulses_per_kwh = 1000
[channel.gpiocdev]
line = "GPIO17"
offset = 3
minimum_width_ms = 0
[[channel]]
name = "third"
impulses_per_kwh = 1000
[channel.replay]
file = "x.csv"
column = 0
period = 60
begin = 2026-01-31T18:00:01Z
[[channel]]
name = "fourth"
impulses_per_kwh = 1000
[channel.rppal]
gpio = 77
"#;
    let error = parse(text).unwrap_err();
    let lines: Vec<_> = error.problems().iter().filter_map(|p| p.line).collect();
    assert_eq!(
        lines,
        [4, 5, 9, 10, 11, 12, 14, 15, 18, 19, 25, 28, 34, 36, 41],
        "{error}"
    );
}

#[test]
fn no_channel_and_two_sources_are_refused() {
    let none = &GOOD[..GOOD.find("[[channel]]").unwrap()];
    assert!(parse(none).unwrap_err().to_string().contains("[[channel]]"));
    let two = format!("{GOOD}[channel.rppal]\ngpio = 17\n");
    assert!(
        parse(&two)
            .unwrap_err()
            .to_string()
            .contains("exactly one source")
    );
}
