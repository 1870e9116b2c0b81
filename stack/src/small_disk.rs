//! A file system of limited size that can be filled up, for fault drills. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use crate::data_folder;

/// A mounted file system in memory; dropping it removes it with all its files.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty one of `bytes` on `folder`, which is created if need be.
    ///
    /// # Errors
    /// When we may not mount; only root may.
    pub fn mount(folder: &Path, bytes: u64) -> Result<Self> {
        data_folder::create(folder)?;
        let options = format!("size={bytes},mode=0711");
        mount(
            Some("tmpfs"),
            folder,
            Some("tmpfs"),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
            Some(options.as_str()),
        )
        .with_context(|| format!("cannot mount a file system on {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Uses up all free space.
    ///
    /// # Errors
    /// When the filler cannot be written.
    pub fn fill(&self) -> Result<()> {
        let file = File::create(self.filler())?;
        let space = statvfs(&self.folder)?;
        let mut chunk = i64::try_from(space.blocks_available() * space.fragment_size())?;
        let mut size = 0;
        // Other processes use some of it meanwhile, and a chunk that does not fit leaves nothing behind.
        while chunk > 0 {
            match posix_fallocate(&file, size, chunk) {
                Ok(()) => size += chunk,
                Err(Errno::ENOSPC) => chunk /= 2,
                Err(error) => return Err(error).context("cannot fill the small disk"),
            }
        }
        Ok(())
    }

    /// Frees the space again.
    ///
    /// # Errors
    /// When it is not full.
    pub fn clear(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("cannot clear the small disk")
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.folder);
    }
}

/// Unmounts a file system that a crash may have left on `folder`.
pub(crate) fn detach(folder: &Path) {
    // An error means that nothing is mounted there.
    umount2(folder, MntFlags::MNT_DETACH).ok();
}
