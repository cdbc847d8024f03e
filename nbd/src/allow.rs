//! Allow lists: which clients may use which exports.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::RwLock;

use crate::identity::ClientIdentity;

/// For each export that is not open to everybody, the names of the clients that may use it. Names
/// are compared as they are spelled. May be replaced while a server goes by it: that counts for
/// what clients ask for from then on; who is connected stays.
#[derive(Debug, Default)]
pub struct AllowLists {
    lists: RwLock<Arc<Lists>>,
}

type Lists = HashMap<String, HashSet<String>>;

impl AllowLists {
    /// Lists from pairs of an export and a client; an export's pairs add up.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut lists = Lists::new();
        for (export, client) in pairs {
            lists.entry(export).or_default().insert(client);
        }
        Self { lists: RwLock::new(Arc::new(lists)) }
    }

    /// Whether the client may use the export.
    #[must_use]
    pub fn allows(&self, export: &str, client: &ClientIdentity) -> bool {
        let lists = Arc::clone(&self.lists.read());
        let Some(list) = lists.get(export) else { return true };
        client.names().iter().any(|name| list.contains(name))
    }

    /// The exports that have a list.
    #[must_use]
    pub fn exports(&self) -> Vec<String> {
        let mut exports: Vec<String> = self.lists.read().keys().cloned().collect();
        exports.sort_unstable();
        exports
    }

    /// Goes by other lists from now on.
    pub fn replace(&self, other: &Self) {
        let lists = Arc::clone(&other.lists.read());
        *self.lists.write() = lists;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(pairs: &[(&str, &str)]) -> AllowLists {
        AllowLists::new(pairs.iter().map(|(export, client)| ((*export).into(), (*client).into())))
    }

    #[test]
    fn a_list_lets_in_whom_it_names_and_no_list_lets_in_everybody() {
        let lists = lists(&[("disk", "alice"), ("disk", "bob.test"), ("log", "bob.test")]);
        let alice = ClientIdentity::named(["alice", "host.test"]);
        let bob = ClientIdentity::named(["Robert", "bob.test"]);
        let nobody = ClientIdentity::anonymous();
        for (export, client, allowed) in [
            ("disk", &alice, true),
            ("disk", &bob, true),
            ("disk", &nobody, false),
            ("disk", &ClientIdentity::named(["Alice", "bob.test.evil", ""]), false),
            ("log", &alice, false),
            ("log", &bob, true),
            ("open", &nobody, true),
        ] {
            assert_eq!(lists.allows(export, client), allowed, "{export} {client}");
        }
        assert_eq!(lists.exports(), ["disk", "log"]);
    }

    #[test]
    fn lists_can_be_replaced_by_others() {
        let current = lists(&[("disk", "alice")]);
        let alice = ClientIdentity::named(["alice"]);
        current.replace(&lists(&[("disk", "bob")]));
        assert!(!current.allows("disk", &alice));
        current.replace(&AllowLists::default());
        assert!(current.allows("disk", &ClientIdentity::anonymous()));
    }
}
