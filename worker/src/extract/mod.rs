//! What a body says about itself and where it leads. Pure: bytes in, values out.

pub mod directive;
pub mod html;
pub mod link_header;
pub mod listing;
pub mod simhash;
pub mod sniff;
pub mod srcset;
pub mod tags;
pub mod text;
