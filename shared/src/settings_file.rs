//! Reads a file that a setting names, without hanging.
//!
//! Opening a pipe waits for its writer, and reading a device may never end, so only regular files
//! and links to them are read. A hanging network file system still blocks the reader.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;

/// Fails if the path exists and is not a regular file.
pub fn check(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(metadata) => check_kind(&metadata),
        Err(_) => Ok(()),
    }
}

/// Reads a regular file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // For some devices, opening alone has an effect.
    check_kind(&path.metadata()?)?;
    let file = open(path)?;
    // The path may have been replaced meanwhile.
    check_kind(&file.metadata()?)?;
    let mut content = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::other(format!("longer than {most} bytes")));
    }
    Ok(content)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}

fn check_kind(metadata: &Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_file_and_a_link_to_one_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "12345").expect("a file");
        symlink(&file, &link).expect("a link");
        for path in [&file, &link] {
            check(path).expect("a file");
            assert_eq!(read(path, 5).expect("a file"), b"12345");
            let error = read(path, 4).expect_err("one too many");
            assert_eq!(error.to_string(), "longer than 4 bytes");
        }
    }

    #[test]
    fn whatever_else_has_a_name_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let [pipe, socket, link] = ["pipe", "socket", "link"].map(|name| folder.path().join(name));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = UnixListener::bind(&socket).expect("a socket");
        symlink(&pipe, &link).expect("a link");
        for path in [
            &*pipe,
            &socket,
            &link,
            folder.path(),
            Path::new("/dev/zero"),
        ] {
            for error in [check(path).err(), read(path, 10).err()] {
                let error = error.expect("refused").to_string();
                assert_eq!(error, "not a regular file", "{}", path.display());
            }
        }
        // Opening a pipe that has just replaced the file does not wait either.
        open(&pipe).expect("no wait");
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_whoever_reads_it() {
        check(Path::new("/nowhere")).expect("nothing in the way");
        let error = read(Path::new("/nowhere"), 10).expect_err("nothing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
