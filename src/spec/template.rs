//! What `isorun spec` writes.

/// The config.json that `runc spec` writes, with the same order of properties and the same
/// indentation; without a new line at the end, as there. `cgroup_namespace` is for hosts with
/// cgroup v2 only, where runc adds that namespace.
pub fn template(cgroup_namespace: bool) -> String {
    let text = include_str!("template.json").trim_end();
    match cgroup_namespace {
        false => text.into(),
        true => text.replace(MOUNT, &format!("{MOUNT}{}", namespace("cgroup"))),
    }
}

/// The same for a user without privileges, as `runc spec --rootless` writes it: in a user namespace in
/// which root is `uid` and `gid`, in the host's network, without limits.
pub fn rootless(cgroup_namespace: bool, uid: u32, gid: u32) -> String {
    let map = |name: &str, id: u32| {
        format!(
            "\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\
             \t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t]"
        )
    };
    let maps = format!(
        "{},\n\t\t{}",
        map("uidMappings", uid),
        map("gidMappings", gid)
    );
    let mut text = template(cgroup_namespace);
    let last = if cgroup_namespace { CGROUP } else { MOUNT };
    for (from, to) in [
        (",\n\t\t\t\t\"gid=5\"", String::new()),
        (
            "\"type\": \"sysfs\",\n\t\t\t\"source\": \"sysfs\",\n\t\t\t\"options\": [\n",
            "\"type\": \"none\",\n\t\t\t\"source\": \"/sys\",\n\t\t\t\"options\": [\n\t\t\t\t\"rbind\",\n"
                .into(),
        ),
        (RESOURCES, maps),
        ("\t\t\t{\n\t\t\t\t\"type\": \"network\"\n\t\t\t},\n", String::new()),
        (last, format!("{last}{}", namespace("user"))),
    ] {
        text = text.replace(from, &to);
    }
    text
}

/// Where lists of namespaces are added to.
const MOUNT: &str = "\"type\": \"mount\"\n\t\t\t}";
const CGROUP: &str = "\"type\": \"cgroup\"\n\t\t\t}";
const RESOURCES: &str = "\"resources\": {\n\t\t\t\"devices\": [\n\t\t\t\t{\n\t\t\t\t\t\"allow\": false,\n\
     \t\t\t\t\t\"access\": \"rwm\"\n\t\t\t\t}\n\t\t\t]\n\t\t}";

fn namespace(kind: &str) -> String {
    format!(",\n\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rootless_as_runc_writes_it() {
        let text = rootless(true, 1000, 1001);
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        let linux = &spec["linux"];
        assert_eq!(
            linux["uidMappings"],
            serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 1}])
        );
        assert_eq!(linux["gidMappings"][0]["hostID"], 1001);
        let kinds: Vec<&str> = linux["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ns| ns["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup", "user"]);
        assert!(linux.get("resources").is_none());
        let sys = &spec["mounts"][5];
        assert_eq!(
            (&sys["type"], &sys["source"]),
            (&"none".into(), &"/sys".into())
        );
        assert_eq!(sys["options"][0], "rbind");
        assert!(!text.contains("gid=5"));
    }

    #[test]
    fn both_templates_parse_and_follow_the_rules() {
        for cgroup in [false, true] {
            let text = template(cgroup);
            let parsed = crate::spec::parse::parse(text.as_bytes()).unwrap();
            let (spec, notes) = (parsed.spec, parsed.ignored);
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
