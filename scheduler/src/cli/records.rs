//! `dodo records` and `dodo report`: what the items became.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use dodo_common::db::record::Unfit;
use dodo_common::model::record::Record;

use crate::api::record::{ReplayRequest, ReplayedItems};
use crate::cli::client::Client;
use crate::cli::{Remote, say};
use crate::report::Report as Totals;

#[derive(Args, Debug)]
pub struct Records {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List records
    List(List),
    /// List the items that did not fit, with the reason
    Unfit(List),
    /// Try the items that did not fit again, by the present document of their source
    Replay {
        /// Whose items
        source: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Args, Debug)]
struct List {
    /// Only those of this source
    #[arg(long)]
    source: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args, Debug)]
pub struct Report {
    /// Write it to this file too, for example special_file.json
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(records: Records) -> anyhow::Result<ExitCode> {
    match records.verb {
        Verb::List(list) => {
            show::<Record>(&list, "/v1/records", record_line, |r| {
                (r.source.clone(), r.instance.clone(), r.external_id.clone())
            })
            .await?
        }
        Verb::Unfit(list) => {
            show::<Unfit>(&list, "/v1/unfit", unfit_line, |u| {
                (u.source.clone(), u.instance.clone(), u.hash.to_string())
            })
            .await?
        }
        Verb::Replay { source, remote } => {
            let replayed: ReplayedItems =
                Client::new(&remote)?.post("/v1/unfit/replay", &ReplayRequest { source }).await?;
            say(if remote.json {
                serde_json::to_string(&replayed)?
            } else {
                format!("{} became records, {} still do not fit", replayed.fit, replayed.unfit)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists by keyset, page after page, up to the limit.
async fn show<T: serde::de::DeserializeOwned + serde::Serialize>(
    list: &List,
    path: &str,
    line: fn(&T) -> String,
    key: fn(&T) -> (String, String, String),
) -> anyhow::Result<()> {
    let client = Client::new(&list.remote)?;
    let (mut left, mut after) = (list.limit, None);
    while left > 0 {
        let mut query = vec![("limit", left.min(1000).to_string())];
        query.extend(list.source.clone().map(|source| ("source", source)));
        query.extend(after.take().map(|after| ("after", after)));
        let page: Vec<T> = client.get(path, &query).await?;
        let Some(last) = page.last() else { break };
        after = Some(serde_json::to_string(&key(last))?);
        left -= page.len().min(left);
        for value in &page {
            say(if list.remote.json { serde_json::to_string(value)? } else { line(value) })?;
        }
    }
    Ok(())
}

fn record_line(r: &Record) -> String {
    let text: String = r.text.as_deref().unwrap_or_default().chars().take(60).collect();
    let rating = r.rating.map_or("-".to_owned(), |rating| rating.to_string());
    format!(
        "{}/{} {}  {}  {rating}  {}",
        r.source,
        r.instance,
        r.external_id,
        r.language.as_deref().unwrap_or("und"),
        text.replace(['\n', '\r'], " ")
    )
}

fn unfit_line(u: &Unfit) -> String {
    format!("{}/{}  {}  ({})", u.source, u.instance, u.hash, u.reason)
}

pub async fn report(report: Report) -> anyhow::Result<ExitCode> {
    let totals: Totals = Client::new(&report.remote)?.get("/v1/report", &[]).await?;
    if let Some(file) = &report.out {
        write(file, &totals)?;
    }
    say(if report.remote.json { serde_json::to_string(&totals)? } else { text(&totals) })?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the file whole or not at all.
pub fn write(file: &std::path::Path, totals: &Totals) -> anyhow::Result<()> {
    let draft = file.with_extension("json.draft");
    std::fs::write(&draft, serde_json::to_string_pretty(totals)? + "\n")
        .and_then(|()| std::fs::rename(&draft, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn text(t: &Totals) -> String {
    let list = |counts: &std::collections::BTreeMap<String, i64>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    let mut letters: Vec<(&String, &i64)> = t.words_by_last_letter.iter().collect();
    letters.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let letters: Vec<String> = letters.iter().take(10).map(|(letter, count)| format!("{letter} {count}")).collect();
    let range = t
        .time_range
        .as_ref()
        .map_or("none".to_owned(), |r| format!("{} to {}", r.first.format("%F"), r.last.format("%F")));
    format!(
        "pages       {}, {} links\napi pages   {}, {} items\nrecords     {}\n  language  {}\n  rating    {}\n  from      {range}\nwords       {}, by last letter {}\nunfit       {}",
        t.pages,
        t.links,
        t.api_pages,
        t.api_items,
        list(&t.items_by_source),
        list(&t.records_by_language),
        list(&t.records_by_rating),
        t.words,
        letters.join(", "),
        t.unfit,
    )
}
