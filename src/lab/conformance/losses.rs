//! Family `losses`: every distillation loss with its gradient, per-row quantities, real vocabulary
//! size, TAID's schedule.
use super::{
    Case, FixtureError, Formula, Tensors, Tolerance, cases_of,
    fixtures::{self, Array, list, member, number, numbers, object, read_json, text},
};
use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use dgpo_core::algo::{
    distill::{Divergence, KdWeights, TaidSchedule, kd_rows, row_divergence},
    masked_mean,
};
use dgpo_kernels::to_host;
use dgpo_models::{TrainBackend, heads::token_log_probs};
use serde_json::Value;
use std::path::Path;

const VALUE: Tolerance = Tolerance::abs(2e-6).or_rel(1e-5);
const GRADIENT: Tolerance = Tolerance::abs(2e-6).or_rel_of_max(2e-5);
const LARGE: Tolerance = Tolerance::rel(2e-5);
/// Of the largest recorded entry ...
const LARGE_GRADIENT: Tolerance = Tolerance::abs(0.0).or_rel_of_max(2e-5);
/// ... plus this share of the largest p_s / n of the recorded columns: an entry is p_s · (a
/// difference of terms of size 1) / n, so where the terms cancel (to 1e-3 in the public fixture)
/// what is left is their f32 rounding, 1.5e-6 of each.
const LARGE_TERMS: f64 = 5e-6;
const SCHEDULE: Tolerance = Tolerance::abs(1e-12);

/// Recorded beside each value, not compared: the reference's own f32 result and whether it was
/// finite.
const METADATA: [&str; 3] = ["value", "value_f32", "finite"];

/// Parses a loss name of the fixtures: `skew_forward_kl_0.1`, `gkd_jsd_beta0.5_T2.0`, `kd_ratio0.5`
/// ... `None` if it is not known.
pub(super) fn parse_loss(name: &str) -> Option<KdWeights> {
    let after =
        |prefix: &str| name.strip_prefix(prefix)?.parse::<f64>().ok().filter(|x| x.is_finite());
    let loss = |divergence, temperature| KdWeights {
        ce_weight: 0.0,
        kl_weight: 1.0,
        divergence,
        temperature,
    };
    let divergence = match name {
        "ce" => {
            return Some(KdWeights {
                ce_weight: 1.0,
                kl_weight: 0.0,
                ..loss(Divergence::ForwardKl, 1.0)
            });
        }
        "forward_kl" => Some(Divergence::ForwardKl),
        // -sum p_t ln p_s: the mixture in its cross-entropy is the student alone.
        "forward_kl_ce" => Some(Divergence::SkewForward { alpha: 0.0 }),
        "reverse_kl" => Some(Divergence::ReverseKl),
        "tv_distance" => Some(Divergence::TotalVariation),
        _ => None,
    }
    .or_else(|| after("skew_forward_kl_").map(|alpha| Divergence::SkewForward { alpha }))
    .or_else(|| after("skew_reverse_kl_").map(|alpha| Divergence::SkewReverse { alpha }))
    .or_else(|| {
        after("js_distance_").map(|lambda| Divergence::GeneralisedJsd { beta: 1.0 - lambda })
    })
    .or_else(|| after("symmetric_kl_").map(|lambda| Divergence::SymmetricKl { lambda }))
    .or_else(|| after("taid_t").map(|t| Divergence::Taid { t }));
    if let Some(divergence) = divergence {
        // At its ends the mixture is one of the models, and the distance from it 0.
        let is_nothing = after("js_distance_").is_some_and(|lambda| lambda <= 0.0 || lambda >= 1.0);
        let kl_weight = if is_nothing { 0.0 } else { 1.0 };
        return Some(KdWeights { kl_weight, ..loss(divergence, 1.0) });
    }
    if let Some(temperature) = after("hinton_kl_T") {
        let kl_weight = temperature * temperature;
        return Some(KdWeights { kl_weight, ..loss(Divergence::ForwardKl, temperature) });
    }
    if let Some(ratio) = after("kd_ratio") {
        return Some(KdWeights {
            ce_weight: 1.0 - ratio,
            kl_weight: ratio,
            ..loss(Divergence::SkewForward { alpha: 0.0 }, 1.0)
        });
    }
    let (beta, temperature) = name.strip_prefix("gkd_jsd_beta")?.split_once("_T")?;
    Some(loss(Divergence::GeneralisedJsd { beta: beta.parse().ok()? }, temperature.parse().ok()?))
}

