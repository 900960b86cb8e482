//! The rules of one robots.txt (RFC 9309). Our own, because a verdict names the line that decided.

/// What is read of a file, RFC 9309 2.5: the least that a crawler must read, and what Google reads.
pub const ROBOTS_BYTES_MAX: usize = 500 * 1024;
/// Redirects of a file that are followed (RFC 9309 2.3.1.2: at least five).
pub const ROBOTS_HOPS_MAX: i16 = 5;
/// What is read of a line; the rest is cut off, where Google's parser cuts (robots.cc: 8 * 2083 bytes, the last of them
/// for its end). Without a star, a rule that long matches no URL that we fetch.
pub const LINE_BYTES_MAX: usize = 8 * 2083 - 1;
/// The longest `Crawl-delay` that is honoured, milliseconds.
pub const CRAWL_DELAY_MS_MAX: u64 = 3_600_000;

/// A parsed robots.txt. The default has no rules and allows everything.
#[derive(Clone, Debug, Default)]
pub struct Robots {
    groups: Vec<Group>,
    paces: Vec<Pace>,
    sitemaps: Vec<String>,
}

/// Whether a URL may be fetched, and what said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// None: no rule matched, so it is allowed.
    pub rule: Option<Rule>,
}

/// A line of the file, as it was written but for comment, surrounding space and control characters; a tab is a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Counted from 1.
    pub line: u32,
    pub text: String,
}

/// Consecutive `User-agent` lines and what follows them.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Product tokens in lower case, and `*`.
    agents: Vec<String>,
    patterns: Vec<Pattern>,
}

/// The agents that one `Crawl-delay` is meant for. Finer than a group: by the standard that line
/// separates no groups, but what a file asks of the bot above it is not asked of the one below.
#[derive(Clone, Debug, Default)]
struct Pace {
    agents: Vec<String>,
    delay_ms: Option<u64>,
}

#[derive(Clone, Debug)]
struct Pattern {
    allows: bool,
    /// Normalised, without the `$` of an anchored one.
    glob: String,
    /// Ends in `$`: the path must end there too.
    anchored: bool,
    rule: Rule,
}

impl Robots {
    /// Never fails: what is no rule is skipped, as RFC 9309 2.2 asks.
    pub fn parse(body: &[u8]) -> Robots {
        let mut robots = Robots::default();
        // Only directly after a User-agent line does the next one name the same group.
        let mut naming = false;
        for (line, text) in lines(body) {
            let Some((key, value)) = record(text) else { continue };
            match key.as_str() {
                "user-agent" | "useragent" | "user agent" => {
                    if !naming {
                        robots.groups.push(Group::default());
                    }
                    if !naming || robots.paces.last().is_some_and(|pace| pace.delay_ms.is_some()) {
                        robots.paces.push(Pace::default());
                    }
                    naming = true;
                    robots.name(token(value));
                }
                "allow" => {
                    naming = false;
                    robots.rule(Pattern::new(true, value, Rule::new(line, text)));
                }
                // With the misspellings that Google's parser takes.
                "disallow" | "dissallow" | "dissalow" | "disalow" | "diasllow" | "disallaw" => {
                    naming = false;
                    robots.rule(Pattern::new(false, value, Rule::new(line, text)));
                }
                // No record of the standard: it must not end the User-agent lines (RFC 9309 2.2.4).
                "crawl-delay" => robots.pace(delay_ms(value)),
                "sitemap" if !value.is_empty() => robots.sitemaps.push(printable(value)),
                _ => {}
            }
        }
        robots
    }

