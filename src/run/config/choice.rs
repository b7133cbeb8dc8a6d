//! Settings that are one of a few names, as recipes and flags write them.
use burn::tensor::DType;
use dgpo_models::suggest::did_you_mean;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An enum with its names: in TOML and JSON, on the command line and in messages.
macro_rules! choice {
    ($(#[$doc:meta])* enum $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$of])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// All of them, in the order in which they are offered.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            /// # Errors
            /// If it is none of the names: which one may have been meant, or all of them.
            fn from_str(text: &str) -> Result<Self, String> {
                let names = Self::ALL.iter().map(|choice| choice.as_str());
                let found = Self::ALL.iter().find(|choice| choice.as_str() == text);
                found.copied().ok_or_else(|| match did_you_mean(text, names.clone()) {
                    Some(name) => format!("did you mean {name}?"),
                    None => format!("one of {}", names.collect::<Vec<_>>().join(", ")),
                })
            }
        }
    };
}

choice! {
    /// The type in which a model is computed.
    enum FloatType {
        /// 4 bytes, 24 bits of precision.
        F32 = "f32",
        /// 2 bytes with the range of f32, 8 bits of precision.
        Bf16 = "bf16",
        /// 2 bytes up to 65,504, 11 bits of precision.
        F16 = "f16",
    }
}

choice! {
    /// The search engine of a run.
    enum RetrieverKind {
        /// Encoder and vector search.
        Dense = "dense",
        /// Words.
        Bm25 = "bm25",
        /// A `/retrieve` server.
        Remote = "remote",
    }
}

choice! {
    /// Search of vectors.
    enum Search {
        /// Exact below [`Search::EXACT_BELOW`] passages, HNSW from there.
        Auto = "auto",
        /// Every vector is compared.
        Exact = "exact",
        /// Through a graph.
        Hnsw = "hnsw",
    }
}

impl FloatType {
    /// burn's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Bytes of one number.
    pub fn n_bytes(self) -> usize {
        self.dtype().size()
    }
}

impl Search {
    /// Below this many passages a batch of queries is answered exactly no slower than through a
    /// graph of good recall.
    pub const EXACT_BELOW: usize = 50_000;

    /// True if `n` passages get a graph.
    pub fn uses_graph(self, n: usize) -> bool {
        self == Self::Hnsw || (self == Self::Auto && n >= Self::EXACT_BELOW)
    }
}
