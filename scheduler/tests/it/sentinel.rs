//! The sentinel as a process on real servers, and what it tells a real SMTP server and an HTTP receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dodo_common::db::incident::{Incident, NoticeEvent};
use dodo_common::db::pool::Db;
use dodo_common::stream::connection::Redis;
use dodo_scheduler::sentinel::channel::{Channel, Channels};
use dodo_scheduler::sentinel::metric::{Look, Metric};
use dodo_scheduler::sentinel::notice::Notice;
use dodo_scheduler::sentinel::snapshot;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process, dodo_program};
use crate::sink::{MailSink, Mode, WebSink};

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

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_and_its_end_are_told_once_each_on_every_channel() -> Result<()> {
    let mut watched = Watched::start(LEADER, "1h").await?;
    let _sentinel = watched.sentinel(&[("DODO_MAIL_TO", "ops@example.org, Night Watch <night@example.org>")])?;
    watching(&watched.cluster, 1).await?;
    assert_eq!((watched.mail.mails().len(), watched.web.messages().len()), (0, 0), "nothing is wrong yet");
    watched.lead(false).await?;
    watched.told(2, 1).await?;
    watched.lead(true).await?;
    watched.told(4, 2).await?;

    let sql = watched.cluster.sql().await?;
    let row = sql.query_one("SELECT id::text, to_char(fired_at, 'YYYY-MM-DD HH24:MI:SS'), to_char(resolved_at, 'YYYY-MM-DD HH24:MI:SS'), fired_at < resolved_at FROM incident", &[]).await?;
    let (id, fired_at, resolved_at): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    assert!(row.get::<_, bool>(3));

    let mails = watched.mail.mails();
    let mut receivers: Vec<&str> = mails.iter().map(|mail| mail.to[0].as_str()).collect();
    receivers.sort_unstable();
    assert_eq!(receivers, ["night@example.org", "night@example.org", "ops@example.org", "ops@example.org"]);
    let to_ops: Vec<_> = mails.iter().filter(|mail| mail.to == ["ops@example.org"]).collect();
    let (fired, resolved) = (to_ops[0], to_ops[1]);
    for mail in &to_ops {
        assert!(mail.tls && mail.login.as_deref() == Some("dodo") && mail.from == "dodo@example.com", "{mail:?}");
        assert_eq!(mail.header("From"), Some("Dodo <dodo@example.com>"));
        assert!(mail.header("To").is_some_and(|to| to.starts_with("ops@example.org, ")), "{mail:?}");
    }
    let fired_id = format!("<{id}.fired@example.com>");
    assert_eq!(fired.header("Subject"), Some("[dodo] no-leader fired (critical)"));
    assert_eq!(fired.header("Message-ID"), Some(fired_id.as_str()));
    assert_eq!((fired.header("References"), fired.header("In-Reply-To")), (None, None));
    let body = format!(
        "leader: last over 2 s is 0, below 1 for 200 ms\n\nStart a scheduler.\n\nFired {fired_at} UTC, incident {id}\n"
    );
    assert_eq!(fired.body(), body);
    assert_eq!(resolved.header("Subject"), Some("[dodo] no-leader resolved (critical)"));
    assert_eq!(resolved.header("Message-ID"), Some(format!("<{id}.resolved@example.com>").as_str()));
    assert_eq!((resolved.header("References"), resolved.header("In-Reply-To")), (Some(&*fired_id), Some(&*fired_id)));
    let (body, end) = (resolved.body(), format!("Resolved {resolved_at} UTC, incident {id}\n"));
    assert!(
        body.starts_with("leader: last over 2 s is 1, not below 1\n\nIt lasted ") && body.ends_with(&end),
        "{body}"
    );

    let messages = watched.web.messages();
    assert_eq!(
        messages[0],
        json!({
            "text": ":rotating_light: *no-leader fired (critical)*",
            "attachments": [{
                "color": "danger",
                "fallback": "no-leader fired (critical)",
                "text": "leader: last over 2 s is 0, below 1 for 200 ms\nStart a scheduler.",
                "footer": format!("Fired {fired_at} UTC, incident {id}"),
            }],
        })
    );
    assert_eq!(messages[1]["text"], ":white_check_mark: *no-leader resolved (critical)*");
    assert_eq!(messages[1]["attachments"][0]["color"], "good");

    incidents_are_listed(&mut watched, &id).await
}

