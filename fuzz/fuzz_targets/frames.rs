//! Every decoder of the protocol, under arbitrary input: `simulation::fuzzing::frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| simulation::fuzzing::frames(data));
