//! Where the data of a sparse file is.

use std::{fs::File, io, ops::Range};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// The first run of data in `at..end`; `None` if only a hole follows. A file system that does not
/// tell has data everywhere.
///
/// # Errors
/// If the file cannot be asked.
pub fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(at..end)),
        Err(error) => return Err(error.into()),
    };
    let stop = seek(file, SeekFrom::Hole(start))?;
    // A file that changes meanwhile may answer anything.
    let (start, stop) = (start.max(at), stop.min(end));
    Ok((start < stop).then_some(start..stop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn runs_of_data_are_found_in_order() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 3 << 20).unwrap();
        let end = 4 << 20;
        let Some(first) = next_data(&file, 0, end).unwrap() else { panic!("there is data") };
        assert!(first.contains(&(1 << 20)));
        let Some(second) = next_data(&file, first.end, end).unwrap() else {
            // The file system keeps no holes: all was in the first run.
            assert_eq!(first, 0..end);
            return;
        };
        assert!(second.contains(&(3 << 20)));
        assert_eq!(next_data(&file, second.end, end).unwrap(), None);
        assert_eq!(next_data(&file, end, end).unwrap(), None);
    }
}
