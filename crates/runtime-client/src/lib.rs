//! runtime-client
