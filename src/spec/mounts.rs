//! Mount options as data: what mount_setattr(2), fsconfig(2) and mount(2) want to know.
//!
//! The names are those of the specification's table (config.md, "Linux mount options"), which is
//! also runc's. A name that is not in the tables here is an option of the file system itself and
//! goes into [`MountOptions::data`].
//!
//! Access times are one setting with three values, not independent bits: `relatime`, `noatime` and
//! `strictatime` choose a value, their opposites go back to the kernel's default (relatime); the
//! last one in the list wins. mount_setattr takes a value only together with the whole mask
//! MOUNT_ATTR__ATIME in the bits to clear, so that is how it comes out of here.

use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::mount::attr;

/// The kind of mount propagation; see mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PropagationKind {
    /// Mounts pass in both directions.
    Shared,
    /// Mounts pass from the peer to here only.
    Slave,
    /// No mounts pass.
    Private,
    /// As private, and it cannot be bind mounted.
    Unbindable,
}

/// A change of propagation: `rslave` is `{ kind: Slave, recursive: true }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// The kind that the mount gets.
    pub kind: PropagationKind,
    /// Whether the mounts below get it too.
    pub recursive: bool,
}

impl Propagation {
    /// The flags for mount(2): MS_SHARED and the like, with MS_REC where recursive.
    pub fn ms_flags(self) -> u64 {
        self.attribute() | if self.recursive { libc::MS_REC } else { 0 }
    }

    /// The value for mount_attr.propagation of mount_setattr(2): the same without MS_REC, which is
    /// that call's AT_RECURSIVE.
    pub fn attribute(self) -> u64 {
        match self.kind {
            PropagationKind::Shared => libc::MS_SHARED,
            PropagationKind::Slave => libc::MS_SLAVE,
            PropagationKind::Private => libc::MS_PRIVATE,
            PropagationKind::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// Whether the mount is to show other owners (mount option `idmap` or `ridmap`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdMap {
    /// This mount only.
    Idmap,
    /// The mounts below too.
    Ridmap,
}

/// The options of one mount, by what they act on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// MOUNT_ATTR_* bits to set on the mount itself (fsmount, mount_setattr).
    pub set: u64,
    /// MOUNT_ATTR_* bits to clear on it: named by an option such as `rw` or `dev`, or the whole of
    /// MOUNT_ATTR__ATIME where an access time is chosen. Matters for a bind mount, which inherits.
    pub clear: u64,
    /// MOUNT_ATTR_* bits to set on it and all mounts below (AT_RECURSIVE): `rro` and the like.
    pub recursive_set: u64,
    /// MOUNT_ATTR_* bits to clear on it and all mounts below.
    pub recursive_clear: u64,
    /// A bind mount: option `bind` or `rbind`, or that type.
    pub bind: bool,
    /// A bind mount of the whole tree: option or type `rbind`.
    pub recursive_bind: bool,
    /// Changes of propagation, in the order in which they are to be made.
    pub propagation: Vec<Propagation>,
    /// `remount`: change what is mounted there instead of mounting.
    pub remount: bool,
    /// `tmpcopyup`: a tmpfs that starts with the contents of the directory below it.
    pub tmpcopyup: bool,
    /// `idmap` or `ridmap`.
    pub idmap: Option<IdMap>,
    /// Flags of the superblock to set, as MS_* bits: those of [`SUPERBLOCK_MASK`].
    pub superblock_set: u64,
    /// Flags of the superblock that an option such as `async` turns off, as MS_* bits.
    pub superblock_clear: u64,
    /// Options of the file system: `size=64k` is `("size", Some("64k"))`, `newinstance` has `None`.
    pub data: Vec<(String, Option<String>)>,
}

/// The MS_* bits that belong to the superblock: fsconfig(2) takes them by name.
pub const SUPERBLOCK_MASK: u64 = libc::MS_SYNCHRONOUS
    | libc::MS_DIRSYNC
    | libc::MS_MANDLOCK
    | libc::MS_LAZYTIME
    | libc::MS_I_VERSION
    | libc::MS_SILENT;

/// What an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Nothing: `defaults`.
    Nothing,
    /// Sets bits of the mount; the flag says whether also below.
    Set(u64, bool),
    /// Clears bits of the mount; the flag says whether also below.
    Clear(u64, bool),
    /// Chooses an access time (a value under attr::ATIME); the flag: also below.
    Atime(u64, bool),
    /// Back to the kernel's default if this value was chosen before.
    NotAtime(u64, bool),
    /// Sets MS_* bits of the superblock.
    SuperSet(u64),
    /// Clears MS_* bits of the superblock.
    SuperClear(u64),
    Bind,
    Rbind,
    Remount,
    Copyup,
    Map(IdMap),
    Propagate(Propagation),
}

