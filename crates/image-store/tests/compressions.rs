//! Layers in every compression the field uses, made by the tools of the field.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Roots, commit, digest, read, small_tar, stage};
use image_store::{Compression, StageError, StageOptions};

/// [`small_tar`] as `xz` 5.4, `bzip2` 1.0.8 and `zstd` 1.5 wrote it.
const COMPRESSED: &[(&str, Compression, &str)] = &[
    (
        "xz",
        Compression::Xz,
        "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4B3/AMtdABcLvBx9AZXAHUo+eRXCzCajXhkmGZQiWfIKJZliE73lOKLebS/6XCf3rObN\
         0gkt2VUrToC+sEZUD4xlyofnTbyNGj+QvY84DDtA0nAeSjT9uBfLm0++u95iP5n3q/NnCPJLMg/e3Z/m0oHx36rXe6dgqBHfv9X+\
         McsJGqpO3VpSsMs5dDTm6CWNsdDNVy0JrqvPEbM9HdCjA/RQqvWgn90JNPpx+50o3AbJH+aYJl3vR9MjWUyECjY7PMcLCPdsHFaG\
         OE4wmBid6ocAAACljPxiupqgrAAB5wGAPAAAmHxcNbHEZ/sCAAAAAARZWg==",
    ),
    (
        "xz of two streams with padding",
        Compression::Xz,
        "/Td6WFoAAATm1rRGAgAhARAAAACocI6G4Au3AJ9dABcLvBx9AZXAHT+CoorEno0vagf50oUnXXk0XKX6Quue54lrE9FLSpgrnNeg\
         nbR4OBfU8z00x3TvWdpPSgWlR+33SijY1/cQsRUaBCDg2ByzKI0xc5jZsQWcwOhshRVPwKOGyuyjhaj0SKIeMyu+iv02TpgphqyR\
         zbuocGgdqysS9IMBKa36DAUx/de1YkBgjIlKcYiCO/+x3+2PnphIAAAAxcvryEHfBlAAAbsBuBcAAFvNl0+xxGf7AgAAAAAEWVoA\
         AAAAAAAAAP03elhaAAAK4fsMoQIAIQEQAAAAqHCOhuASRwBfXQAAbmhON9/8GR3MRWdYDh/s+Q4/nS12H2sAvNnQqb9RQU1MU0RM\
         gWzbTZiI04qa9v91RhM5Gtd5Xo7si+T8/ws4ng2wiN0ch6vK8Wg6JzZYSJYyDutvsF6TWxz9YrTFyQAA+VQa1VTp21OIUrwUHB4z\
         YSRLJ5QIqW7NX4zNwEIDoikAAZMByCQAAFWxeum26d8cAgAAAAAKWVo=",
    ),
    (
        "xz of blocks, filtered",
        Compression::Xz,
        "/Td6WFoAAAFpIt42AgEEACEBFACP5AMt4Af/AHpdABcLvBx9AZXAHT+CoorEno0vagf50oUnXXk0XKX6Quue54lrE9FLSpgrnNeg\
         hM/yyypN8Wa296hH0f0dT2qtIhRZ+grVyrsFF6oULbyzako9rCDLKsCQyQCFsu1rD3nH+/mCopQMd7uBvwK3nEczyg6iojQbXhkM\
         OHQAAAAAES6MmAIBBAAhARQAj+QDLeAH/wBdXQAXC8jHgf4SVwMrDnquX/jkdlupVpgti0muvO8NsBn1XtVgYdeeCyf44sKeRFxj\
         kBEvOJqP+mNKUOTK8jGE1O8W7xttCfRgymLD9aKdQVbmGLYLPOBHX1FOJWLuDAAAAAAAdqWEtwIBBAAhARQAj+QDLeAH/wAUXQAD\
         7/u//qOxXuX4P7Kn6phhkxhjAABs2hxJAgEEACEBFACP5AMt4AX/AEldABcLyMeB/hOCfM+XabH0ax94pGbuVfeAwkyXu9f7+kXU\
         szekhJFIM66NQqX6rrSAF88Qxvor9iEqydWp68YQlUy0Vcy7+UjR3gAAAAAAZKi7vgAEkgGAEHWAECyAEGGADABbIBbDI9NUXQQA\
         AAAAAVla",
    ),
    (
        "xz of the largest preset",
        Compression::Xz,
        "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4B3/AMtdABcLvBx9AZXAHUo+eRXCzCajXhkmGZQiWfIKJZliE73lOKLebS/6XCf3rObN\
         0gkt2VUrToC+sEZUD4xlyofnTbyNGj+QvY84DDtA0nAeSjT9uBfLm0++u95iP5n3q/NnCPJLMg/e3Z/m0oHx36rXe6dgqBHfv9X+\
         McsJGqpO3VpSsMs5dDTm6CWNsdDNVy0JrqvPEbM9HdCjA/RQqvWgn90JNPpx+50o3AbJH+aYJl3vR9MjWUyECjY7PMcLCPdsHFaG\
         OE4wmBid6ocAAACljPxiupqgrAAB5wGAPAAAmHxcNbHEZ/sCAAAAAARZWg==",
    ),
    (
        "xz without check, delta filter",
        Compression::Xz,
        "/Td6WFoAAAD/EtlBAgEDAQEhARAp4hu/4B3/ARBdABcL1nqnhrkE2OskujAUKdBoD2MEwm7TbK5xwxEtx69/yUvBtuwBO4xEurqH\
         z6Db7hgrjJXH5V+Id7/VyUNXBo5NC2k1yZ40N0sCP9fPM0ZF+s8VZpmkJCc1lYjjvR+WhLdXdM/SQuB79UW3uvzyhB66cEtbLgXS\
         szf8FzYXvR2G0q2DXFISA86AOnHadghEnBzO0cVmHKSWWvfZkvB1JJw7JN33HMQ0dxd0+Dzhr8kC1PnG9pFITMiFM5Aus9LyxvFG\
         c7lG9d5X0Svgd6Luf0KrmoHIvP1kjoLop+psDmVsEgYjoJvV5uSxuxS2CJnxkGV+v4TL2sHwFjy3ZkCEaA/iJquWfufsVODeEJco\
         rOcAAAABpAKAPAAAin4w+6gACvwCAAAAAABZWg==",
    ),
    (
        "bzip2",
        Compression::Bzip2,
        "QlpoOTFBWSZTWT278sYAAIPfmcqQQAH3lAQABVV+Zd7ABEAAAICAAAgwAPgDAA0aGjCMmg0aaAwwANGhowjJoNGmgMEUUaE0RggY\
         jTahoDxS4cfTDpqJimxi5M3VBN4q7dm6Tf8jYNRe11A3jtYtmR0KsCt6mNYIa6Dlnxsfrrw5QRDNTqHiQOyAQ0juGQEOfP2wMLRw\
         GFC6E4k3jE36yGYYKDJwHp28Kq7iBt0RQgcBtbW0a7HlN1sXlpZoga62bhnTzzsMaKED/UCTOTI/QyMggsOs2Yj0knMdFIHMp35p\
         nTftH8gYU/xdyRThQkD278sY",
    ),
    (
        "bzip2 of two streams",
        Compression::Bzip2,
        "QlpoMTFBWSZTWdt2cF0AAFJbkcqQQAH3lAUVfmXewAQAAIAACDAA2AYAZNNBkMENMRowYAZNNBkMENMRowIoo0NKHpNAxGnpDQZ6\
         pknrrmUi/Ri4LZ5Aps0g280xS4qyJVNGPCEqKQg8pThazz+d3CIhm4qm8hNsCuad6SCvHjrqYJqkAGMBuJqk10IZgiiSeie/nN2R\
         CYZUJTVNji4pfg75wyzMSuKX3uSdnG1DpgAQn9RktJ1/Xr1Yw+pw6JymbJWkJYpZLtuwf8XckU4UJDbdnBdAQlpoOTFBWSZTWQTP\
         UtEAAADfmMiAQAH3hAQAAEQwZZ4AAEAAAIAIIAB1DRGjUABp6gPSCSkaeUDQAADee67/A7gjDufKBXZBhEEOkaRBBGa7pgI7wAJo\
         sYF8pURqIgacVKCgn5f13OTzquFbmMA0j8XckU4UJAEz1LRA",
    ),
    (
        "zstd of two frames between skippable ones",
        Compression::Zstd,
        "UypNGAUAAABoZWxsbyi1L/0EWCUFAKIGFRiQN20IEDXEBpX18cHuRMbKaU1Si6iZEXZPWxML5yRTEuQGQECmJIit7Xq9iU3nLC7q\
         /EvjTwECocOgeD4LpIEZu5YjoQMWdV9v1Rv4K9uIattlJiEgcIMUFqYNG+qAUDTgDpi4bKisAU9bPmHfHh8VmeCmwKINrGo63B45\
         lbRS1QGjIAKMKgTlE8T/ANZ2MCUA7jU0x8aMjVYAcOxlfBJD7yzaslMqTRgFAAAAaGVsbG8otS/9BGhtAgBiQwsQoO30J/1D1aG+\
         clNCAeBvCv7tDnzRqzVIgs018/71u0qKpu/dvdMbTKEhDBwMILDZHaTgB/AMRjrznA+GDJgCDCdJUaGdf4Q6NpL6GVNTKk0YBQAA\
         AGhlbGxv",
    ),
];

