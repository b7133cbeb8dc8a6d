//! metrics.jsonl -> TensorBoard event files, `tb/PHASE/events.out.tfevents.0.dgpo`; look at them
//! with `tensorboard --logdir runs/NAME/tb`.
//!
//! An event file is a sequence of TFRecords, and a record is a protobuf message between checksums
//! (CRC-32C, rotated and shifted so that a checksum of data that holds checksums stays a good one):
//!
//! ```text
//! length u64 | masked crc of those 8 bytes u32 | message | masked crc of the message u32        little endian
//! Event   { 1: wall_time double, 2: step int64, 3: file_version string, 5: Summary }
//! Summary { 1: Value { 1: tag string, 2: simple_value float } ... }
//! ```
//! That is all there is to scalars, so it is written here: the crates for it bring protobuf
//! compilers or image codecs, and none has been kept up. A phase is a TensorBoard run of its own,
//! because its steps count from 1. `wall_time` is when the run was made, as its provenance has it,
//! and the seconds of work since then: metrics carry no dates, pauses between two processes are
//! left out, and the same run gives the same files.
//!
//! # Source
//! tensorflow/tensorflow:tensorflow/core/util/event.proto, framework/summary.proto,
//! lib/io/record_writer.cc
use super::{ReportError, io_error};
use crate::folder::run_dir::{PROVENANCE_FILE, RunDir};
use dgpo_core::trainer::metrics::STEP_SECONDS;
use dgpo_models::files::write_file;
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Folder of the event files inside a run directory.
pub const TENSORBOARD_DIR: &str = "tb";
/// TensorBoard looks for `tfevents` in the name; what follows is a time and a host elsewhere.
const EVENTS_FILE: &str = "events.out.tfevents.0.dgpo";
/// The first record of every file.
const FILE_VERSION: &str = "brain.Event:2";

/// Field numbers and wire types of the messages above, as protobuf packs them: number << 3 | type.
const EVENT_WALL_TIME: u8 = (1 << 3) | 1;
const EVENT_STEP: u8 = 2 << 3;
const EVENT_FILE_VERSION: u8 = (3 << 3) | 2;
const EVENT_SUMMARY: u8 = (5 << 3) | 2;
const SUMMARY_VALUE: u8 = (1 << 3) | 2;
const VALUE_TAG: u8 = (1 << 3) | 2;
const VALUE_SIMPLE: u8 = (2 << 3) | 5;

/// CRC-32C (Castagnoli), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const MASK_DELTA: u32 = 0xa282_ead8;

/// Writes the event files of every phase and returns their folder.
/// # Errors
/// If the disk fails.
pub fn write(run: &RunDir, lines: &[Map<String, Value>]) -> Result<PathBuf, ReportError> {
    let folder = run.path().join(TENSORBOARD_DIR);
    let phase_of = |line: &Map<String, Value>| {
        line.get("phase").and_then(Value::as_str).unwrap_or("run").to_owned()
    };
    let mut phases: Vec<String> = lines.iter().map(phase_of).collect();
    phases.sort();
    phases.dedup();
    let lines = timed(lines, started_unix_s(run));
    fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    for phase in phases {
        // A file changed by hand may call its phase anything, also the name of a folder elsewhere.
        let Some(name) = Path::new(&phase).file_name().filter(|name| *name == phase.as_str())
        else {
            continue;
        };
        let folder = folder.join(name);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let path = folder.join(EVENTS_FILE);
        write_file(&path, events(lines.iter().filter(|(_, line)| phase_of(line) == phase)))
            .map_err(io_error("write", &path))?;
    }
    Ok(folder)
}

/// When the run was made, in seconds since 1970. Provenance from before it was recorded there is as
/// old as its file.
fn started_unix_s(run: &RunDir) -> f64 {
    let recorded =
        run.provenance().ok().and_then(|provenance| provenance.get("started_unix_s")?.as_f64());
    let written = || {
        fs::metadata(run.path().join(PROVENANCE_FILE))
            .ok()?
            .modified()
            .ok()?
            .duration_since(UNIX_EPOCH)
            .ok()
    };
    recorded.or_else(|| written().map(|since| since.as_secs_f64())).unwrap_or_default()
}

/// Metrics lines with the time at which each was written, without pauses.
fn timed(lines: &[Map<String, Value>], start_unix_s: f64) -> Vec<(f64, &Map<String, Value>)> {
    let mut now = start_unix_s;
    let with_time = |line| {
        now += Map::get(line, STEP_SECONDS).and_then(Value::as_f64).unwrap_or_default();
        (now, line)
    };
    lines.iter().map(with_time).collect()
}

/// The bytes of one phase's file: an event a metrics line.
fn events<'l>(lines: impl Iterator<Item = &'l (f64, &'l Map<String, Value>)>) -> Vec<u8> {
    let mut file = record(&version());
    for (time, line) in lines {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or_default();
        let scalars = line
            .iter()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)));
        file.extend(record(&event(*time, step, scalars)));
    }
    file
}

