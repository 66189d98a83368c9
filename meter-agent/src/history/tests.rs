use std::os::unix::fs::PermissionsExt;

use dcnet::units::ImpulsesPerKwh;
use tempfile::TempDir;

use super::*;

fn channels(names: &[&str]) -> Vec<RegisterChannel> {
    let channel = |name: &&str| RegisterChannel {
        name: (*name).to_owned(),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
    };
    names.iter().map(channel).collect()
}

fn values(course: &Course) -> Vec<(u64, Vec<Option<u64>>)> {
    let sample = |sample: &Sample| (sample.at_ms, sample.energy_mwh.clone());
    course.samples.iter().map(sample).collect()
}

fn of(channel: &str, energy: u64) -> Total<'_> {
    Total {
        channel,
        energy,
        is_break: false,
    }
}

fn course(history: &History, names: &[&str]) -> Course {
    let whole = history.course(&channels(names), 0..=u64::MAX, usize::MAX);
    let (course, rest) = whole.unwrap();
    assert_eq!(rest, None);
    course
}

fn whole(history: &History) -> Vec<(u64, Vec<Option<u64>>)> {
    values(&course(history, &["import"]))
}

/// A history in memory with so many quarter hours since 1970, in each of which 1 Wh was used.
pub(crate) fn of_quarter_hours(many: u64) -> History {
    let history = History::in_memory();
    let insert = "WITH RECURSIVE quarter(n) AS
        (SELECT 1 WHERE ?1 > 0 UNION ALL SELECT n + 1 FROM quarter WHERE n < ?1)
        INSERT INTO sample (at_ms, channel, energy_mwh, is_break)
        SELECT n * 900000, 'import', n * 1000, n = 1 FROM quarter";
    let many = i64::try_from(many).unwrap();
    history.database().execute(insert, [many]).unwrap();
    history
}

/// A state directory whose history has some quarter hours, and where that is.
fn kept() -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let history = History::open(&path, 8);
    for quarter in 1..=96 {
        let at = Timestamp(quarter * QUARTER);
        history.keep(at, &[of("import", quarter)]).unwrap();
    }
    let file = path.join("history.db");
    (directory, path, file)
}

#[test]
fn it_survives_a_restart_keeps_its_days_and_forgets_a_future_that_was_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let history = History::open(&path, 2);
    for day in 1..=4 {
        history
            .keep(Timestamp(day * DAY), &[of("import", day)])
            .unwrap();
    }
    history
        .keep(Timestamp(9 * DAY), &[of("import", 9)])
        .unwrap();
    let broken = Total {
        is_break: true,
        ..of("export", 1)
    };
    history
        .keep(Timestamp(5 * DAY), &[of("import", 5), broken])
        .unwrap();
    drop(history);
    let history = History::open(&path, 2);
    let course = course(&history, &["import", "export"]);
    // Of the wrong clock's day nothing is left, and nothing of what it made too old.
    assert_eq!(values(&course), [(5 * DAY, vec![Some(5), Some(1)])]);
    assert_eq!(course.samples[0].is_break, [false, true]);
}

#[test]
fn parts_of_a_span_together_are_the_whole_of_it_and_divide_no_moment() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(&directory.path().join("state"), 8);
    for at in 1..=7 {
        let totals = [of("export", at), of("import", 10 * at)];
        history.keep(Timestamp(at), &totals).unwrap();
    }
    let parts = |span: RangeInclusive<u64>, most| {
        let (mut from, mut parts) = (Some(*span.start()), Vec::new());
        while let Some(begin) = from {
            let names = channels(&["import", "export"]);
            let part = history.course(&names, begin..=*span.end(), most).unwrap();
            from = part.1;
            parts.push(values(&part.0));
        }
        parts
    };
    for most in 1..=8 {
        let parts = parts(2..=6, most);
        let expected = (2..=6).map(|at| (at, vec![Some(10 * at), Some(at)]));
        assert_eq!(parts.concat(), expected.collect::<Vec<_>>(), "{most}");
        assert_eq!(parts.len(), 5_usize.div_ceil(most), "{most}");
    }
    assert_eq!(parts(8..=9, 3), [[]], "nothing is there");
}

#[test]
fn what_is_deleted_is_not_in_the_file_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let secret = 0x1122_3344_5566_u64;
    let history = History::open(&path, 2);
    for quarter in 1..200 {
        let at = Timestamp(quarter * QUARTER);
        history.keep(at, &[of("import", secret)]).unwrap();
    }
    let has_it = || {
        let bytes = std::fs::read(path.join("history.db")).unwrap();
        bytes
            .windows(6)
            .any(|window| window == &secret.to_be_bytes()[2..])
    };
    assert!(has_it(), "the test looks for what is there");
    history.delete().unwrap();
    assert!(!has_it());
    assert_eq!(whole(&history), []);
    drop(history);
    History::open(&path, 0);
    assert!(!path.join("history.db").exists(), "nothing on disk");
}