/// The same with a dictionary of 128 MiB, beyond what any preset of xz asks for.
const LARGE_DICTIONARY: &str = "/Td6WFoAAATm1rRGAgAhAR4AAACbB1Fm4B3/AMtdABcLvBx9AZXAHUo+eRXCzCajXhkmGZQiWfIKJZliE73lOKLebS/6XCf3rObN\
         0gkt2VUrToC+sEZUD4xlyofnTbyNGj+QvY84DDtA0nAeSjT9uBfLm0++u95iP5n3q/NnCPJLMg/e3Z/m0oHx36rXe6dgqBHfv9X+\
         McsJGqpO3VpSsMs5dDTm6CWNsdDNVy0JrqvPEbM9HdCjA/RQqvWgn90JNPpx+50o3AbJH+aYJl3vR9MjWUyECjY7PMcLCPdsHFaG\
         OE4wmBid6ocAAACljPxiupqgrAAB5wGAPAAAmHxcNbHEZ/sCAAAAAARZWg==";

#[test]
fn compressions_are_told_by_their_first_bytes() {
    let (roots, tar) = (Roots::new(), small_tar());
    let store = roots.open();
    for (what, compression, text) in COMPRESSED {
        let bytes = STANDARD.decode(text).unwrap();
        let staged = stage(&store, &bytes);
        let contents = staged.contents();
        assert_eq!((&contents.diff_id, contents.diff_size), (&digest(&tar), tar.len() as u64), "{what}");
        assert_eq!((&contents.compressed_digest, contents.compression), (&digest(&bytes), *compression), "{what}");
    }
}

