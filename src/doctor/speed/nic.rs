//! How fast the network interface is: by the shape of the instance, or by what it says itself.

use std::fs;
use std::path::Path;

use super::report::NicSpeed;

/// Network bandwidth of one interface by shape, in Gbit/s. Source: Oracle's "Compute Shapes";
/// interfaces of one instance are not bonded, so the second one does not count.
const SHAPES: [(&str, u64); 13] = [
    ("VM.GPU.A10.1", 24),
    ("VM.GPU.A10.2", 48),
    ("BM.GPU.A10.4", 50),
    ("BM.GPU4.8", 50),
    ("BM.GPU.A100-v2.8", 50),
    ("BM.GPU.L40S.4", 200),
    ("BM.GPU.H100.8", 100),
    ("BM.GPU.H200.8", 200),
    ("BM.GPU.B200.8", 200),
    ("BM.GPU.GB200.4", 200),
    ("BM.GPU.GB300.4", 200),
    ("BM.GPU.MI300X.8", 100),
    ("BM.GPU.MI355X.8", 200),
];

/// The speed by the shape if it is a known one, else that of the interface with the default route.
/// Blocks for a moment.
pub(super) fn speed(shape: Option<&str>) -> Option<NicSpeed> {
    let of_shape = |shape: &str| {
        let (name, gigabits) = SHAPES.iter().find(|(name, _)| *name == shape)?;
        Some(NicSpeed { name: (*name).to_owned(), megabits_per_second: gigabits * 1000 })
    };
    shape.and_then(of_shape).or_else(|| of_interface(Path::new("/")))
}

/// What the interface says. Virtual ones, as pods have, invent their speed.
fn of_interface(root: &Path) -> Option<NicSpeed> {
    let routes = fs::read_to_string(root.join("proc/net/route")).ok()?;
    let name = interface_of_default_route(&routes)?;
    let interface = root.join("sys/class/net").join(name);
    if !interface.join("device").exists() {
        return None;
    }
    let speed: i64 = fs::read_to_string(interface.join("speed")).ok()?.trim().parse().ok()?;
    let megabits_per_second = u64::try_from(speed).ok().filter(|speed| *speed > 0)?;
    Some(NicSpeed { name: name.to_owned(), megabits_per_second })
}

/// Columns: interface, destination, gateway, flags, references, uses, metric.
fn interface_of_default_route(routes: &str) -> Option<&str> {
    let rows = routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (name, destination, metric) = (columns.first()?, columns.get(1)?, columns.get(6)?);
        (*destination == "00000000").then_some((metric.parse::<u64>().ok()?, *name))
    });
    rows.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_the_default_route_is_asked_if_it_is_a_real_one() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(of_interface(root.path()), None);
        put(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
             ens5\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\n\
             ens3\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\n\
             ens4\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
        );
        put("sys/class/net/ens3/speed", "50000\n");
        assert_eq!(of_interface(root.path()), None, "a virtual one");
        put("sys/class/net/ens3/device/vendor", "0x15b3\n");
        let found = of_interface(root.path()).unwrap();
        assert_eq!((found.name.as_str(), found.bytes_per_second()), ("ens3", 6_250_000_000));
        put("sys/class/net/ens3/speed", "-1\n");
        assert_eq!(of_interface(root.path()), None, "one that does not know");
    }

    #[test]
    fn a_known_shape_decides() {
        let found = speed(Some("BM.GPU.H100.8")).unwrap();
        assert_eq!(found.bytes_per_second(), 12_500_000_000);
    }
}
