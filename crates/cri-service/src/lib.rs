//! cri-service
pub mod from_cri;
