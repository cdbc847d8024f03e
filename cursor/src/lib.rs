//! The map: (layer, address) -> place of a block, as a log-structured merge of immutable patches.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use siltstone_cursor::{
//!     Epoch, Extent, Manifest, Map, MapConfig, SegmentGeometry, SegmentSource, Target, View,
//!     Visibility,
//! };
//! use siltstone_device::{
//!     BlockAddress, ByteOffset, LayerId, Place, SegmentId, Sequence, sim::SimDevice,
//! };
//!
//! /// Gives the map segments for its pages.
//! struct Segments(u32);
//!
//! impl SegmentSource for Segments {
//!     fn allocate(&mut self) -> Option<SegmentId> {
//!         self.0 += 1;
//!         Some(SegmentId(self.0))
//!     }
//! }
//!
//! let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 1 << 20 };
//! let config = || MapConfig::new(1, geometry, 1 << 20);
//! let device = SimDevice::new(1 << 30);
//! let map = Map::open(device.clone(), config(), Manifest::empty());
//!
//! // Block 7 of layer 1 is stored in segment 40, at byte 8192, as the first block of the frame there.
//! let (layer, address) = (LayerId(1), BlockAddress(7));
//! let target = Target::Stored(Place::new(SegmentId(40), 8192, 0));
//! let extent = Extent { layer, epoch: Epoch::FIRST, address, len_blocks: 1, target };
//! map.publish(&[(extent, Sequence(1))]);
//!
//! // A checkpoint writes it to the device; the manifest says where that is.
//! pollster::block_on(async {
//!     map.freeze();
//!     map.write_frozen(&mut Segments(0), &|_| Visibility::live_root()).await?;
//!     let map = Map::open(device, config(), map.manifest());
//!     let mut runs = Vec::new();
//!     map.lookup(&[View::live(layer)], address, 1, &mut runs).await?;
//!     assert_eq!(runs[0].target, target);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! The crate knows neither volumes nor frames: a layer is a number, and a place is where the engine says. It
//! does no I/O but through the device that it is given, and starts no threads.
//! Changes go to a memtable ([`Map::publish`]). A checkpoint freezes it ([`Map::freeze`]) and
//! writes it as a patch ([`Map::write_frozen`]): sorted 24-byte entries in checksummed pages with
//! a fence index, appended to metadata segments. In the background, patches are merged
//! ([`Map::merge_step`], one bounded step at a time) into levels, each several times the one
//! above; superseded entries are dropped there. What there is to remember of all this is the
//! [`Manifest`], which the engine stores in its checkpoints; what became of segments is told by
//! [`Edit`]s.
//!
//! What is published belongs to an [`Epoch`]. Snapshots are labels, epochs as of which a layer can be
//! read; a block has as many versions as labels tell apart, which follow one another in every
//! sorted run. Merges keep what somebody can see ([`Visibility`]).
//!
//! A lookup ([`Map::lookup`]) asks memtables and patches from newest to oldest, for a [`View`] of a
//! layer and then of its ancestors. A cursor ([`Map::cursor`]) merges them all in order, reading
//! ahead within a memory budget.
//!
//! From the bottom up:
//! - [`epoch`]: when it holds, and who can see it; [`extent`]: what the map says about runs of
//!   blocks; `entry`: the same on disk.
//! - `page`: 4 KiB of entries; `page_cache`, `page_store`: reading pages, verified once.
//! - `search`: finding an entry in a page.
//! - `patch`: an immutable sorted run; `patch_writer`: how one is written.
//! - `prefetch`: reads a sequence of patches ahead of its reader.
//! - `merge`: many sorted inputs become one sequence of stacks, versions of the same blocks.
//! - `epoch_table`, `memtable`, `lookup`, [`cursor`]: the readers' side.
//! - [`policy`]: which patches to merge next, pure; `maintain`: doing it.
//! - [`sweep`]: rewriting what points into segments that are to be emptied.
//! - [`manifest`], [`space`]: what the checkpoint stores, and who owns which segment.
//! - [`verify`]: every page checked, for the engine's `check` and `scrub`.
//! - [`salvage`]: a cursor that goes on behind damaged pages, and says what they hide.
//!
//! Every page says what and where it is, and its parent vouches for its checksum: damaged,
//! misdirected, lost and stale pages are errors that name patch and address ([`MapError`]).

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod cursor;
pub mod epoch;
mod epoch_table;
pub mod error;
pub mod extent;
mod fence;
mod leaf;
mod lookup;
mod maintain;
pub mod manifest;
pub mod map;
mod memtable;
mod merge;
mod page;
mod page_cache;
mod page_store;
mod patch;
mod patch_writer;
pub mod policy;
mod prefetch;
pub mod salvage;
mod search;
mod sink;
pub mod space;
pub mod stats;
pub mod sweep;
pub mod verify;

pub use cursor::{Cursor, ExtentCursor};
pub use epoch::{Epoch, MAX_LABELS, View, Visibility};
pub use error::{MapError, PageError};
pub use extent::{Extent, Key, MAX_BLOCKS, Run, Target};
pub use manifest::{Manifest, ManifestError};
pub use map::{Map, MapConfig, SequenceRun};
pub use page::ENTRIES_PER_PAGE;
pub use patch::PageExtent;
pub use policy::{Limits, Packing};
pub use salvage::{SalvageCursor, Salvaged};
pub use space::{Edit, Relocating, Relocator, Rewrite, SegmentGeometry, SegmentSource};
pub use stats::MapStats;
pub use sweep::Sweep;
pub use verify::{Verification, VerifyReport};
