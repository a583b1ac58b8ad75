//! Ends of events in all three forms of a line's end, cut at every byte.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Whether a text ends behind an event, told by its lines alone.
fn ends_an_event(text: &str) -> bool {
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    let Some((whole, "")) = lines.rsplit_once('\n').or(lines.is_empty().then_some(("", ""))) else {
        return false;
    };
    whole.rsplit('\n').take_while(|line| !line.is_empty()).all(|line| line.starts_with(':'))
}

proptest! {
    #[test]
    fn ends_are_the_same_however_a_stream_is_cut(
        parts in vec(prop_oneof![Just("\n"), Just("\r"), Just("\r\n"), Just("data: x"), Just(":"), Just("y")], 0..12),
        cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let text = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let mut events = Events::default();
        for piece in cuts.windows(2) {
            let (before, bytes) = (&text[..piece[0]], &text[piece[0]..piece[1]]);
            if !events.are_whole() {
                let passed = { events }.pass_until_whole(Bytes::copy_from_slice(bytes.as_bytes()));
                let first = (1..=bytes.len()).find(|end| ends_an_event(&format!("{before}{}", &bytes[..*end])));
                // The two bytes of a line's end stay together.
                let first = first.map(|end| end + usize::from(bytes[end - 1..].starts_with("\r\n")));
                prop_assert_eq!(passed.len(), first.unwrap_or(bytes.len()), "{:?} behind {:?}", bytes, before);
            }
            events.pass(bytes.as_bytes());
            prop_assert_eq!(events.are_whole(), ends_an_event(&text[..piece[1]]), "{:?}", &text[..piece[1]]);
        }
    }
}

#[test]
fn a_byte_order_mark_begins_no_event() {
    for (stream, whole) in
        [("\u{feff}", true), ("\u{feff}:\n", true), ("\u{feff}data", false), (":\n\u{feff}\n", false)]
    {
        let mut events = Events::default();
        stream.bytes().for_each(|byte| events.pass(&[byte]));
        assert_eq!(events.are_whole(), whole, "{stream:?}");
    }
}
