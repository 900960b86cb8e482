//! What a body says about itself and where it leads. Pure: bytes in, values out.

pub mod html;
pub mod text;
