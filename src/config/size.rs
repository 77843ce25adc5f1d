//! Sizes as people write them, in the configuration and in flags: `16MiB`.

use bytesize::{ByteSize, Unit};

/// A size in bytes or with an IEC unit. `16MB` and `16M` are refused: half of
/// the people who write them mean 16 MiB.
///
/// # Errors
/// The message says what would be right.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    let wrong = || {
        format!("`{text}` is not a size: a number of bytes, or a number with KiB, MiB, GiB or TiB")
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_start();
    if number.is_empty() || number.starts_with('.') || number.ends_with('.') {
        return Err(wrong());
    }
    match unit.parse::<Unit>() {
        Ok(
            Unit::KiloByte
            | Unit::MegaByte
            | Unit::GigaByte
            | Unit::TeraByte
            | Unit::PetaByte
            | Unit::ExaByte,
        ) => {
            return Err(format!(
                "`{text}` has a decimal unit; write {number}{}iB, or the number of bytes",
                unit[..1].to_ascii_uppercase()
            ));
        }
        Ok(Unit::Byte) if number.contains('.') => return Err(wrong()),
        Ok(_) => {}
        Err(_) if unit.is_empty() && !number.contains('.') => {}
        Err(_) => return Err(wrong()),
    }
    match text.parse::<ByteSize>() {
        // The parser saturates.
        Ok(size) if size.as_u64() < u64::MAX => Ok(size),
        Ok(_) => Err(format!("`{text}` is more than any file system holds")),
        Err(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_iec() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512B", 512),
            ("16MiB", 16 << 20),
            ("16 MiB", 16 << 20),
            ("16Mi", 16 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(ByteSize::b(bytes)), "{text}");
        }
    }

    #[test]
    fn a_decimal_unit_is_refused_with_the_binary_one() {
        for text in ["16MB", "16M", "16mb", "16 MB"] {
            assert!(parse_size(text).unwrap_err().contains("16MiB"), "{text}");
        }
        assert!(parse_size("1.5k").unwrap_err().contains("1.5KiB"));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for text in [
            "", "MiB", "-1", "1.2.3GiB", "1.5", ".5GiB", "5.GiB", "1.5B", "16XiB", "1e9", "true",
            "16MiB!", "٣MiB", "1_000",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("99999999999999999999").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
