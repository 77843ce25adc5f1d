//! IP addresses and networks, as lists name them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One address (`10.0.0.7`), or all of a network (`10.0.0.0/24`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    network: IpAddr,
    /// Bits that all its addresses share.
    bits: u8,
}

impl AddressRange {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = |own: u128, other: u128, width: u32| {
            let ignored = width - u32::from(self.bits);
            own.checked_shr(ignored) == other.checked_shr(ignored)
        };
        match (self.network, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                shared(u128::from(own.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => shared(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }

    /// The address, if it is only one.
    pub fn single(&self) -> Option<IpAddr> {
        (self.bits == Self::width(self.network)).then_some(self.network)
    }

    fn width(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let network: IpAddr =
            address.parse().map_err(|_| format!("`{text}` is not an IP address or network"))?;
        let width = Self::width(network);
        let bits = match bits {
            None => width,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= width)
                .ok_or_else(|| format!("`{text}` is not a network: expected /0 to /{width}"))?,
        };
        Ok(Self { network, bits })
    }
}

impl From<IpAddr> for AddressRange {
    fn from(network: IpAddr) -> Self {
        Self { network, bits: Self::width(network) }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(address) => address.fmt(f),
            None => write!(f, "{}/{}", self.network, self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_networks_and_in_no_other() {
        for (range, address, is_in) in [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("fd00:c1::/32", "fd00:c1::a9fe:a9fe", true),
            ("fd00:c1::/32", "fd00:c2::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
        ] {
            let parsed: AddressRange = range.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), is_in, "{range} {address}");
            assert_eq!(parsed.to_string(), range);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "eth0", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/a"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
    }
}