pub(super) fn run<B: TrainBackend>(dir: &Path, device: &B::Device) -> Vec<Case> {
    cases_of(dir, |name, path, case| match name {
        "values.json" => check_cases_exist(&read_json(path)?, dir, case),
        "taid_schedule.json" => taid_schedules(&read_json(path)?, case),
        _ if name.starts_with("large_vocab") && name.ends_with(".json") => {
            large_vocab::<B>(&read_json(path)?, device, case)
        }
        _ => match name.strip_suffix(".safetensors") {
            Some(stem) => {
                let values = read_json(&dir.join("values.json"))?;
                one_case::<B>(&Tensors::open(path)?, member(&values, stem)?, device, case)
            }
            None => {
                case.fail_unknown([name.to_owned()]);
                Ok(())
            }
        },
    })
}

/// Every case with values must have its tensors; the values themselves are compared there.
fn check_cases_exist(values: &Value, dir: &Path, case: &mut Case) -> Result<(), FixtureError> {
    for name in object(values, "values.json")?.keys() {
        case.equal(
            &format!("{name}.safetensors exists"),
            &dir.join(format!("{name}.safetensors")).is_file(),
            &true,
        );
    }
    Ok(())
}

/// Logits, labels and mask of one fixture on the device.
struct LossRows<B: TrainBackend> {
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    /// [N] masked rows hold 0.
    labels: Tensor<B, 1, Int>,
    mask: Tensor<B, 1>,
    n_valid: usize,
}

impl<B: TrainBackend> LossRows<B> {
    fn new(
        student: Array<f32>,
        teacher: Array<f32>,
        labels: &[i64],
        device: &B::Device,
    ) -> Result<Self, FixtureError> {
        let [n_rows, vocab] = student.dims::<2>("student")?;
        let [teacher_rows, teacher_vocab] = teacher.dims::<2>("teacher")?;
        let is_label = |&label: &i64| label == -100 || (0..vocab as i64).contains(&label);
        if labels.len() != n_rows || teacher_rows != n_rows || !labels.iter().all(is_label) {
            let expected = format!(
                "one label below {vocab} (or -100) and one teacher row for each of {n_rows} rows"
            );
            return Err(FixtureError::Shape {
                key: "labels".into(),
                shape: vec![labels.len()],
                expected,
            });
        }
        let mask: Vec<f32> = labels.iter().map(|&label| f32::from(label >= 0)).collect();
        let ids: Vec<i64> = labels.iter().map(|&label| label.max(0)).collect();
        Ok(Self {
            student: Tensor::from_data(TensorData::new(student.data, [n_rows, vocab]), device),
            teacher: Tensor::from_data(
                TensorData::new(teacher.data, [n_rows, teacher_vocab]),
                device,
            ),
            labels: Tensor::from_data(TensorData::new(ids, [n_rows]), device),
            n_valid: mask.iter().filter(|&&m| m > 0.0).count(),
            mask: Tensor::from_data(TensorData::new(mask, [n_rows]), device),
        })
    }

    /// A loss and its gradient [N, V] with respect to the student's logits.
    fn loss(&self, weights: KdWeights) -> (f64, Vec<f32>) {
        let student = self.student.clone().require_grad();
        let teacher = Some(self.teacher.clone().into());
        let rows = kd_rows(student.clone().into(), teacher, self.labels.clone(), weights);
        let loss = masked_mean(rows.loss, self.mask.clone(), self.n_valid as f64);
        let value = to_host(loss.clone())[0];
        let mut grads = loss.backward();
        let grad = student.grad_remove(&mut grads).map(to_host);
        (f64::from(value), grad.unwrap_or_default())
    }
}

fn one_case<B: TrainBackend>(
    tensors: &Tensors,
    values: &Value,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let labels = tensors.integers("labels")?.data;
    let rows = LossRows::<B>::new(
        tensors.floats("student")?,
        tensors.floats("teacher")?,
        &labels,
        device,
    )?;
    let shape = rows.student.dims();
    for (name, expected) in object(values, "values.json")? {
        let Some(weights) = parse_loss(name) else {
            case.fail(name, "unknown loss");
            continue;
        };
        case.fail_unknown(
            object(expected, name)?.keys().filter(|key| !METADATA.contains(&key.as_str())).cloned(),
        );
        let (value, grad) = rows.loss(weights);
        // Only a loss recorded as not finite may lack numbers, and there a finite result is better
        // than the reference's.
        let is_finite =
            expected.get("finite").map_or(Ok(true), |_| fixtures::flag(expected, "finite"))?;
        let recorded = member(expected, "value")?;
        match recorded.as_f64() {
            None if !is_finite => {
                case.equal(&format!("{name} is finite"), &value.is_finite(), &true)
            }
            _ => case.number(name, value, recorded, VALUE),
        }
        let key = format!("grad.{name}");
        if tensors.has(&key) {
            let recorded = tensors.floats_of(&key, &shape)?;
            let has_number = |i: usize| is_finite || recorded[i].is_finite();
            if !is_finite {
                case.equal(&format!("{key} is finite"), &grad.iter().all(|x| x.is_finite()), &true);
            }
            if (0..recorded.len()).any(has_number) {
                case.close_where(&key, &grad, &recorded, has_number, GRADIENT);
            }
        }
    }
    per_row(tensors, &rows, case)?;
    case.fail_unknown(tensors.unused());
    Ok(())
}

