//! Episodes on the disk: what a run records, and episodes that were made elsewhere.
//!
//! [`given`] turns the rows of a file of `data.trajectories` into episodes.
pub mod given;

use crate::data::{DataError, jsonl};
use dgpo_core::rollout::{Episode, EpisodeRecord, TokenRecord, record::TOKEN_RECORD_VERSION};
use serde::Deserialize;
use std::path::Path;

/// Writes episodes as JSON Lines, one episode a line (gzip where the name ends in `.gz`); the file
/// appears whole or not at all.
/// # Errors
/// If the file cannot be written.
pub fn write_episodes(path: &Path, episodes: &[Episode]) -> Result<(), DataError> {
    jsonl::write_rows(path, episodes)
}

/// Reads what [`write_episodes`] wrote.
/// # Errors
/// If the file cannot be read, or a line is not an episode (file, line and reason are named).
pub fn read_episodes(path: &Path) -> Result<Vec<Episode>, DataError> {
    let mut episodes = Vec::new();
    jsonl::for_each_row(path, |row| {
        let episode = Episode::deserialize(&row.object).map_err(|e| {
            format!(
                "not an episode record: {e}; hint: episodes are what `dgpo eval` and a run write"
            )
        })?;
        episode.check()?;
        episodes.push(episode);
        Ok(())
    })?;
    Ok(episodes)
}

/// Writes records as JSON Lines; the file appears whole or not at all.
/// # Errors
/// If the file cannot be written.
pub fn write_records(path: &Path, records: &[EpisodeRecord]) -> Result<(), DataError> {
    jsonl::write_rows(path, records)
}

/// Reads what [`write_records`] or [`write_episodes`] wrote.
/// # Errors
/// If the file cannot be read, or a line is not an episode or its numbers do not fit its tokens
/// (file, line and reason are named).
pub fn read_records(path: &Path) -> Result<Vec<EpisodeRecord>, DataError> {
    let mut records = Vec::new();
    jsonl::for_each_row(path, |row| {
        let episode =
            Episode::deserialize(&row.object).map_err(|e| format!("not an episode record: {e}"))?;
        episode.check()?;
        let tokens = row
            .get("tokens")
            .map(TokenRecord::deserialize)
            .transpose()
            .map_err(|e| format!("not a record of tokens: {e}"))?;
        let tokens = tokens.filter(|tokens| tokens.version == TOKEN_RECORD_VERSION);
        tokens.as_ref().map_or(Ok(()), |tokens| tokens.check(&episode))?;
        records.push(EpisodeRecord { episode, tokens });
        Ok(())
    })?;
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::{
        engine::StopReason,
        rollout::{RolloutBatch, Segment, Status, record::Measured},
        testing::drawn_episode,
    };

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("episodes.jsonl");
        let failed = Episode {
            status: Status::RetrieverFailed("503".to_owned()),
            prediction: None,
            reward: 0.0,
            ..drawn_episode()
        };
        let episodes = [drawn_episode(), failed];
        write_episodes(&path, &episodes).expect("written");
        assert_eq!(read_episodes(&path).expect("read"), episodes);
    }

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("episodes.jsonl");
        std::fs::write(&path, text).expect("written");
        read_episodes(&path).expect_err("a bad record").to_string()
    }

    #[test]
    fn a_broken_line_is_named_by_file_and_number() {
        let good = serde_json::to_string(&drawn_episode()).expect("serialises");
        let error = error_of(&format!("{good}\n\n{}\n", &good[..good.len() / 2]));
        assert!(error.contains("episodes.jsonl:3: "), "{error}");
    }

    #[test]
    fn a_line_that_is_something_else_is_named_by_file_and_number() {
        let error = error_of("{\"id\": \"q0\", \"question\": \"who?\"}\n");
        assert!(error.contains("episodes.jsonl:1: not an episode record"), "{error}");
    }

    #[test]
    fn a_record_whose_log_probs_do_not_match_its_ids_is_refused() {
        let mut episode = drawn_episode();
        episode.segments[1] =
            Segment::Agent { ids: vec![5, 6], sample_log_probs: vec![-1.0], stop: StopReason::Eos };
        let error = error_of(&serde_json::to_string(&episode).expect("serialises"));
        assert!(error.contains("segment 1 has 2 ids but 1 sample_log_probs"), "{error}");
    }

    #[test]
    fn records_read_back_as_they_were_written_and_as_plain_episodes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rl-step-000001.jsonl");
        let mut batch = RolloutBatch::new(&[&drawn_episode()]);
        batch.old_log_probs = vec![-1.0; 15];
        batch.old_log_probs[4] = f32::NAN;
        batch.old_log_probs[5] = -0.123_456;
        (batch.ref_log_probs, batch.values) = (vec![-2.0; 15], vec![0.5; 15]);
        let all = Measured { has_ref_log_probs: true, has_kl: true, has_values: true };
        let tokens = TokenRecord::of_row(&batch, 0, &[0.1; 15], &[0.2; 15], all);
        assert_eq!(tokens.old_log_probs.as_ref().expect("recorded")[..2], [None, Some(-0.12346)]);
        let failed =
            Episode { status: Status::RetrieverFailed("503".to_owned()), ..drawn_episode() };
        let records =
            EpisodeRecord::beside(vec![failed.clone(), drawn_episode()], vec![tokens.clone()]);
        assert_eq!((records[0].tokens.as_ref(), records[1].tokens.as_ref()), (None, Some(&tokens)));
        write_records(&path, &records).expect("written");
        assert_eq!(read_records(&path).expect("read"), records);
        assert_eq!(read_episodes(&path).expect("read"), [failed, drawn_episode()]);
    }

    #[test]
    fn a_file_without_numbers_is_read() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("old.jsonl");
        write_episodes(&path, &[drawn_episode()]).expect("written");
        assert_eq!(
            read_records(&path).expect("read"),
            [EpisodeRecord { episode: drawn_episode(), tokens: None }]
        );
    }

    fn read_with_tokens(tokens: serde_json::Value) -> Result<Vec<EpisodeRecord>, String> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("episodes.jsonl");
        let mut line = serde_json::to_value(drawn_episode()).expect("serialises");
        line["tokens"] = tokens;
        std::fs::write(&path, line.to_string()).expect("written");
        read_records(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_that_do_not_fit_the_tokens_are_refused_with_file_and_line() {
        let error = read_with_tokens(serde_json::json!({"version": 1, "values": [0.5, 0.5]}))
            .expect_err("11 tokens");
        assert!(
            error.contains("episodes.jsonl:1: ")
                && error.contains("tokens.values has 2 numbers for 11 tokens"),
            "{error}"
        );
    }

    #[test]
    fn numbers_of_another_version_are_left_unread() {
        let records = read_with_tokens(serde_json::json!({"version": 2, "values": [0.5]}))
            .expect("an episode");
        assert_eq!(records[0].tokens, None);
    }
}
