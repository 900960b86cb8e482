//! Mail over SMTP: TLS, STARTTLS or, without a password, neither. A resolution is threaded to its alarm.

use std::time::Duration;

use dodo_common::db::incident::NoticeEvent;
use lettre::address::Envelope;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Mailboxes, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::sentinel::channel::refusal::Refusal;
use crate::sentinel::channel::settings::{Channels, filled};
use crate::sentinel::notice::Notice;

/// Receivers of one configuration.
const RECEIVERS_MAX: usize = 100;

/// Mail to one receiver.
pub struct Mail {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    letter: Letter,
    receiver: Mailbox,
    pub timeout: Duration,
}

/// What every mail has in common.
#[derive(Clone)]
struct Letter {
    from: Mailbox,
    to: Mailboxes,
}

/// How the connection is protected, as the scheme of DODO_SMTP_URL says it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protection {
    /// `smtps`: TLS from the first byte (RFC 8314).
    Tls,
    /// `smtp+starttls`: STARTTLS (RFC 3207), and nothing is sent without it.
    StartTls,
    /// `smtp`: nothing, and so no password.
    Nothing,
}

impl Mail {
    /// One for each receiver; none when no mail server is configured.
    ///
    /// # Errors
    /// One line without the URL, which holds a password.
    pub fn open(given: &Channels) -> Result<Vec<Self>, String> {
        let Some(url) = filled(given.smtp_url.as_deref()) else {
            return match filled(given.mail_to.as_deref()) {
                Some(_) => Err("DODO_MAIL_TO needs DODO_SMTP_URL: say by which server mail goes".to_owned()),
                None => Ok(Vec::new()),
            };
        };
        let need = |text: &Option<String>, name: &str| {
            filled(text.as_deref()).map(str::to_owned).ok_or_else(|| format!("DODO_SMTP_URL needs {name}"))
        };
        let from = need(&given.mail_from, "DODO_MAIL_FROM")?;
        let from: Mailbox = from.parse().map_err(|error| format!("DODO_MAIL_FROM={from} is no address: {error}"))?;
        let to = need(&given.mail_to, "DODO_MAIL_TO")?;
        let to: Mailboxes = to.parse().map_err(|error| format!("DODO_MAIL_TO={to} are no addresses: {error}"))?;
        let receivers: Vec<Mailbox> = to.iter().cloned().collect();
        if receivers.is_empty() || receivers.len() > RECEIVERS_MAX {
            return Err(format!("DODO_MAIL_TO must name 1 to {RECEIVERS_MAX} addresses"));
        }
        let timeout = Duration::from_millis(given.smtp_timeout_ms);
        let transport = transport(url, given, timeout)?;
        let letter = Letter { from, to };
        let mail = |receiver| Self { transport: transport.clone(), letter: letter.clone(), receiver, timeout };
        Ok(receivers.into_iter().map(mail).collect())
    }

    /// The receiver's address.
    pub fn to(&self) -> String {
        self.receiver.email.to_string()
    }

    pub async fn deliver(&self, notice: &Notice) -> Result<(), Refusal> {
        let message = self.letter.write(notice).map_err(|error| Refusal::new(error.to_string()))?;
        // Everybody stands in the letter; this one envelope goes to one of them.
        let envelope = Envelope::new(Some(self.letter.from.email.clone()), vec![self.receiver.email.clone()])
            .map_err(|error| Refusal::new(error.to_string()))?;
        match self.transport.send_raw(&envelope, &message.formatted()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::new(describe(&error))),
        }
    }
}

impl Letter {
    fn write(&self, notice: &Notice) -> Result<Message, lettre::error::Error> {
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(format!("[dodo] {}", notice.headline()))
            .date(notice.at().into())
            .message_id(Some(self.message_id(notice, notice.event)));
        for receiver in self.to.iter() {
            builder = builder.to(receiver.clone());
        }
        if notice.event == NoticeEvent::Resolved {
            let alarm = self.message_id(notice, NoticeEvent::Fired);
            builder = builder.in_reply_to(alarm.clone()).references(alarm);
        }
        let body = format!("{}\n\n{}\n", notice.lines().join("\n\n"), notice.footer());
        builder.header(ContentType::TEXT_PLAIN).body(body)
    }

    /// The same however often and by whomever a notice is sent: a repeat is recognised by it (RFC 5322 3.6.4).
    fn message_id(&self, notice: &Notice, event: NoticeEvent) -> String {
        format!("<{}.{}@{}>", notice.incident.id, event.as_str(), self.from.email.domain())
    }
}

