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
fn metrics_without_the_page_are_for_this_machine_alone() {
    let with = |listen: &str| {
        parse(&format!(
            "{GOOD}[page]\nenabled = false\n[metrics]\nlisten = {listen:?}\n"
        ))
    };
    for listen in ["127.0.0.1:9480", "[::1]:9480"] {
        let page = with(listen).unwrap().page;
        assert_eq!((page.listen, page.metrics), (None, listen.parse().ok()));
    }
    assert_eq!(parse(GOOD).unwrap().page.metrics, None);
    for listen in [
        "0.0.0.0:9480",
        "192.168.1.2:9480",
        "127.0.0.1",
        "localhost:9480",
        "",
    ] {
        let error = with(listen).unwrap_err().to_string();
        assert!(error.contains("metrics.listen"), "{error}");
    }
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

/// A file with one channel whose source is these lines; the heading is line 9.
fn with_source(lines: &str) -> String {
    GOOD.replace("[channel.simulated]\nseed = 7\n", lines)
}

fn source(lines: &str) -> SourceConfig {
    let config = parse(&with_source(lines)).unwrap();
    config.channels[0].source.clone()
}

#[test]
fn devices_that_show_their_total_have_documented_defaults() {
    use crate::pulse::d0::Framing;
    use crate::pulse::optical::Protocol;
    use crate::pulse::total::TotalOptions;

    let mqtt = "[channel.mqtt]\nhost = \"home.local\"\ntopic = \"tele/plug/SENSOR\"\n";
    let SourceConfig::Mqtt(topic) = source(mqtt) else {
        panic!();
    };
    let broker = topic.broker;
    assert_eq!((broker.port, broker.tls, broker.login), (1883, None, None));
    assert_eq!(topic.total, TotalOptions::default());
    let SourceConfig::Mqtt(topic) = source(&format!(
        "{mqtt}tls = true\npointer = \"/ENERGY/Total\"\noffset_kwh = 12345.678901\nmaximum_kw = 30\n\
         username = \"u\"\npassword_file = \"secret\"\n"
    )) else {
        panic!();
    };
    assert_eq!(topic.broker.port, 8883);
    assert_eq!(topic.total.offset, 12_345_678_901);
    assert_eq!(topic.total.maximum_kw, 30);
    assert_eq!(
        topic.broker.login.unwrap().password_file,
        Path::new("/base/secret")
    );

    let SourceConfig::Optical(head) = source("[channel.sml]\nport = \"/dev/ttyUSB0\"\n") else {
        panic!();
    };
    assert_eq!((head.baud, head.protocol), (9600, Protocol::Sml));
    assert_eq!(
        head.codes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["1.8.0"]
    );
    let SourceConfig::Optical(head) = source(
        "[channel.d0]\nport = \"/dev/ttyUSB0\"\nmode = \"request\"\nobis = [\"2.8.1\", \"2.8.2\"]\n",
    ) else {
        panic!();
    };
    let every = Some(std::time::Duration::from_secs(60));
    let protocol = Protocol::D0 {
        framing: Framing::SevenEven,
        request_every: every,
    };
    assert_eq!(
        (head.baud, head.protocol, head.codes.len()),
        (300, protocol, 2)
    );
}

#[test]
fn the_providers_broker_is_refused_as_that_of_the_household() {
    for (host, port) in [
        ("broker.example.net", "port = 8883\n"),
        ("Broker.Example.NET.", "tls = true\n"),
        ("broker.example.net", "port = 1883\n"),
    ] {
        let text = with_source(&format!(
            "[channel.mqtt]\nhost = \"{host}\"\ntopic = \"a\"\n{port}"
        ));
        let error = parse(&text).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.problems()[0].line, Some(11), "{shown}");
        assert!(shown.contains("is the broker of [broker]"), "{shown}");
    }
    let refused = |own: &str, provider: &str, port: u16| {
        let source = format!("[channel.mqtt]\nhost = \"{own}\"\ntopic = \"a\"\nport = {port}\n");
        parse(&with_source(&source).replace("broker.example.net", provider)).is_err()
    };
    assert!(refused("::ffff:203.0.113.7", "203.0.113.7", 1883));
    assert!(!refused("203.0.113.8", "203.0.113.7", 8883));
    assert!(refused("::1", "localhost", 8883));
    assert!(
        !refused("127.0.0.1", "localhost", 1883),
        "another service there"
    );
}

#[test]
fn what_is_wrong_with_a_device_is_told_with_line_and_key() {
    let cases = [
        (
            "[channel.mqtt]\nhost = \"a b\"\ntopic = \"x\"\n",
            11,
            "channel.mqtt.host",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x/+\"\n",
            12,
            "channel.mqtt.topic",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\npointer = \"T\"\n",
            13,
            "channel.mqtt.pointer",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\nusername = \"T\"\n",
            13,
            "channel.mqtt.password_file",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\npassword_file = \"T\"\n",
            13,
            "channel.mqtt.username",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\nunit = \"MWh\"\n",
            13,
            "unit",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\noffset_kwh = nan\n",
            13,
            "channel.mqtt.offset_kwh",
        ),
        (
            "[channel.mqtt]\nhost = \"a\"\ntopic = \"x\"\ntls = false\nca = \"x\"\n",
            13,
            "channel.mqtt.tls",
        ),
        (
            "[channel.sml]\nport = \"ttyUSB0\"\n",
            11,
            "channel.sml.port",
        ),
        (
            "[channel.sml]\nport = \"/dev/x\"\nobis = \"16.7.0\"\n",
            12,
            "channel.sml.obis",
        ),
        (
            "[channel.sml]\nport = \"/dev/x\"\nobis = [\"1.8.1\", \"1.8.1\"]\n",
            12,
            "channel.sml.obis",
        ),
        (
            "[channel.sml]\nport = \"/dev/x\"\nobis = []\n",
            12,
            "channel.sml.obis",
        ),
        (
            "[channel.sml]\nport = \"/dev/x\"\nbaud = 50\n",
            12,
            "channel.sml.baud",
        ),
        (
            "[channel.sml]\nport = \"/dev/x\"\nmaximum_kw = 0\n",
            12,
            "channel.sml.maximum_kw",
        ),
        (
            "[channel.d0]\nport = \"/dev/x\"\nrequest_seconds = 5\n",
            12,
            "channel.d0.request_seconds",
        ),
        (
            "[channel.d0]\nport = \"/dev/x\"\nframing = \"7o1\"\n",
            12,
            "framing",
        ),
    ];
    for (lines, line, key) in cases {
        let error = parse(&with_source(lines)).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.problems().len(), 1, "{lines}{shown}");
        assert_eq!(error.problems()[0].line, Some(line), "{lines}{shown}");
        assert!(shown.contains(key), "{lines}{shown}");
    }
}

