//! Files that appear whole or not at all: the one way in which this project writes a file that
//! something else relies on.
//!
//! The new bytes go into a temporary file of the same folder, are synced, and take the place of the
//! old ones in one rename, which is synced too: whoever reads, also after a power cut, finds the
//! old file or the new one. The temporary file is created exclusively under a random name, so that
//! a link that somebody put into a shared folder is never followed; a link at the final name is
//! replaced, not written through. The file's mode is what the umask gives, as for any file that a
//! program creates.
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};
use tempfile::NamedTempFile;

/// Beginning of the names of unfinished files; a killed process leaves one behind at most.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Replaces `path` by what `write` puts into the file that it is given.
/// # Errors
/// Result of `write`, or the disk's error; `path` is then as it was and nothing else is left.
pub fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut NamedTempFile) -> io::Result<()>,
) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    _ = builder.prefix(TEMPORARY_PREFIX);
    // Temporary files are private to their owner unless they are asked to be like others; the umask
    // is applied to this.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        _ = builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut unfinished = builder.tempfile_in(folder)?;
    write(&mut unfinished)?;
    unfinished.as_file().sync_all()?;
    let _: File = unfinished.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Replaces `path` by a file of these bytes.
/// # Errors
/// As [`replace_file`].
pub fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    replace_file(path, |file| file.write_all(bytes.as_ref()))
}

/// Makes the names in a folder durable. Only Unix lets a folder be opened and synced; elsewhere the
/// file system has to be trusted.
/// # Errors
/// If the folder cannot be opened or the disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name());
        entries.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.json");
        write_file(&path, "first, which is longer").expect("written");
        write_file(&path, "second").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"second");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.json");
        write_file(&path, "old").expect("written");
        let error = replace_file(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(error.expect_err("the disk is full").kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_at_the_final_name_is_replaced_and_not_written_through() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, elsewhere) = (folder.path().join("state.json"), folder.path().join("elsewhere"));
        fs::write(&elsewhere, "precious").expect("written");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        write_file(&path, "new").expect("written");
        assert_eq!(fs::read(&elsewhere).expect("read"), b"precious");
        assert_eq!(fs::read(&path).expect("read"), b"new");
    }

    #[test]
    #[cfg(unix)]
    fn a_file_has_the_mode_of_any_file_that_is_created_here() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, usual) = (folder.path().join("state.json"), folder.path().join("usual"));
        write_file(&path, "").expect("written");
        fs::write(&usual, "").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&path), mode(&usual));
    }
}
