//! Which volume a handle stands for, whatever its name.

use std::fmt;

use siltstone_cursor::View;
use siltstone_device::LayerId;

use super::Volume;

/// Tells a volume or a snapshot from every other one, in any pool: also from one of the same name that was
/// there before or will be after it. A volume that is rolled back has another one from then on; one that is
/// written to or resized keeps its own. As text it is fit to be kept and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeIdentity {
    pool: [u8; 16],
    layer: u32,
    /// The epoch of which a snapshot is; nothing for a volume.
    as_of: Option<u32>,
}

impl Volume {
    /// Which volume this is.
    #[must_use]
    pub fn identity(&self) -> VolumeIdentity {
        let View { layer: LayerId(layer), as_of } = self.shared.chain()[0];
        let as_of = self.shared.is_snapshot().then_some(as_of.0);
        VolumeIdentity { pool: self.core.superblock.uuid, layer, as_of }
    }
}

impl fmt::Display for VolumeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{:x}", u128::from_be_bytes(self.pool), self.layer)?;
        self.as_of.map_or(Ok(()), |epoch| write!(f, "-{epoch:x}"))
    }
}
