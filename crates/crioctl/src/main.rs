//! crioctl
fn main() {}
