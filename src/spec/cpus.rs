//! Lists of CPUs (and of memory nodes) such as `0-3,7`, as config.json and runc write them.

use crate::sys::sched::{CpuMask, MAX_CPUS};

/// The numbers of a list as a bit mask; `None` for a list that names none, which means "not set".
/// Blanks around an element and empty elements are taken, as in runc.
///
/// # Errors
/// What is wrong with the list, for a sentence.
pub fn parse(list: &str) -> Result<Option<CpuMask>, String> {
    let mut mask = [0; MAX_CPUS / 64];
    let mut any = false;
    for element in list.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let (first, last) = match element.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(element)?, number(element)?),
        };
        if first > last {
            return Err(format!("the range {element} ends before it begins"));
        }
        if last >= MAX_CPUS {
            return Err(format!("{last} is over {}", MAX_CPUS - 1));
        }
        for bit in first..=last {
            mask[bit / 64] |= 1 << (bit % 64);
        }
        any = true;
    }
    Ok(any.then_some(mask))
}

fn number(text: &str) -> Result<usize, String> {
    // Go's ParseUint takes no sign, Rust's takes a plus.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(format!(
            "{text:?} is not a number; a list is written like \"0-3,7\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low(list: &str) -> Option<u64> {
        let mask = parse(list).unwrap_or_else(|why| panic!("{list}: {why}"))?;
        assert!(mask[1..].iter().all(|word| *word == 0), "{list}");
        Some(mask[0])
    }

    #[test]
    fn lists_as_in_runc() {
        for (list, bits) in [
            ("", None),
            (" , ", None),
            ("0", Some(1)),
            ("0-1", Some(3)),
            (",0,1,", Some(3)),
            ("0,1,2-3", Some(0xf)),
            ("1, 2, 1-2", Some(6)),
            ("    , 1   , 3  ,  5-7,    ", Some(0xea)),
            ("63", Some(1 << 63)),
        ] {
            assert_eq!(low(list), bits, "{list:?}");
        }
        let mask = parse("64,8191").unwrap().unwrap();
        assert_eq!((mask[1], mask[127]), (1, 1 << 63));
    }

    #[test]
    fn wrong_lists() {
        for list in [
            "-", "-1", "1-", "3-1", "+1", "a", "0x1", "1 2", "8192", "1-2-3", "1–2",
        ] {
            assert!(parse(list).is_err(), "{list:?}");
        }
    }
}
