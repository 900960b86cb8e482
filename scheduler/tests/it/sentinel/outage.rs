//! Postgres away, sentinels killed, two sentinels: never no notice, and one incident.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::sentinel::{LEADER, LONG, POSTGRES, Watched, until, watching};
use crate::sink::Mode;

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
    let undelivered = "SELECT count(*) FROM notice WHERE delivered_at IS NULL";
    let begin = Instant::now();
    while watched.count(undelivered).await? > 0 {
        ensure!(begin.elapsed() < LONG, "some notices are never delivered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    assert_eq!(watched.count(undelivered).await?, 0);
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
async fn a_sentinel_killed_at_any_moment_owes_nobody_a_notice() -> Result<()> {
    let watched = Watched::start(LEADER, "1h").await?;
    for round in 0..10 {
        let mut sentinel = watched.sentinel(&[])?;
        watching(&watched.cluster, round + 1).await?;
        watched.lead(round % 2 == 1).await?;
        // From before it sees the change to after it has told of it.
        tokio::time::sleep(Duration::from_millis(70 * round as u64)).await;
        sentinel.kill();
    }
    watched.lead(true).await?;
    let _last = watched.sentinel(&[])?;
    watching(&watched.cluster, 11).await?;
    let begun = Instant::now();
    let waiting = "SELECT (SELECT count(*) FROM incident WHERE resolved_at IS NULL)
                        + (SELECT count(*) FROM notice WHERE delivered_at IS NULL)";
    while watched.count(waiting).await? > 0 {
        ensure!(begun.elapsed() < LONG, "something is still to be told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rows = watched.cluster.sql().await?.query("SELECT id::text FROM incident", &[]).await?;
    assert!(rows.len() > 1, "{}", rows.len());
    let (mails, messages) = (watched.mail.mails(), watched.web.messages());
    for row in rows {
        let id: String = row.get(0);
        for event in ["fired", "resolved"] {
            let message_id = format!("<{id}.{event}@example.com>");
            assert!(mails.iter().any(|mail| mail.header("Message-ID") == Some(&message_id)), "{message_id}");
            let told = |message: &&serde_json::Value| {
                let text = message.to_string();
                text.contains(&id) && text.contains(&format!("no-leader {event}"))
            };
            assert!(messages.iter().any(|message| told(&message)), "{id} {event}");
        }
    }
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
