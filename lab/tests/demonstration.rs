//! The real program: command line in, report, exit code and files out.

mod foreign;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lab::report::{Line, Status};

/// Longest time a run may take.
const LIMIT: Duration = Duration::from_secs(180);

/// One demonstration at a time: each wants the processor for itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Runs to the end, or fails after [`LIMIT`].
fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("not done after {LIMIT:?}:\n{}", text(&output));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn run(command: &mut Command) -> Output {
    finish(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

fn text(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A load file in which every row of every column is another number of Wh.
struct Loads {
    directory: tempfile::TempDir,
    rows: Vec<Vec<u64>>,
}

impl Loads {
    fn new(columns: u64, rows: u64) -> Self {
        let energy = |row: u64, column: u64| row * 37 + column * column * 5 + (row ^ column);
        Self {
            directory: tempfile::tempdir().unwrap(),
            rows: (0..rows)
                .map(|row| (1..=columns).map(|column| energy(row, column)).collect())
                .collect(),
        }
    }

    fn csv(&self) -> String {
        let columns = self.rows[0].len();
        let mut text = String::from("timestamp");
        (1..=columns).for_each(|column| text.push_str(&format!(",h{column}")));
        for (row, energies) in self.rows.iter().enumerate() {
            text.push_str(&format!("\n2024-01-01T00:{row:02}:00Z"));
            energies
                .iter()
                .for_each(|energy| text.push_str(&format!(",{energy}")));
        }
        text + "\n"
    }

    fn plain(&self) -> PathBuf {
        let path = self.path("loads.csv");
        std::fs::write(&path, self.csv()).unwrap();
        path
    }

    fn gzip(&self) -> PathBuf {
        let path = self.path("loads.csv.gz");
        let file = std::fs::File::create(&path).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        encoder.write_all(self.csv().as_bytes()).unwrap();
        encoder.finish().unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The sum of some columns in a row, in mWh.
    fn sum(&self, row: u64, columns: &[u32]) -> u64 {
        let row = &self.rows[row as usize];
        columns.iter().map(|c| row[*c as usize - 1] * 1000).sum()
    }
}

fn report(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs `demo` on a load file; gives the report after checking it against the file.
fn replay(loads: &Loads, file: &Path, arguments: &[&str], start_row: u64) -> Vec<Line> {
    let out = loads.path("report.jsonl");
    let output = run(lab()
        .arg("demo")
        .args(arguments)
        .args(["--start-row", &start_row.to_string()])
        .arg("--loads")
        .arg(file)
        .arg("--report")
        .arg(&out));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("bytes sent"), "{shown}");
    let lines = report(&out);
    for (index, line) in (0u64..).zip(&lines) {
        assert_eq!(line.round, lines[0].round + index, "in order");
        assert_eq!(line.row, Some(start_row + index));
        assert!(line.verified, "{line:?}");
        assert_eq!(line.status, Status::Complete);
        let expected = loads.sum(start_row + index, &line.included);
        assert_eq!(line.sum_mwh.unwrap().import, expected, "{line:?}");
        assert!(line.latency_ms.is_some());
    }
    lines
}

#[test]
fn sums_are_the_files() {
    let _alone = alone();
    let loads = Loads::new(6, 7);
    let arguments = ["--meters", "5", "--rounds", "3", "--period", "2s"];
    for file in [loads.plain(), loads.gzip()] {
        let lines = replay(&loads, &file, &arguments, 2);
        assert_eq!(lines.len(), 3);
        for line in &lines {
            assert_eq!(line.included, [1, 2, 3, 4, 5]);
            assert_eq!(line.members, 5);
        }
    }
}

#[test]
fn absent_meters_miss_their_rounds_and_no_others() {
    let _alone = alone();
    let loads = Loads::new(10, 7);
    let absent = BTreeMap::from([
        (0u64, vec![1]),
        (2, vec![3, 7]),
        (3, vec![3, 8]),
        (5, vec![7]),
    ]);
    let list: Vec<String> = absent
        .iter()
        .flat_map(|(round, meters)| meters.iter().map(move |meter| format!("{meter}@{round}")))
        .collect();
    let list = list.join(",");
    let arguments = ["--meters", "10", "--rounds", "7", "--absent", &list];
    let lines = replay(&loads, &loads.plain(), &arguments, 0);
    assert_eq!(lines.len(), 7);
    for (index, line) in (0u64..).zip(&lines) {
        let missing = absent.get(&index).cloned().unwrap_or_default();
        let expected: Vec<u32> = (1..=10).filter(|m| !missing.contains(m)).collect();
        assert_eq!(line.included, expected, "round {index}");
    }
}

#[test]
fn the_thesis_is_played() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let sums = directory.path().join("sums.txt");
    let out = directory.path().join("report.jsonl");
    let output = run(lab()
        .args(["demo", "--scenario", "thesis", "--period", "2s", "--sums"])
        .arg(&sums)
        .arg("--report")
        .arg(&out));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("5 clients instead of 3"), "{shown}");
    let included: Vec<usize> = report(&out).iter().map(|l| l.included.len()).collect();
    assert_eq!(included, [5, 5, 5, 5, 4, 4, 5, 5]);
    let text = std::fs::read_to_string(&sums).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 8, "{text}");
    assert!(lines[3].ends_with("of clients 1, 2, 3, 4 and 5"), "{text}");
    assert!(lines[4].ends_with("of clients 1, 2, 3 and 4"), "{text}");
    assert!(lines.iter().all(|line| line.contains("Wh")), "{text}");
}

#[test]
fn wrong_options_and_files_are_named_and_end_with_2() {
    let loads = Loads::new(6, 4);
    let file = loads.plain();
    let file = file.to_str().unwrap();
    let broken = loads.path("broken.csv");
    std::fs::write(&broken, "timestamp,a,b,c,d,e\nx,1,2,3,4,five\n").unwrap();
    let broken = broken.to_str().unwrap();
    let missing = loads.path("missing.csv");
    let missing = missing.to_str().unwrap();
    let nowhere = loads.path("nowhere/report.jsonl");
    let nowhere = nowhere.to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--meters", "4"], "4"),
        (&["--meters", "many"], "many"),
        (&["--period", "7s"], "divides a day"),
        (&["--rounds", "0"], "0"),
        (&["--absent", "1"], "I@R"),
        (&["--absent", "13@1"], "no meter 13"),
        (&["--absent", "1@9", "--rounds", "3"], "no measured round 9"),
        (&["--absent", "1@1,2@1,3@1"], "at least 10"),
        (&["--loads", missing], "missing.csv"),
        (&["--meters", "5", "--loads", broken], "line 2"),
        (&["--meters", "7", "--loads", file], "columns 1 to 6"),
        (
            &["--meters", "5", "--loads", file, "--start-row", "4"],
            "rows are 0 to 3",
        ),
        (
            &[
                "--meters",
                "5",
                "--loads",
                file,
                "--start-row",
                "2",
                "--rounds",
                "3",
            ],
            "at most 2 rounds",
        ),
        (&["--start-row", "1"], "--loads"),
        (&["--scenario", "thesis", "--meters", "7"], "--meters"),
        (&["--scenario", "poem"], "poem"),
        (&["--report", nowhere], "nowhere"),
        (&["--unknown"], "--unknown"),
    ];
    for (arguments, named) in cases {
        let output = run(lab().arg("demo").args(*arguments));
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(shown.contains(named), "{arguments:?}: {shown}");
        assert!(output.stdout.is_empty(), "nothing was started: {shown}");
    }
}

