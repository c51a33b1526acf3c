//! Snapshots of several volumes, taken together. What makes them one is in each member's record: a member counts only
//! while all are complete, so the last member's announcement is the moment at which the group comes into being, and the
//! first member's removal the one at which it ends. A restart removes what is left of a group that isn't whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    DeleteError, GroupSnapshot, Origin, Snapshot, SnapshotError, SnapshotId, SourceError, VolumeId,
    change::{check_name, overflows, settle},
    content::{self, Found},
    drives::Inner,
    execute::Site,
    inventory::Removals,
    plan::{self, Step},
    record::{GroupRecord, Phase, VolumeRecord},
    reservation::{Busy, Intended},
    snapshot,
    state::{Entry, Serving, State},
};

/// Snapshots that are to be taken together. If that breaks off, memory is put right: nothing stays busy, no source stays
/// read.
struct Members<'a> {
    inner: &'a Inner,
    all: Vec<Intended>,
    settled: bool,
}

impl Drop for Members<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.inner.state.lock();
        for Intended { id, record, .. } in &self.all {
            state.let_source_go(record);
            if let Some(entry) = state.entry_mut(id) {
                entry.busy = false;
            }
        }
    }
}

/// Takes snapshots of all these volumes, or of none; or finds the group of that name.
pub(crate) fn create(
    inner: &Inner,
    name: &str,
    sources: &[VolumeId],
) -> Result<GroupSnapshot, SnapshotError> {
    check_name(name).map_err(SnapshotError::Refused)?;
    if sources.is_empty() || sources.iter().collect::<BTreeSet<_>>().len() < sources.len() {
        let why = "a group snapshot is of one or more volumes, each named once";
        return Err(SnapshotError::Refused(why.to_owned()));
    }
    clear_away(inner, name)?;
    let failed = |id: &VolumeId, error| match overflows(&error) {
        true => SnapshotError::Overflows { id: id.clone(), size: 0 },
        false => SnapshotError::Drive { id: id.clone(), name: name.to_owned(), error },
    };
    let volumes = {
        let state = inner.state.lock();
        if let Some(group) = existing(&state, name, sources)? {
            return Ok(group);
        }
        sources.iter().map(|source| known(&state, source)).collect::<Result<Vec<_>, _>>()?
    };
    for (id, found) in sources.iter().zip(volumes.iter().map(|(.., found)| found)) {
        if let Some(device) = content::user(inner.host.as_ref(), found).map_err(|error| failed(id, error))? {
            return Err(SourceError::InUse { id: id.clone(), device }.into());
        }
    }
    // What is written from here to the moment of the snapshot has to fit the headroom, or the caller tries again.
    let used =
        volumes.iter().map(|(id, site, record, _)| site.copied(record).map_err(|error| failed(id, error)));
    let sizes = used.map(|used| used.map(snapshot::size_of)).collect::<Result<Vec<_>, _>>()?;
    let members = {
        let mut state = inner.state.lock();
        if let Some(group) = existing(&state, name, sources)? {
            return Ok(group);
        }
        reserve(&mut state, name, sources, &sizes)?
    };
    let mut guard = Members { inner, all: members, settled: false };
    let members = &guard.all;
    inner.notify();
    let made = take(members);
    let undone = made.is_err() && members.iter().all(|member| undo(member).is_ok());
    let mut state = inner.state.lock();
    for member in members {
        state.let_source_go(&member.record);
        match (made.is_ok(), undone) {
            (_, true) => state.forget(&member.id),
            (complete, _) => {
                if let Some(entry) = state.entry_mut(&member.id) {
                    entry.busy = false;
                    if complete {
                        entry.record.phase = Phase::Ready;
                    }
                }
            }
        }
    }
    let found = whole(&state, |group| group.name == name);
    drop(state);
    guard.settled = true;
    inner.notify();
    made.map_err(|(at, error)| {
        let Intended { record, .. } = &guard.all[at];
        let source = record.origin.as_ref().map_or(&sources[at], |origin| origin.id());
        match overflows(&error) {
            true => SnapshotError::Overflows { id: source.clone(), size: record.size },
            false => failed(source, error),
        }
    })?;
    let group = found.ok_or_else(|| SnapshotError::Busy(name.to_owned()))?;
    tracing::info!(group = %group.id, name, snapshots = group.snapshots.len(), "group snapshot taken");
    Ok(group)
}

fn known(state: &State, source: &VolumeId) -> Result<(VolumeId, Site, VolumeRecord, Found), SnapshotError> {
    let found = content::find(state, &Origin::Volume(source.clone()))?;
    let (serving, entry) = state.entry(source).ok_or_else(|| SourceError::NotFound(source.clone()))?;
    Ok((source.clone(), serving.site.clone(), entry.record.clone(), found))
}

