//! Rules of a crawl on top of the canonical form: what of a URL does not tell one page from another.

use std::sync::LazyLock;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use url::Url;
use xxhash_rust::xxh3::xxh3_128;

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
    fingerprint: String,
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
    fingerprint: String::new(),
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
        let mut made = UrlRules {
            sessions: rules.contains(&UrlRule::Sessions),
            tracking: rules.contains(&UrlRule::Tracking),
            drop: Names::of(drop_params.iter().map(String::as_str)),
            sort: rules.contains(&UrlRule::Sort),
            fingerprint: String::new(),
        };
        if !(rules.is_empty() && drop_params.is_empty()) {
            made.fingerprint = format!("{:032x}", xxh3_128(format!("{made:?}").as_bytes()));
        }
        Ok(made)
    }

    pub fn none() -> &'static UrlRules {
        &NONE
    }

    /// What tells these rules from others: hex digits, or nothing where there is no rule.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
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
mod tests {
    use super::*;
    use crate::model::url::{canonical, ruled, steps};

    fn rules(names: &[UrlRule], drop: &[&str]) -> UrlRules {
        UrlRules::new(names, &drop.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn spelt(raw: &str, rules: &UrlRules) -> String {
        ruled(raw, None, rules).unwrap().url.to_string()
    }

    #[test]
    fn session_ids() {
        let rules = rules(&[UrlRule::Sessions], &[]);
        for (raw, expected) in [
            // The Servlet specification's rewriting, SRV.7.1.3.
            ("http://a.test/catalog/index.html;jsessionid=1234", "http://a.test/catalog/index.html"),
            ("http://a.test/a;JSESSIONID=0A1B.node1;v=1/b;x?q=1", "http://a.test/a;v=1/b;x?q=1"),
            ("http://a.test/x;;jsessionid=1", "http://a.test/x;"),
            ("http://a.test/a/..;jsessionid=1/b", "http://a.test/b"),
            // Microsoft's and its books' examples of cookieless sessions.
            ("http://a.test/(S(lit3py55t21z5v55vlm25s55))/orderform.aspx", "http://a.test/orderform.aspx"),
            ("http://a.test/inproc/(S(tuucni55xfzj2xqx1mnqdg55))/Default.aspx", "http://a.test/inproc/Default.aspx"),
            ("http://a.test/(X(1)S(cp53yq30mtagv555unhr0t45))/system/", "http://a.test/system/"),
            ("http://a.test/(A(x_-)F(0F))/", "http://a.test/"),
            ("http://a.test/(S(1)", "http://a.test/(S(1)"),
            ("http://a.test/(S(1))", "http://a.test/(S(1))"),
            ("http://a.test/(S())/(1)/(S(1)a)/()/(S(a.b))/", "http://a.test/(S())/(1)/(S(1)a)/()/(S(a.b))/"),
            // Those of Heritrix and of the archive's key, and values that only look like one.
            ("http://a.test/?PHPSESSID=9682993c8daa2c5497996114facdc805&x=1", "http://a.test/?x=1"),
            ("http://a.test/?x=1&sid=9682993c8daa2c5497996114facdc805", "http://a.test/?x=1"),
            ("http://a.test/?sessionid=0123456789abcdeF", "http://a.test/"),
            (
                "http://a.test/?sid=0123456789abcde&sid=news-of-the-whole-day",
                "http://a.test/?sid=0123456789abcde&sid=news-of-the-whole-day",
            ),
            ("http://a.test/?ASPSESSIONIDAQBSDSRT=EOHBLBDDPFCLHKPGGKLILNAM&y", "http://a.test/?y"),
            ("http://a.test/i.cfm?CFID=123&a=1&CFTOKEN=4&jsessionid=5", "http://a.test/i.cfm?a=1"),
            ("http://a.test/?cfid=7&sid=internationalization", "http://a.test/?cfid=7&sid=internationalization"),
            ("http://a.test/?phpsessid", "http://a.test/"),
        ] {
            assert_eq!(spelt(raw, &rules), expected, "{raw}");
        }
    }

    #[test]
    fn tracking_named_and_sorted_parameters() {
        let track = rules(&[UrlRule::Tracking], &[]);
        for (raw, expected) in [
            (
                "http://www.example.com/test.html?utm_source=test&utm_medium=test&utm_campaign=test&utm_term=test",
                "http://www.example.com/test.html",
            ),
            ("http://a.test/?q=1&fbclid=IwAR0&&UTM%5fSource=x&gclid", "http://a.test/?q=1&"),
            (
                "http://a.test/?a=utm_source&utmost=1&c=gclid&_gax=2",
                "http://a.test/?a=utm_source&utmost=1&c=gclid&_gax=2",
            ),
            ("http://a.test/gclid=1;utm_source=2", "http://a.test/gclid=1;utm_source=2"),
        ] {
            assert_eq!(spelt(raw, &track), expected, "{raw}");
        }
        let drop = rules(&[], &["ref", "filter[x]", "view*", "größe"]);
        for (raw, expected) in [
            ("http://a.test/?Ref=1&reference=2&view=3&viewer=4&x=view", "http://a.test/?reference=2&x=view"),
            ("http://a.test/?filter%5Bx%5D=1&filter[x]=2&filter[y]=3&gr%C3%B6%C3%9Fe=4", "http://a.test/?filter[y]=3"),
        ] {
            assert_eq!(spelt(raw, &drop), expected, "{raw}");
        }
        assert_eq!(spelt("http://a.test/?b=1&a", &rules(&[], &["*"])), "http://a.test/");
        let sort = rules(&[UrlRule::Sort], &[]);
        for (raw, expected) in [
            ("http://a.test/?b=2&a=%2f&b=1&a=%26", "http://a.test/?a=%2F&a=%26&b=2&b=1"),
            ("http://a.test/?a-b=1&a=2&&a", "http://a.test/?&a=2&a&a-b=1"),
        ] {
            assert_eq!(spelt(raw, &sort), expected, "{raw}");
        }
    }

    #[test]
    fn steps_in_their_order() {
        let rules = rules(&[UrlRule::Sort, UrlRule::Tracking, UrlRule::Sessions], &["ref"]);
        let steps = steps("http://a.test/x;jsessionid=1?b=1&utm_source=2&ref=3&a=4", None, &rules);
        let (names, values): (Vec<&str>, Vec<&str>) = steps.iter().map(|(n, v)| (n.as_str(), v.as_str())).unzip();
        assert_eq!(
            names,
            [
                "given",
                "session ids dropped",
                "tracking parameters dropped",
                "named parameters dropped",
                "parameters sorted"
            ]
        );
        assert_eq!(
            values[1..],
            [
                "http://a.test/x?b=1&utm_source=2&ref=3&a=4",
                "http://a.test/x?b=1&ref=3&a=4",
                "http://a.test/x?b=1&a=4",
                "http://a.test/x?a=4&b=1"
            ]
        );
    }

    #[test]
    fn wrong_names_are_said_to_be() {
        for name in ["", "a*b", "**", "a\0", "a\n", &"x".repeat(DROP_PARAM_BYTES_MAX + 1)] {
            let why = UrlRules::new(&[], &[name.to_owned()]).unwrap_err();
            assert!(why.contains("drop_params") && why.lines().count() == 1 && why.len() < 300, "{why}");
        }
        assert!(UrlRules::new(&[], &vec!["a".to_owned(); DROP_PARAMS_MAX + 1]).is_err());
        assert!(UrlRules::new(&[UrlRule::Sort; 4], &[]).is_err());
        assert_eq!(serde_json::from_str::<UrlRule>("\"tracking\"").unwrap(), UrlRule::Tracking);
    }

    #[test]
    fn rules_are_told_apart() {
        let all = [
            rules(&[], &[]),
            rules(&[UrlRule::Sort], &[]),
            rules(&[UrlRule::Tracking], &[]),
            rules(&[], &["a", "b"]),
            rules(&[], &["a, b"]),
            rules(&[], &["a", "b*"]),
        ];
        let mut prints: Vec<&str> = all.iter().map(UrlRules::fingerprint).collect();
        assert_eq!((prints[0], rules(&[], &["b", "a"]).fingerprint()), ("", prints[3]));
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), all.len());
    }