#[test]
fn what_is_kept_on_disk_and_what_is_shown_are_two_things() {
    let (_directory, path, _) = kept();
    let days = |on_disk, shown| Days { on_disk, shown };
    assert_eq!(History::open(&path, 3).days(), days(3, 3));
    let history = History::open(&path, 0);
    assert_eq!(history.days(), days(0, 8));
    history
        .keep(Timestamp(9 * DAY), &[of("import", 1)])
        .unwrap();
    assert_eq!(whole(&history).len(), 1);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn other_users_cannot_read_it() {
    let (_directory, path, file) = kept();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
}

#[test]
fn a_file_of_before_there_were_breaks_goes_on() {
    let (_directory, path, file) = kept();
    let database = Connection::open(&file).unwrap();
    let drop = "ALTER TABLE sample DROP COLUMN is_break";
    database.execute_batch(drop).unwrap();
    std::mem::drop(database);
    let history = History::open(&path, 8);
    let samples = course(&history, &["import"]).samples;
    assert_eq!(samples.len(), 96);
    assert!(samples.iter().all(|sample| !sample.is_break[0]));
}

#[test]
fn a_damaged_file_is_put_aside_at_the_start_and_a_new_one_begun() {
    let (_directory, path, file) = kept();
    let sound = std::fs::read(&file).unwrap();
    let torn = sound[..sound.len() - 5000].to_vec();
    let mut scribbled = sound.clone();
    scribbled[4096..5000].fill(0xA5);
    let other = {
        let other = path.join("other.db");
        let database = Connection::open(&other).unwrap();
        let table = "CREATE TABLE sample (at_ms TEXT, what TEXT)";
        database.execute_batch(table).unwrap();
        std::fs::read(&other).unwrap()
    };
    let text = b"no database at all, but a text of some length".repeat(100);
    for (what, damaged) in [
        ("torn", torn),
        ("scribbled", scribbled),
        ("of another program", other),
        ("text", text),
    ] {
        std::fs::write(&file, &damaged).unwrap();
        for suffix in ["-wal", "-shm"] {
            let beside = path.join(format!("history.db{suffix}"));
            std::fs::write(&beside, suffix).unwrap();
            std::fs::set_permissions(&beside, PermissionsExt::from_mode(0o600)).unwrap();
        }
        let history = History::open(&path, 8);
        history
            .keep(Timestamp(97 * QUARTER), &[of("import", 97)])
            .unwrap();
        assert_eq!(whole(&history), [(97 * QUARTER, vec![Some(97)])], "{what}");
        assert_eq!(history.days().on_disk, 8, "{what}");
        let aside = std::fs::read(path.join("history.db.damaged")).unwrap();
        assert_eq!(aside.len(), damaged.len(), "{what}");
        // Readings lie in it, too.
        history.delete().unwrap();
        drop(history);
        for left in std::fs::read_dir(&path).unwrap() {
            let name = left.unwrap().file_name();
            assert!(!name.to_string_lossy().contains("damaged"), "{name:?}");
        }
    }
}

#[test]
fn damage_that_shows_later_costs_the_past_alone() {
    for reads in [true, false] {
        let (_directory, path, file) = kept();
        let history = History::open(&path, 8);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[4096..].fill(0xA5);
        std::fs::write(&file, bytes).unwrap();
        // What it has read already it does not read again.
        let forget = "PRAGMA shrink_memory";
        history.database().execute_batch(forget).unwrap();
        if reads {
            assert_eq!(whole(&history), []);
        }
        let at = Timestamp(97 * QUARTER);
        history.keep(at, &[of("import", 97)]).unwrap();
        let new = [(97 * QUARTER, vec![Some(97)])];
        assert_eq!(whole(&history), new);
        assert!(path.join("history.db.damaged").exists());
        drop(history);
        assert_eq!(whole(&History::open(&path, 8)), new, "it is on disk");
    }
}

#[test]
fn what_was_put_aside_is_forgotten_with_its_days() {
    let (_directory, path, file) = kept();
    std::fs::write(&file, "damaged").unwrap();
    let history = History::open(&path, 8);
    let aside = path.join("history.db.damaged");
    let written = aside.metadata().unwrap().modified().unwrap();
    let written = written.duration_since(std::time::UNIX_EPOCH).unwrap();
    let written = u64::try_from(written.as_millis()).unwrap();
    let keep = |at| history.keep(Timestamp(at), &[of("import", 1)]).unwrap();
    keep(written + 8 * DAY);
    assert!(aside.exists());
    keep(written + 8 * DAY + 1000);
    assert!(!aside.exists());
}

#[test]
fn where_no_file_can_be_it_is_kept_in_memory() {
    let (_directory, path, file) = kept();
    let open = || {
        let history = History::open(&path, 8);
        history
            .keep(Timestamp(97 * QUARTER), &[of("import", 97)])
            .unwrap();
        assert_eq!(whole(&history), [(97 * QUARTER, vec![Some(97)])]);
        assert_eq!(history.days().on_disk, 0);
    };
    // Open to others: nothing is wrong with it, and the log says what to do.
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let before = std::fs::read(&file).unwrap();
    open();
    assert_eq!(std::fs::read(&file).unwrap(), before);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    open();
}
