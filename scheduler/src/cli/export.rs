//! `dodo export pages|links`: a crawl's results as NDJSON or CSV, read page by page.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use dodo_common::db::explain::{JobReport, PageLinks};
use uuid::Uuid;

use crate::cli::Remote;
use crate::cli::client::Client;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// One line for each finished job
    Pages,
    /// One line for each link: the page and where it leads
    Links,
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
    /// Which crawl
    #[arg(long)]
    dispatch: Uuid,
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
        };
        writeln!(out, "{header}")?;
    }
    let mut after: Option<Uuid> = None;
    loop {
        let mut query = vec![("dispatch", export.dispatch.to_string())];
        query.extend(after.map(|id| ("after", id.to_string())));
        after = match export.what {
            What::Pages => {
                let jobs: Vec<JobReport> = client.get("/v1/export/pages", &query).await?;
                for job in &jobs {
                    writeln!(out, "{}", if csv { page_row(job) } else { serde_json::to_string(job)? })?;
                }
                jobs.last().map(|job| job.id)
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
                pages.last().map(|page| page.url_hash)
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
