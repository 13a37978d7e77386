//! Ranges of addresses and the order in which they are given out. Pure.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

use crate::result::{Cidr, optional_address};

/// A range as it is written.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RawRange {
    subnet: Cidr,
    #[serde(default, rename = "rangeStart", deserialize_with = "optional_address")]
    start: Option<IpAddr>,
    #[serde(default, rename = "rangeEnd", deserialize_with = "optional_address")]
    end: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_address")]
    gateway: Option<IpAddr>,
}

/// A range with everything worked out. First and last address are included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: Cidr,
    first: u128,
    last: u128,
    pub(crate) gateway: IpAddr,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

impl Range {
    /// Fills in what is not said: the first usable address, the last that is not the broadcast address, the gateway at
    /// the first. Source: host-local's documentation.
    pub(crate) fn parse(raw: &RawRange) -> Result<Self, String> {
        let subnet = raw.subnet;
        let (bits, length) = (if subnet.is_v4() { 32_u8 } else { 128 }, subnet.0.length);
        if length > bits - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.network() != subnet {
            let network = subnet.network().0.address;
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {length} the network address is {network}"
            ));
        }
        let base = number(subnet.0.address);
        let size = u128::MAX.checked_shr(128 - u32::from(bits - length)).unwrap_or(0);
        let within = |name: &str, address: Option<IpAddr>, otherwise: u128| match address {
            None => Ok(otherwise),
            Some(address) if subnet.contains(address) => Ok(number(address)),
            Some(address) => Err(format!("{name} {address} not in network {subnet}")),
        };
        let first = within("RangeStart", raw.start, base + 1)?;
        let last = within("RangeEnd", raw.end, base + size - u128::from(subnet.is_v4()))?;
        if first > last {
            return Err(format!("RangeStart is after RangeEnd in network {subnet}"));
        }
        Ok(Self { subnet, first, last, gateway: raw.gateway.unwrap_or_else(|| subnet.first_host()) })
    }

    fn address(&self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(small) if self.subnet.is_v4() => IpAddr::from(small.to_be_bytes()),
            _ => IpAddr::from(number.to_be_bytes()),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.subnet.is_v4() && (self.first..=self.last).contains(&number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_v4() == other.subnet.is_v4() && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.address(self.first), self.address(self.last))
    }
}

/// Ranges of one family of which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

impl RangeSet {
    pub(crate) fn parse(raw: &[RawRange]) -> Result<Self, String> {
        let ranges: Vec<Range> = raw.iter().map(Range::parse).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else { return Err("empty range set".to_owned()) };
        if ranges.iter().any(|range| range.subnet.is_v4() != first.subnet.is_v4()) {
            return Err("mixed address families".to_owned());
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[at + 1..].iter().find(|other| other.overlaps(range)) {
                return Err(format!("subnets {range} and {other} overlap"));
            }
        }
        Ok(Self(ranges))
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.0[0].subnet.is_v4()
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|one| range.overlaps(one)))
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    pub(crate) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Free addresses, beginning after the one given out last, so that a freed one rests as long as possible.
    pub(crate) fn free_after<'a>(
        &'a self,
        last: Option<IpAddr>,
        taken: &'a HashSet<IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, &'a Range)> {
        let start = last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, number(last))));
        // The rest of the range of the last, all others in order, and its beginning up to and with the last itself.
        let mut pieces: Vec<(&Range, u128, u128)> = Vec::new();
        let (at, resumed) = start.map_or((0, None), |(at, last)| (at, Some(last)));
        if let Some(last) = resumed
            && last < self.0[at].last
        {
            pieces.push((&self.0[at], last + 1, self.0[at].last));
        }
        let others = (0..self.0.len()).map(|step| (at + step) % self.0.len());
        let others = others.skip(usize::from(resumed.is_some())).map(|at| &self.0[at]);
        pieces.extend(others.map(|range| (range, range.first, range.last)));
        if let Some(last) = resumed {
            pieces.push((&self.0[at], self.0[at].first, last));
        }
        pieces.into_iter().flat_map(move |(range, first, last)| {
            let addresses = (first..=last).map(|number| range.address(number));
            addresses.filter(|address| *address != range.gateway && !taken.contains(address)).map(move |it| (it, range))
        })
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> Result<RangeSet, String> {
        let raw: Vec<RawRange> = serde_json::from_str(json).unwrap();
        RangeSet::parse(&raw)
    }

    #[test]
    fn what_is_not_said_is_worked_out() {
        let cases = [
            (r#"[{"subnet":"10.1.0.0/24"}]"#, "10.1.0.1-10.1.0.254"),
            (r#"[{"subnet":"10.1.0.0/30"}]"#, "10.1.0.1-10.1.0.2"),
            (r#"[{"subnet":"fd00::/120"}]"#, "fd00::1-fd00::ff"),
            (r#"[{"subnet":"::/0"}]"#, "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            (r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.12"}]"#, "10.1.0.9-10.1.0.12"),
        ];
        for (json, expected) in cases {
            assert_eq!(set(json).unwrap().to_string(), expected);
        }
        let refused = [
            r#"[]"#,
            r#"[{"subnet":"10.1.0.0/31"}]"#,
            r#"[{"subnet":"10.1.0.1/24"}]"#,
            r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.9"}]"#,
            r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}]"#,
            r#"[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]"#,
            r#"[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.128/25"}]"#,
        ];
        for json in refused {
            assert!(set(json).is_err(), "{json}");
        }
    }

    #[test]
    fn addresses_go_round() {
        let one = r#"[{"subnet":"10.1.0.0/29"}]"#;
        let two = r#"[{"subnet":"10.1.0.0/30"},{"subnet":"10.2.0.0/30","gateway":"10.2.0.2"}]"#;
        type Case<'a> = (&'a str, Option<&'a str>, &'a [&'a str], &'a [&'a str]);
        let cases: [Case<'_>; 6] = [
            (one, None, &[], &["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]),
            (one, Some("10.1.0.4"), &[], &["10.1.0.5", "10.1.0.6", "10.1.0.2", "10.1.0.3", "10.1.0.4"]),
            (one, Some("10.1.0.6"), &["10.1.0.2"], &["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]),
            (one, Some("10.9.0.6"), &["10.1.0.2"], &["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]),
            (two, Some("10.1.0.2"), &[], &["10.2.0.1", "10.1.0.2"]),
            (two, Some("10.2.0.1"), &["10.1.0.2", "10.2.0.1"], &[]),
        ];
        for (json, last, taken, expected) in cases {
            let taken = taken.iter().map(|text| text.parse().unwrap()).collect();
            let set = set(json).unwrap();
            let free = set.free_after(last.map(|text| text.parse().unwrap()), &taken);
            let free: Vec<_> = free.map(|(address, _)| address.to_string()).collect();
            assert_eq!(free, expected, "{json} after {last:?}");
        }
    }
}
