//! Whose the kubeconfig is, for somebody who is not root.

use std::str::FromStr;

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) user: u32,
    pub(super) group: u32,
}

impl FromStr for Owner {
    type Err = String;

    /// Reads `USER[:GROUP]`, names of this machine's files or numbers. Without a group it is the user's own.
    fn from_str(text: &str) -> Result<Owner, String> {
        let file = |path| std::fs::read_to_string(path).unwrap_or_default();
        find(text, &file("/etc/passwd"), &file("/etc/group"))
    }
}

fn find(text: &str, users: &str, groups: &str) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let missing = |what, name, file| {
        format!("there is no {what} {name:?} in {file}; name one that is there, or give numbers: UID:GID")
    };
    let known = entry(users, user);
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
    let uid = known.as_ref().and_then(|fields| number(fields.get(2)?)).or_else(|| number(user));
    let gid = match group {
        Some(group) => {
            let known = entry(groups, group).and_then(|fields| number(fields.get(2)?));
            known.or_else(|| number(group)).ok_or_else(|| missing("group", group, "/etc/group"))?
        }
        None => known
            .and_then(|fields| number(fields.get(3)?))
            .ok_or_else(|| missing("user", user, "/etc/passwd"))?,
    };
    Ok(Owner { user: uid.ok_or_else(|| missing("user", user, "/etc/passwd"))?, group: gid })
}

/// The fields of the line of that name, or of that number.
fn entry<'a>(file: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = || file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let by = |at: usize| {
        lines().find(|fields| fields.get(at).is_some_and(|field| *field == name && !name.is_empty()))
    };
    by(0).or_else(|| by(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_or_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n";
        let groups = "root:x:0:\nstaff:x:50:ann\n";
        let owner = |user, group| Ok(Owner { user, group });
        for (text, expected) in [
            ("ann", owner(1000, 1001)),
            ("1000", owner(1000, 1001)),
            ("ann:staff", owner(1000, 50)),
            ("ann:7", owner(1000, 7)),
            ("5:6", owner(5, 6)),
        ] {
            assert_eq!(find(text, users, groups), expected, "{text}");
        }
        for (text, word) in
            [("bob", "\"bob\""), ("5", "UID:GID"), ("ann:x", "/etc/group"), ("", "UID:GID"), (":", "group")]
        {
            assert!(find(text, users, groups).is_err_and(|why| why.contains(word)), "{text}");
        }
    }
}
