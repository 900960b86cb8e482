//! The id of a stream entry: the server's clock in milliseconds and a counter within that millisecond.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Redis stream entry id. Ordered as Redis orders it: by time, then by counter.
/// Written `ms-seq` in decimal, which is also its form in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StreamId {
    /// Milliseconds since the Unix epoch, by the clock of the Redis server.
    pub ms: u64,
    /// Counts the entries of one millisecond from 0.
    pub seq: u64,
}

impl StreamId {
    /// Below every entry: Redis refuses to add `0-0`.
    pub const MIN: StreamId = StreamId { ms: 0, seq: 0 };
    pub const MAX: StreamId = StreamId { ms: u64::MAX, seq: u64::MAX };

    pub const fn new(ms: u64, seq: u64) -> StreamId {
        StreamId { ms, seq }
    }

    /// The smallest id above this one, which turns "up to and including" into the exclusive bound that
    /// `XTRIM MINID` wants. `MAX` has none and stays as it is.
    pub fn next(self) -> StreamId {
        match (self.ms, self.seq) {
            (u64::MAX, u64::MAX) => self,
            (ms, u64::MAX) => StreamId { ms: ms + 1, seq: 0 },
            (ms, seq) => StreamId { ms, seq: seq + 1 },
        }
    }
}

/// The text is not of the form `ms-seq` with two decimal numbers below 2^64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no stream id: expected ms-seq, as in 1700000000000-0")]
pub struct InvalidStreamId(String);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<StreamId, InvalidStreamId> {
        let (ms, seq) = text.split_once('-').ok_or_else(|| InvalidStreamId(text.to_owned()))?;
        match (decimal(ms), decimal(seq)) {
            (Some(ms), Some(seq)) => Ok(StreamId { ms, seq }),
            _ => Err(InvalidStreamId(text.to_owned())),
        }
    }
}

impl From<StreamId> for String {
    fn from(id: StreamId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for StreamId {
    type Error = InvalidStreamId;

    fn try_from(text: String) -> Result<StreamId, InvalidStreamId> {
        text.parse()
    }
}

/// `u64::from_str` alone would let a leading `+` through.
fn decimal(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_go_both_ways() {
        let id = StreamId::new(1_700_000_000_000, 12);
        assert_eq!(id.to_string(), "1700000000000-12");
        assert_eq!("1700000000000-12".parse(), Ok(id));
        let json = serde_json::to_string(&id).expect("an id is a string");
        assert_eq!(json, "\"1700000000000-12\"");
        assert_eq!(serde_json::from_str::<StreamId>(&json).expect("the same string"), id);
        assert_eq!(StreamId::MAX.to_string().parse(), Ok(StreamId::MAX));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "-", "1", "1-", "-1", "+1-0", "1-+0", "1-0-0", "1 -0", "a-b", "18446744073709551616-0"] {
            assert!(text.parse::<StreamId>().is_err(), "{text}");
        }
    }

    #[test]
    fn next_is_the_smallest_above() {
        assert_eq!(StreamId::new(5, 0).next(), StreamId::new(5, 1));
        assert_eq!(StreamId::new(5, u64::MAX).next(), StreamId::new(6, 0));
        assert_eq!(StreamId::MAX.next(), StreamId::MAX);
        assert!(StreamId::new(5, u64::MAX) < StreamId::new(6, 0));
    }
}
