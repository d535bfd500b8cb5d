//! One gzip stream whose parts are compressed independently of each other.
//!
//! Each part becomes raw deflate blocks that refer to nothing outside the part and end on a byte boundary, so the parts can
//! be joined in any number (RFC 1951 §3.2.4, RFC 1952). One member, not several: not every reader of gzip goes on after the
//! first.

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress};

/// A compressed part.
pub(super) struct Part {
    /// Deflate blocks.
    pub(super) bytes: Vec<u8>,
    crc: Hasher,
    len: u64,
}

/// A part that is being compressed. Level 1: the network, not the disk, is what it saves, and level 3 costs a third of the
/// speed.
pub(super) struct Compressor {
    deflate: Compress,
    part: Part,
}

impl Compressor {
    pub(super) fn new() -> Self {
        let part = Part { bytes: Vec::new(), crc: Hasher::new(), len: 0 };
        Self { deflate: Compress::new(Compression::new(1), false), part }
    }

    /// Adds to the part.
    pub(super) fn push(&mut self, plain: &[u8]) {
        self.part.crc.update(plain);
        self.part.len += plain.len() as u64;
        self.deflate(plain, FlushCompress::None);
    }

    /// Ends the part.
    pub(super) fn finish(mut self) -> Part {
        self.deflate(&[], FlushCompress::Full);
        self.part
    }

    fn deflate(&mut self, mut plain: &[u8], flush: FlushCompress) {
        let bytes = &mut self.part.bytes;
        loop {
            bytes.reserve(plain.len() / 4 + 64);
            let before = self.deflate.total_in();
            self.deflate.compress_vec(plain, bytes, flush).expect("deflate cannot fail");
            let taken = self.deflate.total_in() - before;
            plain = &plain[usize::try_from(taken).expect("it fits, it is part of a slice")..];
            // Output space left over means that nothing waits to be written.
            if plain.is_empty() && bytes.len() < bytes.capacity() {
                break;
            }
        }
    }
}

/// The stream around the parts.
#[derive(Default)]
pub(super) struct Stream {
    crc: Hasher,
    len: u64,
}

impl Stream {
    /// What comes before the first part: magic, deflate, no flags, no time, fastest, unknown system.
    pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

    /// Adds a part, in the order of the stream.
    pub(super) fn push(&mut self, part: &Part) {
        self.crc.combine(&part.crc);
        self.len += part.len;
    }

    /// Length of the uncompressed stream so far, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What comes after the last part: an empty final block, the checksum, the length modulo 2^32.
    pub(super) fn trailer(self) -> [u8; 10] {
        let mut trailer = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        trailer[2..6].copy_from_slice(&self.crc.finalize().to_le_bytes());
        trailer[6..].copy_from_slice(&(self.len as u32).to_le_bytes());
        trailer
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
        let (mut stream, mut bytes) = (Stream::default(), Stream::HEADER.to_vec());
        for plain in parts {
            let mut part = Compressor::new();
            plain.chunks(1_000).for_each(|some| part.push(some));
            let part = part.finish();
            stream.push(&part);
            bytes.extend_from_slice(&part.bytes);
        }
        bytes.extend_from_slice(&stream.trailer());
        bytes
    }

    proptest! {
        #[test]
        fn joined_parts_read_back_as_one_member(
            parts in proptest::collection::vec(proptest::collection::vec(0_u8..8, 0..5_000), 0..6),
        ) {
            let mut plain = Vec::new();
            let bytes = joined(&parts);
            let mut reader = flate2::bufread::GzDecoder::new(&bytes[..]);
            reader.read_to_end(&mut plain).unwrap();
            prop_assert_eq!(plain, parts.concat());
            prop_assert!(reader.into_inner().is_empty(), "one member and nothing after it");
        }
    }

    #[test]
    fn what_does_not_compress_passes_too() {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_000).collect();
        let mut plain = Vec::new();
        flate2::bufread::GzDecoder::new(&joined(std::slice::from_ref(&noise))[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, noise);
    }
}
