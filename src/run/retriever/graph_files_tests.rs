use super::*;
use crate::retriever::{
    exact::tests::unit_vectors,
    hnsw::{HnswIndex, HnswParams, Insertion},
    vectors::Vectors,
};
use dgpo_core::rng::{Key, Purpose};
use std::{ops::ControlFlow, sync::Arc};

const N: usize = 60;
const DIM: usize = 8;
const PARAMS: HnswParams = HnswParams { m: 8, ef_construction: 40, ef_search: 40 };

/// A graph on disk, and the vectors it is over.
struct Saved {
    folder: tempfile::TempDir,
    vectors: Arc<Vectors>,
    /// Links and row numbers.
    bytes: [Vec<u8>; 2],
}

impl Saved {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let vectors = Arc::new(Vectors::from_rows(unit_vectors(N, DIM, 1), DIM));
        let graph = HnswIndex::build(vectors.clone(), PARAMS, Insertion::Serial, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .expect("built");
        graph.save(folder.path(), "links").expect("saved");
        let bytes =
            file_paths(folder.path(), "links").map(|path| std::fs::read(path).expect("written"));
        Self { folder, vectors, bytes }
    }

    /// Opens the graph with one file replaced, and with the checksum of what replaces it: only its
    /// content can give it away.
    fn open_with(&self, part: usize, content: &[u8]) -> Result<HnswIndex, RetrieverError> {
        let paths = file_paths(self.folder.path(), "links");
        for (path, bytes) in paths.iter().zip(&self.bytes) {
            std::fs::write(path, bytes).expect("written");
        }
        std::fs::write(&paths[part], content).expect("written");
        let files = GraphFiles::of(self.folder.path(), "links").expect("readable");
        HnswIndex::load(self.folder.path(), &files, self.vectors.clone(), PARAMS)
    }

    /// The same with some bytes replaced.
    fn open_patched(
        &self,
        part: usize,
        at: usize,
        patch: &[u8],
    ) -> Result<HnswIndex, RetrieverError> {
        let mut content = self.bytes[part].clone();
        content[at..at + patch.len()].copy_from_slice(patch);
        self.open_with(part, &content)
    }
}

#[test]
fn what_a_graph_file_says_is_checked_whatever_its_checksum() {
    let saved = Saved::new();
    // Where the layers begin: behind the description, whose only part of another length is the
    // distance's name.
    let layers = 58 + HnswIndex::expected(N, PARAMS).distance.len();
    let end = saved.bytes[0].len();
    let n = N as u64;
    let of_links: [(usize, &[u8], &str); 14] = [
        (0, &[0], "something else where the head should begin"),
        (5, &[9], "the links of a point: 9 instead of 8"),
        (15, &41u64.to_ne_bytes(), "ef_construction: 41 instead of 40"),
        (23, &(n + 1).to_ne_bytes(), "the points: 61 instead of 60"),
        (31, &2u64.to_ne_bytes(), "the numbers of a point: 2 instead of 1"),
        (47, b"D", "the distance is not"),
        (layers, &[17], "17 layers, where 16 are possible"),
        (layers + 5, &(n + 1).to_ne_bytes(), "layer 0 has 61 points, where 60 are left"),
        (layers + 13, &[0], "something else where a point should begin"),
        (layers + 17, &n.to_ne_bytes(), "row number 60, where there are 60 vectors"),
        (layers + 26, &1i32.to_ne_bytes(), "does not lie where it says"),
        (layers + 38, &n.to_ne_bytes(), "row number 60, where there are 60 vectors"),
        (layers + 51, &(-0.5f32).to_ne_bytes(), "has a link of length -0.5"),
        (end - 4, &60i32.to_ne_bytes(), "a link to point 60 of layer"),
    ];
    let of_rows: [(usize, &[u8], &str); 4] = [
        (4, &2u64.to_ne_bytes(), "the numbers of a point: 2 instead of 1"),
        (16, &n.to_ne_bytes(), "a point: 60 instead of"),
        (24, &8u64.to_ne_bytes(), "the bytes of a point: 8 instead of 4"),
        (32, &60u32.to_ne_bytes(), "the row number of a point: 60 instead of"),
    ];
    for (part, cases) in [(0, &of_links[..]), (1, &of_rows[..])] {
        let name = ["links.hnsw.graph", "links.hnsw.data"][part];
        for (at, patch, expected) in cases {
            let message = saved.open_patched(part, *at, patch).err().expect(expected).to_string();
            assert!(
                message.contains(expected) && message.contains(name) && message.contains("hint: "),
                "{at}: {message}"
            );
        }
        let (content, more) = (&saved.bytes[part], [&saved.bytes[part][..], &[0]].concat());
        for (content, expected) in [
            (&content[..content.len() - 1], "it ends where"),
            (&more[..], "it goes on where it should end"),
        ] {
            let message = saved.open_with(part, content).err().expect(expected).to_string();
            assert!(message.contains(expected) && message.contains(name), "{message}");
        }
        saved.open_with(part, content).map(|_| ()).expect("whole again");
    }
}

#[test]
fn a_graph_file_with_changed_bytes_is_refused_or_searched() {
    let saved = Saved::new();
    let queries = unit_vectors(3, DIM, 2);
    let key = Key::new(0, Purpose::Index);
    let mut n_refused = 0;
    for case in 0..200 {
        let (key, part) = (key.fold(case), case as usize % 2);
        let mut content = saved.bytes[part].clone();
        for change in 0..1 + key.below(0, 3) as u64 {
            // The head and what follows it decide most, and are a small part of the file.
            let reach = if key.below(4 * change + 1, 2) == 0 {
                content.len().min(200)
            } else {
                content.len()
            };
            content[key.below(4 * change + 2, reach)] = key.below(4 * change + 3, 256) as u8;
        }
        match saved.open_with(part, &content) {
            Err(error) => {
                n_refused += 1;
                assert!(
                    matches!(error, RetrieverError::Damaged { .. })
                        && !error.to_string().contains("hnsw_rs cannot read it"),
                    "case {case}: {error}"
                );
            }
            Ok(graph) => {
                let found = graph.search(&queries, 3);
                assert!(
                    found.iter().all(
                        |list| list.len() == 3 && list.iter().all(|neighbour| neighbour.id < N)
                    ),
                    "case {case}"
                );
            }
        }
    }
    // A changed length of a link is the only change that can be anything but damage; four of
    // seventeen bytes of a link are its length.
    assert!(n_refused > 100, "{n_refused} of 200 were refused");
}
