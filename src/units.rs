//! Durations (`90s`, `10m`, `1h30m`) and sizes (`400MB`, `1GiB`) as people write them, and the nearest word to a misspelt one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, written `250ms`, `30s`, `10m`, `2h`, `7d` or joined: `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// A number of bytes, written `512B`, `400MB` (10^6), `1GiB` (2^30), or a bare whole number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

const DURATION_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
];

impl Span {
    /// Reads a duration.
    ///
    /// # Errors
    /// A sentence that says what was found and how a duration is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; write for example \"30s\", \"10m\" or \"1h30m\"");
        let mut rest = text.trim();
        let mut millis = 0_u64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            let after = &rest[digits..];
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let unit = &after[..letters];
            let factor = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            millis = number.checked_mul(factor).and_then(|part| millis.checked_add(part)).ok_or_else(wrong)?;
            rest = after[letters..].trim_start();
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl Size {
    /// Reads a size.
    ///
    /// # Errors
    /// A sentence that says what was found and how a size is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; write for example \"400MB\" or \"1GiB\"");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let unit = trimmed[digits..].trim().to_ascii_uppercase();
        let factor = match unit.as_str() {
            "" => 1,
            unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        let number: f64 = trimmed[..digits].parse().map_err(|_| wrong())?;
        let bytes = number * factor as f64;
        if !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Span {
    /// The shortest exact form: `1h30m`, not `5400s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if left >= factor {
                write!(f, "{}{unit}", left / factor)?;
                left %= factor;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("GB", 1e9), ("MB", 1e6), ("KB", 1e3)] {
            let scaled = self.0 as f64 / factor;
            if scaled >= 1.0 {
                let text = format!("{scaled:.1}");
                return write!(f, "{} {unit}", text.strip_suffix(".0").unwrap_or(&text));
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size such as \"400MB\", or a whole number of bytes")]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Bytes(bytes) => Ok(Self(bytes)),
            Either::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// The choice that `word` was probably meant to be, if one is near enough.
pub fn nearest<'a>(word: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The comparison takes time and memory by the product of both lengths, and no word of ours is this long.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    choices
        .into_iter()
        .map(|choice| (strsim::damerau_levenshtein(&word, &choice.to_ascii_lowercase()), choice))
        .filter(|(distance, choice)| *distance <= (choice.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, choice)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("2 h", 0)] {
            match Span::parse(text) {
                Ok(span) => assert_eq!((span.0.as_millis(), span.to_string().as_str()), (millis, text)),
                Err(message) => assert!(millis == 0 && message.contains("is not a duration"), "{message}"),
            }
        }
        for wrong in ["", "10", "m", "10 minutes", "-5s", "99999999999999999999d"] {
            assert!(Span::parse(wrong).is_err(), "{wrong:?} should be refused");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("400MB", 400_000_000), ("1GiB", 1 << 30), ("1.5 kb", 1_500), ("77", 77)] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)));
        }
        for wrong in ["", "MB", "ten MB", "10 parsecs", "1e30GB"] {
            assert!(Size::parse(wrong).is_err(), "{wrong:?} should be refused");
        }
    }

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        assert_eq!(nearest("uplaod", ["upload", "threshold"]), Some("upload"));
        assert_eq!(nearest("banana", ["upload", "threshold"]), None);
        assert_eq!(nearest(&"upload".repeat(200_000), ["upload"]), None);
    }
}
