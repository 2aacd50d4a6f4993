//! Intel RDT (and its like on other CPUs): the group of the resctrl file system that a container's
//! processes are in. Kernel: Documentation/filesystems/resctrl.rst.
//!
//! ```text
//! resctrl/            the default group
//!   schemata tasks info/
//!   GROUP/            a class of service: closID, or the container's id
//!     schemata tasks mon_groups/
//!       ID/tasks      what is measured for the container alone
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::plan::Rdt;
use crate::state::Resctrl;

/// A group that has been looked at: what is asked for can be had there, as far as that can be seen.
pub struct Prepared<'a> {
    plan: &'a Rdt,
    root: PathBuf,
    group: PathBuf,
    /// It was there.
    exists: bool,
}

/// Looks for resctrl and for the group, and changes nothing.
///
/// # Errors
/// No resctrl; a group that is to be there and is not; one that is there with other schemata.
pub fn prepare(plan: &Rdt) -> Result<Prepared<'_>> {
    Prepared::below(plan, find()?)
}

/// Where resctrl is mounted.
fn find() -> Result<PathBuf> {
    let mounts = super::mountinfo::read()
        .map_err(|error| Error::io("linux.intelRdt: read", "/proc/self/mountinfo", &error))?;
    let found = mounts
        .into_iter()
        .find(|mount| mount.kind == "resctrl" && mount.root == "/");
    found.map(|mount| mount.point).ok_or_else(|| {
        Error::spec(
            "linux.intelRdt",
            "no resctrl file system is mounted on this host",
        )
        .remedy(
            "mount -t resctrl resctrl /sys/fs/resctrl; it needs a CPU with RDT (cat_l3, mba or \
             cqm among the flags in /proc/cpuinfo) and CONFIG_X86_CPU_RESCTRL",
        )
    })
}

impl<'a> Prepared<'a> {
    fn below(plan: &'a Rdt, root: PathBuf) -> Result<Self> {
        // Checked to be one name.
        let group = root.join(&plan.group);
        let exists = group.is_dir();
        let this = Self {
            plan,
            root,
            group,
            exists,
        };
        match (plan.named, exists) {
            (true, false) if plan.schemata.is_empty() => Err(Error::spec(
                "linux.intelRdt.closID",
                format!("there is no group {}", this.group.display()),
            )
            .remedy("make it, or say by schemata what it is to be")),
            (true, true) => this.compare().map(|()| this),
            _ => Ok(this),
        }
    }

    /// A group that is there must be what is asked for: it may be another's, too.
    fn compare(&self) -> Result<()> {
        if self.plan.schemata.is_empty() {
            return Ok(());
        }
        let path = self.group.join("schemata");
        let there = fs::read_to_string(&path).map_err(|error| {
            Error::io("linux.intelRdt: read", path.display().to_string(), &error)
        })?;
        match self.plan.schemata.iter().find(|line| !holds(line, &there)) {
            None => Ok(()),
            Some(line) => Err(Error::spec(
                "linux.intelRdt",
                format!(
                    "the group {} is there already, and its schemata do not have {line:?}",
                    self.group.display()
                ),
            )
            .remedy("use another closID, or leave the schemata out")),
        }
    }

    /// What will be made, and is to be removed again: recorded before it is made.
    pub fn record(&self) -> Resctrl {
        let monitoring = self
            .plan
            .monitoring
            .as_ref()
            .map(|id| self.group.join("mon_groups").join(id));
        let own = (!self.exists && !self.plan.named).then(|| self.group.clone());
        Resctrl {
            tasks: std::iter::once(self.group.clone())
                .chain(monitoring.clone())
                .collect(),
            // From within.
            remove: monitoring.into_iter().chain(own).collect(),
        }
    }

    /// Makes the group where it is not there yet.
    ///
    /// # Errors
    /// A sentence with the directory and the errno: ENOSPC when the CPU has no class of service left.
    pub fn make(&self) -> Result<()> {
        if self.exists {
            return Ok(());
        }
        make_dir(&self.group, "all classes of service of this CPU are in use")
    }

    /// Writes the schemata of a group that was made, and makes the monitoring group. A group that was
    /// made for its closID and cannot be set up goes again: nobody else would remove it.
    ///
    /// # Errors
    /// A sentence with the file and the errno, and what the kernel says about the schemata.
    pub fn set_up(&self) -> Result<()> {
        let result = self.set_up_group();
        if result.is_err() && !self.exists && self.plan.named {
            let _ = fs::remove_dir(&self.group);
        }
        result
    }

