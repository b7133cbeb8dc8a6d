//! Passages with equal vectors, and what they do to recall.
//!
//! Passages of the same text (or of the same first `max_tokens` tokens) have the same vector, and
//! no search can tell them apart. Exact search lists them by row number, lowest first (FAISS:
//! highest first), so of a group of `g` only the first `k` can be among the `k` found, and the
//! others never are, whatever is asked. A search through the graph orders the candidates that the
//! graph brings in the same way, eight more than are asked for: which of a larger group are among
//! them depends on the graph. Where gold passages are counted by their ids, that is lost recall;
//! where the answer is looked for in the text, it is not. Groups larger than the links of a point
//! cut a graph into islands besides.
//!
//! Equal means equal bit for bit. Cost: one pass over the vectors and 16 bytes a passage.
use super::vectors::Vectors;
use rayon::prelude::*;
use serde::Serialize;
use std::hash::{DefaultHasher, Hasher};

/// Numbers of the passages that share a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EqualVectors {
    /// Passages whose vector is also that of another passage.
    pub n_passages: usize,
    /// Vectors they share.
    pub n_groups: usize,
    /// Passages of the largest group.
    pub largest: usize,
    /// Passages that three results of exact search can never hold, because three others of their
    /// group come first.
    pub never_among_3: usize,
    /// The same for ten results.
    pub never_among_10: usize,
}

/// Looks at every row.
pub fn equal_vectors(vectors: &Vectors) -> EqualVectors {
    let hashed = |row: usize| {
        let mut hasher = DefaultHasher::new();
        hasher.write(row_bytes(vectors, row));
        (hasher.finish(), row)
    };
    let mut rows: Vec<(u64, usize)> = (0..vectors.len()).into_par_iter().map(hashed).collect();
    // Rows are compared only where their hashes are equal.
    rows.par_sort_unstable_by(|a, b| {
        a.0.cmp(&b.0).then_with(|| row_bytes(vectors, a.1).cmp(row_bytes(vectors, b.1)))
    });
    let mut found = EqualVectors::default();
    let is_same = |a: &(u64, usize), b: &(u64, usize)| {
        a.0 == b.0 && row_bytes(vectors, a.1) == row_bytes(vectors, b.1)
    };
    for group in rows.chunk_by(is_same).map(<[_]>::len).filter(|&size| size > 1) {
        found.n_passages += group;
        found.n_groups += 1;
        found.largest = found.largest.max(group);
        found.never_among_3 += group.saturating_sub(3);
        found.never_among_10 += group.saturating_sub(10);
    }
    found
}

fn row_bytes(vectors: &Vectors, row: usize) -> &[u8] {
    bytemuck::cast_slice(vectors.row(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retriever::{
        exact::{Metric, Neighbour, tests::unit_vectors, top_k},
        measure::{recall, recall_by_id},
    };

    #[test]
    fn groups_of_equal_vectors_are_counted_with_what_can_never_be_found() {
        let of = |rows: &[f32]| equal_vectors(&Vectors::from_rows(rows.to_vec(), 2));
        assert_eq!(of(&[1.0, 0.0, 0.0, 1.0]), EqualVectors::default());
        // Rows 0, 2, 3, 5 and 6 are one vector, rows 1 and 4 another, row 7 is alone.
        let rows = [
            [0.6, 0.8],
            [1.0, 0.0],
            [0.6, 0.8],
            [0.6, 0.8],
            [1.0, 0.0],
            [0.6, 0.8],
            [0.6, 0.8],
            [0.8, 0.6],
        ]
        .concat();
        let expected = EqualVectors {
            n_passages: 7,
            n_groups: 2,
            largest: 5,
            never_among_3: 2,
            never_among_10: 0,
        };
        assert_eq!(of(&rows), expected);
    }

    #[test]
    fn of_equal_vectors_the_lowest_ids_are_found_and_the_others_never() {
        let dim = 16;
        let mut rows = unit_vectors(40, dim, 1);
        let copied = rows[..dim].to_vec();
        for row in [7, 19, 21, 33] {
            rows[row * dim..][..dim].copy_from_slice(&copied);
        }
        let found = top_k(&rows, &copied, dim, 3, Metric::InnerProduct);
        assert_eq!(found[0].iter().map(|neighbour| neighbour.id).collect::<Vec<_>>(), [0, 7, 19]);
        let equal = equal_vectors(&Vectors::from_rows(rows, dim));
        assert_eq!((equal.n_passages, equal.never_among_3), (5, 2));
    }

    #[test]
    fn recall_by_id_counts_another_passage_of_the_same_vector_as_missed() {
        let list = |ids: &[usize]| {
            vec![ids.iter().map(|&id| Neighbour { id, score: 0.5 }).collect::<Vec<_>>()]
        };
        let (exact, found) = (list(&[4, 5, 6]), list(&[6, 4, 9]));
        assert_eq!(recall(&found, &exact, 3), 1.0);
        assert_eq!(recall_by_id(&found, &exact, 3), 2.0 / 3.0);
        assert_eq!(recall_by_id(&found, &exact, 1), 0.0);
    }
}
