//! The addresses of this machine that connections come from.

use std::io;
use std::net::{IpAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::Unusable;
use super::range::AddressRange;

const REMEDY: &str = "correct download.sourceAddresses: it takes addresses that there are where the \
                      driver runs, which the command ip address lists";

/// The addresses of this machine that are in these ranges, in their order.
///
/// # Errors
/// A range that this machine has no address in.
pub(super) fn own_addresses(ranges: &[AddressRange]) -> Result<Vec<IpAddr>, Unusable> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut interfaces = None;
    for range in ranges {
        let unusable = |why: String| Unusable {
            attempted: format!("binding connections to {range}"),
            why,
            remedy: Some(REMEDY),
        };
        let own = match range.single() {
            // Also finds addresses that no interface lists, such as 127.0.0.2.
            Some(address) => {
                UdpSocket::bind((address, 0)).map_err(|error| {
                    unusable(format!("this machine has no such address: {error}"))
                })?;
                vec![address]
            }
            None => {
                let all = match &mut interfaces {
                    Some(all) => all,
                    none => {
                        none.insert(of_interfaces().map_err(|error| unusable(error.to_string()))?)
                    }
                };
                all.iter().copied().filter(|address| range.contains(*address)).collect()
            }
        };
        if own.is_empty() {
            return Err(unusable("this machine has no address in it".to_owned()));
        }
        found.extend(own);
    }
    let mut seen = Vec::new();
    found.retain(|address| {
        let is_new = !seen.contains(address);
        seen.push(*address);
        is_new
    });
    Ok(found)
}

fn of_interfaces() -> io::Result<Vec<IpAddr>> {
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(getifaddrs()?.filter_map(|interface| ip(interface.address?)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(ranges: &[&str]) -> Result<Vec<String>, String> {
        let ranges: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let found = own_addresses(&ranges)
            .map_err(|unusable| format!("{}: {}", unusable.attempted, unusable.why))?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_those_of_this_machine_each_once() {
        assert_eq!(own(&[]), Ok(Vec::new()));
        let found = own(&["127.0.0.3", "127.0.0.0/8", "127.0.0.3"]).unwrap();
        assert_eq!(found, ["127.0.0.3", "127.0.0.1"]);
    }

    #[test]
    fn an_address_that_this_machine_lacks_is_named() {
        // TEST-NET-3 (RFC 5737) is no machine's.
        let error = own(&["127.0.0.2", "203.0.113.7"]).unwrap_err();
        assert!(
            error.contains("binding connections to 203.0.113.7: this machine has no"),
            "{error}"
        );
        let error = own(&["203.0.113.0/24"]).unwrap_err();
        assert_eq!(
            error,
            "binding connections to 203.0.113.0/24: this machine has no address in it"
        );
    }
}
