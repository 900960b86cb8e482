//! Rules of a crawl on top of the canonical form: what of a URL does not tell one page from another.

use std::sync::LazyLock;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use url::Url;

/// Names of parameters that one crawl may drop.
pub const DROP_PARAMS_MAX: usize = 100;
/// The longest of them, bytes.
pub const DROP_PARAM_BYTES_MAX: usize = 100;
/// So many letters and digits are a session id where the name of the parameter alone does not say so; letters alone may
/// be a word.
const SESSION_BYTES_MIN: usize = 16;

/// A rule that a crawl switches on by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UrlRule {
    /// Drops session ids: `;jsessionid=..`, `PHPSESSID`, `ASPSESSIONID..`, `CFID` with `CFTOKEN`, `sid` and `sessionid`
    /// with 16 letters and digits or more, and ASP.NET's `/(S(..))`.
    Sessions,
    /// Drops query parameters that tell where a reader came from: `utm_*`, `gclid`, `fbclid` and their like.
    Tracking,
    /// Sorts query parameters by name; those of one name keep their order, which may mean something.
    Sort,
}

/// The rules of one crawl, in the order in which they are applied. Without any, what a site says is what is fetched:
/// no rule is safe for every site. Each is idempotent, and so are they all in a row.
#[derive(Debug)]
pub struct UrlRules {
    sessions: bool,
    tracking: bool,
    drop: Names,
    sort: bool,
}

/// Names of parameters, whole ones and beginnings, lower-case and sorted; no beginning begins another.
#[derive(Debug)]
struct Names {
    whole: Vec<Vec<u8>>,
    beginnings: Vec<Vec<u8>>,
}

static NONE: UrlRules = UrlRules {
    sessions: false,
    tracking: false,
    drop: Names { whole: Vec::new(), beginnings: Vec::new() },
    sort: false,
};

/// Sources: Brave's query filter (brave-core, `components/query_filter`), but for those of its names that sites use for
/// their own ends too (`__s`, `s_cid`, `fb_comment_id`, ..); the Tracking Query Params Registry
/// (github.com/mpchadwick/tracking-query-params-registry); and what the services document: Matomo `mtm_*` and `pk_*`,
/// HubSpot `_hsmi`, TikTok `ttclid`, LinkedIn `li_fat_id`, Marketo `mkt_tok`.
static TRACKING: LazyLock<Names> = LazyLock::new(|| {
    let names = "utm_* mtm_* pk_campaign pk_kwd pk_keyword pk_source pk_medium pk_content pk_cid \
        gclid gclsrc dclid gbraid wbraid srsltid _ga _gl fbclid fb_action_ids igshid msclkid twclid ttclid li_fat_id epik \
        yclid ymclid ysclid _openstat mc_cid mc_eid _hsenc _hsmi __hssc __hstc __hsfp hsctatracking mkt_tok \
        ml_subscriber ml_subscriber_hash oly_anon_id oly_enc_id vero_id vero_conv _ke _kx dm_i _bta_tid _bta_c et_rid \
        bsft_clkid bsft_uid ss_email_id vgo_ee trk_contact trk_msg trk_module trk_sid s_kwcid ef_id mkwid pcrid irclickid \
        rb_clickid unicorn_click_id wickedid _branch_match_id _branch_referrer guce_referrer guce_referrer_sig \
        gdfms gdftrk gdffi redirect_log_mongo_id redirect_mongo_id sb_referer_host";
    Names::of(names.split_ascii_whitespace())
});

impl UrlRules {
    /// `drop_params` are names as they are meant, without escapes; a `*` at the end stands for any rest. One clear line
    /// about the first that is wrong.
    pub fn new(rules: &[UrlRule], drop_params: &[String]) -> Result<UrlRules, String> {
        if rules.len() > UrlRule::value_variants().len() {
            return Err("url_rules takes each rule once".to_owned());
        }
        if drop_params.len() > DROP_PARAMS_MAX {
            return Err(format!("drop_params takes at most {DROP_PARAMS_MAX} names, not {}", drop_params.len()));
        }
        if let Some(name) = drop_params.iter().find(|name| !is_name(name)) {
            let name: String = name.chars().take(DROP_PARAM_BYTES_MAX).collect();
            return Err(format!(
                "drop_params takes names of 1 to {DROP_PARAM_BYTES_MAX} bytes with a * at most at their end, not {name:?}"
            ));
        }
        Ok(UrlRules {
            sessions: rules.contains(&UrlRule::Sessions),
            tracking: rules.contains(&UrlRule::Tracking),
            drop: Names::of(drop_params.iter().map(String::as_str)),
            sort: rules.contains(&UrlRule::Sort),
        })
    }

    pub fn none() -> &'static UrlRules {
        &NONE
    }

    /// Whether they could change a URL that has a query, or such a character in its path.
    pub fn may_change(&self, path: &str, has_query: bool) -> bool {
        let in_query = self.sessions || self.tracking || self.sort || !self.drop.is_empty();
        has_query && in_query || self.sessions && path.contains([';', '('])
    }

    /// Changes a canonical URL; `step` hears the outcome of each rule.
    pub fn apply(&self, url: &mut Url, step: &mut impl FnMut(&'static str, &str)) {
        if self.sessions {
            drop_path_params(url);
            drop_cookieless(url);
            change_params(url, drop_sessions);
            step("session ids dropped", url.as_str());
        }
        if self.tracking {
            change_params(url, |params| params.retain(|param| !TRACKING.holds(&name_of(param))));
            step("tracking parameters dropped", url.as_str());
        }
        if !self.drop.is_empty() {
            change_params(url, |params| params.retain(|param| !self.drop.holds(&name_of(param))));
            step("named parameters dropped", url.as_str());
        }
        if self.sort {
            // By the name as it is written; the sort is stable.
            change_params(url, |params| params.sort_by_key(|param| param.split('=').next()));
            step("parameters sorted", url.as_str());
        }
    }
}

