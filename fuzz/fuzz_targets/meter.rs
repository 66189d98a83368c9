//! A meter in a prepared net, under arbitrary input: `simulation::fuzzing::meter`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    simulation::fuzzing::meter(data);
});
