use super::*;
use crate::{export::BlockSizes, protocol::command as c, protocol::command_flag as f};

const SIZE: u64 = 1 << 30;

fn rules() -> Rules {
    Rules {
        size_bytes: SIZE,
        read_only: false,
        block_sizes: BlockSizes::new(512, 4096, 1 << 20).unwrap(),
        style: HeaderStyle::Structured,
        base_allocation: true,
    }
}

fn header(command: u16, flags: u16, offset: u64, len: u64) -> Header {
    Header { flags, command, cookie: 7, offset, len }
}

#[test]
fn every_refusal_has_its_cause_and_its_error_number() {
    let simple = Rules { style: HeaderStyle::Simple, ..rules() };
    let extended = Rules { style: HeaderStyle::Extended, ..rules() };
    let read_only = Rules { read_only: true, ..rules() };
    let no_context = Rules { base_allocation: false, ..rules() };
    let whole = rules();
    let out = |writes| Refusal::OutOfRange { size_bytes: SIZE, writes };
    let wrong = |flags, command| Refusal::WrongFlags { flags, command };
    let unaligned = Refusal::Unaligned { minimum: 512 };
    let maximum = 1 << 20;

    use ErrorCode as E;
    let table = [
        (header(8, 0, 0, 512), &whole, Refusal::UnknownCommand { command: 8 }, E::Invalid),
        (header(99, 0, 0, 512), &whole, Refusal::UnknownCommand { command: 99 }, E::Invalid),
        (header(c::READ, f::NO_HOLE, 0, 512), &whole, wrong(f::NO_HOLE, c::READ), E::Invalid),
        (header(c::READ, f::DF, 0, 512), &simple, wrong(f::DF, c::READ), E::Invalid),
        (header(c::WRITE, f::DF, 0, 512), &whole, wrong(f::DF, c::WRITE), E::Invalid),
        (header(c::WRITE, 0x20, 0, 512), &whole, wrong(0x20, c::WRITE), E::Invalid),
        (header(c::READ, 0x20, 0, 512), &extended, wrong(0x20, c::READ), E::Invalid),
        (header(c::TRIM, 0x8000, 0, 512), &whole, wrong(0x8000, c::TRIM), E::Invalid),
        (header(c::FLUSH, 0, 512, 0), &whole, Refusal::FlushRange, E::Invalid),
        (header(c::FLUSH, 0, 0, 512), &whole, Refusal::FlushRange, E::Invalid),
        (header(c::BLOCK_STATUS, 0, 0, 512), &no_context, Refusal::NoContext, E::Invalid),
        (header(c::WRITE, 0, 0, 512), &read_only, Refusal::ReadOnly, E::NotPermitted),
        (header(c::TRIM, 0, 0, 512), &read_only, Refusal::ReadOnly, E::NotPermitted),
        (header(c::WRITE_ZEROES, 0, 0, 512), &read_only, Refusal::ReadOnly, E::NotPermitted),
        (header(c::READ, 0, 0, 0), &whole, Refusal::Empty, E::Invalid),
        (header(c::WRITE, 0, 0, 0), &whole, Refusal::Empty, E::Invalid),
        (header(c::TRIM, 0, 0, 0), &whole, Refusal::Empty, E::Invalid),
        (header(c::READ, 0, 511, 512), &whole, unaligned, E::Invalid),
        (header(c::READ, 0, 512, 511), &whole, unaligned, E::Invalid),
        (header(c::WRITE_ZEROES, 0, 512, 513), &whole, unaligned, E::Invalid),
        (
            header(c::READ, 0, 0, (1 << 20) + 512),
            &whole,
            Refusal::ReadTooLong { maximum },
            E::Overflow,
        ),
        (
            header(c::WRITE, 0, 0, (1 << 20) + 512),
            &whole,
            Refusal::WriteTooLong { maximum },
            E::Invalid,
        ),
        (header(c::READ, 0, SIZE, 512), &whole, out(false), E::Invalid),
        (header(c::READ, 0, u64::MAX - 511, 512), &whole, out(false), E::Invalid),
        (header(c::TRIM, 0, SIZE - 512, 1024), &whole, out(false), E::Invalid),
        (header(c::CACHE, 0, SIZE, 512), &whole, out(false), E::Invalid),
        (header(c::BLOCK_STATUS, 0, 512, SIZE), &whole, out(false), E::Invalid),
        (header(c::WRITE, 0, SIZE - 512, 1024), &whole, out(true), E::NoSpace),
        (header(c::WRITE_ZEROES, 0, u64::MAX - 511, 512), &whole, out(true), E::NoSpace),
    ];
    for (header, rules, refusal, code) in table {
        let result = validate(&header, rules);
        assert_eq!(result, Err(refusal), "{header:?}");
        assert_eq!(refusal.code(), code, "{header:?}");
    }
}

