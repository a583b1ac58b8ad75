//! Frames of every form, cut at every byte.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A frame as it is sent.
fn frame(fin: bool, opcode: u8, masked: bool, length: usize) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![u8::from(fin) << 7 | opcode];
    match length {
        ..126 => bytes.push(mask_bit | length as u8),
        126..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    // What looks like headers.
    bytes.resize(bytes.len() + length + if masked { 4 } else { 0 }, 0x88);
    bytes
}

/// Where frames end, and where messages do, in the sum of `frames`.
fn ends(frames: &[(bool, u8, bool, usize)]) -> (Vec<u8>, Vec<usize>, Vec<usize>) {
    let (mut sent, mut frame_ends, mut message_ends) = (Vec::new(), vec![0], vec![0]);
    let mut in_message = false;
    for &(fin, opcode, masked, length) in frames {
        sent.extend(frame(fin, opcode, masked, length));
        frame_ends.push(sent.len());
        if opcode < 8 {
            in_message = !fin;
        }
        if !in_message {
            message_ends.push(sent.len());
        }
    }
    (sent, frame_ends, message_ends)
}

fn a_frame() -> impl Strategy<Value = (bool, u8, bool, usize)> {
    let length = prop_oneof![0..130_usize, 65_500..65_600_usize];
    (any::<bool>(), prop_oneof![Just(0), Just(1), Just(2), Just(9), Just(10)], any::<bool>(), length)
}

proptest! {
    #[test]
    fn boundaries_are_the_same_however_frames_are_cut(
        frames in vec(a_frame(), 0..8),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
        from in any::<prop::sample::Index>(),
    ) {
        let (sent, frame_ends, message_ends) = ends(&frames);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.extend([0, sent.len()]);
        cuts.sort_unstable();
        // From the piece behind this one on a boundary is looked for.
        let from = cuts[from.index(cuts.len())];
        for (boundary, ends) in [(Boundary::Frame, &frame_ends), (Boundary::Message, &message_ends)] {
            let mut tracker = Frames::default();
            let mut found = None;
            for piece in cuts.windows(2) {
                let bytes = &sent[piece[0]..piece[1]];
                prop_assert_eq!(tracker.is_at(boundary), ends.contains(&piece[0]), "at {}", piece[0]);
                if piece[0] < from {
                    tracker.pass(bytes);
                } else if let Some(length) = tracker.pass_until(boundary, bytes) {
                    found = Some(piece[0] + length);
                    break;
                }
            }
            let is_looked_for = cuts.windows(2).any(|piece| piece[0] >= from);
            let expected = ends.iter().copied().find(|end| *end >= from).filter(|_| is_looked_for);
            prop_assert_eq!(found, expected, "{:?}", boundary);
        }
    }
}

#[test]
fn a_close_is_seen_once_it_is_whole() {
    for masked in [false, true] {
        let sent = [frame(false, 1, masked, 3), frame(true, 8, masked, 2)].concat();
        let mut frames = Frames::default();
        for (at, byte) in sent.iter().enumerate() {
            assert!(!frames.is_closed(), "at {at}");
            frames.pass(&[*byte]);
        }
        assert!(frames.is_closed() && frames.is_at(Boundary::Frame));
    }
    let mut empty = Frames::default();
    empty.pass(&frame(true, 8, false, 0));
    assert!(empty.is_closed());
}

#[test]
fn what_we_send_is_a_frame_that_says_going_away() {
    let mut frames = Frames::default();
    frames.pass(&GOING_AWAY);
    assert!(frames.is_closed() && frames.is_at(Boundary::Message));
    let mask = [1, 2, 3, 4];
    let masked = masked_going_away(mask);
    let mut frames = Frames::default();
    frames.pass(&masked);
    assert!(frames.is_closed() && frames.is_at(Boundary::Message));
    assert_eq!(u16::from_be_bytes([masked[6] ^ mask[0], masked[7] ^ mask[1]]), 1001);
}

#[test]
fn a_length_that_nothing_can_have_ends_nothing() {
    let mut frames = Frames::default();
    frames.pass(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    frames.pass(&[0; 100]);
    assert!(!frames.is_at(Boundary::Frame));
}
