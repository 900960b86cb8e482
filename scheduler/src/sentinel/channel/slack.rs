//! Slack: an incoming webhook, one POST a notice.

use std::time::Duration;

use dodo_common::db::incident::NoticeEvent;
use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use url::Url;

use crate::sentinel::channel::refusal::Refusal;
use crate::sentinel::notice::Notice;

/// What an answer says is read up to this many bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// A Retry-After beyond this is not believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

pub struct Slack {
    /// The whole URL is a secret.
    webhook: Url,
    http: reqwest::Client,
    pub timeout: Duration,
}

impl Slack {
    /// # Errors
    /// One line without the URL, which is a secret.
    pub fn new(webhook: &str, timeout: Duration) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("DODO_SLACK_WEBHOOK is not a webhook ({why}); it looks like https://hooks.slack.com/services/...")
        };
        let webhook = Url::parse(webhook).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(webhook.scheme(), "http" | "https") {
            return Err(wrong("neither http nor https"));
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("cannot make an HTTP client for Slack: {}", error.without_url()))?;
        Ok(Self { webhook, http, timeout })
    }

    pub async fn deliver(&self, notice: &Notice) -> Result<(), Refusal> {
        let sent = self.http.post(self.webhook.clone()).json(&message(notice)).send().await;
        let mut answer = sent.map_err(|error| Refusal::new(describe(error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut said = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            said.extend_from_slice(&chunk);
            if said.len() > ANSWER_BYTES_MAX {
                break;
            }
        }
        let mut refusal = Refusal::new(format!("it answered {status}: {}", String::from_utf8_lossy(&said)));
        refusal.retry_after = seconds.map(Duration::from_secs).map(|after| after.min(RETRY_AFTER_MAX));
        Err(refusal)
    }
}

/// The error and its causes, without the URL.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// The body of the POST: <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>.
fn message(notice: &Notice) -> Value {
    let (icon, color) = match (notice.event, notice.incident.severity.as_str()) {
        (NoticeEvent::Resolved, _) => (":white_check_mark:", "good"),
        (NoticeEvent::Fired, "critical") => (":rotating_light:", "danger"),
        (NoticeEvent::Fired, "warning") => (":warning:", "warning"),
        (NoticeEvent::Fired, _) => (":information_source:", "#439fe0"),
    };
    let headline = escape(&notice.headline());
    json!({
        "text": format!("{icon} *{headline}*"),
        "attachments": [{
            "color": color,
            "fallback": headline,
            "text": escape(&notice.lines().join("\n")),
            "footer": escape(&notice.footer()),
        }],
    })
}

/// The three characters that Slack's markup reserves.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentinel::notice::tests::notice;

    #[test]
    fn a_message_is_a_mapping_of_its_notice() {
        assert_eq!(
            message(&notice(NoticeEvent::Fired)),
            json!({
                "text": ":warning: *lag fired (warning)*",
                "attachments": [{
                    "color": "warning",
                    "fallback": "lag fired (warning)",
                    "text": "lag: min over 2 m is 2500, above 2000\nSee &lt;dodo workers&gt; &amp; co.",
                    "footer": "Fired 1970-01-01 00:16:40 UTC, incident 00000000-0000-0000-0000-000000000007",
                }],
            })
        );
        let resolved = message(&notice(NoticeEvent::Resolved));
        assert_eq!(resolved["text"], ":white_check_mark: *lag resolved (warning)*");
        assert_eq!(resolved["attachments"][0]["color"], "good");
    }

    #[test]
    fn a_wrong_webhook_is_not_repeated() {
        dodo_common::install_tls_provider();
        for wrong in ["not a url s3cr3t", "ftp://hooks/s3cr3t"] {
            let error = Slack::new(wrong, Duration::from_secs(1)).err().expect("it is wrong");
            assert!(error.contains("DODO_SLACK_WEBHOOK") && !error.contains("s3cr3t"), "{error}");
        }
    }
}