    /// `agent_product` is our product token (`dodo`; what follows its letters, `-` and `_` is
    /// ignored), `path_and_query` that of a canonical URL. The longest match in octets wins, and
    /// of equals the one that allows (RFC 9309 2.2.2).
    pub fn decide(&self, agent_product: &str, path_and_query: &str) -> Verdict {
        // RFC 9309 2.2.2: the file itself is always allowed.
        if path_and_query == "/robots.txt" {
            return Verdict { allowed: true, rule: None };
        }
        let path =
            if path_and_query.is_empty() { "/".to_owned() } else { normal(path_and_query.as_bytes(), Side::Path) };
        let mut best: Option<&Pattern> = None;
        let agent = self.binding(agent_product);
        for pattern in
            self.groups.iter().filter(|group| group.agents.contains(&agent)).flat_map(|group| &group.patterns)
        {
            // Cheap before dear: only what would win is matched.
            if best.is_none_or(|best| pattern.rank() > best.rank()) && pattern.matches(&path) {
                best = Some(pattern);
            }
        }
        Verdict { allowed: best.is_none_or(|best| best.allows), rule: best.map(|best| best.rule.clone()) }
    }

    /// The `Crawl-delay` that binds this agent: no standard, but asked for in good faith. The
    /// longest, where several are.
    pub fn crawl_delay_ms(&self, agent_product: &str) -> Option<u64> {
        let agent = self.binding(agent_product);
        self.paces.iter().filter(|pace| pace.agents.contains(&agent)).filter_map(|pace| pace.delay_ms).max()
    }

    /// What it takes in memory, roughly, bytes.
    pub fn bytes(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.capacity();
        let names = self.groups.iter().map(|group| &group.agents).chain(self.paces.iter().map(|pace| &pace.agents));
        let patterns = self.groups.iter().flat_map(|group| &group.patterns);
        // A list has room for up to twice of what is in it.
        let rule =
            |pattern: &Pattern| 2 * size_of::<Pattern>() + pattern.glob.capacity() + pattern.rule.text.capacity();
        self.groups.len() * size_of::<Group>()
            + self.paces.len() * size_of::<Pace>()
            + names.flatten().chain(&self.sitemaps).map(text).sum::<usize>()
            + patterns.map(rule).sum::<usize>()
    }

    /// As written; neither resolved nor checked.
    pub fn sitemaps(&self) -> &[String] {
        &self.sitemaps
    }

    /// The name whose groups bind this agent: its own token, or `*` where none is its own
    /// (RFC 9309 2.2.1).
    fn binding(&self, agent_product: &str) -> String {
        token(agent_product.as_bytes())
            .filter(|agent| self.groups.iter().any(|group| group.agents.contains(agent)))
            .unwrap_or_else(|| "*".to_owned())
    }

    // What comes before any group belongs to nobody: these three ignore it.

    fn name(&mut self, agent: Option<String>) {
        if let (Some(group), Some(pace), Some(agent)) = (self.groups.last_mut(), self.paces.last_mut(), agent) {
            group.agents.push(agent.clone());
            pace.agents.push(agent);
        }
    }

    fn rule(&mut self, pattern: Pattern) {
        if let Some(group) = self.groups.last_mut() {
            group.patterns.push(pattern);
        }
    }

    fn pace(&mut self, delay_ms: Option<u64>) {
        if let Some(pace) = self.paces.last_mut() {
            pace.delay_ms = pace.delay_ms.max(delay_ms);
        }
    }
}

impl Rule {
    fn new(line: u32, text: &[u8]) -> Rule {
        // Without a colon, a tab may be all that parts the words.
        let text: Vec<u8> = text.iter().map(|&byte| if byte == b'\t' { b' ' } else { byte }).collect();
        Rule { line, text: printable(&text) }
    }
}

impl Pattern {
    /// An empty one restricts nothing (RFC 9309 2.2.2): it allows everything, with the least weight.
    fn new(allows: bool, value: &[u8], rule: Rule) -> Pattern {
        let anchored = value.last() == Some(&b'$');
        let glob = normal(value.strip_suffix(b"$").unwrap_or(value), Side::Rule);
        Pattern { allows: allows || value.is_empty(), glob, anchored, rule }
    }

    /// Octets, then allow over disallow.
    fn rank(&self) -> (usize, bool) {
        (self.glob.len() + usize::from(self.anchored), self.allows)
    }

