//! Gzip for rows, quickly: newline-delimited JSON, whose records resemble each other.
//!
//! The output is one gzip member (RFC 1952) with one deflate block (RFC 1951) in the fixed Huffman code, as any reader of gzip
//! takes it. Text is looked for where the last look found the same six bytes; if there was none, four bytes go out as literals
//! before the next look. Decision 8 says what that gains over a library, and what it costs.
//!
//! What is found is compared before it is used, so whatever the table of heads holds, the output is right.

use crc32fast::Hasher;

/// How far back a match may lie, in bytes: RFC 1951, 3.2.5.
const REACH: usize = 32 << 10;
/// The longest match, in bytes. RFC 1951, 3.2.5, would allow two more; with a multiple of the stride, the next look finds what
/// follows a long match.
const LONGEST: usize = 256;
/// Bytes that have to be the same for a match.
const SHORTEST: usize = 6;
/// Bytes that go out as literals if there is no match.
const STRIDE: usize = 4;
/// Bytes that are compressed in one go.
const PIECE: usize = 32 << 10;
/// Bytes of the window: what may be matched, and some pieces, until it is moved to the front again.
const WINDOW: usize = REACH + 3 * PIECE;
/// Bits of a place in the table of heads.
const PLACE_BITS: u32 = 15;
/// Deflate, no name, no time, quickest, of no known system: RFC 1952, 2.3.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];
/// The symbol that ends a block: RFC 1951, 3.2.5.
const END: u32 = 256;

/// Bits for the output, the first of them lowest.
#[derive(Clone, Copy)]
struct Code {
    bits: u32,
    count: u32,
}

/// The codes of literals.
static LITERALS: [Code; 256] = {
    let mut codes = [symbol(0); 256];
    let mut byte = 0;
    while byte < codes.len() {
        codes[byte] = symbol(byte as u32);
        byte += 1;
    }
    codes
};

/// The codes of matches' lengths, extra bits included; there are none below three bytes.
static LENGTHS: [Code; LONGEST + 1] = {
    let mut codes = [symbol(END); LONGEST + 1];
    let mut length = 3;
    while length <= LONGEST {
        // A symbol for each of the first eight lengths, then four for each power of two.
        let above = length as u32 - 3;
        let extra = if above < 8 { 0 } else { above.ilog2() - 2 };
        codes[length] = symbol(257 + 4 * extra + (above >> extra)).with(above, extra);
        length += 1;
    }
    codes
};

/// The fixed code of a byte, a length or the end: RFC 1951, 3.2.6.
const fn symbol(symbol: u32) -> Code {
    let (code, count) = match symbol {
        0..144 => (0x30 + symbol, 8),
        144..256 => (0x190 + symbol - 144, 9),
        256..280 => (symbol - 256, 7),
        _ => (0xc0 + symbol - 280, 8),
    };
    Code { bits: code.reverse_bits() >> (32 - count), count }
}

/// The fixed code of a match's distance in bytes, extra bits included: RFC 1951, 3.2.5 and 3.2.6.
#[inline(always)]
fn distance(back: usize) -> Code {
    // A symbol for each of the first four distances, then two for each power of two.
    let above = back as u32 - 1;
    let extra = if above < 4 { 0 } else { above.ilog2() - 1 };
    let symbol = 2 * extra + (above >> extra);
    Code { bits: symbol.reverse_bits() >> 27, count: 5 }.with(above, extra)
}

impl Code {
    /// The same with the lowest `extra` bits of `value` behind it.
    #[inline(always)]
    const fn with(self, value: u32, extra: u32) -> Self {
        Self { bits: self.bits | (value & ((1 << extra) - 1)) << self.count, count: self.count + extra }
    }
}

/// Codes on their way into bytes.
struct Bits<'a> {
    room: &'a mut [u8],
    /// Bytes of the room that are taken.
    end: usize,
    pending: u64,
    /// Bits of `pending`: after a `flush`, fewer than eight.
    count: u32,
}

impl Bits<'_> {
    /// Takes up to 56 bits between two flushes.
    #[inline(always)]
    fn push(&mut self, code: Code) {
        self.pending |= u64::from(code.bits) << self.count;
        self.count += code.count;
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.room[self.end..self.end + 8].copy_from_slice(&self.pending.to_le_bytes());
        self.end += self.count as usize / 8;
        self.pending >>= self.count & !7;
        self.count &= 7;
    }
}

