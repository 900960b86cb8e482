//! The record of an answer: what the archive keeps of it.

use dodo_common::db::commit::Finished;
use dodo_common::model::media::essence;
use dodo_common::model::revisit::Original;
use dodo_common::storage::warc::{self, Profile};
use dodo_common::stream::raw::RawEntry;

use crate::fetch::body::Cut;
use crate::fetch::fetched::Fetched;
use crate::jobs::crawl::Visit;
use crate::jobs::end::{clean, raw_entry};

impl Visit<'_> {
    /// The page as one gzip member of a WARC record, with what the index says of it.
    pub fn record(&self, fetched: &Fetched, finished: &mut Finished) -> RawEntry {
        let Visit { ctx, job, url, started_ms, .. } = *self;
        let member = warc::response_member(&warc::Response {
            record_id: job.key.id,
            url: url.as_str(),
            date_ms: started_ms,
            http_head: &fetched.head,
            body: &fetched.body,
            truncated: fetched.cut.as_ref().map(Cut::word),
            ip: fetched.address,
        });
        let kind = fetched.content_type();
        let mime = kind.as_deref().map_or("unk", essence);
        let about = serde_json::json!({
            "url": url.as_str(), "date_ms": started_ms, "status": fetched.status, "mime": clean(mime), "digest": member.payload_digest,
        });
        finished.digest = Some(member.payload_digest);
        raw_entry(ctx, job, about.to_string().into_bytes(), member.bytes)
    }

    /// A page that is as it was: the head of the answer, and where the body is.
    pub fn revisit_record(
        &self,
        fetched: &Fetched,
        original: &Original,
        profile: Profile,
        finished: &mut Finished,
    ) -> RawEntry {
        let Visit { ctx, job, url, started_ms, .. } = *self;
        let member = warc::revisit_member(&warc::Visit {
            record_id: job.key.id,
            url: url.as_str(),
            date_ms: started_ms,
            http_head: &fetched.head,
            ip: fetched.address,
            profile,
            original_id: original.job,
            original_date_ms: original.date_ms,
            original_digest: &original.digest,
        });
        let about = serde_json::json!({
            "url": url.as_str(), "date_ms": started_ms, "status": fetched.status, "mime": warc::REVISIT_MIME,
            "digest": member.payload_digest,
        });
        finished.digest = Some(member.payload_digest);
        raw_entry(ctx, job, about.to_string().into_bytes(), member.bytes)
    }
}
