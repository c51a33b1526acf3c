//! The table of volumes, for people.

use resources::Drive;
use values::Quantity;

use super::{Found, Objects, Usage};

const UNKNOWN: &str = "-";

/// A line for each volume, and what they and their drives come to.
pub(super) fn table(rows: &[(Usage, Found)], objects: Option<&Objects>) -> String {
    let mut lines =
        vec![["NAME", "SIZE", "USED", "INODES", "STATUS", "CLAIM", "WHERE", "HANDLE"].map(str::to_owned)];
    for (usage, one) in rows {
        let claim = one.claim().map(|(namespace, name)| format!("{namespace}/{name}"));
        let place: Vec<String> = one.segments().into_values().collect();
        lines.push([
            one.name().to_owned(),
            one.size(),
            usage.bytes.map_or_else(|| UNKNOWN.to_owned(), size),
            usage.inodes.map_or_else(|| UNKNOWN.to_owned(), |used| used.to_string()),
            status(one, objects).to_owned(),
            claim.unwrap_or_else(|| "<none>".to_owned()),
            place.join(","),
            one.volume.volume_id.clone(),
        ]);
    }
    let widths: Vec<usize> =
        (0..8).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |cells: &[String; 8]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("   ").trim_end())
    };
    let mut text: String = lines.iter().map(line).collect();
    text.push_str(&total(rows, objects));
    text
}

/// What an object says of the volume: its PersistentVolume's phase, or that it has lost it.
fn status<'a>(one: &Found, objects: Option<&'a Objects>) -> &'a str {
    match objects.map(|objects| objects.persistent_volume(one)) {
        None => UNKNOWN,
        Some(Some((_, phase))) => phase,
        Some(None) if one.is_ephemeral() => "Ephemeral",
        Some(None) => "Orphaned",
    }
}

fn total(rows: &[(Usage, Found)], objects: Option<&Objects>) -> String {
    let mounted: Vec<u64> = rows.iter().filter_map(|(usage, _)| usage.bytes).collect();
    let sizes = rows.iter().map(|(_, one)| one.volume.capacity_bytes.unsigned_abs()).sum();
    let mut text = format!(
        "\n{} of {} in sum; {} used by the {} mounted\n",
        counted(rows.len(), "volume"),
        size(sizes),
        size(mounted.iter().sum()),
        mounted.len()
    );
    if let Some(drives) = objects.map(|objects| &objects.drives).filter(|drives| !drives.is_empty()) {
        let sum = |of: fn(&Drive) -> Option<&str>| {
            let bytes =
                drives.iter().filter_map(of).filter_map(|text| text.parse::<Quantity>().ok()?.ceil_bytes());
            size(bytes.sum())
        };
        text.push_str(&format!(
            "{} of {} in sum; {} allocated, {} free\n",
            counted(drives.len(), "drive"),
            sum(|drive| Some(drive.status.as_ref()?.capacity.0.as_str())),
            sum(|drive| Some(drive.status.as_ref()?.allocated.0.as_str())),
            sum(|drive| Some(drive.status.as_ref()?.free.0.as_str())),
        ));
    }
    if rows.iter().any(|(_, one)| status(one, objects) == "Orphaned") {
        text.push_str(
            "Orphaned volumes have no PersistentVolume: `orlop volumes -o yaml` prints new ones, `orlop volumes delete` \
             deletes them with their data\n",
        );
    }
    text
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// For people: at most three digits before the unit, and one behind the point where that tells more.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exact = Quantity::from_bytes(bytes).to_string();
    if bytes < 1024 || exact.len() <= 5 {
        return exact;
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::found;
    use super::super::{CLAIM, NAMESPACE};
    use super::*;

    #[test]
    fn the_table_shows_what_is_known() {
        let noted = || found(&[(CLAIM, "journal"), (NAMESPACE, "shop")]);
        let mut other = found(&[(driver::EPHEMERAL, "true")]);
        other.volume.volume_id = "0a1b/csi-8".to_owned();
        let full = Usage { bytes: Some(24 << 20), inodes: Some(7) };
        let mut lost = found(&[]);
        lost.volume.volume_id = "0a1b/pvc-9".to_owned();
        let volume =
            serde_json::from_value(json!({"metadata": {"name": "pvc-7"}, "status": {"phase": "Bound"},
            "spec": {"csi": {"driver": "orlop.dev", "volumeHandle": "0a1b/pvc-7"}}}));
        let drive = |allocated: &str| {
            serde_json::from_value(
                json!({"metadata": {"name": "d"}, "spec": {"node": "n", "path": "/d", "backend": "xfs"},
                "status": {"state": "Ready", "capacity": "1Gi", "allocated": allocated, "free": "896Mi"}}),
            )
            .expect("a Drive")
        };
        let objects = Objects::of(
            vec![volume.expect("a PersistentVolume")],
            Vec::new(),
            vec![drive("128Mi"), drive("0")],
        );
        let rows = [(full, noted()), (Usage::default(), other), (Usage::default(), lost)];
        assert_eq!(
            table(&rows, Some(&objects)),
            "\
NAME    SIZE   USED   INODES   STATUS      CLAIM          WHERE   HANDLE
pvc-7   64Mi   24Mi   7        Bound       shop/journal   n1      0a1b/pvc-7
csi-8   64Mi   -      -        Ephemeral   <none>         n1      0a1b/csi-8
pvc-9   64Mi   -      -        Orphaned    <none>         n1      0a1b/pvc-9

3 volumes of 192Mi in sum; 24Mi used by the 1 mounted
2 drives of 2Gi in sum; 128Mi allocated, 1.7Gi free
Orphaned volumes have no PersistentVolume: `orlop volumes -o yaml` prints new ones, `orlop volumes delete` deletes them with \
their data
"
        );
        let alone = table(&[(Usage::default(), noted())], None);
        assert!(alone.contains("pvc-7   64Mi   -      -        -        shop/journal"), "{alone}");
        assert!(alone.ends_with("\n\n1 volume of 64Mi in sum; 0 used by the 0 mounted\n"), "{alone}");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, expected) in [
            (0, "0"),
            (512, "512"),
            (64 << 20, "64Mi"),
            ((64 << 20) + 1, "64.0Mi"),
            (25_182_208, "24.0Mi"),
            (1 << 40, "1Ti"),
            (1_500_000_000_000, "1.3Ti"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}
