//! The body of a response: read within its bounds, kept as far as it came.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use crate::fetch::innermost;

/// How slowly a body comes is only asked after this long.
const GRACE: Duration = Duration::from_secs(10);
/// What is set aside because a server says that so much comes, bytes.
const SAID_BYTES_MAX: usize = 1 << 20;
/// Its rate is that of the last seconds; more than the silence that is allowed by default, so that one is forgiven.
const WINDOW_S: u64 = 30;

/// Why a body is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    #[error("it is longer than {0} bytes")]
    Length(usize),
    #[error("it comes slower than {0} bytes/s")]
    Slow(u64),
    #[error("it was not whole after {} ms", .0.as_millis())]
    Late(Duration),
    #[error("nothing came for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It was not read at all.
    #[error("its media type is not kept")]
    Unwanted,
}

impl Cut {
    /// The value of `WARC-Truncated` (WARC 1.1, 5.13).
    pub fn word(&self) -> &'static str {
        match self {
            Cut::Length(_) => "length",
            Cut::Slow(_) | Cut::Late(_) | Cut::Silent(_) => "time",
            Cut::Broken(_) => "disconnect",
            Cut::Unwanted => "unspecified",
        }
    }

    /// Another try may well bring the whole: it was not us who cut it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Cut::Silent(_) | Cut::Broken(_))
    }
}

/// What a body may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub bytes_max: usize,
    pub bytes_per_s_min: u64,
    pub silence: Duration,
    /// When the exchange must be over, and how long it is then.
    pub until: Instant,
    pub total: Duration,
}

/// Reads a body to its end, or to where a bound cuts it or its connection breaks.
pub async fn read(response: &mut Response, bounds: Bounds) -> (Vec<u8>, Option<Cut>) {
    let begun = Instant::now();
    let said = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let (mut body, mut pace) = (Vec::with_capacity(said.min(SAID_BYTES_MAX)), Pace::default());
    loop {
        let patience = (Instant::now() + bounds.silence).min(bounds.until);
        let chunk = match timeout_at(patience, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return (body, None),
            Ok(Err(error)) => return (body, Some(Cut::Broken(innermost(&error.without_url())))),
            Err(_) if patience == bounds.until => return (body, Some(Cut::Late(bounds.total))),
            Err(_) => return (body, Some(Cut::Silent(bounds.silence))),
        };
        let room = bounds.bytes_max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        let now = Instant::now();
        let cut = if chunk.len() > room {
            Cut::Length(bounds.bytes_max)
        } else if now >= bounds.until {
            Cut::Late(bounds.total)
        } else if pace.add(now - begun, chunk.len()) < bounds.bytes_per_s_min && now - begun >= GRACE {
            Cut::Slow(bounds.bytes_per_s_min)
        } else {
            continue;
        };
        return (body, Some(cut));
    }
}

/// How fast a body came of late: bytes, second by second.
#[derive(Debug, Default)]
struct Pace {
    seconds: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Pace {
    /// Adds what came `at` after the begin; returns the bytes a second over the window that ends there. The second that
    /// has just begun is not counted, for the good of the server.
    fn add(&mut self, at: Duration, bytes: usize) -> u64 {
        let (second, bytes) = (at.as_secs(), bytes as u64);
        self.bytes += bytes;
        match self.seconds.back_mut() {
            Some((last, sum)) if *last == second => *sum += bytes,
            _ => self.seconds.push_back((second, bytes)),
        }
        while let Some((first, sum)) = self.seconds.front()
            && first + WINDOW_S <= second
        {
            self.bytes -= sum;
            self.seconds.pop_front();
        }
        self.bytes / second.clamp(1, WINDOW_S - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_window() {
        let at = Duration::from_secs;
        let mut pace = Pace::default();
        assert_eq!(pace.add(at(0), 1000), 1000);
        assert_eq!(pace.add(at(10), 0), 100);
        assert_eq!(pace.add(at(29), 0), 34);
        assert_eq!(pace.add(at(30), 60), 2, "the burst is forgotten");
        let mut drip = Pace::default();
        for second in 0..100_000 {
            assert!(matches!(drip.add(at(second), 1), 1 | 2));
        }
        assert_eq!(drip.seconds.len(), WINDOW_S as usize, "no longer than the window");
    }

    #[test]
    fn what_we_cut_is_not_asked_for_again() {
        let second = Duration::from_secs(1);
        for (cut, word, may_pass) in [
            (Cut::Length(1), "length", false),
            (Cut::Slow(1), "time", false),
            (Cut::Late(second), "time", false),
            (Cut::Silent(second), "time", true),
            (Cut::Broken(String::new()), "disconnect", true),
            (Cut::Unwanted, "unspecified", false),
        ] {
            assert_eq!((cut.word(), cut.may_pass()), (word, may_pass));
        }
    }
}
