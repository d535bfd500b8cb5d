//! The members of a record as they are written, after checking that all of it is one JSON object.
//!
//! There are two readers, because this is a good part of an upload's work: a quick one that takes what records look like as a
//! rule, on one line, and takes nothing that is not JSON; and serde_json for everything else, and for saying what is wrong. A
//! test compares them.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper values are left to serde_json, which has a limit of its own.
const DEEPEST: u8 = 60;

/// The names and values of an object, in order; names may repeat.
pub(super) struct Members<'t> {
    text: &'t str,
    list: Vec<(Cow<'t, str>, &'t str)>,
    quick: bool,
}

impl<'t> Members<'t> {
    /// Reads an object. White space around it must be gone.
    pub(super) fn read(text: &'t str) -> Result<Self, serde_json::Error> {
        if let Some(list) = quickly(text) {
            return Ok(Self { text, list, quick: true });
        }
        let Slowly(list) = serde_json::from_str(text)?;
        Ok(Self { text, list, quick: false })
    }

    /// The members.
    pub(super) fn list(&self) -> &[(Cow<'t, str>, &'t str)] {
        &self.list
    }

    /// The value of the last member called `name`: JSON readers take the last of two.
    pub(super) fn last(&self, name: &str) -> Option<&'t str> {
        self.list.iter().rev().find(|(other, _)| other == name).map(|(_, value)| *value)
    }

    /// The object's text without line breaks.
    pub(super) fn one_line(&self) -> Cow<'t, str> {
        if self.quick { Cow::Borrowed(self.text) } else { one_line(self.text) }
    }
}

/// JSON on one line. Raw line breaks can only stand between tokens, where a space says the same.
pub(super) fn one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_some() {
        Cow::Owned(json.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(json)
    }
}

/// What serde_json reads.
struct Slowly<'t>(Vec<(Cow<'t, str>, &'t str)>);

/// A member's name, borrowed from the text where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'t>(#[serde(borrow)] Cow<'t, str>);

impl<'de> Deserialize<'de> for Slowly<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Slowly<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    list.push((name.0, map.next_value::<&RawValue>()?.get()));
                }
                Ok(Slowly(list))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The members of an object without line breaks, and without escapes in its own names. `None`: serde_json has to look.
fn quickly(text: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
    let json = text.as_bytes();
    let mut list = Vec::with_capacity(32);
    let mut at = space(json, token(json, 0, b'{')?);
    if json.get(at) == Some(&b'}') {
        return (at + 1 == json.len()).then_some(list);
    }
    loop {
        let begin = token(json, at, b'"')?;
        let end = special(json, begin);
        let name = text.get(begin..end)?;
        let begin = space(json, token(json, space(json, token(json, end, b'"')?), b':')?);
        let end = value(json, begin, 0)?;
        list.push((Cow::Borrowed(name), text.get(begin..end)?));
        at = space(json, end);
        match json.get(at)? {
            b',' => at = space(json, at + 1),
            b'}' => return (at + 1 == json.len()).then_some(list),
            _ => return None,
        }
    }
}

// What follows takes the place where something should begin, and gives the one behind it.

fn token(json: &[u8], at: usize, token: u8) -> Option<usize> {
    (json.get(at) == Some(&token)).then_some(at + 1)
}

#[inline(always)]
fn space(json: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t') = json.get(at) {
        at += 1;
    }
    at
}

#[inline(always)]
fn value(json: &[u8], at: usize, depth: u8) -> Option<usize> {
    match json.get(at)? {
        b'"' => string(json, at + 1),
        b'{' | b'[' => nested(json, at, depth),
        b't' => word(json, at, b"true"),
        b'f' => word(json, at, b"false"),
        b'n' => word(json, at, b"null"),
        _ => number(json, at),
    }
}

