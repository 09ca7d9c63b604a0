//! Medians and the lines that are printed.

/// Which side of its target a figure should be on.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// Measured to compare with.
    None,
}

impl Target {
    /// The target beside a figure, and whether the figure reaches it.
    pub fn judge(self, figure: f64) -> String {
        // As it is printed: 48.001 bytes are 48.00.
        let figure = (figure * 100.0).round() / 100.0;
        let (sign, goal, reached) = match self {
            Target::AtLeast(goal) => (">=", goal, figure >= goal),
            Target::AtMost(goal) => ("<=", goal, figure <= goal),
            Target::None => return String::new(),
        };
        let verdict = if reached { "reached" } else { "MISSED" };
        format!("{sign} {goal:<7} {verdict}")
    }
}

/// The middle of the figures of all rounds.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The median, and from where to where the figures reach.
pub fn spread(figures: &[f64]) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2}..{most:.2})", median(figures))
}

/// The head of a part.
pub fn title(text: &str) {
    println!("\n{text}");
}

/// A size in the words of the tables.
pub fn size_name(bytes: usize) -> String {
    match bytes {
        1024.. => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} B"),
    }
}
