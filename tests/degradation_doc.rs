//! docs/degradation.md is generated from the table of degradations: this holds the two together.
//! `ISORUN_UPDATE_GOLDEN=1 cargo test --test degradation_doc` writes the table anew.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its files has failed"
)]

use isorun::plan::degrade::{Compensation, Row, TABLE};

const BEGIN: &str = "<!-- generated: tests/degradation_doc.rs -->\n";
const END: &str = "<!-- end of what is generated -->\n";

fn cells(row: &Row) -> [String; 7] {
    let errnos = row
        .on
        .iter()
        .map(|code| format!("{:?}", nix::errno::Errno::from_raw(*code)));
    let errnos: Vec<String> = errnos.collect();
    let level = match (row.level, row.compensation) {
        (None, _) => "none".to_string(),
        (Some(level), Compensation::Missing(_)) => format!("{level}, not yet"),
        (Some(level), _) => level.to_string(),
    };
    let compensation = match row.compensation {
        Compensation::NotNeeded(why) => format!("none: {why}"),
        Compensation::By(what) => what.to_string(),
        Compensation::Missing(what) => format!("not there yet: {what}"),
    };
    [
        format!("`{}`", row.feature.name()),
        row.what.to_string(),
        errnos.join(", "),
        row.fallback.to_string(),
        level,
        compensation,
        row.remedy.to_string(),
    ]
}

fn generated() -> String {
    let mut out = String::new();
    let mut line = |cells: [String; 7]| {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        out += &format!("| {} |\n", cells.join(" | "));
    };
    line(
        [
            "row",
            "what is not to be had",
            "errno",
            "what comes in its place",
            "level",
            "what makes up for it",
            "repair",
        ]
        .map(str::to_string),
    );
    line(["---"; 7].map(str::to_string));
    TABLE.iter().for_each(|row| line(cells(row)));
    out
}

#[test]
fn the_table_in_the_document_is_the_one_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/degradation.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", generated())).unwrap();
    } else {
        assert_eq!(
            table,
            generated(),
            "docs/degradation.md is not what the code does"
        );
    }
    // What the text says of names and levels.
    for word in [
        "never",
        "safe",
        "any",
        isorun::policy::ANNOTATION,
        isorun::policy::VARIABLE,
    ] {
        assert!(before.contains(word), "{word}");
    }
}
