//! A Parquet file from outside, checked before the `parquet` crate reads it.
//!
//! The crate believes its files: a length that is read becomes an allocation, a nesting a
//! recursion, a number of rows a loop, and what a page unpacks to is not looked at before it is in
//! memory. Here the footer and the page headers are walked first, in Thrift's compact form, and
//! every size is held against the bytes that are there. What remains (encodings, levels) can only
//! fail or panic, and is contained where the file is read.
//!
//! ```text
//! PAR1   [page header, page]*   footer (metadata)   length of the footer, u32   PAR1
//! ```
//!
//! # Source
//! apache/parquet-format: README.md, src/main/thrift/parquet.thrift; apache/thrift:
//! doc/specs/thrift-compact-protocol.md
use parquet::{
    basic::Compression,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData},
};
use std::io::Read;

const MAGIC: &[u8] = b"PAR1";
/// Magic and length after the footer.
const TAIL_BYTES: usize = 8;
/// Structures of the format are nested 8 deep at most.
const MAX_THRIFT_DEPTH: usize = 24;
/// Columns within columns; lists of structures of lists have 7.
const MAX_SCHEMA_DEPTH: usize = 32;
/// Bytes that a page may unpack to, however small it is; pages are written with about one megabyte.
const MAX_PAGE_BYTES: usize = 256 << 20;
/// Rows that a file may have beyond one a byte: a question needs more than that.
const FREE_ROWS: usize = 1 << 20;
/// Values of a column, which are more than rows where those hold lists: so many in any file, and so
/// many more a byte. A row's are in memory together.
const FREE_VALUES: usize = 1 << 22;
const VALUES_A_BYTE: usize = 4;
/// Bytes that the texts of a column may take together if each is as long as its longest, in any
/// file, and how much more a byte: a text that stands once in a dictionary is copied for every
/// value that refers to it.
const FREE_TEXT_BYTES: usize = 1 << 30;
const TEXT_BYTES_A_BYTE: usize = 200;

/// Holds the footer's lengths, nesting and tree of columns against its bytes.
/// # Errors
/// The first that does not hold.
pub(super) fn check_footer(file: &[u8]) -> Result<(), String> {
    if file.len() < MAGIC.len() + TAIL_BYTES || !file.starts_with(MAGIC) || !file.ends_with(MAGIC) {
        return Err("it does not begin and end as Parquet does".to_owned());
    }
    let tail = file.len() - TAIL_BYTES;
    let length = u32::from_le_bytes(file[tail..tail + 4].try_into().expect("four bytes")) as usize;
    let start = tail.checked_sub(length).filter(|&start| start >= MAGIC.len());
    let footer = &file[start.ok_or_else(|| {
        format!("its footer should have {length} bytes, the file has {}", file.len())
    })?..tail];
    let mut n_children = Vec::new();
    // FileMetaData: field 2 is the list of columns and groups, depth first; field 5 of each, which
    // only groups have, the number of its members.
    Thrift { bytes: footer, at: 0 }.walk(&mut |path, value| match (path, value) {
        ([2], ThriftValue::Element) => n_children.push(0),
        ([2, 5], ThriftValue::Integer(n)) => {
            if let Some(last) = n_children.last_mut() {
                *last = n;
            }
        }
        _ => {}
    })?;
    check_tree(&n_children)
}