    fn set_up_group(&self) -> Result<()> {
        if (!self.exists || !self.plan.named) && !self.plan.schemata.is_empty() {
            let text = self.plan.schemata.join("\n") + "\n";
            let path = self.group.join("schemata");
            write(&path, &text).map_err(|error| {
                let said = fs::read_to_string(self.root.join("info/last_cmd_status"));
                match said.unwrap_or_default().trim() {
                    "" | "ok" => error,
                    said => error.remedy(format!("the kernel says: {said}")),
                }
            })?;
        }
        match &self.plan.monitoring {
            Some(id) => make_dir(
                &self.group.join("mon_groups").join(id),
                "all monitoring groups of this CPU are in use",
            ),
            None => Ok(()),
        }
    }
}

/// Puts a process, and what it forks from now on, into the groups of its container.
///
/// # Errors
/// A sentence with the file and the errno.
pub fn enter(groups: &Resctrl, pid: i32) -> Result<()> {
    let text = format!("{pid}\n");
    let mut files = groups.tasks.iter().map(|group| group.join("tasks"));
    files.try_for_each(|file| write(&file, &text))
}

/// Removes what was made for the container; what is gone already is fine.
///
/// # Errors
/// A sentence with the directory and the errno.
pub fn remove(groups: &Resctrl) -> Result<()> {
    groups
        .remove
        .iter()
        .try_for_each(|dir| match fs::remove_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                "remove the resctrl group",
                dir.display().to_string(),
                &error,
            )),
            _ => Ok(()),
        })
}

fn make_dir(dir: &Path, full: &str) -> Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        // Somebody was quicker, or the last container of this id left it.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => {
            let made = Error::io(
                "linux.intelRdt: make the resctrl group",
                dir.display().to_string(),
                &error,
            );
            Err(match made.errno() {
                Some(Errno::ENOSPC) => made.remedy(full),
                Some(Errno::EACCES | Errno::EPERM) => made.remedy("only root may make one"),
                _ => made,
            })
        }
    }
}

/// Writes to a file of the kernel's, at one stroke. There it is already.
fn write(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::io("linux.intelRdt: write", path.display().to_string(), &error))
}

/// Whether a schemata file has all that a line asks for: `L3:0=ff;1=c0`.
fn holds(line: &str, file: &str) -> bool {
    let Some((resource, wanted)) = line.trim().split_once(':') else {
        return false;
    };
    let there: Vec<(&str, &str)> = file
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .filter(|(name, _)| name.trim() == resource.trim())
        .flat_map(|(_, values)| pairs(values))
        .collect();
    !there.is_empty()
        && pairs(wanted).all(|(id, value)| {
            there.iter().any(|(known, found)| {
                *known == id && number(resource, found) == number(resource, value)
            })
        })
}

fn pairs(values: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = values
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(id, value)| (id.trim(), value.trim()))
}

/// A value without the ways to write it: bandwidths are decimal, masks hexadecimal.
fn number(resource: &str, value: &str) -> std::result::Result<u128, String> {
    let radix = if resource.trim().ends_with("MB") || resource.trim() == "SMBA" {
        10
    } else {
        16
    };
    u128::from_str_radix(value, radix).map_err(|_| value.to_string())
}

