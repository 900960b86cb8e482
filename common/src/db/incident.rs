//! Incidents and the outbox of their notices.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::db::pool::{Db, DbResult, Transaction};
use crate::run_tx;

/// Resolved incidents are kept this long, days.
const KEEP_DAYS: i32 = 90;

/// Something was wrong from one time to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub id: Uuid,
    pub rule: String,
    pub metric: String,
    /// info, warning or critical.
    pub severity: String,
    /// What was seen when it fired.
    pub summary: String,
    /// What the rule says to the person who reads it.
    pub advice: String,
    pub fired_at: DateTime<Utc>,
    pub resolved_at: Option<DateTime<Utc>>,
    /// What was seen when it was resolved.
    pub outcome: Option<String>,
}

/// What a notice tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoticeEvent {
    Fired,
    Resolved,
}

impl NoticeEvent {
    pub fn as_str(self) -> &'static str {
        match self {
            NoticeEvent::Fired => "fired",
            NoticeEvent::Resolved => "resolved",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "resolved" { NoticeEvent::Resolved } else { NoticeEvent::Fired }
    }
}

/// Names a notice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NoticeKey {
    pub incident: Uuid,
    pub event: NoticeEvent,
    pub channel: String,
}

/// One notice on one channel, as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Delivery {
    pub event: NoticeEvent,
    pub channel: String,
    pub attempts: i32,
    pub delivered_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
}

/// A notice that nobody has delivered yet, with the incident it is about.
#[derive(Clone, Debug)]
pub struct Claim {
    pub incident: Incident,
    pub key: NoticeKey,
    pub attempts: i32,
}

/// A notice that a spool kept while the database was away.
#[derive(Clone, Debug)]
pub struct Kept {
    pub key: NoticeKey,
    pub attempts: i32,
    /// Not before this many milliseconds from now: it may be under way.
    pub wait_ms: i64,
}

/// How an incident ended.
#[derive(Clone, Copy, Debug)]
pub struct Resolution<'a> {
    pub rule: &'a str,
    pub at: DateTime<Utc>,
    /// What was seen.
    pub outcome: &'a str,
}

/// Opens an incident with its notices; if its rule has an open one already, that one is the answer.
pub async fn open(db: &Db, incident: &Incident, channels: &[String]) -> DbResult<Incident> {
    run_tx!(db, "open-incident", |tx| {
        if insert(tx, incident).await? {
            tx.execute(
                "-- open-notices
                 INSERT INTO notice (incident, event, channel) SELECT $1, 'fired', unnest($2::text[])",
                &[&incident.id, &channels],
            )
            .await?;
            return Ok(incident.clone());
        }
        let row = tx
            .query_opt(
                "-- same-incident\nSELECT * FROM incident WHERE rule = $1 AND resolved_at IS NULL",
                &[&incident.rule],
            )
            .await?;
        Ok(row.map_or_else(|| incident.clone(), |row| of_row(&row)))
    })
}

/// Resolves the open incident of a rule; false means that another sentinel was first.
pub async fn resolve(db: &Db, end: Resolution<'_>, channels: &[String]) -> DbResult<bool> {
    let client = db.client().await?;
    let row = client
        .query_one(
            "-- resolve-incident
             WITH closed AS (
               UPDATE incident SET resolved_at = $2, outcome = $3 WHERE rule = $1 AND resolved_at IS NULL RETURNING id),
             noticed AS (
               INSERT INTO notice (incident, event, channel) SELECT id, 'resolved', c FROM closed, unnest($4::text[]) c)
             SELECT count(*) FROM closed",
            &[&end.rule, &end.at, &end.outcome, &channels],
        )
        .await?;
    Ok(row.get::<_, i64>(0) > 0)
}

/// Every open incident.
pub async fn unresolved(db: &Db) -> DbResult<Vec<Incident>> {
    let client = db.client().await?;
    let rows = client.query("-- unresolved\nSELECT * FROM incident WHERE resolved_at IS NULL", &[]).await?;
    Ok(rows.iter().map(of_row).collect())
}

