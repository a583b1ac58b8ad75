//! Spelling of references: one for each content, and nothing else parses.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn a_reference_gives_its_digests_back(sha256: [u8; 32], whirlpool in proptest::array::uniform32(any::<[u8; 2]>())) {
        let whirlpool: [u8; 64] = whirlpool.concat().try_into().unwrap();
        let reference = Reference::new(&sha256, &whirlpool);
        prop_assert_eq!(reference.len(), Reference::LENGTH);
        prop_assert_eq!(reference.digests(), (sha256, whirlpool));
        prop_assert_eq!(reference.as_str().parse::<Reference>(), Ok(reference));
    }

    #[test]
    fn whatever_parses_is_a_plain_file_name(text in ".{0,140}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert!(reference.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        }
    }
}

#[test]
fn only_128_characters_of_the_alphabet_parse() {
    let good = "a".repeat(128);
    assert!(good.parse::<Reference>().is_ok());
    let wrong_byte = |byte: &str| format!("{}{byte}", "a".repeat(127));
    for bad in
        ["", "a", &"a".repeat(127), &"a".repeat(129), &wrong_byte("/"), &wrong_byte("="), &wrong_byte(".")]
    {
        assert_eq!(bad.parse::<Reference>(), Err(NotAReference), "{bad}");
    }
}
