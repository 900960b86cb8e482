//! What `X-Robots-Tag` says of a page (Google, "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications").

/// Directives that have a value behind a colon; before any other colon stands the name of an agent.
const WITH_VALUE: [&str; 4] = ["max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"];

/// Whether they say this word, or `none`, which is all of them. `headers` are all of that name; what follows the name of
/// an agent, up to the end of its header or to the next name, is for that one alone. What is said to all and what is said
/// to the agent add up: "the more restrictive rule applies".
pub fn says<'h>(headers: impl IntoIterator<Item = &'h str>, agent_product: &str, word: &str) -> bool {
    headers.into_iter().any(|header| {
        let mut is_ours = true;
        header.split(',').any(|part| {
            let mut directive = part.trim();
            if let Some((name, rest)) = directive.split_once(':')
                && is_agent(name.trim())
            {
                is_ours = name.trim().eq_ignore_ascii_case(agent_product);
                directive = rest.trim();
            }
            is_ours && [word, "none"].iter().any(|word| directive.eq_ignore_ascii_case(word))
        })
    })
}

/// The date behind `unavailable_after` has commas and colons of its own.
fn is_agent(name: &str) -> bool {
    let of_name = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'*');
    let begins = name.bytes().next().is_none_or(of_name);
    let is_word = begins && name.bytes().all(|byte| of_name(byte) || byte.is_ascii_digit());
    is_word && !WITH_VALUE.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_for_all_or_for_the_agent_that_is_named() {
        for (headers, expected) in [
            (&[][..], false),
            (&["noindex"], false),
            (&["noindex, NoFollow"], true),
            (&["none"], true),
            (&["noindex", "nofollow"], true),
            (&["dodo: nofollow"], true),
            (&["DODO: noindex, none"], true),
            (&["googlebot: nofollow"], false),
            (&["otherbot: noindex, nofollow"], false),
            (&["googlebot: nofollow, dodo: none"], true),
            (&["dodo: noindex, googlebot: nofollow"], false),
            (&["googlebot: noindex", "nofollow"], true),
            (&["unavailable_after: 25 Jun 2010 15:00:00 PST, nofollow"], true),
            (&["unavailable_after: Wed, 03 Jul 2026 15:00:00 GMT, noindex, nofollow"], true),
            (&["dodo: unavailable_after: Wed, 03 Jul 2026 15:00:00 GMT, nofollow"], true),
            (&["googlebot: unavailable_after: Wed, 03 Jul 2026 15:00:00 GMT, nofollow"], false),
            (&["max-snippet: 20, max-image-preview: large"], false),
            (&["max-snippet:-1, none"], true),
            (&["nofollows", ",:, :nofollow"], false),
        ] {
            assert_eq!(says(headers.iter().copied(), "dodo", "nofollow"), expected, "{headers:?}");
        }
        for (headers, expected) in [
            (&["NoIndex"][..], true),
            (&["all", "dodo: none"], true),
            (&["index, dodo: nofollow, noindex"], true),
            (&["nofollow"], false),
            (&["googlebot: noindex"], false),
        ] {
            assert_eq!(says(headers.iter().copied(), "dodo", "noindex"), expected, "{headers:?}");
        }
    }
}
