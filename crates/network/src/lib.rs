//! A sandbox's place in the network: CNI configuration, plugin calls, results, host ports.
//!
//! Promises: plugins see exactly what the CNI specification (0.1.0 to 1.1.0) says, with libcni's cache files, so that
//! any plugin works and other daemons find what was added here. A plugin that fails, hangs, floods or is missing costs
//! one sandbox an error, nothing else. Host ports use the objects CRI-O uses, so either daemon removes the other's.
//!
//! Must not know: containers, images, the CRI's wire types, how namespaces are made.
//!
//! Begin with [`Network`] (configuration, readiness, attaching) and [`HostPorts`].
#![forbid(unsafe_code)]

mod attachment;
mod bandwidth;
mod cache;
mod config;
mod directory;
mod hostports;
mod network;
mod operations;
mod plugin;
mod port;
mod result;
mod version;
mod watch;

pub use attachment::{
    AddError, ArgumentError, Attachment, ChainError, CheckError, CniResult, DelError, GcError, StepError,
};
pub use bandwidth::BandwidthError;
pub use cache::fuzz_cache_entry;
pub use config::{ConfigError, fuzz_config};
pub use hostports::{DetectError, HostPortError, HostPorts, ToolError, fuzz_iptables_save, fuzz_nft_listing};
pub use network::{Network, NetworkOptions, NotReady, Watch};
pub use operations::{ADD_LIMIT, DEL_LIMIT, GC_LIMIT};
pub use plugin::{EMBEDDED_PLUGINS, PluginError, Report, fuzz_report};
pub use port::{PortMapping, Protocol};
pub use result::{ResultError, fuzz_result};

#[cfg(test)]
mod mutations {
    /// Bytes that are nearly what is expected, from a fixed sequence, through every parser of foreign bytes.
    #[test]
    fn parsers_survive_damage() {
        type Target = (&'static [u8], fn(&[u8]));
        let targets: [Target; 6] = [
            (br#"{"cniVersion":"1.0.0","cniVersions":["0.4.0"],"name":"n","disableGC":"true","plugins":[{"type":"a","capabilities":{"x":true}}]}"#, crate::fuzz_config),
            (br#"{"cniVersion":"0.2.0","ip4":{"ip":"1.2.3.4/5","routes":[{"dst":"x"}]},"interfaces":[{"name":"e","mtu":1}],"ips":[{"address":"fd::1/64","gateway":"fd::2","interface":0}],"dns":{"search":["a"]}}"#, crate::fuzz_result),
            (br#"noise {"x":1} {"code":7,"msg":"m","details":"d"} tail"#, crate::fuzz_report),
            (br#"{"kind":"cniCacheV1","containerId":"a","config":"e30=","ifName":"e","networkName":"n","cniArgs":[["a","b"]],"capabilityArgs":{},"result":{"a":1}}"#, crate::fuzz_cache_entry),
            (br#"{"nftables":[{"map":{"name":"hostports","table":"crio-hostports","elem":[[{"elem":{"val":{"concat":["tcp",80]},"comment":"A"}},{"concat":["1",2]}]]}},{"set":{"name":"localnets","table":"crio-hostports","elem":["cni0"]}}]}"#, crate::fuzz_nft_listing),
            (b"*nat\n:KUBE-HP-A - [0:0]\n-A KUBE-HOSTPORTS -i x --comment \"crio hostport loopback guard\" -j KUBE-HP-A\nCOMMIT", crate::fuzz_iptables_save),
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for (seed, target) in targets {
            target(seed);
            for _ in 0..4000 {
                let mut bytes = seed.to_vec();
                for _ in 0..=next(3) {
                    let at = next(bytes.len());
                    match next(4) {
                        0 => bytes[at] = b"{}[]\",:0-9/.x\0"[next(14)],
                        1 => drop(bytes.remove(at)),
                        2 => bytes.insert(at, bytes[next(bytes.len())]),
                        _ => bytes.truncate(at + 4),
                    }
                }
                target(&bytes);
            }
        }
    }
}