/// Open incidents first, then the latest, each with its notices.
pub async fn list(db: &Db, limit: i64) -> DbResult<Vec<(Incident, Vec<Delivery>)>> {
    let client = db.client().await?;
    let rows = client
        .query(
            "-- list-incidents
             SELECT * FROM (
               SELECT * FROM incident WHERE resolved_at IS NULL
               UNION (SELECT * FROM incident WHERE resolved_at IS NOT NULL ORDER BY fired_at DESC, id DESC LIMIT $1)) t
              ORDER BY resolved_at IS NOT NULL, fired_at DESC, id DESC LIMIT $1",
            &[&limit],
        )
        .await?;
    let mut listed: Vec<(Incident, Vec<Delivery>)> = rows.iter().map(|row| (of_row(row), Vec::new())).collect();
    let ids: Vec<Uuid> = listed.iter().map(|(incident, _)| incident.id).collect();
    let notices = client
        .query(
            "-- list-notices\nSELECT * FROM notice WHERE incident = ANY($1) ORDER BY incident, event, channel",
            &[&ids],
        )
        .await?;
    for row in &notices {
        let id: Uuid = row.get("incident");
        if let Some((_, deliveries)) = listed.iter_mut().find(|(incident, _)| incident.id == id) {
            deliveries.push(Delivery {
                event: NoticeEvent::parse(row.get("event")),
                channel: row.get("channel"),
                attempts: row.get("attempts"),
                delivered_at: row.get("delivered_at"),
                last_error: row.get("last_error"),
            });
        }
    }
    Ok(listed)
}

/// Takes the next due notice of a channel for `lease_ms`: if its taker dies, it is due again after that.
/// A resolution waits until its alarm was delivered.
pub async fn claim(db: &Db, channel: &str, lease_ms: i64) -> DbResult<Option<Claim>> {
    let client = db.client().await?;
    let row = client
        .query_opt(
            "-- claim-notice
             WITH due AS (
               SELECT n.incident, n.event FROM notice n
                WHERE n.channel = $1 AND n.delivered_at IS NULL AND n.next_at <= clock_timestamp()
                  AND (n.event = 'fired' OR NOT EXISTS (
                        SELECT 1 FROM notice f WHERE f.incident = n.incident AND f.event = 'fired'
                           AND f.channel = n.channel AND f.delivered_at IS NULL))
                ORDER BY n.next_at, n.incident LIMIT 1 FOR UPDATE SKIP LOCKED)
             UPDATE notice n SET attempts = n.attempts + 1,
                    next_at = clock_timestamp() + $2 * interval '1 millisecond'
               FROM due, incident i
              WHERE n.incident = due.incident AND n.event = due.event AND n.channel = $1 AND i.id = n.incident
             RETURNING i.*, n.event, n.attempts",
            &[&channel, &(lease_ms as f64)],
        )
        .await?;
    Ok(row.map(|row| {
        let incident = of_row(&row);
        let event = NoticeEvent::parse(row.get("event"));
        let key = NoticeKey { incident: incident.id, event, channel: channel.to_owned() };
        Claim { incident, key, attempts: row.get("attempts") }
    }))
}

/// The notice has arrived.
pub async fn delivered(db: &Db, key: &NoticeKey) -> DbResult<()> {
    let client = db.client().await?;
    client
        .execute(
            "-- deliver-notice
             UPDATE notice SET delivered_at = coalesce(delivered_at, clock_timestamp()), last_error = NULL
              WHERE incident = $1 AND event = $2 AND channel = $3",
            &[&key.incident, &key.event.as_str(), &key.channel],
        )
        .await?;
    Ok(())
}

/// The notice could not be delivered; it is due again in `wait_ms`.
pub async fn put_off(db: &Db, key: &NoticeKey, wait_ms: i64, error: &str) -> DbResult<()> {
    let client = db.client().await?;
    client
        .execute(
            "-- put-off-notice
             UPDATE notice SET next_at = clock_timestamp() + $4 * interval '1 millisecond', last_error = $5
              WHERE incident = $1 AND event = $2 AND channel = $3 AND delivered_at IS NULL",
            &[&key.incident, &key.event.as_str(), &key.channel, &(wait_ms as f64), &error],
        )
        .await?;
    Ok(())
}

