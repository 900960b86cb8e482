//! A notice: what an alert says, whichever way it travels. It knows no provider.

use chrono::{DateTime, Utc};
use dodo_common::db::incident::{Incident, NoticeEvent};

/// One event of one incident, in words.
#[derive(Clone, Debug)]
pub struct Notice {
    pub incident: Incident,
    pub event: NoticeEvent,
}

impl Notice {
    /// When it happened; the same however often the notice is sent.
    pub fn at(&self) -> DateTime<Utc> {
        match self.event {
            NoticeEvent::Fired => self.incident.fired_at,
            NoticeEvent::Resolved => self.incident.resolved_at.unwrap_or(self.incident.fired_at),
        }
    }

    /// `workers-lost fired (critical)`.
    pub fn headline(&self) -> String {
        let Incident { rule, severity, .. } = &self.incident;
        match self.event {
            NoticeEvent::Fired => format!("{rule} fired ({severity})"),
            NoticeEvent::Resolved => format!("{rule} resolved ({severity})"),
        }
    }

    /// What was seen, and what to do about it or how long it took.
    pub fn lines(&self) -> Vec<String> {
        let incident = &self.incident;
        let mut lines = Vec::new();
        match self.event {
            NoticeEvent::Fired => {
                lines.push(incident.summary.clone());
                if !incident.advice.is_empty() {
                    lines.push(incident.advice.clone());
                }
            }
            NoticeEvent::Resolved => {
                lines.extend(incident.outcome.clone());
                let lasted = self.at() - incident.fired_at;
                lines.push(format!("It lasted {} s. When it fired: {}", lasted.num_seconds(), incident.summary));
            }
        }
        lines
    }

    /// `Fired 2026-11-21 06:29:40 UTC, incident 0198...`.
    pub fn footer(&self) -> String {
        let verb = match self.event {
            NoticeEvent::Fired => "Fired",
            NoticeEvent::Resolved => "Resolved",
        };
        format!("{verb} {}, incident {}", self.at().format("%Y-%m-%d %H:%M:%S UTC"), self.incident.id)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An incident that fired at 1,000 s and was resolved after 90 s.
    pub fn notice(event: NoticeEvent) -> Notice {
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        let incident = Incident {
            id: uuid::Uuid::from_u128(7),
            rule: "lag".to_owned(),
            metric: "lag".to_owned(),
            severity: "warning".to_owned(),
            summary: "lag: min over 2 m is 2500, above 2000".to_owned(),
            advice: "See <dodo workers> & co.".to_owned(),
            fired_at: at(1000).expect("a time"),
            resolved_at: at(1090),
            outcome: Some("lag: min over 2 m is 3, not above 2000".to_owned()),
        };
        Notice { incident, event }
    }

    #[test]
    fn it_says_what_was_seen_and_what_to_do() {
        let fired = notice(NoticeEvent::Fired);
        assert_eq!(fired.headline(), "lag fired (warning)");
        assert_eq!(fired.lines(), ["lag: min over 2 m is 2500, above 2000", "See <dodo workers> & co."]);
        assert_eq!(fired.footer(), "Fired 1970-01-01 00:16:40 UTC, incident 00000000-0000-0000-0000-000000000007");
        let resolved = notice(NoticeEvent::Resolved);
        assert_eq!(resolved.headline(), "lag resolved (warning)");
        assert_eq!(resolved.lines()[1], "It lasted 90 s. When it fired: lag: min over 2 m is 2500, above 2000");
    }
}
