//! Pure: the names of a container's scope and slice, from `linux.cgroupsPath`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where the unit is that holds a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The slice, by its unit's name.
    pub(super) slice: String,
    /// The scope.
    pub(super) unit: String,
    /// The scope's cgroup, below that of the manager.
    pub(super) inside: PathBuf,
}

const FIELD: &str = "linux.cgroupsPath";

/// Reads `slice:prefix:name`, as runc does; where it is empty, the scope is called after the
/// container.
pub(super) fn names(path: &str, id: &str, rootless: bool) -> Result<Names> {
    let (slice, prefix, name) = match path {
        "" => ("", "isorun", id),
        _ => {
            let mut parts = path.split(':');
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(slice), Some(prefix), Some(name), None) => (slice, prefix, name),
                _ => {
                    let detail = format!(
                        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd \
                         cgroups, got {path:?} instead"
                    );
                    return Err(Error::spec(FIELD, detail));
                }
            }
        }
    };
    let slice = match (slice, rootless) {
        ("", true) => "user.slice",
        ("", false) => "system.slice",
        (slice, _) => slice,
    };
    if name.ends_with(".slice") {
        let detail = format!("{name:?} is a slice, which holds no processes: a scope is needed");
        return Err(Error::spec(FIELD, detail));
    }
    let unit = format!("{prefix}-{name}.scope");
    // What systemd allows in the name of a unit; a slash would lead to another directory.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if !unit.bytes().all(fits) || unit.len() > 255 {
        let detail = format!("{unit:?} is no valid name of a unit");
        return Err(Error::spec(FIELD, detail)
            .remedy("letters, digits, ':', '-', '_', '.', '\\' and '@' are, 255 at most"));
    }
    let inside = expand(slice)?.join(&unit);
    Ok(Names {
        slice: slice.to_string(),
        unit,
        inside,
    })
}

/// The directories of a slice: `a-b.slice` is in `a.slice/a-b.slice`, systemd.slice(5).
fn expand(slice: &str) -> Result<PathBuf> {
    let invalid = || Error::spec(FIELD, format!("invalid slice name: {slice}"));
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if !name.bytes().all(fits) || slice.len() > 255 {
        return Err(invalid());
    }
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if name.split('-').any(str::is_empty) {
        return Err(invalid());
    }
    let ends = name.match_indices('-').map(|(end, _)| end);
    let parts = ends.chain([name.len()]);
    Ok(parts
        .map(|end| Path::new(&format!("{}.slice", &name[..end])).to_path_buf())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_nested_by_their_names() {
        for (slice, want) in [
            ("system.slice", "system.slice"),
            ("test-a-b.slice", "test.slice/test-a.slice/test-a-b.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(expand(slice).unwrap(), Path::new(want), "{slice}");
        }
        for wrong in [
            "",
            "x",
            ".slice",
            "-",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "a/b.slice",
            "../a.slice",
        ] {
            let error = expand(wrong).unwrap_err().to_string();
            assert!(
                error.contains(&format!("invalid slice name: {wrong}")),
                "{error}"
            );
        }
    }

    #[test]
    fn paths_as_runc_reads_them() {
        for (path, rootless, slice, unit, inside) in [
            (
                "",
                false,
                "system.slice",
                "isorun-c1.scope",
                "system.slice/isorun-c1.scope",
            ),
            (
                "",
                true,
                "user.slice",
                "isorun-c1.scope",
                "user.slice/isorun-c1.scope",
            ),
            (
                "machine.slice:libpod:abc",
                false,
                "machine.slice",
                "libpod-abc.scope",
                "machine.slice/libpod-abc.scope",
            ),
            (
                ":docker:abc",
                false,
                "system.slice",
                "docker-abc.scope",
                "system.slice/docker-abc.scope",
            ),
            (
                "kube-pod1.slice:cri:x",
                false,
                "kube-pod1.slice",
                "cri-x.scope",
                "kube.slice/kube-pod1.slice/cri-x.scope",
            ),
        ] {
            let names = names(path, "c1", rootless).unwrap();
            assert_eq!(
                (names.slice.as_str(), names.unit.as_str()),
                (slice, unit),
                "{path}"
            );
            assert_eq!(names.inside, Path::new(inside), "{path}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (path, part) in [
            (
                "/kubepods/x",
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, \
                 got \"/kubepods/x\" instead",
            ),
            ("a.slice:b", "expected cgroupsPath"),
            ("a.slice:b:c:d", "expected cgroupsPath"),
            ("a.slice:b:../../x", "is no valid name of a unit"),
            ("a.slice:b/..:x", "is no valid name of a unit"),
            ("a.slice:b:c d", "is no valid name of a unit"),
            ("a.slice:b:c.slice", "is a slice"),
            ("x:b:c", "invalid slice name: x"),
        ] {
            let error = names(path, "c1", false).unwrap_err().to_string();
            assert!(
                error.starts_with("config.json: linux.cgroupsPath: ") && error.contains(part),
                "{path}: {error}"
            );
        }
    }
}
