//! User ids to names, from /etc/passwd alone: a static binary has no name service switch.

use std::collections::HashMap;

/// The names of this host's users.
#[derive(Debug, Default)]
pub struct Names(HashMap<u32, String>);

impl Names {
    /// Reads /etc/passwd; a host without one has no names.
    pub fn load() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut names = HashMap::new();
        for line in text.lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
                // The first name of a user counts, as in getpwuid(3).
                names.entry(uid).or_insert_with(|| name.to_string());
            }
        }
        Self(names)
    }

    /// The user's name, or `#<uid>` as runc has it.
    pub fn of(&self, uid: u32) -> String {
        self.0
            .get(&uid)
            .cloned()
            .unwrap_or_else(|| format!("#{uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn names() {
        let text = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbad\n+::\nu:x:1000:1000";
        let names = Names::parse(text);
        assert_eq!(
            (names.of(0).as_str(), names.of(1000).as_str()),
            ("root", "u")
        );
        assert_eq!(names.of(77), "#77");
    }
}
