//! Why a notice was not taken.

use std::time::Duration;

/// An error is kept and shown up to this many characters.
const ERROR_CHARS_MAX: usize = 300;

#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// One line without secrets.
    pub text: String,
    /// The other side says when to come back.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(text: impl AsRef<str>) -> Self {
        let line = text.as_ref().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { text: line.chars().take(ERROR_CHARS_MAX).collect(), retry_after: None }
    }
}