#[test]
fn what_is_allowed_means_what_its_flags_say() {
    let extended = Rules { style: HeaderStyle::Extended, ..rules() };
    let whole = rules();
    let zero = |no_hole, fast, fua| Command::WriteZeroes {
        offset: 0,
        len: SIZE,
        options: ZeroOptions { no_hole, fast, fua },
    };
    let table = [
        (
            header(c::READ, f::DF | f::FUA, 0, 1 << 20),
            &whole,
            Command::Read { offset: 0, len: 1 << 20, dont_fragment: true },
        ),
        (
            header(c::READ, 0, SIZE - 512, 512),
            &whole,
            Command::Read { offset: SIZE - 512, len: 512, dont_fragment: false },
        ),
        (
            header(c::WRITE, f::FUA, 0, 512),
            &whole,
            Command::Write { offset: 0, len: 512, fua: true },
        ),
        (
            header(c::WRITE, f::PAYLOAD_LEN, 0, 512),
            &extended,
            Command::Write { offset: 0, len: 512, fua: false },
        ),
        (header(c::FLUSH, f::FUA, 0, 0), &whole, Command::Flush),
        (header(c::DISC, 0xffff, 1, 1), &whole, Command::Disconnect),
        (header(c::TRIM, 0, 0, SIZE), &whole, Command::Trim { offset: 0, len: SIZE, fua: false }),
        (header(c::CACHE, 0, 0, SIZE), &whole, Command::Prefetch { offset: 0, len: SIZE }),
        (header(c::WRITE_ZEROES, f::NO_HOLE, 0, SIZE), &whole, zero(true, false, false)),
        (header(c::WRITE_ZEROES, f::FAST_ZERO, 0, SIZE), &whole, zero(false, true, false)),
        (header(c::WRITE_ZEROES, f::FUA, 0, SIZE), &whole, zero(false, false, true)),
        (
            header(c::BLOCK_STATUS, f::REQ_ONE, 0, SIZE),
            &whole,
            Command::BlockStatus { offset: 0, len: SIZE, one_extent: true },
        ),
    ];
    for (header, rules, command) in table {
        assert_eq!(validate(&header, rules), Ok(command), "{header:?}");
    }
}

#[test]
fn payload_follows_writes_and_extended_requests_that_say_so() {
    let write = header(c::WRITE, 0, 0, 77);
    let flagged_read = header(c::READ, f::PAYLOAD_LEN, 0, 77);
    assert_eq!(write.payload_bytes(HeaderStyle::Simple), 77);
    assert_eq!(write.payload_bytes(HeaderStyle::Extended), 77);
    assert_eq!(flagged_read.payload_bytes(HeaderStyle::Structured), 0);
    let read = header(c::READ, 0, 0, 77);
    assert_eq!(read.payload_bytes(HeaderStyle::Extended), 0);
    assert_eq!(flagged_read.payload_bytes(HeaderStyle::Extended), 77);
}

#[test]
fn headers_are_parsed_in_both_sizes_and_only_with_their_magic() {
    use zerocopy::IntoBytes;
    let compact = CompactRequest {
        magic: REQUEST_MAGIC.into(),
        flags: 1.into(),
        command: 2.into(),
        cookie: 3.into(),
        offset: 4.into(),
        len: 5.into(),
    };
    let extended = ExtendedRequest {
        magic: EXTENDED_REQUEST_MAGIC.into(),
        flags: 1.into(),
        command: 2.into(),
        cookie: 3.into(),
        offset: 4.into(),
        len: 5.into(),
    };
    let expected = Header { flags: 1, command: 2, cookie: 3, offset: 4, len: 5 };
    for (bytes, style) in [
        (compact.as_bytes(), HeaderStyle::Simple),
        (compact.as_bytes(), HeaderStyle::Structured),
        (extended.as_bytes(), HeaderStyle::Extended),
    ] {
        assert_eq!(bytes.len(), Header::wire_bytes(style));
        assert_eq!(Header::parse(bytes, style).unwrap(), Some(expected));
        assert_eq!(Header::parse(&bytes[..bytes.len() - 1], style).unwrap(), None);
        let mut wrong = bytes.to_vec();
        wrong[0] ^= 1;
        assert!(matches!(Header::parse(&wrong, style), Err(TransmissionError::BadMagic { .. })));
    }
    // Each style refuses the other's requests.
    assert!(Header::parse(extended.as_bytes(), HeaderStyle::Structured).is_err());
}
