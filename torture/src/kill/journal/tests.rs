use super::*;
use crate::content::{SECTORS, bytes_of};

fn content(tag: u32) -> Block {
    std::array::from_fn(|sector| tag + sector as u32)
}

fn judge(journal: &Journal, block: u64, found: Block) -> Result<(), WrongBlock> {
    journal.judge(block, &[found])
}

fn write(journal: &mut Journal, block: u64, tag: u32, is_durable: bool) {
    let change = journal.begin(block, &[content(tag)]);
    journal.acknowledge(&change, is_durable);
}

fn flush(journal: &mut Journal) {
    let begun = journal.begin_flush();
    journal.acknowledge_flush(begun);
}

#[test]
fn any_version_from_the_last_flushed_to_the_last_begun_may_be_there() {
    let mut journal = Journal::new(2);
    write(&mut journal, 1, 100, false);
    write(&mut journal, 1, 200, false);
    flush(&mut journal);
    write(&mut journal, 1, 300, false);
    let _unanswered = journal.begin(1, &[content(400)]);
    for tag in [200, 300, 400] {
        assert_eq!(judge(&journal, 1, content(tag)), Ok(()), "{tag}");
    }
    assert_eq!(judge(&journal, 0, ZERO), Ok(()));
}

#[test]
fn an_older_version_than_the_flushed_one_is_a_lost_write() {
    let mut journal = Journal::new(1);
    write(&mut journal, 0, 100, false);
    write(&mut journal, 0, 200, false);
    flush(&mut journal);
    for old in [content(100), ZERO] {
        assert!(matches!(judge(&journal, 0, old), Err(WrongBlock::Lost { block: 0, .. })));
    }
}

#[test]
fn a_flush_that_was_not_acknowledged_promises_nothing() {
    let mut journal = Journal::new(1);
    write(&mut journal, 0, 100, false);
    let _unanswered = journal.begin_flush();
    assert_eq!(judge(&journal, 0, ZERO), Ok(()));
}

#[test]
fn a_flush_promises_only_what_was_acknowledged_before_it_began() {
    let mut journal = Journal::new(1);
    let change = journal.begin(0, &[content(100)]);
    let begun = journal.begin_flush();
    journal.acknowledge(&change, false);
    journal.acknowledge_flush(begun);
    assert_eq!(judge(&journal, 0, ZERO), Ok(()));
    flush(&mut journal);
    assert!(judge(&journal, 0, ZERO).is_err());
}

#[test]
fn a_durable_write_promises_itself_and_nothing_else() {
    let mut journal = Journal::new(2);
    write(&mut journal, 0, 100, false);
    write(&mut journal, 1, 200, true);
    assert_eq!(judge(&journal, 0, ZERO), Ok(()));
    assert!(matches!(judge(&journal, 1, ZERO), Err(WrongBlock::Lost { block: 1, .. })));
}

#[test]
fn of_changes_at_the_same_time_either_may_have_been_the_last() {
    let mut journal = Journal::new(1);
    let first = journal.begin(0, &[content(100)]);
    let second = journal.begin(0, &[content(200)]);
    journal.acknowledge(&second, true);
    journal.acknowledge(&first, true);
    for tag in [100, 200] {
        assert_eq!(judge(&journal, 0, content(tag)), Ok(()), "{tag}");
    }
    assert!(judge(&journal, 0, ZERO).is_err());
}

#[test]
fn a_refused_change_may_be_there_until_another_follows_it() {
    let mut journal = Journal::new(1);
    let change = journal.begin(0, &[content(100)]);
    journal.refuse(&change);
    flush(&mut journal);
    assert_eq!(judge(&journal, 0, content(100)), Ok(()));
    assert_eq!(judge(&journal, 0, ZERO), Ok(()));
    assert_eq!(journal.visible(0), None);
    write(&mut journal, 0, 200, true);
    assert!(judge(&journal, 0, content(100)).is_err());
    assert_eq!(journal.visible(0), Some(content(200)));
}

