//! docs/mqtt-conformance.md against the cases and the numbers of the standards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A section of a standard, with its first and last statement.
type Section = (&'static str, u32, u32);

/// The statements of Appendix B.
const MQTT_3_1_1: &[Section] = &[
    ("1.5.3", 1, 3),
    ("2.2.2", 1, 2),
    ("2.3.1", 1, 7),
    ("3.1.0", 1, 2),
    ("3.1.2", 1, 24),
    ("3.1.3", 1, 11),
    ("3.1.4", 1, 5),
    ("3.2.0", 1, 1),
    ("3.2.2", 1, 6),
    ("3.3.1", 1, 12),
    ("3.3.2", 1, 3),
    ("3.3.4", 1, 1),
    ("3.3.5", 1, 2),
    ("3.6.1", 1, 1),
    ("3.8.1", 1, 1),
    ("3.8.3", 1, 4),
    ("3.8.4", 1, 6),
    ("3.9.3", 1, 2),
    ("3.10.1", 1, 1),
    ("3.10.3", 1, 2),
    ("3.10.4", 1, 6),
    ("3.12.4", 1, 1),
    ("3.14.1", 1, 1),
    ("3.14.4", 1, 3),
    ("4.1.0", 1, 2),
    ("4.3.1", 1, 1),
    ("4.3.2", 1, 2),
    ("4.3.3", 1, 2),
    ("4.4.0", 1, 1),
    ("4.5.0", 1, 2),
    ("4.6.0", 1, 6),
    ("4.7.1", 1, 3),
    ("4.7.2", 1, 1),
    ("4.7.3", 1, 4),
    ("4.8.0", 1, 2),
    ("6.0.0", 1, 4),
    ("7.0.0", 1, 2),
    ("7.1.1", 1, 1),
    ("7.1.2", 1, 1),
];

/// See [`MQTT_3_1_1`].
const MQTT_5: &[Section] = &[
    ("1.5.4", 1, 3),
    ("1.5.5", 1, 1),
    ("1.5.7", 1, 1),
    ("2.1.3", 1, 1),
    ("2.2.1", 2, 6),
    ("2.2.2", 1, 1),
    ("3.1.0", 1, 2),
    ("3.1.2", 1, 30),
    ("3.1.3", 1, 12),
    ("3.1.4", 1, 6),
    ("3.2.0", 1, 2),
    ("3.2.2", 1, 22),
    ("3.3.1", 1, 13),
    ("3.3.2", 1, 20),
    ("3.3.4", 1, 10),
    ("3.4.2", 1, 3),
    ("3.5.2", 1, 3),
    ("3.6.1", 1, 1),
    ("3.6.2", 1, 3),
    ("3.7.2", 1, 3),
    ("3.8.1", 1, 1),
    ("3.8.3", 1, 5),
    ("3.8.4", 1, 8),
    ("3.9.2", 1, 2),
    ("3.9.3", 1, 2),
    ("3.10.1", 1, 1),
    ("3.10.3", 1, 2),
    ("3.10.4", 1, 6),
    ("3.11.2", 1, 2),
    ("3.11.3", 1, 2),
    ("3.12.4", 1, 1),
    ("3.14.0", 1, 1),
    ("3.14.1", 1, 1),
    ("3.14.2", 1, 4),
    ("3.14.4", 1, 3),
    ("3.15.1", 1, 1),
    ("3.15.2", 1, 3),
    ("4.1.0", 1, 2),
    ("4.2.0", 1, 1),
    ("4.3.1", 1, 1),
    ("4.3.2", 1, 5),
    ("4.3.3", 1, 13),
    ("4.4.0", 1, 2),
    ("4.5.0", 1, 2),
    ("4.6.0", 1, 6),
    ("4.7.0", 1, 1),
    ("4.7.1", 1, 2),
    ("4.7.2", 1, 1),
    ("4.7.3", 1, 4),
    ("4.8.2", 1, 6),
    ("4.9.0", 1, 3),
    ("4.12.0", 1, 7),
    ("4.12.1", 1, 2),
    ("4.13.1", 1, 1),
    ("4.13.2", 1, 1),
    ("6.0.0", 1, 4),
];

const VERSIONS: [(&str, &[Section], usize); 2] = [("3.1.1", MQTT_3_1_1, 141), ("5", MQTT_5, 251)];

const VERDICTS: [&str; 4] = ["tested", "refused", "departs", "not applicable"];

/// Version and number of a statement.
type Statement = (String, String);

struct Row {
    statements: Vec<String>,
    verdict: String,
    cases: Vec<String>,
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn document() -> String {
    let path = tests().join("../../docs/mqtt-conformance.md");
    fs::read_to_string(path).unwrap()
}

fn cells(line: &str) -> Vec<&str> {
    let inner = line.strip_prefix('|').and_then(|l| l.strip_suffix('|'));
    inner
        .unwrap_or_else(|| panic!("no row: {line}"))
        .split('|')
        .map(str::trim)
        .collect()
}

/// The lines of the table below a heading, without its head.
fn lines<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let rest = document
        .lines()
        .skip_while(|line| *line != heading)
        .skip_while(|line| !line.starts_with('|'));
    rest.take_while(|line| line.starts_with('|'))
        .skip(2)
        .collect()
}

fn rows(document: &str, version: &str) -> Vec<Row> {
    let lines = lines(document, &format!("## MQTT {version}"));
    let row = |line: &str| {
        let cells = cells(line);
        let [statements, asks, verdict, how] = cells[..] else {
            panic!("four cells: {line}");
        };
        assert!(!asks.is_empty() && !how.is_empty(), "{line}");
        Row {
            statements: statements.split(", ").map(str::to_owned).collect(),
            verdict: verdict.to_owned(),
            cases: how
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
        }
    };
    lines.into_iter().map(row).collect()
}

/// The cases of this directory and the statements in the comments above them.
fn cases() -> BTreeMap<String, BTreeSet<Statement>> {
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(tests().join("conformance")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        let mut statements = BTreeSet::new();
        let mut test = false;
        for line in fs::read_to_string(&path).unwrap().lines() {
            if let Some(tag) = line.strip_prefix("// MQTT ") {
                let (version, list) = tag.split_once(": ").expect("version: statements");
                let named = list.split(", ");
                statements.extend(named.map(|number| (version.to_owned(), number.to_owned())));
            } else if line.starts_with("#[tokio::test") {
                test = true;
            } else if let Some(rest) = line.strip_prefix("async fn ")
                && std::mem::take(&mut test)
            {
                let name = rest.split('(').next().unwrap();
                let case = format!("{module}::{name}");
                assert!(!statements.is_empty(), "{case} proves nothing");
                cases.insert(case, std::mem::take(&mut statements));
            }
        }
        assert!(
            statements.is_empty(),
            "{module}: {statements:?} without a case"
        );
    }
    cases
}

/// Whether a test of another file of broker/tests exists.
fn is_elsewhere(case: &str) -> bool {
    let (file, function) = case.split_once("::").expect("file::function");
    let path = tests().join(file).with_extension("rs");
    fs::read_to_string(path).is_ok_and(|source| source.contains(&format!("fn {function}(")))
}

#[test]
fn every_statement_stands_in_the_table_once() {
    let document = document();
    for (version, sections, count) in VERSIONS {
        let listed: Vec<String> = rows(&document, version)
            .into_iter()
            .flat_map(|row| row.statements)
            .collect();
        let expected: Vec<String> = sections
            .iter()
            .flat_map(|(section, first, last)| {
                (*first..=*last).map(move |number| format!("{section}-{number}"))
            })
            .collect();
        assert_eq!(expected.len(), count);
        let unique: BTreeSet<&String> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len(), "MQTT {version}: one twice");
        let expected = expected.iter().collect::<BTreeSet<_>>();
        let missing: Vec<_> = expected.difference(&unique).collect();
        let invented: Vec<_> = unique.difference(&expected).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{missing:?} {invented:?}"
        );
    }
}

