//! Processes that die between two outputs.

use dcnet::output::Output;

/// Counts an output of a process that dies after so many records and messages, if it does;
/// true if it dies before this one.
pub(crate) fn dies_before<P, E>(left: &mut Option<usize>, output: &Output<P, E>) -> bool {
    let happens = matches!(output, Output::Persist(_) | Output::Publish(_));
    match left {
        Some(0) if happens => {
            *left = None;
            true
        }
        Some(more) if happens => {
            *more -= 1;
            false
        }
        _ => false,
    }
}