/// Forgets incidents resolved long ago.
pub async fn expire(db: &Db) -> DbResult<u64> {
    let client = db.client().await?;
    let count = client
        .execute(
            "-- expire-incidents\nDELETE FROM incident WHERE resolved_at < clock_timestamp() - $1 * interval '1 day'",
            &[&f64::from(KEEP_DAYS)],
        )
        .await?;
    Ok(count)
}

/// Replays run one after another, so that two sentinels see what the other has brought.
pub async fn begin_replay(tx: &Transaction<'_>) -> DbResult<()> {
    tx.execute("SELECT pg_advisory_xact_lock(hashtext('dodo-incident-replay'))", &[]).await?;
    Ok(())
}

/// Brings a spooled incident; the answer is its id here, which is that of an incident of the same rule
/// at the same time if there is one.
pub async fn replay_incident(tx: &Transaction<'_>, incident: &Incident) -> DbResult<Uuid> {
    let same = tx
        .query_opt(
            "-- replay-incident
             SELECT id FROM incident
              WHERE id = $1
                 OR (rule = $2 AND fired_at <= coalesce($4, 'infinity'::timestamptz)
                     AND coalesce(resolved_at, 'infinity') >= $3)
              ORDER BY id <> $1, fired_at DESC LIMIT 1",
            &[&incident.id, &incident.rule, &incident.fired_at, &incident.resolved_at],
        )
        .await?;
    let id = match same {
        Some(row) => row.get(0),
        None => {
            insert(tx, incident).await?;
            incident.id
        }
    };
    if let Some(at) = incident.resolved_at {
        tx.execute(
            "-- replay-resolution\nUPDATE incident SET resolved_at = $2, outcome = $3 WHERE id = $1 AND resolved_at IS NULL",
            &[&id, &at, &incident.outcome],
        )
        .await?;
    }
    Ok(id)
}

/// Brings a spooled notice that is still to be delivered.
pub async fn replay_notice(tx: &Transaction<'_>, kept: &Kept) -> DbResult<()> {
    let key = &kept.key;
    tx.execute(
        "-- replay-notice
         INSERT INTO notice (incident, event, channel, attempts, next_at)
         SELECT id, $2, $3, $4, clock_timestamp() + $5 * interval '1 millisecond' FROM incident WHERE id = $1
         ON CONFLICT DO NOTHING",
        &[&key.incident, &key.event.as_str(), &key.channel, &kept.attempts, &(kept.wait_ms as f64)],
    )
    .await?;
    Ok(())
}

/// Brings the news that a notice was delivered while the database was away.
pub async fn replay_delivery(tx: &Transaction<'_>, key: &NoticeKey, at: DateTime<Utc>) -> DbResult<()> {
    tx.execute(
        "-- replay-delivery
         INSERT INTO notice (incident, event, channel, attempts, delivered_at)
         SELECT id, $2, $3, 1, $4 FROM incident WHERE id = $1
         ON CONFLICT (incident, event, channel) DO UPDATE SET delivered_at = coalesce(notice.delivered_at, $4), last_error = NULL",
        &[&key.incident, &key.event.as_str(), &key.channel, &at],
    )
    .await?;
    Ok(())
}

/// False when the rule has an open incident, or this one is here already.
async fn insert(tx: &Transaction<'_>, incident: &Incident) -> DbResult<bool> {
    let count = tx
        .execute(
            "-- open-incident
             INSERT INTO incident (id, rule, metric, severity, summary, advice, fired_at, resolved_at, outcome)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            &[
                &incident.id,
                &incident.rule,
                &incident.metric,
                &incident.severity,
                &incident.summary,
                &incident.advice,
                &incident.fired_at,
                &incident.resolved_at,
                &incident.outcome,
            ],
        )
        .await?;
    Ok(count > 0)
}

fn of_row(row: &Row) -> Incident {
    Incident {
        id: row.get("id"),
        rule: row.get("rule"),
        metric: row.get("metric"),
        severity: row.get("severity"),
        summary: row.get("summary"),
        advice: row.get("advice"),
        fired_at: row.get("fired_at"),
        resolved_at: row.get("resolved_at"),
        outcome: row.get("outcome"),
    }
}
