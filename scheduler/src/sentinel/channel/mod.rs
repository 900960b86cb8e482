//! Channels: the ways a notice travels, each with its own timeout.

pub mod mail;
pub mod refusal;
pub mod settings;
pub mod slack;

use std::time::Duration;

use crate::sentinel::channel::mail::Mail;
use crate::sentinel::channel::refusal::Refusal;
use crate::sentinel::channel::settings::{Channels, filled};
use crate::sentinel::channel::slack::Slack;
use crate::sentinel::notice::Notice;

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
