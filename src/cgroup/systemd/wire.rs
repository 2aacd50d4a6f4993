//! D-Bus messages as bytes: as much of the D-Bus specification ("Message Protocol") as calls to
//! systemd need. Little-endian, without descriptors. Every length is checked against the bytes that are
//! there, and a message against [`MOST`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest message that is sent or taken, in bytes. The protocol allows 128 MiB; what systemd says
/// to the calls made here has a few hundred bytes.
pub(super) const MOST: usize = 1 << 20;

/// The part of a header whose size is fixed, up to the length of the array of fields.
pub(super) const FIXED: usize = 16;

pub(super) const CALL: u8 = 1;
pub(super) const RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// A value of a unit's property, of the types that systemd's properties have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `y`
    Byte(u8),
    /// `n`
    Int16(i16),
    /// `q`
    Uint16(u16),
    /// `i`
    Int32(i32),
    /// `u`
    Uint32(u32),
    /// `x`
    Int64(i64),
    /// `t`
    Uint64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Uint32s(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    /// The type's signature.
    pub(super) fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Byte(_) => "y",
            Self::Int16(_) => "n",
            Self::Uint16(_) => "q",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Double(_) => "d",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Uint32s(_) => "au",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

impl fmt::Display for Value {
    /// As people would write it for systemctl set-property.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => f.write_str(if *value { "yes" } else { "no" }),
            Self::Byte(value) => write!(f, "{value}"),
            Self::Int16(value) => write!(f, "{value}"),
            Self::Uint16(value) => write!(f, "{value}"),
            Self::Int32(value) => write!(f, "{value}"),
            Self::Uint32(value) => write!(f, "{value}"),
            Self::Int64(value) => write!(f, "{value}"),
            Self::Uint64(u64::MAX) => f.write_str("infinity"),
            Self::Uint64(value) => write!(f, "{value}"),
            Self::Double(value) => write!(f, "{value}"),
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => write!(f, "{bytes:?}"),
            Self::Uint32s(numbers) => write!(f, "{numbers:?}"),
            Self::Texts(texts) => f.write_str(&texts.join(" ")),
            Self::Pairs(pairs) => {
                let words: Vec<String> = pairs.iter().map(|(a, b)| format!("{a} {b}")).collect();
                f.write_str(&words.join(", "))
            }
        }
    }
}

/// Bytes that are not what the protocol says; the word tells where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Puts values behind each other, each at a multiple of its alignment.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number<const N: usize>(&mut self, bytes: [u8; N]) -> &mut Self {
        self.align(N);
        self.0.extend(bytes);
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.number(value.to_le_bytes())
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    fn signature(&mut self, signature: &str) -> &mut Self {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
        self
    }

    /// An array: its length counts neither itself nor the padding before the first element.
    pub(super) fn array<T>(
        &mut self,
        alignment: usize,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        for item in items {
            each(self, item);
        }
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => drop(self.u32(u32::from(*value))),
            Value::Byte(value) => self.0.push(*value),
            Value::Int16(value) => drop(self.number(value.to_le_bytes())),
            Value::Uint16(value) => drop(self.number(value.to_le_bytes())),
            Value::Int32(value) => drop(self.number(value.to_le_bytes())),
            Value::Uint32(value) => drop(self.u32(*value)),
            Value::Int64(value) => drop(self.number(value.to_le_bytes())),
            Value::Uint64(value) => drop(self.number(value.to_le_bytes())),
            Value::Double(value) => drop(self.number(value.to_le_bytes())),
            Value::Text(text) => drop(self.text(text)),
            Value::Bytes(bytes) => drop(self.array(1, bytes, |writer, byte| writer.0.push(*byte))),
            Value::Uint32s(numbers) => drop(self.array(4, numbers, |writer, number| {
                writer.u32(*number);
            })),
            Value::Texts(texts) => drop(self.array(4, texts, |writer, text| {
                writer.text(text);
            })),
            Value::Pairs(pairs) => drop(self.array(8, pairs, |writer, (one, other)| {
                writer.align(8);
                writer.text(one).text(other);
            })),
        }
    }

    pub(super) fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        self.value(value);
    }

    /// `a(sv)`: properties with their values.
    pub(super) fn properties(&mut self, properties: &[(String, Value)]) -> &mut Self {
        self.array(8, properties, |writer, (name, value)| {
            writer.align(8);
            writer.text(name);
            writer.variant(value);
        })
    }

    /// An array without elements, of elements with this alignment.
    pub(super) fn nothing(&mut self, alignment: usize) -> &mut Self {
        self.array(alignment, [(); 0], |_, ()| {})
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// A method call.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// The signature of the body; empty: there is none.
    pub(super) signature: &'a str,
    pub(super) body: Vec<u8>,
}

