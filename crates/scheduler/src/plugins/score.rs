//! Raw scores brought to the range from 0 to 100, as kube-scheduler rounds them.

/// The best score.
pub(super) const BEST: i64 = 100;

/// The greatest gets 100, zero stays zero.
pub(super) fn most_best(mut raw: Vec<i64>) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or_default();
    if most > 0 {
        raw.iter_mut().for_each(|score| *score = BEST * *score / most);
    }
    raw
}

/// Zero gets 100, the greatest gets none.
pub(super) fn fewest_best(raw: Vec<i64>) -> Vec<i64> {
    most_best(raw).into_iter().map(|score| BEST - score).collect()
}

#[cfg(test)]
#[test]
fn shares_are_rounded_down_before_they_are_turned_round() {
    assert_eq!(most_best(vec![1, 3, 0]), [33, 100, 0]);
    assert_eq!(fewest_best(vec![1, 3, 0]), [67, 0, 100]);
    assert_eq!(fewest_best(vec![0, 0]), [100, 100]);
    assert_eq!(fewest_best(vec![2, 2]), [0, 0]);
}
