//! What a spool remembers, and in which order it tells.

use super::*;
use crate::sentinel::notice::tests::notice;

fn event(event: NoticeEvent) -> Line {
    let mut incident = notice(event).incident;
    if event == NoticeEvent::Fired {
        incident.resolved_at = None;
        incident.outcome = None;
    }
    Line::Event { event, incident, channels: vec!["slack".to_owned(), "mail:a@b".to_owned()] }
}

fn delivered(event: NoticeEvent, channel: &str) -> Line {
    let key = NoticeKey { incident: Uuid::from_u128(7), event, channel: channel.to_owned() };
    Line::Delivered(Told { key, at: DateTime::default() })
}

#[test]
fn each_channel_hears_the_alarm_before_its_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut spool = Spool::open(dir.path()).expect("a spool");
    assert!(spool.claim("slack", 0, 1000).is_none());
    spool.push(event(NoticeEvent::Fired));
    spool.push(event(NoticeEvent::Resolved));
    assert_eq!(spool.claim("slack", 0, 1000).map(|claim| claim.key.event), Some(NoticeEvent::Fired));
    assert!(spool.claim("slack", 999, 1000).is_none(), "it is under way");
    let again = spool.claim("slack", 1000, 1000).expect("its taker took too long");
    assert_eq!((again.key.event, again.attempts), (NoticeEvent::Fired, 2));
    spool.put_off(&again.key, 5000);
    assert!(spool.claim("slack", 4999, 1000).is_none());
    spool.push(delivered(NoticeEvent::Fired, "slack"));
    assert_eq!(spool.claim("slack", 4999, 1000).map(|claim| claim.key.event), Some(NoticeEvent::Resolved));
    assert_eq!(spool.claim("mail:a@b", 4999, 1000).map(|claim| claim.key.event), Some(NoticeEvent::Fired));
}

#[test]
fn a_successor_goes_on_whatever_the_last_line_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut spool = Spool::open(dir.path()).expect("a spool");
    assert!(Spool::open(dir.path()).is_err(), "one sentinel a spool");
    spool.push(event(NoticeEvent::Fired));
    spool.push(delivered(NoticeEvent::Fired, "slack"));
    drop(spool);
    let file = dir.path().join(FILE);
    let mut text = fs::read_to_string(&file).expect("the file");
    text.push_str("{\"line\":\"event\",\"ev");
    fs::write(&file, text).expect("written");

    let mut spool = Spool::open(dir.path()).expect("a spool");
    assert_eq!(spool.unresolved().len(), 1);
    assert!(spool.claim("slack", 0, 1000).is_none(), "it was told");
    assert!(spool.claim("mail:a@b", 0, 1000).is_some());
    spool.push(event(NoticeEvent::Resolved));
    assert!(spool.unresolved().is_empty());
    let held = &spool.held(400)[0];
    assert_eq!((held.pending.len(), held.told.len()), (3, 1));
    assert_eq!(held.pending[0].wait_ms, 600);
    spool.settle(spool.len());
    assert!(Spool::is_empty(&spool));
    assert_eq!(fs::read_to_string(&file).expect("the file"), "");
}

#[test]
fn news_of_an_incident_in_postgres_is_a_stray() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut spool = Spool::open(dir.path()).expect("a spool");
    spool.push(delivered(NoticeEvent::Fired, "slack"));
    assert_eq!(spool.strays().len(), 1);
    assert!(spool.held(0).is_empty());
}

#[test]
fn it_is_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut spool = Spool::open(dir.path()).expect("a spool");
    for _ in 0..LINES_MAX {
        // Written at once below: a sync for each would only take time here.
        spool.lines.push(delivered(NoticeEvent::Fired, "slack"));
    }
    spool.lines.push(event(NoticeEvent::Resolved));
    for channel in ["slack", "mail:a@b"] {
        spool.lines.push(delivered(NoticeEvent::Resolved, channel));
    }
    spool.push(delivered(NoticeEvent::Resolved, "slack"));
    assert!(spool.len() < 5, "{}", spool.len());
}