/// A demonstration without end, and what it says.
struct Endless {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    shown: Vec<String>,
}

impl Endless {
    fn start() -> Self {
        let mut child = lab()
            .args(["--meters", "5", "--period", "2s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            shown: Vec::new(),
        }
    }

    fn line_with(&mut self, part: &str) -> String {
        loop {
            let line = self.lines.next();
            let line = line.unwrap_or_else(|| panic!("no {part:?} in {:#?}", self.shown));
            self.shown.push(line.unwrap());
            if let Some(line) = self.shown.last().filter(|line| line.contains(part)) {
                return line.trim().to_owned();
            }
        }
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn option<'a>(command: &'a str, name: &str) -> &'a str {
    let mut words = command.split_whitespace().skip_while(|word| *word != name);
    words
        .nth(1)
        .unwrap_or_else(|| panic!("{name} in {command}"))
}

fn mosquitto_sub(command: &str, topic: &str) -> Option<Output> {
    let mut words = command.split_whitespace();
    let mut program = Command::new(words.next()?);
    let words: Vec<&str> = words.collect();
    let (without_topic, _) = words.split_at(words.iter().position(|word| *word == "-t")?);
    program.args(without_topic).args(["-t", topic]);
    match program.args(["-C", "1", "-W", "10"]).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            foreign::skip("mosquitto_sub is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn it_takes_another_port_shows_the_way_in_and_stops_cleanly() {
    let _alone = alone();
    // Taken by us, or by somebody else: either way it is not to be had.
    let taken = std::net::TcpListener::bind("127.0.0.1:8883");
    let mut lab = Endless::start();
    let command = lab.line_with("mosquitto_sub");
    assert_ne!(option(&command, "-p"), "8883", "{command}");
    let directory = Path::new(option(&command, "--cafile"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned();
    assert!(directory.is_dir());
    lab.line_with("verified, correct");

    let topic = option(&command, "-t").to_owned();
    if let Some(read) = mosquitto_sub(&command, &topic) {
        let json: serde_json::Value = serde_json::from_slice(&read.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&read)));
        assert_eq!(json["included"], 5);
        assert_eq!(json["verified"], true);
        let meters = topic.replace("public/aggregate", "meter/+/up/#");
        let refused = mosquitto_sub(&command, &meters).unwrap();
        assert!(refused.stdout.is_empty());
        let said = text(&refused).to_lowercase();
        assert!(said.contains("denied") || said.contains("reject"), "{said}");
    }

    let asked = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &lab.child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let status = loop {
        if let Some(status) = lab.child.try_wait().unwrap() {
            break status;
        }
        assert!(asked.elapsed() < Duration::from_secs(15), "still running");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
    assert!(!directory.exists(), "{} is left", directory.display());
    drop(taken);
}

#[test]
fn real_households_add_up() {
    let data =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/households_30min.csv.gz");
    if !data.exists() {
        eprintln!("skipped: there is no {}", data.display());
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("report.jsonl");
    let output = run(lab()
        .args([
            "demo",
            "--meters",
            "12",
            "--rounds",
            "3",
            "--start-row",
            "20",
        ])
        .arg("--loads")
        .arg(&data)
        .arg("--report")
        .arg(&out));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let file = std::fs::File::open(&data).unwrap();
    let rows = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    let rows: Vec<String> = rows.skip(21).take(3).map(Result::unwrap).collect();
    let lines = report(&out);
    assert_eq!(lines.len(), 3);
    for (row, line) in rows.iter().zip(&lines) {
        let energies: Vec<&str> = row.split(',').collect();
        let of = |column: &u32| energies[*column as usize].parse::<u64>().unwrap() * 1000;
        let expected: u64 = line.included.iter().map(of).sum();
        assert_eq!(line.sum_mwh.unwrap().import, expected);
        assert!(line.verified && line.included.len() >= 10, "{line:?}");
    }
}
