//! Records as compressed lines in frames of bounded size, and the sidecar that says where everything lies.
//!
//! Same records, same bytes (invariant 9): the level and the cuts are fixed, a frame carries no time. Frames are
//! whole zstd frames, one after the other, so that `zstdcat` reads the file and one range request reads a frame.

use std::io::{self, Read as _};

use serde::{Deserialize, Serialize};
use zstd::bulk::Compressor;
use zstd::stream::read::Decoder;
use zstd::zstd_safe::CParameter;

use crate::model::stream_id::StreamId;
use crate::storage::key::Codec;

/// A frame closes at this many records,
pub const FRAME_RECORDS_MAX: u64 = 1000;
/// or before it would pass this many bytes of lines, unless one line alone does.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Most bytes of lines that are decoded from one frame, and hence the longest line that is packed.
pub const FRAME_DECODED_BYTES_MAX: usize = 256 << 20;
/// Members of a WARC that make one row of its frame table.
pub const FRAME_MEMBERS_MAX: usize = 100;

const ZSTD_LEVEL: i32 = 3;

/// Version of the sidecar's own layout.
pub const SIDECAR_VERSION: u32 = 1;

/// A run of records that is read by one range request: a zstd frame of lines, or some members of a WARC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// In bytes from the start of the object.
    pub offset: u64,
    pub bytes: u64,
    /// Id of its first record.
    pub first: StreamId,
    /// Id of its last record, inclusive.
    pub last: StreamId,
    /// Number of its records.
    pub count: u64,
}

/// What is known of a segment: the JSON object beside it, from which it is read and checked without Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// [`SIDECAR_VERSION`] when it was written.
    pub version: u32,
    pub tenant: String,
    pub stream: String,
    pub generation: u64,
    pub first: StreamId,
    pub last: StreamId,
    /// Number of entries.
    pub count: u64,
    /// Size of the data object.
    pub bytes: u64,
    /// Of the data object, in hex.
    pub sha256: String,
    pub codec: Codec,
    pub frames: Vec<Frame>,
    /// WARC only: `[id, offset, length]` of every member. A member is encoded before its entry has an id, so that
    /// the id can stand nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<(StreamId, u64, u64)>,
    /// WARC only: of the CDXJ object, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_sha256: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("zstd: {0}")]
    Zstd(#[from] io::Error),
    #[error("record {id} has {bytes} bytes, more than the {FRAME_DECODED_BYTES_MAX} of a frame")]
    RecordTooLarge { id: StreamId, bytes: usize },
    #[error("a frame decodes to more than {FRAME_DECODED_BYTES_MAX} bytes")]
    FrameTooLarge,
}

/// Packs lines into frames.
pub struct Packer {
    compressor: Compressor<'static>,
    packed: Vec<u8>,
    frames: Vec<Frame>,
    /// The open frame's lines; `open` describes it, its `bytes` still unknown.
    plain: Vec<u8>,
    open: Option<Frame>,
}

impl Packer {
    pub fn new() -> Result<Packer, PackError> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        // A frame is also read alone, where the hash of the whole object does not protect it.
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Packer { compressor, packed: Vec::new(), frames: Vec::new(), plain: Vec::new(), open: None })
    }

    /// Adds one record, given without its newline. Ids must ascend.
    ///
    /// # Errors
    /// `RecordTooLarge` for a line that could not be read back.
    pub fn push(&mut self, id: StreamId, line: &[u8]) -> Result<(), PackError> {
        if line.len() >= FRAME_DECODED_BYTES_MAX {
            return Err(PackError::RecordTooLarge { id, bytes: line.len() });
        }
        if self.plain.len() + line.len() >= FRAME_BYTES_MAX {
            self.close()?;
        }
        self.plain.extend_from_slice(line);
        self.plain.push(b'\n');
        let offset = self.packed.len() as u64;
        let frame = self.open.get_or_insert(Frame { offset, bytes: 0, first: id, last: id, count: 0 });
        frame.last = id;
        frame.count += 1;
        if frame.count == FRAME_RECORDS_MAX {
            self.close()?;
        }
        Ok(())
    }

    /// The object's bytes and the table of its frames.
    pub fn finish(mut self) -> Result<(Vec<u8>, Vec<Frame>), PackError> {
        self.close()?;
        Ok((self.packed, self.frames))
    }

    fn close(&mut self) -> Result<(), PackError> {
        if let Some(mut frame) = self.open.take() {
            let compressed = self.compressor.compress(&self.plain)?;
            frame.bytes = compressed.len() as u64;
            self.packed.extend_from_slice(&compressed);
            self.frames.push(frame);
            self.plain.clear();
        }
        Ok(())
    }
}

