//! Queueing disciplines that limit a device's rate. Source: tc(8), tc-tbf(8), `linux/pkt_sched.h`.

use std::io;

use crate::message::{Attributes, Message};
use crate::socket::Socket;

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
/// `NLM_F_CREATE | NLM_F_EXCL`
const CREATE_NEW: u16 = 0x600;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TBF_HANDLE: u32 = 0x0001_0000;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;
/// Microseconds a packet may wait, as the reference plugins say.
const LATENCY_MICROSECONDS: f64 = 25_000.0;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// Size of the bucket as the time it takes to fill, in the scheduler's ticks.
    pub buffer: u32,
}

impl TokenBucket {
    /// One of a rate in bytes a second and a burst in bytes; `ticks` of the scheduler to a microsecond.
    #[must_use]
    pub fn new(rate: u64, burst: u32, ticks: f64) -> Self {
        // Precision and saturation of the reference plugins, so that each finds what the other made.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let (fill, waiting) = {
            let fill = (f64::from(burst) * 1e6 / rate as f64) as u32;
            ((f64::from(fill) * ticks) as u32, (rate as f64 * LATENCY_MICROSECONDS / 1e6) as u32)
        };
        Self { rate, limit: waiting.wrapping_add(burst), buffer: fill }
    }
}

/// `struct tcmsg`.
fn header(device: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    for (at, value) in [(4, device), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

impl Socket {
    /// Limits what leaves through a device.
    pub fn add_token_bucket(&self, device: u32, bucket: &TokenBucket) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWQDISC, CREATE_NEW).with(&header(device, TBF_HANDLE, ROOT, 0));
        // struct tc_tbf_qopt: two struct tc_ratespec (whose last word is the rate), limit, buffer, mtu.
        let mut options = [0_u8; 36];
        options[8..12].copy_from_slice(&u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
        options[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
        options[28..32].copy_from_slice(&bucket.buffer.to_ne_bytes());
        message.put_str(TCA_KIND, "tbf").nest(TCA_OPTIONS, |nested| {
            nested.put(TCA_TBF_PARMS, &options);
            if bucket.rate > u64::from(u32::MAX) {
                nested.put(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
            }
        });
        self.change(message)
    }

    /// The token bucket at a device's root, if that is what is there.
    pub fn token_bucket(&self, device: u32) -> io::Result<Option<TokenBucket>> {
        let replies = self.list(Message::new(RTM_GETQDISC, 0).with(&header(device, 0, 0, 0)))?;
        for reply in replies {
            let (Some(fixed), Some(rest)) = (reply.body.get(..HEADER), reply.body.get(HEADER..)) else { continue };
            let attributes = Attributes::of(rest);
            if fixed[4..8] != device.to_ne_bytes() || attributes.text(TCA_KIND) != Some("tbf") {
                continue;
            }
            let nested = attributes.nested(TCA_OPTIONS);
            let options = nested.find(TCA_TBF_PARMS).unwrap_or_default();
            let word = |at: usize| Some(u32::from_ne_bytes(options.get(at..at + 4)?.try_into().ok()?));
            let wide = nested.find(TCA_TBF_RATE64).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
            let (Some(rate), Some(limit), Some(buffer)) = (word(8), word(24), word(28)) else { continue };
            return Ok(Some(TokenBucket { rate: wide.unwrap_or(rate.into()), limit, buffer }));
        }
        Ok(None)
    }

    /// Sends what comes in through a device out of another, where it can be limited.
    pub fn redirect_ingress(&self, device: u32, to: u32) -> io::Result<()> {
        let mut qdisc = Message::new(RTM_NEWQDISC, CREATE_NEW).with(&header(device, INGRESS_HANDLE, INGRESS, 0));
        qdisc.put_str(TCA_KIND, "ingress");
        self.change(qdisc)?;
        // Priority 1, every protocol (ETH_P_ALL, in network order).
        let info = 1 << 16 | u32::from(3_u16.to_be());
        let mut filter = Message::new(RTM_NEWTFILTER, CREATE_NEW).with(&header(device, 0, INGRESS_HANDLE, info));
        // struct tc_u32_sel: terminal, one key, which matches anything.
        let mut selector = [0_u8; 32];
        selector[0] = 1;
        selector[2] = 1;
        // struct tc_mirred: index, capabilities, action (stolen), two counts, what to do (redirect), where to.
        let mut redirect = [0_u8; 28];
        redirect[8..12].copy_from_slice(&4_u32.to_ne_bytes());
        redirect[20..24].copy_from_slice(&1_u32.to_ne_bytes());
        redirect[24..28].copy_from_slice(&to.to_ne_bytes());
        filter.put_str(TCA_KIND, "u32").nest(TCA_OPTIONS, |nested| {
            nested.put_u32(TCA_U32_CLASSID, TBF_HANDLE | 1).put(TCA_U32_SEL, &selector);
            nested.nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.put_str(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |options| {
                        options.put(TCA_MIRRED_PARMS, &redirect);
                    });
                });
            });
        });
        self.change(filter)
    }
}