/// The API, its document and the tool show an incident as it is, and no secret.
async fn incidents_are_listed(watched: &mut Watched, id: &str) -> Result<()> {
    watched.cluster.sql().await?.batch_execute("UPDATE leader_lease SET expires_at = '-infinity'").await?;
    let _scheduler = watched.cluster.scheduler().await?;
    let listed = watched.cluster.get("/v1/incidents").await?;
    let one = listed.as_array().and_then(|all| all.iter().find(|one| one["id"] == id)).context("it is not listed")?;
    assert_eq!(
        (&one["rule"], &one["severity"], &one["metric"]),
        (&json!("no-leader"), &json!("critical"), &json!("leader"))
    );
    assert_eq!(one["summary"], "leader: last over 2 s is 0, below 1 for 200 ms");
    assert_eq!(one["outcome"], "leader: last over 2 s is 1, not below 1");
    let told: BTreeMap<String, bool> = one["notices"]
        .as_array()
        .context("no notices")?
        .iter()
        .map(|notice| (format!("{} {}", notice["event"], notice["channel"]), notice["delivered_at"].is_string()))
        .collect();
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(told.values().all(|delivered| *delivered), "{told:?}");
    assert_eq!(watched.cluster.get("/v1/incidents?limit=1").await?.as_array().map(Vec::len), Some(1));

    let document = watched.cluster.get("/openapi.json").await?;
    let schema = &document["components"]["schemas"]["IncidentView"]["properties"];
    let (documented, sent) = (schema.as_object().context("no schema")?, one.as_object().context("no object")?);
    assert_eq!(documented.keys().collect::<Vec<_>>(), sent.keys().collect::<Vec<_>>());
    assert!(document["paths"]["/v1/incidents"]["get"].is_object());

    let as_json: Value = serde_json::from_str(&watched.cluster.dodo_text(&["incidents", "--json"])?)?;
    assert!(as_json.as_array().is_some_and(|all| all.iter().any(|one| one["id"] == id)));
    let text = watched.cluster.dodo_text(&["incidents"])?;
    assert!(text.contains("no-leader") && text.contains("resolved"), "{text}");

    let said = format!("{}{listed}{text}", watched.cluster.logs());
    for secret in ["s3cr3t", &watched.web.url(), &watched.mail.url(), &watched.cluster.postgres.url()] {
        assert!(!said.contains(secret), "a secret was told");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_refuses_or_is_down_hears_of_it_later_and_once() -> Result<()> {
    let mut watched = Watched::start(LEADER, "1h").await?;
    let _sentinel = watched.sentinel(&[("DODO_MAIL_TO", "refused@example.org,ops@example.org")])?;
    watching(&watched.cluster, 1).await?;
    watched.mail.down();
    watched.web.mode(Mode::Refuse);
    watched.lead(false).await?;
    let failed = "SELECT count(*) FROM notice WHERE last_error IS NOT NULL AND delivered_at IS NULL";
    let start = Instant::now();
    while watched.count(failed).await? < 3 {
        ensure!(start.elapsed() < LONG, "three channels fail");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Over before anybody could be told: both are told all the same, in their order.
    watched.lead(true).await?;
    let start = Instant::now();
    while watched.count("SELECT count(*) FROM notice WHERE event = 'resolved'").await? < 3 {
        ensure!(start.elapsed() < LONG, "it is resolved");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let slack: String = watched
        .cluster
        .sql()
        .await?
        .query_one("SELECT last_error FROM notice WHERE channel = 'slack' AND event = 'fired'", &[])
        .await?
        .get(0);
    assert_eq!(slack, "it answered 500 Internal Server Error: no_service");
    assert_eq!((watched.mail.mails().len(), watched.web.messages().len()), (0, 0));

    watched.mail.mode(Mode::Refuse)?;
    watched.mail.up()?;
    watched.web.down();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((watched.mail.mails().len(), watched.web.messages().len()), (0, 0));
    watched.mail.mode(Mode::Ok)?;
    watched.web.mode(Mode::Ok);
    watched.web.up()?;
    watched.told(2, 2).await?;
    assert_eq!(watched.subjects(), ["[dodo] no-leader fired (critical)", "[dodo] no-leader resolved (critical)"]);
    assert!(watched.web.messages()[0]["text"].as_str().is_some_and(|text| text.contains("fired")));
    // The mailbox that is refused for good holds up nobody, and is not forgotten.
    let waiting = "SELECT count(*) FROM notice WHERE delivered_at IS NULL AND channel = 'mail:refused@example.org'";
    assert_eq!(watched.count(waiting).await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_channel_delays_neither_the_other_nor_the_rules() -> Result<()> {
    let watched = Watched::start(LEADER, "1h").await?;
    let _sentinel = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    watched.web.mode(Mode::Slow);
    for round in 1..=3 {
        let start = Instant::now();
        watched.lead(false).await?;
        watched.reached(round * 2 - 1, 0).await?;
        watched.lead(true).await?;
        watched.reached(round * 2, 0).await?;
        assert!(start.elapsed() < Duration::from_secs(5), "round {round} took {:?}", start.elapsed());
    }
    assert_eq!(watched.web.messages().len(), 0);
    // The other way round: mail takes for ever, and Slack hears at once of what comes next.
    watched.web.mode(Mode::Ok);
    watched.mail.mode(Mode::Slow)?;
    watched.reached(6, 6).await?;
    let start = Instant::now();
    watched.lead(false).await?;
    watched.reached(6, 7).await?;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let timed_out = "SELECT count(*) FROM notice WHERE channel LIKE 'mail:%' AND last_error LIKE 'no answer within %'";
    let begin = Instant::now();
    while watched.count(timed_out).await? == 0 {
        ensure!(begin.elapsed() < LONG, "a mail that takes too long is given up and tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    watched.mail.mode(Mode::Ok)?;
    watched.told(7, 7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_down_alerts_and_its_incident_is_in_postgres_afterwards_once() -> Result<()> {
    let mut watched = Watched::start(&format!("{POSTGRES}{LEADER}"), "2s").await?;
    let first = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    watched.cluster.postgres.kill();
    watched.reached(1, 1).await?;
    assert_eq!(watched.subjects()[0], "[dodo] postgres-down fired (critical)");
    // What is measured in Postgres vanishes; each says so and why. The lag of a cluster that never ran is absent too.
    until(|| {
        watched
            .web
            .messages()
            .iter()
            .any(|message| message["text"].as_str().is_some_and(|text| text.contains("vanished:leader fired")))
    })
    .await?;
    let spool = watched.cluster.dir.path().join("spool/incidents.ndjson");
    assert!(std::fs::read_to_string(&spool)?.contains("postgres-down"), "it is on disk");
    // A sentinel that is killed meanwhile, and its successor: nobody is told twice.
    drop(first);
    let _second = watched.sentinel(&[])?;
    watching(&watched.cluster, 2).await?;
    let fired = |subjects: &[String]| subjects.iter().filter(|subject| subject.contains("postgres-down fired")).count();
    assert_eq!(fired(&watched.subjects()), 1);

    watched.cluster.postgres.restart()?;
    until(|| watched.subjects().iter().any(|subject| subject == "[dodo] postgres-down resolved (critical)")).await?;
    until(|| watched.subjects().iter().any(|subject| subject.contains("vanished:leader resolved"))).await?;
    until(|| std::fs::read_to_string(&spool).is_ok_and(|text| text.is_empty())).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What was under way at the kill may arrive again, and is known by its Message-ID.
    let told: BTreeMap<String, String> = watched
        .mail
        .mails()
        .iter()
        .filter_map(|mail| Some((mail.header("Message-ID")?.to_owned(), mail.header("Subject")?.to_owned())))
        .collect();
    let subjects: BTreeSet<&String> = told.values().collect();
    assert_eq!(subjects.len(), told.len(), "each is told once: {told:?}");
    assert_eq!(fired(&watched.subjects()), 1);
    assert_eq!(watched.count("SELECT count(*) FROM incident WHERE rule = 'postgres-down'").await?, 1);
    let whole = "SELECT count(*) FROM incident i WHERE rule = 'postgres-down' AND resolved_at > fired_at
                   AND (SELECT count(*) FROM notice n WHERE n.incident = i.id AND delivered_at IS NOT NULL) = 4";
    assert_eq!(watched.count(whole).await?, 1, "with both notices of both channels");
    assert_eq!(watched.count("SELECT count(*) FROM notice WHERE delivered_at IS NULL").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_metric_that_vanishes_alerts() -> Result<()> {
    let watched = Watched::start(LEADER, "1500ms").await?;
    // The streams of a cluster that runs.
    watched.cluster.redis_command(&["XGROUP", "CREATE", "dodo:jobs:fetch", "workers", "0", "MKSTREAM"]).await?;
    let _sentinel = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(watched.subjects(), [String::new(); 0], "every metric is there");
    let sql = watched.cluster.sql().await?;
    let ways: [(&str, &str, &[&str]); 3] = [
        (
            "ALTER TABLE manifest_refresh RENAME TO gone",
            "ALTER TABLE gone RENAME TO manifest_refresh",
            &["manifest_refreshes"],
        ),
        (
            "REVOKE SELECT ON leader_lease FROM dodo_pipeline",
            "GRANT SELECT ON leader_lease TO dodo_pipeline",
            &["leader"],
        ),
        (
            "REVOKE SELECT ON worker FROM dodo_pipeline",
            "GRANT SELECT ON worker TO dodo_pipeline",
            &["heartbeat_age_ms", "workers_lost", "workers_ready"],
        ),
    ];
    let mut expected = Vec::new();
    for (away, back, metrics) in ways {
        sql.batch_execute(away).await?;
        expected.extend(metrics.iter().map(|metric| format!("[dodo] vanished:{metric} fired (warning)")));
        watched.reached(expected.len(), expected.len()).await?;
        sql.batch_execute(back).await?;
        expected.extend(metrics.iter().map(|metric| format!("[dodo] vanished:{metric} resolved (warning)")));
        watched.reached(expected.len(), expected.len()).await?;
    }
    watched.cluster.redis_command(&["DEL", "dodo:jobs:fetch"]).await?;
    expected.push("[dodo] vanished:lag fired (warning)".to_owned());
    watched.told(expected.len(), expected.len()).await?;
    let mut subjects = watched.subjects();
    subjects.sort();
    expected.sort();
    assert_eq!(subjects, expected);
    let body = watched.mail.mails()[0].body();
    assert!(body.starts_with("manifest_refreshes has vanished: no sample for 1"), "{body}");
    assert!(body.contains("relation \"manifest_refresh\" does not exist"), "it says why: {body}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_killed_between_alarm_and_delivery_tells_it_all_the_same() -> Result<()> {
    let mut watched = Watched::start(LEADER, "1h").await?;
    let mut first = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    watched.mail.down();
    watched.web.mode(Mode::Slow);
    watched.lead(false).await?;
    watched.opened(1).await?;
    first.kill();
    assert_eq!((watched.mail.mails().len(), watched.web.messages().len()), (0, 0));
    watched.mail.up()?;
    watched.web.mode(Mode::Ok);
    let mut second = watched.sentinel(&[])?;
    watched.told(1, 1).await?;
    // It goes on with the open incident: one row, and its end is told by whoever lives then.
    assert_eq!(watched.count("SELECT count(*) FROM incident").await?, 1);
    second.kill();
    watched.lead(true).await?;
    let third = watched.sentinel(&[])?;
    watched.told(2, 2).await?;
    assert_eq!(watched.count("SELECT count(*) FROM incident WHERE resolved_at IS NOT NULL").await?, 1);
    assert_eq!(watched.mail.mails()[1].header("References"), watched.mail.mails()[0].header("Message-ID"));

    // Told to stop, it stops at once.
    let mut third = third;
    third.signal(Signal::SIGTERM);
    assert_eq!(third.ended(Duration::from_secs(5)).await?, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sentinels_make_one_incident_and_one_notice() -> Result<()> {
    let mut watched = Watched::start(&format!("{LEADER}{POSTGRES}"), "1h").await?;
    let other = watched.cluster.dir.path().join("other");
    let _one = watched.sentinel(&[])?;
    let _two = watched.sentinel(&[
        ("DODO_SENTINEL_SPOOL", &other.join("spool").display().to_string()),
        ("DODO_LOG_DIR", &other.join("log").display().to_string()),
    ])?;
    watching(&watched.cluster, 1).await?;
    until(|| other.join("log/sentinel").exists()).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    watched.lead(false).await?;
    watched.told(1, 1).await?;
    watched.lead(true).await?;
    watched.told(2, 2).await?;
    assert_eq!(watched.count("SELECT count(*) FROM incident").await?, 1);
    // Without Postgres neither knows of the other, and both tell; in Postgres it is one incident again.
    watched.cluster.postgres.kill();
    watched.reached(4, 4).await?;
    watched.cluster.postgres.restart()?;
    until(|| watched.subjects().iter().any(|subject| subject.contains("postgres-down resolved"))).await?;
    let spools = [watched.cluster.dir.path().join("spool"), other.join("spool")];
    until(|| {
        spools.iter().all(|spool| std::fs::read(spool.join("incidents.ndjson")).is_ok_and(|text| text.is_empty()))
    })
    .await?;
    assert_eq!(watched.count("SELECT count(*) FROM incident WHERE rule = 'postgres-down'").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_what_the_servers_show() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let db = Db::pipeline(&cluster.postgres.url(), "test", 4)?;
    let redis = Redis::new(&cluster.redis.url(), "test")?;
    let look = async || -> BTreeMap<&'static str, Look> {
        let found = snapshot::look(&db, &redis, |_| 60_000).await;
        found.looks.into_iter().map(|(metric, look)| (metric.as_str(), look)).collect()
    };
    let level = |looks: &BTreeMap<&str, Look>, name: &str| match &looks[name] {
        Look::Level(value) => *value,
        other => panic!("{name}: {other:?}"),
    };
    let events = |looks: &BTreeMap<&str, Look>, name: &str| match &looks[name] {
        Look::Events(events) => events.iter().map(|(_, count)| count).sum::<i64>(),
        other => panic!("{name}: {other:?}"),
    };
    let before = look().await;
    assert_eq!(before.len(), Metric::ALL.len());
    assert_eq!((level(&before, "leader"), level(&before, "workers_ready")), (0.0, 0.0));
    assert!(matches!(&before["lag"], Look::Absent(_)), "there are no streams yet");

    let _scheduler = cluster.scheduler().await?;
    let mut first = cluster.worker()?;
    let mut second = cluster.worker()?;
    let start = Instant::now();
    while level(&look().await, "workers_ready") < 2.0 {
        ensure!(start.elapsed() < LONG, "two workers are ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let looks = look().await;
    for (name, expected) in [
        ("leader", 1.0),
        ("postgres_up", 1.0),
        ("redis_up", 1.0),
        ("oldest_due_ms", 0.0),
        ("horizon_age_ms", 0.0),
        ("lag", 0.0),
    ] {
        assert_eq!(level(&looks, name), expected, "{name}");
    }
    assert!(level(&looks, "heartbeat_age_ms") < 2000.0);
    assert_eq!(
        (events(&looks, "workers_lost"), events(&looks, "dead_jobs"), events(&looks, "manifest_refreshes")),
        (0, 0, 0)
    );

    // A drain ends one worker, a kill loses the other; only the latter is an event.
    first.signal(Signal::SIGTERM);
    first.ended(LONG).await?;
    second.kill();
    let start = Instant::now();
    while events(&look().await, "workers_lost") != 1 {
        ensure!(start.elapsed() < LONG, "one worker is lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(level(&look().await, "workers_ready"), 0.0);

    cluster
        .sql()
        .await?
        .batch_execute(
            "INSERT INTO manifest_refresh (at, ok) SELECT clock_timestamp() - s * interval '10 s', s <> 3 FROM generate_series(1, 9) s;
             INSERT INTO crawl_log (tenant, id, dispatch, kind, host, priority, attempt, depth, hops, created_at, outcome)
             SELECT 'default', gen_random_uuid(), gen_random_uuid(), 'noop', '', 0, 5, 0, 0, now(), o FROM unnest(ARRAY['dead', 'dead', 'ok']) o;
             INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, run_at)
             SELECT 'default', gen_random_uuid(), gen_random_uuid(), 'crawl', 'http://h' || h, now() - h * interval '1 min' FROM generate_series(1, 7) h",
        )
        .await?;
    cluster.redis_command(&["XADD", "dodo:items", "1000-0", "t", "x"]).await?;
    cluster.redis_command(&["XADD", "dodo:jobs:fetch", "*", "t", "x"]).await?;
    let looks = look().await;
    assert_eq!((events(&looks, "manifest_refreshes"), events(&looks, "dead_jobs")), (4, 2));
    let oldest = level(&looks, "oldest_due_ms");
    assert!((420_000.0..480_000.0).contains(&oldest), "{oldest}");
    assert!(level(&looks, "horizon_age_ms") > 1e12, "as old as the epoch");
    assert!(level(&looks, "lag") >= 1.0);

    cluster.redis.kill();
    let looks = look().await;
    assert_eq!((level(&looks, "redis_up"), level(&looks, "postgres_up")), (0.0, 1.0));
    for name in ["lag", "horizon_age_ms", "workers_ready", "heartbeat_age_ms"] {
        assert!(matches!(&looks[name], Look::Absent(why) if why.contains("Redis")), "{name}: {:?}", looks[name]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_refreshes_on_average_alert() -> Result<()> {
    let rule = "  - {name: manifests, metric: manifest_refreshes, aggregate: avg, per: 1s, window: 3s, comparison: below, \
                threshold: 0.5, for: 0s, clear_for: 0s, grace: 1m, severity: warning}\n";
    let watched = Watched::start(rule, "1h").await?;
    let sql = watched.cluster.sql().await?;
    let refresh = "INSERT INTO manifest_refresh (ok) VALUES (true), (true), (true)";
    let _sentinel = watched.sentinel(&[])?;
    watching(&watched.cluster, 1).await?;
    assert_eq!(watched.web.messages().len(), 0, "a cluster that has just begun has its grace");
    sql.batch_execute(refresh).await?;
    watched.reached(1, 1).await?;
    let body = watched.mail.mails()[0].body();
    assert!(body.starts_with("manifest_refreshes: avg per 1 s over 3 s is 0, below 0.5\n"), "{body}");
    sql.batch_execute("INSERT INTO manifest_refresh (ok) VALUES (false), (false), (false)").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(watched.web.messages().len(), 1, "a refresh that failed is none");
    sql.batch_execute(refresh).await?;
    watched.reached(2, 2).await?;
    let body = watched.mail.mails()[1].body();
    assert!(body.starts_with("manifest_refreshes: avg per 1 s over 3 s is 1, not below 0.5\n"), "{body}");
    Ok(())
}

/// A notice to send without a sentinel.
fn notice() -> Result<Notice> {
    let text = json!({
        "id": uuid::Uuid::now_v7(), "rule": "r", "metric": "lag", "severity": "info", "summary": "s", "advice": "",
        "fired_at": "2026-01-01T00:00:00Z", "resolved_at": null, "outcome": null,
    });
    Ok(Notice { incident: serde_json::from_value::<Incident>(text)?, event: NoticeEvent::Fired })
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_by_the_tls_that_was_asked_for_or_not_at_all() -> Result<()> {
    dodo_common::install_tls_provider();
    let sinks = [MailSink::start("starttls")?, MailSink::start("tls")?, MailSink::start("plain")?];
    let channels = |url: String, ca: bool| Channels {
        smtp_url: Some(url),
        smtp_timeout_ms: 3000,
        smtp_ca_file: ca.then(|| sinks[0].ca_file()),
        mail_from: Some("dodo@example.com".to_owned()),
        mail_to: Some("ops@example.org".to_owned()),
        ..Channels::default()
    };
    let send = async |given: Channels| -> Result<(), String> {
        let open = Channel::open(&given)?;
        open[0].deliver(&notice().map_err(|error| error.to_string())?).await.map_err(|refusal| refusal.text)
    };
    for sink in &sinks {
        let mut given = channels(sink.url(), false);
        given.smtp_ca_file = Some(sink.ca_file());
        assert_eq!(send(given).await, Ok(()), "{}", sink.url());
        let mails = sink.mails();
        assert_eq!((mails.len(), mails[0].tls), (1, !sink.url().starts_with("smtp:")));
    }
    // A certificate of a CA that is not trusted, another one's CA, no STARTTLS where it is required, a wrong password.
    let error = send(channels(sinks[0].url(), false)).await.expect_err("an unknown CA");
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = send(channels(sinks[1].url(), true)).await.expect_err("another CA");
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = send(channels(format!("smtp+starttls://127.0.0.1:{}", sinks[2].port), true)).await.expect_err("none");
    assert!(error.to_lowercase().contains("starttls"), "{error}");
    let error = send(channels(sinks[0].url().replace("s3cr3t", "wr0ng"), true)).await.expect_err("a wrong password");
    assert!(error.contains("535") && !error.contains("wr0ng"), "{error}");
    assert_eq!(sinks.iter().map(|sink| sink.mails().len()).sum::<usize>(), 3);
    Ok(())
}

#[test]
fn wrong_settings_are_one_clear_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rules = dir.path().join("rules.yaml");
    std::fs::write(
        &rules,
        format!("absent_after: 1m\nabsent_severity: info\nrules:\n{}", LEADER.replace("below", "beneath")),
    )?;
    let rules = rules.display().to_string();
    let run = |arguments: &[&str], env: &[(&str, &str)]| {
        let mut command = std::process::Command::new(dodo_program());
        command.arg("sentinel").args(arguments).envs(env.iter().copied()).current_dir(dir.path());
        let out = command.env("DODO_LOG_DIR", dir.path()).output().expect("dodo runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    for (arguments, env, expected) in [
        (vec!["--rules", &rules], vec![], "rule no-leader: rules[0].comparison: unknown variant `beneath`"),
        (vec!["--check", "--rules", "/no/such/rules"], vec![], "cannot read the rules /no/such/rules"),
        (vec![], vec![("DODO_SENTINEL_RULES", "/no/such/rules")], "--print-rules"),
        (vec!["--check"], vec![("DODO_SLACK_WEBHOOK", "s3cr3t")], "DODO_SLACK_WEBHOOK"),
        (vec!["--check"], vec![("DODO_SMTP_URL", "smtp://u:s3cr3t@h")], "DODO_MAIL_FROM"),
        (vec!["--check"], vec![("DODO_MAIL_TO", "a@b.example")], "DODO_SMTP_URL"),
    ] {
        let (code, _, error) = run(&arguments, &env);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.lines().count() == 1 && error.contains(expected) && !error.contains("s3cr3t"), "{error}");
    }
    let (code, _, error) = run(&["--every-ms", "1"], &[]);
    assert!(code == Some(2) && error.contains("--every-ms"), "{error}");
    std::fs::write(dir.path().join("file"), "")?;
    let (code, _, error) = run(&["--spool", "file/spool"], &[]);
    let last = error.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.contains("DODO_SENTINEL_SPOOL"), "{error}");
    let (code, _, error) = run(&[], &[("DODO_REDIS_URL", "not a url")]);
    assert!(code == Some(1) && error.contains("DODO_REDIS_URL") && !error.contains("panicked"), "{error}");

    // What is printed is what is checked, as text and as JSON.
    let (code, printed, _) = run(&["--print-rules"], &[]);
    assert_eq!(code, Some(0));
    std::fs::write(dir.path().join("copy.yaml"), printed)?;
    let (code, said, error) = run(&["--check", "--json", "--rules", "copy.yaml"], &[]);
    assert_eq!(code, Some(0), "{error}");
    let checked: Value = serde_json::from_str(&said)?;
    let (_, printed, _) = run(&["--print-rules", "--json"], &[]);
    let printed: Value = serde_json::from_str(&printed)?;
    assert_eq!(checked["rules"].as_u64(), printed["rules"].as_array().map(|rules| rules.len() as u64));

    // `dodo up` refuses to start with them too, before anything runs.
    let out = std::process::Command::new(dodo_program())
        .args(["up", "--port", "0", "--data"])
        .arg(dir.path().join("data"))
        .env("DODO_SENTINEL_RULES", "/no/such/rules")
        .output()?;
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && error.lines().count() == 1 && error.contains("/no/such/rules"), "{error}");
    assert!(!dir.path().join("data").exists());
    Ok(())
}

/// What tells a child's command line; arguments end with a zero byte.
const WORKER: &str = "/dodo-worker\0";
const SENTINEL: &str = "\0sentinel\0";

/// The processes of a `dodo up` whose log directory is below `dir` and whose command line has `word`.
fn children(dir: &std::path::Path, word: &str) -> Vec<i32> {
    let needle = format!("DODO_LOG_DIR={}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let env = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        if has(&line, word) && has(&env, &needle) {
            found.push(pid);
        }
    }
    found
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_up_a_rolling_restart_is_silent_and_killed_workers_alert_within_15_s() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("dodo-up-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let (mail, web) = (MailSink::start("starttls")?, WebSink::start()?);
    let mut up = std::process::Command::new(dodo_program())
        .args(["up", "--port", "0", "--workers", "3", "--sample", "--delay", "100", "--data"])
        .arg(dir.path())
        .env("DODO_SLACK_WEBHOOK", web.url())
        .env("DODO_SMTP_URL", mail.url())
        .env("DODO_SMTP_CA_FILE", mail.ca_file())
        .env("DODO_MAIL_FROM", "dodo@example.com")
        .env("DODO_MAIL_TO", "ops@example.org")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let alive = |count: usize| children(dir.path(), WORKER).len() == count;
    until(|| alive(3) && children(dir.path(), SENTINEL).len() == 1).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;

    // A rolling restart: each worker drains and is followed by another. Then all of them at once.
    let before = children(dir.path(), WORKER);
    for pid in &before {
        send(&[*pid], Signal::SIGTERM);
        until(|| !children(dir.path(), WORKER).contains(pid) && alive(3)).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    send(&children(dir.path(), WORKER), Signal::SIGTERM);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(web.messages(), Vec::<Value>::new(), "a drain is no incident");
    assert!(mail.mails().is_empty() && alive(3));

    // A sentinel that dies is started again, and it is the successor that tells.
    let sentinel = children(dir.path(), SENTINEL);
    send(&sentinel, Signal::SIGKILL);
    until(|| children(dir.path(), SENTINEL).iter().any(|pid| !sentinel.contains(pid))).await?;
    let killed = Instant::now();
    send(&children(dir.path(), WORKER), Signal::SIGKILL);
    until(|| !mail.mails().is_empty() && !web.messages().is_empty()).await?;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(mail.mails()[0].header("Subject"), Some("[dodo] workers-lost fired (critical)"));
    let body = mail.mails()[0].body();
    assert!(body.starts_with("workers_lost: sum over 1 m is ") && body.contains("died without draining"), "{body}");
    assert_eq!(web.messages()[0]["text"], ":rotating_light: *workers-lost fired (critical)*");
    send(&[up.id() as i32], Signal::SIGINT);
    until(|| up.try_wait().is_ok_and(|status| status.is_some())).await?;
    until(|| children(dir.path(), "dodo").is_empty()).await?;
    Ok(())
}
