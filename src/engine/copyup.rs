//! tmpcopyup: a tmpfs that starts with the contents of the directory that it hides.
//!
//! The directory is an image's, so nothing in it is trusted: the copy goes from descriptor to
//! descriptor, follows no link, and opens nothing but regular files and directories for reading.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens the directory that `fd` refers to, for reading its entries.
///
/// # Errors
/// Those of openat(2); ENOTDIR for what is no directory.
pub fn open(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    openat(fd, ".", DIRECTORY, Mode::empty())
}

/// Copies what is in the directory `from` into the directory `to`: directories, regular files, links,
/// fifos and devices, with owner and mode, sockets left out.
///
/// # Errors
/// The errno of the first call that fails: ENOSPC when the tmpfs is too small, EMFILE when the tree is
/// deeper than descriptors may be open.
pub fn copy(from: OwnedFd, to: OwnedFd) -> nix::Result<()> {
    // A list instead of a recursion: the depth is the image's choice, the stack's size is not.
    let mut todo = vec![(from, to)];
    while let Some((from, to)) = todo.pop() {
        let mut entries = Dir::from_fd(
            from.as_fd()
                .try_clone_to_owned()
                .map_err(|_| Errno::EMFILE)?,
        )?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if let Some(pair) = copy_one(from.as_fd(), to.as_fd(), name)? {
                todo.push(pair);
            }
        }
    }
    Ok(())
}

/// Copies one entry; a directory is made, and given back to be copied into.
fn copy_one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
) -> nix::Result<Option<(OwnedFd, OwnedFd)>> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let source = openat(from, name, DIRECTORY, Mode::empty())?;
            let made = openat(to, name, DIRECTORY, Mode::empty())?;
            fchown(&made, owner(&stat).0, owner(&stat).1)?;
            fchmod(&made, mode)?;
            return Ok(Some((source, made)));
        }
        libc::S_IFREG => copy_file(from, to, name, mode)?,
        libc::S_IFLNK => {
            let text = readlinkat(from, name)?;
            symlinkat(text.as_os_str(), to, name)?;
            let (uid, gid) = owner(&stat);
            fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        kind @ (libc::S_IFIFO | libc::S_IFCHR | libc::S_IFBLK) => {
            mknodat(
                to,
                name,
                SFlag::from_bits_truncate(kind),
                mode,
                stat.st_rdev,
            )?;
            let (uid, gid) = owner(&stat);
            fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        // A socket is nothing without the process that listens.
        _ => {}
    }
    Ok(None)
}

fn owner(stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, mode: Mode) -> nix::Result<()> {
    // O_NONBLOCK: if it was exchanged for a fifo meanwhile, opening does not wait.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let source = openat(from, name, flags, Mode::empty())?;
    let stat = fstat(&source)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::ESTALE);
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let made = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let (uid, gid) = owner(&stat);
    fchown(&made, uid, gid)?;
    let made = std::fs::File::from(made);
    std::io::copy(&mut std::fs::File::from(source), &mut &made)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    // Last, because a change of owner or contents takes set-id bits away.
    fchmod(&made, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn directory(path: &Path) -> OwnedFd {
        nix::fcntl::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_with_links_modes_and_fifos() {
        let base = std::env::temp_dir().join(format!("isorun-copyup-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        std::fs::create_dir_all(from.join("deep/er")).unwrap();
        std::fs::create_dir_all(&to).unwrap();
        std::fs::write(from.join("deep/er/file"), "contents").unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(from.join("deep/er/file"), mode(0o4751)).unwrap();
        std::fs::set_permissions(from.join("deep"), mode(0o1777)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::from_bits_truncate(0o620)).unwrap();
        copy(directory(&from), directory(&to)).unwrap();
        assert_eq!(std::fs::read(to.join("deep/er/file")).unwrap(), b"contents");
        let mode_of = |path: &str| {
            to.join(path)
                .symlink_metadata()
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(mode_of("deep/er/file") & 0o7777, 0o4751);
        assert_eq!(mode_of("deep") & 0o7777, 0o1777);
        assert_eq!(
            std::fs::read_link(to.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(mode_of("fifo") & libc::S_IFMT, libc::S_IFIFO);
        std::fs::remove_dir_all(base).unwrap();
    }
}
