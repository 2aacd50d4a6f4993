//! Who says which level holds: the flag, the environment, the administrator's file, the annotation.

use serde_json::json;

use crate::degrade::at;
use crate::harness::{Bundle, Output, run_after};

/// A container that cannot be made at level never, because the runtime lacks a capability that it asks
/// for.
fn lacking() -> Bundle {
    let mut bundle = Bundle::sh("echo ran");
    for kind in ["bounding", "effective", "permitted"] {
        bundle.push(
            &format!("/process/capabilities/{kind}"),
            json!("CAP_SYS_TIME"),
        );
    }
    bundle
}

/// The same in a mount namespace where /etc/isorun/config.toml has this text, after `more` of a shell
/// script.
fn with_config(bundle: &Bundle, text: &str, more: &str) -> Output {
    let etc = bundle.host("etc");
    // From a clean slate: what a script did to it before is still there.
    let _ = std::fs::remove_dir_all(&etc);
    std::fs::create_dir_all(etc.join("isorun")).unwrap();
    std::fs::write(etc.join("isorun/config.toml"), text).unwrap();
    run_after(
        bundle,
        &format!(
            "cp /etc/passwd $D/etc/; mount -o bind $D/etc /etc; {more}\n\
             set -- /usr/bin/setpriv --inh-caps -sys_time --bounding-set -sys_time \"$@\""
        ),
    )
}

fn refused(out: Output, words: &[&str]) {
    let out = out.code(1);
    for word in words {
        assert!(out.stderr.contains(word), "{word}: {out:#?}");
    }
}

const AT_NEVER: &str = "the level never does not allow";

#[test]
fn flag_environment_and_annotation() {
    isorun_only!("the levels are isorun's");
    let mut bundle = lacking();
    let setpriv = [
        "setpriv",
        "--inh-caps",
        "-sys_time",
        "--bounding-set",
        "-sys_time",
    ];
    let run = |bundle: &mut Bundle, variable: &str, flags: &[&str]| {
        let mut prefix = vec!["env".to_string(), format!("ISORUN_DEGRADE={variable}")];
        prefix.extend(setpriv.map(str::to_string));
        bundle.prefix = prefix;
        bundle.write();
        let dir = bundle.bundle_dir();
        let mut args = flags.to_vec();
        args.extend(["run", "--bundle", dir.to_str().unwrap(), &bundle.id]);
        let out = bundle.call(&args);
        bundle.assert_gone();
        out
    };
    run(&mut bundle, "", &[]).ok();
    refused(run(&mut bundle, "never", &[]), &[AT_NEVER]);
    run(&mut bundle, "never", &["--degrade=safe"]).ok();
    refused(
        run(&mut bundle, "any", &["--degrade", "never"]),
        &[AT_NEVER],
    );
    for flags in [&["--degrade=Never"][..], &["--degrade", ""]] {
        refused(run(&mut bundle, "", flags), &["--degrade: unknown level"]);
    }
    refused(
        run(&mut bundle, "all", &[]),
        &["ISORUN_DEGRADE: unknown level \"all\""],
    );

    bundle.set("/annotations", json!({"io.isorun.degrade": "never"}));
    refused(run(&mut bundle, "any", &[]), &[AT_NEVER]);
    bundle.set("/annotations", json!({"io.isorun.degrade": "any"}));
    let looser = "annotations[\"io.isorun.degrade\"]: any is looser than safe";
    refused(
        run(&mut bundle, "", &[]),
        &[looser, "can only make it stricter"],
    );
    refused(
        run(&mut bundle, "never", &[]),
        &["any is looser than never"],
    );
    run(&mut bundle, "any", &[]).ok();
    bundle.set("/annotations", json!({"io.isorun.degrade": "sometimes"}));
    refused(run(&mut bundle, "", &[]), &["unknown level \"sometimes\""]);
}

#[test]
fn the_administrators_file_is_the_ceiling() {
    isorun_only!("the levels are isorun's");
    let mut bundle = lacking();
    let never = "degrade = \"never\"\n";
    with_config(&bundle, "# nothing\n", "").ok();
    refused(with_config(&bundle, never, ""), &[AT_NEVER]);
    for wish in ["any", "safe"] {
        let out = with_config(&bundle, never, &format!("export ISORUN_DEGRADE={wish}"));
        let says = format!(
            "ISORUN_DEGRADE asks for the level {wish}, and /etc/isorun/config.toml allows at most never"
        );
        refused(out, &[&says]);
    }
    let any = "degrade = \"any\"\n";
    with_config(&bundle, any, "").ok();
    refused(
        with_config(&bundle, any, "export ISORUN_DEGRADE=never"),
        &[AT_NEVER],
    );
    bundle.set("/annotations", json!({"io.isorun.degrade": "any"}));
    with_config(&bundle, any, "").ok();
    refused(
        with_config(&bundle, "degrade = \"safe\"\n", ""),
        &["any is looser than safe"],
    );
}

#[test]
fn a_file_that_is_not_understood_stops_everything() {
    isorun_only!("the file is isorun's");
    let bundle = lacking();
    for (text, words) in [
        ("degrade = \"maybe\"\n", ["config.toml, line 1", "`maybe`"]),
        (
            "# x\ndegarde = \"any\"\n",
            ["config.toml, line 2", "unknown field `degarde`"],
        ),
        ("degrade\n", ["config.toml, line 1", "="]),
    ] {
        refused(with_config(&bundle, text, ""), &words);
        bundle.assert_gone();
    }
    let hidden = "rm /etc/isorun/config.toml; mkdir /etc/isorun/config.toml";
    refused(
        with_config(&bundle, "", hidden),
        &["read the configuration /etc/isorun/config.toml", "EISDIR"],
    );
    // Who is not to be helped by it, is not hindered either.
    let out = with_config(&bundle, "degrade = 1\n", "$1 --version");
    assert!(out.stdout.contains("isorun"), "{out:#?}");
}

#[test]
fn a_plan_tells_its_level_and_what_it_refuses() {
    isorun_only!("plan is isorun's");
    let bundle = Bundle::new();
    bundle.write();
    let dir = bundle.bundle_dir();
    let plan = |level: &str| {
        let out = bundle.call(&["--degrade", level, "plan", dir.to_str().unwrap()]);
        out.ok().stdout
    };
    let never = plan("never");
    assert!(never.contains("degrade    never\n"), "{never}");
    assert!(
        never.contains("an error: the level never does not allow"),
        "{never}"
    );
    assert!(!plan("any").contains("an error: the level"));
    assert_eq!(
        at(&bundle, "never").code,
        0,
        "nothing is lost on this machine"
    );
}
