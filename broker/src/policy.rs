//! What third parties may do now: rules and passwords, exchanged as one.

use std::sync::Arc;

use crate::client::Client;
use crate::passwords::Passwords;
use crate::permission::Permissions;
use crate::rules::Rules;

/// The rules and passwords in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) rules: Arc<Rules>,
    pub(crate) passwords: Arc<Passwords>,
}

impl Policy {
    pub(crate) fn permissions(&self, client: &Client) -> Permissions {
        Permissions::of(client, &self.rules)
    }

    /// Whether the client would still get in with what it showed.
    pub(crate) fn knows(&self, client: &Client) -> bool {
        match client {
            Client::Device(_) => true,
            Client::User(user) => self
                .passwords
                .get(&user.name)
                .is_some_and(|(_, hash)| *hash == user.hash),
        }
    }
}
