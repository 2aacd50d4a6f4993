//! Tests of the table and of what a step does with its alternatives.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::*;
use crate::error::Kind;

#[test]
fn the_table_has_each_feature_once_and_every_row_says_all() {
    let names: BTreeSet<String> = TABLE.iter().map(|row| row.feature.name()).collect();
    assert_eq!(names.len(), TABLE.len());
    for row in TABLE {
        assert_eq!(row.feature.row().feature, row.feature);
        for text in [row.what, row.fallback] {
            assert!(!text.is_empty(), "{row:?}");
        }
        let (Compensation::NotNeeded(text) | Compensation::By(text) | Compensation::Missing(text)) =
            row.compensation;
        assert!(!text.is_empty(), "{row:?}");
        assert_eq!(row.remedy.is_empty(), row.level.is_none(), "{row:?}");
        assert_ne!(row.level, Some(Level::Never), "{row:?}");
    }
    // The last feature: a name that is missing in the table would fall there.
    assert_eq!(Feature::Essential as usize + 1, TABLE.len());
}

#[test]
fn what_a_level_allows() {
    let allowed = |level: Level| -> Vec<Feature> {
        let rows = TABLE.iter().filter(|row| row.refusal(level).is_none());
        rows.map(|row| row.feature).collect()
    };
    assert_eq!(allowed(Level::Never), []);
    let (safe, any) = (allowed(Level::Safe), allowed(Level::Any));
    assert!(safe.iter().all(|feature| any.contains(feature)));
    assert!(safe.contains(&Feature::Rlimit) && !safe.contains(&Feature::Procfs));
    assert!(any.contains(&Feature::Procfs));
    // What has no compensation yet passes nowhere, nor what nothing can make up for.
    for row in TABLE {
        if matches!(row.compensation, Compensation::Missing(_)) || row.level.is_none() {
            assert!(!any.contains(&row.feature), "{row:?}");
        }
    }
    let refusal = Feature::Rlimit.row().refusal(Level::Never).unwrap();
    assert!(
        refusal.contains("level never") && refusal.contains("\"rlimit\""),
        "{refusal}"
    );
}

fn rlimit() -> Action {
    Action::Rlimit {
        name: "RLIMIT_CORE".into(),
        resource: libc::RLIMIT_CORE,
        soft: 1,
        hard: 2,
    }
}

fn failure(errno: Errno) -> Error {
    Error::os("set", "it", errno)
}

#[test]
fn a_step_goes_on_as_the_level_allows() {
    let facts = Facts::default();
    for level in Level::ALL {
        let step = Step::armed(rlimit(), &facts, level);
        let fine = step.perform(level, |_| Ok(None)).unwrap();
        assert_eq!(fine, None);
        let first_fails = |action: &Action| match action {
            Action::Rlimit { .. } => Err(failure(Errno::EPERM)),
            _ => Ok(Some("a note".to_string())),
        };
        match step.perform(level, first_fails) {
            Err(error) => {
                assert_eq!(level, Level::Never);
                let text = error.to_string();
                for word in ["\"rlimit\"", "level never", "CAP_SYS_RESOURCE", "EPERM"] {
                    assert!(text.contains(word), "{text}");
                }
            }
            Ok(lost) => {
                let lost = lost.unwrap();
                assert_eq!((lost.row, lost.errno), (Feature::Rlimit, libc::EPERM));
                assert!(lost.fallback.ends_with(": a note"), "{lost:?}");
            }
        }
        // Another errno is no reason to degrade, nor to speak of it.
        let error = step
            .perform(level, |_| Err(failure(Errno::EINVAL)))
            .unwrap_err();
        assert_eq!(error.to_string(), failure(Errno::EINVAL).to_string());
    }
}

#[test]
fn several_failures_in_a_row_are_all_told() {
    let step = Step::armed(rlimit(), &Facts::default(), Level::Safe);
    let error = step
        .perform(Level::Safe, |action| {
            Err(match action {
                Action::Rlimit { .. } => failure(Errno::EPERM),
                _ => Error::os("clamp", "that", Errno::EIO),
            })
        })
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("EPERM") && text.contains("EIO") && text.contains("clamped"),
        "{text}"
    );
    assert_eq!(error.errno(), Some(Errno::EPERM), "the first one");
}

#[test]
fn the_next_way_is_taken_by_the_errno_of_the_one_before() {
    let way = |on, action| Otherwise {
        row: Feature::Rlimit,
        on: vec![on],
        action,
        feature: String::new(),
        fallback: String::new(),
        remedy: String::new(),
        again: false,
    };
    let mut step = Step::from(Action::NewSession);
    step.otherwise = vec![
        way(libc::EPERM, Some(Action::PivotRoot)),
        way(libc::EPERM, Some(Action::Exec)),
        way(libc::EIO, Some(Action::MoveRoot)),
    ];
    let mut tried = Vec::new();
    let lost = step.perform(Level::Safe, |action| {
        tried.push(action.clone());
        match action {
            Action::NewSession => Err(failure(Errno::EPERM)),
            Action::PivotRoot => Err(failure(Errno::EIO)),
            _ => Ok(None),
        }
    });
    assert!(lost.unwrap().is_some());
    assert_eq!(
        tried,
        [Action::NewSession, Action::PivotRoot, Action::MoveRoot]
    );
}

#[test]
fn a_loss_that_is_known_before() {
    let error = || Error::new(Kind::System, "no controller pids");
    let plan = |level| {
        planned(
            Feature::Limits,
            level,
            "linux.resources.pids".into(),
            error(),
            0,
        )
    };
    let refused = plan(Level::Safe).unwrap_err().to_string();
    assert!(
        refused.starts_with("no controller pids") && refused.contains("--degrade=any"),
        "{refused}"
    );
    let lost = plan(Level::Any).unwrap();
    assert_eq!((lost.row, lost.errno), (Feature::Limits, 0));
}
