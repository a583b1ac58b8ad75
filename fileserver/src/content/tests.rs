use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::object::{BODY_OFFSET, Meta};
use crate::storage::contract_tests::noise;

fn stored(raw: &[u8], encoding: Encoding) -> StoredBody {
    let bytes = match encoding {
        Encoding::Identity => raw.to_vec(),
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(raw).unwrap();
            encoder.finish().unwrap()
        }
    };
    store(&bytes, raw.len(), encoding)
}

fn store(bytes: &[u8], size: usize, encoding: Encoding) -> StoredBody {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, BODY_OFFSET).unwrap();
    file.set_len(BODY_OFFSET + bytes.len() as u64).unwrap();
    let meta = Meta {
        size: size as u64,
        stored_size: bytes.len() as u64,
        encoding,
        content_type: "text/plain".into(),
        stored_sha256: String::new(),
    };
    StoredBody::whole(meta, Arc::<File>::new(file))
}

async fn send(body: StoredBody, selection: Selection) -> Result<Vec<u8>, StorageError> {
    let mut content = Content::new(body, selection, &Inflates::default()).await?.unwrap();
    let mut sent = Vec::new();
    while let Some(bytes) = content.next().await? {
        assert!(!bytes.is_empty());
        sent.extend_from_slice(&bytes);
    }
    Ok(sent)
}

/// Repeats enough to pay, changes enough to show a shift.
fn text(lines: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| format!("line {line}: the same words again and again\n").into_bytes())
        .collect()
}

#[tokio::test]
async fn bodies_are_sent_raw_or_as_they_are_stored() {
    for raw in [Vec::new(), b"x".to_vec(), text(20_000), noise(300_000)] {
        for encoding in [Encoding::Identity, Encoding::Gzip] {
            let sent = send(stored(&raw, encoding), Selection::Whole(Coding::Identity)).await.unwrap();
            assert!(sent == raw, "{} bytes, {encoding:?}", raw.len());
        }
        let sent = send(stored(&raw, Encoding::Gzip), Selection::Whole(Coding::Gzip)).await.unwrap();
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&sent[..]), &mut unpacked).unwrap();
        assert!(unpacked == raw);
    }
}

#[tokio::test]
async fn a_turn_to_skip_ends_with_the_first_byte_that_is_wanted_and_one_to_inflate_with_the_body() {
    const SIZE: usize = 6 << 20;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&vec![b' '; SIZE]).unwrap();
    let packed = encoder.finish().unwrap();
    let body = || store(&packed, SIZE, Encoding::Gzip);
    let inflates = Inflates::default();
    let begin = async |from: u64| {
        let pieces = vec![Piece::Span(from..SIZE as u64)];
        Content::new(body(), Selection::Pieces(pieces), &inflates).await.unwrap()
    };
    let mut contents = Vec::new();
    for _ in 0..4 {
        contents.push(begin(5 << 20).await.unwrap());
    }
    assert!(begin(5 << 20).await.is_none(), "four skip at once");
    assert!(begin(1 << 20).await.is_some(), "what takes no time is not counted");
    let (arrived, waited) = tokio::join!(contents[0].next(), begin(5 << 20));
    arrived.unwrap().unwrap();
    assert!(waited.is_some(), "one has arrived");
    drop((contents, waited));

    let mut all = Vec::new();
    while let Some(content) = begin(0).await {
        all.push(content);
    }
    assert_eq!(all.len(), 256);
    let gzip = Content::new(body(), Selection::Whole(Coding::Gzip), &inflates).await.unwrap();
    assert!(gzip.is_some(), "what goes out as it is stored needs no turn");
    let nothing = Content::new(body(), Selection::Nothing, &inflates).await.unwrap();
    assert!(nothing.is_some(), "nor does nothing");
    let small = text(5_000);
    assert!(small.len() > 200_000, "{}", small.len());
    let pieces = Selection::Pieces(vec![Piece::Span(5..9), Piece::Span(100_000..200_000)]);
    let small = Content::new(stored(&small, Encoding::Gzip), pieces, &inflates).await.unwrap();
    assert!(small.is_some(), "nor does what is made at once");
    let (waited, _) = tokio::join!(begin(0), async { drop(all.pop()) });
    assert!(waited.is_some(), "one has ended");
}

#[tokio::test]
async fn nothing_is_sent_where_nothing_is_selected() {
    assert!(send(stored(b"hello", Encoding::Identity), Selection::Nothing).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_gzip_stream_is_an_error_and_not_a_shorter_body() {
    let raw = text(20_000);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&raw).unwrap();
    let packed = encoder.finish().unwrap();
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0xff;
    for damaged in [&packed[..packed.len() / 2], &flipped, b"not gzip at all", &[]] {
        let body = store(damaged, raw.len(), Encoding::Gzip);
        let sent = send(body, Selection::Whole(Coding::Identity)).await;
        assert!(matches!(sent, Err(StorageError::Damaged(_))), "{} bytes", damaged.len());
    }
}

#[tokio::test]
async fn a_file_cut_while_it_is_sent_is_an_error() {
    let body = stored(&noise(300_000), Encoding::Identity);
    let meta = Meta { stored_size: 400_000, size: 400_000, ..body.meta().clone() };
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&noise(300_000), BODY_OFFSET).unwrap();
    let cut = send(StoredBody::whole(meta, Arc::new(file)), Selection::Whole(Coding::Identity)).await;
    assert!(matches!(cut, Err(StorageError::Damaged(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_are_the_raw_bytes_they_name_however_they_are_stored(
        marks in prop::collection::btree_set(0_usize..400_000, 2..8), gzip in any::<bool>(),
    ) {
        let raw = text(9_000);
        let marks: Vec<usize> = marks.into_iter().map(|mark| mark.min(raw.len())).collect();
        let spans: Vec<_> = marks.chunks_exact(2).map(|pair| pair[0]..pair[1]).filter(|span| !span.is_empty()).collect();
        let mut pieces = Vec::new();
        let mut expected = Vec::new();
        for span in spans {
            pieces.push(Piece::Text("--".into()));
            expected.extend_from_slice(b"--");
            pieces.push(Piece::Span(span.start as u64..span.end as u64));
            expected.extend_from_slice(&raw[span]);
        }
        let encoding = if gzip { Encoding::Gzip } else { Encoding::Identity };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let sent = runtime.block_on(send(stored(&raw, encoding), Selection::Pieces(pieces))).unwrap();
        prop_assert!(sent == expected);
    }
}
