use serde_json::json;

use std::collections::BTreeMap;

use super::*;
use crate::model::paged::{Metadata, PagedSpec, Place};

fn spec(paging: Value, url: &str) -> PagedSpec {
    let document: Document = serde_json::from_value(json!({
        "url": url, "paging": paging, "items": "$.items", "id": "$.id",
        "auth": { "secret": "shop", "query": "key" },
    }))
    .unwrap();
    document.check().unwrap();
    let subject = BTreeMap::from([("app".to_owned(), "a/b c".to_owned())]);
    PagedSpec::new("shop", 1, document, Some("http://api.test:81/v1/"), None, subject).unwrap()
}

fn numbered() -> PagedSpec {
    let count = json!({ "path": "$.total" });
    spec(
        json!({ "style": "numbered", "size": 10, "first": 0, "count": count }),
        "{base}/{app}?p={page}&o={offset}&n={page_size}",
    )
}

#[test]
fn braces_are_replaced_and_values_escaped() {
    let url = numbered().page_url(Place { page: 3, cursor: None }).unwrap();
    assert_eq!(url.as_str(), "http://api.test:81/v1/a%2Fb%20c?p=2&o=20&n=10");
    assert_eq!(numbered().instance, "api.test:81");
    assert_eq!(numbered().host(&url), "api:http://api.test:81#shop");
    assert_eq!(api_origin("api:http://api.test:81#shop"), Some("http://api.test:81"));
    assert_eq!(api_origin("http://api.test:81"), None);
}

#[test]
fn a_count_is_a_whole_number_however_it_is_written() {
    let spec = numbered();
    let of = |answer: Value| spec.metadata(&answer);
    assert_eq!(of(json!({ "total": 401 })), Ok(Metadata { total_items: 401, total_pages: 41 }));
    assert_eq!(of(json!({ "total": "400" })), Ok(Metadata { total_items: 400, total_pages: 40 }));
    assert_eq!(of(json!({ "total": 0 })), Ok(Metadata { total_items: 0, total_pages: 0 }));
    for bad in [
        json!({}),
        json!({ "total": null }),
        json!({ "total": -1 }),
        json!({ "total": 1.5 }),
        json!({ "total": 1e15 }),
        json!([]),
    ] {
        assert!(of(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn a_cursor_ends_with_null_empty_or_absent() {
    let spec = spec(json!({ "style": "cursor", "next": "$.next" }), "{base}/x?c={cursor}");
    assert_eq!(spec.next_cursor(&json!({ "next": "a b" })), Ok(Some("a b".to_owned())));
    assert_eq!(spec.page_url(Place { page: 2, cursor: Some("a b") }).unwrap().query(), Some("c=a%20b"));
    for end in [json!({ "next": null }), json!({ "next": "" }), json!({}), json!({ "next": false })] {
        assert_eq!(spec.next_cursor(&end), Ok(None), "{end}");
    }
    assert!(spec.next_cursor(&json!({ "next": {} })).is_err());
}

#[test]
fn a_wrong_document_is_named() {
    let good = json!({ "url": "http://a.test/?p={page}", "paging": { "style": "numbered", "size": 10, "count": { "path": "$.n" } },
        "items": "$", "id": "$.id" });
    let check = |change: fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        serde_json::from_value::<Document>(value).map_err(|error| error.to_string()).and_then(|d| d.check())
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert!(check(|v| v["items"] = json!("items")).unwrap_err().contains("JSONPath"));
    assert!(check(|v| v["url"] = json!("http://a.test/")).unwrap_err().contains("{page}"));
    assert!(check(|v| v["paging"]["size"] = json!(0)).unwrap_err().contains("paging.size"));
    assert!(check(|v| v["typo"] = json!(0)).unwrap_err().contains("typo"));
    assert!(check(|v| v["headers"] = json!({ "a b": "c" })).unwrap_err().contains("header name"));
    assert!(check(|v| v["headers"] = json!({ "Host": "c" })).unwrap_err().contains("own"));
    assert!(check(|v| v["auth"] = json!({ "secret": "s" })).unwrap_err().contains("either"));
}
