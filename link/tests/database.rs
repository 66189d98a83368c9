//! Private database files on a real file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use link::database;
use tempfile::TempDir;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// A private directory and a path in it at which nothing is.
fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    chmod(directory.path(), 0o700);
    let path = directory.path().join("state.db");
    (directory, path)
}

fn open(path: &Path) -> anyhow::Result<rusqlite::Connection> {
    database::open(path, "who was there")
}

fn refusal(path: &Path) -> String {
    format!("{:#}", open(path).expect_err("must be refused"))
}

#[test]
fn missing_directories_and_files_are_made_private() {
    let (directory, _) = place();
    let path = directory.path().join("a/b/state.db");
    let database = open(&path).unwrap();
    database::use_write_ahead_log(&database).unwrap();
    database.execute_batch("CREATE TABLE t (x)").unwrap();
    for made in ["a", "a/b"] {
        assert_eq!(mode(&directory.path().join(made)), 0o700, "{made}");
    }
    let beside: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(
        beside.len(),
        3,
        "the file, its -wal and its -shm: {beside:?}"
    );
    for path in beside {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_commit_is_in_a_synced_write_ahead_log() {
    let (_directory, path) = place();
    let database = open(&path).unwrap();
    database::use_write_ahead_log(&database).unwrap();
    let pragma = |name: &str| -> String {
        database
            .pragma_query_value(None, name, |row| {
                row.get(0)
                    .or_else(|_| Ok(row.get::<_, i64>(0)?.to_string()))
            })
            .unwrap()
    };
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2", "FULL");
    assert_eq!(pragma("trusted_schema"), "0");
    assert_eq!(pragma("cell_size_check"), "1");
}

#[test]
fn files_that_others_may_use_are_refused_with_the_remedy() {
    let (directory, path) = place();
    drop(open(&path).unwrap());
    for suffix in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{suffix}", path.display()));
        fs::write(&file, b"").unwrap();
        for wide in [0o640, 0o602, 0o666] {
            chmod(&file, wide);
            assert_eq!(
                refusal(&path),
                format!(
                    "{file} holds who was there, but its mode {wide:03o} lets others in; \
                     run: chmod 600 {file}",
                    file = file.display()
                )
            );
        }
        chmod(&file, 0o600);
    }
    for wide in [0o750, 0o701] {
        chmod(directory.path(), wide);
        let error = refusal(&path);
        let remedy = format!("chmod 700 {}", directory.path().display());
        assert!(error.ends_with(&remedy), "{error}");
    }
    chmod(directory.path(), 0o700);
    open(&path).unwrap();
}

#[test]
fn links_and_directories_in_place_of_files_are_refused() {
    for suffix in ["", "-wal", "-shm"] {
        let (directory, path) = place();
        drop(open(&path).unwrap());
        let file = PathBuf::from(format!("{}{suffix}", path.display()));
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, b"").unwrap();
        chmod(&elsewhere, 0o600);
        let _ = fs::remove_file(&file);
        symlink(&elsewhere, &file).unwrap();
        let expected = format!("{} is not a regular file", file.display());
        assert_eq!(refusal(&path), expected);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(refusal(&path), expected);
    }
}

#[test]
fn a_link_that_leads_nowhere_makes_no_file() {
    let (directory, path) = place();
    let elsewhere = directory.path().join("elsewhere");
    symlink(&elsewhere, &path).unwrap();
    assert!(refusal(&path).contains("not a regular file"));
    assert!(!elsewhere.exists());
}

#[test]
fn a_directory_may_be_reached_through_a_link() {
    let (directory, path) = place();
    let outer = TempDir::new().unwrap();
    let link = outer.path().join("link");
    symlink(directory.path(), &link).unwrap();
    open(&link.join("state.db")).unwrap();
    assert!(path.is_file());
}

#[test]
fn a_file_in_place_of_the_directory_is_named() {
    let (_directory, path) = place();
    fs::write(&path, b"").unwrap();
    assert_eq!(
        refusal(&path.join("state.db")),
        format!("{} is not a directory", path.display())
    );
}
