//! cri-bench
fn main() {}
