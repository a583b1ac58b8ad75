//! What goes in comes out, and memory is held only meanwhile.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    PutAtLeast(usize),
    Consume(usize),
    Shrink,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..BUFFER_BYTES).prop_map(Step::Put),
        1 => (0..2 * BUFFER_BYTES).prop_map(Step::PutAtLeast),
        4 => (0..BUFFER_BYTES).prop_map(Step::Consume),
        2 => Just(Step::Shrink),
        1 => Just(Step::Release),
    ]
}

/// Puts bytes in that tell their place.
fn put(buffer: &mut Buffer, model: &mut Vec<u8>, length: usize, next: &mut u8) {
    let space = &mut buffer.space()[..length];
    for byte in &mut *space {
        *next = next.wrapping_add(1) % 251;
        *byte = *next;
    }
    model.extend_from_slice(space);
    buffer.advance(length);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_leave_as_they_came_and_no_memory_outlives_them(steps in prop::collection::vec(step(), 1..40)) {
        let (lent, _) = lent_and_free();
        let (mut buffer, mut model, mut next) = (Buffer::default(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Put(length) => {
                    let length = length.min(buffer.space().len());
                    put(&mut buffer, &mut model, length, &mut next);
                }
                Step::PutAtLeast(length) => {
                    prop_assert!(buffer.space_for(length).len() >= length);
                    let length = length.min(buffer.space().len());
                    put(&mut buffer, &mut model, length, &mut next);
                }
                Step::Consume(length) => {
                    let length = length.min(model.len());
                    buffer.consume(length);
                    model.drain(..length);
                }
                Step::Shrink => {
                    buffer.shrink();
                    let (now, _) = lent_and_free();
                    prop_assert_eq!(now - lent, usize::from(buffer.memory.len() == BUFFER_BYTES));
                    prop_assert!(buffer.memory.len() == model.len() || model.len() == BUFFER_BYTES);
                }
                Step::Release => {
                    buffer.release();
                    model.clear();
                }
            }
            prop_assert_eq!(buffer.bytes(), &model[..]);
        }
        drop(buffer);
        let (now, free) = lent_and_free();
        prop_assert_eq!(now, lent);
        prop_assert!(free <= FREE_BUFFERS);
    }
}

#[test]
fn a_thread_keeps_only_so_many_buffers() {
    let mut buffers: Vec<Buffer> = (0..2 * FREE_BUFFERS).map(|_| Buffer::default()).collect();
    for buffer in &mut buffers {
        buffer.space()[0] = 1;
        buffer.advance(1);
    }
    assert_eq!(lent_and_free(), (2 * FREE_BUFFERS, 0));
    drop(buffers);
    assert_eq!(lent_and_free(), (0, FREE_BUFFERS));
}

#[test]
fn what_waits_takes_no_more_than_its_size() {
    let mut buffer = Buffer::default();
    buffer.space()[..3].copy_from_slice(b"abc");
    buffer.advance(3);
    buffer.consume(1);
    buffer.shrink();
    assert_eq!((buffer.bytes(), buffer.memory.len(), lent_and_free().0), (&b"bc"[..], 2, 0));
}
