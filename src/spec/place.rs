//! Where in a JSON text an error is: from serde_json's line and column to a path of names.
//!
//! serde_path_to_error does the same by wrapping every type's deserialiser once more, which costs
//! hundreds of kilobytes of code for types as large as `Spec`. The text itself says it as well.

/// The path, like `linux.namespaces[2].type`, of the value in which the byte before `line` and
/// `column` (both from 1, columns in bytes, as serde_json counts) lies; the object's path for a byte
/// in a name or a brace; empty for the document itself. `json` must be valid JSON.
pub(super) fn path_at(json: &[u8], line: usize, column: usize) -> String {
    let start: usize = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let target = start + column.saturating_sub(1);
    let mut walk = Walk {
        json,
        at: 0,
        target,
        path: Vec::new(),
    };
    walk.value();
    let mut text = String::new();
    for step in &walk.path {
        match step {
            Step::Name(name) if text.is_empty() => text.push_str(name),
            Step::Name(name) => {
                text.push('.');
                text.push_str(name);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

enum Step {
    Name(String),
    Index(usize),
}

/// A walk through the text that ends, with the path at hand, as soon as it has passed the target.
struct Walk<'a> {
    json: &'a [u8],
    at: usize,
    target: usize,
    path: Vec<Step>,
}

impl Walk<'_> {
    /// Walks over one value; true when the target was in it, and the path is to stay as it is.
    fn value(&mut self) -> bool {
        self.space();
        match self.peek() {
            Some(b'{') => self.members(b'}'),
            Some(b'[') => self.members(b']'),
            Some(b'"') => {
                self.string();
                self.passed()
            }
            _ => {
                while self
                    .peek()
                    .is_some_and(|byte| !b",]} \t\r\n".contains(&byte))
                {
                    self.at += 1;
                }
                self.passed()
            }
        }
    }

    /// Walks over an object or an array, up to `end`.
    fn members(&mut self, end: u8) -> bool {
        self.at += 1;
        let mut index = 0;
        loop {
            self.space();
            if self.passed() {
                return true;
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(byte) if byte == end => {
                    self.at += 1;
                    return self.passed();
                }
                Some(_) => {
                    let step = match end {
                        b'}' => {
                            let name = self.string();
                            if self.passed() {
                                return true;
                            }
                            self.space();
                            // The colon.
                            self.at += 1;
                            Step::Name(name)
                        }
                        _ => Step::Index(index),
                    };
                    index += 1;
                    self.path.push(step);
                    if self.value() {
                        return true;
                    }
                    self.path.pop();
                }
                None => return true,
            }
        }
    }

    /// Walks over a string; gives what is between the quotes, unescaped where that is possible.
    fn string(&mut self) -> String {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                break;
            }
        }
        let text = &self.json[start..self.at.min(self.json.len())];
        serde_json::from_slice(text).unwrap_or_else(|_| String::from_utf8_lossy(text).into_owned())
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn passed(&self) -> bool {
        self.at > self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_path() {
        let json = br#"{"a": 1, "b": [10, {"c\u0064": "x,]"}, []], "e": {}}"#;
        for (what, path) in [
            ("{\"a", ""),
            ("\"a\"", ""),
            ("1,", "a"),
            ("\"b\"", ""),
            ("[10", "b"),
            ("10", "b[0]"),
            ("{\"c", "b[1]"),
            ("\"c", "b[1]"),
            ("\"x,]\"", "b[1].cd"),
            ("x,]", "b[1].cd"),
            ("}, []", "b[1]"),
            ("[]]", "b[2]"),
            ("], \"e", "b"),
            ("{}", "e"),
            ("}}", "e"),
        ] {
            let at = json
                .windows(what.len())
                .position(|part| part == what.as_bytes())
                .unwrap();
            assert_eq!(path_at(json, 1, at + 1), path, "{what}");
        }
        assert_eq!(path_at(json, 1, json.len()), "");
        assert_eq!(path_at(json, 1, json.len() + 5), "");
    }

    #[test]
    fn lines_count() {
        let json = b"{\n  \"a\": {\n    \"b\": true\n  }\n}\n";
        assert_eq!(path_at(json, 3, 13), "a.b");
        assert_eq!(path_at(json, 4, 3), "a");
        assert_eq!(path_at(json, 5, 1), "");
    }
}
