//! Any `:authority` is accepted on our sockets, where it means nothing. Clients on gRPC's C core send the socket's path with
//! percent signs, which our HTTP/2 library resets as no host. So the bytes of such a name that no host has are exchanged for
//! others before it sees them: in place and of the same length, so that both ends' tables of headers stay alike.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// What a client says first.
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// Bytes of headers that are held back until they are complete. Who sends more is let through as it is.
const MOST_HELD: usize = 64 << 10;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Its place in HPACK's table of known headers.
const AUTHORITY: usize = 1;

/// A connection whose client may call us what it likes.
#[derive(Debug)]
pub struct Connection {
    inner: UnixStream,
    filter: Filter,
    /// Looked at, and not read yet.
    ready: Vec<u8>,
    taken: usize,
}

impl Connection {
    pub(crate) fn new(inner: UnixStream) -> Self {
        Self { inner, filter: Filter::default(), ready: Vec::new(), taken: 0 }
    }
}

impl Connected for Connection {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.taken < self.ready.len() {
                let length = buffer.remaining().min(self.ready.len() - self.taken);
                let end = self.taken + length;
                buffer.put_slice(&self.ready[self.taken..end]);
                self.taken = end;
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; 8192];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
            let this = &mut *self;
            this.ready.clear();
            this.taken = 0;
            match read.filled() {
                [] => {
                    this.filter.let_go(&mut this.ready);
                    if this.ready.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
                bytes => this.filter.take(bytes, &mut this.ready),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// What of the client's bytes is looked at.
#[derive(Debug, Default)]
struct Filter {
    state: State,
    /// A beginning of a frame, or whole frames of headers that go on.
    held: Vec<u8>,
    /// Where in it the headers themselves are.
    fragments: Vec<Range<usize>>,
}

#[derive(Debug)]
enum State {
    /// So many bytes are passed on as they are.
    Pass(usize),
    /// A frame begins at this place of what is held.
    Frame(usize),
    /// Everything is passed on as it is.
    Open,
}

impl Default for State {
    fn default() -> Self {
        Self::Pass(PREFACE)
    }
}

impl Filter {
    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.state {
                State::Open => {
                    out.extend_from_slice(bytes);
                    return;
                }
                State::Pass(left) => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    out.extend_from_slice(now);
                    bytes = rest;
                    self.state = match left - now.len() {
                        0 => State::Frame(0),
                        left => State::Pass(left),
                    };
                }
                State::Frame(begin) => {
                    let has = self.held.len() - begin;
                    let length = match self.held.get(begin..begin + 3) {
                        Some(&[a, b, c]) if has >= FRAME_HEADER => {
                            FRAME_HEADER + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
                        }
                        _ => FRAME_HEADER,
                    };
                    let (now, rest) = bytes.split_at((length - has).min(bytes.len()));
                    self.held.extend_from_slice(now);
                    bytes = rest;
                    self.frame(begin, out);
                }
            }
        }
    }

    /// Decides about what is held, as far as it has come.
    fn frame(&mut self, begin: usize, out: &mut Vec<u8>) {
        let Some(header) = self.held.get(begin..begin + FRAME_HEADER) else { return };
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        let is_headers = if begin == 0 { kind == HEADERS } else { kind == CONTINUATION };
        if !is_headers {
            // Between headers nothing else may come; that is for others to refuse.
            let open = begin > 0;
            self.let_go(out);
            self.state = match (open, length) {
                (true, _) => State::Open,
                (false, 0) => State::Frame(0),
                (false, length) => State::Pass(length),
            };
            return;
        }
        let end = begin + FRAME_HEADER + length;
        if end > MOST_HELD {
            self.let_go(out);
            self.state = State::Open;
            return;
        }
        if self.held.len() < end {
            return;
        }
        let (mut from, mut to) = (begin + FRAME_HEADER, end);
        if kind == HEADERS && flags & PADDED != 0 && from < to {
            to = to.saturating_sub(usize::from(self.held[from]));
            from += 1;
        }
        if kind == HEADERS && flags & PRIORITY != 0 {
            from += 5;
        }
        if from < to {
            self.fragments.push(from..to);
        }
        if flags & END_HEADERS == 0 {
            self.state = State::Frame(end);
            return;
        }
        let mut block: Vec<u8> =
            self.fragments.iter().flat_map(|part| self.held[part.clone()].iter().copied()).collect();
        make_plain(&mut block);
        let mut plain = block.as_slice();
        for part in &self.fragments {
            let (now, rest) = plain.split_at(part.len());
            self.held[part.clone()].copy_from_slice(now);
            plain = rest;
        }
        self.let_go(out);
        self.state = State::Frame(0);
    }

    fn let_go(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.fragments.clear();
    }
}

