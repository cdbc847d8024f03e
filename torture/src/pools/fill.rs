//! What is in a pool before a history begins.

use siltstone_device::SeededRandom;
use siltstone_engine::{EngineError, Pool, SnapshotName, Volume, VolumeOptions};

use super::{BALLAST, DISK, DISK_BLOCKS, KEPT, MIB, POOL_BYTES, ballast, clone_name};
use crate::content::{self, BLOCK};

/// What is in a pool before a history begins.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    Nothing,
    /// So many bytes.
    Ballast(u64),
    /// Everything that goes in, and then so many bytes given back.
    AllBut(u64),
    /// Everything that goes in, every other block of it deleted: no segment is free by that.
    HalfDead,
    /// The disk, in several states, and clones of it.
    Snapshots,
    /// Everything that goes in; half of that is in a snapshot only.
    HalfKept,
    /// Volumes that read through layers that nothing else reads, and through others.
    Layers,
}

impl Fill {
    /// Fills a pool that has an empty disk; returns how many blocks of ballast there are, and how many
    /// in the snapshot of it.
    pub(super) async fn fill(self, pool: &Pool) -> Result<(u64, u64), EngineError> {
        match self {
            Self::Nothing => Ok((0, 0)),
            Self::Ballast(bytes) => Ok((write_ballast(pool, bytes / BLOCK as u64).await?, 0)),
            Self::AllBut(room_bytes) => Ok((fill_all_but(pool, room_bytes).await?, 0)),
            Self::HalfDead => Ok((fill_with_garbage(pool).await?, 0)),
            Self::Snapshots => take_snapshots(pool).await.map(|()| (0, 0)),
            Self::HalfKept => fill_with_kept(pool).await,
            Self::Layers => stack_layers(pool).await.map(|()| (0, 0)),
        }
    }
}

/// Writes so many blocks of ballast; returns them.
async fn write_ballast(pool: &Pool, blocks: u64) -> Result<u64, EngineError> {
    let volume = pool.create_volume_async(BALLAST, &VolumeOptions::new(POOL_BYTES)).await?;
    for block in 0..blocks {
        volume.write(block * BLOCK as u64, &ballast(block)).await?;
    }
    Ok(blocks)
}

