//! How long a caller will wait, as it says in gRPC's `grpc-timeout` header.

use std::time::Duration;

use tonic::Request;

const HEADER: &str = "grpc-timeout";
/// "Positive integer as ASCII string of at most 8 digits". Source: gRPC over HTTP2.
const DIGITS_MAX: usize = 8;

/// The time the caller of a request gives it; `None` where it does not say, or not so that it could be understood.
pub(crate) fn patience<T>(request: &Request<T>) -> Option<Duration> {
    parse_timeout(request.metadata().get(HEADER)?.to_str().ok()?)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at))?;
    let (digits, unit) = text.split_at(unit_at);
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_read_as_grpc_writes_them() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, read) in [
            ("5S", seconds(5)),
            ("2M", seconds(120)),
            ("99999999H", seconds(99_999_999 * 3600)),
            ("1500m", Some(Duration::from_millis(1500))),
            ("4999951u", Some(Duration::from_micros(4_999_951))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0S", seconds(0)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("123456789S", None),
            ("+5S", None),
            ("5é", None),
        ] {
            assert_eq!(parse_timeout(text), read, "{text:?}");
        }
    }
}