/// A gzip stream of rows. It holds 300 kB and what was not taken yet.
pub(super) struct Gzip {
    /// The last of what was written.
    window: Vec<u8>,
    /// For a place made of six bytes: where in the stream the last look found such bytes, modulo 2^32; 0 if there was none.
    heads: Box<[u32; 1 << PLACE_BITS]>,
    /// What came so far, in bytes, modulo 2^32.
    length: u32,
    begun: bool,
    checksum: Hasher,
    /// Bits that do not fill a byte yet, and how many they are.
    rest: (u64, u32),
    /// Where a piece is compressed to: at worst nine bits for each of its bytes, and the eight bytes that a flush writes.
    room: Box<[u8; PIECE + PIECE / 4]>,
    out: Vec<u8>,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            window: Vec::with_capacity(WINDOW),
            heads: vec![0; 1 << PLACE_BITS].try_into().expect("of this length"),
            length: 0,
            begun: false,
            checksum: Hasher::new(),
            // The block is the last one, and in the fixed code: RFC 1951, 3.2.3.
            rest: (0b011, 3),
            room: vec![0; PIECE + PIECE / 4].try_into().expect("of this length"),
            out: Vec::new(),
        }
    }

    /// Compresses rows.
    pub(super) fn write(&mut self, rows: &[u8]) {
        if rows.is_empty() {
            return;
        }
        self.begin();
        self.checksum.update(rows);
        for piece in rows.chunks(PIECE) {
            if self.window.len() + piece.len() > WINDOW {
                self.window.drain(..self.window.len() - REACH);
            }
            self.window.extend_from_slice(piece);
            self.compress(self.window.len() - piece.len());
            self.length = self.length.wrapping_add(piece.len() as u32);
        }
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.out.extend_from_slice(&HEADER);
        }
    }

    /// What the stream has given out since the last time; before the first row, nothing.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Ends the stream: its last bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.begin();
        let mut bits = Bits { room: &mut self.room[..], end: 0, pending: self.rest.0, count: self.rest.1 };
        bits.push(symbol(END));
        bits.count = bits.count.next_multiple_of(8);
        bits.flush();
        self.out.extend_from_slice(&bits.room[..bits.end]);
        self.out.extend_from_slice(&self.checksum.finalize().to_le_bytes());
        self.out.extend_from_slice(&self.length.to_le_bytes());
        self.out
    }

    /// Compresses what stands in the window from `start` on.
    fn compress(&mut self, start: usize) {
        let (text, heads) = (&self.window[..], &mut *self.heads);
        let mut bits = Bits { room: &mut self.room[..], end: 0, pending: self.rest.0, count: self.rest.1 };
        // Where in the stream the window begins.
        let window = self.length.wrapping_sub(start as u32);
        let mut at = start;
        while let Some(here) = eight(text, at) {
            let now = window.wrapping_add(at as u32);
            let head = &mut heads[place(here)];
            let back = now.wrapping_sub(*head) as usize;
            *head = now;
            let within = (1..=REACH.min(at)).contains(&back);
            if within && eight(text, at - back).is_some_and(|earlier| same(here, earlier)) {
                let length = matching(text, at - back, at);
                bits.push(LENGTHS[length]);
                bits.push(distance(back));
                at += length;
            } else {
                for byte in &here.to_le_bytes()[..STRIDE] {
                    bits.push(LITERALS[usize::from(*byte)]);
                }
                at += STRIDE;
            }
            bits.flush();
        }
        for byte in &text[at..] {
            bits.push(LITERALS[usize::from(*byte)]);
            bits.flush();
        }
        self.rest = (bits.pending, bits.count);
        self.out.extend_from_slice(&bits.room[..bits.end]);
    }
}

#[inline(always)]
fn eight(text: &[u8], at: usize) -> Option<u64> {
    text.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Whether two texts begin with the same bytes, as many as a match must have.
#[inline(always)]
fn same(one: u64, other: u64) -> bool {
    (one ^ other) << (64 - 8 * SHORTEST) == 0
}

/// The place of a text's first six bytes in the table of heads: the highest bits of a product (Fibonacci hashing).
#[inline(always)]
fn place(text: u64) -> usize {
    ((text << (64 - 8 * SHORTEST)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACE_BITS)) as usize
}

/// How many bytes at `earlier` and at `at` are the same, up to the longest match.
#[inline(always)]
fn matching(text: &[u8], earlier: usize, at: usize) -> usize {
    let longest = LONGEST.min(text.len() - at);
    let (one, other) = (&text[earlier..earlier + longest], &text[at..at + longest]);
    let mut length = 0;
    for (one, other) in one.chunks(16).zip(other.chunks(16)) {
        let (Ok(one), Ok(other)) = (one.try_into(), other.try_into()) else {
            return length + one.iter().zip(other).take_while(|(one, other)| one == other).count();
        };
        let differ = u128::from_le_bytes(one) ^ u128::from_le_bytes(other);
        if differ != 0 {
            return length + differ.trailing_zeros() as usize / 8;
        }
        length += 16;
    }
    length
}

#[cfg(test)]
mod tests;