fn nested(json: &[u8], at: usize, depth: u8) -> Option<usize> {
    let (named, close) = if json[at] == b'{' { (true, b'}') } else { (false, b']') };
    let mut at = space(json, at + 1);
    if json.get(at) == Some(&close) {
        return Some(at + 1);
    }
    if depth == DEEPEST {
        return None;
    }
    loop {
        if named {
            at = space(json, string(json, token(json, at, b'"')?)?);
            at = space(json, token(json, at, b':')?);
        }
        at = space(json, value(json, at, depth + 1)?);
        match json.get(at)? {
            b',' => at = space(json, at + 1),
            found if *found == close => return Some(at + 1),
            _ => return None,
        }
    }
}

/// The rest of a string.
#[inline(always)]
fn string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = special(json, at);
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at = escape(json, at + 1)?,
            _ => return None,
        }
    }
}

fn escape(json: &[u8], at: usize) -> Option<usize> {
    match json.get(at)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 1),
        b'u' => json.get(at + 1..at + 5)?.iter().all(u8::is_ascii_hexdigit).then_some(at + 5),
        _ => None,
    }
}

fn word(json: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    json.get(at..)?.starts_with(word).then_some(at + word.len())
}

#[inline(always)]
fn number(json: &[u8], at: usize) -> Option<usize> {
    let at = token(json, at, b'-').unwrap_or(at);
    let mut at = if json.get(at) == Some(&b'0') { at + 1 } else { digits(json, at)? };
    if json.get(at) == Some(&b'.') {
        at = digits(json, at + 1)?;
    }
    if let Some(b'e' | b'E') = json.get(at) {
        let sign = matches!(json.get(at + 1), Some(b'+' | b'-'));
        at = digits(json, at + 1 + usize::from(sign))?;
    }
    Some(at)
}

#[inline(always)]
fn digits(json: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while json.get(end).is_some_and(u8::is_ascii_digit) {
        end += 1;
    }
    (end > at).then_some(end)
}