const fn propagate(kind: PropagationKind, recursive: bool) -> Meaning {
    Meaning::Propagate(Propagation { kind, recursive })
}

/// Every option with a meaning of its own, by name.
const OPTIONS: [(&str, Meaning); 62] = {
    use Meaning::*;
    use PropagationKind as P;
    [
        ("async", SuperClear(libc::MS_SYNCHRONOUS)),
        ("atime", NotAtime(attr::NOATIME, false)),
        ("bind", Bind),
        ("defaults", Nothing),
        ("dev", Clear(attr::NODEV, false)),
        ("diratime", Clear(attr::NODIRATIME, false)),
        ("dirsync", SuperSet(libc::MS_DIRSYNC)),
        ("exec", Clear(attr::NOEXEC, false)),
        ("idmap", Map(IdMap::Idmap)),
        ("iversion", SuperSet(libc::MS_I_VERSION)),
        ("lazytime", SuperSet(libc::MS_LAZYTIME)),
        ("loud", SuperClear(libc::MS_SILENT)),
        ("mand", SuperSet(libc::MS_MANDLOCK)),
        ("noatime", Atime(attr::NOATIME, false)),
        ("nodev", Set(attr::NODEV, false)),
        ("nodiratime", Set(attr::NODIRATIME, false)),
        ("noexec", Set(attr::NOEXEC, false)),
        ("noiversion", SuperClear(libc::MS_I_VERSION)),
        ("nolazytime", SuperClear(libc::MS_LAZYTIME)),
        ("nomand", SuperClear(libc::MS_MANDLOCK)),
        ("norelatime", NotAtime(0, false)),
        ("nostrictatime", NotAtime(attr::STRICTATIME, false)),
        ("nosuid", Set(attr::NOSUID, false)),
        ("nosymfollow", Set(attr::NOSYMFOLLOW, false)),
        ("private", propagate(P::Private, false)),
        ("ratime", NotAtime(attr::NOATIME, true)),
        ("rbind", Rbind),
        ("rdev", Clear(attr::NODEV, true)),
        ("rdiratime", Clear(attr::NODIRATIME, true)),
        ("relatime", Atime(0, false)),
        ("remount", Remount),
        ("rexec", Clear(attr::NOEXEC, true)),
        ("ridmap", Map(IdMap::Ridmap)),
        ("rnoatime", Atime(attr::NOATIME, true)),
        ("rnodev", Set(attr::NODEV, true)),
        ("rnodiratime", Set(attr::NODIRATIME, true)),
        ("rnoexec", Set(attr::NOEXEC, true)),
        ("rnorelatime", NotAtime(0, true)),
        ("rnostrictatime", NotAtime(attr::STRICTATIME, true)),
        ("rnosuid", Set(attr::NOSUID, true)),
        ("rnosymfollow", Set(attr::NOSYMFOLLOW, true)),
        ("ro", Set(attr::RDONLY, false)),
        ("rprivate", propagate(P::Private, true)),
        ("rrelatime", Atime(0, true)),
        ("rro", Set(attr::RDONLY, true)),
        ("rrw", Clear(attr::RDONLY, true)),
        ("rshared", propagate(P::Shared, true)),
        ("rslave", propagate(P::Slave, true)),
        ("rstrictatime", Atime(attr::STRICTATIME, true)),
        ("rsuid", Clear(attr::NOSUID, true)),
        ("rsymfollow", Clear(attr::NOSYMFOLLOW, true)),
        ("runbindable", propagate(P::Unbindable, true)),
        ("rw", Clear(attr::RDONLY, false)),
        ("shared", propagate(P::Shared, false)),
        ("silent", SuperSet(libc::MS_SILENT)),
        ("slave", propagate(P::Slave, false)),
        ("strictatime", Atime(attr::STRICTATIME, false)),
        ("suid", Clear(attr::NOSUID, false)),
        ("symfollow", Clear(attr::NOSYMFOLLOW, false)),
        ("sync", SuperSet(libc::MS_SYNCHRONOUS)),
        ("tmpcopyup", Copyup),
        ("unbindable", propagate(P::Unbindable, false)),
    ]
};