    /// Linear in the path for each piece between stars: the leftmost place of a piece is never
    /// worse than a later one, so nothing is ever tried again.
    fn matches(&self, path: &str) -> bool {
        let (head, tail) =
            self.glob.split_once('*').map_or((self.glob.as_str(), None), |(head, tail)| (head, Some(tail)));
        let Some(mut rest) = path.strip_prefix(head) else { return false };
        let Some(tail) = tail else { return !self.anchored || rest.is_empty() };
        // What follows the last star may have to lie at the end; all else lies as far left as it can.
        let (middle, last) = tail.rsplit_once('*').unwrap_or(("", tail));
        for piece in middle.split('*').filter(|piece| !piece.is_empty()) {
            let Some(at) = rest.find(piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        if self.anchored { rest.ends_with(last) } else { rest.contains(last) }
    }
}

/// Which side of a comparison a text is on: `*` and `$` are only special in a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Rule,
    Path,
}

/// One spelling of both sides, RFC 9309 2.2.2: octets that a URI cannot hold are escaped, escaped
/// unreserved ones are not, and a `*` or `$` that is meant literally is `%2A` or `%24`.
fn normal(bytes: &[u8], side: Side) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if let Some(escaped) = escape(&bytes[at..]) {
            push(&mut out, escaped, unreserved(escaped));
            at += 3;
            continue;
        }
        let literal = match byte {
            b'*' => side == Side::Rule,
            b'$' => false,
            byte => unreserved(byte) || b"%:/?#[]@!&'()+,;=".contains(&byte),
        };
        push(&mut out, byte, literal);
        at += 1;
    }
    out
}

fn push(out: &mut String, byte: u8, literal: bool) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    if literal {
        out.push(char::from(byte));
    } else {
        out.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// The byte that `%HH` at the start of `bytes` stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The lines and their numbers, split at CR, LF and CRLF.
fn lines(body: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    // Of a byte order mark as much as is there: Google's parser takes one that is cut short, too.
    let mark = body.iter().zip(b"\xef\xbb\xbf").take_while(|(byte, mark)| byte == mark).count();
    let body = &body[mark..];
    let mut rest = match body.get(..ROBOTS_BYTES_MAX) {
        // The line that the bound cuts is dropped: half a rule covers more than was meant.
        Some(head) if body.len() > head.len() => {
            &head[..head.iter().rposition(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(0)]
        }
        _ => body,
    };
    let mut number = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        rest = tail.strip_prefix(b"\r\n").or_else(|| tail.get(1..)).unwrap_or_default();
        number += 1;
        Some((number, line))
    })
    .map(|(number, line)| {
        let line = &line[..line.len().min(LINE_BYTES_MAX)];
        (number, line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii())
    })
}

/// `key: value`, the key in lower case. Some forget the colon: as by Google's parser, two words are read with one.
fn record(line: &[u8]) -> Option<(String, &[u8])> {
    let (key, value) = match line.iter().position(|&byte| byte == b':') {
        Some(colon) => (&line[..colon], &line[colon + 1..]),
        None => two_words(line)?,
    };
    let key = std::str::from_utf8(key.trim_ascii()).ok()?;
    Some((key.to_ascii_lowercase(), value.trim_ascii()))
}

/// The words of a line that has two of them: of more it is a guess which one is the value.
fn two_words(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let two = (words.next()?, words.next()?);
    words.next().is_none().then_some(two)
}

/// The product token that a text starts with, in lower case, or `*` (RFC 9309 2.2.1).
fn token(text: &[u8]) -> Option<String> {
    if let [b'*', rest @ ..] = text {
        return rest.first().is_none_or(u8::is_ascii_whitespace).then(|| "*".to_owned());
    }
    let end =
        text.iter().position(|byte| !byte.is_ascii_alphabetic() && !matches!(byte, b'-' | b'_')).unwrap_or(text.len());
    let token = std::str::from_utf8(&text[..end]).ok().filter(|token| !token.is_empty())?;
    Some(token.to_ascii_lowercase())
}

fn delay_ms(value: &[u8]) -> Option<u64> {
    let seconds: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| ((seconds * 1000.0).ceil() as u64).min(CRAWL_DELAY_MS_MAX))
}

/// Fit for a terminal and for Postgres, whatever bytes a server sent.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
