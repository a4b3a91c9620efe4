//! The outcome of one check, and how it reads in JUnit and Markdown.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;
use std::time::Duration;

/// One thing that was tried, and whether it holds.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub detail: String,
    pub elapsed_ms: u64,
}

/// A JUnit document with one suite, a case per check.
pub fn junit(suite: &str, checks: &[Check]) -> String {
    let mut report = Report::new(suite);
    let mut cases = TestSuite::new(suite);
    for check in checks {
        let mut status = if check.passed {
            TestCaseStatus::success()
        } else {
            TestCaseStatus::non_success(NonSuccessKind::Failure)
        };
        if !check.passed {
            status.set_message(check.detail.clone());
        }
        let mut case = TestCase::new(check.name.clone(), status);
        case.set_classname(suite);
        case.set_time(Duration::from_millis(check.elapsed_ms));
        if check.passed && !check.detail.is_empty() {
            case.set_system_out(check.detail.clone());
        }
        cases.add_test_case(case);
    }
    report.add_test_suite(cases);
    report.to_string().unwrap_or_default()
}

/// A Markdown document: a heading, one line of facts, a table of checks.
pub fn markdown(title: &str, facts: &str, checks: &[Check]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut text =
        format!("## {title}\n\n{facts}\n\n| | check | detail | ms |\n|---|---|---|--:|\n");
    for check in checks {
        let mark = if check.passed { "✅" } else { "❌" };
        text.push_str(&format!(
            "| {mark} | {} | {} | {} |\n",
            cell(&check.name),
            cell(&check.detail),
            check.elapsed_ms
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Check, junit, markdown};

    fn checks() -> Vec<Check> {
        let check = |name: &str, passed| Check {
            name: name.to_owned(),
            passed,
            detail: "a|b".to_owned(),
            elapsed_ms: 12,
        };
        vec![check("V1__x.sql", true), check("grants hold", false)]
    }

    #[test]
    fn a_failed_check_is_a_failure_in_junit() {
        let text = junit("seedbed ci", &checks());
        assert!(text.contains(r#"tests="2""#) && text.contains(r#"failures="1""#), "{text}");
        assert!(text.contains(r#"<failure message="a|b""#), "{text}");
    }

    #[test]
    fn a_bar_in_a_detail_does_not_break_the_table() {
        let text = markdown("ci", "facts", &checks());
        assert!(text.contains(r"| ❌ | grants hold | a\|b | 12 |"), "{text}");
    }
}
