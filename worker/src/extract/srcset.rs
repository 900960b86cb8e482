//! The URLs of a `srcset` attribute (WHATWG HTML, "parse a srcset attribute").

/// In their order. A candidate whose descriptor makes no sense is one all the same: it names a resource.
pub fn urls(srcset: &str) -> impl Iterator<Item = &str> {
    let mut rest = srcset;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
        if rest.is_empty() {
            return None;
        }
        // Commas within belong to the URL; only those at its end separate.
        let (url, tail) = rest.split_at(rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len()));
        let trimmed = url.trim_end_matches(',');
        rest = if trimmed.len() < url.len() { tail } else { after_descriptors(tail) };
        Some(trimmed)
    })
}

/// What follows the comma that ends a candidate; commas in parentheses do not.
fn after_descriptors(text: &str) -> &str {
    let mut in_parentheses = false;
    for (at, c) in text.char_indices() {
        match c {
            '(' => in_parentheses = true,
            ')' => in_parentheses = false,
            ',' if !in_parentheses => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates() {
        for (srcset, expected) in [
            ("", &[][..]),
            (" , ,\n", &[]),
            ("a.png", &["a.png"]),
            ("a.png 1x, b.png 2x", &["a.png", "b.png"]),
            ("a.png 300w,b.png 600w,c.png", &["a.png", "b.png", "c.png"]),
            // Without white space a comma is part of the URL.
            ("a.png,b.png", &["a.png,b.png"]),
            ("/w_300,h_200/a.png 300w, /w_600,h_400/a.png 600w", &["/w_300,h_200/a.png", "/w_600,h_400/a.png"]),
            ("data:,a 1x, b", &["data:,a", "b"]),
            ("a.png, b.png", &["a.png", "b.png"]),
            ("a.png,, b.png 2x", &["a.png", "b.png"]),
            (",a.png 1x,,b.png 2x,", &["a.png", "b.png"]),
            ("\ta.png\t2x\t,\r\nb.png\x0c3x ", &["a.png", "b.png"]),
            ("a.png (1x, c.png 2x), b.png", &["a.png", "b.png"]),
            ("a.png (1x, b.png 2x", &["a.png"]),
            ("a.png 1x 2y nonsense, b.png -3w", &["a.png", "b.png"]),
            ("\u{e9}.png 1\u{e9}, \u{2003}.png", &["\u{e9}.png", "\u{2003}.png"]),
        ] {
            assert_eq!(urls(srcset).collect::<Vec<_>>(), expected, "{srcset}");
        }
    }
}
