use super::*;

fn settings(endpoint: &str, allow_http: bool) -> S3Settings {
    S3Settings {
        endpoint: endpoint.to_owned(),
        bucket: "dodo".to_owned(),
        region: "us-east-1".to_owned(),
        access_key: "access".to_owned(),
        secret_key: "hush-hush".to_owned(),
        allow_http,
    }
}

#[tokio::test]
async fn memory_keeps_what_was_put() {
    let store = Store::memory();
    store.check().await.expect("memory always answers");
    assert_eq!(store.put_new("a/1", Bytes::from("one")).await.expect("put"), PutOutcome::Created);
    assert_eq!(store.put_new("a/1", Bytes::from("two")).await.expect("put"), PutOutcome::Exists);
    assert_eq!(store.get("a/1").await.expect("get"), "one");
    store.put("a/1", Bytes::from("three")).await.expect("put");
    assert_eq!(store.get_range("a/1", 1..3).await.expect("range"), "hr");
    assert!(store.get_range("a/1", 1..30).await.is_err());
    assert_eq!(store.head("a/1").await.expect("head"), Some(5));
    store.delete("a/1").await.expect("delete");
    store.delete("a/1").await.expect("delete again");
    assert_eq!(store.head("a/1").await.expect("head"), None);
    assert_eq!(store.get("a/1").await.expect_err("gone").to_string(), "no object a/1");
}

#[tokio::test]
async fn listings_are_sorted_and_start_after_a_key() {
    let store = Store::memory();
    for key in ["a/2", "a/10", "a/1", "ab/1", "b/1"] {
        store.put(key, Bytes::from_static(b"x")).await.expect("put");
    }
    let keys = |listed: Vec<(String, u64)>| listed.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(store.list("a", None).await.expect("list")), ["a/1", "a/10", "a/2"]);
    assert_eq!(keys(store.list("a", Some("a/1")).await.expect("list")), ["a/10", "a/2"]);
    assert_eq!(store.list("", None).await.expect("list").len(), 5);
    assert!(store.list("a//b", None).await.is_err());
}

#[test]
fn settings_are_checked_and_hide_the_secret() {
    let refused = |settings: &S3Settings| Store::s3(settings).expect_err("refused").to_string();
    assert!(refused(&settings("localhost:9000", true)).contains("must begin with http://"));
    assert!(refused(&settings("http://localhost:9000", false)).contains("not https"));
    assert!(refused(&settings("127.0.0.1:9000", true)).contains("is no URL"));
    assert!(!refused(&settings("http://a:hush@localhost", true)).contains("hush"));
    let mut no_bucket = settings("http://localhost:9000", true);
    no_bucket.bucket.clear();
    assert!(refused(&no_bucket).contains("the bucket is empty"));
    assert!(!format!("{:?}", settings("http://localhost:9000", true)).contains("hush"));
}