/// Exchanges what no host has in the value of `:authority`. What is no HPACK stays as it is from there on.
fn make_plain(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let index = match first {
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40.. => integer(block, &mut at, 6)?,
            0x20.. => {
                integer(block, &mut at, 5)?;
                continue;
            }
            _ => integer(block, &mut at, 4)?,
        };
        let is_authority = match index {
            0 => {
                let (name, coded) = string(block, &mut at)?;
                match coded {
                    true => symbols(&block[name]).map(|(_, _, symbol)| symbol).eq(*b":authority"),
                    false => block[name] == *b":authority",
                }
            }
            index => index == AUTHORITY,
        };
        let (value, coded) = string(block, &mut at)?;
        if is_authority {
            let value = &mut block[value];
            match coded {
                true => exchange_coded(value),
                false => value.iter_mut().filter(|byte| !is_plain(**byte)).for_each(|byte| *byte = b'-'),
            }
        }
    }
    Some(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// A number of HPACK with a prefix of so many bits.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Where a string is, and whether it is in Huffman's code.
fn string(block: &[u8], at: &mut usize) -> Option<(Range<usize>, bool)> {
    let coded = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    *at = range.end;
    block.get(range.clone())?;
    Some((range, coded))
}

/// Symbols of a coded string: the bit where each begins, its bits, and the byte that it stands for; up to one that is no
/// printable character.
fn symbols(coded: &[u8]) -> impl Iterator<Item = (usize, u8, u8)> {
    let bits = coded.len() * 8;
    let mut at = 0;
    std::iter::from_fn(move || {
        let mut code = 0;
        for length in 1..=LONGEST_CODE.min(u8::try_from(bits - at).unwrap_or(u8::MAX)) {
            let bit = at + usize::from(length) - 1;
            code = code << 1 | u32::from(coded[bit / 8] >> (7 - bit % 8) & 1);
            if let Some(found) = CODES.iter().position(|one| *one == (code, length)) {
                let begin = at;
                at += usize::from(length);
                return Some((begin, length, b' ' + u8::try_from(found).unwrap_or_default()));
            }
        }
        None
    })
}

fn exchange_coded(coded: &mut [u8]) {
    let odd: Vec<_> = symbols(coded).filter(|(_, _, symbol)| !is_plain(*symbol)).collect();
    for (begin, length, _) in odd {
        // Of the same length; for few symbols there is none, and they stay.
        let Some((code, _)) =
            "0-BX+~".bytes().map(|byte| CODES[usize::from(byte - b' ')]).find(|one| one.1 == length)
        else {
            continue;
        };
        for place in 0..usize::from(length) {
            let (bit, value) = (begin + place, code >> (usize::from(length) - 1 - place) & 1);
            let mask = 0x80 >> (bit % 8);
            match value {
                0 => coded[bit / 8] &= !mask,
                _ => coded[bit / 8] |= mask,
            }
        }
    }
}

/// Huffman's code of the printable characters from the space on (RFC 7541, appendix B): the code, and its bits.
const CODES: [(u32, u8); 95] = [
    (0x14, 6),
    (0x3f8, 10),
    (0x3f9, 10),
    (0xffa, 12),
    (0x1ff9, 13),
    (0x15, 6),
    (0xf8, 8),
    (0x7fa, 11),
    (0x3fa, 10),
    (0x3fb, 10),
    (0xf9, 8),
    (0x7fb, 11),
    (0xfa, 8),
    (0x16, 6),
    (0x17, 6),
    (0x18, 6),
    (0x0, 5),
    (0x1, 5),
    (0x2, 5),
    (0x19, 6),
    (0x1a, 6),
    (0x1b, 6),
    (0x1c, 6),
    (0x1d, 6),
    (0x1e, 6),
    (0x1f, 6),
    (0x5c, 7),
    (0xfb, 8),
    (0x7ffc, 15),
    (0x20, 6),
    (0xffb, 12),
    (0x3fc, 10),
    (0x1ffa, 13),
    (0x21, 6),
    (0x5d, 7),
    (0x5e, 7),
    (0x5f, 7),
    (0x60, 7),
    (0x61, 7),
    (0x62, 7),
    (0x63, 7),
    (0x64, 7),
    (0x65, 7),
    (0x66, 7),
    (0x67, 7),
    (0x68, 7),
    (0x69, 7),
    (0x6a, 7),
    (0x6b, 7),
    (0x6c, 7),
    (0x6d, 7),
    (0x6e, 7),
    (0x6f, 7),
    (0x70, 7),
    (0x71, 7),
    (0x72, 7),
    (0xfc, 8),
    (0x73, 7),
    (0xfd, 8),
    (0x1ffb, 13),
    (0x7fff0, 19),
    (0x1ffc, 13),
    (0x3ffc, 14),
    (0x22, 6),
    (0x7ffd, 15),
    (0x3, 5),
    (0x23, 6),
    (0x4, 5),
    (0x24, 6),
    (0x5, 5),
    (0x25, 6),
    (0x26, 6),
    (0x27, 6),
    (0x6, 5),
    (0x74, 7),
    (0x75, 7),
    (0x28, 6),
    (0x29, 6),
    (0x2a, 6),
    (0x7, 5),
    (0x2b, 6),
    (0x76, 7),
    (0x2c, 6),
    (0x8, 5),
    (0x9, 5),
    (0x2d, 6),
    (0x77, 7),
    (0x78, 7),
    (0x79, 7),
    (0x7a, 7),
    (0x7b, 7),
    (0x7ffe, 15),
    (0x7fc, 11),
    (0x3ffd, 14),
    (0x1ffd, 13),
];
const LONGEST_CODE: u8 = 19;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn filtered(pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
        let (mut filter, mut out) = (Filter::default(), Vec::new());
        for piece in pieces {
            filter.take(&piece, &mut out);
        }
        filter.let_go(&mut out);
        out
    }

    fn coded(text: &str) -> Vec<u8> {
        let mut bits: Vec<u8> = Vec::new();
        for byte in text.bytes() {
            let (code, length) = CODES[usize::from(byte - b' ')];
            bits.extend((0..length).rev().map(|bit| u8::try_from(code >> bit & 1).expect("a bit")));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
    }

    fn literal(first: &[u8], value: &[u8], is_coded: bool) -> Vec<u8> {
        let length = u8::try_from(value.len()).expect("short");
        [first, &[length | if is_coded { 0x80 } else { 0 }], value].concat()
    }

    #[test]
    fn a_name_that_is_no_host_becomes_one() {
        let path = b"%2Ftmp%2Fcsi.sock";
        let plain = b"-2Ftmp-2Fcsi.sock";
        let named = [&[0x40, 10][..], b":authority"].concat();
        let coded_name = literal(&[0x40], &coded(":authority"), true);
        for (from, to) in [
            (literal(&[0x41], path, false), literal(&[0x41], plain, false)),
            (literal(&[0x01], path, false), literal(&[0x01], plain, false)),
            (literal(&named, path, false), literal(&named, plain, false)),
            (literal(&coded_name, path, false), literal(&coded_name, plain, false)),
            (
                literal(&[0x41], &coded("%2Ftmp%2Fcsi.sock"), true),
                literal(&[0x41], &coded("-2Ftmp-2Fcsi.sock"), true),
            ),
            (literal(&[0x41], &coded("a:b@c/d"), true), literal(&[0x41], &coded("aBb~c-d"), true)),
            // Another header keeps its value.
            (literal(&[0x44], path, false), literal(&[0x44], path, false)),
            (literal(&[0x41], b"localhost", false), literal(&[0x41], b"localhost", false)),
        ] {
            let block = |middle: &[u8]| [&[0x83, 0x86, 0x3f, 0xe1, 0x1f], middle, &[0xbe]].concat();
            let (mut from, to) = (block(&from), block(&to));
            make_plain(&mut from).expect("well-formed");
            assert_eq!(from, to);
        }
    }

    #[test]
    fn frames_are_found_however_they_come() {
        let block = |name: &[u8]| [&[0x83][..], &literal(&[0x41], name, false)].concat();
        let stream = |name: &[u8]| {
            let block = block(name);
            let (one, two) = block.split_at(4);
            let padded = [&[3][..], &[0; 5], &block, &[0; 3]].concat();
            [
                vec![b'P'; PREFACE],
                frame(4, 0, &[]),
                frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
                frame(0, 1, b"A %41 in the data"),
                frame(HEADERS, 0, one),
                frame(CONTINUATION, END_HEADERS, two),
                frame(6, 0, &[0; 8]),
            ]
            .concat()
        };
        let (from, to) = (stream(b"a%b:c/d"), stream(b"a-b-c-d"));
        for size in [1, 2, 7, 24, 4096] {
            assert_eq!(filtered(from.chunks(size).map(<[u8]>::to_vec)), to, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_http_passes_as_it_is() {
        let endless =
            [vec![b'P'; PREFACE], frame(HEADERS, 0, b"x"), frame(0, 0, b"no continuation"), vec![7; 99]]
                .concat();
        let large = [vec![b'P'; PREFACE], vec![0xff, 0xff, 0xff, HEADERS, 0], vec![0; 9999]].concat();
        let cut = [vec![b'P'; PREFACE], frame(HEADERS, END_HEADERS, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff])]
            .concat();
        for bytes in [endless, large, cut, b"GET / HTTP/1.1".to_vec()] {
            assert_eq!(filtered(bytes.chunks(5).map(<[u8]>::to_vec)), bytes);
        }
    }
}
