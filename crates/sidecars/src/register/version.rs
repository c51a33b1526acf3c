/// Why a driver's versions don't suit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// It named none.
    #[error("the driver names no CSI version; it must support one from 1.0.0 to below 2.0.0")]
    None,
    /// One that is no version.
    #[error("{0:?} is not a version; it must be like 1.0.0")]
    Malformed(String),
    /// None of 1.x.
    #[error("none of the driver's CSI versions {0:?} is supported; one from 1.0.0 to below 2.0.0 is needed")]
    Unsupported(Vec<String>),
}

/// The highest version from 1.0.0 to below 2.0.0.
pub(super) fn choose(versions: &[String]) -> Result<String, VersionError> {
    if versions.is_empty() {
        return Err(VersionError::None);
    }
    let parsed: Vec<_> = versions.iter().map(|version| parse(version)).collect::<Result<_, _>>()?;
    let best = parsed.iter().filter(|(major, _, _)| *major == 1).max();
    let (major, minor, patch) = best.ok_or_else(|| VersionError::Unsupported(versions.to_vec()))?;
    Ok(format!("{major}.{minor}.{patch}"))
}

fn parse(text: &str) -> Result<(u32, u32, u32), VersionError> {
    let malformed = || VersionError::Malformed(text.to_owned());
    let plain = text.strip_prefix('v').unwrap_or(text).split(['-', '+']).next().unwrap_or_default();
    let numbers = plain.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>();
    match numbers.map_err(|_| malformed())?.as_slice() {
        [major] => Ok((*major, 0, 0)),
        [major, minor] => Ok((*major, *minor, 0)),
        [major, minor, patch] => Ok((*major, *minor, *patch)),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_version_1_is_chosen() {
        for (versions, chosen) in [
            (&["1.0.0"][..], Ok("1.0.0")),
            (&["v1.2.0", "1.10", "0.3.0", "2.0.0"], Ok("1.10.0")),
            (&[], Err(VersionError::None)),
            (&["0.3.0"], Err(VersionError::Unsupported(vec!["0.3.0".to_owned()]))),
            (&["1.0.0", "one"], Err(VersionError::Malformed("one".to_owned()))),
        ] {
            let versions: Vec<String> = versions.iter().map(|version| (*version).to_owned()).collect();
            assert_eq!(choose(&versions), chosen.map(str::to_owned));
        }
    }
}