fn per_row<B: TrainBackend>(
    tensors: &Tensors,
    rows: &LossRows<B>,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let n_rows = rows.student.dims()[0];
    let (student, teacher) = (rows.student.clone(), rows.teacher.clone());
    for key in
        tensors.keys().filter(|key| key.starts_with("row.")).map(str::to_owned).collect::<Vec<_>>()
    {
        let got = match key.as_str() {
            "row.kl_student_teacher" => {
                row_divergence(student.clone(), teacher.clone(), Divergence::ReverseKl, 1.0)
            }
            "row.kl_teacher_student" => {
                row_divergence(student.clone(), teacher.clone(), Divergence::ForwardKl, 1.0)
            }
            "row.label_logprob" => {
                token_log_probs(student.clone(), rows.labels.clone(), 1.0).log_probs
            }
            "row.student_entropy" => {
                token_log_probs(student.clone(), rows.labels.clone(), 1.0).entropy
            }
            "row.teacher_entropy" => {
                token_log_probs(teacher.clone(), rows.labels.clone(), 1.0).entropy
            }
            "row.student_logsumexp" => {
                // log softmax = logit - logsumexp, in any column; the largest logit's is the most
                // exact.
                let (max, column) = student.clone().max_dim_with_indices(1);
                (max - log_softmax(student.clone(), 1).gather(1, column)).squeeze_dim(1)
            }
            _ => continue,
        };
        case.close(&key, &to_host(got), &tensors.floats_of(&key, &[n_rows])?, VALUE);
    }
    Ok(())
}

/// Logits by formula at real vocabulary size.
fn large_vocab<B: TrainBackend>(
    json: &Value,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let (n_rows, vocab) = (fixtures::count(json, "rows")?, fixtures::count(json, "vocab")?);
    let k = number(json, "k")?;
    let labels = fixtures::integers(json, "labels")?;
    // A negative column becomes one far beyond the vocabulary.
    let cols: Vec<usize> =
        fixtures::integers(json, "cols")?.into_iter().map(|col| col as usize).collect();
    if let Some(&col) = cols.iter().find(|&&col| col >= vocab) {
        return Err(FixtureError::Value {
            key: "cols".into(),
            found: col.to_string(),
            expected: "columns of the vocabulary",
        });
    }
    let logits = |key: &str| -> Result<Array<f32>, FixtureError> {
        let formula = text(json, key)?;
        let parsed = Formula::parse(formula);
        let formula = parsed.map_err(|e| FixtureError::Value {
            key: key.into(),
            found: e.to_string(),
            expected: "a formula of i, j, k",
        })?;
        let value = |n: usize| formula.evaluate([(n / vocab) as f64, (n % vocab) as f64, k]) as f32;
        Ok(Array { shape: vec![n_rows, vocab], data: (0..n_rows * vocab).map(value).collect() })
    };
    let student = logits("student")?;
    let at_cols = |values: &[f32]| cols.iter().map(|&col| values[col]).collect::<Vec<f32>>();
    let floats = |value: &Value, key: &str| -> Result<Vec<f32>, FixtureError> {
        Ok(numbers(value, key)?.into_iter().map(|x| x as f32).collect())
    };
    case.close(
        "student_row0_at_cols",
        &at_cols(&student.data),
        &floats(json, "student_row0_at_cols")?,
        Tolerance::rel(1e-6),
    );
    let rows = LossRows::<B>::new(student, logits("teacher")?, &labels, device)?;
    let (max, column) = rows.student.clone().max_dim_with_indices(1);
    let log_sums = max - log_softmax(rows.student.clone(), 1).gather(1, column);
    case.close("student_logsumexp", &to_host(log_sums), &floats(json, "student_logsumexp")?, LARGE);
    let label_log_probs =
        to_host(token_log_probs(rows.student.clone(), rows.labels.clone(), 1.0).log_probs);
    case.close("label_logprob", &label_log_probs, &floats(json, "label_logprob")?, LARGE);
    let probs: Vec<f32> = to_host(log_softmax(rows.student.clone().narrow(0, 0, 1), 1).exp());
    let largest_term =
        f64::from(at_cols(&probs).into_iter().fold(0.0, f32::max)) / rows.n_valid.max(1) as f64;
    let gradient_tolerance = Tolerance { abs: LARGE_TERMS * largest_term, ..LARGE_GRADIENT };
    for (name, expected) in object(member(json, "losses")?, "losses")? {
        let Some(weights) = parse_loss(name) else {
            case.fail(name, "unknown loss");
            continue;
        };
        let (value, grad) = rows.loss(weights);
        member(expected, "value")?;
        let abs_sum: f64 = grad.iter().map(|&g| f64::from(g.abs())).sum();
        for key in object(expected, name)?.keys() {
            let label = format!("{name}.{key}");
            match key.as_str() {
                "value" => case.scalar(&label, value, number(expected, key)?, LARGE),
                "grad_abs_sum" => case.scalar(&label, abs_sum, number(expected, key)?, LARGE),
                "grad_row0_at_cols" => {
                    case.close(&label, &at_cols(&grad), &floats(expected, key)?, gradient_tolerance)
                }
                _ => case.fail_unknown([label]),
            }
        }
    }
    let known = [
        "rows",
        "vocab",
        "k",
        "labels",
        "cols",
        "student",
        "teacher",
        "note",
        "student_logsumexp",
        "student_row0_at_cols",
        "label_logprob",
        "losses",
    ];
    case.fail_unknown(
        object(json, "large_vocab")?.keys().filter(|key| !known.contains(&key.as_str())).cloned(),
    );
    Ok(())
}

