//! Replays the committed inputs of the fuzz targets, and a few hundred arbitrary ones:
//! no input panics or makes a machine break what `simulation::fuzzing` asserts.

use std::path::Path;

use simulation::fuzzing;

fn committed(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target);
    let mut files: Vec<_> = std::fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// Bytes of a generator with a fixed seed.
fn arbitrary(inputs: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..inputs).map(move |_| {
        let length = 1 + usize::from(byte()) * 4;
        (0..length).map(|_| byte()).collect()
    })
}

/// What the harness reached with each committed input; arbitrary ones only must not panic.
fn replay<R>(target: &str, harness: fn(&[u8]) -> R, inputs: usize) -> Vec<R> {
    let corpus = committed(target);
    assert!(!corpus.is_empty(), "no committed input for {target}");
    println!("{} committed inputs of {target}", corpus.len());
    arbitrary(inputs).for_each(|input| drop(harness(&input)));
    corpus.iter().map(|input| harness(input)).collect()
}

#[test]
fn decoders() {
    replay("frames", fuzzing::frames, 2000);
}

#[test]
fn meter() {
    let reveals: usize = replay("meter", fuzzing::meter, 200).iter().sum();
    println!("{reveals} reveals");
    assert!(reveals >= 20, "the inputs hardly reach a reveal: {reveals}");
}

#[test]
fn provider() {
    let reached = replay("provider", fuzzing::provider, 200);
    let [entries, rosters, aggregates] =
        [0, 1, 2].map(|kind| reached.iter().map(|made| made[kind]).sum::<usize>());
    println!("{entries} entries, {rosters} rosters, {aggregates} aggregates");
    assert!(entries >= 30 && rosters >= 40 && aggregates >= 30);
}
