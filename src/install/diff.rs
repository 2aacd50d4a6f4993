//! What changes in a text, as lines with `-` and `+`.

/// The difference of two texts with three lines around it, in the form of `diff -u`, `name` above.
/// Nothing where they are the same. One hunk: what isorun changes stands together.
pub fn difference(name: &str, before: Option<&str>, after: Option<&str>) -> String {
    if before == after {
        return String::new();
    }
    let lines = |text: Option<&str>| -> Vec<String> {
        text.unwrap_or_default()
            .split_inclusive('\n')
            .map(|line| match line.strip_suffix('\n') {
                Some(line) => format!("{line}\n"),
                None => format!("{line}\n\\ No newline at end of file\n"),
            })
            .collect()
    };
    let (old, new) = (lines(before), lines(after));
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - same;
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let first = same.saturating_sub(3);
    let after_it = tail.min(3);
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let (old_count, new_count) = (old_end + after_it - first, new_end + after_it - first);
    // As diff counts: line 0 of an empty file, else from 1.
    let start = |count: usize| if count == 0 { 0 } else { first + 1 };

    let side = |text: Option<&str>| if text.is_some() { name } else { "/dev/null" };
    let mut out = format!("--- {}\n+++ {}\n", side(before), side(after));
    out += &format!(
        "@@ -{},{old_count} +{},{new_count} @@\n",
        start(old_count),
        start(new_count)
    );
    let mut add = |mark: char, lines: &[String]| {
        for line in lines {
            out.push(mark);
            out += line;
        }
    };
    add(' ', &old[first..same]);
    add('-', &old[same..old_end]);
    add('+', &new[same..new_end]);
    add(' ', &old[old_end..old_end + after_it]);
    out
}
