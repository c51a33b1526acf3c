//! A revisioned object store with watch history on redb: group commit, compaction.
