//! What `isorun spec` writes.

/// The config.json that `runc spec` writes, with the same order of properties and the same
/// indentation; without a new line at the end, as there. `cgroup_namespace` is for hosts with
/// cgroup v2 only, where runc adds that namespace.
///
/// A variant for rootless containers belongs here too, when isorun runs them.
pub fn template(cgroup_namespace: bool) -> String {
    let text = include_str!("template.json").trim_end();
    let marker = "\"type\": \"mount\"\n\t\t\t}";
    match cgroup_namespace {
        false => text.into(),
        true => text.replace(
            marker,
            &format!("{marker},\n\t\t\t{{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t}}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_templates_parse_and_follow_the_rules() {
        for cgroup in [false, true] {
            let text = template(cgroup);
            let (spec, notes) = crate::spec::parse::parse(text.as_bytes()).unwrap();
            assert_eq!(notes, Vec::<String>::new());
            let count = spec
                .linux()
                .as_ref()
                .unwrap()
                .namespaces()
                .as_ref()
                .unwrap()
                .len();
            assert_eq!(count, if cgroup { 6 } else { 5 });
            assert_eq!(crate::spec::check(&spec).unwrap(), Vec::<String>::new());
            assert!(!text.ends_with('\n') && text.contains("\n\t\"process\": {\n\t\t\"terminal\""));
        }
    }
}
