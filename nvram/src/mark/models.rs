//! Models: every interleaving of two marks that are written at once.

use siltstone_device::{
    Request,
    sync::explore::{self, block_on, explore, thread},
};

use super::*;

/// Remembers what is written.
#[derive(Default)]
struct Recorder(parking_lot::Mutex<Vec<AlignedBuffer>>);

impl Device for Recorder {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            if let Request::Write { buffer, .. } = &request {
                self.0.lock().push(AlignedBuffer::from_bytes(buffer));
            }
            // What is read stays as it is: zeros.
            request.complete(Ok(()));
        }
    }
}

/// The mark with the higher number says all that the other one says, and all that the store says
/// was written.
#[test]
fn what_a_mark_says_never_shrinks_with_its_number() {
    explore("mark: two at once", None, || {
        let device = Arc::new(Recorder::default());
        let pages = [ByteOffset(0), ByteOffset(4096)];
        let store = explore::Arc::new(block_on(MarkStore::open(device.clone(), pages, 7)).unwrap());
        let other = {
            let store = explore::Arc::clone(&store);
            thread::spawn(move || {
                block_on(store.write(Mark { record: 1, ..Mark::default() })).unwrap();
            })
        };
        block_on(store.write(Mark { unit: 1, ..Mark::default() })).unwrap();
        other.join().unwrap();
        let written = device.0.lock();
        let newest = (1..).zip([pages[1], pages[0]]).map(|(number, page)| {
            let mut whole = written.iter().filter_map(|bytes| decode(bytes, 7, page).ok());
            let (_, mark) = whole.find(|&(found, _)| found == number).unwrap();
            mark
        });
        let [first, second] = newest.collect::<Vec<_>>()[..] else { panic!("two marks") };
        assert_eq!(second.joined(&first), second, "the newer mark says less");
        assert_eq!(store.newest(), second);
    });
}
