//! `dodo archive list|cat|verify`: the archive from S3 alone, without Postgres or Redis; `gc` in a file of its own.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use dodo_common::config::S3;
use dodo_common::model::job::TENANT_DEFAULT;
use dodo_common::model::stream_id::StreamId;
use dodo_common::storage::object::{S3Settings, Store};
use dodo_common::storage::reader::{self, PageForm, Selection};

use crate::cli::gc::{self, Gc};
use crate::cli::{bytes, say};
use crate::local::up;

#[derive(Args, Debug)]
pub struct Archive {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    s3: S3,
    /// Data directory of a running `dodo up`, whose archive to read instead
    #[arg(long, global = true)]
    data: Option<PathBuf>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List the objects
    List(Range),
    /// Write entries: pages as JSON lines of their index, items as they are
    Cat {
        #[command(flatten)]
        range: Range,
        /// Write the WARC records themselves, as gzip members
        #[arg(long)]
        raw: bool,
    },
    /// Read every object back and compare it with its sidecar
    Verify(Range),
    /// Delete what belongs to no segment that Postgres knows, planned or verified: what is left of an upload whose
    /// plan was given up. Incomplete multipart uploads there are none: every object is put in one piece
    Gc(Gc),
}

#[derive(Args, Debug)]
struct Range {
    /// pages or items [default: all]
    stream: Option<String>,
    /// First entry, ms-seq
    #[arg(long)]
    from: Option<StreamId>,
    /// Last entry, ms-seq
    #[arg(long)]
    to: Option<StreamId>,
    /// Only this generation
    #[arg(long)]
    generation: Option<u64>,
    /// Whose archive
    #[arg(long, default_value = TENANT_DEFAULT)]
    tenant: String,
}

impl Range {
    fn selection(self) -> Selection {
        Selection {
            tenant: self.tenant,
            stream: self.stream,
            generation: self.generation,
            from: self.from,
            to: self.to,
        }
    }
}

pub fn store(s3: &S3) -> anyhow::Result<Store> {
    Ok(Store::s3(&S3Settings {
        endpoint: s3.s3_endpoint.clone(),
        bucket: s3.s3_bucket.clone(),
        region: s3.s3_region.clone(),
        access_key: s3.s3_access_key.clone(),
        secret_key: s3.s3_secret_key.clone(),
        allow_http: s3.s3_endpoint.starts_with("http://"),
    })?)
}

pub async fn run(archive: Archive) -> anyhow::Result<ExitCode> {
    let (s3, database_url) = match &archive.data {
        Some(data) => up::archive_of(data).map(|(s3, database_url)| (s3, Some(database_url)))?,
        None => (archive.s3, None),
    };
    let store = store(&s3)?;
    store.check().await?;
    match archive.verb {
        Verb::List(range) => list(&store, range.selection(), archive.json).await,
        Verb::Cat { range, raw } => cat(&store, range.selection(), raw).await,
        Verb::Verify(range) => verify(&store, &range.tenant, archive.json).await,
        Verb::Gc(mut gc) => {
            gc.database_url = database_url.unwrap_or(gc.database_url);
            gc::run(&store, gc, archive.json).await
        }
    }
}

async fn list(store: &Store, selection: Selection, json: bool) -> anyhow::Result<ExitCode> {
    for segment in reader::list(store, &selection).await? {
        say(if json {
            serde_json::to_string(&segment)?
        } else {
            format!("{:>10}  {}", bytes(segment.bytes), segment.key)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn cat(store: &Store, selection: Selection, raw: bool) -> anyhow::Result<ExitCode> {
    let form = if raw { PageForm::Member } else { PageForm::Json };
    let mut out = std::io::stdout().lock();
    reader::cat(store, &selection, form, |line| {
        out.write_all(&line.bytes)?;
        if raw { Ok(()) } else { out.write_all(b"\n") }
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

async fn verify(store: &Store, tenant: &str, json: bool) -> anyhow::Result<ExitCode> {
    let results = reader::verify_all(store, tenant).await?;
    let bad = results.iter().filter(|(_, result)| result.is_err()).count();
    for (segment, result) in &results {
        let error = result.as_ref().err();
        say(if json {
            serde_json::json!({ "key": segment.key, "ok": error.is_none(), "error": error }).to_string()
        } else {
            format!("{}  {}", error.map_or("ok", String::as_str), segment.key)
        })?;
    }
    if !json {
        say(format!("{} objects, {bad} bad", results.len()))?;
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
