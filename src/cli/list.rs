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
            .arg(
                Arg::new("long")
                    .long("long")
                    .short('l')
                    .action(ArgAction::SetTrue)
                    .help("Also how many things each container does without: see report"),
            )
    },
    run,
};

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    // The default is made by the first container; one that somebody names has to be there, as for runc.
    if global.root_given
        && let Err(error) = std::fs::metadata(global.store.root())
    {
        let root = global.store.root().display().to_string();
        return Err(Error::io("open", root, &error));
    }
    if matches.get_flag("quiet") {
        let ids = global.store.ids()?.into_iter().map(|id| id + "\n");
        print(&ids.collect::<String>())?;
        return Ok(Exit::Success);
    }
    let names = passwd::Names::load();
    let views = global.store.list()?.map(|entry| match entry.record {
        Ok(record) => View::of(record, &entry.path, &names),
        Err(ref error) => {
            log::debug(|| error.to_string());
            View::broken(entry.id.clone(), entry.status(), names.of(entry.owner()))
        }
    });
    let long = matches.get_flag("long");
    // What runc prints has no room for it.
    let views = views.map(|mut view| {
        view.degraded = view.degraded.filter(|_| long);
        view
    });
    match matches.get_one::<String>("format").map(String::as_str) {
        Some("table") => print(&table(views, long))?,
        Some("json") => print(&json(views)?)?,
        _ => {
            let error = Error::new(Kind::Usage, "invalid format option");
            return Err(error.remedy("it is table or json"));
        }
    }
    Ok(Exit::Success)
}

/// One line of JSON; `null` for no containers, as runc prints an empty list.
fn json(views: impl Iterator<Item = View>) -> Result<String> {
    let mut text = String::new();
    for view in views {
        let view = serde_json::to_string(&view)
            .map_err(|error| Error::new(Kind::System, format!("write JSON: {error}")))?;
        text.push(if text.is_empty() { '[' } else { ',' });
        text.push_str(&view);
    }
    Ok(if text.is_empty() {
        "null\n".to_string()
    } else {
        text + "]\n"
    })
}

/// Columns as runc's: at least 12 wide, three blanks apart, the last one as it is; with a column more
/// where it is to be `long`.
fn table(views: impl Iterator<Item = View>, long: bool) -> String {
    let header = [
        "ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "DEGRADED",
    ]
    .map(String::from);
    let rows = views.map(|view| {
        [
            view.id,
            view.pid.to_string(),
            view.status.to_string(),
            view.bundle.display().to_string(),
            view.created,
            view.owner,
            view.degraded.unwrap_or(0).to_string(),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count() + 3)
            .max()
            .unwrap_or(0)
            .max(12)
    };
    let last = if long { 6 } else { 5 };
    let widths: Vec<usize> = (0..last).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[last]);
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
            table([].into_iter(), false),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
        assert_eq!(json([].into_iter()).unwrap(), "null\n");
        let long = View::broken("a-long-container-id".into(), Status::Stopped, "root".into());
        assert_eq!(
            table([long.clone()].into_iter(), false),
            "ID                    PID         STATUS      BUNDLE      CREATED     OWNER\n\
             a-long-container-id   0           stopped                             root\n"
        );
        assert_eq!(
            table([long.clone()].into_iter(), true),
            "ID                    PID         STATUS      BUNDLE      CREATED     OWNER       DEGRADED\n\
             a-long-container-id   0           stopped                             root        0\n"
        );
        let text = json([long.clone(), long].into_iter()).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(
            text.starts_with("[{\"ociVersion\":\"\",\"id\":\"a-long-container-id\",\"pid\":0,")
        );
    }
}