/// The next quote, backslash or control character; the end, if there is none. Eight bytes at a time, see Warren, "Hacker's
/// Delight", 6-1: of a word, `(x - 0x01…01) & !x & 0x80…80` is not zero where a byte is, and right up to the first.
#[inline(always)]
fn special(json: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    let below = |word: u64, least: u64| word.wrapping_sub(ONES * least) & !word;
    while let Some(bytes) = json.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*bytes);
        let (quote, backslash) = (word ^ (ONES * u64::from(b'"')), word ^ (ONES * u64::from(b'\\')));
        let found = (below(quote, 1) | below(backslash, 1) | below(word, 0x20)) & TOPS;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = json.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn slowly(text: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
        serde_json::from_str::<Slowly<'_>>(text).ok().map(|Slowly(list)| list)
    }

    /// What the quick reader says, after checking that serde_json says the same.
    fn read(text: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
        let quick = quickly(text);
        if let Some(quick) = &quick {
            assert_eq!(Some(quick), slowly(text).as_ref(), "{text}");
        }
        quick
    }

    #[test]
    fn what_records_look_like_is_read_quickly() {
        let text = r#"{"id": "pred_1", "score":0.25,"at" : "2025-09-27T14:30:00", "models": {"ridge": -1.5e-7, "b": [1, {}, []]},
            "note": "a \"word\", caf\u00e9, ü, \\ and \/", "no": null, "yes": true, "off": false, "e": "" }"#;
        let text = text.replace('\n', " ");
        let list = read(&text).expect("nothing in it needs the slow reader");
        assert_eq!(list.len(), 9);
        assert_eq!(list[3], ("models".into(), r#"{"ridge": -1.5e-7, "b": [1, {}, []]}"#));
        assert_eq!(read("{}"), Some(Vec::new()));
        assert_eq!(read("{ \t}"), Some(Vec::new()));
    }

    #[test]
    fn what_is_rare_is_left_to_the_slow_reader_and_read_all_the_same() {
        let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(100), "]".repeat(100));
        for (text, value) in
            [("{\"a\":\n1}", "1"), (r#"{"\u0061": 1}"#, "1"), ("{\"b\": 2,\r\n \"a\": 1}", "1"), (&deep, &deep[6..207])]
        {
            assert_eq!(read(text), None, "{text}");
            let members = Members::read(text).unwrap();
            assert_eq!(members.last("a"), Some(value), "{text}");
            assert!(!members.one_line().contains(['\n', '\r']));
        }
    }

    #[test]
    fn the_last_of_two_members_counts() {
        assert_eq!(Members::read(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap().last("a"), Some("3"));
        assert_eq!(Members::read(r#"{"a": 1}"#).unwrap().last("A"), None);
    }

    #[test]
    fn nothing_that_is_not_json_is_read_quickly() {
        for text in [
            "",
            "{",
            "}",
            "[]",
            "null",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\" 1}",
            "{\"a\":1}}",
            "{\"a\":1} x",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":+1}",
            "{\"a\":-}",
            "{\"a\":1e}",
            "{\"a\":1e+}",
            "{\"a\":nul}",
            "{\"a\":True}",
            "{\"a\":NaN}",
            "{\"a\":Infinity}",
            "{\"a\":'x'}",
            "{'a':1}",
            "{\"a\":\"x}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\u{1}\"}",
            "{\"a\":\"x\ty\"}",
            "{\"a\u{0}\":1}",
            "{\"a\":[1,]}",
            "{\"a\":[1 2]}",
            "{\"a\":[1}",
            "{\"a\":{\"b\"}}",
            "{\"a\":{\"b\":1]}",
            "{\"a\":1\u{a0}}",
            "{\"a\":1\"b\":2}",
            "{\"a\":1,,\"b\":2}",
            "{a:1}",
            "{\"a\":1/**/}",
        ] {
            assert_eq!((read(text), slowly(text)), (None, None), "{text}");
        }
    }

    #[test]
    fn every_byte_is_seen_wherever_it_stands_in_a_string() {
        for byte in (0..0x80_u8).map(char::from) {
            for before in 0..20 {
                let string = format!("{}{byte}{}", "x".repeat(before), "y".repeat(19 - before));
                let (value, name) = (format!("{{\"a\": \"{string}\"}}"), format!("{{\"{string}\": 1}}"));
                let plain = !byte.is_control() && !['"', '\\'].contains(&byte) || byte == '\u{7f}';
                assert_eq!((read(&value).is_some(), read(&name).is_some()), (plain, plain), "{byte:?} after {before}");
            }
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let text = "\"([a-zA-Z_ üß日]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}){0,12}\"";
        let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
        let leaf = prop_oneof![text, number, select(&["true", "false", "null"][..]).prop_map(str::to_owned)];
        let gap = || select(&["", "", " ", "  ", "\t", " \n"][..]);
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let name = "\"[a-z_ü]{0,20}\"";
            let member =
                (name, gap(), gap(), inner.clone()).prop_map(|(name, a, b, value)| format!("{name}{a}:{b}{value}"));
            prop_oneof![
                (prop::collection::vec(member, 0..6), gap())
                    .prop_map(|(all, gap)| format!("{{{gap}{}{gap}}}", all.join(&format!("{gap},{gap}")))),
                (prop::collection::vec(inner, 0..4), gap())
                    .prop_map(|(all, gap)| format!("[{gap}{}{gap}]", all.join(&format!("{gap},{gap}")))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn both_readers_agree_on_json(value in json()) {
            let text = format!("{{\"name\": {value}, \"other\" :{value}}}");
            let quick = read(&text);
            prop_assert!(slowly(&text).is_some(), "{}", text);
            prop_assert_eq!(quick.is_some(), !text.contains('\n'), "{}", text);
        }

        #[test]
        fn both_readers_agree_on_what_is_nearly_json(
            value in json(),
            place in any::<prop::sample::Index>(),
            cut in 0_usize..3,
            put in select(&["", "\"", "\\", ",", ":", "{", "}", "[", "]", "0", ".", "e", "-", " ", "\u{1}", "tru", "ü"][..]),
        ) {
            let mut text: Vec<char> = format!("{{\"name\": {value}}}").chars().collect();
            let at = place.index(text.len());
            text.splice(at..(at + cut).min(text.len()), put.chars());
            let text: String = text.into_iter().collect();
            read(&text);
        }
    }
}
