//! A folder of the cache that one process at a time writes into.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::{Error, Result};

/// Takes a folder for this process until what is returned is dropped; waits for another process that has it, and says so first.
///
/// # Errors
/// A folder that can't be written into.
pub(crate) fn lock(folder: &Path, waiting: impl FnOnce()) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock().map_err(Error::io(&path))?;
        }
        // A file system without locks: go on without.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(file)
}