    /// Pseudo-random numbers below a bound.
    fn random() -> impl FnMut(usize) -> usize {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        }
    }

    const REMOVED: [&str; 8] = [
        "utm_source=%4",
        "UTM%5Fterm",
        "gclid=a%",
        "sid=0123456789abcdef",
        "PHPSESSID=1",
        "drop=%zz",
        "prefix-x=1",
        "cftoken=1",
    ];

    #[test]
    fn idempotent_on_pseudo_random_strings() {
        const PIECES: [&str; 30] = [
            "%",
            "4",
            "1",
            "%34",
            "%2e",
            "%2E",
            "%25",
            "%zz",
            ".",
            "..",
            "/",
            "/",
            "?",
            "&",
            "&",
            "=",
            "a",
            "B",
            "ツ",
            ";",
            ";",
            "jsessionid=",
            "(S(a))",
            "(S(",
            "))",
            "/(A(b)S(c))/",
            "sid=0123456789abcdef",
            "cfid=1",
            "'",
            "\\",
        ];
        let mut next = random();
        let mut changed = 0;
        for n in 0..30_000 {
            let names: Vec<UrlRule> = UrlRule::value_variants().iter().filter(|_| next(4) > 0).copied().collect();
            let rules = rules(&names, if next(2) == 0 { &[] } else { &["drop", "prefix*", "a"] });
            let mut raw = "http://a.test/".to_owned();
            for _ in 0..next(14) {
                let pieces = if next(4) == 0 { &REMOVED[..] } else { &PIECES[..] };
                raw.push_str(pieces[next(pieces.len())]);
            }
            let once = ruled(&raw, None, &rules).expect(&raw);
            assert_eq!(ruled(once.url.as_str(), None, &rules).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
            assert_eq!(canonical(once.url.as_str(), None).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
            let plain = canonical(&raw, None).unwrap();
            assert_eq!(ruled(plain.url.as_str(), None, &rules).as_ref(), Ok(&once), "{n} {raw:?} {rules:?}");
            changed += usize::from(plain != once);
        }
        assert!(changed > 3_000, "{changed}");
    }

    #[test]
    fn spellings_that_differ_by_what_is_removed_are_one() {
        const SEGMENTS: [&str; 9] = ["a", "%", "4%", "%41", "b;v=1", ";", "", "(S)", "c%2F"];
        const PARAMS: [&str; 9] = ["a=1", "%", "%41=%", "4=%34", "", "b", "sid=short", "cfid=1", "a=0"];
        let mut next = random();
        let all = rules(UrlRule::value_variants(), &["drop", "prefix*"]);
        for n in 0..20_000 {
            let segments: Vec<&str> = (0..=next(4)).map(|_| SEGMENTS[next(SEGMENTS.len())]).collect();
            let mut params: Vec<&str> = (0..next(5)).map(|_| PARAMS[next(PARAMS.len())]).collect();
            let spell = |path: &str, params: &[&str]| {
                let mark = if params.is_empty() { "" } else { "?" };
                ruled(&format!("http://a.test/{path}{mark}{}", params.join("&")), None, &all).unwrap()
            };
            // A CFTOKEN in the second spelling would take a CFID along, which says more than the first.
            let removed = if params.contains(&"cfid=1") { &REMOVED[..7] } else { &REMOVED[..] };
            let first = spell(&segments.join("/"), &params);
            let mut path = Vec::new();
            for segment in segments {
                if next(4) == 0 {
                    path.push("(X(1)S(lit3py55t21z5v55vlm25s55))".to_owned());
                }
                let session = ["", ";jsessionid=%4", ";phpsessid=a;sid=0123456789abcdef"][next(3)];
                path.push(format!("{segment}{session}"));
            }
            for _ in 0..next(4) {
                let at = next(params.len() + 1);
                params.insert(at, removed[next(removed.len())]);
            }
            let second = spell(&path.join("/"), &params);
            assert_eq!(first.hash, second.hash, "{n} {} {}", first.url, second.url);
        }
    }
}