/// The list is a tree in depth-first order: nobody has more members than follow.
fn check_tree(n_children: &[i64]) -> Result<(), String> {
    let mut open: Vec<i64> = Vec::new();
    for (at, &n) in n_children.iter().enumerate() {
        if n < 0 || n as usize > n_children.len() - at - 1 {
            return Err(format!(
                "column {at} should have {n} members, {} follow",
                n_children.len() - at - 1
            ));
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if n > 0 {
            open.push(n);
        }
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > MAX_SCHEMA_DEPTH {
            return Err(format!("its columns are nested more than {MAX_SCHEMA_DEPTH} deep"));
        }
    }
    Ok(())
}

/// Holds rows, values and pages of the columns that will be read against each other and the bytes.
/// # Errors
/// The first that does not hold.
pub(super) fn check_columns(
    file: &[u8],
    metadata: &ParquetMetaData,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    let max_rows = file.len() + FREE_ROWS;
    let mut n_rows = 0i64;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        n_rows = n_rows.saturating_add(group.num_rows());
        if group.num_rows() < 0 || n_rows as usize > max_rows {
            return Err(format!(
                "row group {number} should have {} rows, in a file of {} bytes",
                group.num_rows(),
                file.len()
            ));
        }
        for column in group.columns() {
            if column.column_path().parts().first().is_some_and(|name| is_wanted(name)) {
                let n_values = check_pages(file, column).map_err(|why| {
                    format!("row group {number}, column {}: {why}", column.column_path())
                })?;
                if (group.num_rows() as usize) > n_values
                    || n_values
                        > FREE_VALUES.saturating_add(file.len().saturating_mul(VALUES_A_BYTE))
                {
                    return Err(format!(
                        "row group {number}, column {}: {n_values} values in {} rows",
                        column.column_path(),
                        group.num_rows()
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Holds the longest text of a column's dictionary against the number of its values.
/// # Errors
/// The first that does not hold.
pub(super) fn check_dictionary(
    file_bytes: usize,
    column: &ColumnChunkMetaData,
    dictionary: &[u8],
) -> Result<(), String> {
    let (mut longest, mut rest) = (0, dictionary);
    // Texts lie one after the other, each after its length.
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let n = u32::from_le_bytes(*length) as usize;
        rest = behind.get(n..).ok_or_else(|| {
            format!("a text of {n} bytes in a dictionary that has {} left", behind.len())
        })?;
        longest = longest.max(n);
    }
    let n_values = usize::try_from(column.num_values()).unwrap_or(usize::MAX);
    match n_values.saturating_mul(longest)
        > FREE_TEXT_BYTES.saturating_add(file_bytes.saturating_mul(TEXT_BYTES_A_BYTE))
    {
        true => Err(format!(
            "column {}: {n_values} texts of up to {longest} bytes in a file of {file_bytes}",
            column.column_path()
        )),
        false => Ok(()),
    }
}

/// Walks the pages of a column and returns the number of its values.
fn check_pages(file: &[u8], column: &ColumnChunkMetaData) -> Result<usize, String> {
    let first = column
        .dictionary_page_offset()
        .filter(|&offset| offset > 0)
        .unwrap_or_else(|| column.data_page_offset());
    let size = usize::try_from(column.compressed_size()).map_err(|_| "its size is negative")?;
    let range =
        usize::try_from(first).ok().and_then(|start| Some((start, start.checked_add(size)?)));
    let (start, end) =
        range.filter(|&(_, end)| end <= file.len()).ok_or("it lies outside the file")?;
    let n_expected =
        usize::try_from(column.num_values()).map_err(|_| "its number of values is negative")?;
    let (mut thrift, mut n_values) = (Thrift { bytes: &file[start..end], at: 0 }, 0usize);
    while n_values < n_expected {
        let page = PageSizes::read(&mut thrift)?;
        let body = thrift.take(page.packed)?;
        let levels = page.n_level_bytes;
        if levels > page.packed || levels > page.plain || page.plain > MAX_PAGE_BYTES {
            return Err(format!(
                "a page of {} bytes should have {}, {levels} of them levels",
                page.packed, page.plain
            ));
        }
        check_unpacked(&body[levels..], column.compression(), page.is_packed, page.plain - levels)?;
        if page.n_entries > page.plain {
            return Err(format!(
                "a dictionary of {} entries in {} bytes",
                page.n_entries, page.plain
            ));
        }
        n_values = n_values.saturating_add(page.n_values);
        if page.n_values == 0 && page.n_entries == 0 && page.packed == 0 {
            return Err("a page without anything in it".to_owned());
        }
    }
    if n_values != n_expected {
        return Err(format!("it should have {n_expected} values, its pages have {n_values}"));
    }
    Ok(n_values)
}

/// Sizes that a page header states.
#[derive(Default)]
struct PageSizes {
    packed: usize,
    plain: usize,
    n_values: usize,
    /// Of a dictionary.
    n_entries: usize,
    /// In front of what is compressed, in the newer form.
    n_level_bytes: usize,
    is_packed: bool,
}

impl PageSizes {
    fn read(thrift: &mut Thrift<'_>) -> Result<Self, String> {
        let mut page = Self { is_packed: true, ..Self::default() };
        let mut is_negative = false;
        thrift.walk(&mut |path, value| {
            if let ([8, 7], ThriftValue::Flag(is_packed)) = (path, &value) {
                page.is_packed = *is_packed;
            }
            let ThriftValue::Integer(n) = value else { return };
            let size = usize::try_from(n).unwrap_or(0);
            match path {
                [2] => page.plain = size,
                [3] => page.packed = size,
                [5, 1] | [8, 1] => page.n_values = size,
                [7, 1] => page.n_entries = size,
                [8, 5] | [8, 6] => page.n_level_bytes = page.n_level_bytes.saturating_add(size),
                _ => return,
            }
            is_negative |= n < 0;
        })?;
        if is_negative { Err("a page header has a negative size".to_owned()) } else { Ok(page) }
    }
}

/// Unpacks into nothing what the crate would unpack into memory without a limit.
fn check_unpacked(
    packed: &[u8],
    codec: Compression,
    is_packed: bool,
    expected: usize,
) -> Result<(), String> {
    let count = |reader: &mut dyn Read| {
        let n = std::io::copy(&mut reader.take(expected as u64 + 1), &mut std::io::sink())
            .map_err(|error| error.to_string())?;
        if n == expected as u64 {
            Ok(())
        } else {
            Err(format!("a page unpacks to other than the {expected} bytes that it should have"))
        }
    };
    if !is_packed || expected == 0 {
        return Ok(());
    }
    match codec {
        Compression::GZIP(_) => count(&mut flate2::read::MultiGzDecoder::new(packed)),
        Compression::ZSTD(_) => {
            count(&mut zstd::Decoder::new(packed).map_err(|error| error.to_string())?)
        }
        Compression::BROTLI(_) => count(&mut brotli::Decompressor::new(packed, 4096)),
        // Snappy and the LZ4 of blocks unpack into exactly the bytes that are expected; the LZ4 of
        // frames to at most 255 times its own.
        _ => Ok(()),
    }
}

/// A value that is met on a walk.
enum ThriftValue {
    Integer(i64),
    Flag(bool),
    /// A list's next element begins.
    Element,
}

/// Walks Thrift's compact form.
struct Thrift<'b> {
    bytes: &'b [u8],
    at: usize,
}

/// A walk through a structure: what it is told of every value, with the numbers of the fields on
/// the way to it.
struct Walk<'w, 'b> {
    thrift: &'w mut Thrift<'b>,
    path: Vec<i16>,
    visit: &'w mut dyn FnMut(&[i16], ThriftValue),
}

impl<'b> Thrift<'b> {
    fn take(&mut self, n: usize) -> Result<&'b [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            format!("{n} bytes are announced where {} are left", self.bytes.len() - self.at)
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number of more than 64 bits".to_owned())
    }

    fn integer(&mut self) -> Result<i64, String> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Walks one structure.
    fn walk(&mut self, visit: &mut dyn FnMut(&[i16], ThriftValue)) -> Result<(), String> {
        Walk { thrift: self, path: Vec::new(), visit }.structure(0)
    }
}

impl Walk<'_, '_> {
    fn structure(&mut self, depth: usize) -> Result<(), String> {
        if depth > MAX_THRIFT_DEPTH {
            return Err(format!("structures nested more than {MAX_THRIFT_DEPTH} deep"));
        }
        let too_large = "a field number of more than 16 bits";
        let mut field = 0i16;
        loop {
            let head = self.thrift.take(1)?[0];
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => i16::try_from(self.thrift.integer()?).map_err(|_| too_large)?,
                step => field.checked_add(i16::from(step)).ok_or(too_large)?,
            };
            self.path.push(field);
            match head & 0xf {
                1 => (self.visit)(&self.path, ThriftValue::Flag(true)),
                2 => (self.visit)(&self.path, ThriftValue::Flag(false)),
                kind => self.value(kind, depth)?,
            }
            self.path.pop();
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        match kind {
            // Of a list of booleans every element is a byte.
            1..=3 => _ = self.thrift.take(1)?,
            4..=6 => {
                let n = self.thrift.integer()?;
                (self.visit)(&self.path, ThriftValue::Integer(n));
            }
            7 => _ = self.thrift.take(8)?,
            8 => {
                let n = usize::try_from(self.thrift.varint()?)
                    .map_err(|_| "a text of more than 64 bits")?;
                self.thrift.take(n)?;
            }
            9 | 10 => {
                let head = self.thrift.take(1)?[0];
                let n = match head >> 4 {
                    15 => self.thrift.varint()?,
                    n => u64::from(n),
                };
                self.check_number(n)?;
                for _ in 0..n {
                    (self.visit)(&self.path, ThriftValue::Element);
                    self.element(head & 0xf, depth)?;
                }
            }
            11 => {
                let n = self.thrift.varint()?;
                self.check_number(n)?;
                let kinds = if n > 0 { self.thrift.take(1)?[0] } else { 0 };
                for _ in 0..n {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 0xf, depth)?;
                }
            }
            12 => self.structure(depth + 1)?,
            other => return Err(format!("a value of the unknown kind {other}")),
        }
        Ok(())
    }

    /// Lists in lists count as depth, as structures do.
    fn element(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        if depth > MAX_THRIFT_DEPTH {
            return Err(format!("lists nested more than {MAX_THRIFT_DEPTH} deep"));
        }
        self.value(kind, depth + 1)
    }

    /// Every element has a byte at least.
    fn check_number(&self, n: u64) -> Result<(), String> {
        let left = self.thrift.bytes.len() - self.thrift.at;
        match n > left as u64 {
            true => Err(format!("a list of {n} elements where {left} bytes are left")),
            false => Ok(()),
        }
    }
}
