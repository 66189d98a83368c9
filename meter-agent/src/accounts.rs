//! Users and groups of this machine, by the files of passwd(5) and group(5).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// To read, in the bits of a mode.
pub(crate) const READ: u32 = 0o4;
/// To read and write.
pub(crate) const READ_WRITE: u32 = 0o6;
/// To use a directory in every way.
pub(crate) const ALL: u32 = 0o7;
/// To pass through a directory.
const PASS: u32 = 0o1;

/// The name of a group, or its number if it has none here.
pub(crate) fn group_name(gid: u32) -> String {
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let name = entries(&text)
        .find(|entry| entry.id == gid)
        .map(|entry| entry.name);
    name.map_or_else(|| gid.to_string(), str::to_owned)
}

/// A user who is no root, and the groups it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gids: Vec<u32>,
}

impl User {
    /// A user of this machine, who is in the groups `besides` too; `None` if there is none.
    pub(crate) fn find(name: &str, besides: &[&str]) -> Option<Self> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/etc/passwd"), &read("/etc/group"), name, besides)
    }

    /// One of these numbers.
    #[cfg(test)]
    pub(crate) fn of(uid: u32, gids: &[u32]) -> Self {
        let gids = gids.to_vec();
        Self { uid, gids }
    }

    fn parse(passwd: &str, group: &str, name: &str, besides: &[&str]) -> Option<Self> {
        let user = entries(passwd).find(|entry| entry.name == name)?;
        let own = user.rest.split(':').next()?.parse().ok()?;
        let groups = entries(group).filter(|entry| {
            let mut members = entry.rest.split(',');
            besides.contains(&entry.name) || members.any(|member| member == name)
        });
        let mut gids = vec![own];
        gids.extend(groups.map(|entry| entry.id));
        Some(Self { uid: user.id, gids })
    }

    /// What keeps the user from such a use of a file or directory: itself, or a directory on the
    /// way there; `None` if nothing does, by owner, group and mode.
    ///
    /// # Errors
    /// It is not there, or cannot be looked at.
    pub(crate) fn is_kept_from(&self, path: &Path, bits: u32) -> std::io::Result<Option<String>> {
        let path = path.canonicalize()?;
        let above = path.ancestors().skip(1).map(|directory| (directory, PASS));
        let mut way: Vec<(&Path, u32)> = above.collect();
        way.reverse();
        way.push((&path, bits));
        for (place, bits) in way {
            let metadata = place.metadata()?;
            if !self.may(&metadata, bits) {
                let mode = metadata.mode() & 0o7777;
                let (uid, group) = (metadata.uid(), group_name(metadata.gid()));
                let place = place.display();
                return Ok(Some(format!(
                    "{place} is of user {uid} and group {group}, with mode {mode:04o}"
                )));
            }
        }
        Ok(None)
    }

    fn may(&self, metadata: &Metadata, bits: u32) -> bool {
        let shift = match () {
            () if metadata.uid() == self.uid => 6,
            () if self.gids.contains(&metadata.gid()) => 3,
            () => 0,
        };
        (metadata.mode() >> shift) & bits == bits
    }
}

/// A line: name, password, number, and what follows.
struct Entry<'a> {
    name: &'a str,
    id: u32,
    rest: &'a str,
}

fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Entry {
            name,
            id: id.parse().ok()?,
            rest: fields.next()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nmeter-agent:x:990:991::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\ndialout:x:20:\nspi:x:30:pi,meter-agent\ni2c:x:31:pi\n\
                         meter-agent:x:991:\n";

    #[test]
    fn a_user_is_in_its_own_groups_and_in_those_of_the_unit() {
        let found = User::parse(PASSWD, GROUP, "meter-agent", &["dialout", "gpio"]);
        let expected = User {
            uid: 990,
            gids: vec![991, 20, 30],
        };
        assert_eq!(found, Some(expected));
        assert_eq!(User::parse(PASSWD, GROUP, "pi", &[]), None);
    }

    #[test]
    fn the_first_that_keeps_a_user_out_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let closed = directory.path().join("closed");
        let file = closed.join("file");
        std::fs::create_dir(&closed).unwrap();
        std::fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        mode(directory.path(), 0o755);
        let metadata = file.metadata().unwrap();
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let user = |uid, gid| User {
            uid,
            gids: vec![gid],
        };
        let (owner, member) = (user(uid, gid + 1), user(uid + 1, gid));
        let stranger = user(uid + 1, gid + 1);
        let kept = |user: &User, bits| user.is_kept_from(&file, bits).unwrap();

        mode(&closed, 0o711);
        mode(&file, 0o640);
        assert_eq!(kept(&owner, READ_WRITE), None);
        assert_eq!(kept(&member, READ), None);
        let told = kept(&member, READ_WRITE).unwrap();
        assert!(
            told.contains("closed/file is of") && told.contains("mode 0640"),
            "{told}"
        );
        assert!(kept(&stranger, READ).is_some());
        mode(&closed, 0o700);
        let told = kept(&member, READ).unwrap();
        assert!(
            told.contains("closed is of") && told.contains("mode 0700"),
            "{told}"
        );
        assert!(stranger.is_kept_from(&closed.join("none"), READ).is_err());
    }
}