/// The event that says how to read the others.
fn version() -> Vec<u8> {
    let mut event = Vec::new();
    put_bytes(EVENT_FILE_VERSION, FILE_VERSION.as_bytes(), &mut event);
    event
}

fn event<'m>(
    wall_time_s: f64,
    step: u64,
    scalars: impl Iterator<Item = (&'m str, f64)>,
) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in scalars {
        let mut scalar = Vec::new();
        put_bytes(VALUE_TAG, name.as_bytes(), &mut scalar);
        scalar.push(VALUE_SIMPLE);
        scalar.extend((value as f32).to_le_bytes());
        put_bytes(SUMMARY_VALUE, &scalar, &mut summary);
    }
    let mut event = vec![EVENT_WALL_TIME];
    event.extend(wall_time_s.to_le_bytes());
    event.push(EVENT_STEP);
    put_varint(step, &mut event);
    put_bytes(EVENT_SUMMARY, &summary, &mut event);
    event
}

/// A field of text, bytes or an inner message.
fn put_bytes(key: u8, bytes: &[u8], message: &mut Vec<u8>) {
    message.push(key);
    put_varint(bytes.len() as u64, message);
    message.extend(bytes);
}

/// Seven bits a byte, lowest first; the top bit says that more follow.
fn put_varint(mut n: u64, message: &mut Vec<u8>) {
    while n >= 0x80 {
        message.push((n as u8) | 0x80);
        n >>= 7;
    }
    message.push(n as u8);
}

/// A message as a TFRecord.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA).to_le_bytes()
}

/// Bit by bit: a run's metrics are a few megabytes at most.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4, and the check value of CRC-32C.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_file_is_byte_for_byte_that_of_tensorboard() {
        // Written by tensorboard 2.21.0: RecordWriter over Event(file_version="brain.Event:2") and
        // Event(wall_time=1.5, step=300, summary=Summary(value=[Value(tag="kl/mean",
        // simple_value=0.25)])).
        let expected = "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc9851291e00000000000000d9dc123209000000000000f83f10ac022a100a0e0a076b6c2f6d65616e150000803e0a87c846";
        let written =
            [record(&version()), record(&event(1.5, 300, [("kl/mean", 0.25)].into_iter()))]
                .concat();
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn time_is_the_start_and_the_work_since_over_all_phases_and_text_is_no_scalar() {
        let root = tempfile::tempdir().expect("temporary folder");
        let provenance = json!({"started_unix_s": 1_700_000_000_u64});
        let run = RunDir::create(root.path(), "a", &crate::config::Recipe::default(), &provenance)
            .expect("a run");
        let lines = [("kd", 1), ("rl", 1), ("rl", 2)].map(|(phase, step)| {
            let line = json!({"phase": phase, "step": step, STEP_SECONDS: 0.5, "a": null});
            line.as_object().expect("an object").clone()
        });
        let folder = write(&run, &lines).expect("written");
        let expected = |times: &[(f64, u64)]| {
            let events = times
                .iter()
                .map(|&(time, step)| record(&event(time, step, [(STEP_SECONDS, 0.5)].into_iter())));
            [record(&version()), events.collect::<Vec<_>>().concat()].concat()
        };
        let written = |phase: &str| fs::read(folder.join(phase).join(EVENTS_FILE)).expect("read");
        assert_eq!(written("kd"), expected(&[(1_700_000_000.5, 1)]));
        assert_eq!(written("rl"), expected(&[(1_700_000_001.0, 1), (1_700_000_001.5, 2)]));
    }

    #[test]
    fn a_run_whose_provenance_has_no_time_is_as_old_as_that_file() {
        let root = tempfile::tempdir().expect("temporary folder");
        let run = RunDir::create(root.path(), "a", &crate::config::Recipe::default(), &json!({}))
            .expect("a run");
        let then = UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        let file =
            fs::File::options().write(true).open(run.path().join(PROVENANCE_FILE)).expect("open");
        file.set_modified(then).expect("dated");
        assert_eq!(started_unix_s(&run), 1.6e9);
    }

    #[test]
    fn a_phase_cannot_name_a_folder_elsewhere() {
        let root = tempfile::tempdir().expect("temporary folder");
        let run = RunDir::create(root.path(), "a", &crate::config::Recipe::default(), &json!({}))
            .expect("a run");
        let lines = [
            line(json!({"phase": "../outside", "step": 1})),
            line(json!({"phase": "rl", "step": 1, "a": 1.0})),
        ];
        let folder = write(&run, &lines).expect("written");
        assert!(folder.join("rl").join(EVENTS_FILE).is_file());
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 1);
        assert!(!run.path().join("outside").exists());
    }
}
