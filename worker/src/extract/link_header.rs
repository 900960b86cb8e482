//! What `Link` headers name (RFC 8288).

/// The targets of the links of this relation in one header, as they are written. A link that says to be another page's
/// (`anchor`) is none of this one's.
pub fn targets<'h>(header: &'h str, relation: &str) -> impl Iterator<Item = &'h str> {
    let mut rest = header;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let value = rest.trim_start();
            let bracketed = match value.strip_prefix('<') {
                // Where this one is not closed none behind it is.
                Some(open) => Some(open.split_once('>')?),
                None => None,
            };
            let (params, more) = cut(bracketed.map_or(value, |(_, behind)| behind), ',');
            rest = more;
            if let Some((target, _)) = bracketed.filter(|_| is_of(params, relation)) {
                return Some(target.trim());
            }
        }
        None
    })
}

/// Of several `rel` the first counts (RFC 8288 3.3).
fn is_of(params: &str, relation: &str) -> bool {
    let (mut rest, mut relations) = (params, None);
    while !rest.is_empty() {
        let (param, more) = cut(rest, ';');
        rest = more;
        let (name, value) = param.split_once('=').unwrap_or((param, ""));
        if name.trim().eq_ignore_ascii_case("anchor") {
            return false;
        }
        if relations.is_none() && name.trim().eq_ignore_ascii_case("rel") {
            relations = Some(value.trim().trim_matches('"'));
        }
    }
    relations.is_some_and(|list| list.split_ascii_whitespace().any(|one| one.eq_ignore_ascii_case(relation)))
}

/// What comes before this separator and what behind it; within quotes it is none.
fn cut(text: &str, separator: char) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    let at = text.find(|c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && c == separator,
        }
        false
    });
    at.map_or((text, ""), |at| (&text[..at], &text[at + separator.len_utf8()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_a_relation_are_found_in_every_spelling() {
        for (header, expected) in [
            ("<http://a.example/>; rel=\"canonical\"", &["http://a.example/"][..]),
            ("</x>;REL=Canonical", &["/x"]),
            ("< /x > ; title=\"a, \\\" <b>; rel=canonical\" ; rel = \"next canonical\"", &["/x"]),
            ("</a,b;c>; rel=next, ,</d>; rel=canonical,</e>;rel=canonical", &["/d", "/e"]),
            ("</x>; rel=next; rel=canonical", &[]),
            ("</x>; rel=canonical; anchor=\"/other\"", &[]),
            ("</x>; rel=canonicals, </y>, </z>; canonical", &[]),
            ("x; rel=canonical, \"</y>; rel=canonical\", <z; rel=canonical", &[]),
            ("</x>; title=\"open; rel=canonical", &[]),
            ("<>; rel=canonical", &[""]),
            ("", &[]),
            (",;=\"<>", &[]),
        ] {
            assert_eq!(targets(header, "canonical").collect::<Vec<_>>(), expected, "{header}");
        }
        // As long as it may be, and longer.
        for long in ["<".repeat(100_000) + &";\"\\".repeat(100_000), "<,".repeat(200_000)] {
            assert_eq!(targets(&long, "canonical").count(), 0);
        }
        assert_eq!(targets(&"</x>;rel=canonical,".repeat(10_000), "canonical").count(), 10_000);
    }
}