impl Call<'_> {
    /// The message, with a serial number, which is not 0.
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut fields = vec![
            (1, "o", self.path),
            (2, "s", self.interface),
            (3, "s", self.member),
            (6, "s", self.destination),
        ];
        if !self.signature.is_empty() {
            fields.push((8, "g", self.signature));
        }
        message(CALL, serial, &fields, None, &self.body)
    }
}

/// A message of any type: what [`Call::encode`] makes, and what a test's bus answers with.
pub(super) fn message(
    kind: u8,
    serial: u32,
    fields: &[(u8, &str, &str)],
    reply_to: Option<u32>,
    body: &[u8],
) -> Vec<u8> {
    let mut writer = Writer(vec![b'l', kind, 0, 1]);
    writer.u32(body.len() as u32).u32(serial);
    let numbers = reply_to.map(|serial| (5, "u", serial));
    let start = writer.0.len();
    writer.array(8, fields, |writer, (code, signature, text)| {
        writer.align(8);
        writer.0.push(*code);
        writer.signature(signature);
        match *signature {
            "g" => writer.signature(text),
            _ => writer.text(text),
        };
    });
    if let Some((code, signature, serial)) = numbers {
        writer.align(8);
        writer.0.push(code);
        writer.signature(signature).u32(serial);
        let length = (writer.0.len() - start - 4) as u32;
        writer.0[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
    writer.align(8);
    writer.0.extend(body);
    writer.finish()
}

/// A message that came in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: Option<u32>,
    pub(super) sender: String,
    pub(super) path: String,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// The length of a whole message, from its first [`FIXED`] bytes.
pub(super) fn length(start: &[u8; FIXED]) -> Result<usize, Malformed> {
    if start[0] != b'l' || start[3] != 1 {
        return Err(Malformed("a message in another byte order or protocol"));
    }
    let number = |at: usize| {
        u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]) as usize
    };
    let (body, fields) = (number(4), number(12));
    if body > MOST || fields > MOST {
        return Err(Malformed("a message of more than a megabyte"));
    }
    let whole = (FIXED + fields).next_multiple_of(8) + body;
    match whole > MOST {
        true => Err(Malformed("a message of more than a megabyte")),
        false => Ok(whole),
    }
}

/// Takes a whole message apart.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    let start = bytes.first_chunk().ok_or(Malformed("a short message"))?;
    if length(start)? != bytes.len() {
        return Err(Malformed("a message of another length than it says"));
    }
    let mut message = Message {
        kind: bytes[1],
        ..Message::default()
    };
    let mut reader = Reader { bytes, at: 12 };
    let end = reader.u32()? as usize + FIXED;
    while reader.at < end {
        reader.align(8)?;
        let code = reader.byte()?;
        match reader.signature()? {
            "u" => {
                let number = reader.u32()?;
                if code == 5 {
                    message.reply_to = Some(number);
                }
            }
            kind @ ("s" | "o" | "g") => {
                let text = match kind {
                    "g" => reader.signature()?,
                    _ => reader.text()?,
                };
                let field = match code {
                    1 => &mut message.path,
                    2 => &mut message.interface,
                    3 => &mut message.member,
                    4 => &mut message.error,
                    7 => &mut message.sender,
                    8 => &mut message.signature,
                    _ => continue,
                };
                *field = text.to_string();
            }
            _ => return Err(Malformed("a header field of an unknown type")),
        }
    }
    if reader.at != end {
        return Err(Malformed("header fields of another length than they say"));
    }
    reader.align(8)?;
    message.body = bytes[reader.at..].to_vec();
    Ok(message)
}

/// Reads values from where they are; nothing beyond the end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let next = self.at.next_multiple_of(to);
        if next > self.bytes.len() {
            return Err(Malformed("a value that is cut off"));
        }
        self.at = next;
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..count)
            .ok_or(Malformed("a value that is cut off"))?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn ended(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let bytes = self.take(length)?;
        if self.byte()? != 0 || bytes.contains(&0) {
            return Err(Malformed("a text with a NUL in it or none behind it"));
        }
        std::str::from_utf8(bytes).map_err(|_| Malformed("a text that is not UTF-8"))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        self.ended(length)
    }

    pub(super) fn signature(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::from(self.byte()?);
        self.ended(length)
    }

    /// The text of a variant that holds one.
    pub(super) fn text_variant(&mut self) -> Result<&'a str, Malformed> {
        match self.signature()? {
            "s" | "o" => self.text(),
            _ => Err(Malformed("a variant of another type")),
        }
    }
}
