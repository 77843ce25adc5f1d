//! Reads the entries of a safetensors header: which bytes each tensor has, and whether its type and
//! its shape take as many.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::text::shown;

/// Pieces of a file that are remembered because the tensors of a header are not
/// in the order of their bytes; the largest models have some 100,000 tensors.
pub(super) const MAX_PIECES: usize = 500_000;

/// The pieces of a file that the tensors of a header cover, adjacent ones merged;
/// `None` when they are too many.
pub(super) struct Tensors(pub(super) Option<Vec<(u64, u64)>>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(TensorsVisitor).map(Self)
    }
}

struct TensorsVisitor;

impl<'de> Visitor<'de> for TensorsVisitor {
    type Value = Option<Vec<(u64, u64)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut too_many = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<Option<Texts>>()?;
                continue;
            }
            let tensor = map.next_value::<Tensor>()?;
            if let Some(why) = tensor.flaw(&name) {
                return Err(A::Error::custom(why));
            }
            let (start, end) = tensor.data_offsets;
            if start == end {
                // It has no bytes, and may lie between two that were merged.
                continue;
            }
            let count = pieces.len();
            match pieces.last_mut() {
                Some((_, last)) if *last == start && start <= end => *last = end,
                Some((first, _)) if *first == end && start <= end => *first = start,
                _ if count < MAX_PIECES => pieces.push((start, end)),
                _ => too_many = true,
            }
        }
        Ok((!too_many).then_some(pieces))
    }
}

/// The entry of a tensor; loaders ignore further keys.
#[derive(serde::Deserialize)]
struct Tensor {
    dtype: String,
    shape: Elements,
    data_offsets: (u64, u64),
}

impl Tensor {
    /// Why no loader accepts it by itself.
    fn flaw(&self, name: &str) -> Option<String> {
        let (start, end) = self.data_offsets;
        // A type that is not known here may be one of newer loaders. Bytes that end before they
        // begin are found with the others.
        let (Some(bits), Some(bytes)) = (bits(&self.dtype), end.checked_sub(start)) else {
            return None;
        };
        let takes = self.shape.0.and_then(|elements| elements.checked_mul(bits));
        (takes.is_none() || takes != bytes.checked_mul(8)).then(|| {
            let (name, dtype) = (shown(name, 40), &self.dtype);
            format!("{name} has {bytes} bytes, and its shape of {dtype} does not take as many")
        })
    }
}

/// Bits of an element of a type (`Dtype` of the safetensors crate, 0.8).
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// The number of elements of a shape; `None` when it is too large.
struct Elements(Option<u64>);

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(ElementsVisitor).map(Self)
    }
}

struct ElementsVisitor;

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    /// Multiplies the dimensions without holding them: a header may have millions.
    fn visit_seq<A: SeqAccess<'de>>(self, mut dimensions: A) -> Result<Self::Value, A::Error> {
        let mut elements = Some(1_u64);
        while let Some(dimension) = dimensions.next_element::<u64>()? {
            elements = elements.and_then(|elements| elements.checked_mul(dimension));
        }
        Ok(elements)
    }
}

/// An object whose values are strings, as loaders demand of metadata.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, String>()?.is_some() {}
        Ok(Texts)
    }
}
