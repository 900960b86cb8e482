//! The sentinel as a process on real servers, and what it tells a real SMTP server and an HTTP receiver.

mod measured;
mod outage;
mod settings;
mod told;
mod under_up;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Process};
use crate::sink::{MailSink, WebSink};

/// Longer than anything here takes when it works.
const LONG: Duration = Duration::from_secs(20);
/// The rule of most tests: whether a leader holds the lease, which one statement decides.
const LEADER: &str = "  - {name: no-leader, metric: leader, aggregate: last, window: 2s, comparison: below, threshold: 1, \
                      for: 200ms, clear_for: 200ms, severity: critical, advice: Start a scheduler.}\n";
const POSTGRES: &str = "  - {name: postgres-down, metric: postgres_up, aggregate: last, window: 2s, comparison: below, \
                        threshold: 1, for: 300ms, clear_for: 100ms, severity: critical}\n";

/// A cluster without processes, both sinks, and a sentinel that knows some rules.
struct Watched {
    cluster: Cluster,
    mail: MailSink,
    web: WebSink,
    env: Vec<(String, String)>,
}

impl Watched {
    /// The leader's lease is held; `absent_after` is how long a metric may be silent.
    async fn start(rules: &str, absent_after: &str) -> Result<Self> {
        let cluster = Cluster::start().await?;
        let mail = MailSink::start("starttls")?;
        let web = WebSink::start()?;
        let file = cluster.dir.path().join("rules.yaml");
        std::fs::write(&file, format!("absent_after: {absent_after}\nabsent_severity: warning\nrules:\n{rules}"))?;
        let env = [
            ("DODO_SENTINEL_RULES", file.display().to_string()),
            ("DODO_SLACK_WEBHOOK", web.url()),
            ("DODO_SLACK_TIMEOUT_MS", "1500".to_owned()),
            ("DODO_SMTP_URL", mail.url()),
            ("DODO_SMTP_CA_FILE", mail.ca_file().display().to_string()),
            ("DODO_SMTP_TIMEOUT_MS", "2000".to_owned()),
            ("DODO_MAIL_FROM", "Dodo <dodo@example.com>".to_owned()),
            ("DODO_MAIL_TO", "ops@example.org".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        let watched = Self { cluster, mail, web, env };
        watched.lead(true).await?;
        Ok(watched)
    }

    fn sentinel(&self, more: &[(&str, &str)]) -> Result<Process> {
        let env: Vec<(&str, &str)> =
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(more.iter().copied()).collect();
        self.cluster.sentinel(&env)
    }

    /// Whether somebody leads, for as long as the test takes.
    async fn lead(&self, held: bool) -> Result<()> {
        let until = if held { "clock_timestamp() + interval '1 hour'" } else { "'-infinity'" };
        let sql = format!("UPDATE leader_lease SET holder = gen_random_uuid(), expires_at = {until}");
        Ok(self.cluster.sql().await?.batch_execute(&sql).await?)
    }

    async fn count(&self, sql: &str) -> Result<i64> {
        Ok(self.cluster.sql().await?.query_one(sql, &[]).await?.get(0))
    }

    /// Waits until so many mails and messages have arrived, then a little longer for any too many.
    async fn told(&self, mails: usize, messages: usize) -> Result<()> {
        self.reached(mails, messages).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((self.mail.mails().len(), self.web.messages().len()), (mails, messages), "nothing more arrives");
        Ok(())
    }

    async fn reached(&self, mails: usize, messages: usize) -> Result<()> {
        let wait = until(|| self.mail.mails().len() >= mails && self.web.messages().len() >= messages).await;
        if wait.is_err() {
            self.cluster.print_logs();
        }
        wait.with_context(|| format!("{:?} {:?}", self.mail.mails(), self.web.messages()))
    }

    async fn opened(&self, count: i64) -> Result<()> {
        let start = Instant::now();
        while self.count("SELECT count(*) FROM incident").await? < count {
            ensure!(start.elapsed() < LONG, "there are no {count} incidents");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }

    fn subjects(&self) -> Vec<String> {
        self.mail.mails().iter().filter_map(|mail| mail.header("Subject").map(str::to_owned)).collect()
    }
}

async fn until(mut is: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is() {
        ensure!(start.elapsed() < LONG, "not so within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

/// A sentinel has looked once: its grace and its windows have begun.
async fn watching(cluster: &Cluster, times: usize) -> Result<()> {
    until(|| cluster.logs().matches("watching rules=").count() >= times).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}
