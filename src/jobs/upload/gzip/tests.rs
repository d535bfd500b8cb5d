use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder};
use proptest::prelude::*;

use super::*;

/// The least of each length symbol, and of each distance symbol: the tables of RFC 1951, 3.2.5.
const LENGTH_BASES: [usize; 29] =
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const DISTANCE_BASES: [usize; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145,
    8193, 12289, 16385, 24577,
];

/// The symbol's number among `bases`, and how far above its base the value is.
fn look_up(bases: &[usize], value: usize) -> (usize, usize) {
    let number = bases.partition_point(|base| *base <= value) - 1;
    (number, value - bases[number])
}

/// A code as the format draws it: the symbol's bits from the highest, then the extra bits as a number.
fn take_apart(code: Code, symbol_bits: u32) -> (usize, usize) {
    let symbol = (code.bits & ((1 << symbol_bits) - 1)).reverse_bits() >> (32 - symbol_bits);
    (symbol as usize, (code.bits >> symbol_bits) as usize)
}

fn compress<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut stream = Gzip::new();
    let mut whole = Vec::new();
    for text in texts {
        stream.write(text);
        whole.extend(stream.take());
    }
    whole.extend(stream.finish());
    whole
}

/// The compressed text, after reading it back.
fn checked<'a>(texts: impl IntoIterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let compressed = compress(texts.clone());
    let mut back = Vec::new();
    GzDecoder::new(&compressed[..]).read_to_end(&mut back).expect("it is gzip");
    assert!(back == texts.into_iter().collect::<Vec<_>>().concat(), "it is another text");
    compressed
}

fn noise(length: usize) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| dice.u8(..)).take(length).collect()
}

#[test]
fn lengths_and_distances_have_the_codes_of_the_format() {
    for (length, code) in LENGTHS.iter().enumerate().skip(3) {
        let (number, above) = look_up(&LENGTH_BASES, length);
        let expected = if number < 23 { (number + 1, above) } else { (0xc0 + number - 23, above) };
        assert_eq!(take_apart(*code, if number < 23 { 7 } else { 8 }), expected, "length {length}");
    }
    for back in 1..=REACH {
        assert_eq!(take_apart(distance(back), 5), look_up(&DISTANCE_BASES, back), "distance {back}");
    }
}

#[test]
fn a_match_is_found_up_to_the_reach_and_comes_back_as_it_was() {
    let noise = noise(REACH + 300);
    let end = b"the end of the rows";
    for length in [6, 7, 10, 11, 12, 18, 66, 67, 130, 131, 255, 256] {
        for back in [8, 16, 256, 300, 1_000, 4_096, 16_384, REACH - 1, REACH, REACH + 1, REACH + 2, REACH + 3] {
            let from = noise.len() - back;
            let copied = &noise[from..noise.len().min(from + length)];
            // A look begins with each write, and then every few bytes: so one of them begins where the copy does.
            let (first, second) = noise.split_at(from % STRIDE);
            let alone = checked([first, second, end]).len();
            let more = checked([first, second, &[copied, end].concat()[..]]).len() - alone;
            assert_eq!(more <= 4, back <= REACH, "{length} bytes, {back} back: {more} bytes more");
        }
    }
}

#[test]
fn texts_of_all_kinds_come_back_as_they_were() {
    let noise = noise(3 * WINDOW);
    (1..100).for_each(|length| assert!(checked([&noise[..length]]).len() <= 18 + 2 + length * 9 / 8));
    checked([&noise[..]]);
    checked(noise.chunks(777));
    // The longest literals.
    let above: Vec<u8> = noise.iter().map(|byte| 144 + byte % 112).collect();
    checked([&above[..]]);
    assert!(checked([&[0; 500_000][..]]).len() < 6_000);
    assert!(checked([&b"{}\n".repeat(50_000)[..]]).len() < 2_000);
    checked(vec![&b"{}\n"[..]; 50_000]);
}

#[test]
fn before_the_first_row_nothing_is_given_out() {
    let mut stream = Gzip::new();
    stream.write(b"");
    assert!(stream.take().is_empty());
    checked([]);
    checked([&b""[..], b""]);
}

#[test]
fn a_stream_may_be_longer_than_its_counter_and_takes_no_more_memory() {
    let text = noise(20_000).repeat(50);
    let before = u32::MAX - 60_000;
    let mut stream = Gzip { length: before, ..Gzip::new() };
    let room = stream.window.capacity();
    stream.write(&text);
    assert_eq!(stream.window.capacity(), room);
    let compressed = stream.finish();
    assert!(compressed.len() < 100_000, "{} bytes: text is found again", compressed.len());
    assert_eq!(compressed[compressed.len() - 4..], before.wrapping_add(text.len() as u32).to_le_bytes());
    let mut back = Vec::new();
    DeflateDecoder::new(&compressed[HEADER.len()..]).read_to_end(&mut back).expect("it is deflate");
    assert!(back == text, "it is another text");
}

#[test]
fn records_shrink_to_a_third() {
    let mut dice = fastrand::Rng::with_seed(7);
    let row = |number: u64, score: f64, hash: u128| {
        format!(
            r#"{{"prediction_id": "pred_{number:09}", "customer_id": "cust_{number:07}", "risk_level": "LOW",
            "score": {score:.12}, "features_hash": "{hash:032x}", "service_version": "2.4.1", "region": "us-west"}}"#
        )
    };
    let rows: Vec<String> = (0..1_000).map(|number| row(number, dice.f64(), dice.u128(..))).collect();
    let plain: usize = rows.iter().map(String::len).sum();
    let compressed = checked(rows.iter().map(String::as_bytes).collect::<Vec<_>>());
    assert!(compressed.len() * 3 < plain, "{plain} bytes became {}", compressed.len());
}

proptest! {
    #[test]
    fn whatever_is_written_comes_back(
        parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0_usize..60_000, 0_usize..600), 0..80),
        size in 1_usize..70_000,
    ) {
        let mut text: Vec<u8> = Vec::new();
        for (new, back, length) in parts {
            text.extend(new);
            let from = text.len().saturating_sub(back);
            let length = length.min(text.len() - from);
            text.extend_from_within(from..from + length);
        }
        checked(text.chunks(size));
    }
}
