//! `isorun ps`: the processes of a container, as the host's ps shows them.

use std::process::Command;

use clap::{Arg, ArgMatches};

use super::{Entry, Global, print};
use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;

pub const ENTRY: Entry = Entry {
    name: "ps",
    about: "List the processes of a container",
    arguments: |command| {
        command
            .arg(
                Arg::new("format")
                    .long("format")
                    .short('f')
                    .value_name("FORM")
                    .default_value("table")
                    .help("table or json"),
            )
            .arg(
                // What follows the id is for ps(1), flags included.
                Arg::new("id-and-options")
                    .value_names(["container-id", "ps options"])
                    .required(true)
                    .num_args(1..)
                    .trailing_var_arg(true)
                    .allow_hyphen_values(true)
                    .help("The container, and options for ps(1) instead of -ef"),
            )
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let words: Vec<&String> = matches
        .get_many("id-and-options")
        .into_iter()
        .flatten()
        .collect();
    let Some((id, options)) = words.split_first() else {
        return Err(Error::new(Kind::Usage, "the container ID is missing"));
    };
    if id.starts_with('-') {
        let sentence = format!(
            "flag provided but not defined: -{}",
            id.trim_start_matches('-')
        );
        return Err(Error::new(Kind::Usage, sentence).remedy("see isorun ps --help"));
    }
    crate::state::check_id(id)?;
    let pids = engine::processes(&global.store, id)?;
    match matches.get_one::<String>("format").map(String::as_str) {
        Some("json") => print(&json(&pids))?,
        Some("table") => print(&table(&pids, options)?)?,
        _ => {
            let error = Error::new(Kind::Usage, "invalid format option");
            return Err(error.remedy("it is table or json"));
        }
    }
    Ok(Exit::Success)
}

/// One line of JSON; `null` for no processes, as runc prints an empty list.
fn json(pids: &[i32]) -> String {
    match pids.is_empty() {
        true => "null\n".into(),
        false => {
            let list: Vec<String> = pids.iter().map(i32::to_string).collect();
            format!("[{}]\n", list.join(","))
        }
    }
}

/// What ps prints of these processes, and its heading.
fn table(pids: &[i32], options: &[&String]) -> Result<String> {
    let mut ps = Command::new("ps");
    match options.is_empty() {
        true => ps.arg("-ef"),
        false => ps.args(options),
    };
    let out = ps
        .output()
        .map_err(|error| Error::io("execute", "ps", &error).remedy("--format json needs no ps"))?;
    if !out.status.success() {
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().replace('\n', " ");
        return Err(Error::new(
            Kind::System,
            format!("ps: {}: {said}", out.status),
        ));
    }
    filter(&String::from_utf8_lossy(&out.stdout), pids)
}

fn filter(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| {
        Error::new(Kind::Usage, "couldn't find PID field in ps output")
            .remedy("the options for ps must show it")
    })?;
    let mut kept = format!("{heading}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).map(str::parse);
        if matches!(pid, Some(Ok(pid)) if pids.contains(&pid)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(json(&[]), "null\n");
        assert_eq!(json(&[1, 20]), "[1,20]\n");
        let text = "  PID CMD\n    1 init\n   20 sh 1\n    x 1\n";
        assert_eq!(filter(text, &[1]).unwrap(), "  PID CMD\n    1 init\n");
        let text = "UID PID\nroot 20\nroot 1\n";
        assert_eq!(filter(text, &[20]).unwrap(), "UID PID\nroot 20\n");
        let error = filter("CMD\nx\n", &[1]).unwrap_err().to_string();
        assert!(error.starts_with("couldn't find PID field"), "{error}");
    }
}
