//! x
use fantoccini as _;
