use super::*;

fn names(text: &str) -> String {
    let tags: Vec<_> = Tags::new(text, false).map(|tag| String::from_utf8_lossy(tag.name()).into_owned()).collect();
    tags.join(" ")
}

#[test]
fn tags_end_where_their_attributes_do() {
    for (text, expected) in [
        ("<a><B\t><c/><d / ><e=f><g\u{e9}><1><a", "a b c d e=f g\u{e9}"),
        ("<a title='<b>'><c title=\"</c><d>\" x=y><e title=<f>", "a c e"),
        ("<a'><b \"><c ='><d>'>", "a' b c d"),
        ("</a><b></c x='<d>'></><e></ <f>><g><?h<i>><j>", "b e g j"),
        ("<!doctype '><a><!x<b><c><![CDATA[<d>]]><e>", "a c e"),
        ("<a href='x", ""),
        ("<", ""),
        ("</", ""),
        ("<!", ""),
    ] {
        assert_eq!(names(text), expected, "{text}");
    }
}

#[test]
fn attributes_as_they_are_written() {
    let text = "<a HREF = 'x y' href=no class=\"\" hidden data-a=1/2/ =b=c d=>";
    let tag = Tags::new(text, false).next().unwrap();
    let expected = [
        ("href", Some("x y")),
        ("class", Some("")),
        ("hidden", Some("")),
        ("data-a", Some("1/2/")),
        ("=b", Some("c")),
        ("d", Some("")),
        ("e", None),
    ];
    for (name, value) in expected {
        assert_eq!(tag.attribute(name), value, "{name}");
    }
    assert_eq!(Tags::new("<a/href=x/y/>", false).next().unwrap().attribute("href"), Some("x/y/"));
}

#[test]
fn comments_end_as_browsers_end_them() {
    for comment in ["<!-->", "<!--->", "<!---->", "<!-- <a> -->", "<!-- <a> --!>", "<!-- -- -> <a> --->", "<!-----!>"] {
        assert_eq!(names(&format!("{comment}<b>--><c>")), "b c", "{comment}");
    }
    assert_eq!(names("<!-- <a> -- ><b>"), "");
}

#[test]
fn in_xml_an_element_that_closes_itself_holds_nothing() {
    let text = "<title/><script src='a.js' /><style/><iframe/><a href=x></a><script><b></script><i/>";
    let names = |is_xml| -> Vec<_> {
        Tags::new(text, is_xml).map(|tag| String::from_utf8_lossy(tag.name()).into_owned()).collect()
    };
    assert_eq!(names(true), ["title", "script", "style", "iframe", "a", "script", "i"]);
    assert_eq!(names(false), ["title"]);
}

#[test]
fn elements_that_hold_text_hold_no_tags() {
    for name in ["title", "TextArea", "style", "xmp", "iframe", "noembed", "noframes", "script"] {
        let text = format!("<{name}><a></{name}x></</a></{name}\n><b>");
        assert_eq!(names(&text), format!("{} b", name.to_lowercase()));
        assert_eq!(Tags::new(&text, false).next().unwrap().text, Some(&*format!("<a></{name}x></</a>")));
    }
    assert_eq!(names("<plaintext><a></plaintext><b>"), "plaintext");
    assert_eq!(names("<title><a></title"), "title");
    assert_eq!(names("<noscript><a></noscript>"), "noscript a", "there are no scripts here");
}

#[test]
fn a_script_ends_where_browsers_end_it() {
    for (text, expected) in [
        ("<!-- </script><a>", "a"),
        ("<!-- <script> </script><a> </script><b>", "b"),
        ("<!-- <script> --></script><a>", "a"),
        ("<!--><script></script><a>", "a"),
        ("<!-- <script </script/ </script ><a>", "a"),
        ("<!-- <scripts> </script><a>", "a"),
        ("<script></script><a>", "a"),
    ] {
        assert_eq!(names(&format!("<script>{text}")), format!("script {expected}"), "{text}");
    }
}

#[test]
fn drawings_and_formulas_have_rules_of_their_own() {
    for (text, expected) in [
        ("<svg><title><a></title><style><b></style></svg><style><c></style>", "svg title a style b style"),
        ("<svg><![CDATA[<a>]]><b></svg>", "svg b"),
        ("<svg/><style><a></style>", "svg style"),
        ("<svg><desc/><style><a></style>", "svg desc style a"),
        ("<svg><foreignObject><style><a></style></foreignObject><style><b>", "svg foreignobject style style b"),
        ("<svg><svg></svg><style><a></style></svg><style><b>", "svg svg style a style"),
        ("<svg><g><p><style><a>", "svg g p style"),
        ("<svg><font><style><a><font size=1><style><b>", "svg font style a font style"),
        ("<svg></p><style><a>", "svg style"),
        ("<math><mi><style><a></style></mi><style><b>", "math mi style style b"),
        ("<math><annotation-xml encoding=Text/HTML><style><a>", "math annotation-xml style"),
        ("<math><annotation-xml><style><a>", "math annotation-xml style a"),
        ("</svg></p><style><a>", "style"),
    ] {
        assert_eq!(names(text), expected, "{text}");
    }
    let deep = "<svg>".repeat(10_000) + &"</math>".repeat(10_000) + &"</svg>".repeat(10_000) + "<style><a>";
    assert!(names(&deep).ends_with("svg style"));
}
