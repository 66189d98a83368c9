//! Erases what has readings so that they are overwritten. What a file system or a memory card
//! keeps of its own accord is beyond that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use anyhow::Context;
use secrets::permissions::{directory_of, replace_private_file};

/// Removes a file, if it is there.
pub(crate) fn erase(file: &Path) -> io::Result<()> {
    let metadata = match file.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if metadata.is_file() {
        overwrite(&mut OpenOptions::new().write(true).open(file)?)?;
    }
    fs::remove_file(file)
}

/// Puts a text in the place of what is in a private file, which is whole at any time.
pub(crate) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let before = match OpenOptions::new().write(true).open(path) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot erase {}", path.display()));
        }
    };
    replace_private_file(path, text, directory_of(path))?;
    // It has no name any more.
    before.map_or(Ok(()), |mut before| {
        overwrite(&mut before).with_context(|| format!("cannot erase {}", path.display()))
    })
}

fn overwrite(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    #[test]
    fn nothing_is_left_of_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let read = |mut file: &File| {
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        replace(&path, "new").unwrap();
        let before = File::open(&path).unwrap();
        replace(&path, "newer").unwrap();
        assert_eq!(read(&before), "\0\0\0");
        let before = File::open(&path).unwrap();
        assert_eq!(read(&before), "newer");
        erase(&path).unwrap();
        assert_eq!(read(&before), "\0\0\0\0\0");
        assert!(!path.exists());
        erase(&path).unwrap();
    }
}
