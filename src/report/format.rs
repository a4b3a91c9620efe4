//! Numbers, times and tables as people read them. Pure.

use std::time::Duration;

/// `512 B`, `1.5 KiB`, `16 MiB`, `1.2 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 1023.95 would be written as `1024.0`.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else if value >= 99.95 || (value * 10.0).round() % 10.0 == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `3,362`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 table`, `3,362 rows`: with the plural of `noun`.
pub fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// `3 ms`, `1.2 s`, `1 min 30 s`, `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    let ms = time.as_millis();
    let seconds = (time.as_secs_f64()).round() as u64;
    if ms < 1000 {
        format!("{ms} ms")
    } else if ms < 59_950 {
        format!("{:.1} s", time.as_secs_f64())
    } else if seconds < 3600 {
        two(seconds / 60, "min", seconds % 60, "s")
    } else {
        let minutes = (seconds + 30) / 60;
        two(minutes / 60, "h", minutes % 60, "min")
    }
}

/// An age in its largest unit: `40 s`, `5 min`, `3 h`, `12 days`.
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {small} {small_unit}")
    }
}

/// How a column of a [`table`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows under a header, columns two blanks apart, no blanks at the ends of lines.
pub fn table<const N: usize>(columns: [(&str, Align); N], rows: &[[String; N]]) -> String {
    ragged_table(columns, rows, usize::MAX)
}

/// The same, but a cell longer than `widest` makes its own line longer and not its column.
pub fn ragged_table<const N: usize>(
    columns: [(&str, Align); N],
    rows: &[[String; N]],
    widest: usize,
) -> String {
    let mut widths = columns.map(|(name, _)| name.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            let length = cell.chars().count();
            if length <= widest {
                *width = (*width).max(length);
            }
        }
    }
    let header = columns.map(|(name, _)| name.to_owned());
    let mut out = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(widths).zip(columns) {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if !line.is_empty() {
                line.push_str("  ");
            }
            match align {
                Align::Left => line.extend([cell.as_str(), &gap]),
                Align::Right => line.extend([gap.as_str(), cell]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Align, age, bytes, count, counted, duration, ragged_table, table};

    #[test]
    fn sizes_are_short() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (16 << 20, "16 MiB"),
            ((1 << 30) - 1, "1 GiB"),
            (1_610_612_736, "1.5 GiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (number, expected) in sizes {
            assert_eq!(bytes(number), expected);
        }
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([counted(1, "table"), counted(2000, "row")], ["1 table", "2,000 rows"]);
    }

    #[test]
    fn times_are_short() {
        let times = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1249, "1.2 s"),
            (59_949, "59.9 s"),
            (59_960, "1 min"),
            (90_400, "1 min 30 s"),
            (7_500_000, "2 h 5 min"),
        ];
        for (ms, expected) in times {
            assert_eq!(duration(Duration::from_millis(ms)), expected);
        }
        let ages = [(5, "5 s"), (300, "5 min"), (7200, "2 h"), (864_000, "10 days")];
        for (seconds, expected) in ages {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn one_long_cell_does_not_move_the_others() {
        let row = |key: &str, value: &str| [key, value, "default"].map(str::to_owned);
        let rows = [row("a", "short"), row("b", "longer than six")];
        let columns = [("key", Align::Left), ("value", Align::Left), ("from", Align::Left)];
        assert_eq!(
            ragged_table(columns, &rows, 6),
            "key  value  from\na    short  default\nb    longer than six  default\n"
        );
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            ["001".to_owned(), "init".to_owned(), "12".to_owned()],
            ["2.1".to_owned(), "add örders".to_owned(), "3,400".to_owned()],
        ];
        let columns =
            [("Version", Align::Left), ("Description", Align::Left), ("ms", Align::Right)];
        assert_eq!(
            table(columns, &rows),
            "Version  Description     ms\n001      init            12\n2.1      add örders   3,400\n"
        );
    }
}
