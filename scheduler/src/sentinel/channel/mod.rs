//! Channels: the ways a notice travels, each with its own timeout.

pub mod mail;
pub mod slack;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::sentinel::channel::mail::Mail;
use crate::sentinel::channel::slack::Slack;
use crate::sentinel::notice::Notice;

/// An error is kept and shown up to this many characters.
const ERROR_CHARS_MAX: usize = 300;

/// What the channels are told.
#[derive(Args, Clone, Debug, Default)]
pub struct Channels {
    /// Slack incoming webhook to alert by
    #[arg(long, env = "DODO_SLACK_WEBHOOK", hide_env_values = true)]
    pub slack_webhook: Option<String>,
    /// How long the webhook may take, milliseconds
    #[arg(long, env = "DODO_SLACK_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub slack_timeout_ms: u64,
    /// Mail server to alert by: smtps://USER:PASSWORD@HOST (TLS), smtp+starttls://USER:PASSWORD@HOST (STARTTLS, required),
    /// or smtp://HOST (neither TLS nor password)
    #[arg(long, env = "DODO_SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// How long a mail may take, milliseconds
    #[arg(long, env = "DODO_SMTP_TIMEOUT_MS", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=120_000))]
    pub smtp_timeout_ms: u64,
    /// PEM file of a private CA that the mail server's certificate comes from
    #[arg(long, env = "DODO_SMTP_CA_FILE")]
    pub smtp_ca_file: Option<PathBuf>,
    /// Sender of the mails
    #[arg(long, env = "DODO_MAIL_FROM")]
    pub mail_from: Option<String>,
    /// Receivers of the mails, separated by commas
    #[arg(long, env = "DODO_MAIL_TO")]
    pub mail_to: Option<String>,
}

/// Why a notice was not taken.
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

/// One way to one receiver: each retries by itself, so that a mailbox that refuses holds up nobody else.
pub enum Channel {
    Slack(Slack),
    Mail(Box<Mail>),
}

impl Channel {
    /// The channels that are configured.
    ///
    /// # Errors
    /// One line: which variable is wrong and what it should be.
    pub fn open(given: &Channels) -> Result<Vec<Self>, String> {
        let mut open = Vec::new();
        if let Some(webhook) = filled(given.slack_webhook.as_deref()) {
            let timeout = Duration::from_millis(given.slack_timeout_ms);
            open.push(Channel::Slack(Slack::new(webhook, timeout)?));
        }
        let mails = Mail::open(given)?;
        open.extend(mails.into_iter().map(|mail| Channel::Mail(Box::new(mail))));
        Ok(open)
    }

    /// As the outbox names it.
    pub fn name(&self) -> String {
        match self {
            Channel::Slack(_) => "slack".to_owned(),
            Channel::Mail(mail) => format!("mail:{}", mail.to()),
        }
    }

    pub fn timeout(&self) -> Duration {
        match self {
            Channel::Slack(slack) => slack.timeout,
            Channel::Mail(mail) => mail.timeout,
        }
    }

    /// Sends one notice, or says within [`Channel::timeout`] why not.
    pub async fn deliver(&self, notice: &Notice) -> Result<(), Refusal> {
        let sent = async {
            match self {
                Channel::Slack(slack) => slack.deliver(notice).await,
                Channel::Mail(mail) => mail.deliver(notice).await,
            }
        };
        let limit = self.timeout();
        match tokio::time::timeout(limit, sent).await {
            Ok(sent) => sent,
            Err(_) => Err(Refusal::new(format!("no answer within {limit:?}"))),
        }
    }
}

/// A variable that is set to nothing is not set.
fn filled(given: Option<&str>) -> Option<&str> {
    given.map(str::trim).filter(|text| !text.is_empty())
}
