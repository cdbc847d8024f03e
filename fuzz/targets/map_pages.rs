#![no_main]
//! A map whose pages say what no writer writes, under checksums that are right all the way up.

use std::{collections::BTreeMap, sync::LazyLock};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use pollster::block_on;
use siltstone_cursor::{
    Epoch, Extent, Limits, Manifest, Map, MapConfig, Rewrite, SegmentGeometry, SegmentSource,
    Target, View, Visibility,
};
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Place, SegmentId, Sequence,
    header::{self, HEADER_BYTES, Header, Identity, Kind},
    sim::SimDevice,
};
use siltstone_fuzz as _;
use zerocopy::FromBytes;

const POOL: u64 = 0x5117;
const GEOMETRY: SegmentGeometry =
    SegmentGeometry { data_start: ByteOffset(1 << 20), segment_bytes: 64 * BLOCK_BYTES as u64 };
/// Small, so that there is something to merge.
const LIMITS: Limits =
    Limits { level0_patches: 2, level1_pages: 3, fanout: 2, patch_pages: 4, small_patch_pages: 2 };
const EPOCHS: u32 = 200;
const CHAINS: [[View; 2]; 2] = [
    [view(2, Epoch::MAX), view(1, Epoch(EPOCHS / 2))],
    [view(2, Epoch(EPOCHS / 3)), view(1, Epoch::MAX)],
];
const BLOCKS: u64 = 700;
/// Where the root's checksum stands in a manifest's patch record, and where its records begin.
const RECORDS_START: usize = 40;
const ROOT_CHECKSUM: usize = 16;

/// Hands out segments without end.
struct Segments(u32);

impl SegmentSource for Segments {
    fn allocate(&mut self) -> Option<SegmentId> {
        self.0 += 1;
        Some(SegmentId(self.0))
    }
}

const fn view(layer: u32, as_of: Epoch) -> View {
    View { layer: LayerId(layer), as_of }
}

/// Every epoch has a snapshot, or every seventh.
fn visibility(layer: LayerId, step: usize) -> Visibility {
    Visibility::new(true, layer == LayerId(2), (0..EPOCHS).step_by(step).map(Epoch).collect())
}

fn extent(epoch: u32, layer: u32, address: u64, len_blocks: u32, frame: u32) -> (Extent, Sequence) {
    let target = match frame {
        0 => Target::Hole,
        frame => Target::Stored(Place::new(SegmentId(900), frame * 4096, 3)),
    };
    let (layer, epoch, address) = (LayerId(layer), Epoch(epoch), BlockAddress(address));
    (Extent { layer, epoch, address, len_blocks, target }, Sequence(address.0 + 1))
}

fn open(device: &std::sync::Arc<SimDevice>, manifest: Manifest) -> Map {
    let mut config = MapConfig::new(POOL, GEOMETRY, 16 * BLOCK_BYTES);
    config.limits = LIMITS;
    Map::open(device.clone(), config, manifest)
}

/// A sound map of several patches.
struct Base {
    device: std::sync::Arc<SimDevice>,
    manifest: Vec<u8>,
    pages: Vec<u64>,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let device = SimDevice::new(1 << 30);
    let map = open(&device, Manifest::empty());
    let mut segments = Segments(0);
    for round in 0..3 {
        let step = round + 1;
        let layer = 1 + round as u32 % 2;
        let frame = |at: u64| (at % 7) as u32;
        let extents: Vec<_> =
            (0..BLOCKS / 2).map(|at| extent(0, layer, at * step, 1, frame(at))).collect();
        map.publish(&extents);
        // Some blocks have a few versions, and some so many that they fill pages.
        for epoch in 0..EPOCHS {
            let address = if epoch % 8 == 0 { 90 } else { 40 };
            map.publish(&[extent(epoch, layer, address, 3, epoch % 5)]);
        }
        map.freeze();
        let visible = |layer| visibility(layer, 1);
        block_on(map.write_frozen(&mut segments, &visible)).expect("nothing fails");
    }
    let manifest = map.manifest().encode();
    let segments = u64::from(segments.0 + 1) * GEOMETRY.segment_bytes;
    let pages = (GEOMETRY.data_start.0..GEOMETRY.data_start.0 + segments)
        .step_by(BLOCK_BYTES)
        .filter(|page| device.peek(*page, 4) == header::MAGIC)
        .collect();
    Base { device, manifest, pages }
});

/// Overwrites some bytes of a body with the input's.
fn edit(bytes: &mut [u8], input: &mut Unstructured<'_>) -> Result<()> {
    let at = usize::from(input.arbitrary::<u16>()?) % bytes.len();
    let len = input.int_in_range(1..=24)?.min(bytes.len() - at);
    input.fill_buffer(&mut bytes[at..at + len])
}

