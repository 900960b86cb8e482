//! The preparation of a host by its first job: addresses resolved and pinned, robots.txt read.
//!
//! A preparation goes in steps, and the job that takes one is not charged and comes back for the next:
//! first the name is resolved, so that the dispatcher knows the address and its clock; then, under both
//! clocks, robots.txt is read; a redirect of it is one more step.

use std::borrow::Cow;
use std::net::IpAddr;

use dodo_common::clock::Clock;
use dodo_common::db::host::{DEAD_MS, FAILURES_MAX, HostState, HostUpdate, OUTAGES_MAX, RobotsAt, VALID_MS};
use dodo_common::db::load::LoadedHost;
use dodo_common::model::robots::{ROBOTS_BYTES_MAX, ROBOTS_HOPS_MAX, Robots};
use dodo_common::model::source::api_origin;
use dodo_common::model::url::canonical;
use reqwest::header::HeaderMap;
use url::Url;

use crate::fetch::body::Cut;
use crate::fetch::decode;
use crate::fetch::proxy::FetchError;
use crate::fetch::resolve::Resolved;
use crate::fetch::{AGENT, Ask, Fetcher};

/// However long a server that is out of order asks us to wait, its robots.txt is asked for again after this, milliseconds.
const ROBOTS_WAIT_MS_MAX: i64 = 3_600_000;

/// A preparation: what to write of the host, and whether a request was sent.
#[derive(Debug)]
pub struct Preparation {
    pub update: HostUpdate,
    pub requested: bool,
}

/// Prepares the host `name`, its `scheme://authority`, for a crawl that calls itself `agent` and says so by `headers`.
///
/// # Errors
/// What the trouble of our proxy, or our own, is: nothing was learned of the host.
pub async fn prepare(
    fetcher: &Fetcher,
    name: &str,
    (agent, headers): (&str, &HeaderMap),
    known: Option<&LoadedHost>,
    backoff_ms: i64,
) -> Result<Preparation, String> {
    let known = known.filter(|host| host.state != HostState::Dead);
    let before = Before::of(known);
    // What an earlier crawl has begun is too old to go on with.
    let begun = known.filter(|host| host.state != HostState::New || host.fresh);
    // With hops its URL is the target of an earlier preparation's redirect.
    let moved = begun.filter(|host| host.robots_hops > 0);
    let hops = moved.map_or(0, |host| host.robots_hops);
    let at = moved.and_then(|host| host.robots_at.as_ref());
    let robots_url = moved.and_then(|host| host.robots_url.clone()).unwrap_or_else(|| format!("{name}/robots.txt"));
    let mut update = without_rules(name);
    let resolved: Vec<IpAddr> = begun
        .filter(|host| host.state == HostState::New)
        .map(|host| host.addresses.iter().filter_map(|address| address.parse().ok()).collect())
        .unwrap_or_default();
    if resolved.is_empty() {
        resolve(fetcher, api_origin(name).unwrap_or(name), before, backoff_ms, &mut update).await;
        if api_origin(name).is_some() && update.state == HostState::New {
            // An API is asked by agreement: it has no robots.txt to read first.
            update.state = HostState::Ready;
            update.valid_ms = VALID_MS;
            update.failures = 0;
        }
        return Ok(Preparation { update, requested: false });
    }
    let addresses = resolved;
    update.addresses = addresses.iter().map(ToString::to_string).collect();
    let there: Option<Vec<IpAddr>> = at.map(|at| at.address.parse().into_iter().collect());
    let Ok(url) = Url::parse(&robots_url) else {
        update.last_error = Some(format!("{robots_url} is no URL"));
        return Ok(Preparation { update, requested: false });
    };
    let ask = Ask {
        url: &url,
        addresses: there.as_deref().unwrap_or(&addresses),
        headers,
        body_bytes_max: Some(ROBOTS_BYTES_MAX),
        media: None,
        once: false,
    };
    match fetcher.get(ask).await {
        Err(FetchError::Proxy(why) | FetchError::Unsent(why)) => return Err(why),
        Err(FetchError::Failed(why) | FetchError::Unreachable(why)) => fail(&mut update, before, backoff_ms, why),
        Ok(answer) => {
            update.robots_status = Some(answer.status as i16);
            match (answer.status, &answer.cut) {
                // Whom a site blocks, it does not show its rules. That there are none is believed at the last try: by then
                // others have asked, if there are any.
                (..=428 | 430..=499, _) if answer.block.is_some() && before.failures + 1 < before.failures_max() => {
                    let sign = answer.block.unwrap_or_default();
                    fail(&mut update, before, backoff_ms, format!("robots.txt looks blocked: {sign}"));
                }
                (200..=299, cut @ (None | Some(Cut::Length(_)))) => {
                    match rules_of(answer.content_encoding().as_deref(), &answer.body, cut.is_none()) {
                        Ok(body) => {
                            // Other crawls of the host may go by our own name.
                            let robots = Robots::parse(&body);
                            let delays = [agent, AGENT].map(|agent| robots.crawl_delay_ms(agent));
                            update.crawl_delay_ms = delays.into_iter().flatten().max().map(|ms| ms as i64);
                            update.robots = Some(body);
                            update.robots_url = Some(url.to_string());
                        }
                        // What cannot be read may forbid something.
                        Err(error) => {
                            fail(&mut update, before, backoff_ms, format!("robots.txt cannot be read: {error}"));
                        }
                    }
                }
                // What is missing may forbid something.
                (200..=299, Some(cut)) => {
                    fail(&mut update, before, backoff_ms, format!("robots.txt is cut: {cut}"));
                }
                (300..=399, _) => match answer.location() {
                    Some(to) if hops < ROBOTS_HOPS_MAX => {
                        match redirect(fetcher, &url, &to, hops, &mut update).await {
                            // The way there is no answer yet.
                            Ok(()) if update.state == HostState::New => before.go_on(&mut update),
                            Ok(()) => {}
                            Err(why) => fail(&mut update, before, backoff_ms, why),
                        }
                    }
                    // Too many redirects, or none to follow: unavailable, so nothing is forbidden.
                    _ => {}
                },
                (429 | 500..=599, _) => {
                    let asked =
                        answer.retry_after_ms(Clock::System.now_ms()).map_or(0, |ms| ms.min(ROBOTS_WAIT_MS_MAX));
                    let wait = asked.max(backoff_ms);
                    let why = format!("robots.txt answered {}", answer.status);
                    let before = Before { out_of_order: update.robots_status, ..before };
                    fail(&mut update, before, wait, why);
                }
                // Unavailable (RFC 9309 2.3.1.3): nothing is forbidden.
                _ => {}
            }
        }
    }
    Ok(Preparation { update, requested: true })
}

