//! Numbers in decimal digits, without a detour through text.

/// Writes a number of at least so many digits behind what `out` has.
pub(crate) fn write(out: &mut Vec<u8>, number: u64, digits: usize) {
    let mut text = [b'0'; 20];
    let (mut at, mut rest) = (text.len(), number);
    while rest > 0 {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&text[at.min(text.len() - digits)..]);
}

/// The number that is nothing but digits. At most 18 of them: no body is longer, and nothing can overflow.
pub(crate) fn read(digits: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_their_zeros_and_read_as_they_were() {
        for (number, digits, expected) in [
            (0, 1, "0"),
            (7, 3, "007"),
            (1234, 3, "1234"),
            (9, 1, "9"),
            (u64::MAX, 1, "18446744073709551615"),
        ] {
            let mut text = b">".to_vec();
            write(&mut text, number, digits);
            assert_eq!(text, format!(">{expected}").as_bytes());
            assert_eq!(read(expected.as_bytes()), (number < 10_u64.pow(18)).then_some(number));
        }
        for wrong in ["", "+1", "1 ", "0x1", "1234567890123456789"] {
            assert_eq!(read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
