//! Reads fixtures: safetensors as host arrays, JSON. Remembers which tensors were asked for, so
//! that a run can name the ones it did not understand.
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Why a fixture could not be used. It becomes a failed check of its case.
#[derive(Debug, thiserror::Error)]
pub(super) enum FixtureError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a safetensors file: {source}", path.display())]
    SafeTensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("{} is not JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the fixture has no key \"{0}\"")]
    Missing(String),
    #[error("\"{key}\" has dtype {dtype}, expected {expected}")]
    Dtype { key: String, dtype: String, expected: &'static str },
    #[error("\"{key}\" has shape {shape:?}, expected {expected}")]
    Shape { key: String, shape: Vec<usize>, expected: String },
    #[error("\"{key}\" is {found}, expected {expected}")]
    Value { key: String, found: String, expected: &'static str },
    #[error(transparent)]
    Tokenizer(#[from] dgpo_core::tokenizer::TokenizerError),
    #[error(transparent)]
    Model(#[from] dgpo_models::ModelError),
}

/// A tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array<T> {
    pub shape: Vec<usize>,
    pub data: Vec<T>,
}

/// The tensors of one file.
pub(super) struct Tensors {
    entries: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    used: RefCell<BTreeSet<String>>,
}

impl Tensors {
    pub(super) fn open(path: &Path) -> Result<Self, FixtureError> {
        let bytes = fs::read(path)
            .map_err(|source| FixtureError::Read { path: path.to_owned(), source })?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| FixtureError::SafeTensors { path: path.to_owned(), source })?;
        let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Ok(Self {
            entries: file.tensors().into_iter().map(entry).collect(),
            used: RefCell::default(),
        })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Keys never read.
    pub(super) fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        self.entries.keys().filter(|key| !used.contains(*key)).cloned().collect()
    }

    fn entry(&self, key: &str) -> Result<&(Dtype, Vec<usize>, Vec<u8>), FixtureError> {
        self.used.borrow_mut().insert(key.to_owned());
        self.entries.get(key).ok_or_else(|| FixtureError::Missing(key.to_owned()))
    }

    /// A float tensor of any width, as f32.
    pub(super) fn floats(&self, key: &str) -> Result<Array<f32>, FixtureError> {
        let (dtype, shape, bytes) = self.entry(key)?;
        let data = match dtype {
            Dtype::F32 => words(bytes, f32::from_le_bytes),
            Dtype::F64 => words(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => words(bytes, |b| f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => words(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            _ => {
                return Err(FixtureError::Dtype {
                    key: key.to_owned(),
                    dtype: format!("{dtype:?}"),
                    expected: "a float",
                });
            }
        };
        Ok(Array { shape: shape.clone(), data })
    }

    /// An integer or boolean tensor of any width, as i64.
    pub(super) fn integers(&self, key: &str) -> Result<Array<i64>, FixtureError> {
        let (dtype, shape, bytes) = self.entry(key)?;
        let data = match dtype {
            Dtype::I64 => words(bytes, i64::from_le_bytes),
            Dtype::I32 => words(bytes, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| i64::from(b)).collect(),
            _ => {
                return Err(FixtureError::Dtype {
                    key: key.to_owned(),
                    dtype: format!("{dtype:?}"),
                    expected: "an integer",
                });
            }
        };
        Ok(Array { shape: shape.clone(), data })
    }

    /// As [`Tensors::floats`], of exactly `shape`.
    pub(super) fn floats_of(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, FixtureError> {
        let array = self.floats(key)?;
        check_shape(key, &array.shape, shape).map(|()| array.data)
    }

    /// As [`Tensors::integers`], of exactly `shape`.
    pub(super) fn integers_of(&self, key: &str, shape: &[usize]) -> Result<Vec<i64>, FixtureError> {
        let array = self.integers(key)?;
        check_shape(key, &array.shape, shape).map(|()| array.data)
    }
}

fn check_shape(key: &str, shape: &[usize], expected: &[usize]) -> Result<(), FixtureError> {
    if shape == expected {
        return Ok(());
    }
    Err(FixtureError::Shape {
        key: key.to_owned(),
        shape: shape.to_vec(),
        expected: format!("{expected:?}"),
    })
}

impl<T> Array<T> {
    /// The shape as `N` numbers.
    pub(super) fn dims<const N: usize>(&self, key: &str) -> Result<[usize; N], FixtureError> {
        let error = || FixtureError::Shape {
            key: key.to_owned(),
            shape: self.shape.clone(),
            expected: format!("{N} dimensions"),
        };
        self.shape.clone().try_into().map_err(|_| error())
    }
}

fn words<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&word| read(word)).collect()
}

/// IEEE half to single, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) =
        (u32::from(bits >> 15) << 31, u32::from(bits >> 10) & 31, u32::from(bits) & 1023);
    match exponent {
        // Zero and subnormals: fraction · 2^-24 is exact in f32.
        0 => f32::from_bits((fraction as f32 * 2f32.powi(-24)).to_bits() | sign),
        31 => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

/// Reads JSON as Python writes it: the literals NaN and Infinity, which JSON has not, are read as
/// null.
pub(super) fn read_json(path: &Path) -> Result<Value, FixtureError> {
    let bytes =
        fs::read(path).map_err(|source| FixtureError::Read { path: path.to_owned(), source })?;
    let parsed = serde_json::from_slice(&bytes).or_else(|error| {
        let Ok(text) = std::str::from_utf8(&bytes) else { return Err(error) };
        serde_json::from_str(&without_non_finite(text))
    });
    parsed.map_err(|source| FixtureError::Json { path: path.to_owned(), source })
}

/// Replaces NaN, Infinity and -Infinity outside of strings by null.
fn without_non_finite(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let (mut is_string, mut is_escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !is_string
            && let Some(tail) = ["NaN", "Infinity", "-Infinity"]
                .iter()
                .find_map(|literal| rest.strip_prefix(literal))
        {
            result.push_str("null");
            rest = tail;
            continue;
        }
        is_string ^= c == '"' && !is_escaped;
        is_escaped = is_string && c == '\\' && !is_escaped;
        result.push(c);
        rest = &rest[c.len_utf8()..];
    }
    result
}

/// Member `key` of a JSON object.
pub(super) fn member<'v>(value: &'v Value, key: &str) -> Result<&'v Value, FixtureError> {
    value.get(key).ok_or_else(|| FixtureError::Missing(key.to_owned()))
}

pub(super) fn number(value: &Value, key: &str) -> Result<f64, FixtureError> {
    let found = member(value, key)?;
    found.as_f64().ok_or_else(|| wrong(key, found, "a number"))
}

pub(super) fn count(value: &Value, key: &str) -> Result<usize, FixtureError> {
    let found = member(value, key)?;
    found.as_u64().map(|n| n as usize).ok_or_else(|| wrong(key, found, "a count"))
}

/// A list of whole numbers.
pub(super) fn integers(value: &Value, key: &str) -> Result<Vec<i64>, FixtureError> {
    list(value, key)?
        .iter()
        .map(|v| v.as_i64().ok_or_else(|| wrong(key, v, "a whole number")))
        .collect()
}

/// A string, or null for none.
pub(super) fn optional_text<'v>(
    value: &'v Value,
    key: &str,
) -> Result<Option<&'v str>, FixtureError> {
    let found = member(value, key)?;
    if found.is_null() { Ok(None) } else { text(value, key).map(Some) }
}

