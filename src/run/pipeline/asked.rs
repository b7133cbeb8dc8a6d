//! Test questions that are asked twice: one that counts twice would pull the mean and narrow its
//! interval.
use dgpo_core::question::Question;
use std::collections::HashMap;

/// Two questions of one data set with the same id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("question {id:?} of data set {dataset:?} is asked twice, {}", twice(files))]
pub struct AskedTwice {
    pub id: String,
    pub dataset: String,
    /// Names of the files they are in.
    pub files: [String; 2],
}

/// The files of a question that stands twice, and what to do.
fn twice([first, second]: &[String; 2]) -> String {
    match first == second {
        true => format!(
            "both times in {first}; hint: give each question of a data set an id of its own"
        ),
        false => {
            format!(
                "by {first} and by {second}; hint: name every test file once, and give each \
                 question of a data set an id of its own"
            )
        }
    }
}

/// File that asks each question (data set, id).
#[derive(Debug, Default)]
pub(super) struct AskedBy(HashMap<(String, String), String>);

impl AskedBy {
    /// Notes the questions of a file.
    /// # Errors
    /// If one of them has been asked.
    pub(crate) fn once_each(
        &mut self,
        file: &str,
        questions: &[Question],
    ) -> Result<(), AskedTwice> {
        for Question { id, dataset, .. } in questions {
            let before = self.0.insert((dataset.clone(), id.clone()), file.to_owned());
            if let Some(first) = before {
                let files = [first, file.to_owned()];
                return Err(AskedTwice { id: id.clone(), dataset: dataset.clone(), files });
            }
        }
        Ok(())
    }
}
