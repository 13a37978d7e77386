//! crio
fn main() {}