impl Names {
    fn of<'a>(patterns: impl Iterator<Item = &'a str>) -> Names {
        let mut names = Names { whole: Vec::new(), beginnings: Vec::new() };
        for pattern in patterns {
            let pattern = pattern.to_ascii_lowercase();
            match pattern.strip_suffix('*') {
                Some(beginning) => names.beginnings.push(beginning.into()),
                None => names.whole.push(pattern.into()),
            }
        }
        names.whole.sort_unstable();
        names.beginnings.sort_unstable();
        names.beginnings.dedup_by(|name, kept| name.starts_with(kept));
        names
    }

    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.beginnings.is_empty()
    }

    fn holds(&self, name: &[u8]) -> bool {
        // Only the last beginning not above the name can be its own.
        let after = self.beginnings.partition_point(|beginning| beginning.as_slice() <= name);
        after > 0 && name.starts_with(&self.beginnings[after - 1])
            || self.whole.binary_search_by(|whole| whole.as_slice().cmp(name)).is_ok()
    }
}

fn is_name(pattern: &str) -> bool {
    (1..=DROP_PARAM_BYTES_MAX).contains(&pattern.len())
        && !pattern.chars().any(char::is_control)
        && pattern.find('*').is_none_or(|star| star + 1 == pattern.len())
}

/// The name of `name=value` as it is meant, lower-case: escapes and case are spelt in more than one way.
fn name_of(param: &str) -> Vec<u8> {
    let name = param.split('=').next().unwrap_or_default();
    percent_encoding::percent_decode_str(name).map(|byte| byte.to_ascii_lowercase()).collect()
}

/// Changes the parameters of the query, each as it is written. A query that loses all of them is none.
fn change_params(url: &mut Url, change: impl FnOnce(&mut Vec<&str>)) {
    let Some(query) = url.query() else { return };
    let mut params: Vec<&str> = query.split('&').collect();
    change(&mut params);
    let changed = params.join("&");
    if changed != query {
        url.set_query(Some(changed.as_str()).filter(|query| !query.is_empty()));
    }
}

fn drop_sessions(params: &mut Vec<&str>) {
    // A CFID alone may be anything.
    let coldfusion = params.iter().any(|param| name_of(param) == b"cftoken");
    params.retain(|param| match name_of(param).as_slice() {
        b"jsessionid" | b"phpsessid" | b"cftoken" => false,
        b"cfid" => !coldfusion,
        b"sid" | b"sessionid" => {
            let value = param.split_once('=').map_or("", |(_, value)| value);
            value.len() < SESSION_BYTES_MIN
                || !value.bytes().all(|byte| byte.is_ascii_alphanumeric())
                || !value.bytes().any(|byte| byte.is_ascii_digit())
        }
        name => !name.starts_with(b"aspsessionid"),
    });
}

/// Session ids among the parameters of a path's segments (RFC 3986 3.3): `/page;jsessionid=1`.
fn drop_path_params(url: &mut Url) {
    if !url.path().contains(';') {
        return;
    }
    let mut path = String::with_capacity(url.path().len());
    for segment in url.path().split('/').skip(1) {
        path.push('/');
        let Some((name, params)) = segment.split_once(';') else {
            path.push_str(segment);
            continue;
        };
        path.push_str(name);
        let mut params: Vec<&str> = params.split(';').collect();
        drop_sessions(&mut params);
        for param in params {
            path.push(';');
            path.push_str(param);
        }
    }
    if path != url.path() {
        // A segment may be `..` now: this resolves it.
        url.set_path(&path);
    }
}

/// ASP.NET's cookieless tickets, a directory of their own: `/app/(S(lit3py55t21z5v55vlm25s55))/page.aspx`.
fn drop_cookieless(url: &mut Url) {
    let Some((directories, page)) = url.path().rsplit_once('/').filter(|(above, _)| above.contains("/(")) else {
        return;
    };
    let kept: Vec<&str> = directories.split('/').filter(|segment| !is_cookieless(segment)).collect();
    let path = format!("{}/{page}", kept.join("/"));
    if path != url.path() {
        url.set_path(&path);
    }
}

/// One ticket or more, each a letter and a value: session (S), forms (F) and anonymous (A) tickets, and the mark of
/// a browser that was tried (X). Wider than the rule of an archive's key, which knows values of 24 characters only.
fn is_cookieless(segment: &str) -> bool {
    let Some(mut rest) = segment.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return false };
    while let Some((ticket, after)) = rest.split_once(')') {
        let value = ticket.strip_prefix(['S', 'F', 'A', 'X']).and_then(|ticket| ticket.strip_prefix('('));
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !value.is_some_and(|value| !value.is_empty() && value.bytes().all(sound)) {
            return false;
        }
        if after.is_empty() {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests;
