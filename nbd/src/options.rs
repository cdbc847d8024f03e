//! The contents of options, parsed.

use crate::protocol::MAX_STRING_BYTES;

/// A string of the protocol: short enough, UTF-8, without NUL.
pub(crate) fn name(bytes: &[u8]) -> Option<&str> {
    let name = (bytes.len() <= MAX_STRING_BYTES).then(|| std::str::from_utf8(bytes).ok())??;
    (!name.contains('\0')).then_some(name)
}

/// The contents of INFO and GO.
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    kinds: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// `None` when malformed.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut rest = data;
        let name = take_string(&mut rest)?;
        let count = take_array(&mut rest).map(u16::from_be_bytes)?;
        (rest.len() == 2 * usize::from(count)).then_some(Self { name, kinds: rest })
    }

    pub(crate) fn asks_for(&self, kind: u16) -> bool {
        self.kinds.chunks_exact(2).any(|asked| asked == kind.to_be_bytes())
    }
}

/// The contents of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) struct MetaContextRequest<'a> {
    pub(crate) export: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

impl<'a> MetaContextRequest<'a> {
    /// `None` when malformed.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut rest = data;
        let export = take_string(&mut rest)?;
        let count = take_array(&mut rest).map(u32::from_be_bytes)?;
        // Every query takes four bytes at least: this bounds the count before anything is
        // allocated for it.
        if count as usize > rest.len() / 4 {
            return None;
        }
        let mut queries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            queries.push(take_string(&mut rest)?);
        }
        rest.is_empty().then_some(Self { export, queries })
    }
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*array)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = take_array(rest).map(u32::from_be_bytes)?;
    let (string, after) = rest.split_at_checked(len as usize)?;
    *rest = after;
    name(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name_len: u32, name: &[u8], count: u16, kinds: &[u16]) -> Vec<u8> {
        let mut data = name_len.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&count.to_be_bytes());
        kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
        data
    }

    #[test]
    fn an_info_request_names_an_export_and_what_is_asked_for() {
        let data = info(3, b"vol", 2, &[1, 3]);
        let request = InfoRequest::parse(&data).unwrap();
        assert_eq!(request.name, "vol");
        assert!(request.asks_for(1) && request.asks_for(3) && !request.asks_for(2));
    }

    #[test]
    fn lengths_and_counts_that_do_not_fit_are_malformed() {
        for data in [
            info(4, b"vol", 0, &[]),
            info(u32::MAX, b"vol", 0, &[]),
            info(3, b"vol", 2, &[1]),
            info(3, b"vol", 0, &[1]),
            info(3, b"v\0l", 0, &[]),
            info(3, b"v\xffl", 0, &[]),
            info(5000, &[b'a'; 5000], 0, &[]),
            vec![],
            vec![0; 5],
        ] {
            assert!(InfoRequest::parse(&data).is_none(), "{data:?}");
        }
    }

    #[test]
    fn a_count_of_queries_is_bounded_by_what_was_sent() {
        let mut data = 0u32.to_be_bytes().to_vec();
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        data.extend_from_slice(&[0; 64]);
        assert!(MetaContextRequest::parse(&data).is_none());
    }

    #[test]
    fn queries_come_in_order_and_nothing_may_follow_them() {
        let mut data = 1u32.to_be_bytes().to_vec();
        data.push(b'v');
        data.extend_from_slice(&2u32.to_be_bytes());
        for query in ["base:allocation", "x-other:thing"] {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        let request = MetaContextRequest::parse(&data).unwrap();
        assert_eq!(request.export, "v");
        assert_eq!(request.queries, ["base:allocation", "x-other:thing"]);
        data.push(0);
        assert!(MetaContextRequest::parse(&data).is_none());
    }
}