#[test]
fn channels_share_a_head_only_with_one_speed_and_protocol() {
    let head = |name: &str, table: &str| {
        format!(
            "[[channel]]\nname = \"{name}\"\nimpulses_per_kwh = 1000\n[channel.{table}]\n\
             port = \"/dev/ttyUSB0\"\n"
        )
    };
    let both = |second: &str| {
        let start = &GOOD[..GOOD.find("[[channel]]").unwrap()];
        parse(&format!(
            "{start}{}{}{second}",
            head("import", "sml"),
            head("export", "sml")
        ))
    };
    assert!(both("obis = \"2.8.0\"\n").is_ok());
    let error = both("baud = 19200\n").unwrap_err();
    assert_eq!(error.problems()[0].line, Some(12), "{error}");
    assert!(error.to_string().contains("another speed"), "{error}");
}

/// A file with these lines in `[home_assistant]`; the heading is line 12.
fn with_home_assistant(lines: &str) -> String {
    format!("{GOOD}[home_assistant]\n{lines}")
}

#[test]
fn home_assistant_is_shown_nothing_unless_asked_and_then_with_documented_defaults() {
    use crate::home_broker::Trust;

    assert_eq!(parse(GOOD).unwrap().home_assistant, None);
    let host = "host = \"homeassistant.local\"\n";
    let options = parse(&with_home_assistant(host)).unwrap().home_assistant;
    let options = options.unwrap();
    let broker = &options.broker;
    assert_eq!(
        (broker.port, &broker.tls, &broker.login),
        (1883, &None, &None)
    );
    assert_eq!(options.discovery_prefix, "homeassistant");
    assert_eq!(options.topic_prefix, "dcnet");
    assert_eq!(options.every, std::time::Duration::from_secs(10));
    assert_eq!(options.name, "Electricity meter");

    let text = with_home_assistant(&format!(
        "{host}ca = \"home.pem\"\nusername = \"meter\"\npassword_file = \"secret\"\n\
         topic_prefix = \"cellar/meter_1\"\nevery_seconds = 300\nname = \"Zähler im Keller\"\n"
    ));
    let options = parse(&text).unwrap().home_assistant.unwrap();
    assert_eq!(options.broker.port, 8883);
    assert_eq!(
        options.broker.tls,
        Some(Trust::Ca(PathBuf::from("/base/home.pem")))
    );
    assert_eq!(
        options.broker.login.unwrap().password_file,
        Path::new("/base/secret")
    );
    assert_eq!(options.topic_prefix, "cellar/meter_1");
}

#[test]
fn home_assistant_is_never_shown_anything_on_the_providers_broker() {
    for lines in [
        "host = \"broker.example.net\"\nport = 8883\n",
        "host = \"BROKER.example.net.\"\ntls = true\n",
        "host = \"broker.example.net\"\nport = 1883\n",
    ] {
        let error = parse(&with_home_assistant(lines)).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.problems()[0].line, Some(13), "{shown}");
        assert!(shown.contains("home_assistant.host"), "{shown}");
        assert!(shown.contains("is the broker of [broker]"), "{shown}");
    }
}

#[test]
fn what_is_wrong_with_home_assistant_is_told_with_line_and_key() {
    let host = "host = \"home.local\"\n";
    let cases = [
        ("", 12, "host"),
        ("host = \"mqtt://home\"\n", 13, "home_assistant.host"),
        (&format!("{host}colour = 1\n"), 14, "colour"),
        (
            &format!("{host}every_seconds = 0\n"),
            14,
            "home_assistant.every_seconds",
        ),
        (
            &format!("{host}every_seconds = 301\n"),
            14,
            "home_assistant.every_seconds",
        ),
        (
            &format!("{host}topic_prefix = \"a/#\"\n"),
            14,
            "home_assistant.topic_prefix",
        ),
        (
            &format!("{host}topic_prefix = \"/a\"\n"),
            14,
            "home_assistant.topic_prefix",
        ),
        (
            &format!("{host}topic_prefix = \"$SYS\"\n"),
            14,
            "home_assistant.topic_prefix",
        ),
        (
            &format!("{host}discovery_prefix = \"\"\n"),
            14,
            "home_assistant.discovery_prefix",
        ),
        (&format!("{host}name = \" \"\n"), 14, "home_assistant.name"),
        (
            &format!("{host}username = \"meter\"\n"),
            14,
            "home_assistant.password_file",
        ),
    ];
    for (lines, line, key) in cases {
        let error = parse(&with_home_assistant(lines)).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.problems().len(), 1, "{lines}{shown}");
        assert_eq!(error.problems()[0].line, Some(line), "{lines}{shown}");
        assert!(shown.contains(key), "{lines}{shown}");
    }
}