#[test]
fn a_mixed_block_is_no_version() {
    let mut journal = Journal::new(1);
    write(&mut journal, 0, 100, false);
    let _unanswered = journal.begin(0, &[content(200)]);
    let mut mixed = content(100);
    mixed[SECTORS / 2..].copy_from_slice(&content(200)[SECTORS / 2..]);
    assert!(matches!(judge(&journal, 0, mixed), Err(WrongBlock::NoVersion { block: 0, .. })));
}

#[test]
fn the_content_of_another_block_is_no_version() {
    let mut journal = Journal::new(2);
    write(&mut journal, 1, 100, true);
    assert!(matches!(
        judge(&journal, 0, content(100)),
        Err(WrongBlock::NoVersion { block: 0, .. })
    ));
}

#[test]
fn a_content_that_nobody_wrote_is_told_from_any_version() {
    let mut bytes = bytes_of(&content(100));
    bytes[1000] ^= 4;
    assert!(matches!(blocks_of(0, &bytes), Err(WrongBlock::Unknown { block: 0, .. })));
}

#[test]
fn what_was_found_once_must_stay() {
    let mut journal = Journal::new(1);
    write(&mut journal, 0, 100, false);
    journal.settle(vec![content(100)]);
    assert_eq!(judge(&journal, 0, content(100)), Ok(()));
    assert!(judge(&journal, 0, ZERO).is_err());
}

#[test]
fn a_disk_that_went_back_holds_the_snapshot_and_what_came_later() {
    let mut journal = Journal::new(2);
    write(&mut journal, 0, 100, true);
    journal.begin_roll_back(&[content(200), content(300)]);
    assert_eq!([0, 1].map(|block| journal.visible(block)), [None; 2]);
    // Of a change at the same time either may have been the last.
    write(&mut journal, 1, 400, true);
    journal.acknowledge_roll_back();
    assert_eq!([0, 1].map(|block| journal.visible(block)), [Some(content(200)), None]);
    assert_eq!(journal.judge(0, &[content(200), content(300)]), Ok(()));
    assert_eq!(journal.judge(0, &[content(200), content(400)]), Ok(()));
    assert!(judge(&journal, 0, content(100)).is_err());
    write(&mut journal, 0, 500, true);
    assert!(judge(&journal, 0, content(200)).is_err());
}

#[test]
fn a_disk_goes_back_as_a_whole_or_not_at_all() {
    let mut journal = Journal::new(2);
    write(&mut journal, 0, 100, true);
    write(&mut journal, 1, 100, true);
    journal.begin_roll_back(&[content(200), content(300)]);
    assert_eq!(journal.judge(0, &[content(100); 2]), Ok(()));
    assert_eq!(journal.judge(0, &[content(200), content(300)]), Ok(()));
    assert!(journal.judge(0, &[content(100), content(300)]).is_err());
}

#[test]
fn a_snapshot_shows_one_moment_of_its_call() {
    let mut journal = Journal::new(3);
    write(&mut journal, 0, 100, false);
    let refused = journal.begin(0, &[content(500)]);
    journal.refuse(&refused);
    let mut taking = journal.begin_snapshot();
    write(&mut journal, 0, 200, false);
    write(&mut journal, 1, 300, false);
    let killed = journal.clone();
    journal.acknowledge_snapshot(&mut taking, true);
    write(&mut journal, 2, 400, false);
    let fits = |journal: &Journal, taking: &Taking, found: [Block; 2]| {
        journal.judge_snapshot(taking, &[found[0], found[1], ZERO]).is_ok()
    };
    for found in [[content(100), ZERO], [content(200), ZERO], [content(200), content(300)]] {
        assert!(fits(&journal, &taking, found), "{found:?}");
    }
    assert!(!fits(&journal, &taking, [content(100), content(300)]), "300 came after 200");
    assert!(!fits(&journal, &taking, [ZERO, ZERO]), "100 was acknowledged before");
    let late = [content(200), content(300), content(400)];
    assert!(journal.judge_snapshot(&taking, &late).is_err(), "400 came later");
    // One that nobody acknowledged may miss what was not flushed.
    let open = Taking { over: NEVER, is_whole: false, ..taking };
    assert!(fits(&killed, &open, [ZERO, ZERO]));
}