#[test]
fn the_table_and_the_cases_say_the_same() {
    let (document, cases) = (document(), cases());
    let mut told: BTreeMap<String, BTreeSet<Statement>> = BTreeMap::new();
    for (version, ..) in VERSIONS {
        for row in rows(&document, version) {
            let numbers = row.statements.join(", ");
            assert!(VERDICTS.contains(&&row.verdict[..]), "{numbers}");
            let without = row.verdict == "not applicable";
            assert_eq!(row.cases.is_empty(), without, "{numbers}: {}", row.verdict);
            for case in row.cases {
                let here = cases.contains_key(&case);
                assert!(here || is_elsewhere(&case), "{numbers}: there is no {case}");
                if here {
                    let statements = row.statements.iter().cloned();
                    told.entry(case)
                        .or_default()
                        .extend(statements.map(|number| (version.to_owned(), number)));
                }
            }
        }
    }
    for (case, statements) in &cases {
        assert_eq!(
            told.get(case),
            Some(statements),
            "{case}: table and comment"
        );
    }
}

#[test]
fn the_sums_are_right() {
    let document = document();
    let sums = lines(&document, "# Conformance with MQTT");
    for ((version, _, total), line) in VERSIONS.into_iter().zip(sums) {
        let mut expected = vec![format!("MQTT {version}")];
        let rows = rows(&document, version);
        for verdict in VERDICTS {
            let with = rows.iter().filter(|row| row.verdict == verdict);
            let count: usize = with.map(|row| row.statements.len()).sum();
            expected.push(count.to_string());
        }
        expected.push(total.to_string());
        assert_eq!(cells(line), expected);
    }
}
