//! The name of a snapshot: `VOLUME@SNAPSHOT`.

use std::{fmt, str::FromStr};

use crate::{
    config,
    error::{EngineError, Result},
};

/// Which snapshot of which volume.
///
/// ```
/// use siltstone_engine::SnapshotName;
///
/// let name: SnapshotName = "disk@monday".parse()?;
/// assert_eq!((name.volume.as_str(), name.snapshot.as_str()), ("disk", "monday"));
/// assert_eq!(name.to_string(), "disk@monday");
/// # Ok::<(), siltstone_engine::EngineError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// The volume.
    pub volume: String,
    /// The snapshot's own name, among those of its volume.
    pub snapshot: String,
}

impl SnapshotName {
    /// A name of two parts that can be names.
    ///
    /// # Errors
    /// [`EngineError::InvalidName`].
    pub fn new(volume: &str, snapshot: &str) -> Result<Self> {
        config::validate_name(volume)?;
        config::validate_name(snapshot)?;
        Ok(Self { volume: volume.into(), snapshot: snapshot.into() })
    }
}

impl FromStr for SnapshotName {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self> {
        let parts = name.split_once('@');
        let (volume, snapshot) =
            parts.ok_or_else(|| EngineError::NotASnapshot { name: name.into() })?;
        Self::new(volume, snapshot)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_two_parts_that_can_be_names() {
        for wrong in ["a", "", "a@", "@b", "a@b@c", "a@b/c", "a\n@b"] {
            assert!(wrong.parse::<SnapshotName>().is_err(), "{wrong:?}");
        }
        assert_eq!("a@b".parse::<SnapshotName>().unwrap(), SnapshotName::new("a", "b").unwrap());
    }
}