pub(super) fn flag(value: &Value, key: &str) -> Result<bool, FixtureError> {
    let found = member(value, key)?;
    found.as_bool().ok_or_else(|| wrong(key, found, "true or false"))
}

pub(super) fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str, FixtureError> {
    let found = member(value, key)?;
    found.as_str().ok_or_else(|| wrong(key, found, "a string"))
}

pub(super) fn list<'v>(value: &'v Value, key: &str) -> Result<&'v [Value], FixtureError> {
    let found = member(value, key)?;
    found.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, found, "a list"))
}

/// A list of numbers; null (the reference's NaN) becomes NaN.
pub(super) fn numbers(value: &Value, key: &str) -> Result<Vec<f64>, FixtureError> {
    let one = |v: &Value| {
        if v.is_null() { Ok(f64::NAN) } else { v.as_f64().ok_or_else(|| wrong(key, v, "a number")) }
    };
    list(value, key)?.iter().map(one).collect()
}

pub(super) fn strings(value: &Value, key: &str) -> Result<Vec<String>, FixtureError> {
    list(value, key)?
        .iter()
        .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong(key, v, "a string")))
        .collect()
}

pub(super) fn object<'v>(
    value: &'v Value,
    key: &str,
) -> Result<&'v serde_json::Map<String, Value>, FixtureError> {
    value.as_object().ok_or_else(|| wrong(key, value, "an object"))
}

fn wrong(key: &str, found: &Value, expected: &'static str) -> FixtureError {
    FixtureError::Value {
        key: key.to_owned(),
        found: found.to_string().chars().take(60).collect(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_nan_is_null_outside_of_strings() {
        let text = r#"{"a": NaN, "b": [-Infinity, 1], "NaN \" x": "Infinity"}"#;
        let value: Value = serde_json::from_str(&without_non_finite(text)).unwrap();
        assert_eq!(value, serde_json::json!({ "a": null, "b": [null, 1], "NaN \" x": "Infinity" }));
    }

    #[test]
    fn half_precision_is_exact_over_its_range() {
        // 1, -2, largest, smallest normal, smallest subnormal, -0, infinity.
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0x8000, -0.0),
            (0x7c00, f32::INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits).to_bits(), value.to_bits(), "{bits:#x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
