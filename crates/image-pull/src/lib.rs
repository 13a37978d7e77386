//! image-pull
