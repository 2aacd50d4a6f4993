//! A container without the user namespace that it asks for, as the machine's root makes it: its ids are those
//! of the host that were mapped, it has no capabilities, and what only its user namespace made harmless is
//! refused. A specification becomes another one, and both kinds of plan start from that.

use oci_spec::runtime::{
    Linux, LinuxNamespaceType, Mount as SpecMount, Process as SpecProcess, Spec,
};

use super::Plan;
use super::build::id_map;
use super::degrade::{Feature, Lost};
use super::step::{Action, IdMap};
use crate::error::{Error, Result};
use crate::spec::mounts::parse_mount;

/// File systems that the kernel lets a user namespace mount (FS_USERNS_MOUNT), which are harmless then.
const HARMLESS: [&str; 9] = [
    "cgroup", "cgroup2", "devpts", "mqueue", "overlay", "proc", "ramfs", "sysfs", "tmpfs",
];

/// Whether the user namespace is lost, and root goes on without.
pub(super) fn is_lost(without: &[Lost]) -> bool {
    without
        .iter()
        .any(|lost| lost.feature == Feature::UsernsRoot)
}

/// The specification without its user namespace.
///
/// # Errors
/// An id that is not mapped, or mapped to the host's root; a mount that only the user namespace made
/// harmless, or that shows owners through its maps.
pub(super) fn specification(spec: &Spec) -> Result<Spec> {
    let mut new = spec.clone();
    let Some(linux) = spec.linux() else {
        return Ok(new);
    };
    let maps = Maps::of(linux);
    if let Some(done) = spec.process() {
        new.set_process(Some(process(linux, done)?));
    }
    let mounts: Option<Vec<SpecMount>> = match spec.mounts() {
        Some(mounts) => {
            let each = mounts.iter().enumerate();
            let each = each.map(|(index, one)| mount(&maps, index, one));
            Some(each.collect::<Result<_>>()?)
        }
        None => None,
    };
    new.set_mounts(mounts);
    let mut linux = linux.clone();
    let namespaces = linux.namespaces().clone().map(|listed| {
        let others = |ns: &oci_spec::runtime::LinuxNamespace| ns.typ() != LinuxNamespaceType::User;
        listed.into_iter().filter(others).collect()
    });
    linux
        .set_namespaces(namespaces)
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    new.set_linux(Some(linux));
    Ok(new)
}

/// A process of the container, which has the user namespace of `linux` no more.
///
/// # Errors
/// An id that is not mapped, or mapped to the host's root.
pub(super) fn process(linux: &Linux, process: &SpecProcess) -> Result<SpecProcess> {
    let maps = Maps::of(linux);
    let mut new = process.clone();
    let mut user = process.user().clone();
    let field = |name: &str| format!("process.user.{name}");
    let uid = outside(&maps.uids, user.uid(), &field("uid"))?;
    let gid = outside(&maps.gids, user.gid(), &field("gid"))?;
    user.set_uid(uid).set_gid(gid);
    if let Some(groups) = process.user().additional_gids() {
        let field = field("additionalGids");
        let groups = groups.iter().map(|gid| outside(&maps.gids, *gid, &field));
        user.set_additional_gids(Some(groups.collect::<Result<_>>()?));
    }
    new.set_user(user);
    // None of them would be over the container alone.
    new.set_capabilities(None).set_no_new_privileges(Some(true));
    Ok(new)
}

/// Notes that the container's /etc/passwd has the program's user as `uid`: for HOME.
pub(super) fn known_as(plan: &mut Plan, uid: u32) {
    for step in &mut plan.steps {
        if let Action::Identity(identity) = &mut step.action {
            identity.inside = Some(uid);
        }
    }
}