/// Puts all of them into memory, where they count from now on, or none.
fn reserve(
    state: &mut State,
    name: &str,
    sources: &[VolumeId],
    sizes: &[u64],
) -> Result<Vec<Intended>, SnapshotError> {
    let key = format!("group-{}", uuid::Uuid::new_v4());
    let mut members: Vec<Intended> = Vec::new();
    for (at, (source, size)) in sources.iter().zip(sizes).enumerate() {
        match snapshot::reserve(state, source, &format!("{key}-{at}"), *size) {
            Ok(member) => members.push(member),
            Err(refused) => {
                for member in &members {
                    state.let_source_go(&member.record);
                    state.forget(&member.id);
                }
                return Err(refused);
            }
        }
    }
    let id = SnapshotId { drive: members[0].id.drive.clone(), key };
    let ids: Vec<SnapshotId> = members.iter().map(|member| member.id.clone()).collect();
    let group = GroupRecord { id, name: name.to_owned(), members: ids };
    for member in &mut members {
        member.record.group = Some(group.clone());
        if let Some(entry) = state.entry_mut(&member.id) {
            entry.record.group = Some(group.clone());
        }
    }
    Ok(members)
}

/// The plans of all members, woven into one: every intent and every freeze comes before the first copy, so that the
/// moments are near each other, and every announcement after the last.
fn weave(plans: Vec<Vec<Step>>) -> Vec<(usize, Step)> {
    let (mut first, mut middle, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut freezes = Vec::new();
    for (at, plan) in plans.into_iter().enumerate() {
        for step in plan {
            match &step {
                Step::Record(record) if record.phase == Phase::Ready => last.push((at, step)),
                Step::Intend(_) | Step::Record(_) => first.push((at, step)),
                Step::Freeze { .. } => freezes.push((at, step)),
                _ => middle.push((at, step)),
            }
        }
    }
    [first, freezes, middle, last].concat()
}

/// Carries the woven plan out, up to the first step that fails: of which member, and why.
fn take(members: &[Intended]) -> Result<(), (usize, linux::Error)> {
    let plans = members.iter().map(|member| plan::create(&member.record, member.content.as_ref()));
    weave(plans.collect()).iter().try_for_each(|(at, step)| {
        members[*at].site.execute(std::slice::from_ref(step)).map_err(|error| (*at, error))
    })
}

fn undo(member: &Intended) -> linux::Result<()> {
    let found = member.site.observe(&member.record)?;
    member.site.execute(&plan::delete(&member.record, found))
}

/// The members, by the drives that serve, of groups like this.
fn members<'a>(
    state: &'a State,
    like: impl Fn(&GroupRecord) -> bool + 'a,
) -> impl Iterator<Item = (&'a Serving, &'a Entry)> + 'a {
    state.serving().flat_map(move |serving| {
        let mine: Vec<_> =
            serving.volumes.values().filter(|entry| entry.record.group.as_ref().is_some_and(&like)).collect();
        mine.into_iter().map(move |entry| (serving, entry))
    })
}

/// The group, if every member that can be seen is complete.
fn whole(state: &State, like: impl Fn(&GroupRecord) -> bool) -> Option<GroupSnapshot> {
    let mut group: Option<GroupRecord> = None;
    let mut snapshots: BTreeMap<SnapshotId, Snapshot> = BTreeMap::new();
    for (serving, entry) in members(state, like) {
        let snapshot = serving.snapshot(entry).filter(|_| entry.live() && !entry.busy)?;
        group = group.or_else(|| entry.record.group.clone());
        snapshots.insert(snapshot.id.clone(), snapshot);
    }
    let group = group?;
    let snapshots: Vec<Snapshot> = group.members.iter().filter_map(|id| snapshots.remove(id)).collect();
    let created = snapshots.iter().map(|snapshot| snapshot.created).min()?;
    Some(GroupSnapshot { id: group.id, name: group.name, snapshots, created })
}

/// The group of that identity.
pub(crate) fn find(state: &State, id: &SnapshotId) -> Option<GroupSnapshot> {
    whole(state, |group| group.id == *id)
}

/// The group of that name, if it is what is asked for.
fn existing(state: &State, name: &str, sources: &[VolumeId]) -> Result<Option<GroupSnapshot>, SnapshotError> {
    if members(state, |group| group.name == name).any(|(_, entry)| entry.busy) {
        return Err(SnapshotError::Busy(name.to_owned()));
    }
    let Some(group) = whole(state, |group| group.name == name) else { return Ok(None) };
    let of: BTreeSet<&VolumeId> = group.snapshots.iter().map(|snapshot| &snapshot.source).collect();
    match of == sources.iter().collect() {
        true => Ok(Some(group)),
        false => Err(SnapshotError::IncompatibleGroup {
            name: name.to_owned(),
            sources: of.into_iter().cloned().collect(),
        }),
    }
}

