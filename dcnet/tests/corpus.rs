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

fn replay(target: &str, harness: fn(&[u8]), inputs: usize) {
    let corpus = committed(target);
    assert!(!corpus.is_empty(), "no committed input for {target}");
    println!("{} committed inputs of {target}", corpus.len());
    corpus.iter().for_each(|input| harness(input));
    arbitrary(inputs).for_each(|input| harness(&input));
}

#[test]
fn decoders() {
    replay("frames", fuzzing::frames, 2000);
}

#[test]
fn meter() {
    replay("meter", fuzzing::meter, 200);
}

#[test]
fn provider() {
    replay("provider", fuzzing::provider, 200);
}