/// A host that may be asked for anything.
fn without_rules(name: &str) -> HostUpdate {
    HostUpdate {
        host: name.to_owned(),
        addresses: Vec::new(),
        state: HostState::Ready,
        robots: None,
        robots_status: None,
        robots_url: None,
        robots_hops: 0,
        robots_at: None,
        crawl_delay_ms: None,
        failures: 0,
        hold_ms: None,
        valid_ms: VALID_MS,
        last_error: None,
    }
}

/// The text of a robots.txt, as far as it is read. It ends with a whole line: the start of a rule is another rule.
fn rules_of(encoding: Option<&str>, body: &[u8], is_whole: bool) -> Result<Vec<u8>, String> {
    let (text, is_all) = match decode::prefix(encoding, body, is_whole, ROBOTS_BYTES_MAX) {
        Ok((text, is_all)) if !text.is_empty() || body.is_empty() => (text, is_whole && is_all),
        // Some servers name an encoding, and send none.
        _ if is_text(body) => (Cow::Borrowed(body), is_whole),
        Err(error) => return Err(error.to_string()),
        // Of what is cut, nothing could be unpacked; or it is an empty file.
        Ok((text, _)) if is_whole => (text, true),
        Ok(_) => return Err("it is cut, and nothing of it can be unpacked".to_owned()),
    };
    let mut text = text.into_owned();
    if !is_all {
        let end = text.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
        text.truncate(end);
    }
    Ok(text)
}

/// Nothing in it is of a packed file: each format begins with bytes that no text has among its first.
fn is_text(body: &[u8]) -> bool {
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    // It may be cut within a character.
    std::str::from_utf8(body).err().is_none_or(|error| error.error_len().is_none()) && !body.iter().any(is_control)
}

/// A preparation that failed: the host waits, and is dead after the last one (RFC 9309 2.3.1.4: while
/// robots.txt cannot be reached, everything is forbidden).
fn fail(update: &mut HostUpdate, before: Before, wait_ms: i64, why: String) {
    before.go_on(update);
    update.failures += 1;
    update.last_error = Some(why);
    if update.failures >= before.failures_max() {
        update.state = HostState::Dead;
        update.valid_ms = DEAD_MS;
    } else {
        update.state = HostState::Held;
        update.hold_ms = Some(wait_ms);
        update.valid_ms = 0;
    }
}

/// The preparations before this one.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    /// Those that have failed, in a row.
    failures: i32,
    /// The status of the last one, where that was 429 or 5xx.
    out_of_order: Option<i16>,
}

impl Before {
    fn of(known: Option<&LoadedHost>) -> Self {
        let out_of_order = known.and_then(|host| host.robots_status).filter(|status| matches!(status, 429 | 500..=599));
        Self { failures: known.map_or(0, |host| host.failures), out_of_order }
    }

    /// What they were stays known, whatever this one finds.
    fn go_on(self, update: &mut HostUpdate) {
        (update.failures, update.robots_status) = (self.failures, self.out_of_order.or(update.robots_status));
    }

    /// In an outage a server may be away for a moment, too.
    fn failures_max(self) -> i32 {
        if self.out_of_order.is_some() { OUTAGES_MAX } else { FAILURES_MAX }
    }
}