fn transport(url: &str, given: &Channels, timeout: Duration) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let wrong = |why: &str| {
        format!(
            "DODO_SMTP_URL is not one ({why}); write smtps://USER:PASSWORD@HOST, smtp+starttls://USER:PASSWORD@HOST or smtp://HOST"
        )
    };
    let url = Url::parse(url).map_err(|error| wrong(&error.to_string()))?;
    let (protection, port) = match url.scheme() {
        "smtps" => (Protection::Tls, 465),
        "smtp+starttls" => (Protection::StartTls, 587),
        "smtp" => (Protection::Nothing, 25),
        _ => return Err(wrong("its scheme is none of smtps, smtp+starttls, smtp")),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong("nothing may follow the host and port"));
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let credentials = url.password().map(|password| Credentials::new(decoded(url.username()), decoded(password)));
    if credentials.is_some() && protection == Protection::Nothing {
        return Err("DODO_SMTP_URL would send its password in the clear; use smtps:// or smtp+starttls://".to_owned());
    }
    let tls = match protection {
        Protection::Tls => Tls::Wrapper(tls(host, given)?),
        Protection::StartTls => Tls::Required(tls(host, given)?),
        Protection::Nothing => Tls::None,
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(url.port().unwrap_or(port))
        .tls(tls)
        .hello_name(own_name())
        .timeout(Some(timeout));
    if let Some(credentials) = credentials {
        builder = builder.credentials(credentials);
    }
    Ok(builder.build())
}

/// What this machine calls itself to the server (RFC 5321 4.1.1.1).
fn own_name() -> ClientId {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    match name.trim() {
        name if !name.is_empty() && name.bytes().all(plain) => ClientId::Domain(name.to_owned()),
        _ => ClientId::default(),
    }
}

fn tls(host: &str, given: &Channels) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(file) = given.smtp_ca_file.as_deref().filter(|file| !file.as_os_str().is_empty()) {
        let wrong = |why: String| format!("cannot use DODO_SMTP_CA_FILE={}: {why}", file.display());
        let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let certificate = Certificate::from_pem(&pem).map_err(|error| wrong(describe(&error)))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| format!("cannot set up TLS for mail: {}", describe(&error)))
}

/// The error and its causes.
fn describe(error: &lettre::transport::smtp::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentinel::notice::tests::notice;

    fn given(url: &str) -> Channels {
        Channels {
            smtp_url: Some(url.to_owned()),
            smtp_timeout_ms: 1000,
            mail_from: Some("Dodo <dodo@example.com>".to_owned()),
            mail_to: Some("a@example.org, B <b@example.org>".to_owned()),
            ..Channels::default()
        }
    }

    #[test]
    fn a_letter_is_a_mapping_of_its_notice() {
        let mails = Mail::open(&given("smtp://mail.example.com")).expect("it is right");
        assert_eq!(mails.iter().map(Mail::to).collect::<Vec<_>>(), ["a@example.org", "b@example.org"]);
        let text = |event| {
            let message = mails[0].letter.write(&notice(event)).expect("a letter");
            String::from_utf8(message.formatted()).expect("text").replace("\r\n", "\n")
        };
        let fired = text(NoticeEvent::Fired);
        let id = "00000000-0000-0000-0000-000000000007";
        for line in [
            "From: Dodo <dodo@example.com>",
            "To: a@example.org, B <b@example.org>",
            "Subject: [dodo] lag fired (warning)",
            "Date: Thu, 01 Jan 1970 00:16:40 +0000",
            &format!("Message-ID: <{id}.fired@example.com>"),
            "lag: min over 2 m is 2500, above 2000",
            "See <dodo workers> & co.",
        ] {
            assert!(fired.lines().any(|found| found == line), "{line} is not in\n{fired}");
        }
        assert!(!fired.contains("References"));
        let resolved = text(NoticeEvent::Resolved);
        for line in [
            "Subject: [dodo] lag resolved (warning)",
            &format!("Message-ID: <{id}.resolved@example.com>"),
            &format!("In-Reply-To: <{id}.fired@example.com>"),
            &format!("References: <{id}.fired@example.com>"),
        ] {
            assert!(resolved.lines().any(|found| found == line), "{line} is not in\n{resolved}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, expected) in [
            ("mail.example.com:25", "smtps://USER"),
            ("imap://u:s3cr3t@h", "its scheme"),
            ("smtp://u:s3cr3t@h", "in the clear"),
            ("smtps://u:s3cr3t@h/path", "nothing may follow"),
            ("smtp://u:s3cr3t@h:port", "DODO_SMTP_URL"),
        ] {
            let error = Mail::open(&given(url)).err().expect("it is wrong");
            assert!(error.contains(expected) && !error.contains("s3cr3t") && error.lines().count() == 1, "{error}");
        }
        let error = |change: fn(&mut Channels)| {
            let mut channels = given("smtps://u:p@h");
            change(&mut channels);
            Mail::open(&channels).err().expect("it is wrong")
        };
        assert!(error(|c| c.mail_from = None).contains("DODO_MAIL_FROM"));
        assert!(error(|c| c.mail_to = Some(String::new())).contains("DODO_MAIL_TO"));
        assert!(error(|c| c.mail_to = Some("nobody".to_owned())).contains("DODO_MAIL_TO"));
        assert!(error(|c| c.smtp_url = None).contains("DODO_SMTP_URL"));
        assert!(error(|c| c.smtp_ca_file = Some("/no/such/file".into())).contains("DODO_SMTP_CA_FILE=/no/such/file"));
    }
}