/// Edits pages and manifest; checksums are mended from the leaves up.
fn damage(device: &SimDevice, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let base = &*BASE;
    let mut manifest = base.manifest.clone();
    let mut pages = BTreeMap::new();
    for _ in 0..input.int_in_range(1..=6)? {
        let which = input.int_in_range(0..=base.pages.len())?;
        match base.pages.get(which) {
            None => edit(&mut manifest, input)?,
            Some(page) => {
                let bytes = pages.entry(*page).or_insert_with(|| device.peek(*page, BLOCK_BYTES));
                edit(&mut bytes[HEADER_BYTES..], input)?;
            }
        }
    }
    // A patch's pages are written leaves first, so parents come after their children.
    let mut replaced: BTreeMap<[u8; 4], [u8; 4]> = BTreeMap::new();
    for &address_bytes in &base.pages {
        let mut bytes =
            pages.remove(&address_bytes).unwrap_or_else(|| device.peek(address_bytes, BLOCK_BYTES));
        let (header, _) = Header::read_from_prefix(&bytes).expect("pages are longer");
        let leaf = header.kind.get() == Kind::PatchLeaf as u16;
        if !leaf {
            for entry in bytes[48..].chunks_exact_mut(24) {
                let checksum: &mut [u8; 4] = (&mut entry[4..8]).try_into().expect("four bytes");
                *checksum = *replaced.get(checksum).unwrap_or(checksum);
            }
        }
        let kind = if leaf { Kind::PatchLeaf } else { Kind::PatchFence };
        let version = header.version.get();
        let identity = Identity { kind, version, pool: POOL, address_bytes };
        header::seal(&mut bytes, &identity, header.sequence.get());
        let (new, _) = Header::read_from_prefix(&bytes).expect("pages are longer");
        replaced.insert(header.checksum.get().to_le_bytes(), new.checksum.get().to_le_bytes());
        device.corrupt(address_bytes, &bytes);
    }
    for at in RECORDS_START + ROOT_CHECKSUM..manifest.len().saturating_sub(4) {
        let word: [u8; 4] = manifest[at..at + 4].try_into().expect("four bytes");
        if let Some(new) = replaced.get(&word) {
            manifest[at..at + 4].copy_from_slice(new);
        }
    }
    Ok(manifest)
}

fn use_map(map: &Map, input: &mut Unstructured<'_>) -> Result<()> {
    let mut runs = Vec::new();
    for _ in 0..4 {
        let address = u64::from(input.arbitrary::<u16>()?) % (2 * BLOCKS);
        let len = 1 + u32::from(input.arbitrary::<u8>()?);
        let chain = &CHAINS[address as usize % 2];
        if block_on(map.lookup(chain, BlockAddress(address), len, &mut runs)).is_ok() {
            let mut at = address;
            for run in &runs {
                assert_eq!(run.address.0, at, "runs leave no gaps");
                at += u64::from(run.len_blocks);
            }
            assert_eq!(at, address + u64::from(len));
        }
    }
    for chain in &CHAINS {
        let mut cursor = map.cursor(chain, BlockAddress(0), BlockAddress(1 << 48), 1 << 16);
        let mut end = 0;
        while let Ok(Some(run)) = block_on(cursor.next()) {
            assert!(run.address.0 >= end && run.len_blocks > 0, "runs ascend");
            end = run.address.0 + u64::from(run.len_blocks);
        }
    }
    let mut cursor = map.cursor_all(1 << 16);
    let mut last: Option<Extent> = None;
    while let Ok(Some(extent)) = block_on(cursor.next()) {
        let is_version = |last: Extent| {
            extent.epoch < last.epoch
                && last == Extent { epoch: last.epoch, target: last.target, ..extent }
        };
        let follows = |last: Extent| {
            let end = last.address.0 + u64::from(last.len_blocks);
            (last.layer, end) <= (extent.layer, extent.address.0) || is_version(last)
        };
        assert!(last.replace(extent).is_none_or(follows), "extents ascend");
    }
    let layers = || [(LayerId(1), 2 * BLOCKS), (LayerId(2), 2 * BLOCKS)].into();
    for thorough in [false, true] {
        let mut cursor = map.salvage_cursor(layers(), 1 << 16, thorough);
        let mut items = 0;
        while block_on(cursor.next()).is_some() {
            items += 1;
            assert!(items < 1 << 20, "salvaging does not end");
        }
    }
    let _ = block_on(map.verify());

    // The checkpointer works on what it finds.
    let mut segments = Segments(500);
    let changes: Vec<_> = (0..40).map(|at| extent(EPOCHS, 1, at * 9, 4, (at % 3) as u32)).collect();
    map.publish(&changes);
    map.freeze();
    let mut steps = 0;
    let visible = |layer| visibility(layer, 7);
    if block_on(map.write_frozen(&mut segments, &visible)).is_ok() {
        while let Ok(Some(_)) = block_on(map.merge_step(Rewrite::new(&mut segments, &visible, 4))) {
            steps += 1;
            assert!(steps < 200, "merging does not end");
        }
    }
    let _ = block_on(map.lookup(&CHAINS[0], BlockAddress(0), 400, &mut runs));
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let device = BASE.device.snapshot();
    let Ok(manifest) = damage(&device, &mut input) else { return };
    let Ok(manifest) = Manifest::decode(&manifest) else { return };
    let map = open(&device, manifest);
    let _ = use_map(&map, &mut input);
});