#[test]
fn damaged_and_torn_streams_are_refused() {
    let roots = Roots::new();
    let store = roots.open();
    for (what, _, text) in COMPRESSED {
        let bytes = STANDARD.decode(text).unwrap();
        // The last frame of the zstd sample holds nothing of the tar.
        for cut in [8, bytes.len() / 3, bytes.len() * 2 / 3] {
            let torn = store.stage_layer(&bytes[..cut], StageOptions::default());
            assert!(torn.is_err(), "{what} cut at {cut}");
        }
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 0x10;
        let staged = store.stage_layer(&damaged[..], StageOptions::default());
        assert!(staged.is_err() || staged.unwrap().contents().diff_id != digest(&small_tar()), "{what}");
    }
}

#[test]
fn a_dictionary_beyond_the_limit_is_refused_before_it_is_allocated() {
    let roots = Roots::new();
    let store = roots.open();
    let bytes = STANDARD.decode(LARGE_DICTIONARY).unwrap();
    let error = store.stage_layer(&bytes[..], StageOptions::default()).unwrap_err();
    assert!(matches!(error, StageError::Decompress(_)), "{error}");
}

#[test]
fn records_have_the_numbers_of_the_field() {
    let roots = Roots::new();
    let store = roots.open();
    for (what, compression, text) in [&COMPRESSED[0], &COMPRESSED[5]] {
        let staged = stage(&store, &STANDARD.decode(text).unwrap());
        let pin = commit(&store, staged, None).unwrap();
        let number = if *compression == Compression::Xz { 3 } else { 1 };
        let records = read(&roots.root().join("overlay-layers/layers.json"));
        assert!(records.contains(&format!("\"compression\":{number}")), "{what}: {records}");
        let id = pin.id().clone();
        drop(pin);
        assert!(store.remove_layer_if_unused(&id).unwrap());
    }
}