struct Maps {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

impl Maps {
    fn of(linux: &Linux) -> Self {
        Self {
            uids: id_map(linux.uid_mappings()),
            gids: id_map(linux.gid_mappings()),
        }
    }
}

fn mapped(map: &[IdMap], id: u32) -> Option<u32> {
    let mut lines = map.iter();
    lines.find_map(|line| {
        let offset = id.checked_sub(line.inside)?;
        (offset < line.count).then(|| line.outside.checked_add(offset))?
    })
}

/// The host's id for one of the container's, which is never that of its root.
fn outside(map: &[IdMap], id: u32, field: &str) -> Result<u32> {
    let name = Feature::UsernsRoot.name();
    match mapped(map, id) {
        Some(0) => Err(Error::spec(
            field,
            format!(
                "{id} is mapped to the host's root; the degradation {name:?} never runs anything as that"
            ),
        )),
        Some(id) => Ok(id),
        None => Err(Error::spec(field, format!("{id} is not mapped"))),
    }
}

fn mount(maps: &Maps, index: usize, mount: &SpecMount) -> Result<SpecMount> {
    let name = Feature::UsernsRoot.name();
    let refuse = |field: &str, why: &str| {
        Err(Error::spec(
            format!("mounts[{index}]{field}"),
            format!("the degradation {name:?} cannot be had with it: {why}"),
        ))
    };
    let options = parse_mount(index, mount)?;
    if options.idmap.is_some() || mount.uid_mappings().is_some() {
        return refuse("", "an id-mapped mount needs a user namespace");
    }
    let mut new = mount.clone();
    let kind = mount.typ().clone().unwrap_or_default();
    if options.remount && !options.bind {
        return refuse(
            ".options",
            "a remount without \"bind\" changes the host's own file system",
        );
    }
    if options.bind || options.remount {
        return Ok(new);
    }
    if !HARMLESS.contains(&kind.as_str()) {
        return refuse(
            ".type",
            &format!(
                "a user namespace may not mount {kind:?}, and what it holds is not to be trusted"
            ),
        );
    }
    let mut words = mount.options().clone().unwrap_or_default();
    let takes_owner = matches!(kind.as_str(), "tmpfs" | "devpts");
    for (key, map) in [("uid=", &maps.uids), ("gid=", &maps.gids)] {
        let own = words.iter().position(|word| word.starts_with(key));
        match own {
            Some(at) if takes_owner => {
                let id = words[at][key.len()..].parse().ok();
                match id.and_then(|id| mapped(map, id)) {
                    Some(id) => words[at] = format!("{key}{id}"),
                    // As in a user namespace where it is not mapped: row devpts-gid.
                    None => drop(words.remove(at)),
                }
            }
            None if kind == "tmpfs" => {
                words.extend(mapped(map, 0).map(|id| format!("{key}{id}")));
            }
            _ => {}
        }
    }
    new.set_options((!words.is_empty()).then_some(words));
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(maps: serde_json::Value, mounts: serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "user": {"uid": 5, "gid": 0, "additionalGids": [7]}, "args": ["x"], "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": false
            },
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": "user"}, {"type": "mount"}],
                "uidMappings": maps, "gidMappings": maps
            }
        }))
        .unwrap()
    }

    fn range(inside: u32, outside: u32, count: u32) -> serde_json::Value {
        serde_json::json!({"containerID": inside, "hostID": outside, "size": count})
    }

    #[test]
    fn ids_are_those_that_were_mapped() {
        let maps = serde_json::json!([range(0, 100_000, 6), range(7, 300, 1)]);
        let mounts = serde_json::json!([
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["uid=7", "gid=6"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["gid=5"]},
            {"destination": "/proc", "type": "proc", "source": "proc"}
        ]);
        let new = specification(&spec(maps, mounts)).unwrap();
        let process = new.process().as_ref().unwrap();
        let user = process.user();
        assert_eq!((user.uid(), user.gid()), (100_005, 100_000));
        assert_eq!(user.additional_gids().as_deref(), Some(&[300][..]));
        assert!(process.capabilities().is_none());
        assert_eq!(process.no_new_privileges(), Some(true));
        let linux = new.linux().as_ref().unwrap();
        assert!(linux.uid_mappings().is_none() && linux.gid_mappings().is_none());
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 1);
        let options: Vec<Vec<String>> = new
            .mounts()
            .iter()
            .flatten()
            .map(|mount| mount.options().clone().unwrap_or_default())
            .collect();
        assert_eq!(options[0], ["mode=755", "uid=100000", "gid=100000"]);
        assert_eq!(options[1], ["uid=300"], "what is not mapped is left out");
        assert_eq!(options[2], ["gid=100005"]);
        assert!(options[3].is_empty());
    }

    #[test]
    fn what_is_refused() {
        let good = serde_json::json!([range(0, 100_000, 10)]);
        let none = serde_json::json!([]);
        for (maps, mounts, said) in [
            (
                serde_json::json!([range(0, 0, 10)]),
                none.clone(),
                "process.user.gid: 0 is mapped to the host's root",
            ),
            (
                serde_json::json!([range(5, 0, 1), range(0, 9, 1)]),
                none.clone(),
                "process.user.uid: 5 is mapped to the host's root",
            ),
            (
                serde_json::json!([range(0, 100_000, 1)]),
                none,
                "process.user.uid: 5 is not mapped",
            ),
            (
                good.clone(),
                serde_json::json!([{"destination": "/d", "type": "ext4", "source": "/dev/sda"}]),
                "mounts[0].type",
            ),
            (
                good.clone(),
                serde_json::json!([{"destination": "/d", "source": "x", "options": ["remount", "ro"]}]),
                "mounts[0].options",
            ),
            (
                good,
                serde_json::json!([{"destination": "/d", "type": "bind", "source": "/d", "options": ["bind", "idmap"]}]),
                "needs a user namespace",
            ),
        ] {
            let error = specification(&spec(maps, mounts)).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