/// The option names with a meaning, sorted.
pub fn option_names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name)
}

/// Turns `options` into data; `field` is their JSON path, such as `mounts[3].options`.
///
/// # Errors
///
/// An option with a null byte, or one like `=x` that has a value and no name.
pub fn parse_options(field: &str, options: &[String]) -> Result<MountOptions> {
    let mut parsed = MountOptions::default();
    for (index, option) in options.iter().enumerate() {
        let wrong = |why: &str| Err(Error::spec(format!("{field}[{index}]"), why));
        if option.contains('\0') {
            return wrong("it contains a null byte");
        }
        match OPTIONS.binary_search_by_key(&option.as_str(), |(name, _)| name) {
            Ok(at) => parsed.apply(OPTIONS[at].1),
            Err(_) => {
                for part in split_data(option) {
                    match part.split_once('=') {
                        Some(("", _)) => return wrong("a mount option needs a name before \"=\""),
                        Some((name, value)) => {
                            parsed.data.push((name.into(), Some(value.into())));
                        }
                        None => parsed.data.push((part.into(), None)),
                    }
                }
            }
        }
    }
    Ok(parsed)
}

/// Turns the type and options of mount number `index` into data: [`parse_options`], with types
/// `bind` and `rbind` counting as those options.
///
/// # Errors
///
/// Those of [`parse_options`].
pub fn parse_mount(index: usize, mount: &Mount) -> Result<MountOptions> {
    let options = mount.options().as_deref().unwrap_or_default();
    let mut parsed = parse_options(&format!("mounts[{index}].options"), options)?;
    match mount.typ().as_deref() {
        Some("bind") => parsed.bind = true,
        Some("rbind") => parsed.apply(Meaning::Rbind),
        _ => {}
    }
    Ok(parsed)
}

impl MountOptions {
    fn apply(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::Set(bits, recursive) => {
                let (set, clear) = self.attributes(recursive);
                *set |= bits;
                *clear &= !bits;
            }
            Meaning::Clear(bits, recursive) => {
                let (set, clear) = self.attributes(recursive);
                *set &= !bits;
                *clear |= bits;
            }
            Meaning::Atime(value, recursive) => {
                let (set, clear) = self.attributes(recursive);
                let before = *set & attr::ATIME;
                // For mount(2) each is a bit of its own, strictatime over noatime over relatime whatever
                // their order; so for runc, too. Their values here rise alike.
                if recursive || value > before {
                    *set = *set & !attr::ATIME | value;
                }
                *clear |= attr::ATIME;
            }
            Meaning::NotAtime(value, recursive) => {
                let (set, clear) = self.attributes(recursive);
                let chosen = *clear & attr::ATIME != 0;
                match (chosen, value) {
                    // norelatime: relatime is the default anyway; only an earlier choice goes.
                    (true, 0) if *set & attr::ATIME == 0 => *clear &= !attr::ATIME,
                    // Another value was chosen, which this option says nothing against.
                    (true, value) if *set & attr::ATIME != value => {}
                    (_, 0) => {}
                    _ => {
                        *set &= !attr::ATIME;
                        *clear |= attr::ATIME;
                    }
                }
            }
            Meaning::SuperSet(bits) => {
                self.superblock_set |= bits;
                self.superblock_clear &= !bits;
            }
            Meaning::SuperClear(bits) => {
                self.superblock_set &= !bits;
                self.superblock_clear |= bits;
            }
            Meaning::Bind => self.bind = true,
            Meaning::Rbind => {
                self.bind = true;
                self.recursive_bind = true;
            }
            Meaning::Remount => self.remount = true,
            Meaning::Copyup => self.tmpcopyup = true,
            Meaning::Map(map) => self.idmap = Some(map),
            Meaning::Propagate(propagation) => self.propagation.push(propagation),
        }
    }

    fn attributes(&mut self, recursive: bool) -> (&mut u64, &mut u64) {
        match recursive {
            true => (&mut self.recursive_set, &mut self.recursive_clear),
            false => (&mut self.set, &mut self.clear),
        }
    }

    /// The options of the file system as mount(2) takes them: joined by commas.
    pub fn data_string(&self) -> String {
        let mut joined = String::new();
        for (name, value) in &self.data {
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(name);
            if let Some(value) = value {
                joined.push('=');
                joined.push_str(value);
            }
        }
        joined
    }

    /// The names of the superblock flags that are set, as fsconfig(2) takes them.
    pub fn superblock_names(&self) -> Vec<&'static str> {
        OPTIONS
            .iter()
            .filter_map(|(name, meaning)| match meaning {
                Meaning::SuperSet(bits) if self.superblock_set & bits != 0 => Some(*name),
                _ => None,
            })
            .collect()
    }
}

