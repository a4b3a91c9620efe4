//! The one question a person may be asked: yes or no, on the terminal.

use std::io::BufRead;

use super::out::stderr;

/// Asks on standard error and reads one line of standard input; only `y` and `yes` agree.
pub fn ask(question: &str) -> bool {
    stderr(&format!("{question} [y/N] "));
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer) {
        Ok(_) => is_yes(&answer),
        Err(_) => false,
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_a_plain_yes_agrees() {
        assert!(is_yes("y\n") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("yep") && !is_yes("n"));
    }
}