/// Fills a pool with ballast and as much that is then deleted; returns the blocks that are left.
async fn fill_with_garbage(pool: &Pool) -> Result<u64, EngineError> {
    let options = VolumeOptions::new(POOL_BYTES);
    let ballast_volume = pool.create_volume_async(BALLAST, &options).await?;
    let garbage = pool.create_volume_async("garbage", &options).await?;
    let mut blocks = 0;
    loop {
        let at = blocks * BLOCK as u64;
        // Contents that no block of ballast has.
        let other = ballast(blocks | 1 << 32);
        let written = garbage.write(at, &other).await;
        match written.and(ballast_volume.write(at, &ballast(blocks)).await) {
            Ok(()) => blocks += 1,
            Err(EngineError::NoSpace { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    ballast_volume.trim(blocks * BLOCK as u64, POOL_BYTES - blocks * BLOCK as u64).await?;
    pool.delete_volume_async("garbage").await?;
    Ok(blocks)
}

/// Writes the disk over and over, with snapshots in between, clones some of them and goes back to
/// one.
async fn take_snapshots(pool: &Pool) -> Result<(), EngineError> {
    let random = &mut SeededRandom::new(1);
    let name = |own: u64| SnapshotName::new(DISK, &format!("s{own}"));
    for round in 0..6 {
        let disk = pool.volume(DISK)?;
        for _ in 0..12 {
            let first = random.below(DISK_BLOCKS - 16);
            let contents = content::draw(random, 16);
            let bytes = content::bytes_of(contents.as_flattened());
            disk.write(first * BLOCK as u64, &bytes).await?;
        }
        pool.create_snapshots_async(&[name(round)?]).await?;
        match round {
            1 | 4 => {
                let clone = pool.clone_snapshot_async(&name(round)?, &clone_name(round)).await?;
                let bytes = content::bytes_of(content::draw(random, 40).as_flattened());
                clone.write(random.below(200) * BLOCK as u64, &bytes).await?;
                let of_clone = SnapshotName::new(&clone_name(round), "s0")?;
                pool.create_snapshots_async(&[of_clone]).await?;
                clone.trim(0, 60 * BLOCK as u64).await?;
            }
            2 => drop(pool.roll_back_async(&name(1)?).await?),
            3 => pool.delete_snapshots_async(&[name(0)?]).await?,
            _ => pool.checkpoint_async().await?,
        }
    }
    Ok(())
}

/// Fills a pool with ballast, takes a snapshot, and gives half of it back, which makes no room;
/// returns the blocks that are left, and those in the snapshot.
async fn fill_with_kept(pool: &Pool) -> Result<(u64, u64), EngineError> {
    // So many that some room is left to begin with.
    let blocks = fill_all_but(pool, MIB).await?;
    let ballast_volume = pool.volume(BALLAST)?;
    pool.create_snapshots_async(&[KEPT.parse()?]).await?;
    let keep = blocks / 2;
    ballast_volume.trim(keep * BLOCK as u64, POOL_BYTES - keep * BLOCK as u64).await?;
    pool.create_snapshots_async(&[SnapshotName::new(DISK, "s0")?]).await?;
    Ok((keep, blocks))
}

/// Fills a pool with ballast and gives some of it back; returns the blocks that are left.
async fn fill_all_but(pool: &Pool, room_bytes: u64) -> Result<u64, EngineError> {
    let volume = pool.create_volume_async(BALLAST, &VolumeOptions::new(POOL_BYTES)).await?;
    let mut blocks = 0;
    // Single blocks in the end, so that no room is left over.
    for step in [16, 1] {
        loop {
            let bytes: Vec<u8> = (blocks..blocks + step).flat_map(ballast).collect();
            match volume.write(blocks * BLOCK as u64, &bytes).await {
                Ok(()) => blocks += step,
                Err(EngineError::NoSpace { .. }) => break,
                Err(error) => return Err(error),
            }
        }
    }
    let keep = blocks.saturating_sub(room_bytes / BLOCK as u64);
    volume.trim(keep * BLOCK as u64, POOL_BYTES - keep * BLOCK as u64).await?;
    // Condemned by the first, freed by the second.
    pool.checkpoint_async().await?;
    pool.checkpoint_async().await?;
    Ok(keep)
}

/// Some writes anywhere in a volume as long as the disk.
async fn scribble(volume: &Volume, random: &mut SeededRandom) -> Result<(), EngineError> {
    for _ in 0..6 {
        let first = random.below(DISK_BLOCKS - 24);
        let bytes = content::bytes_of(content::draw(random, 24).as_flattened());
        volume.write(first * BLOCK as u64, &bytes).await?;
    }
    Ok(())
}

/// Lets the disk go back to one snapshot after the other, and then deletes these, as well as those that
/// clones were made of: what is left of the layers before can be adopted, the oldest first. Of each
/// there are blocks that were overwritten since, some of them after snapshots that remain.
async fn stack_layers(pool: &Pool) -> Result<(), EngineError> {
    let random = &mut SeededRandom::new(2);
    let name = |own: &str, round| SnapshotName::new(DISK, &format!("{own}{round}"));
    let mut disk = pool.volume(DISK)?;
    let mut unwanted = Vec::new();
    for round in 0..4 {
        scribble(&disk, random).await?;
        let origin = name("origin-", round)?;
        pool.create_snapshots_async(std::slice::from_ref(&origin)).await?;
        scribble(&disk, random).await?;
        disk = pool.roll_back_async(&origin).await?;
        match round {
            // A label of the child's that is older than all that it overwrites.
            0 | 3 => pool.create_snapshots_async(&[name("s", round)?]).await?,
            1 => scribble(&disk, random).await?,
            _ => {
                let clone = pool.clone_snapshot_async(&origin, &clone_name(round)).await?;
                scribble(&clone, random).await?;
            }
        }
        scribble(&disk, random).await?;
        unwanted.push(origin);
    }
    // Nothing but the clone shows what the disk held here.
    unwanted.push(name("origin-", 4)?);
    pool.create_snapshots_async(&unwanted[4..]).await?;
    pool.clone_snapshot_async(&unwanted[4], &clone_name(4)).await?;
    scribble(&disk, random).await?;
    // Last of all, so that none of it is adopted by now.
    unwanted.push(name("s", 0)?);
    pool.delete_snapshots_async(&unwanted).await
}
