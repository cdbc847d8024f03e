//! Sizes as people write them: `10G`, `512M`, `4096`. All multiples are binary.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
pub(crate) use siltstone_device::size::{ParseSizeError, exact, human, parse, per_second};

/// A number of bytes given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// As a number of bytes in memory.
    pub(crate) fn memory_bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(given: &str) -> Result<Self, ParseSizeError> {
        parse(given).map(Self)
    }
}
