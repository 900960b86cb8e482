//! What is told, by which channel, how often and in which words.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dodo_common::db::incident::{Incident, NoticeEvent};
use dodo_scheduler::sentinel::channel::Channel;
use dodo_scheduler::sentinel::channel::settings::Channels;
use dodo_scheduler::sentinel::notice::Notice;
use serde_json::{Value, json};

use crate::sentinel::{LEADER, LONG, Watched, watching};
use crate::sink::{MailSink, Mode};

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
        assert!(start.elapsed() < LONG / 2, "round {round} took {:?}", start.elapsed());
    }
    assert_eq!(watched.web.messages().len(), 0);
    // The other way round: mail takes for ever, and Slack hears at once of what comes next.
    watched.web.mode(Mode::Ok);
    watched.mail.mode(Mode::Slow)?;
    watched.reached(6, 6).await?;
    let start = Instant::now();
    watched.lead(false).await?;
    watched.reached(6, 7).await?;
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    let timed_out = "SELECT count(*) FROM notice WHERE channel LIKE 'mail:%' AND last_error LIKE 'no answer within %'";
    let begin = Instant::now();
    while watched.count(timed_out).await? == 0 {
        ensure!(begin.elapsed() < LONG, "a mail that takes too long is given up and tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    watched.mail.mode(Mode::Ok)?;
    watched.told(7, 7).await
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
