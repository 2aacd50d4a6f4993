//! Signals as people write them: `TERM`, `sigterm`, `15`, `SIGRTMIN+3`.

use std::str::FromStr;

use nix::sys::signal::Signal;

use crate::error::{Error, Kind, Result};

/// The number of a signal given by name (any case, with or without SIG) or by number.
///
/// # Errors
/// [`Kind::Usage`] naming it, in runc's words.
pub fn parse(text: &str) -> Result<i32> {
    let unknown = || {
        Error::new(Kind::Usage, format!("unknown signal {text:?}"))
            .remedy("give a name such as SIGTERM, or a number")
    };
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=libc::SIGRTMAX()).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = realtime(name) {
        return Ok(number);
    }
    match name {
        // Other names of the same numbers; signal(7).
        "IOT" => Ok(libc::SIGIOT),
        "CLD" => Ok(libc::SIGCHLD),
        "POLL" => Ok(libc::SIGPOLL),
        name => Signal::from_str(&format!("SIG{name}"))
            .map(|s| s as i32)
            .map_err(|_| unknown()),
    }
}

/// `RTMIN`, `RTMIN+n`, `RTMAX` and `RTMAX-n`, as the C library counts them.
fn realtime(name: &str) -> Option<i32> {
    let (base, sign, rest) = match name.strip_prefix("RTMIN") {
        Some(rest) => (libc::SIGRTMIN(), '+', rest),
        None => (libc::SIGRTMAX(), '-', name.strip_prefix("RTMAX")?),
    };
    if rest.is_empty() {
        return Some(base);
    }
    let digits = rest
        .strip_prefix(sign)
        .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    let offset: i32 = digits.parse().ok()?;
    let number = if sign == '+' {
        base.checked_add(offset)?
    } else {
        base.checked_sub(offset)?
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX())
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("Sigkill", 9),
            ("9", 9),
            ("0", 0),
            ("HUP", 1),
            ("IOT", 6),
            ("CLD", 17),
            ("SIGPOLL", 29),
            ("PWR", 30),
            ("STKFLT", 16),
            ("SIGRTMIN", 34),
            ("rtmin+3", 37),
            ("SIGRTMAX", 64),
            ("RTMAX-14", 50),
            ("64", 64),
        ] {
            assert_eq!(parse(text).ok(), Some(number), "{text}");
        }
        for text in [
            "",
            "SIG",
            "FOO",
            "SIGSIGTERM",
            "-1",
            "65",
            "RTMIN+31",
            "RTMIN-1",
            "RTMIN+-1",
            "RTMAX-31",
            "RTMIN+99999999999",
            "9 ",
            "RTMIN3",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("unknown signal {text:?}")),
                "{error}"
            );
        }
    }
}
