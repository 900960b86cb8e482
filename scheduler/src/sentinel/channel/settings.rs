//! What the channels are told, by flags and environment variables.

use std::path::PathBuf;

use clap::Args;

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

/// A variable that is set to nothing is not set.
pub fn filled(given: Option<&str>) -> Option<&str> {
    given.map(str::trim).filter(|text| !text.is_empty())
}
