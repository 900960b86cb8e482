//! `dodo export pages|links|records`: results as NDJSON or CSV, read page by page.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use dodo_common::db::explain::{JobReport, PageLinks};
use dodo_common::model::record::Record;
use uuid::Uuid;

use crate::cli::Remote;
use crate::cli::client::Client;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// One line for each finished job
    Pages,
    /// One line for each link: the page and where it leads
    Links,
    /// One line for each record; --source selects
    Records,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Ndjson,
    Csv,
}

#[derive(Args, Debug)]
pub struct Export {
    #[arg(value_enum)]
    what: What,
    /// Which crawl; needed for pages and links
    #[arg(long)]
    dispatch: Option<Uuid>,
    /// Only records of this source
    #[arg(long)]
    source: Option<String>,
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(export: Export) -> anyhow::Result<ExitCode> {
    let client = Client::new(&export.remote)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let csv = export.format == Format::Csv;
    if csv {
        let header = match export.what {
            What::Pages => "id,state,status,url,title,language,depth,body_bytes,digest,finished_at",
            What::Links => "page,link",
            What::Records => {
                "source,instance,external_id,author,text,language,url,rating,created_at,updated_at,fetched_at"
            }
        };
        writeln!(out, "{header}")?;
    }
    let mut after: Option<String> = None;
    loop {
        let mut query: Vec<(&str, String)> = after.take().map(|key| ("after", key)).into_iter().collect();
        match (export.what, export.dispatch) {
            (What::Records, _) => query.extend(export.source.clone().map(|source| ("source", source))),
            (_, Some(dispatch)) => query.push(("dispatch", dispatch.to_string())),
            (_, None) => bail!("say which crawl: --dispatch ID; `dodo status` and the answer of `dodo crawl` name it"),
        }
        after = match export.what {
            What::Pages => {
                let jobs: Vec<JobReport> = client.get("/v1/export/pages", &query).await?;
                for job in &jobs {
                    writeln!(out, "{}", if csv { page_row(job) } else { serde_json::to_string(job)? })?;
                }
                jobs.last().map(|job| job.id.to_string())
            }
            What::Records => {
                let records: Vec<Record> = client.get("/v1/records", &query).await?;
                for record in &records {
                    writeln!(out, "{}", if csv { record_row(record) } else { serde_json::to_string(record)? })?;
                }
                let last = records.last();
                last.map(|r| serde_json::to_string(&(&r.source, &r.instance, &r.external_id))).transpose()?
            }
            What::Links => {
                let pages: Vec<PageLinks> = client.get("/v1/export/links", &query).await?;
                for page in &pages {
                    let from = page.page.as_deref().unwrap_or_default();
                    for link in &page.links {
                        let line = serde_json::json!({ "page": from, "link": link });
                        writeln!(out, "{}", if csv { row(&[from, link]) } else { line.to_string() })?;
                    }
                }
                pages.last().map(|page| page.url_hash.to_string())
            }
        };
        if after.is_none() {
            out.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn page_row(job: &JobReport) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    row(&[
        &job.id.to_string(),
        &job.state,
        &job.status.map_or(String::new(), |status| status.to_string()),
        &text(&job.url),
        &text(&job.title),
        &text(&job.language),
        &job.depth.to_string(),
        &job.body_bytes.unwrap_or_default().to_string(),
        &text(&job.digest),
        &job.finished_at.map_or(String::new(), |at| at.to_rfc3339()),
    ])
}

fn record_row(r: &Record) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let time = |at: Option<DateTime<Utc>>| at.map_or(String::new(), |at| at.to_rfc3339());
    row(&[
        &r.source,
        &r.instance,
        &r.external_id,
        &text(&r.author),
        &text(&r.text),
        &text(&r.language),
        &text(&r.url),
        &r.rating.map_or(String::new(), |rating| rating.to_string()),
        &time(r.created_at),
        &time(r.updated_at),
        &r.fetched_at.to_rfc3339(),
    ])
}

/// A CSV row (RFC 4180): a field is quoted when it must be.
fn row(fields: &[&str]) -> String {
    let quoted: Vec<String> = fields
        .iter()
        .map(|field| {
            if field.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", field.replace('"', "\"\""))
            } else {
                (*field).to_owned()
            }
        })
        .collect();
    quoted.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_field_is_quoted_when_it_must_be() {
        assert_eq!(super::row(&["a", "b,c", "d\"e"]), "a,\"b,c\",\"d\"\"e\"");
    }
}