/// Removes what an attempt left that could not clean up after itself.
fn clear_away(inner: &Inner, name: &str) -> Result<(), SnapshotError> {
    let left: Vec<(SnapshotId, Site, VolumeRecord)> = {
        let mut state = inner.state.lock();
        let of_name = |group: &GroupRecord| group.name == name;
        let left: Vec<_> = members(&state, of_name)
            .filter(|(_, entry)| !entry.live() && !entry.busy)
            .map(|(serving, entry)| {
                let id = SnapshotId { drive: serving.id.clone(), key: entry.record.key.clone() };
                (id, serving.site.clone(), entry.record.clone())
            })
            .collect();
        for (id, ..) in &left {
            if let Some(entry) = state.entry_mut(id) {
                entry.busy = true;
            }
        }
        left
    };
    remove(inner, &left).map_err(|(id, error)| SnapshotError::Drive { id, name: name.to_owned(), error })
}

/// Deletes the group with all its snapshots. One that is not there is deleted.
pub(crate) fn delete(inner: &Inner, id: &SnapshotId) -> Result<(), DeleteError> {
    let going = {
        let mut state = inner.state.lock();
        let no_drive = |drive| DeleteError::NoDrive { id: id.clone(), drive };
        let Some(group) =
            members(&state, |group| group.id == *id).find_map(|(_, entry)| entry.record.group.clone())
        else {
            return match state.drive(&id.drive) {
                Some(_) => Ok(()),
                None if !state.knows(&id.drive) && !id.drive.is_possible() => Ok(()),
                None => Err(no_drive(id.drive.clone())),
            };
        };
        if let Some(away) = group.members.iter().find(|member| state.drive(&member.drive).is_none()) {
            return Err(no_drive(away.drive.clone()));
        }
        let mut going = Vec::new();
        for (serving, entry) in members(&state, |group| group.id == *id) {
            let member = SnapshotId { drive: serving.id.clone(), key: entry.record.key.clone() };
            if entry.busy {
                return Err(DeleteError::Busy(id.clone()));
            }
            if entry.readers > 0 {
                return Err(DeleteError::Copied(member));
            }
            going.push((member, serving.site.clone(), entry.record.clone()));
        }
        for (member, ..) in &going {
            if let Some(entry) = state.entry_mut(member) {
                entry.busy = true;
                entry.record.phase = Phase::Deleting;
            }
        }
        going
    };
    remove(inner, &going).map_err(|(id, error)| DeleteError::Drive { id, error })?;
    tracing::info!(group = %id, "group snapshot deleted");
    Ok(())
}

/// Removes every one that can be; the first that can't be is the error.
fn remove(
    inner: &Inner,
    going: &[(SnapshotId, Site, VolumeRecord)],
) -> Result<(), (SnapshotId, linux::Error)> {
    let mut first = Ok(());
    let all: Vec<_> =
        going.iter().map(|(id, site, record)| (Busy::new(inner, id), id, site, record)).collect();
    for (busy, id, site, record) in all {
        let removed = site.observe(record).and_then(|found| settle(busy, site, &plan::delete(record, found)));
        if let Err(error) = removed {
            first = first.and(Err((id.clone(), error)));
        }
    }
    first
}

/// After a restart: what is left of groups that are not whole, to be removed. A member on a drive that isn't there
/// proves nothing.
pub(crate) fn broken(state: &mut State) -> Removals {
    let mut groups: BTreeMap<SnapshotId, (GroupRecord, Vec<SnapshotId>)> = BTreeMap::new();
    for (serving, entry) in
        members(state, |_| true).filter(|(_, entry)| entry.live() && entry.unfit.is_none())
    {
        let Some(group) = &entry.record.group else { continue };
        let member = SnapshotId { drive: serving.id.clone(), key: entry.record.key.clone() };
        groups.entry(group.id.clone()).or_insert_with(|| (group.clone(), Vec::new())).1.push(member);
    }
    let mut removals = Removals::new();
    for (group, complete) in groups.into_values() {
        // Nor does one whose record is damaged.
        let is_unfit = |id: &SnapshotId| state.entry(id).is_some_and(|(_, entry)| entry.unfit.is_some());
        let missing =
            |id: &&SnapshotId| state.drive(&id.drive).is_some() && !complete.contains(*id) && !is_unfit(id);
        if group.members.iter().find(missing).is_none() {
            continue;
        }
        tracing::warn!(group = %group.id, name = group.name, "removing what a crash left of a group snapshot");
        for id in complete {
            let Some((serving, entry)) = state.entry(&id) else { continue };
            match serving.site.observe(&entry.record) {
                Ok(found) => removals.push((id.clone(), plan::delete(&entry.record, found))),
                Err(error) => tracing::warn!(snapshot = %id, %error, "it stays until it is deleted"),
            }
            if let Some(entry) = state.entry_mut(&id) {
                entry.busy = removals.last().is_some_and(|(going, _)| *going == id);
                entry.record.phase = Phase::Deleting;
            }
        }
    }
    removals
}
