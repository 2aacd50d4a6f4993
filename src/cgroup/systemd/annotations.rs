//! Pure: properties of the unit that annotations ask for: `org.systemd.property.NAME`, whose values are
//! texts of GVariant (as runc reads them; docs/systemd.md there).

use std::collections::BTreeMap;

use super::wire::Value;
use crate::error::{Error, Result};

/// What annotations that ask for properties begin with.
pub const PREFIX: &str = "org.systemd.property.";

/// The properties, in the order of their names.
///
/// # Errors
/// A name or a value that is none, naming the annotation.
pub(super) fn properties<'a>(
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<(String, Value)>> {
    let sorted: BTreeMap<&str, &str> = annotations.collect();
    let mut found = Vec::new();
    for (key, text) in sorted {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let field = format!("annotations[{key:?}]");
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            let detail = format!("{name:?} is no name of a property: three letters or more");
            return Err(Error::spec(field, detail));
        }
        let value = parse(text).ok_or_else(|| {
            Error::spec(
                &field,
                format!("{text:?} is no value that is understood here"),
            )
            .remedy("write it as a GVariant: 'text', true, uint64 5, 1.5, ['a', 'b']")
        })?;
        let (name, value) = match name.strip_suffix("Sec") {
            // Times are in microseconds on the bus, and their names say so.
            Some(stem) if stem.ends_with(|last: char| last.is_ascii_lowercase()) => {
                let value = microseconds(&value)
                    .ok_or_else(|| Error::spec(field, format!("{text:?} is no time in seconds")))?;
                (format!("{stem}USec"), value)
            }
            _ => (name.to_string(), value),
        };
        found.push((name, value));
    }
    Ok(found)
}

fn microseconds(value: &Value) -> Option<Value> {
    let whole = |seconds: u64| seconds.checked_mul(1_000_000);
    let micro = match *value {
        Value::Byte(seconds) => whole(seconds.into()),
        Value::Int16(seconds) => whole(seconds.try_into().ok()?),
        Value::Uint16(seconds) => whole(seconds.into()),
        Value::Int32(seconds) => whole(seconds.try_into().ok()?),
        Value::Uint32(seconds) => whole(seconds.into()),
        Value::Int64(seconds) => whole(seconds.try_into().ok()?),
        Value::Uint64(seconds) => whole(seconds),
        Value::Double(seconds) if (0.0..1e12).contains(&seconds) => Some((seconds * 1e6) as u64),
        _ => None,
    };
    micro.map(Value::Uint64)
}

/// One value: a truth, a number (with its type in front, or int32 and double without), a text, or an
/// array of texts or numbers of 32 bits without sign or bytes.
fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[') {
        return array(inner.strip_suffix(']')?);
    }
    if let Some(inner) = text.strip_prefix("@as") {
        return match inner.trim() {
            "[]" => Some(Value::Texts(Vec::new())),
            inner => parse(inner).filter(|value| matches!(value, Value::Texts(_))),
        };
    }
    if text.starts_with(['\'', '"']) {
        let (value, rest) = quoted(text)?;
        return rest.is_empty().then_some(Value::Text(value));
    }
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    let Some((kind, number)) = text.split_once(char::is_whitespace) else {
        return match integer(text) {
            Some(number) => i32::try_from(number).ok().map(Value::Int32),
            None => double(text),
        };
    };
    let number = number.trim();
    let whole = || integer(number);
    Some(match kind {
        "boolean" => Value::Bool(number.parse().ok()?),
        "byte" => Value::Byte(whole()?.try_into().ok()?),
        "int16" => Value::Int16(whole()?.try_into().ok()?),
        "uint16" => Value::Uint16(whole()?.try_into().ok()?),
        "int32" => Value::Int32(whole()?.try_into().ok()?),
        "uint32" => Value::Uint32(whole()?.try_into().ok()?),
        "int64" => Value::Int64(whole()?.try_into().ok()?),
        "uint64" => Value::Uint64(whole()?.try_into().ok()?),
        "double" => double(number)?,
        "string" => return parse(number).filter(|value| matches!(value, Value::Text(_))),
        _ => return None,
    })
}

fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    i128::from_str_radix(digits, radix)
        .ok()
        .filter(|_| !digits.starts_with(['+', '-']))
        .map(|number| sign * number)
}

