//! The beginning of a connection that may bring a PROXY header, over a loopback socket, cut where the first bytes say: no
//! byte behind the header is read with it, and what is taken for one is as long as it says itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protoplex_http::fuzzing;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let Some(([required, pieces @ ..], bytes)) = input.split_first_chunk::<5>() else { return };
    let pieces = pieces.map(usize::from);
    let required = required & 1 == 1;
    let opening = RUNTIME.with(|runtime| runtime.block_on(fuzzing::opening(bytes, &pieces, required)));
    let Some(opening) = opening.filter(|opening| opening.header > 0) else { return };
    match bytes {
        [b'P', ..] => {
            let line_end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a line has an end");
            assert_eq!(opening.header, line_end + 2);
            assert!(opening.header <= 107 && bytes.starts_with(b"PROXY "));
            assert_eq!(opening.client.is_none(), bytes.starts_with(b"PROXY UNKNOWN"));
        }
        _ => {
            assert_eq!(&bytes[..12], b"\r\n\r\n\0\r\nQUIT\n");
            assert_eq!(opening.header, 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]])));
            // Only whoever passes on a TCP connection tells whose it is.
            let tells = bytes[12] == 0x21 && matches!(bytes[13], 0x11 | 0x21);
            assert_eq!(opening.client.is_some(), tells);
        }
    }
});