/// The lines of one frame, each ended by a newline. Memory grows with what is decoded and never past
/// [`FRAME_DECODED_BYTES_MAX`], whatever the frame claims.
///
/// # Errors
/// Bytes that are not exactly one frame, a wrong checksum, or too much output.
pub fn unpack_frame(packed: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut rest = packed;
    let mut plain = Vec::new();
    let decoder = Decoder::with_buffer(&mut rest)?.single_frame();
    decoder.take(FRAME_DECODED_BYTES_MAX as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > FRAME_DECODED_BYTES_MAX {
        return Err(PackError::FrameTooLarge);
    }
    if !rest.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes follow the frame").into());
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(count: u64, line: &[u8]) -> (Vec<u8>, Vec<Frame>) {
        let mut packer = Packer::new().expect("a packer");
        for n in 0..count {
            packer.push(StreamId::new(n, 0), line).expect("a record");
        }
        packer.finish().expect("the end")
    }

    fn slice<'a>(packed: &'a [u8], frame: &Frame) -> &'a [u8] {
        &packed[frame.offset as usize..][..frame.bytes as usize]
    }

    #[test]
    fn frames_cut_at_a_thousand_records_and_decode_alone() {
        let (packed, frames) = pack(2500, b"{\"a\":1}");
        let table: Vec<_> = frames.iter().map(|frame| (frame.first.ms, frame.last.ms, frame.count)).collect();
        assert_eq!(table, [(0, 999, 1000), (1000, 1999, 1000), (2000, 2499, 500)]);
        assert_eq!(frames[1].offset, frames[0].bytes);
        assert_eq!(frames[2].offset + frames[2].bytes, packed.len() as u64);
        assert_eq!(unpack_frame(slice(&packed, &frames[2])).expect("a frame"), b"{\"a\":1}\n".repeat(500));
        assert_eq!(zstd::decode_all(&packed[..]).expect("a zstd file"), b"{\"a\":1}\n".repeat(2500));
        assert_eq!((packed, frames), pack(2500, b"{\"a\":1}"));
    }

    #[test]
    fn frames_cut_by_size_and_a_huge_record_has_its_own() {
        let (_, frames) = pack(3, &vec![b'x'; FRAME_BYTES_MAX / 2]);
        assert_eq!(frames.iter().map(|frame| frame.count).collect::<Vec<_>>(), [1, 1, 1]);
        let (packed, frames) = pack(2, &vec![b'x'; FRAME_BYTES_MAX + 1]);
        assert_eq!(frames.len(), 2);
        assert_eq!(unpack_frame(slice(&packed, &frames[1])).expect("a frame").len(), FRAME_BYTES_MAX + 2);
    }

    #[test]
    fn damage_is_seen_and_output_is_capped() {
        let (mut packed, _) = pack(1, b"{\"some\":\"thing to compress, and more of it\"}");
        assert!(unpack_frame(&packed.repeat(2)).is_err());
        assert!(unpack_frame(&packed[..packed.len() - 1]).is_err());
        let middle = packed.len() / 2;
        packed[middle] ^= 1;
        assert!(unpack_frame(&packed).is_err());
        let bomb = zstd::encode_all(io::repeat(0).take(FRAME_DECODED_BYTES_MAX as u64 + 1), 1).expect("a bomb");
        assert!(matches!(unpack_frame(&bomb), Err(PackError::FrameTooLarge)));
    }
}
