//! Man pages and shell completions, made from the same definition that parses the command
//! line. Each program writes its own by a hidden command; `packaging/build` packs them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of the hidden command.
#[derive(Args, Debug)]
pub struct Manual {
    /// Where to: gets `man/`, `bash/`, `zsh/` and `fish/`
    directory: PathBuf,
}

impl Manual {
    /// Writes the man pages of a program and its commands, and its completions.
    ///
    /// # Errors
    /// A directory or file that cannot be written.
    pub fn write(&self, command: Command) -> io::Result<()> {
        let directory = |name: &str| made(&self.directory.join(name));
        clap_mangen::generate_to(command.clone(), directory("man")?)?;
        for (shell, name) in [
            (Shell::Bash, "bash"),
            (Shell::Zsh, "zsh"),
            (Shell::Fish, "fish"),
        ] {
            let program = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command.clone(), program, directory(name)?)?;
        }
        Ok(())
    }
}

fn made(path: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(path)?;
    Ok(path.to_owned())
}
