//! A provider in a prepared net, under arbitrary input: `simulation::fuzzing::provider`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    simulation::fuzzing::provider(data);
});