/// Splits `mode=755,size=1k` at its commas, but not at those that are escaped (overlay's
/// `lowerdir=a\,b`) or quoted (SELinux's `context="a:b:c:s0,c1"`), since engines write either form.
fn split_data(option: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    option
        .split(move |character| {
            let comma = character == ',' && !quoted && !escaped;
            if character == '"' && !escaped {
                quoted = !quoted;
            }
            escaped = character == '\\' && !escaped;
            comma
        })
        .filter(|part| !part.is_empty())
}

/// The propagation that `linux.rootfsPropagation` names; `None` for a name that is none.
pub fn propagation(name: &str) -> Option<Propagation> {
    let at = OPTIONS.binary_search_by_key(&name, |(name, _)| name).ok()?;
    match OPTIONS[at].1 {
        Meaning::Propagate(propagation) => Some(propagation),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        parse_options("mounts[0].options", &options).unwrap()
    }

    #[test]
    fn table_is_sorted_for_the_search() {
        assert!(OPTIONS.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn attributes() {
        for (options, set, clear) in [
            (vec!["ro"], 0x1, 0),
            (vec!["nosuid", "nodev", "noexec"], 0xe, 0),
            (vec!["ro", "rw"], 0, 0x1),
            (vec!["rw", "ro"], 0x1, 0),
            (
                vec!["suid", "dev", "exec", "symfollow", "diratime"],
                0,
                0x20_008e,
            ),
            (vec!["nodiratime", "nosymfollow"], 0x20_0080, 0),
            (vec!["noatime"], 0x10, 0x70),
            (vec!["strictatime"], 0x20, 0x70),
            (vec!["relatime"], 0, 0x70),
            (vec!["noatime", "strictatime"], 0x20, 0x70),
            (vec!["noatime", "atime"], 0, 0x70),
            (vec!["strictatime", "atime"], 0x20, 0x70),
            (vec!["atime"], 0, 0x70),
            (vec!["norelatime"], 0, 0),
            (vec!["relatime", "norelatime"], 0, 0),
            (vec!["noatime", "norelatime"], 0x10, 0x70),
            (vec!["strictatime", "nostrictatime"], 0, 0x70),
            (vec!["defaults"], 0, 0),
        ] {
            let parsed = parse(&options);
            assert_eq!((parsed.set, parsed.clear), (set, clear), "{options:?}");
            assert_eq!(parsed.data, [], "{options:?}");
            // The same names with an r act on the tree, and on nothing else.
            if !options.contains(&"defaults") {
                let below: Vec<String> = options.iter().map(|name| format!("r{name}")).collect();
                let below: Vec<&str> = below.iter().map(String::as_str).collect();
                let below = parse(&below);
                assert_eq!((below.recursive_set, below.recursive_clear), (set, clear));
                assert_eq!((below.set, below.clear), (0, 0));
            }
        }
    }

    #[test]
    fn the_kernel_accepts_only_whole_atime_masks() {
        for name in option_names() {
            let parsed = parse(&[name]);
            for (set, clear) in [
                (parsed.set, parsed.clear),
                (parsed.recursive_set, parsed.recursive_clear),
            ] {
                let mask = clear & attr::ATIME;
                assert!(mask == 0 || mask == attr::ATIME, "{name}");
                assert!(set & attr::ATIME == 0 || mask == attr::ATIME, "{name}");
            }
        }
    }

    #[test]
    fn every_name_has_a_meaning_and_is_no_data() {
        for name in option_names() {
            let parsed = parse(&[name]);
            assert_eq!(parsed.data, [], "{name}");
            let nothing = ["defaults", "norelatime", "rnorelatime"].contains(&name);
            assert_eq!(parsed == MountOptions::default(), nothing, "{name}");
        }
    }

    #[test]
    fn binds_propagation_and_the_rest() {
        let parsed = parse(&[
            "rbind",
            "rprivate",
            "slave",
            "remount",
            "tmpcopyup",
            "ridmap",
        ]);
        assert!(parsed.bind && parsed.recursive_bind && parsed.remount && parsed.tmpcopyup);
        assert_eq!(parsed.idmap, Some(IdMap::Ridmap));
        let flags: Vec<u64> = parsed
            .propagation
            .iter()
            .map(|change| change.ms_flags())
            .collect();
        assert_eq!(flags, [1 << 18 | 1 << 14, 1 << 19]);
        assert_eq!(parsed.propagation[0].attribute(), 1 << 18);

        let parsed = parse(&["sync", "dirsync", "lazytime", "async"]);
        assert_eq!(parsed.superblock_names(), ["dirsync", "lazytime"]);
        assert_eq!(parsed.superblock_clear, libc::MS_SYNCHRONOUS);
        assert_eq!(parsed.superblock_set & !SUPERBLOCK_MASK, 0);
    }

    #[test]
    fn data() {
        let parsed = parse(&[
            "mode=755,size=64k",
            "newinstance",
            "",
            "lowerdir=a\\,b:c",
            "x=\"1,2\"",
        ]);
        let data: Vec<(&str, Option<&str>)> = parsed
            .data
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        assert_eq!(
            data,
            [
                ("mode", Some("755")),
                ("size", Some("64k")),
                ("newinstance", None),
                ("lowerdir", Some("a\\,b:c")),
                ("x", Some("\"1,2\"")),
            ]
        );
        assert_eq!(
            parsed.data_string(),
            "mode=755,size=64k,newinstance,lowerdir=a\\,b:c,x=\"1,2\""
        );
    }

    #[test]
    fn bad_options() {
        for (option, says) in [("a\0b", "null byte"), ("=x", "needs a name")] {
            let error = parse_options("mounts[3].options", &["ro".into(), option.into()])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("mounts[3].options[1]") && error.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn types_that_mean_bind() {
        for (typ, options, bind, recursive) in [
            ("bind", vec![], true, false),
            ("rbind", vec![], true, true),
            ("none", vec!["bind"], true, false),
            ("bind", vec!["rbind"], true, true),
            ("tmpfs", vec![], false, false),
        ] {
            let mount: Mount = serde_json::from_value(
                serde_json::json!({"destination": "/x", "type": typ, "options": options}),
            )
            .unwrap();
            let parsed = parse_mount(0, &mount).unwrap();
            assert_eq!(
                (parsed.bind, parsed.recursive_bind),
                (bind, recursive),
                "{typ}"
            );
        }
    }

    #[test]
    fn rootfs_propagation_names() {
        assert_eq!(
            propagation("rslave").unwrap().ms_flags(),
            libc::MS_SLAVE | libc::MS_REC
        );
        assert_eq!(propagation("ro"), None);
        assert_eq!(propagation("slaves"), None);
    }
}
