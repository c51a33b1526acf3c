//! Drives and the volumes on them: pure plans and their executor.
