//! Power that fails at any write: the file operations of a process as strace records them, and
//! what a disk may hold after any of them.
//!
//! A disk keeps what was synced (fsync) before, and of everything later an arbitrary part: of a
//! write any of its sectors, of the changes in a directory all or none.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a disk writes completely or not at all.
const SECTOR: usize = 512;

const CALLS: &str = "trace=openat,write,pwrite64,lseek,fsync,fdatasync,ftruncate,rename,renameat,\
                     renameat2,unlink,unlinkat,close";

/// What a process did below the directory that is watched; names are relative to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new, empty file.
    Create(String),
    Truncate(String, usize),
    Write(String, usize, Vec<u8>),
    Sync(String),
    SyncDirectory,
    Rename(String, String),
    Remove(String),
    /// A line on standard output.
    Said(String),
}

/// Runs the ignored test `child` of this program under strace, with the directory that is
/// watched in the variable; `None`, with a note, if there is no strace, or it may not trace.
pub fn record(variable: &str, directory: &Path) -> Option<Vec<Operation>> {
    let operations = trace(variable, directory);
    if operations.is_none() {
        eprintln!("SKIPPED: there is no strace here, or it may not trace");
    }
    operations
}

fn trace(variable: &str, directory: &Path) -> Option<Vec<Operation>> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-xx", "-s", "100000000", "-e", CALLS, "-o"])
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(variable, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = traced.status().ok()?;
    let text = std::fs::read_to_string(log.path()).unwrap();
    if !text.contains("openat(") {
        return None;
    }
    assert!(status.success(), "the recorded process failed");
    let root = directory.canonicalize().unwrap();
    Some(Recorder::new(root.to_str().unwrap()).operations(&text))
}

/// The number behind `what` in a line that was said.
pub fn said(operation: &Operation, what: &str) -> Option<u64> {
    match operation {
        // The test harness may have begun the line.
        Operation::Said(line) => line.split_once(what)?.1.trim().parse().ok(),
        _ => None,
    }
}

struct Recorder {
    root: String,
    /// Name and position of what is open.
    open: BTreeMap<usize, (String, usize)>,
    /// Files that there are.
    files: std::collections::BTreeSet<String>,
    operations: Vec<Operation>,
}

impl Recorder {
    fn new(root: &str) -> Self {
        Self {
            root: root.to_owned(),
            open: BTreeMap::new(),
            files: std::collections::BTreeSet::new(),
            operations: Vec::new(),
        }
    }

    fn operations(mut self, text: &str) -> Vec<Operation> {
        // A call that another thread's came between stands in two lines: it counts when it ends.
        let mut unfinished = BTreeMap::new();
        for line in text.lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            let mut call = call.trim_start().to_owned();
            if let Some(begun) = call.strip_suffix("<unfinished ...>") {
                unfinished.insert(thread, begun.to_owned());
                continue;
            }
            if call.starts_with("<... ") {
                let end = call.split_once("resumed>").unwrap().1;
                call = unfinished.remove(thread).unwrap() + end;
            }
            let call = call.as_str();
            let name = call.split('(').next().unwrap();
            let result = call.rsplit_once(" = ").map_or("", |(_, result)| result);
            let result = result.split(' ').next().unwrap().parse::<usize>();
            // Notes on signals and ends have no result; failed calls have changed nothing.
            if let Ok(result) = result {
                self.call(name, call, result);
            }
        }
        self.operations
    }

    /// The name below the root; empty for the root itself.
    fn below(&self, path: &[u8]) -> Option<String> {
        let path = std::str::from_utf8(path).unwrap();
        let rest = path.strip_prefix(&self.root)?;
        Some(rest.trim_start_matches('/').to_owned())
    }

    fn call(&mut self, name: &str, call: &str, result: usize) {
        let strings = strings(call);
        let arguments = call.split_once('(').unwrap().1;
        let first: String = arguments.chars().take_while(char::is_ascii_digit).collect();
        let file: Option<usize> = first.parse().ok();
        match name {
            "openat" => {
                self.open.remove(&result);
                let Some(path) = self.below(&strings[0]) else {
                    return;
                };
                let flags = call.rsplit_once('"').unwrap().1;
                if flags.contains("O_CREAT") && self.files.insert(path.clone()) {
                    self.operations.push(Operation::Create(path.clone()));
                } else if flags.contains("O_TRUNC") {
                    self.operations.push(Operation::Truncate(path.clone(), 0));
                }
                self.open.insert(result, (path, 0));
            }
            "close" => {
                self.open.remove(&file.unwrap());
            }
            "write" if file == Some(1) => {
                let text = String::from_utf8_lossy(&strings[0]).into_owned();
                let lines = text.lines().map(|line| Operation::Said(line.to_owned()));
                self.operations.extend(lines);
            }
            "unlink" | "unlinkat" => {
                if let Some(path) = self.below(&strings[0]) {
                    self.files.remove(&path);
                    self.operations.push(Operation::Remove(path));
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let pair = self.below(&strings[0]).zip(self.below(&strings[1]));
                if let Some((from, to)) = pair {
                    self.files.remove(&from);
                    self.files.insert(to.clone());
                    self.operations.push(Operation::Rename(from, to));
                }
            }
            _ => self.call_of_file(name, call, file.unwrap(), strings, result),
        }
    }

    fn call_of_file(
        &mut self,
        name: &str,
        call: &str,
        file: usize,
        mut strings: Vec<Vec<u8>>,
        result: usize,
    ) {
        let Some((path, position)) = self.open.get_mut(&file) else {
            return;
        };
        let path = path.clone();
        let last = call.rsplit_once(") ").unwrap().0.rsplit_once(", ");
        let last = last.and_then(|(_, number)| number.parse::<usize>().ok());
        let operation = match name {
            "lseek" => {
                *position = result;
                return;
            }
            "write" | "pwrite64" => {
                let mut bytes = strings.remove(0);
                bytes.truncate(result);
                let offset = if name == "write" {
                    *position += result;
                    *position - result
                } else {
                    last.unwrap()
                };
                Operation::Write(path, offset, bytes)
            }
            "ftruncate" => Operation::Truncate(path, last.unwrap()),
            "fsync" | "fdatasync" if path.is_empty() => Operation::SyncDirectory,
            "fsync" | "fdatasync" => Operation::Sync(path),
            other => panic!("{other}"),
        };
        self.operations.push(operation);
    }
}

