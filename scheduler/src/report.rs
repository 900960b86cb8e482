//! The report: totals of what was gathered, the content of `special_file.json`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use dodo_common::db::dispatch::{self, Progress};
use dodo_common::db::pool::DbResult;
use dodo_common::db::record::{self, RecordQuery};
use serde::{Deserialize, Serialize};

use crate::context::Context;

/// Records read at once.
const BATCH: i64 = 1000;
/// The schema of the file; it grows when a field changes its meaning.
const VERSION: i32 = 1;

/// Totals of everything a tenant has gathered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Report {
    pub version: i32,
    /// Web pages fetched, each visit of one.
    pub pages: i64,
    /// Of these, those that had been visited before; left out where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisits: Option<Revisits>,
    /// Links stored, page by page.
    pub links: i64,
    /// API pages stored, and the items on them.
    pub api_pages: i64,
    pub api_items: i64,
    /// Items as records, each once, by source.
    pub items_by_source: BTreeMap<String, i64>,
    /// Items that did not fit and are kept with their reason.
    pub unfit: i64,
    /// Words of the records' texts: runs of letters.
    pub words: i64,
    /// The same by their last letter, in lower case.
    pub words_by_last_letter: BTreeMap<String, i64>,
    /// `und` where a record names no language.
    pub records_by_language: BTreeMap<String, i64>,
    /// `none` where a record has no rating.
    pub records_by_rating: BTreeMap<String, i64>,
    /// Of the records' creation times.
    pub time_range: Option<TimeRange>,
}

/// Pages that had been visited before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Revisits {
    pub pages: i64,
    /// Those that the server said had not been modified, and the body bytes that it did not send.
    pub not_modified: i64,
    pub bytes_saved: i64,
    /// Those that it sent as they had been, and the body bytes that were not stored again.
    pub identical: i64,
    pub bytes_not_stored: i64,
}

impl Revisits {
    fn of(progress: &Progress) -> Option<Self> {
        let Progress { revisits: pages, not_modified, bytes_saved, identical, bytes_not_stored, .. } = *progress;
        (pages > 0).then_some(Self { pages, not_modified, bytes_saved, identical, bytes_not_stored })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TimeRange {
    pub first: DateTime<Utc>,
    pub last: DateTime<Utc>,
}

/// Computes the report from Postgres.
pub async fn compute(ctx: &Context, tenant: &str) -> DbResult<Report> {
    let dispatches = dispatch::totals(&ctx.db, tenant).await?;
    let records = record::totals(&ctx.db, tenant).await?;
    let of = |kind: &str| dispatches.get(kind).cloned().unwrap_or_default();
    let by_last_letter = count_words(ctx, tenant).await?;
    Ok(Report {
        version: VERSION,
        pages: of("crawl").pages,
        revisits: Revisits::of(&of("crawl")),
        links: of("crawl").links,
        api_pages: of("paged").pages,
        api_items: of("paged").items,
        items_by_source: records.sources,
        unfit: records.unfit,
        words: by_last_letter.values().sum(),
        words_by_last_letter: by_last_letter.into_iter().map(|(letter, count)| (letter.to_string(), count)).collect(),
        records_by_language: records.languages,
        records_by_rating: records.ratings,
        time_range: records.first.zip(records.last).map(|(first, last)| TimeRange { first, last }),
    })
}

async fn count_words(ctx: &Context, tenant: &str) -> DbResult<BTreeMap<char, i64>> {
    let mut counts = BTreeMap::new();
    let mut after = None;
    loop {
        let query = RecordQuery { tenant, source: None, after, limit: BATCH };
        let records = record::list(&ctx.db, &query).await?;
        for text in records.iter().filter_map(|record| record.text.as_deref()) {
            for letter in last_letters(text) {
                *counts.entry(letter).or_default() += 1;
            }
        }
        after = match records.into_iter().last() {
            Some(last) => Some((last.source, last.instance, last.external_id)),
            None => return Ok(counts),
        };
    }
}

/// The last letter of each word, in lower case: a word is a run of letters (Unicode's Alphabetic).
fn last_letters(text: &str) -> impl Iterator<Item = char> + '_ {
    text.split(|c: char| !c.is_alphabetic())
        .filter_map(|word| word.chars().last())
        .map(|letter| letter.to_lowercase().next().unwrap_or(letter))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_word_is_a_run_of_letters() {
        let letters: String = super::last_letters("Don't  STOP, l'été -- 42 x9y").collect();
        assert_eq!(letters, "ntpléxy");
    }
}
