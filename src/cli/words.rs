//! Flags as runc takes them, which is as Go's package flag does: one dash or two, `--force=false`, and a
//! value that begins with a dash. They are written anew for clap, which then parses and checks them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{ArgAction, Command};

use crate::error::{Error, Kind, Result};

/// A flag of a command.
struct Flag {
    long: String,
    short: Option<char>,
    switch: bool,
}

fn flags(command: &Command) -> Vec<Flag> {
    let mut flags: Vec<Flag> = command
        .get_arguments()
        .filter_map(|arg| {
            Some(Flag {
                long: arg.get_long()?.to_string(),
                short: arg.get_short(),
                switch: matches!(arg.get_action(), ArgAction::SetTrue),
            })
        })
        .collect();
    flags.push(Flag {
        long: "help".into(),
        short: Some('h'),
        switch: true,
    });
    flags
}

/// Whether a command line may be one that clap takes for something else than runc does: it has a word
/// such as `-bundle` or `-f=true`.
pub fn needs_care(args: &[OsString]) -> bool {
    let words = args.iter().skip(1).map(|arg| arg.as_bytes());
    words
        .take_while(|word| *word != b"--")
        .any(|word| word.len() > 2 && word[0] == b'-' && word[1] != b'-')
}

/// The command line (the program's name first) with flags in clap's form. `command` gives what a
/// subcommand takes; `whole_line` names those whose first argument ends the flags.
///
/// # Errors
/// In Go's words: a flag that needs an argument, a switch that is neither true nor false. What is not
/// known stays as it is: clap says so.
pub fn rewritten(
    args: &[OsString],
    global: &Command,
    command: impl Fn(&str) -> Option<Command>,
    whole_line: &[&str],
) -> Result<Vec<OsString>> {
    let mut out: Vec<OsString> = args.iter().take(1).cloned().collect();
    let mut known = flags(global);
    let mut name: Option<String> = None;
    // Nothing but flags has come yet, of the global ones or of the command's.
    let mut first = true;
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        let word = arg.as_bytes();
        if word == b"--" {
            out.push(arg.clone());
            break;
        }
        if word.len() < 2 || word[0] != b'-' {
            out.push(arg.clone());
            match &name {
                None => {
                    let found = arg.to_str().and_then(&command);
                    known = flags(&found.unwrap_or_default());
                    name = Some(arg.to_string_lossy().into_owned());
                }
                // What follows is the program's, or ps's.
                Some(name) if whole_line.contains(&name.as_str()) => break,
                Some(_) => first = false,
            }
            continue;
        }
        let body = word.strip_prefix(b"--").unwrap_or(&word[1..]);
        let (key, value) = match body.iter().position(|byte| *byte == b'=') {
            Some(at) => (&body[..at], Some(&body[at + 1..])),
            None => (body, None),
        };
        let key = String::from_utf8_lossy(key);
        let is = |flag: &&Flag| {
            flag.long == key || flag.short.is_some_and(|short| *key == short.to_string())
        };
        match known.iter().find(is) {
            None => {
                // Several switches together are more than Go takes, and harmless.
                let together = |key: &str| {
                    key.chars().all(|one| {
                        known
                            .iter()
                            .any(|flag| flag.switch && flag.short == Some(one))
                    })
                };
                if first && word[1] != b'-' && !together(&key) {
                    let sentence = format!("flag provided but not defined: -{key}");
                    return Err(Error::new(Kind::Usage, sentence));
                }
                out.push(arg.clone());
            }
            Some(flag) if flag.switch => {
                if switched(&key, value)? {
                    out.push(format!("--{}", flag.long).into());
                }
            }
            Some(flag) => {
                let value = match value {
                    Some(value) => OsStr::from_bytes(value),
                    None => rest.next().ok_or_else(|| needs_argument(&key))?,
                };
                let mut joined = format!("--{}=", flag.long).into_bytes();
                joined.extend_from_slice(value.as_bytes());
                out.push(OsString::from_vec(joined));
            }
        }
    }
    out.extend(rest.cloned());
    Ok(out)
}

/// A flag without the value that it takes.
pub fn needs_argument(flag: &str) -> Error {
    let sentence = format!("flag needs an argument: -{}", flag.trim_start_matches('-'));
    Error::new(Kind::Usage, sentence)
}

/// Whether a switch is on, with the words for yes and no that Go has (strconv.ParseBool).
fn switched(key: &str, value: Option<&[u8]>) -> Result<bool> {
    match value {
        None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
        Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
        Some(value) => {
            let value = String::from_utf8_lossy(value);
            let sentence = format!("invalid boolean value {value:?} for -{key}: parse error");
            Err(Error::new(Kind::Usage, sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn written(text: &str) -> Result<String> {
        let switch = |name: &'static str, short| {
            Arg::new(name)
                .long(name)
                .short(short)
                .action(ArgAction::SetTrue)
        };
        let global = Command::new("x").arg(Arg::new("root").long("root"));
        let command = |name: &str| {
            ["run", "exec"].contains(&name).then(|| {
                Command::new("c")
                    .arg(Arg::new("bundle").long("bundle").short('b'))
                    .arg(switch("detach", 'd'))
            })
        };
        let words = rewritten(&line(text), &global, command, &["exec"])?;
        Ok(words.join(OsStr::new(" ")).to_string_lossy().into_owned())
    }

    #[test]
    fn forms_of_go() {
        for (from, to) in [
            (
                "x -root /r run -bundle /b -d c",
                "x --root=/r run --bundle=/b --detach c",
            ),
            ("x run -b -1 --detach=false c", "x run --bundle=-1 c"),
            ("x run -d=t -b= c", "x run --detach --bundle= c"),
            ("x run -dh c -4", "x run -dh c -4"),
            ("x run -- -bundle", "x run -- -bundle"),
            ("x exec -d c sh -bundle x", "x exec --detach c sh -bundle x"),
            ("x run c -d", "x run c --detach"),
            ("x -h", "x --help"),
        ] {
            assert_eq!(written(from).unwrap(), to, "{from}");
        }
        for (from, says) in [
            ("x run -b", "flag needs an argument: -b"),
            ("x run -bogus c", "flag provided but not defined: -bogus"),
            ("x --root", "flag needs an argument: -root"),
            (
                "x run -d=maybe c",
                "invalid boolean value \"maybe\" for -d: parse error",
            ),
        ] {
            assert_eq!(written(from).unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn only_where_clap_reads_otherwise() {
        assert!(needs_care(&line("x create -bundle /b c")));
        assert!(!needs_care(&line(
            "x --root /r create --bundle=/b -d c -- -bundle"
        )));
        assert!(!needs_care(&line("x kill c -9")));
    }
}