/// The first step: the addresses, and nothing sent.
async fn resolve(fetcher: &Fetcher, name: &str, before: Before, backoff_ms: i64, update: &mut HostUpdate) {
    let resolved = match Url::parse(name) {
        Ok(url) => fetcher.resolver.resolve(&url).await,
        Err(error) => Resolved::Refused(format!("{name} is no host: {error}")),
    };
    match resolved {
        Resolved::Addresses(addresses) => {
            update.addresses = addresses.iter().map(ToString::to_string).collect();
            update.state = HostState::New;
            before.go_on(update);
        }
        Resolved::Refused(why) => {
            update.state = HostState::Refused;
            update.valid_ms = DEAD_MS;
            update.last_error = Some(why);
        }
        Resolved::Failed(why) => fail(update, before, backoff_ms, why),
    }
}

/// One step on to where robots.txt is: the dispatcher waits for the clocks of that place, too. A redirect to where we
/// may not go is a robots.txt that is not there (RFC 9309 2.3.1.3).
///
/// # Errors
/// Why that place cannot be found now: robots.txt is out of reach (2.3.1.4).
async fn redirect(fetcher: &Fetcher, from: &Url, to: &str, hops: i16, update: &mut HostUpdate) -> Result<(), String> {
    let to = match canonical(to, Some(from)) {
        Ok(to) => to,
        Err(error) => {
            update.last_error = Some(format!("robots.txt redirects to no page: {error}"));
            return Ok(());
        }
    };
    if to.host != update.host {
        let address = match fetcher.resolver.resolve(&to.url).await {
            Resolved::Addresses(addresses) => addresses.first().map(ToString::to_string).unwrap_or_default(),
            Resolved::Refused(why) => {
                update.last_error = Some(format!("robots.txt redirects to {}: {why}", to.host));
                return Ok(());
            }
            Resolved::Failed(why) => return Err(format!("robots.txt redirects to {}: {why}", to.host)),
        };
        update.robots_at = Some(RobotsAt { host: to.host, address });
    }
    update.state = HostState::New;
    update.robots_hops = hops + 1;
    update.robots_url = Some(to.url.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use std::sync::Arc;

    use clap::Parser as _;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::settings::Settings;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_packed_robots_txt_is_read_as_a_plain_one_is() {
        let mut long = b"User-agent: *\nDisallow: /private\n".to_vec();
        long.resize(ROBOTS_BYTES_MAX - 12, b'#');
        long.extend(b"\nDisallow: /x\n");
        assert!(long.len() > ROBOTS_BYTES_MAX, "its last line is cut to one that forbids everything");
        let packed = gzip(&long);
        let plain = (None, &long[..ROBOTS_BYTES_MAX], false);
        for (encoding, body, is_whole) in [plain, (Some("gzip"), &packed[..], true)] {
            let text = rules_of(encoding, body, is_whole).expect("it is sound");
            assert_eq!(text.len(), ROBOTS_BYTES_MAX - 11, "up to the last line's end");
            assert!(!Robots::parse(&text).decide(AGENT, "/private/a").allowed);
            assert!(Robots::parse(&text).decide(AGENT, "/else").allowed);
        }
    }

    #[test]
    fn a_robots_txt_that_cannot_be_read_is_not_one_without_rules() {
        let text = b"User-agent: *\nDisallow: /\n";
        let packed = gzip(text);
        assert!(rules_of(Some("gzip"), &packed[..packed.len() - 6], true).is_err(), "without its end");
        assert!(rules_of(Some("br"), &packed, true).is_err(), "packed in another way");
        assert!(rules_of(Some("br"), &packed[..20], false).is_err(), "and cut as well");
        assert_eq!(rules_of(Some("gzip"), &gzip(b""), true).expect("it is sound"), b"");
        let cut = "User-agent: *\nDisallow: /\n# é".as_bytes();
        assert_eq!(rules_of(Some("gzip"), &cut[..cut.len() - 1], false).expect("a text"), text, "mislabelled and cut");
        // Mislabelled: a text is a text.
        for encoding in ["gzip", "br", "zstd", "utf-8", "none"] {
            assert_eq!(rules_of(Some(encoding), text, true).expect(encoding), text, "{encoding}");
        }
    }

    #[tokio::test]
    async fn a_robots_txt_at_a_name_that_cannot_be_found_now_is_out_of_reach() {
        dodo_common::install_tls_provider();
        let settings = Settings::try_parse_from(["dodo-worker"]).unwrap();
        let fetcher = Fetcher::new(&settings, Arc::default()).expect("the defaults are sound");
        let from = Url::parse("http://a.example/robots.txt").unwrap();
        let mut update = without_rules("http://a.example");
        // RFC 6761 6.4: there is no such name.
        let outcome = redirect(&fetcher, &from, "http://www.a.invalid/robots.txt", 0, &mut update).await;
        assert!(outcome.is_err_and(|why| why.contains("www.a.invalid")), "{:?}", update.last_error);
        // Where we may not go, nothing is that could be read.
        redirect(&fetcher, &from, "http://192.168.0.1/robots.txt", 0, &mut update).await.expect("it is refused");
        assert_eq!(update.state, HostState::Ready);
        assert!(update.last_error.is_some_and(|why| why.contains("192.168.0.1")));
    }
}