#[cfg(test)]
mod tests {
    //! On a tree of files in the place of resctrl, which few machines have: what the kernel makes in a
    //! new group (`tasks`, `schemata`, `mon_groups`) the tests make.

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("isorun-rdt-{name}-{}", std::process::id()));
            fs::create_dir_all(dir.join("info")).unwrap();
            let tree = Self(dir);
            tree.fill("", "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n");
            tree
        }

        /// Does what the kernel does when a group is made.
        fn fill(&self, group: &str, schemata: &str) {
            let dir = self.0.join(group);
            fs::create_dir_all(dir.join("mon_groups")).unwrap();
            fs::write(dir.join("schemata"), schemata).unwrap();
            fs::write(dir.join("tasks"), "").unwrap();
        }

        /// And when one is removed: what is in it goes.
        fn empty(&self, group: &str) {
            for file in ["schemata", "tasks"] {
                let _ = fs::remove_file(self.0.join(group).join(file));
            }
            let _ = fs::remove_dir(self.0.join(group).join("mon_groups"));
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn plan(group: &str, named: bool, schemata: &[&str], monitoring: bool) -> Rdt {
        Rdt {
            group: group.into(),
            named,
            schemata: schemata.iter().map(|line| (*line).to_string()).collect(),
            monitoring: monitoring.then(|| "box".into()),
        }
    }

    #[test]
    fn a_group_of_its_own_is_made_filled_and_removed() {
        let tree = Tree::new("own");
        let plan = plan("box", false, &["L3:0=f", "MB:0=20"], true);
        let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
        let record = prepared.record();
        prepared.make().unwrap();
        tree.fill("box", "");
        prepared.set_up().unwrap();
        assert_eq!(tree.read("box/schemata"), "L3:0=f\nMB:0=20\n");
        fs::write(tree.0.join("box/mon_groups/box/tasks"), "").unwrap();
        enter(&record, 4711).unwrap();
        assert_eq!(tree.read("box/tasks"), "4711\n");
        assert_eq!(tree.read("box/mon_groups/box/tasks"), "4711\n");
        fs::remove_file(tree.0.join("box/mon_groups/box/tasks")).unwrap();
        // The monitoring group first: the other one is around it.
        let error = remove(&record).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOTEMPTY), "{error}");
        assert!(!tree.0.join("box/mon_groups/box").exists());
        tree.empty("box");
        remove(&record).unwrap();
        assert!(!tree.0.join("box").exists());
        remove(&record).unwrap();
    }

    #[test]
    fn a_named_group_that_is_there_is_used_and_stays() {
        let tree = Tree::new("named");
        tree.fill("gold", "    MB:0=20;1=70\n    L3:0=007f0;1=0001f\n");
        for lines in [
            &[][..],
            &["L3:0=7f0;1=1f"],
            &["L3:1=1F", "MB: 0 = 20 ;"],
            &["MB:1=70;0=20"],
        ] {
            let plan = plan("gold", true, lines, false);
            let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
            let before = tree.read("gold/schemata");
            prepared.make().unwrap();
            prepared.set_up().unwrap();
            assert_eq!(tree.read("gold/schemata"), before, "nobody may write it");
            assert_eq!(prepared.record().remove, Vec::<PathBuf>::new());
            assert_eq!(prepared.record().tasks, [tree.0.join("gold")]);
        }
        for line in [
            "L3:0=7f1",
            "L3:2=7f0",
            "MB:0=30",
            "L2:0=f",
            "L3:0=7f0;1=ff",
            "nonsense",
        ] {
            let plan = plan("gold", true, &[line], false);
            let error = Prepared::below(&plan, tree.0.clone()).err().unwrap();
            assert!(
                error.to_string().contains("there already"),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn a_named_group_without_schemata_must_be_there() {
        let tree = Tree::new("missing");
        let missing = plan("gold", true, &[], true);
        let error = Prepared::below(&missing, tree.0.clone()).err().unwrap();
        assert!(
            error
                .to_string()
                .contains("linux.intelRdt.closID: there is no group"),
            "{error}"
        );
        assert!(!tree.0.join("gold").exists());
        // The default group, whose directory is resctrl's own.
        let root = plan("", true, &[], true);
        let prepared = Prepared::below(&root, tree.0.clone()).unwrap();
        prepared.make().unwrap();
        prepared.set_up().unwrap();
        assert_eq!(prepared.record().remove, [tree.0.join("mon_groups/box")]);
        remove(&prepared.record()).unwrap();
        assert!(tree.0.join("schemata").exists());
    }

    #[test]
    fn what_the_kernel_says_about_schemata_is_told_and_a_new_group_goes() {
        let tree = Tree::new("refused");
        fs::write(tree.0.join("info/last_cmd_status"), "Mask out of range\n").unwrap();
        let plan = plan("gold", true, &["L3:0=fffffff"], false);
        let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
        prepared.make().unwrap();
        // No schemata file in the new group: the write fails.
        let error = prepared.set_up().unwrap_err().to_string();
        assert!(
            error.contains("the kernel says: Mask out of range"),
            "{error}"
        );
        assert!(error.contains("gold/schemata: ENOENT"), "{error}");
        assert!(!tree.0.join("gold").exists(), "it was made for nothing");
    }

    #[test]
    fn a_group_that_was_there_under_the_containers_id_stays() {
        let tree = Tree::new("id");
        tree.fill("box", "L3:0=1\n");
        let plan = plan("box", false, &["L3:0=3"], false);
        let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
        prepared.make().unwrap();
        prepared.set_up().unwrap();
        assert_eq!(tree.read("box/schemata"), "L3:0=3\n");
        assert_eq!(prepared.record().remove, Vec::<PathBuf>::new());
    }
}
