//! UTC moments as people write them: RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use dcnet::time::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// A moment as RFC 3339 text in UTC, for instance `2026-01-31T18:00:00Z`.
pub fn text(at: Timestamp) -> String {
    i64::try_from(at.as_millis())
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .map_or_else(
            || format!("{} ms after 1970", at.as_millis()),
            |t| t.to_string(),
        )
}

/// Reads `2026-01-31T18:00:00Z` (any offset), `2026-01-31T18:00:00` or `2026-01-31`,
/// the latter two in UTC.
///
/// # Errors
/// Another form, or a moment before 1970.
pub fn parse(text: &str) -> anyhow::Result<Timestamp> {
    let moment = text.parse::<jiff::Timestamp>().or_else(|_| {
        let local = text
            .parse::<DateTime>()
            .or_else(|_| text.parse::<Date>().map(DateTime::from));
        local.and_then(|local| local.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()))
    });
    let moment = moment.with_context(|| {
        format!("\"{text}\" is no moment; write 2026-01-31 or 2026-01-31T18:00:00Z")
    })?;
    u64::try_from(moment.as_millisecond())
        .map(Timestamp)
        .with_context(|| format!("\"{text}\" is before 1970"))
}

/// The system's UTC clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_the_forms_people_write() {
        let evening = Timestamp(1_769_882_400_000);
        for written in [
            "2026-01-31T18:00:00Z",
            "2026-01-31T18:00:00",
            "2026-01-31T19:00:00+01:00",
        ] {
            assert_eq!(parse(written).unwrap(), evening, "{written}");
        }
        assert_eq!(text(evening), "2026-01-31T18:00:00Z");
        assert_eq!(parse("1970-01-02").unwrap(), Timestamp(86_400_000));
        for wrong in ["yesterday", "1969-12-31", "2026-02-30", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
