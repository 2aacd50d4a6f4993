//! The layers of src/, kept by a test: from the top cli, engine, plan, then spec, host, state,
//! cgroup, seccomp, install and doctor, policy, channel side by side, then sys; error, log, exit and time are
//! below all. Nothing imports
//! upwards or sideways into a higher layer, and unsafe code is in src/sys alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Height of a module; a module may use what is at its own height or below.
fn height(module: &str) -> Option<u32> {
    Some(match module {
        "error" | "log" | "exit" | "time" => 0,
        "sys" => 1,
        "spec" | "host" | "state" | "cgroup" | "seccomp" | "install" | "doctor" | "policy"
        | "channel" => 2,
        "plan" => 3,
        "engine" => 4,
        "cli" => 5,
        _ => return None,
    })
}

/// Takes comments and the contents of string literals out, so that neither counts as code.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                for c in chars.by_ref() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            'r' if matches!(chars.peek(), Some('#' | '"')) && !code.ends_with(is_word) => {
                let mut hashes = 0;
                while chars.next_if_eq(&'#').is_some() {
                    hashes += 1;
                }
                if chars.next_if_eq(&'"').is_some() {
                    skip_raw(&mut chars, hashes);
                } else {
                    code.push_str(if hashes > 0 { "r#" } else { "r" });
                }
            }
            '"' => {
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                code.push_str("\"\"");
            }
            '\'' => {
                // A character literal may hold a quote; a lifetime is left as it is.
                let mut ahead = chars.clone();
                match (ahead.next(), ahead.next()) {
                    (Some('\\'), _) => {
                        chars.next();
                        chars.next();
                        for c in chars.by_ref() {
                            if c == '\'' {
                                break;
                            }
                        }
                    }
                    (Some(_), Some('\'')) => {
                        chars.next();
                        chars.next();
                    }
                    _ => code.push('\''),
                }
            }
            c => code.push(c),
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn skip_raw(chars: &mut std::iter::Peekable<std::str::Chars>, hashes: usize) {
    let end: String = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let mut seen = String::new();
    for c in chars.by_ref() {
        seen.push(c);
        if seen.ends_with(&end) {
            return;
        }
    }
}

/// The modules that code names at the root of the crate: `crate::x`, `crate::{x, y::z}`.
fn named(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue; // my_crate::
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => modules.push(rest.chars().take_while(|c| is_word(*c)).collect()),
            Some(list) => {
                // Only the first word of each part at the outer level is a module of the crate.
                let (mut depth, mut first, mut word) = (0, true, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            modules.push(std::mem::take(&mut word));
                            first = true;
                            continue;
                        }
                        c if depth == 0 && first && is_word(c) => word.push(c),
                        c if depth == 0 && !c.is_whitespace() => first = false,
                        _ => {}
                    }
                }
                modules.push(word);
            }
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

/// What one file does against the rules. `path` is relative to src/.
fn violations(path: &Path, text: &str) -> Vec<String> {
    let code = code_only(text);
    let mut found = Vec::new();
    let first = path
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    let own = first.trim_end_matches(".rs");
    let shown = path.display();
    if own != "sys" {
        let words = code.split(|c| !is_word(c));
        let count = words.filter(|word| *word == "unsafe").count();
        if count > 0 {
            found.push(format!("{shown}: {count} x unsafe outside of src/sys"));
        }
    }
    if ["main", "lib"].contains(&own) {
        return found; // above all layers
    }
    let Some(own_height) = height(own) else {
        found.push(format!(
            "{shown}: {own} has no layer: give it one in tests/layering.rs"
        ));
        return found;
    };
    for module in named(&code) {
        match height(&module) {
            Some(other) if other > own_height => {
                found.push(format!(
                    "{shown}: {own} imports {module}, which is above it"
                ));
            }
            // A type or macro at the root of the crate would be a way around the layers.
            None => found.push(format!("{shown}: crate::{module} is in no layer")),
            Some(_) => {}
        }
    }
    found
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn nothing_imports_upwards_and_unsafe_is_in_sys() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 3, "the sources were found: {files:?}");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        found.extend(violations(file.strip_prefix(&src).unwrap(), &text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The rule itself must be able to fail.
#[test]
fn planted_violations_are_seen() {
    let seen = |path: &str, text: &str| violations(Path::new(path), text);
    for (path, text) in [
        ("sys/mount.rs", "use crate::engine::Child;"),
        ("sys.rs", "fn f() { crate::spec::load(); }"),
        ("spec/mod.rs", "use crate::{error::Error, plan::Plan};"),
        (
            "spec/mod.rs",
            "use crate::{\n    error::{Error, Result},\n    cli,\n};",
        ),
        ("plan/step.rs", "pub use crate::engine;"),
        ("error.rs", "use crate::sys::x;"),
        ("state/mod.rs", "mod a { unsafe { b() } }"),
        ("cgroup/v1.rs", "unsafe fn f() {}"),
        ("main.rs", "fn main() { unsafe {} }"),
        ("novel/mod.rs", ""),
        (
            "host/mod.rs",
            "fn f() -> &'static str { \"\\\"\" } use crate::cli::Args;",
        ),
    ] {
        assert_eq!(seen(path, text).len(), 1, "{path}: {text}");
    }
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    for (path, text) in [
        (
            "engine/child.rs",
            "use crate::{error::{Error, plan}, plan::Step, sys, spec::Spec};",
        ),
        (
            "spec/mod.rs",
            "// use crate::engine;\n/* unsafe */ /// crate::cli::x\nuse crate::sys::open;",
        ),
        (
            "spec/mod.rs",
            "const A: &str = \"unsafe crate::engine\"; const B: &str = r#\"\"crate::cli\"\"#;",
        ),
        (
            "spec/mod.rs",
            "fn f<'a>(x: &'a str) -> char { '\"' } fn g() { my_crate::engine::x(); }",
        ),
        ("sys/clone.rs", "// SAFETY: it is\nunsafe { f() }"),
        ("cli/run.rs", "use crate::engine::run;"),
        ("lib.rs", "pub mod cli; pub mod engine;"),
        ("cgroup/mod.rs", "#![forbid(unsafe_code)]"),
    ] {
        assert_eq!(
            violations(Path::new(path), text),
            Vec::<String>::new(),
            "{path}: {text}"
        );
    }
}
