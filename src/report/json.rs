//! The one JSON document that `--json` puts on standard output.
//!
//! `{"format": 1, …result}` or `{"format": 1, "error": {kind, message, causes, hints}}`; a check that
//! failed has both.

use serde::Serialize;
use serde_json::{Map, Value};

use super::failure::Failure;

/// Version of the documents' shape: fields may be added under one number, never changed.
pub const FORMAT: u64 = 1;

/// The document, with a line break at the end. A `result` that is no object stands under `result`.
pub fn document<R: Serialize>(result: Option<&R>, failure: Option<&Failure>) -> String {
    let mut document = Map::new();
    document.insert("format".to_owned(), Value::from(FORMAT));
    match result.map(serde_json::to_value) {
        Some(Ok(Value::Object(fields))) => document.extend(fields),
        Some(Ok(Value::Null)) | None => {}
        Some(Ok(other)) => {
            document.insert("result".to_owned(), other);
        }
        // Only a map whose keys are no strings does this.
        Some(Err(error)) => {
            document.insert("result".to_owned(), Value::from(error.to_string()));
        }
    }
    if let Some(failure) = failure {
        let failure = serde_json::to_value(failure);
        // Texts and numbers in named fields: this cannot fail.
        document.insert("error".to_owned(), failure.unwrap_or_default());
    }
    format!("{:#}\n", Value::Object(document))
}

#[cfg(test)]
mod tests {
    use super::document;
    use crate::report::failure::Failure;

    #[test]
    fn documents_have_a_format_and_a_result_or_an_error() {
        let parse = |text: &str| -> serde_json::Value {
            serde_json::from_str(text).expect("what we wrote is JSON")
        };
        let result = serde_json::json!({ "applied": 2 });
        assert_eq!(document(Some(&result), None), "{\n  \"format\": 1,\n  \"applied\": 2\n}\n");
        let list = parse(&document(Some(&vec![1, 2]), None));
        assert_eq!(list, serde_json::json!({ "format": 1, "result": [1, 2] }));
        let failure = Failure {
            kind: "refused",
            message: "no".to_owned(),
            causes: vec![],
            hints: vec!["`--yes`".to_owned()],
            flyway: None,
        };
        let both = parse(&document(Some(&result), Some(&failure)));
        let error = serde_json::json!(
            { "kind": "refused", "message": "no", "causes": [], "hints": ["`--yes`"] }
        );
        assert_eq!(both, serde_json::json!({ "format": 1, "applied": 2, "error": error }));
        let only = parse(&document(None::<&()>, Some(&failure)));
        assert_eq!(only, serde_json::json!({ "format": 1, "error": error }));
    }
}
