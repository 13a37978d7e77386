#![no_main]
//! Feeds libFuzzer's bytes to one parser of the table in `parsers`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::run("copied_archive", bytes));
