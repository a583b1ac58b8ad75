use std::cell::Cell;

use protoplex_http::BodyError;

use super::*;

const BOUNDARY: &str = "edge";

fn part(disposition: &str, content: &str) -> String {
    format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
}

/// A body in pieces of one size, and how much of it was taken.
fn in_pieces(body: &[u8], piece_bytes: usize) -> (Body, Rc<Cell<usize>>) {
    let taken = Rc::new(Cell::new(0));
    let counted = Rc::clone(&taken);
    let pieces: Vec<_> = body.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
    let pieces = pieces.into_iter().map(move |piece| {
        counted.set(counted.get() + piece.len());
        Ok::<_, BodyError>(piece)
    });
    (Body::stream(stream::iter(pieces)), taken)
}

/// The regression by which each field and each file, however small, had one more piece of the body taken into memory.
#[tokio::test]
async fn no_more_is_taken_of_a_form_than_a_piece_beyond_what_was_read() {
    const LARGE: usize = 16 << 20;
    let mut form = String::new();
    for n in 0..100 {
        form += &part(&format!("name=\"field {n}\""), "text");
    }
    for n in 0..99 {
        form += &part(&format!("name=\"f\"; filename=\"{n}\""), "tiny");
    }
    let small = form.len();
    form += &part("name=\"f\"; filename=\"large\"", &"x".repeat(LARGE));
    form += &format!("--{BOUNDARY}--\r\n");
    for piece_bytes in [1_000, 100_000, 400_000] {
        let (body, taken) = in_pieces(form.as_bytes(), piece_bytes);
        let mut parts = Parts::new(body, BOUNDARY.into());
        for n in 0..99 {
            let (name, mut file) = parts.next_file().await.unwrap().unwrap();
            assert_eq!(name, n.to_string());
            let mut content = Vec::new();
            while let Some(piece) = parts.next_piece(&mut file).await.unwrap() {
                content.extend_from_slice(&piece);
            }
            assert_eq!(content, b"tiny");
            assert!(taken.get() < small + piece_bytes, "{} of {small}, by {piece_bytes}", taken.get());
        }
        let (_, mut file) = parts.next_file().await.unwrap().unwrap();
        let mut read = 0;
        while let Some(piece) = parts.next_piece(&mut file).await.unwrap() {
            read += piece.len();
            let ahead = taken.get() - read.min(taken.get());
            assert!(ahead < small + 2 * piece_bytes, "{ahead} ahead, by {piece_bytes}");
        }
        assert_eq!(read, LARGE);
        drop(file);
        assert!(parts.next_file().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_form_that_ends_early_is_an_error_wherever_it_does() {
    let form = part("name=\"comment\"", "text") + &part("name=\"f\"; filename=\"a\"", "content");
    for end in 0..form.len() {
        let (body, _) = in_pieces(&form.as_bytes()[..end], 7);
        let mut parts = Parts::new(body, BOUNDARY.into());
        let whole = async {
            while let Some((_, mut file)) = parts.next_file().await? {
                while parts.next_piece(&mut file).await?.is_some() {}
            }
            Ok::<_, Refusal>(())
        };
        assert!(matches!(whole.await, Err(Refusal::Form(_))), "after {end} bytes");
    }
}
