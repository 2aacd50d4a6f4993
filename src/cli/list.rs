//! `isorun list`: all containers below the root directory.

use clap::{Arg, ArgAction, ArgMatches};

use super::state::View;
use super::{Entry, Global, passwd, print};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::log;

pub const ENTRY: Entry = Entry {
    name: "list",
    about: "List the containers of this root directory",
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
                Arg::new("quiet")
                    .long("quiet")
                    .short('q')
                    .action(ArgAction::SetTrue)
                    .help("Print only the containers' IDs"),
            )
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    let entries = global.store.list()?;
    if matches.get_flag("quiet") {
        let ids: Vec<String> = entries.into_iter().map(|entry| entry.id + "\n").collect();
        print(&ids.concat())?;
        return Ok(Exit::Success);
    }
    let names = passwd::Names::load();
    let views: Vec<View> = entries
        .into_iter()
        .map(|entry| match entry.record {
            Ok(record) => View::of(record, &entry.path, &names),
            Err(ref error) => {
                log::debug(|| error.to_string());
                View::broken(entry.id.clone(), entry.status(), names.of(entry.owner()))
            }
        })
        .collect();
    match matches.get_one::<String>("format").map(String::as_str) {
        Some("table") => print(&table(&views))?,
        Some("json") => print(&json(&views)?)?,
        _ => {
            let error = Error::new(Kind::Usage, "invalid format option");
            return Err(error.remedy("it is table or json"));
        }
    }
    Ok(Exit::Success)
}

/// One line of JSON; `null` for no containers, as runc prints an empty list.
fn json(views: &[View]) -> Result<String> {
    let text = match views {
        [] => "null".to_string(),
        views => serde_json::to_string(views)
            .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?,
    };
    Ok(text + "\n")
}

/// Columns as runc's: at least 12 wide, three blanks apart, the last one as it is.
fn table(views: &[View]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = views.iter().map(|view| {
        [
            view.id.clone(),
            view.pid.to_string(),
            view.status.to_string(),
            view.bundle.display().to_string(),
            view.created.clone(),
            view.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count() + 3)
            .max()
            .unwrap_or(0)
            .max(12)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Status;

    #[test]
    fn forms() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
        assert_eq!(json(&[]).unwrap(), "null\n");
        let long = View::broken("a-long-container-id".into(), Status::Stopped, "root".into());
        assert_eq!(
            table(std::slice::from_ref(&long)),
            "ID                    PID         STATUS      BUNDLE      CREATED     OWNER\n\
             a-long-container-id   0           stopped                             root\n"
        );
        let text = json(&[long]).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(
            text.starts_with("[{\"ociVersion\":\"\",\"id\":\"a-long-container-id\",\"pid\":0,")
        );
    }
}