fn double(text: &str) -> Option<Value> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    text.parse().ok().filter(|_| plain).map(Value::Double)
}

/// A text in quotes, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let (_, quote) = chars.next()?;
    let mut value = String::new();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                plain @ ('\\' | '\'' | '"') => plain,
                _ => return None,
            }),
            letter if letter == quote => {
                return (!value.contains('\0')).then(|| (value, text[at + 1..].trim_start()));
            }
            letter => value.push(letter),
        }
    }
    None
}

fn array(inner: &str) -> Option<Value> {
    let mut rest = inner.trim();
    let mut texts = Vec::new();
    if rest.starts_with(['\'', '"']) {
        loop {
            let (text, after) = quoted(rest)?;
            texts.push(text);
            rest = match after.strip_prefix(',') {
                Some(more) => more.trim_start(),
                None if after.is_empty() => return Some(Value::Texts(texts)),
                None => return None,
            };
        }
    }
    // The first element's type is that of all.
    let (kind, rest) = rest.split_once(char::is_whitespace)?;
    let numbers = rest.split(',').map(|part| integer(part.trim()));
    match kind {
        "byte" => numbers
            .map(|number| u8::try_from(number?).ok())
            .collect::<Option<_>>()
            .map(Value::Bytes),
        "uint32" => numbers
            .map(|number| u32::try_from(number?).ok())
            .collect::<Option<_>>()
            .map(Value::Uint32s),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, text: &str) -> Result<Vec<(String, Value)>> {
        properties([(key, text), ("other", "'x'")].into_iter())
    }

    #[test]
    fn values() {
        for (text, want) in [
            ("true", Value::Bool(true)),
            ("boolean false", Value::Bool(false)),
            ("5", Value::Int32(5)),
            ("-0x10", Value::Int32(-16)),
            ("010", Value::Int32(8)),
            ("1.5", Value::Double(1.5)),
            ("uint64 123456789", Value::Uint64(123_456_789)),
            ("uint64 18446744073709551615", Value::Uint64(u64::MAX)),
            ("byte 0xff", Value::Byte(255)),
            (
                "'inactive-or-failed'",
                Value::Text("inactive-or-failed".into()),
            ),
            (r#""it's""#, Value::Text("it's".into())),
            (r"'it\'s'", Value::Text("it's".into())),
            (
                "['a.service', 'b']",
                Value::Texts(vec!["a.service".into(), "b".into()]),
            ),
            ("@as []", Value::Texts(Vec::new())),
            ("[uint32 1, 2]", Value::Uint32s(vec![1, 2])),
            ("[byte 3]", Value::Bytes(vec![3])),
        ] {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        for wrong in [
            "",
            "x",
            "'x",
            "'a' b",
            "byte 256",
            "uint32 -1",
            "2147483648",
            "[]",
            "['a' 'b']",
            "['a',]",
            "[1",
            "uint64",
            "inf",
            "uint32 0x",
            "uint32 --1",
            "'\0'",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names() {
        let timeout = one("org.systemd.property.TimeoutStopUSec", "uint64 5").unwrap();
        assert_eq!(timeout, [("TimeoutStopUSec".into(), Value::Uint64(5))]);
        for text in ["2", "uint64 2", "2.0", "byte 2"] {
            let timeout = one("org.systemd.property.RuntimeMaxSec", text).unwrap();
            let want = Value::Uint64(2_000_000);
            assert_eq!(timeout, [("RuntimeMaxUSec".into(), want)], "{text}");
        }
        // As under runc: only after a small letter is it a time.
        let odd = one("org.systemd.property.FOOSec", "2").unwrap();
        assert_eq!(odd, [("FOOSec".into(), Value::Int32(2))]);
        for (key, text) in [
            ("org.systemd.property.ab", "1"),
            ("org.systemd.property.A-B-C", "1"),
            ("org.systemd.property.Foo", "bar"),
            ("org.systemd.property.FooSec", "'x'"),
            ("org.systemd.property.FooSec", "-1"),
        ] {
            let error = one(key, text).unwrap_err().to_string();
            assert!(error.contains(&format!("annotations[{key:?}]")), "{error}");
        }
    }
}
