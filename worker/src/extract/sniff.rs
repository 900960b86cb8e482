//! What a body without a media type looks like.

/// Beginnings of HTML, each followed by a space or `>` (WHATWG MIME Sniffing, 7.1); after the last one, anything follows.
const TAGS: [&[u8]; 16] = [
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<script",
    b"<iframe",
    b"<h1",
    b"<div",
    b"<font",
    b"<table",
    b"<a",
    b"<style",
    b"<title",
    b"<b",
    b"<body",
    b"<br",
    b"<p",
];
const COMMENT: &[u8] = b"<!--";

/// Whether a decoded body begins as HTML does, behind white space and the mark of UTF-8.
pub fn looks_like_html(body: &[u8]) -> bool {
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    let begins = |tag: &[u8]| text.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag));
    begins(COMMENT) || TAGS.iter().any(|tag| begins(tag) && matches!(text.get(tag.len()), Some(b' ' | b'>')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_told_by_how_it_begins() {
        for html in
            ["<!DOCTYPE html>", "\n \t<HTML lang=en>", "\u{feff}<p>text", "<!-- x -->", "<a href=/x>", "<body >"]
        {
            assert!(looks_like_html(html.as_bytes()), "{html}");
        }
        for other in ["", "text <p>", "<", "<?xml version='1.0'?>", "<urlset>", "<abbr>", "<html", "%PDF-1.7", "{}"] {
            assert!(!looks_like_html(other.as_bytes()), "{other}");
        }
    }
}