fn taid_schedules(json: &Value, case: &mut Case) -> Result<(), FixtureError> {
    let runs =
        json.as_array().ok_or_else(|| FixtureError::Missing("a list of schedules".into()))?;
    for (i, run) in runs.iter().enumerate() {
        let name = format!("{i}:{}", text(run, "shape")?);
        let n_steps = fixtures::count(run, "num_train_steps")?;
        let hyper = member(run, "hyper")?;
        let mut schedule = TaidSchedule::new(
            number(hyper, "t_start")?,
            number(hyper, "t_end")?,
            number(hyper, "alpha")?,
            number(hyper, "beta")?,
        );
        let columns = fixtures::strings(run, "columns")?;
        let steps = list(run, "steps")?;
        // One column at a time is compared, so that a deviation is shown under its name.
        let (mut got, mut expected) =
            (vec![Vec::new(); columns.len()], vec![Vec::new(); columns.len()]);
        let loss_column = columns
            .iter()
            .position(|c| c == "loss_in")
            .ok_or_else(|| FixtureError::Missing("loss_in".into()))?;
        for (step, row) in steps.iter().enumerate() {
            if row.as_array().map(Vec::len) != Some(columns.len()) {
                return Err(FixtureError::Missing(format!(
                    "a row of {} columns at step {step} of {name}",
                    columns.len()
                )));
            }
            if let Some(c) = (0..columns.len()).find(|&c| !row[c].is_number() && !row[c].is_null())
            {
                return Err(FixtureError::Missing(format!(
                    "a number or null as {} of step {step} of {name}",
                    columns[c]
                )));
            }
            let cell = |c: usize| row.get(c).and_then(Value::as_f64);
            let loss = cell(loss_column)
                .ok_or_else(|| FixtureError::Missing(format!("loss_in of step {step}")))?;
            let increment = schedule.update(loss, step, n_steps);
            for (c, column) in columns.iter().enumerate() {
                let value = match column.as_str() {
                    "t_after" => Some(schedule.t),
                    "momentum_after" => Some(schedule.momentum),
                    "delta_t" => increment,
                    _ => cell(c),
                };
                push_both(value, cell(c), &mut got[c], &mut expected[c]);
            }
        }
        for (c, column) in columns.iter().enumerate().filter(|&(c, _)| c != loss_column) {
            let key = format!("{name}.{column}");
            if !steps.is_empty() && got[c].is_empty() {
                case.note(&key, "null at every step, here and in the fixture");
            } else if ["t_after", "momentum_after", "delta_t"].contains(&column.as_str()) {
                case.close_f64(&key, &got[c], &expected[c], SCHEDULE);
            } else {
                case.fail_unknown([key]);
            }
        }
    }
    Ok(())
}

/// Both absent is agreement; one absent cannot be close to the other.
fn push_both(
    got: Option<f64>,
    expected: Option<f64>,
    all_got: &mut Vec<f64>,
    all_expected: &mut Vec<f64>,
) {
    match (got, expected) {
        (None, None) => {}
        (got, expected) => {
            all_got.push(got.unwrap_or(f64::INFINITY));
            all_expected.push(expected.unwrap_or(f64::MAX));
        }
    }
}
