use serde_json::Value;

use super::*;
use crate::storage::cdxj::CdxFields;
use crate::storage::segment::{Encoded, PageEntry, encode_ndjson, encode_warc, put_segment};

fn id(ms: u64) -> StreamId {
    StreamId::new(ms, 0)
}

fn items(generation: u64, range: std::ops::Range<u64>) -> Encoded {
    let entries: Vec<_> = range.map(|ms| (id(ms), json!({"n": ms}))).collect();
    encode_ndjson("acme", "items", generation, &entries).expect("lines")
}

/// Members that say no more than which they are.
fn pages(range: std::ops::Range<u64>) -> Encoded {
    let page = |ms: u64| PageEntry {
        id: id(ms),
        member: [&[0x1f, 0x8b, 8][..], &ms.to_be_bytes()].concat().leak(),
        cdx: CdxFields {
            surt: format!("com,example)/{ms}"),
            url: format!("http://example.com/{ms}"),
            date_ms: 0,
            mime: Some("text/html".to_owned()),
            status: 200,
            digest: "sha1:X".to_owned(),
        },
    };
    encode_warc("acme", "pages", 1, &range.map(page).collect::<Vec<_>>()).expect("a warc")
}

async fn bucket() -> Store {
    let store = Store::memory();
    for encoded in [items(1, 1..2501), items(1, 2501..2601), items(2, 1..11), pages(1..251)] {
        put_segment(&store, &encoded).await.expect("put");
    }
    store
}

fn select(stream: &str, from: u64, to: u64) -> Selection {
    Selection {
        tenant: "acme".to_owned(),
        stream: Some(stream.to_owned()),
        generation: Some(1),
        from: Some(id(from)),
        to: Some(id(to)),
    }
}

async fn read(store: &Store, selection: &Selection, form: PageForm) -> Vec<Line> {
    let mut lines = Vec::new();
    let sink = |line| {
        lines.push(line);
        Ok(())
    };
    cat(store, selection, form, sink).await.expect("readable");
    lines
}

#[tokio::test]
async fn a_listing_tells_complete_segments_and_their_ranges() {
    let store = bucket().await;
    let torn = items(1, 9000..9001);
    store.put(&torn.key.data(), torn.data.clone()).await.expect("data without a sidecar");
    let all = Selection { tenant: "acme".to_owned(), ..Selection::default() };
    let names = list(&store, &all).await.expect("list");
    let told: Vec<_> = names.iter().map(|n| (&*n.segment.stream, n.segment.generation, n.segment.last.ms)).collect();
    assert_eq!(told, [("items", 1, 2500), ("items", 1, 2600), ("items", 2, 10), ("pages", 1, 250)]);
    assert_eq!(list(&store, &select("items", 2501, 2501)).await.expect("list").len(), 1);
    let json = serde_json::to_value(&names[3]).expect("a name is JSON");
    assert_eq!((&json["stream"], &json["first"], &json["codec"]), (&json!("pages"), &json!("1-0"), &json!("warc.gz")));
}

#[tokio::test]
async fn lines_come_from_the_needed_frames_across_segments() {
    let store = bucket().await;
    let lines = read(&store, &select("items", 1999, 2502), PageForm::Json).await;
    assert_eq!(lines.len(), 504);
    assert_eq!(lines[0], Line { generation: 1, id: id(1999), bytes: Bytes::from("{\"id\":\"1999-0\",\"n\":1999}") });
    assert_eq!(lines[503].id, id(2502));
    let every = Selection { generation: None, from: None, to: None, ..select("items", 0, 0) };
    assert_eq!(read(&store, &every, PageForm::Json).await.len(), 2610);
}

#[tokio::test]
async fn pages_come_as_json_or_as_members() {
    let store = bucket().await;
    let lines = read(&store, &select("pages", 99, 101), PageForm::Json).await;
    let first: Value = serde_json::from_slice(&lines[0].bytes).expect("JSON");
    assert_eq!((&first["id"], &first["status"], &first["length"]), (&json!("99-0"), &json!(200), &json!(11)));
    assert_eq!(first["url"], "http://example.com/99");
    let members = read(&store, &select("pages", 99, 101), PageForm::Member).await;
    assert_eq!(members.iter().map(|line| line.bytes[10]).collect::<Vec<_>>(), [99, 100, 101]);
}

#[tokio::test]
async fn a_closed_output_ends_the_reading() {
    let store = bucket().await;
    let mut seen = 0;
    let sink = |_| {
        seen += 1;
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let outcome = cat(&store, &select("items", 1, 5), PageForm::Json, sink).await;
    assert!(matches!(outcome, Err(ReadError::Output(_))));
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn verify_all_names_every_fault() {
    let store = bucket().await;
    let report = verify_all(&store, "acme").await.expect("listed");
    assert!(report.len() == 4 && report.iter().all(|(_, outcome)| outcome.is_ok()), "{report:?}");

    put_segment(&store, &items(1, 2400..2411)).await.expect("an overlap");
    put_segment(&store, &items(1, 2550..2560)).await.expect("an overlap");
    let (torn, lost) = (items(3, 1..5), items(3, 5..9));
    store.put(&torn.key.data(), torn.data.clone()).await.expect("data without a sidecar");
    put_segment(&store, &lost).await.expect("put");
    store.delete(&lost.key.data()).await.expect("a sidecar without data");
    store.delete(&pages(1..251).key.index()).await.expect("a WARC without an index");
    let damaged = items(2, 1..11).key.data();
    store.put(&damaged, Bytes::from_static(b"damage")).await.expect("damage");

    let report = verify_all(&store, "acme").await.expect("listed");
    let faults: Vec<String> = report
        .iter()
        .filter_map(|(name, outcome)| {
            let segment = &name.segment;
            outcome.as_ref().err().map(|what| format!("{} {} {what}", segment.generation, segment.first.ms))
        })
        .collect();
    assert_eq!(faults.len(), 6, "{faults:#?}");
    for (fault, expected) in faults.iter().zip([
        "1 2400 overlaps the segment that ends at 2500-0",
        "1 2550 overlaps the segment that ends at 2600-0",
        "2 1 archive/acme/items/0000000002",
        "3 1 data without a sidecar",
        "3 5 a sidecar without its data",
        "1 1 a WARC without its index",
    ]) {
        assert!(fault.starts_with(expected), "{fault}");
    }
}
