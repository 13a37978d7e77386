//! cri-service