/// The quoted strings of a line, all in the form `\x41`.
fn strings(call: &str) -> Vec<Vec<u8>> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
    let decode = |text: &str| text.split("\\x").skip(1).map(byte).collect();
    call.split('"').skip(1).step_by(2).map(decode).collect()
}

/// A change of a file's content.
#[derive(Clone, Debug)]
enum Change {
    Truncate(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Truncate(length) => content.resize(*length, 0),
            Self::Write(offset, bytes) => {
                let end = offset + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    synced: Vec<u8>,
    changes: Vec<Change>,
}

impl Content {
    /// With those of the unsynced changes that `kept` names, sector by sector.
    fn after(&self, mut kept: impl FnMut() -> bool) -> Vec<u8> {
        let mut content = self.synced.clone();
        for change in &self.changes {
            match change {
                Change::Truncate(_) if kept() => change.apply(&mut content),
                Change::Truncate(_) => {}
                Change::Write(offset, bytes) => {
                    let mut at = *offset;
                    while at < offset + bytes.len() {
                        let end = (at / SECTOR + 1) * SECTOR;
                        let end = end.min(offset + bytes.len());
                        let part = bytes[at - offset..end - offset].to_vec();
                        if kept() {
                            Change::Write(at, part).apply(&mut content);
                        }
                        at = end;
                    }
                }
            }
        }
        content
    }
}

/// Files and their contents.
pub type Image = BTreeMap<String, Vec<u8>>;

/// A disk on which operations are done.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    contents: Vec<Content>,
    /// Which content each name has.
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
}

impl Disk {
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Said(_) => {}
            Operation::Create(path) => {
                self.names.insert(path.clone(), self.contents.len());
                self.contents.push(Content::default());
            }
            Operation::Truncate(path, length) => self.change(path, Change::Truncate(*length)),
            Operation::Write(path, offset, bytes) => {
                self.change(path, Change::Write(*offset, bytes.clone()));
            }
            Operation::Sync(path) => {
                let content = &mut self.contents[self.names[path]];
                content.synced = content.after(|| true);
                content.changes.clear();
            }
            Operation::SyncDirectory => self.synced_names = self.names.clone(),
            Operation::Rename(from, to) => {
                let content = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), content);
            }
            Operation::Remove(path) => {
                self.names.remove(path);
            }
        }
    }

    fn change(&mut self, path: &str, change: Change) {
        self.contents[self.names[path]].changes.push(change);
    }

    /// What it may hold if the power fails now: names and contents as they are or as they were
    /// synced, and `random` mixtures of sectors.
    pub fn after_power_loss(&self, random: &mut Random, mixtures: usize) -> Vec<Image> {
        let mut images = Vec::new();
        for names in [&self.names, &self.synced_names] {
            let mut image = |kept: &mut dyn FnMut() -> bool| {
                let file = |(name, content): (&String, &usize)| {
                    (name.clone(), self.contents[*content].after(&mut *kept))
                };
                let image: Image = names.iter().map(file).collect();
                if !images.contains(&image) {
                    images.push(image);
                }
            };
            image(&mut || true);
            image(&mut || false);
            for _ in 0..mixtures {
                image(&mut || random.next().is_multiple_of(2));
            }
        }
        images
    }
}

/// The same numbers in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 7
    }
}

/// Lays an image down in an empty directory, with modes for its owner only.
pub fn lay_down(image: &Image, directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let private = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    private(directory, 0o700);
    for (name, bytes) in image {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        private(&path, 0o600);
    }
}
